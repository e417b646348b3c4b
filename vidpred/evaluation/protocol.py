"""The protocol: everything that two figures must have in common to be compared, written beside them.

It says what was asked (clips, given frames, metrics) and how predictions were drawn; not who answered:
weights, device, versions and commit are in `provenance`.
"""

import dataclasses
import hashlib
import json
from typing import Any, Iterator, Mapping, NamedTuple, Optional, Sequence

import numpy as np
import torch

from vidpred.conditions import ConditionBatch
from vidpred.data.clips import ClipDataset
from vidpred.data.config import ClipConfig
from vidpred.evaluation.judge import Judge
from vidpred.evaluation.records import TO_RECONSTRUCTION, ClipScores
from vidpred.evaluation.scoring import IN_RANGE, Trial
from vidpred.metrics import PSNR_CAP

DEFINITIONS = {
    "scored": "predicted frames only, never decoded from a video file",
    "colours": "RGB, uint8 levels 0 to 255",
    "range": [0, 1],
    "rounding": "uint8 before every metric, predictions clamped to the range",
    "bad_clips": (
        "a clip that cannot be read, or whose prediction or reconstruction is not finite or leaves "
        f"[{IN_RANGE[0]:g}, {IN_RANGE[1]:g}] before rounding, ends the evaluation, or is left out and named"
    ),
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
    "checkpoint_selection": (
        "training reads the training and the validation split alone: a run's best checkpoint is that of the "
        "lowest validation loss, and no test clip ever chooses one"
    ),
}
RECONSTRUCTED = (
    "PSNR of the sample against the one clip of the data as the autoencoder shows it; psnr is against the clip itself"
)
ABSENT = "absent"


def protocol_of(trial: Trial, dataset: ClipDataset, judge: Judge) -> dict[str, Any]:
    """What is known before any clip is read: plain data, independent of processes and batch size.

    A model that takes conditions predicts each clip under its own, which are part of the clip's content then.
    """
    conditioner = trial.predictor.conditioner
    sampling = dataclasses.asdict(trial.predictor.sampling)
    del sampling["num_inference_steps_start"]  # of pictures during training; evaluations never use it
    if trial.num_inference_steps is not None:
        sampling["num_inference_steps"] = trial.num_inference_steps
    return {
        "task": trial.task,
        "dataset": dataset.name,
        "split": trial.split,
        "items_in_split": len(dataset),
        **cutting(dataset),
        "ema": trial.ema,
        "seed": trial.seed,
        "trajectories_per_clip": trial.trajectories,
        "sampling": sampling,
        "precision": precision(trial.predictor.device),
        **({"conditions": list(conditioner.config.kinds)} if conditioner is not None else {}),
        **judge.protocol(trial.trajectories),
        **DEFINITIONS,
        **({TO_RECONSTRUCTION: RECONSTRUCTED} if trial.one_clip and trial.task == "unconditional" else {}),
    }


def clips_of(records: Sequence[ClipScores]) -> dict[str, Any]:
    """The part of the protocol that the clips themselves tell."""
    first = records[0]
    height, width = first.frame_size
    contents = "".join(f"{record.index} {record.content}\n" for record in records)
    return {
        "clips": len(records),
        "clips_sha256": hashlib.sha256(contents.encode()).hexdigest(),
        "context_frames": first.context_frames,
        "predicted_frames": first.predicted_frames,
        "height": height,
        "width": width,
    }


def content_sha256(frames: np.ndarray, conditions: Optional[ConditionBatch] = None) -> str:
    """Of the frames of one clip, uint8 (T, C, H, W), in this order whatever their strides are, and of the conditions
    that it is predicted under, one row; None: there are none."""
    digest = hashlib.sha256(str(frames.shape).encode())
    digest.update(np.ascontiguousarray(frames))
    if conditions is not None:
        for kind, words in (("class", conditions.class_names), ("text", conditions.text)):
            digest.update(json.dumps([kind, words]).encode())
        if conditions.actions is not None:
            actions = conditions.actions.cpu().numpy().astype("<f4")
            digest.update(str(actions.shape).encode() + actions.tobytes())
    return digest.hexdigest()


def cutting(dataset: ClipDataset) -> dict[str, Any]:
    """How clips were cut out of their sources; None where a data set of one's own does not say."""
    config = getattr(dataset, "config", None)
    if not isinstance(config, ClipConfig):
        return dict.fromkeys(("fps", "frame_stride", "crop", "resize"))
    return {
        "fps": config.fps,  # None: every frame_stride-th frame of the source
        "frame_stride": config.frame_stride,
        "crop": "none" if config.crop == "none" else "center",  # random is of training alone
        "resize": "bilinear with antialiasing, on uint8",
    }


def precision(device: torch.device) -> str:
    """Of matrix products: predictions are drawn without autocast."""
    tf32 = device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if tf32 else "float32"


# Comparing two of them -------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """A dotted key that two protocols do not agree on; `ABSENT` is the value where there is no such key."""

    key: str
    left: Any
    right: Any


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Difference]:
    """Of two (nested) dictionaries of plain data, in the order of their keys."""
    mine, others = (dict(_flat(side)) for side in (left, right))
    keys = dict.fromkeys([*mine, *others])
    found = (Difference(key, mine.get(key, ABSENT), others.get(key, ABSENT)) for key in keys)
    return [each for each in found if _text(each.left) != _text(each.right)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    """As a file holds it: there a tuple is a list."""
    return json.dumps(value, sort_keys=True)


def shown(value: Any, width: int = 60) -> str:
    """A value of a `Difference` for a line of text."""
    text = value if isinstance(value, str) else _text(value)
    return text if len(text) <= width else f"{text[: width - 3]}..."
