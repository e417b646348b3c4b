"""Samplers: functions over a grid of noise levels.

Notation: x = alpha x0 + sigma eps. A step goes from the level (alpha, sigma) of each frame to the next one,
(alpha', sigma'). In the coordinates y = x / alpha and r = sigma / alpha the probability-flow ODE of every
family of levels is dy/dr = (y - x0) / r = eps (Song et al. 2021, DDIM, eq. 14, arXiv:2010.02502). Sampling is
solving it from large r to r = 0. Written back in x:

    DDIM      x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z,    z ~ N(0, I)             (DDIM, eq. 12)
              s = eta sigma' sqrt(1 - q^2),    q = r' / r
    Euler     x' = alpha' x0 + sigma' eps, which is DDIM with eta = 0
    Heun      Euler + (sigma' - alpha' r) (eps' - eps) / 2,    eps' of Euler's x'
              (the trapezoidal rule; Karras et al. 2022, alg. 1, arXiv:2206.00364)
    DPM++ 2M  Euler + (alpha' - sigma' / r) h / (2 h_before) (x0 - x0_before),    h = log(r / r')
              (Lu et al. 2022, alg. 2, arXiv:2211.01095; before: of the frame's last step)

eta = 1 is the posterior q(x' | x, x0) of ancestral sampling (Ho et al. 2020, eq. 6 and 7). The error at the
end falls with the step's size for DDIM and Euler and with its square for Heun and DPM++ 2M. The second-order
terms need r and r' that are neither infinite nor 0, so the step from pure noise and the step to clean are
Euler's. Heun's term also magnifies an error of eps' by (r / r' - 1) / 2: a step from almost pure noise is
Euler's too (the cosine schedule begins at r = 20000, and its first Heun step would be noise).
"""

from dataclasses import dataclass
from typing import Callable, Optional

import torch
from torch import Tensor

from vidpred.diffusion.clipping import ClipBound
from vidpred.diffusion.estimates import Callback, Denoise, Estimate, Estimator
from vidpred.diffusion.levels import NoiseLevel
from vidpred.tensor_ops import append_dims

LARGEST_FALL = 32.0  # of r in a Heun step

Noise = Callable[[int], Tensor]
"""step -> standard normal tensor like x."""


@dataclass(frozen=True)
class Step:
    """One step of the grid: from `level` to `following`, (B, T) each; `moving`, where they differ."""

    number: int
    level: NoiseLevel
    following: NoiseLevel
    moving: Tensor


Advance = Callable[[Step, Tensor, Estimate], Tensor]
"""(step, x, the estimate at x) -> x at the following level; what it says of still frames is not used."""


def _walk(x: Tensor, levels: NoiseLevel, estimate: Estimator, advance: Advance) -> Tensor:
    """x (B, T, C, H, W) at levels[0] -> x at levels[S]. Frames that do not move pass bit for bit."""
    for number in range(len(levels) - 1):
        level, following = levels[number], levels[number + 1]
        step = Step(number, level, following, level.differs(following))
        proposal = advance(step, x, estimate(number, x, level, step.moving))
        x = torch.where(append_dims(step.moving, x.ndim), proposal, x)
    return x


