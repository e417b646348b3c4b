"""One batch of clips: predict, and score the rows. B clips of T frames, K of them given and H predicted."""

from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from vidpred.conditioning import TaskName, evaluation_roles
from vidpred.data.clips import ClipBatch
from vidpred.errors import UserError
from vidpred.evaluation.baselines import copy_nearest, linear, mean_of_given
from vidpred.evaluation.drawing import predict_unknown
from vidpred.evaluation.judge import Judge
from vidpred.evaluation.records import LOWER_IS_BETTER, TO_RECONSTRUCTION, ClipSample, ClipScores
from vidpred.evaluation.video_distance import clip_features, possible_views
from vidpred.frame_roles import GIVEN
from vidpred.metrics import absolute_error, ensemble_figures, motion_energy, psnr
from vidpred.prediction import Predictor
from vidpred.random_streams import host_generator
from vidpred.tensor_ops import take_frames, to_uint8

IN_RANGE = (-2.0, 3.0)
"""Decoded frames are nominally in [0, 1], and a little beyond them is rounding's business. As far away as
twice that range nothing is a picture any more."""


@dataclass(frozen=True)
class Trial:
    """Whose predictions of what, and how they are drawn; `split`, `step`, `ema` are for the protocol only.

    `one_clip`: the data are a single clip, which is the truth of whatever is drawn. `faults` takes in which clips
    cannot be scored, index -> reason; their scores mean nothing.
    """

    predictor: Predictor
    task: TaskName
    seed: int
    trajectories: int = 1
    num_inference_steps: Optional[int] = None
    split: Optional[str] = None
    step: Optional[int] = None
    ema: Optional[bool] = None
    one_clip: bool = False
    faults: dict[int, str] = field(default_factory=dict)


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
    if judge.video is not None:
        possible_views(int(batch.given[0].sum()), int(unknown[0].sum()))  # refused before the work
    latents = trial.predictor.encode(batch.frames)
    drawn = [_predict(trial, batch, latents, count, number) for number in range(trial.trajectories)]
    trajectories = torch.stack(drawn)  # (N, B, H, C, h, w) uint8: all that grows with N
    shown = _through_autoencoder(trial, batch, latents, count)
    rows = _rows(trial, batch, trajectories[0], shown)
    scores = _scores(trial, batch, rows, judge)
    best, spread = None, None
    if trial.trajectories > 1:
        best, spread = _add_ensemble(scores, rows, trajectories, _truth(batch), judge)
    features = None
    if judge.video is not None:
        features = clip_features(judge.video, batch.frames, unknown, rows, count)
    motion = _motion(batch, trajectories[0], shown)
    return [
        ClipScores(
            index=index,
            name=batch.names[b],
            context_frames=int(batch.given[b].sum()),
            predicted_frames=trajectories.shape[2],
            frame_size=tuple(trajectories.shape[-2:]),
            scores={row: _of_clip(named, b) for row, named in scores.items()},
            motion={name: float(values[b]) for name, values in motion.items()},
            best_trajectory=None if best is None else int(best[b]),
            spread=None if spread is None else _of_clip(spread, b),
            features=None if features is None else features[b],
            sample=_sample(batch, trajectories[0], b, index) if index in keep_frames_of else None,
        )
        for b, index in enumerate(batch.draws[:count].tolist())
    ]


def _of_clip(values: dict[str, Tensor], b: int) -> dict[str, np.ndarray]:
    """name -> (B, H) to name -> (H,)."""
    return {name: value[b].numpy() for name, value in values.items()}


def _rows(trial: Trial, batch: ClipBatch, model: Tensor, shown: Tensor) -> dict[str, Tensor]:
    """row -> uint8 (B, H, C, h, w), of the model's first trajectory and of what needs no model.

    `shown` (B, T, C, h, w): the clips through the autoencoder. Where nothing is given there is nothing to
    copy.
    """
    given, times = batch.given, batch.frame_times
    floors = {}
    if trial.task != "unconditional":
        floors = {
            "floor": copy_nearest(batch.frames, given, times),
            "decoded_floor": copy_nearest(shown, given, times),
            "context_mean": mean_of_given(batch.frames, given),
            "linear": linear(batch.frames, given, times),
        }
    return {"model": model, **floors, "ceiling": take_frames(shown, ~given)}


def _scores(
    trial: Trial, batch: ClipBatch, rows: dict[str, Tensor], judge: Judge
) -> dict[str, dict[str, Tensor]]:
    """row -> metric -> (B, H). Of several clips none is the truth of what is generated from nothing."""
    truth, generated = _truth(batch), trial.task == "unconditional"
    compared = [row for row in rows if row != "model" or not generated or trial.one_clip]
    scores = {row: judge(rows[row], truth) for row in compared}
    if generated and trial.one_clip:
        scores["model"][TO_RECONSTRUCTION] = psnr(rows["model"], rows["ceiling"].contiguous()).cpu()
    return scores


def _add_ensemble(
    scores: dict[str, dict[str, Tensor]],
    rows: dict[str, Tensor],
    trajectories: Tensor,
    truth: Tensor,
    judge: Judge,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Adds to the scores the row best_of_n and the metric crps.

    Returns the number of each clip's best trajectory (B,), and of all of them diversity, variance and
    squared_error, (B, H) each.
    """
    judged = [scores["model"], *(judge(frames, truth) for frames in trajectories[1:])]
    best = best_trajectories(torch.stack([values[judge.choice] for values in judged]), judge.choice)
    clips = torch.arange(len(best))
    scores["best_of_n"] = {
        metric: torch.stack([values[metric] for values in judged])[best, clips] for metric in scores["model"]
    }
    for row, frames in rows.items():
        scores[row]["crps"] = absolute_error(frames, truth).cpu()
    figures = {name: values.cpu() for name, values in ensemble_figures(trajectories, truth).items()}
    scores["model"]["crps"] = figures.pop("crps")
    return best, figures


def best_trajectories(values: Tensor, metric: str) -> Tensor:
    """(N, B, H) of one metric -> (B,): for each clip the trajectory with the best mean over frames, of equal
    ones the first."""
    means = values.mean(dim=2).numpy()
    return torch.from_numpy(means.argmin(axis=0) if metric in LOWER_IS_BETTER else means.argmax(axis=0))


def _motion(batch: ClipBatch, model: Tensor, shown: Tensor) -> dict[str, Tensor]:
    """Motion energies (B,).

    Given frames as the autoencoder shows them: its own error is no motion, but it would make even a frozen
    prediction look lively.
    """
    unknown = ~batch.given
    predicted = shown.clone()
    predicted[unknown] = model.flatten(0, 1)
    clips = {"model": predicted, "ceiling": shown, "truth": batch.frames}
    counted = unknown[:, 1:] | unknown[:, :-1]
    if not counted.shape[1]:  # a picture does not move
        return {name: torch.zeros(len(frames), dtype=torch.float64) for name, frames in clips.items()}
    return {name: motion_energy(frames, counted).cpu() for name, frames in clips.items()}


def _truth(batch: ClipBatch) -> Tensor:
    """uint8 (B, H, C, h, w)."""
    return take_frames(batch.frames, ~batch.given).contiguous()


def _predict(trial: Trial, batch: ClipBatch, latents: Tensor, count: int, trajectory: int) -> Tensor:
    """uint8 (B, H, C, h, w), of one trajectory; faults of the first `count` clips are noted."""
    prediction = predict_unknown(
        trial.predictor, trial.task, batch, latents, trajectory, trial.seed, trial.num_inference_steps
    )
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
