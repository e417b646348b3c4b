"""The configuration section `sampling`: how predictions are drawn, and what cannot be combined.

A refused combination is one line that names the key, the reason and the cure. What depends on this section
alone is refused when it is built, what depends on the schedule too by `require_sampling`.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Callable, Literal, Optional

from torch import Tensor

from vidpred.diffusion.clipping import ClipBound, ClipBoundConfig
from vidpred.diffusion.config import DiffusionConfig
from vidpred.diffusion.estimates import Callback, Denoise
from vidpred.diffusion.guidance import GuidanceConfig
from vidpred.diffusion.levels import NoiseLevel
from vidpred.diffusion.parameterizations import build_parameterization
from vidpred.diffusion.samplers import (
    Noise,
    sample_ddim,
    sample_ddpm,
    sample_dpmpp_2m,
    sample_euler,
    sample_heun,
)
from vidpred.diffusion.scheduler_adaptor import (
    ADAPTED,
    require_adaptable,
    require_steps,
    sample_with_scheduler,
)
from vidpred.diffusion.schedules import SPACINGS, NoiseSchedule, require_spacing
from vidpred.diffusion.weights import build_weight
from vidpred.errors import require

SAMPLERS = ("ddim", "ddpm", "euler", "heun", "dpmpp_2m", *ADAPTED)


@dataclass
class SamplingConfig:
    """How predictions are drawn."""

    sampler: Literal["ddim", "ddpm", "euler", "heun", "dpmpp_2m", "pndm", "unipc", "dpmpp_sde"] = "ddim"
    """ddim: deterministic for eta 0, first order. ddpm: ancestral, fresh noise at each step. euler: ddim with
    eta 0. heun: second order, two network calls per step. dpmpp_2m: second order, one call (DPM-Solver++ 2M).
    Through diffusers, on variance-preserving schedules: pndm (PLMS), unipc, dpmpp_sde (DPM-Solver++ 2M with
    fresh noise)."""
    num_inference_steps: int = 20
    """Steps per prediction; heun takes two network calls for each, all others one."""
    num_inference_steps_start: Optional[int] = None
    """Where set, pictures during training use this many steps at first, growing to num_inference_steps at
    the end. Evaluations always use num_inference_steps, so that their figures compare."""
    eta: float = 0.0
    """ddim: fresh noise per step, 0 to 1."""
    rederive_eps: bool = True
    """ddim: take eps from the clipped x0; false keeps the network's own eps (diffusers' default)."""
    clip: ClipBoundConfig = field(default_factory=ClipBoundConfig)
    """Bound on the clean estimate."""
    spacing: Literal["trailing", "linspace", "karras"] = "trailing"
    """Which levels the steps visit. trailing and linspace: evenly spaced timesteps. karras: mostly little
    noise; not where the schedule reaches pure noise."""
    context_noise: float = 0.0
    """How noisy given frames are kept while unknown ones are drawn, as a fraction of the schedule: 0 is
    clean. For networks that were trained with conditioning.context_noise."""
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    """How strongly predictions follow the given frames."""

    def __post_init__(self) -> None:
        name, known = self.sampler, ", ".join(SAMPLERS)
        require(name in SAMPLERS, f"sampling.sampler: '{name}' is not known; choose one of {known}")
        steps, start = self.num_inference_steps, self.num_inference_steps_start
        require(steps >= 1, f"sampling.num_inference_steps: {steps} must be 1 or more")
        require(
            start is None or start >= 1, f"sampling.num_inference_steps_start: {start} must be 1 or more"
        )
        require(
            start is None or name != "pndm",
            f"sampling.num_inference_steps_start: {start} would grow through numbers of steps that pndm "
            "cannot take; leave it null, or use another sampler",
        )
        require(0 <= self.eta <= 1, f"sampling.eta: {self.eta} must be in [0, 1]")
        require(
            self.eta == 0 or name == "ddim",
            f"sampling.eta: {self.eta} is ddim's alone, and sampling.sampler is {name}; set it to 0",
        )
        require(
            self.rederive_eps or name == "ddim",
            f"sampling.rederive_eps: only ddim can keep the network's own eps, and sampling.sampler is {name}"
            "; leave it true",
        )
        require(
            self.spacing in SPACINGS,
            f"sampling.spacing: '{self.spacing}' is not known; choose one of {', '.join(SPACINGS)}",
        )
        require(
            self.spacing == "trailing" or name not in ADAPTED,
            f"sampling.spacing: {name} of diffusers takes trailing only, got {self.spacing}; "
            "use ddim, euler, heun or dpmpp_2m",
        )
        require(
            0 <= self.context_noise < 1,
            f"sampling.context_noise: {self.context_noise} must be 0 or more and below 1 (pure noise)",
        )

    def with_sampler(self, sampler: str) -> "SamplingConfig":
        """The same settings for another sampler, without those that are ddim's alone. Raises UserError."""
        own = {} if sampler == "ddim" else {"eta": 0.0, "rederive_eps": True}
        return dataclasses.replace(self, sampler=sampler, **own)

    def overridden(self, sampler: Optional[str], steps: Optional[int]) -> "SamplingConfig":
        """The same settings with another sampler and number of inference steps, where not None. Raises UserError."""
        changed = self if sampler is None else self.with_sampler(sampler)
        return changed if steps is None else dataclasses.replace(changed, num_inference_steps=steps)

    def num_steps_at(self, progress: float) -> int:
        """Inference steps when the fraction `progress` in [0, 1] of training is done."""
        start = self.num_inference_steps_start or self.num_inference_steps
        return round(start + (self.num_inference_steps - start) * min(max(progress, 0.0), 1.0))


