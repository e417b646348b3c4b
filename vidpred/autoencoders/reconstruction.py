"""Does the autoencoder give back what it was given? Asked at start, so that a wrong one is named at once."""

import torch
from torch import Tensor

from vidpred.autoencoders.base import Autoencoder
from vidpred.errors import UserError
from vidpred.tensor_ops import to_uint8


def reconstruction_psnr(autoencoder: Autoencoder, frames: Tensor) -> float:
    """Mean PSNR in dB over frames of decode(encode(frames)), rounded to uint8; 100 dB for an exact copy.

    `frames` is uint8 (B, T, 3, H, W) on the autoencoder's device. Not a number when the result is not finite.
    """
    decoded = autoencoder.decode(autoencoder.encode(frames))
    if not torch.isfinite(decoded).all():
        return float("nan")
    error = (to_uint8(decoded).double() - frames.double()) / 255
    squared = error.square().mean(dim=(2, 3, 4))  # (B, T)
    return float((-10 * torch.log10(squared.clamp_min(1e-10))).mean())


def check_reconstruction(autoencoder: Autoencoder, frames: Tensor, min_psnr: float) -> float:
    """Reconstruction PSNR in dB of uint8 `frames` (B, T, 3, H, W).

    A UserError names the autoencoder when it is below `min_psnr` or the reconstruction is not finite.
    """
    psnr = reconstruction_psnr(autoencoder, frames)
    if not psnr >= min_psnr:  # written this way round so that not-a-number fails too
        raise UserError(
            f"{autoencoder.name} gives training frames back at {psnr:.1f} dB PSNR, less than {min_psnr:g}: "
            "its weights or its pixel normalisation are wrong for these frames; check autoencoder.pretrained "
            "and autoencoder.pixel_norm, or lower autoencoder.min_psnr"
        )
    return psnr
