"""Rollouts: window after window beyond the truth, and what is gained or lost on the way."""

import math
from typing import Sequence

import torch
from torch import Tensor

from vidpred.data import ClipBatch
from vidpred.diagnosis.measurement import PURPOSE
from vidpred.prediction import NotFiniteError, Predictor

WINDOWS = 4
OUTSIDE = 0.1  # beyond [0, 1]
SURE = 3.0  # standard errors


def rollout_measures(predictor: Predictor, latents: Tensor, clips: ClipBatch, seed: int) -> dict[str, float]:
    """`rollout/*`, of the last window against the first one, beyond what true clips come to in as many windows.

    Of each channel the part that is sure counts, and the channel where it is largest. Nothing of models that want an
    action for each frame, of which there are none beyond the clips.
    """
    known, condition = predictor.context_frames, predictor.conditions_of(clips)
    if not bool(clips.given.any()) or (condition is not None and condition.actions is not None):
        return {}
    horizon = predictor.num_frames - known
    try:
        frames = predictor.continue_latents(
            latents[:, :known], WINDOWS * horizon, clips.draws, seed, condition=condition, purpose=PURPOSE
        )
    except NotFiniteError:
        return {"rollout/finite": 0.0}
    if not bool(frames.isfinite().all()):
        return {"rollout/finite": 0.0}
    first, last = _moments(frames[:, :horizon]), _moments(frames[:, -horizon:])
    given, true = _moments(latents[:, :known]), _moments(latents[:, known:])
    videos = count_of_videos(clips.names)
    shift, contrast = (
        sure_part(then - now, (WINDOWS - 1) * (after - before), videos)
        for now, then, before, after in zip(first, last, given, true)
    )
    outside = [_outside(predictor.decode(part)) for part in (frames[:, :horizon], frames[:, -horizon:])]
    return {
        "rollout/finite": 1.0,
        "rollout/shift": shift,  # of a channel's mean, in deviations of the data
        "rollout/contrast": math.exp(contrast),  # of a channel's deviation, as a factor above 1, whichever way
        "rollout/outside": outside[1] - outside[0],  # share of the decoded values
    }


def sure_part(changes: Tensor, expected: Tensor, videos: int) -> float:
    """The largest |mean| over clips of a column of (B, C) that is left after SURE standard errors, at least 0.

    expected: the same of true clips, which is subtracted where it is sure. videos: that the clips are of; those of one
    video are not independent, so that the error is that of as many values.
    """

    def error(values: Tensor) -> Tensor:
        return values.std(0) / math.sqrt(videos) if len(values) > 1 else torch.full_like(values[0], math.inf)

    trend = expected.mean(0)
    trend = torch.where(trend.abs() > SURE * error(expected), trend, 0.0)
    return float(((changes.mean(0) - trend).abs() - SURE * error(changes)).clamp(min=0).max())


def count_of_videos(names: Sequence[str]) -> int:
    return len({name.split(" (window ")[0] for name in names})


def _moments(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log of the deviation of each clip's channels, (B, C) each."""
    values = latents.double().transpose(1, 2).flatten(2)
    return values.mean(2), values.std(2).clamp(min=1e-3).log()


def _outside(frames: Tensor) -> float:
    return float(((frames < -OUTSIDE) | (frames > 1 + OUTSIDE)).double().mean())
