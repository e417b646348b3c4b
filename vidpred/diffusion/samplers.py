"""Samplers: functions over a grid of noise levels.

Notation: x = alpha x0 + sigma eps. A step goes from the level (alpha, sigma) of each frame to the next one,
(alpha', sigma'). The network is asked for x0 alone; x0 is clipped; the noise eps is what x holds besides it;
and the next x is put together from the two (Song et al. 2021, DDIM, eq. 12, arXiv:2010.02502):

    x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z,    z ~ N(0, I)

    s = eta sigma' sqrt(1 - r^2),    r = (alpha sigma') / (alpha' sigma)

eta = 0 is DDIM. eta = 1 is the posterior q(x' | x, x0) of ancestral sampling (Ho et al. 2020, eq. 6 and 7).
Written with r, the formula holds for all levels, also where alpha^2 + sigma^2 is not 1.
"""

from dataclasses import dataclass, field
from typing import Callable, Literal, Optional

import torch
from torch import Tensor

from vidpred.diffusion.clipping import ClipBound, ClipBoundConfig
from vidpred.diffusion.levels import NoiseLevel, implied_noise
from vidpred.errors import UserError
from vidpred.tensor_ops import append_dims

Denoise = Callable[[Tensor, NoiseLevel], Tensor]
"""(x (B, T, C, H, W), level (B, T)) -> the clean estimate x0, same shape."""


