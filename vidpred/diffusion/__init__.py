"""Diffusion: levels, schedules, objectives, weights, clip bounds, samplers, guidance. It knows no network."""

from vidpred.diffusion.clipping import ClipBound, ClipBoundConfig, build_clip
from vidpred.diffusion.config import DiffusionConfig
from vidpred.diffusion.estimates import Callback, Denoise, StepReport
from vidpred.diffusion.extra_losses import cleaner_noise, consistency_loss, diversity_loss
from vidpred.diffusion.guidance import GuidanceConfig, guided
from vidpred.diffusion.level_distributions import LevelConfig, LevelDistribution, build_levels
from vidpred.diffusion.levels import NoiseLevel, add_more_noise, add_noise, implied_noise
from vidpred.diffusion.motion import MotionCompensation
from vidpred.diffusion.parameterizations import Parameterization, build_parameterization
from vidpred.diffusion.samplers import (
    sample_ddim,
    sample_ddpm,
    sample_dpmpp_2m,
    sample_euler,
    sample_heun,
)
from vidpred.diffusion.sampling import (
    SAMPLERS,
    Sampler,
    SamplingConfig,
    build_sampler,
    require_possible,
    require_sampling,
)
from vidpred.diffusion.scheduler_adaptor import sample_with_scheduler
from vidpred.diffusion.schedules import NoiseSchedule, ScheduleConfig
from vidpred.diffusion.weights import LossWeight, LossWeightConfig, build_weight, uniform_weight

__all__ = [
    "SAMPLERS",
    "Callback",
    "ClipBound",
    "ClipBoundConfig",
    "Denoise",
    "DiffusionConfig",
    "GuidanceConfig",
    "LevelConfig",
    "LevelDistribution",
    "LossWeight",
    "LossWeightConfig",
    "MotionCompensation",
    "NoiseLevel",
    "NoiseSchedule",
    "Parameterization",
    "Sampler",
    "SamplingConfig",
    "ScheduleConfig",
    "StepReport",
    "add_more_noise",
    "add_noise",
    "build_clip",
    "build_levels",
    "build_parameterization",
    "build_sampler",
    "build_weight",
    "cleaner_noise",
    "consistency_loss",
    "diversity_loss",
    "guided",
    "implied_noise",
    "require_possible",
    "require_sampling",
    "sample_ddim",
    "sample_ddpm",
    "sample_dpmpp_2m",
    "sample_euler",
    "sample_heun",
    "sample_with_scheduler",
    "uniform_weight",
]
