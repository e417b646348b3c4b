"""Drawing latents: from noise, down a grid of levels, around what is given. Used by the predictor.

Noise is a function of (seed, purpose, name, draw number of the row), never of the batch around it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Callable, Optional, Union

import torch
from torch import Tensor

from vidpred import random_streams
from vidpred.conditions import Condition
from vidpred.diffusion import (
    Callback,
    ClipBound,
    NoiseLevel,
    NoiseSchedule,
    SamplingConfig,
    add_noise,
    build_sampler,
    guided,
)
from vidpred.tensor_ops import append_dims

Denoiser = Callable[..., Tensor]
"""(x (B, T, C, h, w), level, given, frame_times, all (B, T)[, condition]) -> x0, as `vidpred.denoiser.Denoiser`."""


@dataclass(frozen=True)
class LatentSampler:
    """One way of drawing: a denoiser, how it is sampled, and whose noise.

    draws: (B,) int64 on the device, the rows' numbers. num_steps: sampling steps from pure noise to clean.
    """

    denoiser: Denoiser
    schedule: NoiseSchedule
    sampling: SamplingConfig
    clip: Optional[ClipBound]
    draws: Tensor
    seed: int
    purpose: str
    num_steps: int
    callback: Optional[Callback] = None

    def noise(self, name: str, like: Tensor) -> Tensor:
        """Standard normal, shaped like `like` (B, T, C, h, w)."""
        shape = tuple(like.shape[1:])
        return random_streams.normal(self.seed, f"{self.purpose}/{name}", self.draws, shape, like.device)

    def pure_noise(self, name: str, like: Tensor) -> Tensor:
        """What unknown frames begin as: noise with the deviation that noised latents have at the first level."""
        first = self._path[0]
        return torch.hypot(first.alpha, first.sigma) * self.noise(name, like)

    def sample(
        self,
        latents: Tensor,
        given: Tensor,
        frame_times: Tensor,
        name: str = "",
        context_noise: Union[float, Tensor] = 0.0,
        condition: Optional[Condition] = None,
    ) -> Tensor:
        """Unknown frames from pure noise to clean, all at the same pace.

        latents (B, T, C, h, w); given, frame_times (B, T); context_noise: a fraction of the schedule, broadcastable
        to (B, T); condition: of the rows, where the denoiser takes one. Returns (B, T, C, h, w), given frames as they
        came.
        """
        steps = torch.arange(len(self._path), device=latents.device)[:, None].expand(-1, latents.shape[1])
        start = torch.where(append_dims(given, latents.ndim), latents, self.pure_noise(f"{name}start", latents))
        return self.walk(start, given, frame_times, steps, name, context_noise, condition)

    def walk(
        self,
        x: Tensor,
        given: Tensor,
        frame_times: Tensor,
        steps: Tensor,
        name: str = "",
        context_noise: Union[float, Tensor] = 0.0,
        condition: Optional[Condition] = None,
    ) -> Tensor:
        """Each unknown frame t of x from step steps[0, t] of the way to clean, whose level it has, to steps[n, t].

        steps: (n+1, T) int64 in 0 .. num_steps. Other arguments as `sample`'s. Returns (B, T, C, h, w), given
        frames as they came.
        """
        fraction = torch.zeros(given.shape, dtype=torch.float64, device=x.device) + context_noise
        context = self.schedule.at(fraction, torch.float32)
        levels = self._path[steps][:, None].expand(len(steps), *given.shape)
        levels = NoiseLevel.where(given, context, levels)
        mask = append_dims(given, x.ndim)
        clean = isinstance(context_noise, float) and context_noise == 0  # a tensor is not looked at: it may be on a GPU
        known = x if clean else add_noise(x, self.noise(f"{name}context", x), context)
        end = build_sampler(self.sampling, self.clip, self.schedule)(
            self._denoise(given, frame_times, name, x, condition),
            torch.where(mask, known, x),
            levels,
            noise=lambda step: self.noise(f"{name}step {step}", x),
            callback=self.callback,
        )
        return torch.where(mask, x, end)

    def _denoise(
        self, given: Tensor, frame_times: Tensor, name: str, like: Tensor, condition: Optional[Condition]
    ) -> Callable:
        return guided(
            self.denoiser, given, frame_times, self.schedule,
            lambda: self.noise(f"{name}history", like), self.sampling.guidance, condition,
        )  # fmt: skip

    @cached_property
    def _path(self) -> NoiseLevel:
        """(num_steps + 1,) levels, from the noisiest to clean."""
        return self.schedule.path(self.num_steps, self.sampling.spacing, self.draws.device)
