"""One batch of clips: predict, and score the rows. B clips of T frames, K of them given and H predicted."""

from dataclasses import dataclass, field
from typing import Iterable, Optional

import torch
from torch import Tensor

from vidpred.conditioning import TaskName, evaluation_roles
from vidpred.data.clips import ClipBatch
from vidpred.distributed import main_first
from vidpred.errors import UserError
from vidpred.evaluation.baselines import copy_nearest, linear
from vidpred.evaluation.config import EvaluationConfig
from vidpred.evaluation.records import LOWER_IS_BETTER, ClipSample, ClipScores
from vidpred.frame_roles import GIVEN
from vidpred.metrics import Lpips, LpipsUnavailable, motion_energy, psnr, ssim
from vidpred.metrics.lpips import SMALLEST_FRAME
from vidpred.prediction import Predictor
from vidpred.prediction.predictor import NEXT_TRAJECTORY
from vidpred.random_streams import host_generator
from vidpred.tensor_ops import append_dims, take_frames, to_uint8


IN_RANGE = (-2.0, 3.0)
"""Decoded frames are nominally in [0, 1], and a little beyond them is rounding's business. As far away as
twice that range nothing is a picture any more."""


@dataclass(frozen=True)
class Trial:
    """Whose predictions of what, and how they are drawn; `split`, `step`, `ema` are for the protocol only.

    `faults` takes in which clips cannot be scored, index -> reason; their scores mean nothing.
    """

    predictor: Predictor
    task: TaskName
    seed: int
    trajectories: int = 1
    num_inference_steps: Optional[int] = None
    split: Optional[str] = None
    step: Optional[int] = None
    ema: Optional[bool] = None
    faults: dict[int, str] = field(default_factory=dict)


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
        self.fit(*truth.shape[-2:])
        if self.lpips is not None:
            values["lpips"] = self.lpips(prediction, truth)
        return {name: value.cpu() for name, value in values.items()}

    def fit(self, height: int, width: int) -> None:
        """Withdraws LPIPS where frames are too small for it."""
        if self.lpips is not None and min(height, width) < SMALLEST_FRAME:
            self.withdraw_lpips(f"frames are smaller than the {SMALLEST_FRAME} pixels that it needs")

    def withdraw_lpips(self, reason: str) -> None:
        self.lpips, self.lpips_reason = None, reason


NEEDS = {
    "prediction": (
        "clips whose first frames are given and whose last are predicted, as many in every clip; use "
        "conditioning.scheme prediction with context_frames from 1 to num_frames - 1"
    ),
    "interpolation": (
        "clips of at least 3 frames, of which the first and the last are given; raise data.num_frames"
    ),
    "infilling": "clips with given and unknown frames, as many in every clip; raise data.num_frames",
    "unconditional": "clips without given frames",
}


def require_task(task: TaskName, given: Tensor) -> None:
    """Raises UserError unless the mask (B, T) is the task's: as many given frames in every clip, not all."""
    counts, frames = given.sum(dim=1), given.shape[1]
    count = int(counts[0])
    fits = bool((counts == count).all()) and count < frames and (count > 0) == (task != "unconditional")
    if fits and task != "infilling":
        roles = evaluation_roles(task, count)(host_generator(0, "any", 0), frames)
        fits = bool((given == torch.from_numpy(roles == GIVEN).to(given.device)).all())
    if not fits:
        raise UserError(f"evaluation: {task} needs {NEEDS[task]}")


def score_batch(
    trial: Trial, batch: ClipBatch, count: int, judge: Judge, keep_frames_of: set[int]
) -> list[ClipScores]:
    """Scores of the first `count` clips of the batch; the rest is padding for a fixed shape, dropped.

    A clip's draw is its number in the split, so that its randomness does not depend on batch and process.
    What cannot be scored is in `trial.faults` afterwards.
    """
    batch = batch.to(trial.predictor.device)
    require_task(trial.task, batch.given)
    unknown = ~batch.given
    latents = trial.predictor.encode(batch.frames)
    model = _predict(trial, batch, latents, count)
    shown = _through_autoencoder(trial, batch, latents, count)
    scores = _scores(trial, batch, model, shown, judge)
    if trial.trajectories > 1:
        truth = _truth(batch)
        others = (_predict(trial, batch, latents, count, number) for number in range(1, trial.trajectories))
        scores["best_of_n"] = _best(scores["model"], (judge(frames, truth) for frames in others))
    # Given frames as the autoencoder shows them: its own error is no motion, but it would make even a frozen
    # prediction look lively.
    predicted = shown.clone()
    predicted[unknown] = model.flatten(0, 1)
    clips = {"model": predicted, "ceiling": shown, "truth": batch.frames}
    counted = unknown[:, 1:] | unknown[:, :-1]
    motion = {name: motion_energy(frames, counted).tolist() for name, frames in clips.items()}
    return [
        ClipScores(
            index=index,
            name=batch.names[b],
            context_frames=int(batch.given[b].sum()),
            predicted_frames=model.shape[1],
            frame_size=tuple(model.shape[-2:]),
            scores={row: {name: v[b].numpy() for name, v in named.items()} for row, named in scores.items()},
            motion={name: values[b] for name, values in motion.items()},
            sample=_sample(batch, model, b, index) if index in keep_frames_of else None,
        )
        for b, index in enumerate(batch.draws[:count].tolist())
    ]


