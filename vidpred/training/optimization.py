"""One optimizer step: learning rate as a function of the step, clipping by norm, and an update that a
non-finite loss or gradient cannot reach.

Steps are counted from 0: step s uses the rate `learning_rate_at(s)`. `found_inf` is a float32 scalar on the
device of the parameters, 1 where the step is to be skipped and 0 elsewhere, as in `torch.amp.GradScaler`.
"""

import math
from dataclasses import dataclass
from typing import Any, Iterable

import torch
from torch import Tensor, nn

from vidpred.training.settings import TrainingConfig


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up, then constant, or cosine annealing from `peak` to `floor * peak` (Loshchilov and
    Hutter 2017, equation 5, one cycle). `schedule(step)` is the rate of step `step`, counted from 0."""

    peak: float
    schedule: str = "constant"
    warmup_steps: int = 0
    num_steps: int = 1
    floor: float = 0.0

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.peak
        annealing_steps = max(self.num_steps - 1 - self.warmup_steps, 1)
        progress = min((step - self.warmup_steps) / annealing_steps, 1.0)
        return self.peak * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def learning_rate_of(config: TrainingConfig) -> LearningRate:
    return LearningRate(
        config.learning_rate, config.lr_schedule, config.warmup_steps, config.num_steps, config.lr_floor
    )


class Optimization:
    """AdamW with a learning rate per step, clipping by norm, and skipping by `found_inf`.

    The fused AdamW (CPU and CUDA) reads `found_inf` inside its kernel, so that a skipped step leaves
    parameters, moments and step counts exactly as they were, without the host knowing.
    """

    @classmethod
    def of(cls, network: nn.Module, config: TrainingConfig) -> "Optimization":
        """Of the weights of `network`, as `config` has it."""
        return cls(
            network,
            learning_rate_of(config),
            weight_decay=config.weight_decay,
            betas=(config.beta1, config.beta2),
            max_grad_norm=config.max_grad_norm,
        )

    def __init__(
        self,
        network: nn.Module,
        learning_rate: LearningRate,
        *,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        max_grad_norm: float = 1.0,
    ):
        self.learning_rate = learning_rate
        self._max_grad_norm = max_grad_norm
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._adamw = torch.optim.AdamW(
            _decay_groups(self._parameters, weight_decay), lr=learning_rate(0), betas=betas, fused=True
        )
        self._adamw.grad_scale = None

    def gradient_norm(self) -> Tensor:
        """L2 norm of all gradients, before clipping: a scalar on the device. A missing gradient raises."""
        missing = sum(p.grad is None for p in self._parameters)
        if missing:
            raise RuntimeError(f"{missing} of {len(self._parameters)} parameters received no gradient")
        return torch.nn.utils.get_total_norm([p.grad for p in self._parameters])

    def update(self, step: int, grad_norm: Tensor, found_inf: Tensor) -> float:
        """Clips, applies the update unless `found_inf` is 1, clears the gradients; returns the rate used."""
        rate = self.learning_rate(step)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        if self._max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._max_grad_norm, grad_norm)
        self._adamw.found_inf = found_inf
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        return rate

    def state_dict(self) -> dict[str, Any]:
        return self._adamw.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores moments and counts; raises ValueError when the parameters are not the saved ones."""
        self._adamw.load_state_dict(state)
        # The fused kernel walks raw memory: moments must have the memory layout of their parameter.
        for parameter, entries in self._adamw.state.items():
            for name, value in entries.items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    entries[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def _decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Kernels and matrices decay; biases and normalisation scales (one axis or none) do not."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
