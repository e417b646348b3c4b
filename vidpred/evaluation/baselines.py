"""Predictions that need no learning. A model that does not beat them has learnt nothing about motion.

T = K given frames followed by H unknown ones.
"""

import torch
from torch import Tensor

from vidpred.tensor_ops import append_dims


def copy_last(frames: Tensor, context: int) -> Tensor:
    """uint8 (B, T, C, H, W) -> the last of `context` given frames, T - context times over."""
    return frames[:, context - 1 : context].expand(-1, frames.shape[1] - context, -1, -1, -1)


def extrapolate(frames: Tensor, frame_times: Tensor, context: int) -> Tensor:
    """The line through the last two given frames: uint8 (B, T, C, H, W), times (B, T) -> (B, T - K, C, H, W).

    K is `context`. At horizon h of a regular clip: last + h (last - previous), clamped to [0, 255]. With a
    single given frame, or two of the same time, nothing is known of the motion, and the line is a copy.
    """
    if context < 2:
        return copy_last(frames, context)
    previous, last = frames[:, context - 2 : context - 1].float(), frames[:, context - 1 : context].float()
    before, now = frame_times[:, context - 2 : context - 1], frame_times[:, context - 1 : context]
    interval = now - before
    known = interval > 0
    # (B, T - context): 1, 2, ... on a regular clip
    steps = torch.where(known, (frame_times[:, context:] - now) / torch.where(known, interval, 1), 0)
    line = last + append_dims(steps, frames.ndim) * (last - previous)
    return line.clamp(0, 255).round().to(frames.dtype)
