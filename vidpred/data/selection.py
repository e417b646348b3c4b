"""Which windows of a source may become clips: optionally none with a cut between shots, none without motion.

The scan measures changes[i], the mean absolute difference of 32x32 grey thumbnails of frames i and i + 1 in
[0, 255]. A window from frame a to frame b is rejected where max changes[a:b] > max_cut, or where
mean changes[a:b] < min_motion. Decided from the record alone: no clip is decoded to be thrown away.
"""

from typing import Optional

import numpy as np

from vidpred.data.clips import ClipError
from vidpred.data.config import ClipConfig
from vidpred.data.sources import Source, nearest_frames, window_starts


class ClipRejected(ClipError):
    """No window of the source passes the selection."""


def needs_changes(config: ClipConfig) -> bool:
    return config.min_motion is not None or config.max_cut is not None


def allowed_starts(source: Source, config: ClipConfig, stride: Optional[int] = None) -> np.ndarray:
    """The frames at which a clip may begin, ascending. Raises ClipError (too short) or ClipRejected.

    `stride` is another one than frame_stride.
    """
    starts = window_starts(source, config, stride)
    if source.changes is None or not needs_changes(config) or config.num_frames == 1:
        return starts
    ends = _last_frames(source, config, starts, stride)
    kept, reason = np.ones(len(starts), dtype=bool), ""
    changes = np.asarray(source.changes)
    if config.max_cut is not None:
        cuts = np.concatenate([[0], np.cumsum(changes > config.max_cut)])
        kept &= cuts[ends] == cuts[starts]
        reason = f"every window has a change above data.max_cut {config.max_cut:g}: a cut"
    if config.min_motion is not None:
        total = np.concatenate([[0.0], np.cumsum(changes)])
        moving = (total[ends] - total[starts]) / np.maximum(1, ends - starts) >= config.min_motion
        if not (kept & moving).any() and kept.any():
            reason = f"no window moves by data.min_motion {config.min_motion:g} per frame"
        kept &= moving
    if not kept.any():
        raise ClipRejected(reason)
    return starts[kept]


def starts_by_stride(source: Source, config: ClipConfig) -> dict[int, np.ndarray]:
    """stride -> the frames at which a clip of that stride may begin: of the configured strides those at which
    the source has any such clip. Raises as `allowed_starts` does where it has none at all."""
    found, reasons = {}, []
    for stride in config.strides:
        try:
            found[stride] = allowed_starts(source, config, stride)
        except ClipRejected as reason:
            reasons.append(reason)
        except ClipError as reason:
            reasons.append(reason)
            break  # too short for this stride, so for all larger ones
    if not found:
        raise reasons[0]
    return found


def disjoint_starts(source: Source, config: ClipConfig) -> np.ndarray:
    """Of the allowed starts those of clips without common frames, ascending, the first one first.

    Raises as `allowed_starts` does.
    """
    starts = allowed_starts(source, config)
    ends = _last_frames(source, config, starts)
    places = [0]
    while (following := int(np.searchsorted(starts, ends[places[-1]], side="right"))) < len(starts):
        places.append(following)
    return starts[places]


def _last_frames(
    source: Source, config: ClipConfig, starts: np.ndarray, stride: Optional[int] = None
) -> np.ndarray:
    if config.fps is None:
        return starts + (config.num_frames - 1) * (stride or config.frame_stride)
    times = source.frame_times()
    return nearest_frames(times, times[starts] + (config.num_frames - 1) / config.fps)
