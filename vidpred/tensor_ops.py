"""Small operations on clips. A clip batch is (B, T, C, H, W) at every public door."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def append_dims(x: Tensor, ndim: int) -> Tensor:
    """Adds trailing axes of length 1 until `x` has `ndim` axes."""
    return x[(...,) + (None,) * (ndim - x.ndim)]


def fold_frames(x: Tensor) -> Tensor:
    """(B, T, ...) -> (B*T, ...)."""
    return x.flatten(0, 1)


def unfold_frames(x: Tensor, batch: int) -> Tensor:
    """(B*T, ...) -> (B, T, ...)."""
    return rearrange(x, "(b t) ... -> b t ...", b=batch)


def check_clip(name: str, x: Tensor) -> None:
    """Raises ValueError unless `x` has the axes of a clip batch (B, T, C, H, W)."""
    if x.ndim != 5:
        raise ValueError(f"{name} must be (B, T, C, H, W), got shape {tuple(x.shape)}")


def take_frames(x: Tensor, chosen: Tensor) -> Tensor:
    """The chosen frames of every clip, in their order: x (B, T, ...), (B, T) bool with N true in each row ->
    (B, N, ...)."""
    return x[chosen].unflatten(0, (len(x), -1))


def reference_frames(x: Tensor, given: Tensor, frame_times: Tensor, count: int = 1) -> Tensor:
    """For every unknown frame the `count` nearest given frames in time, nearest first, side by side on the
    channels. Of two equally near ones the earlier comes first; 0 where there is none, and at given frames.

    x (B, T, C, H, W), given (B, T) bool, frame_times (B, T) -> (B, T, count * C, H, W).
    """
    distance = (frame_times[:, :, None] - frame_times[:, None, :]).abs()  # (B, T unknown, T given)
    distance = distance.masked_fill(~given[:, None, :], float("inf"))
    nearest = distance.argsort(dim=2, stable=True)  # (B, T, T)
    available = given.sum(dim=1, keepdim=True)  # (B, 1)
    references = []
    for place in range(min(count, x.shape[1])):
        reference = torch.take_along_dim(x, append_dims(nearest[:, :, place], x.ndim), dim=1)
        there = append_dims(~given & (available > place), x.ndim)
        references.append(torch.where(there, reference, torch.zeros_like(x)))
    references += [torch.zeros_like(x)] * (count - len(references))
    return torch.cat(references, dim=2) if references else x[:, :, :0]


def shrink_frames(frames: Tensor, factor: int) -> Tensor:
    """uint8 (B, T, C, H, W) -> (B, T, C, H / factor, W / factor), each pixel the rounded mean of factor x factor."""
    if factor == 1:
        return frames
    means = F.avg_pool2d(fold_frames(frames).float(), factor)
    return unfold_frames(means.round().to(torch.uint8), len(frames))


def to_uint8(frames: Tensor) -> Tensor:
    """Frames in [0, 1] -> uint8, clamped and rounded to the nearest level."""
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8)


def to_float(frames: Tensor) -> Tensor:
    """uint8 frames -> float32 in [0, 1]."""
    return frames.float() / 255
