"""What is known of one evaluated clip: plain data, so that it can travel between processes."""

from dataclasses import dataclass
from typing import Optional

import numpy as np

ROWS = {
    "model": "model",
    "floor": "copy last",
    "decoded_floor": "copy last, decoded",
    "linear": "linear",
    "ceiling": "ceiling",
}
"""Rows of a result, and what the table calls them."""

METRICS = ("psnr", "ssim", "lpips")


@dataclass
class ClipSample:
    """Frames for a picture, uint8 (T, C, H, W) arrays: `truth` and `prediction` follow `context`."""

    index: int
    name: str
    context: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


@dataclass
class ClipScores:
    """`scores[row][metric]` is (H,) float64, one value per predicted frame.

    `motion` is the motion energy, in [0, 1], of "model", "ceiling" and "truth".
    """

    index: int
    name: str
    context_frames: int
    frame_size: tuple[int, int]  # height, width
    scores: dict[str, dict[str, np.ndarray]]
    motion: dict[str, float]
    sample: Optional[ClipSample] = None
