"""One batch of clips: predict, and score the rows. B clips of K given and H predicted frames."""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from vidpred.data.clips import ClipBatch
from vidpred.distributed import main_first
from vidpred.errors import UserError
from vidpred.evaluation.baselines import copy_last, extrapolate
from vidpred.evaluation.config import EvaluationConfig
from vidpred.evaluation.records import ClipSample, ClipScores
from vidpred.metrics import Lpips, LpipsUnavailable, motion_energy, psnr, ssim
from vidpred.metrics.lpips import SMALLEST_FRAME
from vidpred.prediction import Predictor
from vidpred.tensor_ops import append_dims, to_uint8


@dataclass(frozen=True)
class Trial:
    """Whose predictions, and how they are drawn; `step` and `ema` are for the protocol only."""

    predictor: Predictor
    seed: int
    num_inference_steps: Optional[int] = None
    step: Optional[int] = None
    ema: Optional[bool] = None


class Judge:
    """The metrics of an evaluation; `lpips` is None where it is unavailable, and `lpips_reason` says why."""

    def __init__(self, config: EvaluationConfig, device: torch.device):
        self.lpips: Optional[Lpips] = None
        self.lpips_reason: Optional[str] = None
        if config.lpips_net == "none":
            self.lpips_reason = "switched off (evaluation.lpips_net: none)"
            return
        try:
            with main_first():  # rank 0 downloads, the others find the file
                self.lpips = Lpips(config.lpips_net, config.lpips_weights, device)
        except LpipsUnavailable as reason:
            self.lpips_reason = str(reason)

    def __call__(self, prediction: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """uint8 (B, H, C, h, w) twice -> metric -> (B, H) float64 on the CPU."""
        values = {"psnr": psnr(prediction, truth), "ssim": ssim(prediction, truth)}
        if self.lpips is not None and min(truth.shape[-2:]) < SMALLEST_FRAME:
            self.withdraw_lpips(f"frames are smaller than the {SMALLEST_FRAME} pixels that it needs")
        if self.lpips is not None:
            values["lpips"] = self.lpips(prediction, truth)
        return {name: value.cpu() for name, value in values.items()}

    def withdraw_lpips(self, reason: str) -> None:
        self.lpips, self.lpips_reason = None, reason


def context_length(given: Tensor) -> int:
    """K of a mask (B, T) whose rows all give the first K frames, 1 <= K < T; UserError for another mask."""
    context = int(given[0].sum())
    expected = torch.arange(given.shape[1], device=given.device) < context
    if not 0 < context < given.shape[1] or not bool((given == expected).all()):
        raise UserError(
            "evaluation: needs clips whose first frames are given and whose last are predicted, as many in "
            "every clip; use conditioning.scheme prediction with context_frames from 1 to num_frames - 1"
        )
    return context


def score_batch(
    trial: Trial, batch: ClipBatch, count: int, judge: Judge, keep_frames_of: set[int]
) -> list[ClipScores]:
    """Scores of the first `count` clips of the batch; the rest is padding for a fixed shape, dropped.

    A clip's draw is its number in the split, so that its randomness does not depend on batch and process.
    """
    batch = batch.to(trial.predictor.device)
    context = context_length(batch.given)
    truth = batch.frames[:, context:]
    model, reconstruction = _predict(trial, batch, context, count)
    rows = {
        "model": model,
        "floor": copy_last(batch.frames, context),
        "decoded_floor": reconstruction[:, :1].expand_as(truth),
        "linear": extrapolate(batch.frames, batch.frame_times, context),
        "ceiling": reconstruction[:, 1:],
    }
    scores = {row: judge(frames, truth) for row, frames in rows.items()}
    motion = {
        # From the last given frame as the autoencoder shows it: its own error is no motion, but it would make
        # even a frozen prediction look lively.
        "model": motion_energy(torch.cat([reconstruction[:, :1], model], dim=1)).tolist(),
        "ceiling": motion_energy(reconstruction).tolist(),
        "truth": motion_energy(batch.frames[:, context - 1 :]).tolist(),
    }
    return [
        ClipScores(
            index=index,
            name=batch.names[b],
            context_frames=context,
            frame_size=tuple(truth.shape[-2:]),
            scores={row: {name: v[b].numpy() for name, v in named.items()} for row, named in scores.items()},
            motion={name: values[b] for name, values in motion.items()},
            sample=_sample(batch, model, b, index, context) if index in keep_frames_of else None,
        )
        for b, index in enumerate(batch.draws[:count].tolist())
    ]


def _predict(trial: Trial, batch: ClipBatch, context: int, count: int) -> tuple[Tensor, Tensor]:
    """Prediction (B, H, C, h, w), and the autoencoder's view of the last given and all unknown frames
    (B, 1 + H, C, h, w); uint8. The first `count` clips must be finite.
    """
    predictor = trial.predictor
    latents = predictor.encode(batch.frames)
    # The truth is taken out of the model's input, so that no fault of a sampler can leak it into the figures.
    known = torch.where(append_dims(batch.given, latents.ndim), latents, 0)
    sampled = predictor.sample_latents(
        known,
        batch.given,
        batch.frame_times,
        batch.draws,
        trial.seed,
        num_inference_steps=trial.num_inference_steps,
        purpose="evaluation",
    )
    prediction = predictor.decode(sampled[:, context:])
    reconstruction = predictor.decode(latents[:, context - 1 :])
    _require_finite("reconstruction by the autoencoder", reconstruction[:count, 1:], batch)
    _require_finite("prediction", prediction[:count], batch)
    return to_uint8(prediction), to_uint8(reconstruction)


def _require_finite(what: str, frames: Tensor, batch: ClipBatch) -> None:
    # Cast to uint8, NaN would become a black pixel, and a broken model a number.
    bad = (~frames.isfinite()).flatten(2).sum(dim=2).cpu()  # (B, H)
    if bad.any():
        clip, horizon = (int(i) for i in bad.nonzero()[0])
        raise UserError(
            f"evaluation: the {what} of clip '{batch.names[clip]}' (index {int(batch.draws[clip])}) has "
            f"{int(bad[clip].sum())} non-finite values, the first at horizon {horizon + 1}; "
            "use an earlier checkpoint or full precision"
        )


def _sample(batch: ClipBatch, prediction: Tensor, b: int, index: int, context: int) -> ClipSample:
    return ClipSample(
        index=index,
        name=batch.names[b],
        context=batch.frames[b, :context].cpu().numpy(),
        truth=batch.frames[b, context:].cpu().numpy(),
        prediction=prediction[b].cpu().numpy(),
    )