Sampler = Callable[..., Tensor]
"""(denoise, x, levels, noise=None, callback=None) -> x0."""


def build_sampler(config: SamplingConfig, clip: Optional[ClipBound], schedule: NoiseSchedule) -> Sampler:
    """The configured sampler with its clip bound, as a function of (denoise, x, levels, noise, callback).

    `schedule` is that of the levels. UserError where it and the sampler cannot be combined.
    """
    require_sampling(config, schedule)
    name = config.sampler

    def sample(
        denoise: Denoise,
        x: Tensor,
        levels: NoiseLevel,
        noise: Optional[Noise] = None,
        callback: Optional[Callback] = None,
    ) -> Tensor:
        common = dict(clip=clip, callback=callback)
        if name == "ddim":
            own = dict(eta=config.eta, rederive_eps=config.rederive_eps, noise=noise)
            return sample_ddim(denoise, x, levels, **own, **common)
        if name == "ddpm":
            return sample_ddpm(denoise, x, levels, noise=noise, **common)
        if name in ADAPTED:
            return sample_with_scheduler(name, schedule, denoise, x, levels, noise=noise, **common)
        solver = {"euler": sample_euler, "heun": sample_heun, "dpmpp_2m": sample_dpmpp_2m}[name]
        return solver(denoise, x, levels, **common)

    return sample


def require_sampling(config: SamplingConfig, schedule: NoiseSchedule) -> None:
    """Raises UserError where a schedule cannot be sampled in this way."""
    require_spacing(schedule, config.spacing)
    if config.sampler in ADAPTED:
        require_adaptable(config.sampler, schedule)
        require_steps(config.sampler, config.num_inference_steps, schedule)


def require_possible(diffusion: DiffusionConfig, sampling: SamplingConfig) -> None:
    """Raises UserError at the first settings of the two sections that cannot be combined."""
    schedule = NoiseSchedule(diffusion.schedule)
    parameterization = build_parameterization(diffusion.parameterization, schedule, diffusion.sigma_data)
    build_weight(diffusion.weight, parameterization, schedule)
    require_sampling(sampling, schedule)
