"""Peak signal to noise ratio, per frame: PSNR = -10 log10(mean squared error of frames in [0, 1])."""

import torch
from torch import Tensor

from vidpred.metrics.checks import check_pair

PSNR_CAP = 100.0
"""dB given to an exact copy, whose PSNR is infinite, and the largest value ever returned."""


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """uint8 frames (B, T, C, H, W) -> dB (B, T) float64, each frame by itself.

    Reduce as the mean over frames, then over clips: pooling the squared errors of frames first gives other
    numbers (6 dB lower where frames differ much).
    """
    check_pair(prediction, truth)
    # Integer sums are exact, so the value does not depend on the batch or on the order of the sum.
    squared = (prediction.int() - truth.int()).square().sum(dim=(2, 3, 4), dtype=torch.int64)
    mean_squared = squared.double() / (truth[0, 0].numel() * 255.0**2)
    return (-10 * torch.log10(mean_squared)).clamp_max(PSNR_CAP)
