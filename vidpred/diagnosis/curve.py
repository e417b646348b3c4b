"""The course of a training run in a bounded number of points: the loss and the learning rate."""

import math
from dataclasses import dataclass
from typing import Any

MOST = 512  # points


@dataclass(frozen=True)
class LossPoint:
    """step: the last one of the point. loss: mean over the point's steps. learning_rate: of the last one."""

    step: int
    loss: float
    learning_rate: float


class LossCurve:
    """Means over 1, 2, 4, ... steps each: as few as keep the curve below MOST points, whatever the length of the run.

    A function of the losses alone, so a resumed run has the curve of one that was never interrupted.
    """

    def __init__(self) -> None:
        self._width = 1
        self._bins: dict[int, list[float]] = {}  # number -> last step, count, sum of losses, learning rate

    def add(self, step: int, loss: float, learning_rate: float) -> None:
        """A step that was done, counted from 1; one whose loss is not finite was skipped and is left out."""
        if not math.isfinite(loss):
            return
        self._merge((step - 1) // self._width, [step, 1, loss, learning_rate])
        if len(self._bins) > MOST:
            self._width, old, self._bins = 2 * self._width, self._bins, {}
            for number, content in old.items():
                self._merge(number // 2, content)

    def _merge(self, number: int, content: list[float]) -> None:
        step, count, total, rate = content
        _, before, losses, _ = self._bins.get(number, [0, 0, 0.0, 0.0])
        self._bins[number] = [step, before + count, losses + total, rate]

    @property
    def points(self) -> list[LossPoint]:
        return [LossPoint(int(step), total / count, rate) for step, count, total, rate in self._bins.values()]

    def state(self) -> dict[str, Any]:
        return {"width": self._width, "bins": self._bins}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "LossCurve":
        curve = cls()
        curve._width = state["width"]
        curve._bins = {number: list(content) for number, content in state["bins"].items()}
        return curve
