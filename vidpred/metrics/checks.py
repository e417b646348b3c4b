"""What every metric asks of its two arguments."""

import torch
from torch import Tensor

from vidpred.tensor_ops import check_clip


def check_pair(prediction: Tensor, truth: Tensor) -> None:
    """Both uint8 (B, T, C, H, W) of one shape: rounding comes before every metric. ValueError otherwise."""
    for name, frames in (("prediction", prediction), ("truth", truth)):
        check_clip(name, frames)
        if frames.dtype != torch.uint8:
            raise ValueError(f"{name} must be uint8: round before measuring, got {frames.dtype}")
    if prediction.shape != truth.shape:
        shapes = f"prediction {tuple(prediction.shape)}, truth {tuple(truth.shape)}"
        raise ValueError(f"prediction and truth differ in shape: {shapes}")
