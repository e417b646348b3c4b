"""Figures of merit of predicted frames: per clip and frame, never reduced in here."""

from vidpred.metrics.lpips import BACKBONES, Lpips, LpipsUnavailable
from vidpred.metrics.motion import motion_energy
from vidpred.metrics.psnr import PSNR_CAP, psnr
from vidpred.metrics.ssim import SSIM_PROTOCOL, ssim

__all__ = [
    "BACKBONES",
    "Lpips",
    "LpipsUnavailable",
    "PSNR_CAP",
    "SSIM_PROTOCOL",
    "motion_energy",
    "psnr",
    "ssim",
]
