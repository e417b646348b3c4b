"""What is known of one evaluated clip: plain data, so that it can travel between processes."""

from dataclasses import dataclass
from typing import Optional

import numpy as np

METRICS = ("psnr", "ssim", "lpips")
TO_RECONSTRUCTION = "psnr_to_reconstruction"  # of data that are one clip, generated from nothing
ENSEMBLE_METRICS = (*METRICS, "crps")
LOWER_IS_BETTER = ("lpips", "crps")


def row_titles(task: str, trajectories: int = 1) -> dict[str, str]:
    """Rows of a result, and what the table calls them; `best_of_n` only of several trajectories."""
    copy = "copy last" if task == "prediction" else "copy nearest"
    best = {"best_of_n": f"model, best of {trajectories}"} if trajectories > 1 else {}
    floors = {"floor": copy, "decoded_floor": f"{copy}, decoded", "context_mean": "mean of context"}
    floors["linear"] = "linear"
    return {"model": "model", **best, **floors, "ceiling": "ceiling"}


@dataclass
class ClipSample:
    """Frames for a picture, uint8 arrays: of T frames, `context` are the given ones (K, C, H, W), in their
    order, `truth` and `prediction` the others (T - K, C, H, W). `given` (T,) bool says which; None: the first
    ones.
    """

    index: int
    name: str
    context: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    given: Optional[np.ndarray] = None


@dataclass
class ClipScores:
    """`scores[row][metric]` is (H,) float64: one value per predicted frame, in their order; H of every clip.

    Rows that mean nothing for the task are missing (a copy, where nothing is given). `context_frames` and
    `predicted_frames` count the given and the unknown frames, wherever they are. `motion` is the motion
    energy, in [0, 1], of "model", "ceiling" and "truth". `content` is the SHA-256 of all its frames.

    Of several trajectories "best_of_n" is a row: trajectory number `best_trajectory` for all metrics; "crps"
    is a metric, of all of them in the row "model", the absolute error in [0, 1] in the others; `spread` has
    "diversity", "variance" and "squared_error" (of their mean), (H,) each, see `metrics.ensemble_figures`.
    `features[view][row]` are for the FVD, (D,) float32; None again as soon as its statistics have them.
    """

    index: int
    name: str
    context_frames: int
    predicted_frames: int
    frame_size: tuple[int, int]  # height, width
    scores: dict[str, dict[str, np.ndarray]]
    motion: dict[str, float]
    best_trajectory: Optional[int] = None
    spread: Optional[dict[str, np.ndarray]] = None
    features: Optional[dict[str, dict[str, np.ndarray]]] = None
    sample: Optional[ClipSample] = None
    content: str = ""
