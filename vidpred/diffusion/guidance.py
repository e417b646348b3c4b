"""Guidance: the clean estimate, pushed away from what the network would say with less history, or no condition.

Notation: H is the history, the given frames of a clip; D(x | H) the denoiser's x0 with it; D(x | 0) without
it, every given frame hidden: pure noise, and not told to be given; D(x | H_f) with the history noised to the
fraction f of the schedule; D(x | S_i) with a subset S_i of the given frames, the others hidden; s the scale.
After Song et al. 2025, "History-guided video diffusion" (arXiv:2502.06764), whose family is
D(x | 0) + sum_i w_i (D(x | H_i) - D(x | 0)):

    vanilla      D(x | 0) + s (D(x | H) - D(x | 0))
    fractional   D(x | H) + (s - 1) (D(x | H_f) - D(x | 0))
    temporal     D(x | H) + (s - 1) mean_i (D(x | S_i) - D(x | 0))

To any of them is added, for a condition c (class, text, actions) and its scale s_c, classifier-free guidance (Ho and
Salimans 2022, arXiv:2207.12598) at the whole history, the terms above being those with the condition:

    + (s_c - 1) (D(x | H, c) - D(x | H, 0))

so that without history guidance it is D(x | H, 0) + s_c (D(x | H, c) - D(x | H, 0)).

The scores of that article are linear in x0 at a fixed x, so its sums hold for x0, with weights that add up to
1. A scale of 1 is no guidance and takes no second call. What a kind needs is asked of the network in one batched
call. low and high limit guidance to an interval of levels (Kynkaanniemi et al. 2024, arXiv:2404.07724). A
network knows hidden and noised history, and null conditions, only if it was trained with them
(conditioning.history_dropout, conditioning.context_noise, condition.dropout).
"""

import math
from dataclasses import dataclass
from typing import Callable, Literal, Optional

import torch
from torch import Tensor

from vidpred.conditions import Condition
from vidpred.diffusion.estimates import Denoise
from vidpred.diffusion.levels import NoiseLevel, add_more_noise
from vidpred.diffusion.schedules import NoiseSchedule
from vidpred.errors import require
from vidpred.tensor_ops import append_dims

Denoiser = Callable[..., Tensor]
"""(x (B, T, C, H, W), level, given, frame_times, all (B, T)) -> x0, as `vidpred.denoiser.Denoiser`; a condition comes
after them where there is one."""

KINDS = ("none", "vanilla", "fractional", "temporal")


@dataclass
class GuidanceConfig:
    """How strongly predictions follow the given frames and their condition."""

    kind: Literal["none", "vanilla", "fractional", "temporal"] = "none"
    """vanilla: away from a prediction without any given frame. fractional: the same for what is left of the
    given frames under noise, which is slow and large. temporal: for subsets of the given frames."""
    scale: float = 1.0
    """1: no guidance. Above 1: follow the given frames more than the network does by itself."""
    condition_scale: float = 1.0
    """The same for the condition (class, text, actions), whatever kind is; for models with condition.kinds."""
    rescale: float = 0.0
    """0 to 1: how much of the unguided estimate's deviation is restored (arXiv:2305.08891; 0.7 is usual)."""
    low: float = 0.0
    """Smallest noise code at which guidance acts (0 clean, 1 pure noise)."""
    high: float = 1.0
    """Largest noise code at which guidance acts."""
    history_noise: float = 0.5
    """fractional: how noisy the given frames are made, as a fraction of the schedule."""
    subsets: tuple[int, ...] = (1,)
    """temporal: one subset per number: the latest n given frames, or the earliest n where it is -n."""

    def __post_init__(self) -> None:
        at, kinds = "sampling.guidance", ", ".join(KINDS)
        require(self.kind in KINDS, f"{at}.kind: '{self.kind}' is not known; choose one of {kinds}")
        require(0 <= self.scale < math.inf, f"{at}.scale: {self.scale} must be 0 or more (1 does not guide)")
        require(
            self.kind != "none" or self.scale == 1,
            f"{at}.scale: {self.scale} has no effect with kind none; choose vanilla, fractional or temporal",
        )
        strength = self.condition_scale
        require(
            0 <= strength < math.inf, f"{at}.condition_scale: {strength} must be 0 or more (1 does not guide)"
        )
        require(0 <= self.rescale <= 1, f"{at}.rescale: {self.rescale} must be in [0, 1]")
        require(
            0 <= self.low < self.high <= 1,
            f"{at}.low, high: need 0 <= low < high <= 1, got {self.low} and {self.high}",
        )
        require(
            0 < self.history_noise < 1,
            f"{at}.history_noise: {self.history_noise} must be between 0 and 1 (1 would be kind vanilla)",
        )
        require(
            len(self.subsets) > 0 and 0 not in self.subsets,
            f"{at}.subsets: {list(self.subsets)} must be numbers of frames other than 0, such as [1]",
        )

    @property
    def hides_history(self) -> bool:
        """Whether the network is asked what it would say without any given frame."""
        return any(part.latest == 0 for part in _history_branches(self))

    @property
    def noises_history(self) -> bool:
        """Whether the network is asked what it would say of given frames under noise."""
        return any(part.noise > 0 for part in _history_branches(self))

    @property
    def limited(self) -> bool:
        """Whether guidance acts on some levels only."""
        return self.low > 0 or self.high < 1


