"""Figures of merit of predicted frames: per clip and frame, never reduced in here; and the distance of two
collections of clips, from statistics that are gathered clip by clip."""

from vidpred.metrics.ensemble import ENSEMBLE_PROTOCOL, absolute_error, ensemble_figures, spread_over_skill
from vidpred.metrics.frechet import FeatureStatistics, frechet_distance
from vidpred.metrics.lpips import BACKBONES, Lpips, LpipsUnavailable
from vidpred.metrics.motion import motion_energy
from vidpred.metrics.psnr import PSNR_CAP, psnr
from vidpred.metrics.ssim import SSIM_PROTOCOL, ssim
from vidpred.metrics.video_features import VideoFeatures

__all__ = [
    "BACKBONES",
    "ENSEMBLE_PROTOCOL",
    "FeatureStatistics",
    "Lpips",
    "LpipsUnavailable",
    "PSNR_CAP",
    "SSIM_PROTOCOL",
    "VideoFeatures",
    "absolute_error",
    "ensemble_figures",
    "frechet_distance",
    "motion_energy",
    "psnr",
    "spread_over_skill",
    "ssim",
]
