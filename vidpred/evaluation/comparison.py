"""Two results of one protocol, compared clip by clip.

For clips i = 1 .. N that both results have, d_i = right_i - left_i; the figure is the mean of d_i with its
95 % interval (Student t, as in `statistics`). Clips differ far more from each other than two models do on one
clip, so the interval of the differences is much narrower than those of the two means.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Hashable, Iterator, Optional, Union

import numpy as np

from vidpred.errors import UserError
from vidpred.evaluation.protocol import Difference, differences, shown
from vidpred.evaluation.statistics import Summary, summarize

NOT_FIGURES = ("protocol", "run", "left_out", "clips")
DESCRIBED = ("checkpoint", "chosen", "step", "device")


@dataclass(frozen=True)
class PairedRow:
    """One metric of one row over the paired clips: the two means, and the summary of right - left."""

    row: str
    metric: str
    left: float
    right: float
    difference: Summary

    @property
    def clear(self) -> bool:
        """Whether 0 lies outside the interval."""
        half = self.difference.ci95
        return half is not None and abs(self.difference.mean) > half


@dataclass(frozen=True)
class Comparison:
    """`common` clips are in both results, `only` counts those of the left and of the right one alone. `rows`
    are paired by clip; `figures`, (name, left, right), are of all clips of a result at once."""

    names: tuple[str, str]
    runs: tuple[dict[str, Any], dict[str, Any]]
    differences: list[Difference]
    common: int
    only: tuple[int, int]
    by_content: bool
    rows: list[PairedRow]
    figures: list[tuple[str, float, float]]
    missing: list[str]

    def difference_lines(self) -> Iterator[str]:
        """One for each key of the protocols that differs, with both values."""
        left, right = self.names
        for key, mine, other in self.differences:
            yield f"protocol differs: {key} is {shown(mine)} in {left}, {shown(other)} in {right}"

    def table(self) -> str:
        """Aligned; a star where 0 lies outside the 95 % interval of the difference."""
        names = [f"{row.row} {row.metric}" for row in self.rows] + [name for name, _, _ in self.figures]
        width = max(18, *map(len, names))
        lines = [*self._heading(), f"{'':<{width}}{'a':>12}{'b':>12}{'b - a, paired':>26}"]
        for row in self.rows:
            half = row.difference.ci95
            interval = "" if half is None else f" +- {_number(half)}"
            cell = f"{_number(row.difference.mean, '+')}{interval}{' *' if row.clear else '  '}"
            left, right = _number(row.left), _number(row.right)
            lines.append(f"{f'{row.row} {row.metric}':<{width}}{left:>12}{right:>12}{cell:>26}")
        for name, left, right in self.figures:
            cell = f"{_number(right - left, '+')}  "
            lines.append(f"{name:<{width}}{_number(left):>12}{_number(right):>12}{cell:>26}")
        lines.append("+-: 95 % interval over clips; *: 0 lies outside; neither: a figure of all clips at once")
        if self.missing:
            lines.append(f"in one of them only: {', '.join(self.missing)}")
        return "\n".join(lines)

    def _heading(self) -> Iterator[str]:
        for letter, name, run in zip("ab", self.names, self.runs):
            known = [f"{key} {run[key]}" for key in DESCRIBED if run.get(key) is not None]
            yield f"{letter}: {name}{': ' if known else ''}{', '.join(known)}"
        how = "content" if self.by_content else "number and name, for their frames are not the same"
        yield f"{self.common} clips paired by {how}; {self.only[0]} only in a, {self.only[1]} only in b"


def compare(left: Union[str, Path], right: Union[str, Path], anyway: bool = False) -> Comparison:
    """Compares two files that evaluations wrote.

    Raises UserError for files that are none, where no clip is common, and, unless `anyway`, for different
    protocols: one line for each key, before the last one that says so.
    """
    results = (_read(Path(left)), _read(Path(right)))
    differing = differences(results[0]["protocol"], results[1]["protocol"])
    pairs, by_content = _pairs(results[0]["clips"], results[1]["clips"])
    counts = [len(result["clips"]) for result in results]
    metrics = [_metrics_of(result) for result in results]
    rows = {row for found in metrics for row, _ in found}
    figures = [dict(_figures(result, rows)) for result in results]
    one_sided = [key for key in metrics[0] if key not in metrics[1]]
    one_sided += [key for key in metrics[1] if key not in metrics[0]]
    comparison = Comparison(
        names=(str(left), str(right)),
        runs=(results[0].get("run", {}), results[1].get("run", {})),
        differences=differing,
        common=len(pairs),
        only=(counts[0] - len(pairs), counts[1] - len(pairs)),
        by_content=by_content,
        rows=[row for key in metrics[0] if key in metrics[1] and (row := _paired(*key, pairs)) is not None],
        figures=[(name, figures[0][name], figures[1][name]) for name in figures[0] if name in figures[1]],
        missing=[*map(" ".join, one_sided), *sorted(figures[0].keys() ^ figures[1].keys())],
    )
    if differing and not anyway:
        count = f"{len(differing)} key{'s' if len(differing) > 1 else ''}"
        raise ProtocolsDiffer(
            f"--compare: the protocols differ in {count}, so the figures do not compare; evaluate again with "
            "equal settings, or add --anyway",
            comparison,
        )
    if not pairs:
        raise UserError(f"--compare: {left} and {right} have no clip in common; evaluate the same clips")
    return comparison


class ProtocolsDiffer(UserError):
    """Two results that do not compare; `comparison.difference_lines()` say why."""

    def __init__(self, line: str, comparison: Comparison):
        super().__init__(line)
        self.comparison = comparison


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise UserError(f"--compare: {path} cannot be read ({reason}); give an evaluation.json") from error
    if not isinstance(result, dict) or not {"protocol", "clips"} <= result.keys():
        raise UserError(f"--compare: {path} is no result of an evaluation; give an evaluation.json")
    return result


# Clips -----------------------------------------------------------------------------------------------------


def _pairs(left: list[dict], right: list[dict]) -> tuple[list[tuple[dict, dict]], bool]:
    """Clips of equal content, or, where no two of them are, those of equal number and name; and whether it
    was the content."""
    for by_content in (True, False):
        others = dict(_keyed(right, by_content))
        found = [(clip, others[key]) for key, clip in _keyed(left, by_content) if key in others]
        if found:
            return found, by_content
    return [], False


def _keyed(clips: list[dict], by_content: bool) -> Iterator[tuple[Hashable, dict]]:
    """Of clips with equal content, as still ones may be, the first goes with the first, and so on."""
    seen: Counter = Counter()
    for clip in clips:
        if not by_content:
            yield (clip["index"], clip["name"]), clip
        elif clip.get("sha256"):
            yield (clip["sha256"], seen[clip["sha256"]]), clip
            seen[clip["sha256"]] += 1


def _metrics_of(result: dict[str, Any]) -> dict[tuple[str, str], None]:
    """(row, metric) in order: whatever single numbers a clip has by name, in dictionaries."""
    found: dict[tuple[str, str], None] = {}
    for clip in result["clips"]:
        for row, values in clip.items():
            for metric in values if isinstance(values, dict) else ():
                if _is_number(values[metric]):
                    found[row, metric] = None
    return found


def _paired(row: str, metric: str, pairs: list[tuple[dict, dict]]) -> Optional[PairedRow]:
    """None where no pair has both values."""
    both = [tuple((clip.get(row) or {}).get(metric) for clip in pair) for pair in pairs]
    values = np.array([pair for pair in both if all(map(_is_number, pair))], dtype=np.float64)  # (N, 2)
    if not len(values):
        return None
    left, right = (float(mean) for mean in values.mean(axis=0))
    return PairedRow(row, metric, left, right, summarize(values[:, 1:] - values[:, :1]))


# Figures of all clips at once ------------------------------------------------------------------------------


def _figures(result: dict[str, Any], rows: set[str]) -> Iterator[tuple[str, float]]:
    """(dotted name, number) of what stands beside the rows."""
    for name, value in result.items():
        if name not in rows and name not in NOT_FIGURES:
            yield from _numbers(name, value)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if _is_number(value):
        yield name, float(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(f"{name}.{key}", inner)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: float, sign: str = "") -> str:
    """Four decimals, or the first digits of what is smaller."""
    if value and abs(value) < 1e-3:
        return f"{value:{sign}.2e}"
    return f"{value:{sign}.4f}"
