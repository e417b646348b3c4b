"""Small VAEs for the fault bench: trained in seconds on a scene's clips, written as diffusers folders."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 16  # frames
RATE = 2e-3


@dataclass(frozen=True)
class Vae:
    """kind: kl or tiny. levels: 2 make a down factor of 2. width: of the finest level. steps: of its training; 0 leaves
    it as initialised. deviation: of a KL's latents before its scaling factor, which is one over it; 5 is about Stable
    Diffusion's, and below 1 the factor is above 1."""

    kind: str = "kl"
    levels: int = 2
    width: int = 16
    latent_channels: int = 4
    steps: int = 400
    deviation: float = 5.0
    seed: int = 0


def build(vae: Vae) -> nn.Module:
    """The network as initialised, a function of the seed."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    torch.manual_seed(vae.seed)
    if vae.kind == "tiny":
        widths, blocks = (2 * vae.width,) * vae.levels, (1,) * vae.levels
        return AutoencoderTiny(
            encoder_block_out_channels=widths, decoder_block_out_channels=widths, num_encoder_blocks=blocks,
            num_decoder_blocks=blocks, latent_channels=vae.latent_channels,
        )  # fmt: skip
    widths = tuple(vae.width * min(2**level, 2) for level in range(vae.levels))
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * vae.levels, up_block_types=("UpDecoderBlock2D",) * vae.levels,
        block_out_channels=widths, layers_per_block=1, latent_channels=vae.latent_channels, norm_num_groups=8,
        mid_block_add_attention=False,
    )  # fmt: skip


def written_vae(vae: Vae, clips: Path, folder: Path) -> Path:
    """The folder below `folder` with `vae` trained on `clips`/train/clips.npy; trained once."""
    key = json.dumps([asdict(vae), clips.name])
    target = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
    if not target.exists():
        frames = np.load(clips / "train" / "clips.npy", mmap_mode="r")
        network = train_vae(vae, frames.reshape(-1, *frames.shape[2:]))
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        network.save_pretrained(aside, safe_serialization=True)
        try:
            aside.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(aside)
    return target


def train_vae(vae: Vae, frames: np.ndarray) -> nn.Module:
    """frames (N, H, W, 3) uint8 -> the trained network."""
    network = build(vae).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    generator = np.random.default_rng(vae.seed)
    for step in range(vae.steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 20) * (1 - step / vae.steps)
        images = _images(frames[np.sort(generator.integers(len(frames), size=BATCH))])
        loss = _loss(vae, network, images)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    network.eval()
    if vae.kind == "kl":
        _widen(network, vae.deviation, _images(frames[:: max(1, len(frames) // 256)][:256]))
    return network


@torch.no_grad()
def _widen(network: nn.Module, deviation: float, images: Tensor) -> None:
    """Gives the latents this deviation, and takes it back before the decoder; scaling_factor becomes one over it."""
    factor = deviation / float(network.encode(images).latent_dist.mode().std())
    channels = network.config.latent_channels
    network.quant_conv.weight[:channels] *= factor  # the other half is the logarithm of the variance
    network.quant_conv.bias[:channels] *= factor
    network.post_quant_conv.weight /= factor
    network.register_to_config(scaling_factor=1 / deviation)


def _images(frames: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _loss(vae: Vae, network: nn.Module, images: Tensor) -> Tensor:
    if vae.kind == "tiny":
        return F.mse_loss(network.decode(network.encode(images).latents).sample, images)
    z = network.encode(images).latent_dist.mode()  # the mode is what models are trained on
    return F.mse_loss(network.decode(z).sample, images) + 1e-4 * z.square().mean()
