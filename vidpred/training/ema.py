"""Exponential moving average of the weights, kept on every rank.

Notation: w the trained weights after an update, m the average, n the number of updates before this one.
m <- m + (1 - d_n)(w - m) with d_n = min(decay, (1 + n) / (10 + n)): a short average while the weights still
move fast (Tarvainen and Valpola 2017; the formula is that of TensorFlow's ExponentialMovingAverage).
"""

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn

from vidpred import distributed

logger = logging.getLogger(__name__)


class Ema:
    """`ema.network` is a copy of `network` in evaluation mode whose weights are the moving average."""

    def __init__(self, network: nn.Module, decay: float = 0.9999, warmup: bool = True):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.updates = 0
        self._decay = decay
        self._warmup = warmup

    def decay(self) -> float:
        """d_n of the next update."""
        return min(self._decay, (1 + self.updates) / (10 + self.updates)) if self._warmup else self._decay

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Moves the average towards the weights of `network`; buffers are copied."""
        averages = [p for p in self.network.parameters()]
        weights = [p.detach() for p in network.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - self.decay())
        for average, buffer in zip(self.network.buffers(), network.buffers()):
            average.copy_(buffer)
        self.updates += 1

    def verify_start(self, network: nn.Module) -> None:
        """Proves and logs that average and weights are the same on all ranks; else RuntimeError."""
        difference = distributed.all_reduce_max(largest_difference(self.network, network))
        norm = parameter_norm(network)
        spread = distributed.all_reduce_max(norm.clone()) - distributed.all_reduce_min(norm.clone())
        if difference.item() != 0 or spread.item() != 0:
            raise RuntimeError(
                f"EMA is not equal to the weights at the start: largest difference {difference.item():g}, "
                f"difference of the parameter norm between ranks {spread.item():g}"
            )
        logger.info(
            "EMA initialised and verified equal to the weights on %d rank(s): %d parameters, "
            "parameter norm %.6g, EMA norm %.6g",
            distributed.world_size(),
            sum(p.numel() for p in network.parameters()),
            norm.item(),
            parameter_norm(self.network).item(),
        )

    def state_dict(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def load_state_dict(self, tensors: dict[str, Tensor], updates: int) -> None:
        self.network.load_state_dict(tensors)
        self.updates = updates


def parameter_norm(network: nn.Module) -> Tensor:
    """L2 norm of all parameters, a float64 scalar."""
    squares = [p.detach().double().square().sum() for p in network.parameters()]
    return torch.stack(squares).sum().sqrt()


def largest_difference(left: nn.Module, right: nn.Module) -> Tensor:
    """max |left - right| over all parameters and buffers, a float64 scalar."""
    pairs = zip(_tensors(left), _tensors(right), strict=True)
    return torch.stack([(a.double() - b.double()).abs().max() for a, b in pairs if a.numel()]).max()


def _tensors(network: nn.Module) -> list[Any]:
    return [p.detach() for p in network.parameters()] + list(network.buffers())
