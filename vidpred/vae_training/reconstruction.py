"""Frames through a VAE and back, whole and without gradients, and pictures of what became of them."""

from pathlib import Path
from typing import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from vidpred.panels import ERROR_GAIN
from vidpred.tensor_ops import to_float, to_uint8
from vidpred.vae_training.network import Reconstruction
from vidpred.video_io import write_png

FRAMES_AT_ONCE = 16


def to_images(frames: Tensor) -> Tensor:
    """uint8 frames -> float32 images in [-1, 1], as AutoencoderKL wants them."""
    return to_float(frames) * 2 - 1


def to_frames(images: Tensor) -> Tensor:
    """Images in about [-1, 1] -> uint8 frames, clamped and rounded."""
    return to_uint8(images * 0.5 + 0.5)


@torch.no_grad()
def reconstruct(network: nn.Module, frames: Tensor) -> Reconstruction:
    """uint8 frames (N, 3, H, W) on the network's device -> what it makes of them; decoded is the posterior's mean."""
    parts = [network(to_images(part)) for part in frames.split(FRAMES_AT_ONCE)]
    return Reconstruction(*(torch.cat(tensors) for tensors in zip(*parts)))


def save_reconstructions(path: Path, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """One PNG: frames above, their reconstructions below, and the brightened |error| in the third row.

    `pairs` of (truth, reconstruction), uint8 (3, H, W) each.
    """
    truth, made = (torch.stack(frames) for frames in zip(*pairs))
    error = (ERROR_GAIN * (truth.int() - made.int()).abs()).clamp(max=255).to(torch.uint8)
    write_png(path, rearrange(torch.stack([truth, made, error]), "row n c h w -> c (row h) (n w)"))
