"""What is examined: a model with its weights, raw and averaged, and the clips to examine it on."""

import contextlib
import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

from torch import Tensor

from vidpred.checkpoint_store import read_checkpoint
from vidpred.conditioning import ConditioningConfig, prediction_roles, trained_tasks
from vidpred.data import (
    DATASETS,
    Clip,
    ClipBatch,
    ClipConfig,
    ClipDataset,
    ClipError,
    build_dataset,
    clip_numbers,
    evaluation_batches,
    evenly_spaced_clips,
    require_half,
    sample_clips,
)
from vidpred.data.probing import probe_video
from vidpred.data.sources import Source, window_starts
from vidpred.data.video_folder import VideoFolder
from vidpred.diagnosis.record import TrainingHistory, read_history
from vidpred.errors import UserError
from vidpred.frame_roles import FrameRoles
from vidpred.prediction import Predictor, predictor_from_checkpoint
from vidpred.registry import from_mapping


@dataclass(frozen=True)
class Subject:
    """A model under examination.

    Attributes:
        title: what it is, for people.
        predictor: with the averaged weights where there are any.
        weights: the trained weights by name.
        averaged: their moving average (EMA), None for a model that was never trained.
        ema_updates: how often the average was updated, None where that is not known.
        data, conditioning, seed: of the run; they say which clips the model is meant for.
        folder: where results about the model belong. name: of files about it.
        history: of its training; None where there was none, or it left no record.
    """

    title: str
    predictor: Predictor
    weights: dict[str, Tensor]
    averaged: Optional[dict[str, Tensor]]
    ema_updates: Optional[int]
    data: Any
    conditioning: ConditioningConfig
    seed: int
    folder: Path
    name: str
    history: Optional[TrainingHistory] = None

    @functools.cached_property
    def validation_data(self) -> ClipDataset:
        """Its validation split, found once. Raises UserError."""
        return build_dataset(self.data, "val", self.seed)


def subject_from_checkpoint(path: Union[str, Path], device: str = "auto") -> Subject:
    """The model of a checkpoint directory, or of the latest checkpoint of a run folder. Raises UserError."""
    checkpoint = read_checkpoint(path)
    predictor = predictor_from_checkpoint(checkpoint, device)
    if "model" not in checkpoint.tensors:
        raise UserError(f"checkpoint {checkpoint.path}: holds no model.safetensors; use another checkpoint")
    config = checkpoint.config
    return Subject(
        title=f"{checkpoint.path} (step {checkpoint.step})",
        predictor=predictor,
        weights=checkpoint.tensors["model"],
        averaged=checkpoint.tensors["ema"],
        ema_updates=checkpoint.state.get("ema_updates"),
        data=DATASETS.from_mapping(config["data"]),
        conditioning=from_mapping(ConditioningConfig, config["conditioning"], "conditioning"),
        seed=config.get("seed", 0),
        folder=checkpoint.run_folder,
        name=f"step_{checkpoint.step:08d}",
        history=read_history(checkpoint),
    )


def diagnosed_roles(conditioning: ConditioningConfig) -> FrameRoles:
    """The first frames are given, as in prediction; none where the model was never trained to predict."""
    predicts = "prediction" in trained_tasks(conditioning)
    return prediction_roles(conditioning.context_frames if predicts else 0)


def validation_clips(subject: Subject, count: int) -> ClipBatch:
    """`count` clips, or all if there are fewer, evenly spaced over the validation split of its data."""
    dataset = subject.validation_data
    return _read(subject, dataset, evenly_spaced_clips(dataset, count))


def diagnosed_clips(subject: Subject, count: int) -> ClipBatch:
    """As `validation_clips`, with the roles that a diagnosis asks for."""
    dataset = subject.validation_data
    return _read(subject, dataset, evenly_spaced_clips(dataset, count), diagnosed_roles(subject.conditioning))