@torch.no_grad()
def sample_ddim(
    denoise: Denoise,
    x: Tensor,
    levels: NoiseLevel,
    *,
    clip: Optional[ClipBound] = None,
    eta: float = 0.0,
    rederive_eps: bool = True,
    noise: Optional[Noise] = None,
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
        callback: called with a StepReport at every call of the network.
    Returns:
        x at levels[S]: the clipped x0 where that level is clean.
    """
    if eta > 0 and noise is None:
        raise ValueError("eta > 0 needs `noise`, a function step -> standard normal tensor like x")

    def advance(step: Step, x: Tensor, found: Estimate) -> Tensor:
        scales = _noise_scales(step.level, step.following, eta)
        kept, fresh = (append_dims(scale, x.ndim) for scale in scales)
        proposal = append_dims(step.following.alpha, x.ndim) * found.x0 + kept * found.eps
        return proposal + fresh * noise(step.number) if eta > 0 else proposal

    return _walk(x, levels, Estimator(denoise, clip, callback, rederive_eps), advance)


def sample_ddpm(
    denoise: Denoise,
    x: Tensor,
    levels: NoiseLevel,
    *,
    noise: Noise,
    clip: Optional[ClipBound] = None,
    callback: Optional[Callback] = None,
) -> Tensor:
    """Ancestral sampling: each step draws from the posterior q(x' | x, x0). Arguments as in `sample_ddim`.

    The posterior's mean is linear in x and the clipped x0, which is DDIM with eta = 1 and re-derived eps.
    """
    return sample_ddim(denoise, x, levels, clip=clip, eta=1.0, noise=noise, callback=callback)


def sample_euler(
    denoise: Denoise,
    x: Tensor,
    levels: NoiseLevel,
    *,
    clip: Optional[ClipBound] = None,
    callback: Optional[Callback] = None,
) -> Tensor:
    """Euler's method. It is DDIM with eta = 0 and re-derived eps, of first order. Arguments as there."""
    return sample_ddim(denoise, x, levels, clip=clip, callback=callback)


@torch.no_grad()
def sample_heun(
    denoise: Denoise,
    x: Tensor,
    levels: NoiseLevel,
    *,
    clip: Optional[ClipBound] = None,
    callback: Optional[Callback] = None,
) -> Tensor:
    """Heun's method, of second order: two calls of the network per step, one where the step is Euler's.

    Arguments as in `sample_ddim`.
    """
    estimate = Estimator(denoise, clip, callback)
    corrected = _between_the_ends(levels)  # (S, B, T)
    corrected &= levels[:-1].ratio <= LARGEST_FALL * levels[1:].ratio
    # Asked once, before the walk: a look at a tensor inside it would be a CPU-GPU sync point.
    calls_again = corrected.flatten(1).any(dim=1).tolist()

    def advance(step: Step, x: Tensor, found: Estimate) -> Tensor:
        proposal = _euler(step, found)
        if not calls_again[step.number]:
            return proposal
        ahead = torch.where(append_dims(step.moving, x.ndim), proposal, x)
        again = estimate(step.number, ahead, step.following, corrected[step.number])
        half = (step.following.sigma - step.following.alpha * step.level.ratio) / 2
        second = proposal + append_dims(half, x.ndim) * (again.eps - found.eps)
        return torch.where(append_dims(corrected[step.number], x.ndim), second, proposal)

    return _walk(x, levels, estimate, advance)


@torch.no_grad()
def sample_dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    levels: NoiseLevel,
    *,
    clip: Optional[ClipBound] = None,
    callback: Optional[Callback] = None,
) -> Tensor:
    """DPM-Solver++ 2M, of second order with one call per step. Arguments as in `sample_ddim`.

    Each frame remembers the estimate and the level of the last step that it moved in; before its first one it
    remembers pure noise, r = inf, for which the second-order term is 0.
    """
    corrected = _between_the_ends(levels)
    x0_before = torch.zeros_like(x)
    log_before = torch.full_like(levels.sigma[0], torch.inf)  # log r

    def advance(step: Step, x: Tensor, found: Estimate) -> Tensor:
        nonlocal x0_before, log_before
        log = step.level.ratio.log()
        slope = (log - step.following.ratio.log()) / (2 * (log_before - log))  # h / (2 h_before)
        gain = (step.following.alpha - step.following.sigma / step.level.ratio) * slope
        proposal = _euler(step, found)
        second = proposal + append_dims(gain, x.ndim) * (found.x0 - x0_before)
        proposal = torch.where(append_dims(corrected[step.number], x.ndim), second, proposal)
        x0_before = torch.where(append_dims(step.moving, x.ndim), found.x0, x0_before)
        log_before = torch.where(step.moving, log, log_before)
        return proposal

    return _walk(x, levels, Estimator(denoise, clip, callback), advance)


def _euler(step: Step, found: Estimate) -> Tensor:
    alpha, sigma = (append_dims(v, found.x0.ndim) for v in (step.following.alpha, step.following.sigma))
    return alpha * found.x0 + sigma * found.eps


def _between_the_ends(levels: NoiseLevel) -> Tensor:
    """(S, B, T) bool: moving frames whose step neither starts at pure noise nor ends clean."""
    level, following = levels[:-1], levels[1:]
    return level.differs(following) & (level.alpha > 0) & (following.sigma > 0)


def _noise_scales(level: NoiseLevel, following: NoiseLevel, eta: float) -> tuple[Tensor, Tensor]:
    """How much of the old eps is kept and how much is fresh, (B, T) each; kept^2 + fresh^2 = sigma'^2."""
    # q = r' / r. A frame that is clean already does not move: any q will do.
    below = following.alpha * level.sigma
    q = level.alpha * following.sigma / torch.where(below > 0, below, torch.ones_like(below))
    fresh_part = eta**2 * (1 - q**2).clamp(min=0)
    return following.sigma * (1 - fresh_part).sqrt(), following.sigma * fresh_part.sqrt()