def _scores(
    trial: Trial, batch: ClipBatch, model: Tensor, shown: Tensor, judge: Judge
) -> dict[str, dict[str, Tensor]]:
    """row -> metric -> (B, H), of the model's first trajectory (B, H, C, h, w) and of what needs no model.

    `shown` (B, T, C, h, w): the clips through the autoencoder. Where nothing is given there is nothing to
    copy, and no clip is the truth of what is generated: then the ceiling alone is left.
    """
    given, times = batch.given, batch.frame_times
    rows = {}
    if trial.task != "unconditional":
        rows = {
            "model": model,
            "floor": copy_nearest(batch.frames, given, times),
            "decoded_floor": copy_nearest(shown, given, times),
            "linear": linear(batch.frames, given, times),
        }
    rows["ceiling"] = take_frames(shown, ~given)
    truth = _truth(batch)
    return {row: judge(frames, truth) for row, frames in rows.items()}


def _truth(batch: ClipBatch) -> Tensor:
    """uint8 (B, H, C, h, w)."""
    return take_frames(batch.frames, ~batch.given).contiguous()


def _best(first: dict[str, Tensor], others: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of several metric -> (B, H), by metric and clip that with the best mean over frames."""
    best = dict(first)
    for scores in others:
        for metric, values in scores.items():
            gain = values.mean(dim=1) - best[metric].mean(dim=1)
            better = gain < 0 if metric in LOWER_IS_BETTER else gain > 0
            best[metric] = torch.where(better[:, None], values, best[metric])
    return best


def _predict(trial: Trial, batch: ClipBatch, latents: Tensor, count: int, trajectory: int = 0) -> Tensor:
    """uint8 (B, H, C, h, w), from the latents of the given frames; faults of the first `count` are noted."""
    predictor = trial.predictor
    # The truth is taken out of the model's input, so that no fault of a sampler can leak it into the figures.
    known = torch.where(append_dims(batch.given, latents.ndim), latents, 0)
    sampled = predictor.sample_latents(
        known,
        batch.given,
        batch.frame_times,
        batch.draws + trajectory * NEXT_TRAJECTORY,
        trial.seed,
        num_inference_steps=trial.num_inference_steps,
        purpose="evaluation",
    )
    prediction = predictor.decode(take_frames(sampled, ~batch.given))
    _note_faults(trial, "prediction", prediction[:count], batch)
    return to_uint8(prediction)


def _through_autoencoder(trial: Trial, batch: ClipBatch, latents: Tensor, count: int) -> Tensor:
    """uint8 (B, T, C, h, w): the unknown frames and the given ones beside them as the autoencoder shows them;
    what nobody looks at is black. Faults of the unknown ones of the first `count` clips are noted.
    """
    unknown = ~batch.given
    needed = unknown.clone()  # (B, T)
    needed[:, 1:] |= unknown[:, :-1]
    needed[:, :-1] |= unknown[:, 1:]
    # Where clips have masks of their own all are decoded: shapes must not depend on who shares a batch.
    columns = needed.any(dim=0) if trial.task != "infilling" else torch.ones_like(needed[0])
    decoded = trial.predictor.decode(latents[:, columns])
    reconstruction = take_frames(decoded, unknown[:, columns])
    _note_faults(trial, "reconstruction by the autoencoder", reconstruction[:count], batch)
    shown = torch.zeros(batch.frames.shape, dtype=torch.uint8, device=decoded.device)
    shown[:, columns] = to_uint8(decoded)
    return shown


def _note_faults(trial: Trial, what: str, frames: Tensor, batch: ClipBatch) -> None:
    """Looks at decoded frames (B, H, C, h, w) before they are rounded."""
    # Cast to uint8, NaN would become a black pixel, and a broken model a number.
    not_finite = (~frames.isfinite()).flatten(2).sum(dim=2).cpu()  # (B, H)
    low, high = (edge.cpu() for edge in torch.aminmax(frames.flatten(2), dim=2))  # (B, H) each
    outside = (low < IN_RANGE[0]) | (high > IN_RANGE[1])
    for clip, counts in enumerate(not_finite):
        if counts.any():
            horizon = int(counts.nonzero()[0]) + 1
            fault = f"has {int(counts.sum())} non-finite values, the first at horizon {horizon}"
        elif outside[clip].any():
            horizon = int(outside[clip].nonzero()[0]) + 1
            span = f"[{low[clip].min():.4g}, {high[clip].max():.4g}]"
            fault = f"spans {span}, beyond [0, 1] from horizon {horizon} on"
        else:
            continue
        trial.faults.setdefault(int(batch.draws[clip]), f"the {what} {fault}")


def _sample(batch: ClipBatch, prediction: Tensor, b: int, index: int) -> ClipSample:
    frames, given = batch.frames[b].cpu().numpy(), batch.given[b].cpu().numpy()
    return ClipSample(
        index=index,
        name=batch.names[b],
        context=frames[given],
        truth=frames[~given],
        prediction=prediction[b].cpu().numpy(),
        given=given,
    )
