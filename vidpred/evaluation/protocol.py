"""The protocol: everything that a figure depends on, written beside it. Without it no two figures compare."""

import dataclasses
from typing import Any

import torch

from vidpred.data.clips import ClipDataset
from vidpred.evaluation.judge import Judge
from vidpred.evaluation.records import ClipScores
from vidpred.evaluation.scoring import Trial
from vidpred.metrics import PSNR_CAP

DEFINITIONS = {
    "scored": "predicted frames only, never decoded from a video file",
    "range": [0, 1],
    "rounding": "uint8 before every metric, predictions clamped to the range",
    "reduction": "mean over the frames of a clip, then over clips, float64 in clip order",
    "interval": "ci95 is the half width of the 95 % confidence interval of the mean over clips (Student t)",
    "psnr": f"per frame; {PSNR_CAP:g} dB for an exact copy",
    "floor": (
        "copy of the given frame nearest in time (in prediction the last), of two equally near the earlier"
    ),
    "decoded_floor": (
        "the same, encoded and decoded by the autoencoder: what a model that adds nothing to that frame "
        "predicts; a blur that raises the PSNR of its copy is not learning"
    ),
    "context_mean": "mean of all given frames, rounded",
    "linear": (
        "the blend in time of the given frames on both sides, clamped; beyond the last given frame (before "
        "the first alike) last + h (last - previous) at horizon h"
    ),
    "ceiling": "the truth encoded and decoded by the autoencoder",
    "motion_energy_ratio": (
        "mean |frame[t + 1] - frame[t]| over the steps from or to a predicted frame, of the predictions over "
        "the truths, each averaged over clips first; beside predictions, given frames are shown as the "
        "autoencoder reconstructs them"
    ),
    "clip_selection": (
        "evenly spaced items of the split, the middle window of each; where it has fewer items than clips "
        "are wanted, several windows of each, spread evenly over it; windows of an item have no frame in "
        "common; centre crop, no flip"
    ),
}


def protocol_of(
    trial: Trial,
    dataset: ClipDataset,
    records: list[ClipScores],
    judge: Judge,
    dropped: list[str],
) -> dict[str, Any]:
    """Plain data, independent of the number of processes and of the batch size.

    `dropped` names the clips that could not be read.
    """
    first, predictor = records[0], trial.predictor
    sampling = dataclasses.asdict(predictor.sampling)
    if trial.num_inference_steps is not None:
        sampling["num_inference_steps"] = trial.num_inference_steps
    height, width = first.frame_size
    return {
        "task": trial.task,
        "dataset": dataset.name,
        "split": trial.split,
        "clips": len(records),
        "clips_dropped": dropped,
        "items_in_split": len(dataset),
        "context_frames": first.context_frames,
        "predicted_frames": first.predicted_frames,
        "height": height,
        "width": width,
        "step": trial.step,
        "ema": trial.ema,
        "seed": trial.seed,
        "trajectories_per_clip": trial.trajectories,
        "sampling": sampling,
        "parameterization": getattr(getattr(predictor.denoiser, "parameterization", None), "name", None),
        "residual": getattr(predictor.denoiser, "residual", None),
        "precision": _precision(predictor.device),
        "autoencoder": getattr(predictor.autoencoder, "name", type(predictor.autoencoder).__name__),
        **judge.protocol(trial.trajectories),
        **DEFINITIONS,
    }


def _precision(device: torch.device) -> str:
    """Of matrix products: predictions are drawn without autocast."""
    tf32 = device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if tf32 else "float32"
