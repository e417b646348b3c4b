"""diffusers' AutoencoderKL as a network that is trained: images and noise in, reconstruction and posterior out.

Images are (N, 3, H, W) float32 in [-1, 1]; latents are (N, C, h, w) with h = H / f.
"""

import contextlib
from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn


class Reconstruction(NamedTuple):
    """`images` (N, 3, H, W) in about [-1, 1]; `mean` and `log_variance` (N, C, h, w) of the latents' posterior."""

    images: Tensor
    mean: Tensor
    log_variance: Tensor


class VaeNetwork(nn.Module):
    """`vae` is an AutoencoderKL. With `decoder_only` its encoder is frozen, and decodes the mean as users do."""

    def __init__(self, vae: nn.Module, decoder_only: bool = False):
        super().__init__()
        # Convolutions read channels-last without a transposition on GPUs and in oneDNN.
        self.vae = vae.to(memory_format=torch.channels_last).requires_grad_(True)
        self.decoder_only = decoder_only
        if decoder_only:
            vae.encoder.requires_grad_(False)
            if vae.quant_conv is not None:
                vae.quant_conv.requires_grad_(False)

    @property
    def latent_channels(self) -> int:
        return self.vae.config.latent_channels

    @property
    def down_factor(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def forward(self, images: Tensor, noise: Optional[Tensor] = None) -> Reconstruction:
        """Decodes mean + deviation * noise (N, C, h, w), or the mean where there is none."""
        with torch.no_grad() if self.decoder_only else contextlib.nullcontext():
            posterior = self.vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist
            mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        latents = mean if noise is None or self.decoder_only else mean + (0.5 * log_variance).exp() * noise
        decoded = self.vae.decode(latents.contiguous(memory_format=torch.channels_last)).sample
        return Reconstruction(decoded.float(), mean, log_variance)
