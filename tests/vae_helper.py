"""Trains a VAE as small as it can be, through the functions that a user calls."""

from pathlib import Path

from vidpred import range_checks
from vidpred.assembly import train
from vidpred.configuration import VaeConfig, load_config
from vidpred.training import RunOutcome

TINY_VAE = """
task: autoencoder
data: {num_frames: 2, height: 16, width: 16, clip_frames: 6, num_workers: 0, num_clips: 6, num_val_clips: 3,
       num_test_clips: 1}
vae: {block_out_channels: [8, 8], norm_num_groups: 4, latent_channels: 2, mid_attention: false, lpips_weight: 0,
      kl_weight: 1e-4, crop: 8}
training: {num_steps: 6, batch_size: 4, learning_rate: 1e-3, warmup_steps: 2, log_every_step: 1,
           validate_every_step: 3, validation_clips: 3, checkpoint_every_step: 3, visualize_every_step: 0,
           visualize_clips: 2, evaluate_every_step: 0}
evaluation: {num_clips: 3, lpips_net: none}
"""
ADVERSARIAL = ["--vae.adversarial.weight=0.1", "--vae.adversarial.start_step=2", "--vae.adversarial.channels=8",
               "--vae.adversarial.layers=1"]  # fmt: skip


def vae_arguments(folder: Path, *more: str) -> list[str]:
    """The command line of the run `folder`/tiny_vae."""
    return arguments_of(folder, "tiny_vae", TINY_VAE, *more)


def arguments_of(folder: Path, name: str, text: str, *more: str) -> list[str]:
    """The command line of the run `folder`/`name` by a configuration file of this text."""
    file = Path(folder) / f"{name}.yaml"
    file.write_text(text)
    return ["--config", str(file), "--runs_dir", str(folder), "--device", "cpu", *more]


def vae_config(folder: Path, *more: str) -> VaeConfig:
    return load_config(vae_arguments(folder, *more))


def train_vae(folder: Path, *more: str) -> RunOutcome:
    """Trains in this process."""
    return train_here(vae_arguments(folder, *more))


def train_here(arguments: list[str]) -> RunOutcome:
    range_checks.reset()
    try:
        return train(load_config(arguments))
    finally:
        range_checks.reset()
