"""Diffusion: levels, schedules, parameterizations, clip bounds and samplers. It knows no network."""

from vidpred.diffusion.clipping import ClipBound, ClipBoundConfig, build_clip
from vidpred.diffusion.config import DiffusionConfig
from vidpred.diffusion.level_distributions import LevelConfig, LevelDistribution, build_levels
from vidpred.diffusion.levels import NoiseLevel, add_more_noise, add_noise, implied_noise
from vidpred.diffusion.parameterizations import Parameterization, build_parameterization
from vidpred.diffusion.samplers import (
    SamplingConfig,
    StepReport,
    build_sampler,
    sample_ddim,
    sample_ddpm,
)
from vidpred.diffusion.schedules import NoiseSchedule, ScheduleConfig
from vidpred.diffusion.weights import LossWeight, LossWeightConfig, build_weight

__all__ = [
    "ClipBound",
    "ClipBoundConfig",
    "DiffusionConfig",
    "LevelConfig",
    "LevelDistribution",
    "LossWeight",
    "LossWeightConfig",
    "NoiseLevel",
    "NoiseSchedule",
    "Parameterization",
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
    "implied_noise",
    "sample_ddim",
    "sample_ddpm",
]