def recorded_clips(subject: Subject) -> Optional[ClipBatch]:
    """The validation clips of the training's record as they are read now: those of its names that there still are and
    that can be read; None where there is none, or no record."""
    record = subject.history.record if subject.history else None
    if record is None or subject.data is None:
        return None
    dataset = subject.validation_data
    numbers = clip_numbers(dataset, record.names)
    if not numbers:
        return None
    timeout = getattr(subject.data, "decode_timeout", ClipConfig.decode_timeout)
    roles = prediction_roles(subject.conditioning.context_frames)
    read = list(evaluation_batches(dataset, numbers, len(numbers), roles, timeout=timeout))
    return read[0][0].first(int(read[0][1].sum())) if read else None


def training_clips(subject: Subject, count: int) -> ClipBatch:
    """`count` training clips, or one of each item if there are fewer, in random windows as training draws them."""
    dataset = build_dataset(subject.data, "train", subject.seed)
    count = min(count, len(dataset))
    loader = sample_clips(
        dataset, count, seed=subject.seed, purpose="diagnosis", batch_size=count,
        num_workers=0, timeout=getattr(subject.data, "decode_timeout", ClipConfig.decode_timeout),
    )  # fmt: skip
    with contextlib.closing(loader):
        return next(iter(loader))


def video_clip(
    subject: Subject, video: Path, num_frames: Optional[int] = None, start: float = 0.0
) -> tuple[ClipBatch, float]:
    """A clip of a video file, cut as the model's training clips are, and its frames per second.

    Of `num_frames` frames (a training clip's where None) from `start` seconds on, fewer where the video ends before
    but at least the context frames. Raises UserError.
    """
    if subject.predictor.context_frames == 0:
        raise UserError(f"{video}: this model generates from nothing and cannot continue a video; leave it out")
    path = video.absolute()
    try:
        source = probe_video(path, path.name, quick=True, with_changes=False, alive=lambda: None)
        config, first = _clip_config(source, subject, num_frames or subject.predictor.num_frames, start)
    except ClipError as error:
        raise UserError(f"{video}: {error}; choose another video") from error
    dataset = _OneClip(str(path.parent), [source], config, path.parent, first)
    return _read(subject, dataset, [0]), config.fps or source.fps / config.frame_stride


class _OneClip(VideoFolder):
    """A single video, from frame `first` on."""

    def __init__(self, name: str, sources: list[Source], config: ClipConfig, root: Path, first: int):
        super().__init__(name, sources, config, root)
        self._first = first

    def num_windows(self, index: int) -> int:
        return 1

    def fixed_clip(self, index: int, window: int) -> Clip:
        return self._cut(index, self._first, None)


def _clip_config(source: Source, subject: Subject, num_frames: int, start: float) -> tuple[ClipConfig, int]:
    """Size, crop and rate of the model's data, whatever their kind, with at most `num_frames` frames; and the first
    of them. Raises ClipError."""
    common = [field.name for field in dataclasses.fields(ClipConfig) if hasattr(subject.data, field.name)]
    values = {name: getattr(subject.data, name) for name in common}
    values |= {"kind": "video", "min_motion": None, "max_cut": None}  # the user chose this video
    times = source.frame_times()
    first = int(times.searchsorted(start - 1e-6))
    if first >= len(times):
        raise ClipError(f"ends at {times[-1]:.2f} s, before {start:g} s")
    config = ClipConfig(**values)
    if config.fps is None:
        available = -(-(source.frames - first) // config.frame_stride)
    else:
        available = int((times[-1] - times[first] + 0.5 / source.fps) * config.fps) + 1
    frames = max(min(num_frames, available), subject.predictor.context_frames)
    config = dataclasses.replace(config, num_frames=frames)
    if first not in window_starts(source, config):
        raise ClipError(f"holds {available} frames from {start:g} s on, and the model needs {frames}")
    return config, first


def _read(
    subject: Subject, dataset: ClipDataset, numbers: list[int], roles: Optional[FrameRoles] = None
) -> ClipBatch:
    """The clips that can be read, decoded in a process of its own: a decoder may hang or die."""
    batches = evaluation_batches(
        dataset,
        numbers,
        len(numbers),
        roles or prediction_roles(subject.conditioning.context_frames),
        timeout=getattr(subject.data, "decode_timeout", ClipConfig.decode_timeout),
    )
    read = list(batches)
    kept = sum(int(valid.sum()) for _, valid in read)
    require_half(kept, batches.dropped, dataset)
    return read[0][0].first(kept)  # the rows after them are padding
