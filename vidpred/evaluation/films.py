"""Clips to look at: the best, the median and the worst one, with their frames.

Which clips these are is known only after the scoring, and the frames of all clips would not fit into memory.
So the few are predicted again: a prediction is a function of (seed, number of the clip, trajectory), and the
frames are those that were scored.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Iterator, Optional, Sequence

import numpy as np
import torch
from torch import Tensor

from vidpred.checkpoint_store import Checkpoint
from vidpred.conditioning import TaskName, evaluation_roles
from vidpred.data import DATASETS, ClipBatch, ClipConfig, ClipDataset, build_dataset, evaluation_batches
from vidpred.evaluation.baselines import copy_nearest
from vidpred.evaluation.config import EvaluationConfig
from vidpred.evaluation.drawing import predict_unknown
from vidpred.evaluation.records import ClipScores
from vidpred.evaluation.results import Evaluation
from vidpred.metrics import psnr
from vidpred.prediction import Predictor, predictor_from_checkpoint
from vidpred.tensor_ops import append_dims, to_uint8

MAX_TRAJECTORIES = 5  # of a clip are shown; more are too small to be compared by eye


@dataclass(frozen=True)
class ClipFilm:
    """A clip of T frames, H of them predicted, to be looked at.

    Attributes:
        rank: what it stands for, such as "median".
        scores: the record of the evaluation.
        frames: the clip itself, uint8 (T, C, h, w).
        given: which of them the model saw, bool (T,).
        nearest: for every frame the number of the given one nearest in time, int (T,); None of none given.
        predictions: of the first few trajectories, uint8 (N, H, C, h, w); the first one was scored.
        psnr: of these against the truth in dB, float64 (N, H).
    """

    rank: str
    scores: ClipScores
    frames: np.ndarray
    given: np.ndarray
    nearest: Optional[np.ndarray]
    predictions: np.ndarray
    psnr: np.ndarray

    @property
    def as_scored(self) -> bool:
        """Whether the first prediction is the one that was scored; a GPU may not repeat itself exactly."""
        scored = self.scores.scores.get("model", {}).get("psnr", self.psnr[0])
        return bool(np.abs(scored - self.psnr[0]).max() < 0.01)


def chosen_clips(evaluation: Evaluation) -> dict[str, ClipScores]:
    """The best, the median and the worst clip by the model's PSNR, by these names; of fewer clips fewer.

    Where clips are not the truth of what is generated there is no best one: these are the first few.
    """
    clips = evaluation.clips
    if evaluation.unavailable("model", "psnr"):
        return {f"sample {place + 1}": clip for place, clip in enumerate(clips[:3])}
    means = evaluation.values("model", "psnr").mean(axis=1)
    order = np.argsort(-means, kind="stable")
    places = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    if len(clips) < 3:
        places = dict(zip(("best", "worst"), order))
    return {rank: clips[place] for rank, place in places.items()}


class Retake:
    """Reads clips of an evaluation again, and predicts them as it did.

    Args:
        predictor, dataset: those that were evaluated.
        protocol: of the evaluation; its task, seed, number of trajectories and of sampling steps are taken.
        batch_size: the evaluation's; another one may change the last bits of a prediction.
        num_workers, timeout: as `evaluate`'s.
    """

    def __init__(
        self,
        predictor: Predictor,
        dataset: ClipDataset,
        protocol: dict[str, Any],
        batch_size: int,
        *,
        num_workers: int = 1,
        timeout: float = 60.0,
    ):
        self.predictor = predictor
        self.seed: int = protocol["seed"]
        self._dataset = dataset
        self._task: TaskName = protocol["task"]
        self._roles = evaluation_roles(self._task, predictor.context_frames)
        self._steps: int = protocol["sampling"]["num_inference_steps"]
        self._trajectories = min(protocol["trajectories_per_clip"], MAX_TRAJECTORIES)
        self._batch_size = batch_size
        self._reading = {"seed": self.seed, "num_workers": num_workers, "timeout": timeout}

    def clips(self, numbers: Sequence[int]) -> Iterator[ClipBatch]:
        """The clips with these numbers in the split, one by one, on the device; of longer ones the first window
        of the model. What cannot be read is left out."""
        window = slice(self.predictor.num_frames)
        for batch, _ in self._batches(numbers, 1):
            cut = {name: getattr(batch, name)[:, window] for name in ("frames", "roles", "frame_times")}
            yield dataclasses.replace(batch, **cut)

    def films(self, evaluation: Evaluation) -> list[ClipFilm]:
        """The clips of `chosen_clips`, in that order."""
        chosen = {clip.index: (rank, clip) for rank, clip in chosen_clips(evaluation).items()}
        films = {}
        for batch, count in self._batches(list(chosen), self._batch_size):
            predictions = torch.stack(list(self._predictions(batch)), dim=1)  # (B, N, H, C, h, w)
            for b, index in enumerate(batch.draws[:count].tolist()):
                films[index] = _film(*chosen[index], batch, predictions[b], b)
        return [films[index] for index in chosen if index in films]

    def _batches(self, numbers: Sequence[int], batch_size: int) -> Iterator[tuple[ClipBatch, int]]:
        """Batches of one shape, and how many of the clips in them are not padding."""
        batches = evaluation_batches(self._dataset, numbers, batch_size, self._roles, **self._reading)
        for batch, valid in batches:
            yield batch.to(self.predictor.device), int(valid.sum())

    def _predictions(self, batch: ClipBatch) -> Iterator[Tensor]:
        """uint8 (B, H, C, h, w) of each trajectory."""
        latents = self.predictor.encode(batch.frames)
        for trajectory in range(self._trajectories):
            frames = predict_unknown(
                self.predictor, self._task, batch, latents, trajectory, self.seed, self._steps
            )
            yield to_uint8(frames)


def _film(rank: str, scores: ClipScores, batch: ClipBatch, predictions: Tensor, b: int) -> ClipFilm:
    """Of clip `b` of the batch, with its predictions (N, H, C, h, w)."""
    frames, given = batch.frames[b], batch.given[b]
    truth = frames[~given].contiguous().expand_as(predictions)
    return ClipFilm(
        rank=rank,
        scores=scores,
        frames=frames.cpu().numpy(),
        given=given.cpu().numpy(),
        nearest=_nearest_given(given, batch.frame_times[b]) if given.any() else None,
        predictions=predictions.cpu().numpy(),
        psnr=psnr(predictions, truth).cpu().numpy(),
    )


def _nearest_given(given: Tensor, frame_times: Tensor) -> np.ndarray:
    """The floor of a clip as the numbers of its frames, (T,)."""
    numbers = torch.arange(len(given), device=given.device)
    nearest = numbers.clone()
    nearest[~given] = copy_nearest(append_dims(numbers[None], 5), given[None], frame_times[None]).flatten()
    return nearest.cpu().numpy()


def retake_of_checkpoint(
    checkpoint: Checkpoint, protocol: dict[str, Any], device: str = "auto", batch_size: Optional[int] = None
) -> Retake:
    """For an evaluation of a checkpoint's averaged weights; `batch_size` is the run's where None.

    Every rank must call it: data may be prepared.
    """
    config = checkpoint.config
    data, frames = DATASETS.from_mapping(config["data"]), protocol["context_frames"] + protocol["predicted_frames"]
    # The same items as were evaluated: those that are too short for longer clips were left out.
    data = EvaluationConfig(num_frames=frames if frames != data.num_frames else None).clip_config(data)
    return Retake(
        predictor_from_checkpoint(checkpoint, device),
        build_dataset(data, protocol["split"], config.get("seed", 0)),
        protocol,
        batch_size or config.get("evaluation", {}).get("batch_size", EvaluationConfig.batch_size),
        num_workers=getattr(data, "num_workers", 1),
        timeout=getattr(data, "decode_timeout", ClipConfig.decode_timeout),
    )
