"""What an evaluation predicts of a batch of clips, for its figures and for its films alike."""

from typing import Optional

import torch
from torch import Tensor

from vidpred.conditioning import TaskName
from vidpred.data.clips import ClipBatch
from vidpred.prediction import Predictor
from vidpred.prediction.predictor import NEXT_TRAJECTORY
from vidpred.tensor_ops import append_dims, take_frames


def predict_unknown(
    predictor: Predictor,
    task: TaskName,
    batch: ClipBatch,
    latents: Tensor,
    trajectory: int,
    seed: int,
    num_inference_steps: Optional[int],
) -> Tensor:
    """The unknown frames, decoded and not yet rounded: float32 (B, H, C, h, w); under each clip's own condition.

    `latents` (B, T, C, h, w) of all frames. A clip's draw is its number in the split, so that its randomness does
    not depend on batch and process. A prediction longer than a window of training is made window after window.
    """
    # The truth is taken out of the model's input, so that no fault of a sampler can leak it into the figures.
    known = torch.where(append_dims(batch.given, latents.ndim), latents, 0)
    draws = batch.draws + trajectory * NEXT_TRAJECTORY
    settings = {"num_inference_steps": num_inference_steps, "purpose": "evaluation"}
    if batch.conditions is not None:
        settings["condition"] = predictor.conditions_of(batch)
    if task == "prediction" and latents.shape[1] > predictor.num_frames:
        context = known[:, : predictor.context_frames]
        length = latents.shape[1] - predictor.context_frames
        return predictor.decode(predictor.continue_latents(context, length, draws, seed, **settings))
    sampled = predictor.sample_latents(known, batch.given, batch.frame_times, draws, seed, **settings)
    return predictor.decode(take_frames(sampled, ~batch.given))
