"""The contract of an autoencoder, and the registry of its kinds.

Notation: images are (N, 3, H, W), normalised per channel as (x - mean) / std with x in [0, 1];
latents are (N, C, H/f, W/f). A subclass maps images to latents and back; frames, rounding, chunks,
pixel normalisation and dtypes are handled here.
"""

from dataclasses import dataclass
from typing import Callable, Literal

import torch
from torch import Tensor, nn

from vidpred.errors import UserError
from vidpred.registry import Registry
from vidpred.tensor_ops import append_dims, check_clip, fold_frames, to_float, unfold_frames

AUTOENCODERS = Registry("autoencoder")

PIXEL_NORMS = {
    "centered": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # [0, 1] -> [-1, 1]
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass
class AutoencoderConfig:
    """What every kind has in common."""

    kind: str = ""
    """Which autoencoder: kl, tiny, mock, pixel_unshuffle or identity."""

    pixel_norm: Literal["centered", "imagenet"] = "centered"
    """Pixels before encoding: centered = (x - 0.5) / 0.5 as Stable Diffusion's VAEs want it; imagenet = its
    mean and standard deviation."""

    frames_per_chunk: int = 16
    """Frames that are encoded or decoded at once; lower it when the autoencoder runs out of memory."""

    min_psnr: float = 20.0
    """Training frames must survive encode and decode with at least this PSNR in dB, checked at start."""

    def __post_init__(self) -> None:
        if self.frames_per_chunk < 1:
            raise UserError(
                f"autoencoder.frames_per_chunk: {self.frames_per_chunk} is less than 1; give a larger one"
            )
        if self.pixel_norm not in PIXEL_NORMS:
            known = ", ".join(PIXEL_NORMS)
            raise UserError(f"autoencoder.pixel_norm: '{self.pixel_norm}' is unknown; choose one of {known}")


class Autoencoder(nn.Module):
    """Frozen map between frames and latents; always in evaluation mode, never with gradients.

    Attributes: `name` (for messages), `latent_channels` (C), `down_factor` (f).
    """

    def __init__(self, config: AutoencoderConfig, *, name: str, latent_channels: int, down_factor: int):
        super().__init__()
        self.name = name
        self.latent_channels = latent_channels
        self.down_factor = down_factor
        self.frames_per_chunk = config.frames_per_chunk
        mean, std = PIXEL_NORMS[config.pixel_norm]
        # Kept in float32 by `encode` and `decode`; not part of a state dict, the configuration says it.
        self.register_buffer("pixel_mean", torch.tensor(mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std), persistent=False)

    def encode_images(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> latents (N, C, H/f, W/f); the mean where it is a distribution."""
        raise NotImplementedError

    def decode_images(self, latents: Tensor) -> Tensor:
        """Latents (N, C, h, w) -> normalised images (N, 3, h*f, w*f)."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """uint8 frames (B, T, 3, H, W) -> float32 latents (B, T, C, H/f, W/f); f must divide H and W."""
        check_clip("frames", frames)
        self._check_frames(frames)
        if frames.shape[1] == 0:  # what is generated from nothing; not every layer takes an empty batch
            height, width = (side // self.down_factor for side in frames.shape[-2:])
            return torch.zeros(len(frames), 0, self.latent_channels, height, width, device=frames.device)
        return self._by_chunks(frames, lambda part: self.encode_images(self._normalize(part)))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, T, C, h, w) -> float32 frames (B, T, 3, h*f, w*f), nominally in [0, 1], not clamped."""
        check_clip("latents", latents)
        return self._by_chunks(latents, lambda part: self._denormalize(self.decode_images(part.float())))

    def train(self, mode: bool = True) -> "Autoencoder":
        """Stays in evaluation mode whatever its parents do: the autoencoder is frozen."""
        return super().train(False)

    def freeze(self) -> "Autoencoder":
        """Evaluation mode, no parameter wants a gradient."""
        return self.requires_grad_(False).eval()

    def _by_chunks(self, clips: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        parts = fold_frames(clips).split(self.frames_per_chunk)
        return unfold_frames(torch.cat([function(part).float() for part in parts]), clips.shape[0])

    def _normalize(self, frames: Tensor) -> Tensor:
        mean, std = (append_dims(values.float(), 3) for values in (self.pixel_mean, self.pixel_std))
        return (to_float(frames) - mean) / std

    def _denormalize(self, images: Tensor) -> Tensor:
        mean, std = (append_dims(values.float(), 3) for values in (self.pixel_mean, self.pixel_std))
        return images.float() * std + mean

    def _check_frames(self, frames: Tensor) -> None:
        if frames.dtype != torch.uint8:
            raise ValueError(f"frames must be uint8 in [0, 255], got {frames.dtype}")
        channels, height, width = frames.shape[2:]
        if channels != 3:
            raise UserError(f"{self.name} takes frames of 3 channels, got {channels}: convert them to RGB")
        if height % self.down_factor or width % self.down_factor:
            raise UserError(
                f"frames of {height}x{width} do not fit {self.name}: height and width must be multiples of "
                f"{self.down_factor} (data.height, data.width)"
            )


def build_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """The frozen autoencoder that `config` names (see `AUTOENCODERS`)."""
    return AUTOENCODERS.build(config).freeze()
