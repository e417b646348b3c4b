"""What a run keeps of itself for a diagnosis: the course of the loss, the weights it began with, and the watch."""

from typing import Any

from torch import Tensor

from vidpred.checkpoint_store import Checkpoint
from vidpred.diagnosis.curve import LossCurve
from vidpred.diagnosis.record import GROUP, read_history, weight_sample
from vidpred.range_checks import RangeStats
from vidpred.training.ema import Ema
from vidpred.training.optimization import learning_rate_of
from vidpred.training.settings import TrainingConfig
from vidpred.training.task import Task
from vidpred.training.verdicts import Verdict
from vidpred.training.watch import Watch


class Chronicle:
    """Of a run of `task`, before its first step. Only the rank that saves asks it for anything."""

    def __init__(self, task: Task, ema: Ema, config: TrainingConfig):
        self._task, self._ema = task, ema
        self._learning_rate = learning_rate_of(config)
        self._curve, self._start = LossCurve(), weight_sample(task.network.state_dict())
        self._watch = Watch(task.network, ema, config, with_loss=task.discriminator is None)

    def enter(self, verdict: Verdict) -> None:
        """Takes in one step."""
        self._curve.add(verdict.step, verdict.loss, self._learning_rate(verdict.step - 1))
        self._watch.enter(verdict)

    def see_ranges(self, ranges: dict[str, RangeStats]) -> None:
        """Those of the steps since the last call."""
        self._watch.see_ranges(ranges)

    def look_for_faults(self, step: int) -> dict[str, float]:
        """Names what is wrong as soon as it shows; returns the metrics of it."""
        return self._watch.check(step, self._task.measures())

    def history(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """For a checkpoint: tensors by group, and plain values. The task's network is in evaluation mode."""
        recorded = self._task.record(self._ema.network)
        tensors, values = recorded if recorded is not None else ({}, None)
        weights = {
            "weights_start": self._start,
            "weights_raw": weight_sample(self._task.network.state_dict()),
            "weights_averaged": weight_sample(self._ema.state_dict()),
        }
        state = {"record": values, "curve": self._curve.state(), "watch": self._watch.state()}
        return {GROUP: tensors | weights}, state

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on with the history in a checkpoint, whose weights and average are loaded already."""
        history = read_history(checkpoint)
        if history is not None:
            self._curve, self._start = history.curve, history.start
            if "watch" in checkpoint.state["history"]:  # an older one has none
                self._watch.load_state(checkpoint.state["history"]["watch"])
