"""The discriminator of a task that has one: a second network that is trained against the first.

It has an optimizer of its own, with the same settings and learning rate, and no average. In each round of a step the
task's loss comes first, backward and all; then the discriminator's, from what the network has just made, detached.
Both are updated together at the end of the step, or neither.
"""

import contextlib
from typing import Any, Optional

import torch
from torch import Tensor, nn

from vidpred.checkpoint_store import Checkpoint
from vidpred.training.averages import RunningAverages
from vidpred.training.optimization import Optimization
from vidpred.training.preparation import TrainedNetwork
from vidpred.training.settings import TrainingConfig
from vidpred.training.snapshots import load_discriminator
from vidpred.training.task import DiscriminatorLoss

GROUP = "discriminator"


class Adversary:
    """What the trainer does with `network`, the task's discriminator; nothing at all where that is None.

    A step in which it has nothing to learn (before its start) leaves it as it is: that is a function of the step, so
    all ranks and rounds agree.
    """

    def __init__(
        self,
        network: Optional[nn.Module],
        device: torch.device,
        dtype: Optional[torch.dtype],
        config: TrainingConfig,
    ):
        self._network = network
        self._averages = RunningAverages()
        self._has_learnt, self._grad_norm = False, torch.zeros(())
        if network is not None:
            self._trained = TrainedNetwork(network, device, dtype, config)
            self._optimization = Optimization.of(network, config)

    def learn(self, loss: Optional[DiscriminatorLoss], rounds: int, last: bool) -> None:
        """Adds the gradient of one round, of `rounds` in the step; ranks exchange it in the last one."""
        if loss is None:
            return
        with contextlib.nullcontext() if last else self._trained.gradients_stay_local():
            part = loss(self._trained)
            (part.loss / rounds).backward()
        self._averages.add(part.averages)
        self._has_learnt = True

    def non_finite_or(self, grad_norm: Tensor) -> Tensor:
        """`grad_norm` of the network, or that of the discriminator where this one is not finite: one look at the
        result tells whether the step may be made."""
        if not self._has_learnt:
            return grad_norm
        self._grad_norm = self._optimization.gradient_norm()
        return torch.where(self._grad_norm.isfinite(), grad_norm, self._grad_norm)

    def update(self, step: int, found_inf: Tensor) -> None:
        """The optimizer step that belongs to step `step` of the network; after `non_finite_or`."""
        if self._has_learnt:
            self._optimization.update(step, self._grad_norm, found_inf)
            self._has_learnt = False

    def read(self) -> dict[str, float]:
        """Means of what was logged since the last call, over all ranks."""
        return self._averages.read()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint keeps, by file name."""
        return {GROUP: self._network.state_dict()} if self._network is not None else {}

    def state(self) -> dict[str, Any]:
        """The optimizer's state for a checkpoint, by key."""
        return {f"{GROUP}_optimizer": self._optimization.state_dict()} if self._network is not None else {}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint."""
        if self._network is not None:
            load_discriminator(self._network, checkpoint)
            self._optimization.load_state_dict(checkpoint.state[f"{GROUP}_optimizer"])
