"""Autoencoders without weights: the interpolating mock VAE, and the lossless pixel-unshuffle and identity ones."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from vidpred.autoencoders.base import AUTOENCODERS, Autoencoder, AutoencoderConfig
from vidpred.errors import UserError


def _check_factor(down_factor: int) -> None:
    if down_factor < 1:
        raise UserError(f"autoencoder.down_factor: {down_factor} is less than 1; give a larger one")


@dataclass
class MockConfig(AutoencoderConfig):
    """Area down, bilinear up: a stand-in for a VAE that needs no weights."""

    kind: str = "mock"
    """Which autoencoder: kl, tiny, mock, pixel_unshuffle or identity."""

    down_factor: int = 4
    """Frame size over latent size."""

    min_psnr: float = 12.0
    """Training frames must survive encode and decode with at least this PSNR in dB, checked at start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_factor(self.down_factor)


@dataclass
class PixelUnshuffleConfig(AutoencoderConfig):
    """Lossless: every f x f block of pixels becomes 3 f^2 channels."""

    kind: str = "pixel_unshuffle"
    """Which autoencoder: kl, tiny, mock, pixel_unshuffle or identity."""

    down_factor: int = 2
    """Frame size over latent size; the latents have 3 times its square channels."""

    min_psnr: float = 60.0
    """Training frames must survive encode and decode with at least this PSNR in dB, checked at start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_factor(self.down_factor)


@dataclass
class IdentityConfig(AutoencoderConfig):
    """The pixels themselves are the latents."""

    kind: str = "identity"
    """Which autoencoder: kl, tiny, mock, pixel_unshuffle or identity."""

    channels: Literal[1, 3] = 3
    """Latent channels; 1 for grey pictures, whose three colours are equal."""

    min_psnr: float = 60.0
    """Training frames must survive encode and decode with at least this PSNR in dB, checked at start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels == 1 and self.pixel_norm != "centered":
            raise UserError(
                "autoencoder.pixel_norm: imagenet changes the colours' balance; use centered with channels 1"
            )


class MockAutoencoder(Autoencoder):
    """3 latent channels, in [-1, 1] with the centered pixel norm; what is finer than f pixels is lost."""

    def encode_images(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.down_factor)

    def decode_images(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents, scale_factor=self.down_factor, mode="bilinear", align_corners=False)


class PixelUnshuffleAutoencoder(Autoencoder):
    """3 f^2 latent channels; decode(encode(x)) is x after rounding to uint8."""

    def encode_images(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images, self.down_factor)

    def decode_images(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(latents, self.down_factor)


class IdentityAutoencoder(Autoencoder):
    """One latent position for each pixel."""

    def encode_images(self, images: Tensor) -> Tensor:
        return images if self.latent_channels == 3 else images.mean(dim=1, keepdim=True)

    def decode_images(self, latents: Tensor) -> Tensor:
        return latents.expand(-1, 3, -1, -1)


@AUTOENCODERS.register("mock", MockConfig)
def build_mock(config: MockConfig) -> Autoencoder:
    name = f"the mock autoencoder (down_factor {config.down_factor})"
    return MockAutoencoder(config, name=name, latent_channels=3, down_factor=config.down_factor)


@AUTOENCODERS.register("pixel_unshuffle", PixelUnshuffleConfig)
def build_pixel_unshuffle(config: PixelUnshuffleConfig) -> Autoencoder:
    name = f"the pixel-unshuffle autoencoder (down_factor {config.down_factor})"
    factor = config.down_factor
    return PixelUnshuffleAutoencoder(config, name=name, latent_channels=3 * factor**2, down_factor=factor)


@AUTOENCODERS.register("identity", IdentityConfig)
def build_identity(config: IdentityConfig) -> Autoencoder:
    name = f"the identity autoencoder (channels {config.channels})"
    return IdentityAutoencoder(config, name=name, latent_channels=config.channels, down_factor=1)
