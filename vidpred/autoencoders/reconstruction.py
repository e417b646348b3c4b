"""Does the autoencoder give back what it was given? Asked at start, so that a wrong one is named at once."""

import torch
from torch import Tensor

from vidpred.autoencoders.base import Autoencoder
from vidpred.errors import UserError
from vidpred.tensor_ops import to_uint8


def reconstruction_psnr(autoencoder: Autoencoder, frames: Tensor) -> Tensor:
    """PSNR in dB of each frame of decode(encode(frames)), rounded to uint8, (B, T); 100 dB for an exact copy.

    `frames` is uint8 (B, T, 3, H, W) on the autoencoder's device. Not a number where the result is not finite.
    """
    decoded = autoencoder.decode(autoencoder.encode(frames))
    error = (to_uint8(decoded).double() - frames.double()) / 255
    psnr = -10 * torch.log10(error.square().mean(dim=(2, 3, 4)).clamp_min(1e-10))
    return torch.where(decoded.isfinite().all(4).all(3).all(2), psnr, torch.nan)


def check_reconstruction(autoencoder: Autoencoder, frames: Tensor, min_psnr: float) -> float:
    """Mean reconstruction PSNR in dB of uint8 `frames` (B, T, 3, H, W).

    A UserError names the autoencoder when it is below `min_psnr` or the reconstruction is not finite.
    """
    psnr = float(reconstruction_psnr(autoencoder, frames).mean())
    if not psnr >= min_psnr:  # written this way round so that not-a-number fails too
        raise UserError(
            f"{autoencoder.name} gives training frames back at {psnr:.1f} dB PSNR, less than {min_psnr:g}: "
            "its weights or its pixel normalisation are wrong for these frames; check autoencoder.pretrained "
            "and autoencoder.pixel_norm, or lower autoencoder.min_psnr"
        )
    return psnr
