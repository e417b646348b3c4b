"""The ranges of named tensors as a run shows them: numbers for the loggers, lines on the console."""

import logging

from vidpred.range_checks import RangeStats

logger = logging.getLogger(__name__)


def range_values(ranges: dict[str, RangeStats]) -> dict[str, float]:
    """Under the names of the log."""
    return {
        f"range/{name}/{figure}": float(value)
        for name, stats in ranges.items()
        for figure, value in (
            ("min", stats.minimum),
            ("max", stats.maximum),
            ("mean", stats.mean),
            ("std", stats.std),
            ("non_finite", stats.non_finite),
        )
    }


class RangeLines:
    """On the console at the first log line, and then at the first one after every `rhythm` steps."""

    def __init__(self, rhythm: int):
        self._rhythm, self._shown_step = rhythm, -1

    def show(self, step: int, ranges: dict[str, RangeStats]) -> None:
        """Writes a line for each name where it is time to."""
        if self._shown_step < 0 or step - self._shown_step >= self._rhythm:
            self._shown_step = step
            for name, stats in ranges.items():
                logger.info("%s range: %s", name, stats)
