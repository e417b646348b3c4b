"""Edits of checkpoints and VAE folders: each makes a copy in which one thing is wrong, with checksums that hold."""

import shutil
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor, nn

from vidpred.autoencoders import AUTOENCODERS, build_autoencoder
from vidpred.assembly import build_predictor
from vidpred.checkpoint_store import Checkpoint, CheckpointStore, read_checkpoint
from vidpred.configuration import config_from_resolved
from vidpred.prediction import LatentCalibration

Edit = Callable[[Checkpoint], None]
NETWORKS = ("model", "ema")
HEAD = "head."  # names of the network's last layer begin with it


def edited(source: Path, run: Path, *edits: Edit) -> Path:
    """The checkpoint below the run folder `run` that is `source` after `edits`, which change tensors, state and
    configuration in place."""
    checkpoint = read_checkpoint(source)
    for edit in edits:
        edit(checkpoint)
    store = CheckpointStore(run / "checkpoints")
    return store.save(checkpoint.step, checkpoint.tensors, checkpoint.state, checkpoint.config, checkpoint.info)


def set_keys(keys: dict[str, Any]) -> Edit:
    """Changes the configuration: dotted name -> plain value."""

    def edit(checkpoint: Checkpoint) -> None:
        for name, value in keys.items():
            *sections, key = name.split(".")
            place = checkpoint.config
            for section in sections:
                place = place[section]
            place[key] = value

    return edit


def spoil(generator: np.random.Generator, value: float) -> Edit:
    """Puts `value` (NaN, infinity) into one place of one tensor of the network, trained and averaged."""

    def edit(checkpoint: Checkpoint) -> None:
        names = sorted(name for name, tensor in checkpoint.tensors["ema"].items() if tensor.ndim > 1)
        name = names[int(generator.integers(len(names)))]
        for group in NETWORKS:
            tensor = checkpoint.tensors[group][name]
            tensor.view(-1)[int(generator.integers(tensor.numel()))] = value

    return edit


def scale_weights(factor: float, part: str = "") -> Edit:
    """Multiplies the floating tensors whose names begin with `part`, trained and averaged."""

    def edit(checkpoint: Checkpoint) -> None:
        for group in NETWORKS:
            for name, tensor in checkpoint.tensors[group].items():
                if name.startswith(part) and tensor.is_floating_point():
                    tensor.mul_(factor)

    return edit


def shift_head(bias: float, gain: float = 1.0) -> Edit:
    """Changes what the network says of the latents: times `gain`, plus `bias`. What it says of motion stays."""

    def edit(checkpoint: Checkpoint) -> None:
        outputs = _latent_outputs(checkpoint)
        for group in NETWORKS:
            checkpoint.tensors[group]["head.weight"][outputs] *= gain
            checkpoint.tensors[group]["head.bias"][outputs] *= gain
            checkpoint.tensors[group]["head.bias"][outputs] += bias

    return edit


def _latent_outputs(checkpoint: Checkpoint) -> slice:
    """Rows of the last layer that are about latents: they come before those of the motion."""
    channels = len(checkpoint.tensors["calibration"]["shift"])
    return slice(0, channels * checkpoint.config["network"]["patch_size"] ** 2)


def without_calibration(checkpoint: Checkpoint) -> None:
    """Latents are diffused as the autoencoder gives them."""
    held = checkpoint.tensors["calibration"]
    checkpoint.tensors["calibration"] = LatentCalibration(len(held["shift"])).state_dict()


def calibrated_twice(checkpoint: Checkpoint) -> None:
    """((raw - shift) / scale - shift) / scale, as one calibration."""
    held = checkpoint.tensors["calibration"]
    shift, scale = held["shift"].clone(), held["scale"].clone()
    held["shift"], held["scale"] = shift * (1 + scale), scale.square()


def average_is(group: str, updates: int | None = None) -> Edit:
    """Puts the tensors of `group` (model: the trained weights; start: those before training) in the average's place."""

    def edit(checkpoint: Checkpoint) -> None:
        tensors = initial_weights(checkpoint) if group == "start" else checkpoint.tensors[group]
        checkpoint.tensors["ema"] = {name: tensor.clone() for name, tensor in tensors.items()}
        if updates is not None:
            checkpoint.state["ema_updates"] = updates

    return edit


def initial_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights before the first step, which are a function of the run's seed."""
    config = config_from_resolved(checkpoint.config)
    autoencoder = build_autoencoder(AUTOENCODERS.from_mapping(checkpoint.config["autoencoder"]))
    calibration = LatentCalibration(autoencoder.latent_channels)
    predictor = build_predictor(config, autoencoder, calibration, torch.device("cpu"))
    return predictor.denoiser.network.state_dict()


# Folders of VAEs -------------------------------------------------------------------------------------------


def edited_vae(source: Path, target: Path, change: Callable[[nn.Module], None]) -> Path:
    """A copy of a diffusers folder after `change` of the network."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    kind = AutoencoderKL if "AutoencoderKL" in (source / "config.json").read_text() else AutoencoderTiny
    network = kind.from_pretrained(source, low_cpu_mem_usage=False)
    with torch.no_grad():
        change(network)
    shutil.rmtree(target, ignore_errors=True)
    network.save_pretrained(target, safe_serialization=True)
    return target


def swap_input(network: nn.Module) -> None:
    """The encoder takes red for blue."""
    kernel = next(network.encoder.parameters())  # of the first convolution: (width, 3, 3, 3)
    kernel.copy_(kernel.flip(1))


def swap_output(network: nn.Module) -> None:
    """The decoder gives red as blue."""
    convolution = [module for module in network.decoder.modules() if isinstance(module, nn.Conv2d)][-1]
    for parameter in convolution.parameters():  # (3, width, 3, 3) and (3,)
        parameter.copy_(parameter.flip(0))


def reinitialise(seed: int) -> Callable[[nn.Module], None]:
    """Weights as they are before any were loaded."""

    def change(network: nn.Module) -> None:
        torch.manual_seed(seed)
        fresh = type(network).from_config(network.config)
        network.load_state_dict(fresh.state_dict())

    return change


def rescale(power: float) -> Callable[[nn.Module], None]:
    """scaling_factor to the power of `power`: 0 is none, 2 is twice."""

    def change(network: nn.Module) -> None:
        network.register_to_config(scaling_factor=float(network.config.scaling_factor) ** power)

    return change
