"""What a step of training means: the protocol that the trainer drives."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Generator, Optional, Protocol

import torch
from torch import Tensor, nn

from vidpred.training.averages import Averages


class Batch(Protocol):
    """A micro batch of this rank."""

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch": ...


@dataclass(frozen=True)
class TaskLoss:
    """The loss of one micro batch.

    loss: scalar, the mean over the micro batch's samples; micro batches are of equal size, so the mean over
        them, accumulation rounds and ranks is the mean over the global batch.
    averages: what else is logged, as sums and weights.
    discriminator: of a task with a discriminator, what that is to learn from this micro batch; None: nothing in this
        step. It calls the discriminator once, and its graph does not reach the network.
    """

    loss: Tensor
    averages: Averages
    discriminator: "Optional[DiscriminatorLoss]" = None


DiscriminatorLoss = Callable[[nn.Module], TaskLoss]
"""The wrapped discriminator -> its loss, a mean over the samples of the micro batch as well."""


@dataclass(frozen=True)
class Findings:
    """Numbers to log, by name, and files to look at."""

    values: dict[str, float] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)


class Task(Protocol):
    """Every method is called on every rank at the same step, and may use collective operations.

    `network` is the bare network whose parameters are trained, `discriminator` one that is trained against it, mostly
    None (see `adversary`); the methods receive the network to call: the
    wrapped one in `loss`, the raw or averaged weights (in evaluation mode) elsewhere. Randomness must be a
    function of the seed and of running draw numbers.
    """

    network: nn.Module
    discriminator: Optional[nn.Module]

    def batches(self, first_step: int) -> Generator[Batch, None, None]:
        """This rank's micro batches from step `first_step` on, for ever; closing it ends the workers."""

    def loss(self, network: nn.Module, batch: Any, step: int) -> TaskLoss:
        """The loss of a micro batch on the device. Nothing in it may wait for the device."""

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Figures of validation samples, "loss" among them; equal weights give equal figures."""

    def visualize(self, network: nn.Module, step: int, progress: float) -> Findings:
        """Saves pictures. `progress` in [0, 1] is the part of training that is done."""

    def evaluate(self, network: nn.Module, step: int) -> Findings:
        """The full evaluation, saved under `step`."""

    def is_evaluated(self, step: int) -> bool:
        """Whether the evaluation of `step` is saved already."""

    def export(self, network: nn.Module) -> None:
        """Before each checkpoint, with the averaged weights: writes what a run hands out besides, if anything."""

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Frozen tensors that a checkpoint needs besides the network's, by file name."""

    def record(self, averaged: nn.Module) -> Optional[tuple[dict[str, Tensor], dict[str, Any]]]:
        """What a diagnosis compares inference with, see `vidpred.diagnosis.record`; None where there is nothing.

        Called on rank 0 alone, so it must not use collective operations. Both networks are in evaluation mode."""

    def measures(self) -> dict[str, float]:
        """Cheap measures of `vidpred.diagnosis` for the watch; between steps, on rank 0 alone, as `record`."""

    def state(self) -> dict[str, Any]:
        """What a resumed run must know: plain numbers, texts, lists, dictionaries, tensors."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over a saved `state`, before `batches` is called."""
