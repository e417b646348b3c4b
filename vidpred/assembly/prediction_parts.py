"""The parts of a video prediction run, built by name.

    data -> autoencoder and its check -> latent calibration -> predictor -> task
"""

import contextlib
import logging
from pathlib import Path
from typing import Callable

import torch

from vidpred import distributed, random_streams
from vidpred.assembly.conditions import settle_conditions
from vidpred.assembly.loaders import loader_opener, validation_set
from vidpred.autoencoders import Autoencoder, build_autoencoder, check_reconstruction
from vidpred.checkpoint_store import Checkpoint, read_checkpoint
from vidpred.conditioning import (
    Conditioner,
    condition_shape,
    evaluation_roles,
    generated_frames,
    trained_tasks,
    training_roles,
)
from vidpred.configuration import Config
from vidpred.data import ClipDataset, build_dataset, evenly_spaced_clips, sample_clips
from vidpred.denoiser import Denoiser
from vidpred.diagnosis.record import read_history
from vidpred.diffusion import MotionCompensation, NoiseSchedule, build_levels, build_parameterization, build_weight
from vidpred.errors import UserError
from vidpred.evaluation import Evaluation, evaluate
from vidpred.networks import build_network
from vidpred.prediction import LatentCalibration, Predictor, measure_calibration
from vidpred.training import load_weights
from vidpred.training.extra_losses import ExtraLosses
from vidpred.training.prompt_pictures import PromptPictures
from vidpred.training.video_prediction import VideoPredictionTask

logger = logging.getLogger(__name__)

CALIBRATION_CLIPS = 64


def build_task(
    config: Config, folder: Path, device: torch.device, checkpoint: Checkpoint | None
) -> VideoPredictionTask:
    """Data, autoencoder, calibration and network of a run as one task."""
    fresh = checkpoint is None
    extra_losses = ExtraLosses.of(config.diffusion, config.seed)
    extra_losses.require_pairs(config.training.micro_batch_size(distributed.world_size()))
    beginning = read_checkpoint(config.init_from, with_state=False) if fresh and config.init_from else None
    autoencoder = build_autoencoder(config.autoencoder)
    _require_fitting_grid(config, autoencoder)
    autoencoder = autoencoder.to(device)
    report = folder / "data_report.json"
    train_clips, val_clips = (build_dataset(config.data, split, config.seed, report) for split in ("train", "val"))
    logger.info("data: %d training and %d validation items of %s", len(train_clips), len(val_clips), train_clips.name)
    config.training.settle_epoch(train_clips.steps_per_epoch(config.training.batch_size))
    settle_conditions(config, train_clips, checkpoint or beginning)
    roles = training_roles(config.conditioning)
    if config.evaluation.task not in trained_tasks(config.conditioning):
        task, scheme = config.evaluation.task, config.conditioning.scheme
        logger.warning("evaluation.task: %s, which conditioning.scheme %s does not train", task, scheme)
    if checkpoint is None:
        calibration = calibrate(config, train_clips, autoencoder, device)
    else:
        calibration = LatentCalibration(autoencoder.latent_channels).to(device)
        calibration.load_state_dict(checkpoint.tensors["calibration"])
    history = None if checkpoint is None else read_history(checkpoint)
    predictor = build_predictor(config, autoencoder, calibration, device)
    if beginning is not None:
        load_weights(predictor.denoiser.network, beginning)
    return VideoPredictionTask(
        predictor, config.conditioning, build_levels(config.diffusion.levels, predictor.schedule),
        loader_opener(config, train_clips, roles, device), validation_set(config, val_clips, roles),
        _evaluation_of(config, val_clips),
        run_folder=folder, seed=config.seed, global_batch=config.training.batch_size,
        show_training_clips=config.overfit_one_batch,
        shrinkage=config.training.shrinkage, prompts=_prompts(config, predictor), extra_losses=extra_losses,
        reference=history.record if history else None,
    )


def _evaluation_of(config: Config, clips: ClipDataset) -> Callable[[Predictor, int], Evaluation]:
    """(predictor, step) -> its full evaluation on these validation clips, or on as long ones as are asked for."""
    roles = evaluation_roles(config.evaluation.task, config.conditioning.context_frames)
    if config.evaluation.num_frames is not None:
        clips = build_dataset(config.evaluation.clip_config(config.data), "val", config.seed)

    def evaluate_on_validation(current: Predictor, step: int) -> Evaluation:
        return evaluate(
            current, clips, config.evaluation, roles, seed=config.seed, step=step, ema=True, split="val",
            chosen="the weights of the training run at this step",
            num_workers=config.data.num_workers, timeout=config.data.decode_timeout,
        )  # fmt: skip

    return evaluate_on_validation


