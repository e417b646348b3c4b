"""Sources: what clips are cut from, and the choice of the frames of a clip.

A source has `frames` frames, numbered from 0 in presentation order; frame i is shown at `times[i]` seconds,
which is i / fps where the rate is regular.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from vidpred.data.clips import ClipError
from vidpred.data.config import ClipConfig


@dataclass(frozen=True)
class Source:
    """One scanned item. Everything that reading it needs, so that nothing is scanned twice."""

    name: str
    """Path relative to the root; rows of an array file end in #row."""
    frames: int
    height: int
    width: int
    fps: float
    reader: str = "decord"
    """decord, pyav, images, npz or hdf5."""
    times: Optional[tuple[float, ...]] = None
    """Seconds since the first frame; only where the rate is not regular."""
    anchors: tuple[tuple[int, int], ...] = ()
    """PyAV's places to seek to: (frame index, presentation timestamp) of key frames."""
    rotation: int = 0
    """Degrees, counter-clockwise, by which a decoded picture is turned to be upright."""
    row: int = 0
    """Which clip of an array file."""
    note: str = ""
    """Why not decord."""
    changes: Optional[tuple[float, ...]] = None
    """Mean absolute change of 32x32 thumbnails (grey, [0, 255]) between frames i and i + 1; frames - 1
    values."""

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Source":
        values = dict(record)
        values["anchors"] = tuple((int(index), int(stamp)) for index, stamp in values.get("anchors", ()))
        for key in ("times", "changes"):
            if values.get(key) is not None:
                values[key] = tuple(values[key])
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Only what differs from the default, to keep the record of a large collection small."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {key: value for key, value in vars(self).items() if value != defaults[key]}

    def frame_times(self) -> np.ndarray:
        """(frames,) float64 seconds since the first frame."""
        if self.times is not None:
            return np.asarray(self.times, dtype=np.float64)
        return np.arange(self.frames) / self.fps


def window_starts(source: Source, config: ClipConfig, stride: Optional[int] = None) -> np.ndarray:
    """The frame indices at which a whole clip may begin, ascending. Raises ClipError where there is none.

    `stride`, here and below, is another one than frame_stride.
    """
    if config.fps is None:
        stride = stride or config.frame_stride
        span = (config.num_frames - 1) * stride
        starts = np.arange(max(0, source.frames - span))
        if len(starts) == 0:
            at = f" at stride {stride}" if stride > 1 else ""
            raise ClipError(
                f"too short: {source.frames} frames, a clip of {config.num_frames}{at} needs {span + 1}"
            )
        return starts
    times = source.frame_times()
    if config.fps > source.fps * 1.01:
        raise ClipError(f"{source.fps:.4g} frames per second are fewer than data.fps {config.fps:.4g}")
    span = (config.num_frames - 1) / config.fps
    # Half an interval of tolerance: the last frame taken is the nearest one.
    starts = np.flatnonzero(times + span <= times[-1] + 0.5 / source.fps)
    if len(starts) == 0:
        raise ClipError(
            f"too short: {times[-1]:.2f} s, a clip of {config.num_frames} frames needs {span:.2f} s"
        )
    return starts


def window(
    source: Source, config: ClipConfig, start: int, stride: Optional[int] = None
) -> tuple[np.ndarray, np.ndarray]:
    """Frame indices (T,) of the clip that begins at `start`, and their times (T,) in frame intervals.

    An interval is frame_stride frames, so by stride the times are 0, 1, 2, ... times stride / frame_stride;
    by rate they are those of the nearest frames that there are. A frame that is taken more than once has the
    times at which it was wanted: no two times are equal.
    """
    steps = np.arange(config.num_frames)
    if config.fps is None:
        taken = steps * (stride or config.frame_stride)
        return start + taken, (taken / config.frame_stride).astype(np.float32)
    times = source.frame_times()
    indices = nearest_frames(times, times[start] + steps / config.fps)
    shown = (times[indices] - times[start]) * config.fps
    again = np.diff(indices) == 0
    repeated = np.append(again, False) | np.insert(again, 0, False)
    return indices, np.where(repeated, steps, shown).astype(np.float32)


def nearest_frames(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of the frame nearest to each of the `wanted` seconds, the earlier one of two."""
    after = np.searchsorted(times, wanted).clip(1, max(1, len(times) - 1))
    before = after - 1
    after = np.minimum(after, len(times) - 1)
    return np.where(wanted - times[before] <= times[after] - wanted, before, after)
