"""Structural similarity (Wang et al. 2004), per frame.

Implementations differ in the window, the border and the covariance (0.65 to 0.69 for one pair of images), so
the one in use is named in `SSIM_PROTOCOL` and pinned in the tests against torchmetrics and scikit-image. The
former's square window takes ten times as long, for all rows a third of a small model's sampling.
"""

import functools

import torch
from torch import Tensor

from vidpred.errors import UserError
from vidpred.metrics.checks import check_pair
from vidpred.tensor_ops import fold_frames, unfold_frames

SSIM_PROTOCOL = (
    "vidpred, equal to torchmetrics structural_similarity_index_measure: 11x11 Gaussian window of sigma 1.5, "
    "k1 0.01, k2 0.03, reflected border, mean over channels and all pixels, data range 1"
)
SSIM_WINDOW = 11
_SIGMA, _C1, _C2 = 1.5, 0.01**2, 0.03**2
_BORDER = SSIM_WINDOW // 2
_FRAMES_AT_ONCE = 8
_BLOCK = 64


def ssim(prediction: Tensor, truth: Tensor) -> Tensor:
    """uint8 frames (B, T, C, H, W), at least 11x11 -> SSIM (B, T) float64, each frame by itself.

    On a CPU filtered in float32 (float64 takes three times as long): correct to about 1e-5.
    """
    check_pair(prediction, truth)
    height, width = truth.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise UserError(
            f"SSIM: frames of {height}x{width} are smaller than its {SSIM_WINDOW}x{SSIM_WINDOW} window; "
            "evaluate larger frames (data.height, data.width)"
        )
    pairs = zip(fold_frames(prediction).split(_FRAMES_AT_ONCE), fold_frames(truth).split(_FRAMES_AT_ONCE))
    values = [_similarity(left, right) for left, right in pairs]
    return unfold_frames(torch.cat(values).double(), truth.shape[0])


def _similarity(x: Tensor, y: Tensor) -> Tensor:
    """uint8 (N, C, H, W) twice -> (N,); equation 13 of the paper with Gaussian weights."""
    # On a GPU float32 products may be rounded to TF32, and variances are small differences of them.
    precision = torch.float64 if x.is_cuda else torch.float32
    x, y = x.to(precision) / 255, y.to(precision) / 255
    mean_x, mean_y, mean_squares, mean_product = _blur(torch.stack([x, y, x * x + y * y, x * y]))
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    luminance = (2 * product + _C1) / (squares + _C1)
    structure = (2 * (mean_product - product) + _C2) / (mean_squares - squares + _C2)
    return (luminance * structure).flatten(1).mean(dim=1)


def _blur(maps: Tensor) -> Tensor:
    """The Gaussian mean around each pixel of (..., H, W), by matrix products of blocks: faster than
    convolutions of one channel."""
    height, width = maps.shape[-2:]
    flat = maps.reshape(-1, width)
    rows = [flat[:, low:high] @ window.to(maps) for low, high, window in _windows(width)]
    across = torch.cat(rows, dim=1).view(-1, height, width)
    columns = [window.to(maps).mT @ across[:, low:high] for low, high, window in _windows(height)]
    return torch.cat(columns, dim=1).view(maps.shape)


@functools.lru_cache(maxsize=16)
def _windows(length: int) -> list[tuple[int, int, Tensor]]:
    """(low, high, (high - low, block) float64) of each block of an axis: column j weighs the pixels from low on
    around pixel j of the block, at the axis's ends those that its reflection shows."""
    offsets = torch.arange(-_BORDER, _BORDER + 1)
    weights = torch.exp(-offsets.double().square() / (2 * _SIGMA**2))
    weights = (weights / weights.sum())[:, None]  # (11, 1)
    windows = []
    for block in torch.arange(length).split(_BLOCK):
        low, high = max(int(block[0]) - _BORDER, 0), min(int(block[-1]) + 1 + _BORDER, length)
        places = (block + offsets[:, None]).abs()  # (11, block)
        places = (length - 1) - (length - 1 - places).abs()
        window = torch.zeros(high - low, len(block), dtype=torch.float64)
        windows.append((low, high, window.scatter_add_(0, places - low, weights.expand(places.shape))))
    return windows