@dataclass(frozen=True)
class StepReport:
    """What one sampling step saw. Everything stays on the device: nothing here waits for the GPU.

    Attributes:
        step: 0 .. S-1.
        level: (B, T), the level that the step starts from.
        moving: (B, T) bool, frames that the step changes; the statistics are over these alone.
        x: the sampler's state before the step, (B, T, C, H, W).
        x0_raw, x0: the clean estimate before and after clipping.
        clip_rate: 0-d, fraction of the values that clipping changed.
        eps_norm: 0-d, root mean square of the eps of this step's update; its expectation is 1.
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


@torch.no_grad()
def sample_ddim(
    denoise: Denoise,
    x: Tensor,
    levels: NoiseLevel,
    *,
    clip: Optional[ClipBound] = None,
    eta: float = 0.0,
    rederive_eps: bool = True,
    noise: Optional[Callable[[int], Tensor]] = None,
    callback: Optional[Callback] = None,
) -> Tensor:
    """Walks x down the grid of levels.

    Args:
        denoise: (x, level) -> x0.
        x: (B, T, C, H, W), each frame at its level levels[0]; any floating dtype, which is kept.
        levels: (S+1, B, T), falling for each frame at its own pace. A frame whose level stays (a given one)
            passes through the step untouched, bit for bit.
        clip: bound on x0, or None.
        eta: fresh noise per step, 0 (deterministic) to 1 (ancestral).
        rederive_eps: take eps from the clipped x0, so that x' lies between x and the clipped x0; False keeps
            the network's own eps. These are diffusers' use_clipped_model_output=True and False.
        noise: step -> standard normal tensor like x; needed when eta > 0.
        callback: called with a StepReport at every step.
    Returns:
        x at levels[S]: the clipped x0 where that level is clean.
    """
    if eta > 0 and noise is None:
        raise ValueError("eta > 0 needs `noise`, a function step -> standard normal tensor like x")
    for step in range(len(levels) - 1):
        level, following = levels[step], levels[step + 1]
        moving = level.differs(following)  # (B, T)
        x0_raw = denoise(x, level).to(x.dtype)
        x0 = x0_raw if clip is None else clip(x0_raw)
        eps = implied_noise(x, x0 if rederive_eps else x0_raw, level)
        if callback is not None:
            callback(_report(step, level, moving, x, x0_raw, x0, eps))

        kept, fresh = (append_dims(scale, x.ndim) for scale in _noise_scales(level, following, eta))
        proposal = append_dims(following.alpha, x.ndim) * x0 + kept * eps
        if eta > 0:
            proposal = proposal + fresh * noise(step)
        x = torch.where(append_dims(moving, x.ndim), proposal, x)
    return x


def sample_ddpm(
    denoise: Denoise,
    x: Tensor,
    levels: NoiseLevel,
    *,
    noise: Callable[[int], Tensor],
    clip: Optional[ClipBound] = None,
    callback: Optional[Callback] = None,
) -> Tensor:
    """Ancestral sampling: each step draws from the posterior q(x' | x, x0). Arguments as in `sample_ddim`.

    The posterior's mean is linear in x and the clipped x0, which is DDIM with eta = 1 and re-derived eps.
    """
    return sample_ddim(denoise, x, levels, clip=clip, eta=1.0, noise=noise, callback=callback)


def _noise_scales(level: NoiseLevel, following: NoiseLevel, eta: float) -> tuple[Tensor, Tensor]:
    """How much of the old eps is kept and how much is fresh, (B, T) each; kept^2 + fresh^2 = sigma'^2."""
    # r = (alpha sigma') / (alpha' sigma). A frame that is clean already does not move: any r will do.
    below = following.alpha * level.sigma
    r = level.alpha * following.sigma / torch.where(below > 0, below, torch.ones_like(below))
    fresh_part = eta**2 * (1 - r**2).clamp(min=0)
    return following.sigma * (1 - fresh_part).sqrt(), following.sigma * fresh_part.sqrt()


def _report(
    step: int, level: NoiseLevel, moving: Tensor, x: Tensor, x0_raw: Tensor, x0: Tensor, eps: Tensor
) -> StepReport:
    pixels = tuple(range(moving.ndim, x.ndim))
    clipped = (x0 != x0_raw).to(x.dtype).mean(dim=pixels)  # (B, T); NaN counts as clipped
    squared = eps.square().mean(dim=pixels)
    frames = moving.sum().clamp(min=1)
    clip_rate, eps_square = (torch.where(moving, value, 0.0).sum() / frames for value in (clipped, squared))
    return StepReport(step, level, moving, x, x0_raw, x0, clip_rate, eps_square.sqrt())


@dataclass
class SamplingConfig:
    """How predictions are drawn."""

    sampler: Literal["ddim", "ddpm"] = "ddim"
    """ddim: deterministic for eta 0. ddpm: ancestral, fresh noise at each step."""
    num_inference_steps: int = 20
    """Network calls per prediction."""
    num_inference_steps_start: Optional[int] = None
    """Where set, pictures during training use this many steps at first, growing to num_inference_steps at
    the end. Evaluations always use num_inference_steps, so that their figures compare."""
    eta: float = 0.0
    """ddim: fresh noise per step, 0 to 1."""
    rederive_eps: bool = True
    """ddim: take eps from the clipped x0; false keeps the network's own eps (diffusers' default)."""
    clip: ClipBoundConfig = field(default_factory=ClipBoundConfig)
    """Bound on the clean estimate."""

    def __post_init__(self) -> None:
        if self.sampler not in ("ddim", "ddpm"):
            raise UserError(f"sampling.sampler: '{self.sampler}' is not known; choose ddim or ddpm")
        if self.num_inference_steps < 1:
            raise UserError(f"sampling.num_inference_steps: {self.num_inference_steps} must be 1 or more")
        start = self.num_inference_steps_start
        if start is not None and start < 1:
            raise UserError(f"sampling.num_inference_steps_start: {start} must be 1 or more")
        if not 0 <= self.eta <= 1:
            raise UserError(f"sampling.eta: {self.eta} must be in [0, 1]")

    def num_steps_at(self, progress: float) -> int:
        """Inference steps when the fraction `progress` in [0, 1] of training is done."""
        start = self.num_inference_steps_start or self.num_inference_steps
        return round(start + (self.num_inference_steps - start) * min(max(progress, 0.0), 1.0))


Sampler = Callable[..., Tensor]
"""(denoise, x, levels, noise=None, callback=None) -> x0."""


def build_sampler(config: SamplingConfig, clip: Optional[ClipBound]) -> Sampler:
    """The configured sampler with its clip bound, as a function of (denoise, x, levels, noise, callback)."""

    def ddim(
        denoise: Denoise,
        x: Tensor,
        levels: NoiseLevel,
        noise: Optional[Callable[[int], Tensor]] = None,
        callback: Optional[Callback] = None,
    ) -> Tensor:
        return sample_ddim(
            denoise,
            x,
            levels,
            clip=clip,
            eta=config.eta,
            rederive_eps=config.rederive_eps,
            noise=noise,
            callback=callback,
        )

    def ddpm(
        denoise: Denoise,
        x: Tensor,
        levels: NoiseLevel,
        noise: Callable[[int], Tensor],
        callback: Optional[Callback] = None,
    ) -> Tensor:
        return sample_ddpm(denoise, x, levels, noise=noise, clip=clip, callback=callback)

    return {"ddim": ddim, "ddpm": ddpm}[config.sampler]