@dataclass(frozen=True)
class Branch:
    """One history, with its condition or without, and the weight of the estimate that it gives.

    latest: the n latest given frames are kept, or the n earliest where it is -n; all where None. Others are
    hidden. noise: the fraction of the schedule to which the kept ones are noised; 0 leaves them as they are.
    conditioned: False takes the condition away.
    """

    weight: float
    latest: Optional[int] = None
    noise: float = 0.0
    conditioned: bool = True


def branches(config: GuidanceConfig, has_condition: bool = False) -> list[Branch]:
    """The histories of a configuration, those of weight 0 left out. The first is the whole history wherever
    the guided estimate is compared with its own: for a rescale, and outside of the interval.
    """
    partial = _history_branches(config)
    stronger = config.condition_scale - 1 if has_condition else 0.0
    if stronger != 0:
        partial.append(Branch(-stronger, conditioned=False))
    full = (config.scale if config.kind == "vanilla" else 1.0) + stronger
    compared = bool(partial) and (config.rescale > 0 or config.limited)
    whole = [Branch(full)] if full != 0 or compared else []
    return [*whole, *partial]


def _history_branches(config: GuidanceConfig) -> list[Branch]:
    """Those with less than the whole history."""
    more = config.scale - 1
    if config.kind == "none" or more == 0:
        return []
    hidden = Branch(-more, latest=0)
    if config.kind == "vanilla":
        return [hidden]
    if config.kind == "fractional":
        return [Branch(more, noise=config.history_noise), hidden]
    return [*(Branch(more / len(config.subsets), latest=n) for n in config.subsets), hidden]


def guided(
    denoiser: Denoiser,
    given: Tensor,
    frame_times: Tensor,
    schedule: NoiseSchedule,
    noise: Callable[[], Tensor],
    config: GuidanceConfig,
    condition: Optional[Condition] = None,
) -> Denoise:
    """The denoiser under guidance, as samplers want it.

    Args:
        given: (B, T) bool, the history. frame_times: (B, T).
        noise: gives a standard normal tensor like x, for history that is noised or hidden. Asked for once, so
            that D is one function of (x, level) throughout a sampling: solvers of second order rely on it.
        condition: of the B rows, for a denoiser that takes one.
    Returns:
        (x, level) -> x0, (B, T, C, H, W).
    """
    parts = branches(config, condition is not None)
    told = () if condition is None else (condition,)
    if parts == [Branch(1.0)]:
        return lambda x, level: denoiser(x, level, given, frame_times, *told)
    return _Guided(denoiser, given, frame_times, schedule, noise(), config, parts, told)


