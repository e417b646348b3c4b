"""Frames <-> latents: pretrained diffusers autoencoders, and three that need no weights.

Frames are uint8 (B, T, 3, H, W); latents are float32 (B, T, C, H/f, W/f) with f = `down_factor`.
Every constant of a latent space (scaling factor, shift, pixel mean and standard deviation) lives in here.
"""

from vidpred.autoencoders.base import AUTOENCODERS, Autoencoder, AutoencoderConfig, build_autoencoder
from vidpred.autoencoders.interpolating import IdentityConfig, MockConfig, PixelUnshuffleConfig
from vidpred.autoencoders.pretrained import KLConfig, TinyConfig, load_kl
from vidpred.autoencoders.reconstruction import check_reconstruction, reconstruction_psnr

__all__ = [
    "AUTOENCODERS",
    "Autoencoder",
    "AutoencoderConfig",
    "IdentityConfig",
    "KLConfig",
    "MockConfig",
    "PixelUnshuffleConfig",
    "TinyConfig",
    "build_autoencoder",
    "check_reconstruction",
    "load_kl",
    "reconstruction_psnr",
]
