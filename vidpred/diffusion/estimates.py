"""What a sampler knows at one point of its way: the clean estimate, guarded and reported.

Notation: x = alpha x0 + sigma eps. Every sampler asks the network for x0 alone, through one `Estimator`: x0
is clipped, the noise eps is what x holds besides it, and a callback sees both. So guard and report are the
same for all samplers, and at every call of the network.
"""

from dataclasses import dataclass
from typing import Callable, Optional

import torch
from torch import Tensor

from vidpred.diffusion.clipping import ClipBound
from vidpred.diffusion.levels import NoiseLevel, implied_noise
from vidpred.tensor_ops import append_dims

Denoise = Callable[[Tensor, NoiseLevel], Tensor]
"""(x (B, T, C, H, W), level (B, T)) -> the clean estimate x0, same shape."""


@dataclass(frozen=True)
class StepReport:
    """What one call of the network in a sampling step saw. Everything stays on the device: nothing here waits
    for the GPU.

    Attributes:
        step: 0 .. S-1; the second call of a Heun step has the same number as the first.
        level: (B, T), the level at which the network was asked.
        moving: (B, T) bool, frames that the call helps to change; the statistics are over these alone.
        x: the state that the network was asked about, (B, T, C, H, W).
        x0_raw, x0: the clean estimate before and after clipping.
        clip_rate: 0-d, fraction of the values that clipping changed.
        eps_norm: 0-d, root mean square of the eps of this estimate; its expectation is 1.
    """

    step: int
    level: NoiseLevel
    moving: Tensor
    x: Tensor
    x0_raw: Tensor
    x0: Tensor
    clip_rate: Tensor
    eps_norm: Tensor

    def value_range(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(min, max) of `values` (B, T, C, H, W) over the moving frames, as 0-d tensors."""
        moving = append_dims(self.moving, values.ndim)
        low = torch.where(moving, values, torch.inf).amin()
        return low, torch.where(moving, values, -torch.inf).amax()


Callback = Callable[[StepReport], None]


@dataclass(frozen=True)
class Estimate:
    """The guarded clean estimate and the noise that goes with it, (B, T, C, H, W) each."""

    x0: Tensor
    eps: Tensor


class Estimator:
    """The network behind its guard.

    Args:
        denoise: (x, level) -> x0.
        clip: bound on x0, or None.
        callback: called with a StepReport at every call.
        rederive_eps: take eps from the clipped x0; False keeps the network's own.
    """

    def __init__(
        self,
        denoise: Denoise,
        clip: Optional[ClipBound] = None,
        callback: Optional[Callback] = None,
        rederive_eps: bool = True,
    ):
        self._denoise = denoise
        self._clip = clip
        self._callback = callback
        self._rederive_eps = rederive_eps

    def __call__(self, step: int, x: Tensor, level: NoiseLevel, moving: Tensor) -> Estimate:
        """x (B, T, C, H, W) at `level` (B, T) -> x0 and eps in the type of x."""
        x0_raw = self._denoise(x, level).to(x.dtype)
        x0 = x0_raw if self._clip is None else self._clip(x0_raw)
        eps = implied_noise(x, x0 if self._rederive_eps else x0_raw, level)
        if self._callback is not None:
            self._callback(_report(step, level, moving, x, x0_raw, x0, eps))
        return Estimate(x0, eps)


def _report(
    step: int, level: NoiseLevel, moving: Tensor, x: Tensor, x0_raw: Tensor, x0: Tensor, eps: Tensor
) -> StepReport:
    pixels = tuple(range(moving.ndim, x.ndim))
    clipped = (x0 != x0_raw).to(x.dtype).mean(dim=pixels)  # (B, T); NaN counts as clipped
    squared = eps.square().mean(dim=pixels)
    frames = moving.sum().clamp(min=1)
    clip_rate, eps_square = (torch.where(moving, value, 0.0).sum() / frames for value in (clipped, squared))
    return StepReport(step, level, moving, x, x0_raw, x0, clip_rate, eps_square.sqrt())
