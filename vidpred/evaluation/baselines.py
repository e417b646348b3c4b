"""Predictions that need no learning. A model that does not beat them has learnt nothing about motion.

Of T frames any may be given, at least one, and equally many in each clip; the H others are predicted, in
their order. Frame times never decrease along a clip.
"""

import torch
from torch import Tensor

from vidpred.tensor_ops import append_dims, take_frames


def copy_nearest(frames: Tensor, given: Tensor, frame_times: Tensor) -> Tensor:
    """For each unknown frame the given one nearest in time, of two equally near ones the earlier.

    frames uint8 (B, T, C, h, w), given bool (B, T), times (B, T) -> uint8 (B, H, C, h, w). Where the first
    frames are given, it is the last of them.
    """
    before, after = (take_frames(places, ~given) for places in _neighbours(given))
    times = take_frames(frame_times, ~given)

    def distance(places: Tensor) -> Tensor:
        gaps = (times - frame_times.gather(1, places.clamp(0, given.shape[1] - 1))).abs()
        return torch.where(_exists(places, given), gaps, torch.inf)

    nearest = torch.where(distance(before) <= distance(after), before, after)
    # The usual memory order, as that of the truth: another one changes the last bits of LPIPS.
    return _frames_at(frames, nearest).contiguous()


def mean_of_given(frames: Tensor, given: Tensor) -> Tensor:
    """For each unknown frame the mean of the given ones, rounded (of two equally near levels the even one).

    frames uint8 (B, T, C, h, w), given bool (B, T) -> uint8 (B, H, C, h, w).
    """
    mean = take_frames(frames, given).float().mean(dim=1, keepdim=True).round().to(frames.dtype)
    unknown = given.shape[1] - int(given[0].sum())
    return mean.expand(-1, unknown, -1, -1, -1).contiguous()


def linear(frames: Tensor, given: Tensor, frame_times: Tensor) -> Tensor:
    """For each unknown frame the line in time through two given ones, clamped to [0, 255].

    Between given frames it is their blend. Beyond the last, or before the first, the line goes through the
    two given frames next to it: at horizon h of a regular clip, last + h (last - previous). With a single
    given frame, or two of the same time, nothing is known of the motion, and the line is a copy. Arguments
    and result as `copy_nearest`'s.
    """
    all_before, all_after = _neighbours(given)
    before, after = take_frames(all_before, ~given), take_frames(all_after, ~given)
    anchor = torch.where(_exists(before, given), before, after)
    # A given frame at the clip's end is its own neighbour here, which is the copy.
    further_back = all_before.gather(1, (anchor - 1).clamp_min(0))
    further_on = all_after.gather(1, (anchor + 1).clamp_max(given.shape[1] - 1))
    other = torch.where(_exists(after, given), after, further_back)
    other = torch.where(_exists(before, given), other, further_on)
    other = torch.where(_exists(other, given), other, anchor)

    start = frame_times.gather(1, anchor)
    interval = start - frame_times.gather(1, other)
    apart = interval != 0
    passed = take_frames(frame_times, ~given) - start
    # (B, H): 1, 2, ... beyond the last given frame of a regular clip, between 0 and -1 from one to the next
    steps = torch.where(apart, passed / torch.where(apart, interval, 1), 0)
    first = _frames_at(frames, anchor).float()
    line = first + append_dims(steps, frames.ndim) * (first - _frames_at(frames, other).float())
    return line.clamp(0, 255).round().to(frames.dtype)


def _neighbours(given: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T) int64 twice: the last given frame up to each, and the first from it on; -1 and T for none."""
    count = given.shape[1]
    places = torch.arange(count, device=given.device)
    before = torch.where(given, places, -1).cummax(dim=1).values
    after = torch.where(given, places, count).flip(1).cummin(dim=1).values.flip(1)
    return before, after


def _exists(places: Tensor, given: Tensor) -> Tensor:
    return (places >= 0) & (places < given.shape[1])


def _frames_at(frames: Tensor, places: Tensor) -> Tensor:
    """(B, T, C, h, w) at (B, H) places -> (B, H, C, h, w)."""
    return frames[torch.arange(len(frames), device=frames.device)[:, None], places]
