"""What the weights of a moment are worth: the validation loss, pictures, the evaluation, each into the log."""

import logging
from typing import Optional

import torch

from vidpred.training.ema import Ema
from vidpred.training.loggers import Loggers
from vidpred.training.preparation import Autocast, evaluating
from vidpred.training.task import Findings, Task

logger = logging.getLogger(__name__)


class Review:
    """Of the network of `task` and its average `ema`; every rank must call it."""

    def __init__(
        self, task: Task, ema: Ema, loggers: Loggers, device: torch.device, dtype: Optional[torch.dtype]
    ):
        self._task, self._ema, self._loggers = task, ema, loggers
        self._device, self._dtype = device, dtype

    def validate(self, step: int) -> dict[str, float]:
        """Raw and averaged weights on the same validation samples; the figures as they are logged."""
        values = {}
        for suffix, network in (("", self._task.network), ("_ema", self._ema.network)):
            with evaluating(network):
                figures = self._task.validate(Autocast(network, self._device, self._dtype))
            values |= {f"validation/{name}{suffix}": value for name, value in figures.items()}
        logger.info(
            "step %d  validation loss %.6f  EMA %.6f",
            step,
            values["validation/loss"],
            values["validation/loss_ema"],
        )
        self._loggers.log(step, values)
        return values

    def visualize(self, step: int, progress: float) -> None:
        """Pictures of the averaged weights."""
        self._publish(step, "train/visualization", self._task.visualize(self._ema.network, step, progress))

    def evaluate(self, step: int) -> None:
        """The full evaluation of the averaged weights."""
        self._publish(step, "eval/visualization", self._task.evaluate(self._ema.network, step))

    def _publish(self, step: int, name: str, findings: Findings) -> None:
        if findings.pictures:
            first, others = findings.pictures[0], len(findings.pictures) - 1
            logger.info("step %d  pictures: %s and %d more files beside it", step, first, others)
        if findings.values:
            self._loggers.log(step, findings.values)
        if findings.pictures:
            self._loggers.log_pictures(step, name, findings.pictures)