def _prompts(config: Config, predictor: Predictor) -> PromptPictures:
    words = tuple(config.training.visualize_prompts)
    if words:
        predictor.prompts(words)  # a class that is not known is refused now
    data = config.data
    frames = generated_frames(config.conditioning, data.num_frames, getattr(data, "has_images", False))
    return PromptPictures(words, data.height, data.width, config.evaluation.batch_size, config.seed, frames)


def build_predictor(
    config: Config, autoencoder: Autoencoder, calibration: LatentCalibration, device: torch.device
) -> Predictor:
    """An untrained predictor; the weights are a function of the seed."""
    # First: what a library draws while it loads its weights must not change those of the network.
    conditioner = Conditioner(config.condition) if config.condition.kinds else None
    config.condition = conditioner.config if conditioner else config.condition  # with the text encoder's SHA-256
    torch.manual_seed(int(random_streams.host_generator(config.seed, "weights", 0).integers(2**63)))
    channels = autoencoder.latent_channels
    motion = MotionCompensation(config.diffusion.motion_radius)
    network = build_network(config.network, channels, channels + motion.channels, condition_shape(config.condition))
    network = (conditioner.around(network) if conditioner else network).to(device)
    schedule = NoiseSchedule(config.diffusion.schedule)
    parameterization = build_parameterization(config.diffusion.parameterization, schedule, config.diffusion.sigma_data)
    weight = build_weight(config.diffusion.weight, parameterization, schedule)
    denoiser = Denoiser(network, parameterization, config.diffusion.residual, weight, motion)
    return Predictor(
        denoiser, autoencoder, calibration, schedule,
        config.sampling, config.conditioning.context_frames, config.data.num_frames, conditioner=conditioner,
    )


def calibrate(
    config: Config, dataset: ClipDataset, autoencoder: Autoencoder, device: torch.device
) -> LatentCalibration:
    """Moments of the latents of training clips, after a check that the autoencoder gives frames back."""
    clips = distributed.all_or_fail(lambda: _calibration_clips(config, dataset, autoencoder, device))
    calibration = measure_calibration(autoencoder.encode, clips, autoencoder.latent_channels, device)
    logger.info("%s", calibration)
    return calibration


def _calibration_clips(
    config: Config, dataset: ClipDataset, autoencoder: Autoencoder, device: torch.device
) -> list[torch.Tensor]:
    """This rank's share of the clips, (B, T, 3, H, W) uint8 each: random windows, as training sees them."""
    loader = sample_clips(
        dataset, len(evenly_spaced_clips(dataset, CALIBRATION_CLIPS)), seed=config.seed, purpose="calibration",
        batch_size=config.evaluation.batch_size, num_workers=config.data.num_workers,
        timeout=config.data.decode_timeout,
    )
    with contextlib.closing(loader):
        clips = [batch.frames for batch in loader]
    if clips:
        psnr = check_reconstruction(autoencoder, clips[0].to(device), config.autoencoder.min_psnr)
        logger.info("autoencoder %s gives training frames back at %.1f dB", autoencoder.name, psnr)
    return clips


def _require_fitting_grid(config: Config, autoencoder: Autoencoder) -> None:
    factor, smallest = autoencoder.down_factor, config.training.shrinkage(0)
    for key in ("height", "width"):
        size = getattr(config.data, key)
        require_multiple(f"data.{key}", size, factor)
        if size % (factor * smallest):
            raise UserError(
                f"training.double_resolution_at: data.{key} {size}, divided by {smallest} in the first steps, is not a "
                f"multiple of the autoencoder's down factor {factor}; give fewer steps, or a multiple of "
                f"{factor * smallest}"
            )


def require_multiple(key: str, size: int, factor: int) -> None:
    """UserError unless a picture of `size` pixels falls into whole cells of `factor` pixels."""
    if size % factor:
        raise UserError(
            f"{key}: {size} is not a multiple of the autoencoder's down factor {factor}; "
            f"choose {max(size // factor, 1) * factor}"
        )
