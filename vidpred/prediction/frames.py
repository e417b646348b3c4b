"""Frames at the predictor's door: what is refused, and which axes go in and come out."""

from typing import Optional

import torch
from torch import Tensor

from vidpred.errors import UserError


class NotFiniteError(UserError):
    """A prediction that is not finite: the model is broken, not what was asked of it."""


def check_frames(frames: Tensor, least: int, num_frames: int, factor: int) -> None:
    """Refuses what cannot be continued by `num_frames` frames: `least` given ones are needed, whose sides are multiples
    of `factor`. Raises UserError."""
    if frames.ndim not in (4, 5) or frames.shape[-3] != 3:
        raise UserError(f"frames: expected (T, 3, H, W) or (B, T, 3, H, W), got {tuple(frames.shape)}")
    if frames.dtype != torch.uint8:
        raise UserError(f"frames: expected uint8 in 0..255, got {frames.dtype}; convert them first")
    if frames.shape[-4] < least:
        raise UserError(f"frames: {frames.shape[-4]} given, the model needs {least} context frames")
    height, width = frames.shape[-2:]
    if height % factor or width % factor:
        raise UserError(
            f"frames: {height}x{width} is not a multiple of {factor} as the autoencoder needs; "
            "resize or crop them"
        )
    if num_frames < 1:
        raise UserError(f"num_frames: {num_frames} must be 1 or more")


def leading_axes(rows: Tensor, frames: Tensor, trajectories: Optional[int]) -> Tensor:
    """(rows, T, 3, H, W) -> an axis of clips where `frames` have one, one of trajectories where asked for."""
    rows = rows.to(frames.device)
    if trajectories is None:
        return rows if frames.ndim == 5 else rows[0]
    return rows.unflatten(0, (-1, trajectories)) if frames.ndim == 5 else rows


def per_clip(values: Tensor, name: str, frames: Tensor) -> Tensor:
    """(T,) or (B, T) -> (B, T), for frames (T, ...) or (B, T, ...)."""
    shape = (frames.shape[0], frames.shape[1]) if frames.ndim == 5 else (1, frames.shape[0])
    if values.shape not in (shape, shape[1:]):
        raise UserError(f"{name}: expected {shape[1:]} or {shape} values, got {tuple(values.shape)}")
    return values.expand(shape)


def require_finite(name: str, values: Tensor) -> None:
    """Raises NotFiniteError unless all values are finite."""
    # Cast to uint8, NaN would become a black pixel: a broken model must not look like a dark video.
    bad = int((~values.isfinite()).sum())
    if bad:
        raise NotFiniteError(
            f"prediction: {bad} of {values.numel()} {name} are not finite; use an earlier checkpoint, "
            "full precision, or look at tools/diagnose_diffusion.py"
        )
