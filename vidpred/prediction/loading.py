"""A predictor from a checkpoint alone: its configuration says what to build, its tensors what to put in."""

from pathlib import Path
from typing import Any, Callable, Optional, Union

import torch
from torch import nn

from vidpred import distributed
from vidpred.autoencoders import AUTOENCODERS, build_autoencoder
from vidpred.checkpoint_store import Checkpoint, read_checkpoint
from vidpred.conditioning import ConditionConfig, Conditioner, ConditioningConfig, condition_shape
from vidpred.denoiser import Denoiser
from vidpred.diffusion import (
    DiffusionConfig,
    MotionCompensation,
    NoiseSchedule,
    SamplingConfig,
    build_parameterization,
)
from vidpred.errors import UserError
from vidpred.networks import NETWORKS, build_network
from vidpred.prediction.calibration import LatentCalibration
from vidpred.prediction.predictor import Predictor
from vidpred.registry import from_mapping


def load_predictor(
    path: Union[str, Path],
    device: Union[str, torch.device] = "auto",
    ema: bool = True,
    log: Optional[Callable[[str], None]] = None,
) -> Predictor:
    """Rebuilds the predictor of a checkpoint.

    Args:
        path: a checkpoint directory, the `checkpoints` folder above it, or a run folder (its latest one).
        device: auto (a GPU where there is one), cpu, cuda or cuda:N.
        ema: the averaged weights; False takes the trained ones.
        log: receives the named range lines of each `predict`, e.g. `print`.
    Raises:
        UserError: no such checkpoint, a damaged one, or a kind of network or autoencoder that is not
            registered (import the module that registers it first).
    """
    return predictor_from_checkpoint(read_checkpoint(path, with_state=False), device, ema, log)


def predictor_from_checkpoint(
    checkpoint: Checkpoint,
    device: Union[str, torch.device] = "auto",
    ema: bool = True,
    log: Optional[Callable[[str], None]] = None,
) -> Predictor:
    """As `load_predictor`, from a checkpoint that is already read."""
    device = distributed.choose_device(str(device))
    _require_video_prediction(checkpoint)
    config = _Sections(checkpoint)
    autoencoder = build_autoencoder(AUTOENCODERS.from_mapping(config["autoencoder"]))
    channels = autoencoder.latent_channels

    calibration = LatentCalibration(channels)
    _load(calibration, checkpoint, "calibration")
    diffusion = from_mapping(DiffusionConfig, config["diffusion"], "diffusion")
    motion = MotionCompensation(diffusion.motion_radius)
    conditions = from_mapping(ConditionConfig, checkpoint.config.get("condition", {}), "condition")
    conditioner = Conditioner(conditions) if conditions.kinds else None
    network = build_network(
        NETWORKS.from_mapping(config["network"]), channels, channels + motion.channels, condition_shape(conditions)
    )
    network = conditioner.around(network) if conditioner else network
    _load(network, checkpoint, "ema" if ema else "model")

    schedule = NoiseSchedule(diffusion.schedule)
    parameterization = build_parameterization(diffusion.parameterization, schedule, diffusion.sigma_data)
    denoiser = Denoiser(network, parameterization, diffusion.residual, motion=motion).eval().requires_grad_(False)
    return Predictor(
        denoiser.to(device),
        autoencoder.to(device),
        calibration.to(device),
        schedule,
        from_mapping(SamplingConfig, config["sampling"], "sampling"),
        from_mapping(ConditioningConfig, config["conditioning"], "conditioning").context_frames,
        config["data"]["num_frames"],
        log,
        conditioner,
    )


def _require_video_prediction(checkpoint: Checkpoint) -> None:
    """A run trains either what predicts or what it sees by; UserError where it is the latter."""
    task = checkpoint.config.get("task", "video_prediction")
    if task != "video_prediction":
        run = checkpoint.run_folder
        raise UserError(
            f"checkpoint {checkpoint.path}: is of task {task} and predicts nothing; give the checkpoint of a video "
            f"run. Its VAE is {run / 'vae'}, for autoencoder.pretrained (kind kl), its figures are in "
            f"{run / 'evaluation'}"
        )


class _Sections:
    """The sections of a checkpoint's configuration; one that is missing is a UserError with the file."""

    def __init__(self, checkpoint: Checkpoint):
        self._config = checkpoint.config
        self._file = checkpoint.path / "config.yaml"

    def __getitem__(self, section: str) -> dict[str, Any]:
        if not isinstance(self._config.get(section), dict):
            raise UserError(f"{self._file}: the section '{section}' is missing; use a checkpoint of vidpred")
        return self._config[section]


def _load(module: nn.Module, checkpoint: Checkpoint, group: str) -> None:
    if group not in checkpoint.tensors:
        raise UserError(
            f"checkpoint {checkpoint.path}: holds no {group}.safetensors, only "
            f"{', '.join(checkpoint.tensors)}; use another checkpoint"
        )
    try:
        module.load_state_dict(checkpoint.tensors[group])
    except RuntimeError as error:
        first_line = " ".join(str(error).split())[:200]
        raise UserError(
            f"checkpoint {checkpoint.path}: {group}.safetensors does not fit its config.yaml ({first_line}); "
            "use another checkpoint"
        ) from error
