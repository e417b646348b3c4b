"""Structural similarity (Wang et al. 2004), per frame, by torchmetrics.

Implementations differ in the window, the border and the covariance (0.65 to 0.69 for one pair of images), so
the one in use is named in `SSIM_PROTOCOL` and pinned in the tests against scikit-image.
"""

import torch
from torch import Tensor

from vidpred.errors import UserError
from vidpred.metrics.checks import check_pair
from vidpred.tensor_ops import fold_frames, to_float, unfold_frames

SSIM_PROTOCOL = (
    "torchmetrics structural_similarity_index_measure: 11x11 Gaussian window of sigma 1.5, k1 0.01, k2 0.03, "
    "reflected border, mean over channels and all pixels, data range 1"
)
SSIM_WINDOW = 11
_FRAMES_AT_ONCE = 32  # torchmetrics filters five images for each one


def ssim(prediction: Tensor, truth: Tensor) -> Tensor:
    """uint8 frames (B, T, C, H, W), at least 11x11 -> SSIM (B, T) float64, each frame by itself.

    Filtered in float32 (float64 takes 10 to 17 times as long on a CPU): correct to about 1e-5.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    check_pair(prediction, truth)
    height, width = truth.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise UserError(
            f"SSIM: frames of {height}x{width} are smaller than its {SSIM_WINDOW}x{SSIM_WINDOW} window; "
            "evaluate larger frames (data.height, data.width)"
        )
    pairs = zip(fold_frames(prediction).split(_FRAMES_AT_ONCE), fold_frames(truth).split(_FRAMES_AT_ONCE))
    values = [
        structural_similarity_index_measure(
            to_float(left), to_float(right), gaussian_kernel=True, sigma=1.5, kernel_size=SSIM_WINDOW,
            data_range=1.0, k1=0.01, k2=0.03, reduction="none",
        ).reshape(len(left))
        for left, right in pairs
    ]  # fmt: skip
    return unfold_frames(torch.cat(values).double(), truth.shape[0])
