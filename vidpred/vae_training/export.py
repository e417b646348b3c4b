"""The VAE of a run as diffusers lays one out: `config.json` and `diffusion_pytorch_model.safetensors`."""

import os
import tempfile
from pathlib import Path

from torch import nn

MARK = "config.json"  # whoever reads a folder looks for it first


def export_vae(vae: nn.Module, folder: Path) -> None:
    """Writes `vae` (AutoencoderKL) into `folder`, which then loads as `autoencoder.pretrained`, kind kl.

    A reader finds the whole old VAE or the whole new one: within a run the weights alone change, and each file is
    replaced at once, `config.json` last. Call it on one rank.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as aside:
        vae.save_pretrained(aside, safe_serialization=True)
        folder.mkdir(exist_ok=True)
        for file in sorted(Path(aside).iterdir(), key=lambda file: file.name == MARK):
            with open(file, "rb") as written:
                os.fsync(written.fileno())
            os.replace(file, folder / file.name)