class _Guided:
    """N branches in one call of the denoiser: (N, B, ...) folded to (N*B, ...). `told`: the condition, if any."""

    def __init__(self, denoiser, given, frame_times, schedule, noise, config, parts: list[Branch], told: tuple):
        self._denoiser, self._given, self._times = denoiser, given, frame_times
        self._condition = told
        self._conditions = tuple(
            Condition.cat([each if part.conditioned else each.null() for part in parts]) for each in told
        )
        self._noise, self._config = noise, config
        self._weights = [part.weight for part in parts]
        kept = torch.stack([_kept(given, frame_times, part.latest) for part in parts])  # (N, B, T)
        fractions = torch.tensor([part.noise for part in parts], dtype=torch.float64, device=given.device)
        fractions = torch.where(kept, append_dims(fractions, 3), torch.ones_like(fractions[0]))
        self._told = kept
        self._history = schedule.at(fractions)  # (N, B, T), at unknown frames of no use

    def __call__(self, x: Tensor, level: NoiseLevel) -> Tensor:
        config = self._config
        inside = (level.code >= config.low) & (level.code <= config.high)  # (B, T)
        # A look at a tensor waits for the GPU, but where nothing is guided it saves the larger call.
        if config.limited and not bool((inside & ~self._given).any()):
            return self._denoiser(x, level, self._given, self._times, *self._condition)
        estimates = self._estimates(x, level)
        x0 = sum(weight * estimate for weight, estimate in zip(self._weights, estimates))
        if config.rescale > 0:
            x0 = rescale(x0, estimates[0], ~self._given, config.rescale)
        return torch.where(append_dims(inside, x.ndim), x0, estimates[0]) if config.limited else x0

    def _estimates(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """(N, B, T, C, H, W): the clean estimate of every branch."""
        history = self._history.to(level.alpha.dtype)
        # Never made cleaner than it is: history under context noise keeps that at least.
        noised = self._given & (history.ratio > level.ratio)  # (N, B, T)
        levels = NoiseLevel.where(noised, history, level)
        more = add_more_noise(x[None], level[None], history, self._noise[None])
        states = torch.where(append_dims(noised, more.ndim), more, x)  # (N, B, T, C, H, W)
        count = len(noised)
        times = self._times.expand(count, *self._times.shape)
        folded = (states.flatten(0, 1), _fold(levels), self._told.flatten(0, 1), times.flatten(0, 1))
        return self._denoiser(*folded, *self._conditions).unflatten(0, (count, len(x)))


def _fold(levels: NoiseLevel) -> NoiseLevel:
    """(N, B, T) -> (N*B, T)."""
    return NoiseLevel(*(values.flatten(0, 1) for values in (levels.alpha, levels.sigma, levels.code)))


def _kept(given: Tensor, frame_times: Tensor, latest: Optional[int]) -> Tensor:
    """(B, T) bool: the given frames that a branch keeps, see `Branch`."""
    if latest is None:
        return given
    times = frame_times if latest > 0 else -frame_times
    later = (times[:, None, :] > times[:, :, None]) & given[:, None, :]  # (B, T, T)
    return given & (later.sum(dim=2) < abs(latest))


def rescale(guided: Tensor, unguided: Tensor, unknown: Tensor, amount: float) -> Tensor:
    """Restores the deviation that guidance has enlarged (Lin et al. 2023, arXiv:2305.08891, eq. 15 and 16):

        x0 (amount std(unguided) / std(x0) + 1 - amount)

    The deviations are a clip's, over its unknown frames. guided, unguided: (B, T, C, H, W); unknown: (B, T).
    """
    before, after = (_deviation(x0, unknown) + 1e-12 for x0 in (unguided, guided))  # 0/0 is 1
    return guided * (amount * before / after + (1 - amount))


def _deviation(x0: Tensor, unknown: Tensor) -> Tensor:
    """(B, 1, 1, 1, 1): the standard deviation over the unknown frames of each clip."""
    mask = append_dims(unknown, x0.ndim).expand_as(x0)
    axes = tuple(range(1, x0.ndim))
    count = mask.sum(dim=axes, keepdim=True).clamp(min=1)
    mean = torch.where(mask, x0, 0).sum(dim=axes, keepdim=True) / count
    return (torch.where(mask, x0 - mean, 0).square().sum(dim=axes, keepdim=True) / count).sqrt()
