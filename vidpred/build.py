"""From a configuration to a training run: parts are built here, by name, and put together once.

    folder and checks -> data -> autoencoder and its check -> latent calibration -> predictor -> task -> trainer
"""

import contextlib
import logging
from pathlib import Path
from typing import Any, Iterator

import torch
import yaml

from vidpred import distributed, random_streams, range_checks
from vidpred.autoencoders import Autoencoder, build_autoencoder, check_reconstruction
from vidpred.checkpoint_store import Checkpoint, CheckpointStore, newest_run, read_checkpoint
from vidpred.conditioning import evaluation_roles, trained_tasks, training_roles
from vidpred.configuration import Config, load_config
from vidpred.data import ClipDataset, ClipLoader, build_dataset, evenly_spaced_clips, sample_clips, training_loader
from vidpred.denoiser import Denoiser
from vidpred.diagnosis import Subject, subject_from_checkpoint
from vidpred.diffusion import MotionCompensation, NoiseSchedule, build_levels, build_parameterization, build_weight
from vidpred.errors import UserError
from vidpred.evaluation import Evaluation, evaluate
from vidpred.networks import build_network
from vidpred.prediction import LatentCalibration, Predictor, measure_calibration
from vidpred.training import (
    RunOutcome,
    Trainer,
    build_loggers,
    latest_checkpoint,
    load_weights,
    setup_console,
)
from vidpred.training.video_prediction import ValidationSet, VideoPredictionTask

logger = logging.getLogger(__name__)

CALIBRATION_CLIPS = 64
# Of the default preset, as much as an untrained model needs to be looked at: rendering more would take longer.
FEW_CLIPS = ["--data.num_clips=64", "--data.num_val_clips=16", "--data.num_test_clips=1"]

# Changed between two starts of one run, these make another model or other data of it, so a resume refuses them.
FIXED_KEYS = (
    "data", "autoencoder", "network", "conditioning", "diffusion", "seed", "init_from", "overfit_one_batch",
    "training.batch_size",  # running draw numbers are counted in batches
)
FREE_KEYS = (
    "data.root", "data.num_workers", "data.decode_timeout", "data.cache", "data.max_bad_fraction",
    "autoencoder.frames_per_chunk", "autoencoder.half", "autoencoder.min_psnr", "network.activation_checkpointing",
)


def train(config: Config) -> RunOutcome:
    """Trains, or goes on with, the run that `config` names; every process of torchrun calls it."""
    with distributed.process_group(config.device) as device:
        setup_console()
        range_checks.reset()
        config.training.micro_batch_size(distributed.world_size())  # refused here, before any data is touched
        folder = Path(config.runs_dir) / config.name
        store = CheckpointStore(folder / "checkpoints")
        checkpoint = latest_checkpoint(store)
        if checkpoint is not None:
            _require_same_run(config, checkpoint)
        _save_resolved(config, folder)
        task = build_task(config, folder, device, checkpoint)
        resolved, step = config.resolved(), checkpoint.step if checkpoint else 0
        loggers = build_loggers(config.logging, config.wandb, folder, config.name, resolved, step)
        trainer = Trainer(
            task, config.training, store, loggers, device,
            run_folder=folder, resolved=resolved, seed=config.seed, resume_from=checkpoint,
        )
        return trainer.run()


def build_task(config: Config, folder: Path, device: torch.device, checkpoint: Checkpoint | None) -> VideoPredictionTask:
    """Data, autoencoder, calibration and network of a run as one task."""
    fresh = checkpoint is None
    beginning = read_checkpoint(config.init_from, with_state=False) if fresh and config.init_from else None
    autoencoder = build_autoencoder(config.autoencoder)
    _require_fitting_grid(config, autoencoder)
    autoencoder = autoencoder.to(device)
    report = folder / "data_report.json"
    train_clips, val_clips = (build_dataset(config.data, split, config.seed, report) for split in ("train", "val"))
    logger.info("data: %d training and %d validation items of %s", len(train_clips), len(val_clips), train_clips.name)
    roles = training_roles(config.conditioning)
    evaluated = evaluation_roles(config.evaluation.task, config.conditioning.context_frames)
    if config.evaluation.task not in trained_tasks(config.conditioning):
        scheme = config.conditioning.scheme
        logger.warning("evaluation.task: %s, which conditioning.scheme %s does not train", config.evaluation.task, scheme)
    if checkpoint is None:
        calibration = calibrate(config, train_clips, autoencoder, device)
    else:
        calibration = LatentCalibration(autoencoder.latent_channels).to(device)
        calibration.load_state_dict(checkpoint.tensors["calibration"])
    predictor = build_predictor(config, autoencoder, calibration, device)
    if beginning is not None:
        load_weights(predictor.denoiser.network, beginning)

    def open_loader(first_step: int) -> ClipLoader:
        return training_loader(
            train_clips, seed=config.seed, global_batch=config.training.batch_size,
            accumulation=config.training.accumulation, first_step=first_step, frame_roles=roles,
            num_workers=config.data.num_workers, timeout=config.data.decode_timeout, device_type=device.type,
            repeat_draws=config.training.batch_size if config.overfit_one_batch else None,
        )

    evaluated_clips = val_clips
    if config.evaluation.num_frames is not None:
        evaluated_clips = build_dataset(config.evaluation.clip_config(config.data), "val", config.seed)

    def evaluate_on_validation(current: Predictor, step: int) -> Evaluation:
        return evaluate(
            current, evaluated_clips, config.evaluation, evaluated, seed=config.seed, step=step, ema=True, split="val",
            chosen="the weights of the training run at this step",
            num_workers=config.data.num_workers, timeout=config.data.decode_timeout,
        )

    validation = ValidationSet(
        val_clips, roles, config.training.validation_clips, config.training.visualize_clips,
        batch_size=config.evaluation.batch_size, num_workers=config.data.num_workers,
        timeout=config.data.decode_timeout,
    )
    return VideoPredictionTask(
        predictor, config.conditioning, build_levels(config.diffusion.levels, predictor.schedule),
        open_loader, validation, evaluate_on_validation,
        run_folder=folder, seed=config.seed, show_training_clips=config.overfit_one_batch,
    )


def build_predictor(
    config: Config, autoencoder: Autoencoder, calibration: LatentCalibration, device: torch.device
) -> Predictor:
    """An untrained predictor; the weights are a function of the seed."""
    torch.manual_seed(int(random_streams.host_generator(config.seed, "weights", 0).integers(2**63)))
    channels = autoencoder.latent_channels
    motion = MotionCompensation(config.diffusion.motion_radius)
    network = build_network(config.network, channels, channels + motion.channels).to(device)
    schedule = NoiseSchedule(config.diffusion.schedule)
    parameterization = build_parameterization(config.diffusion.parameterization, schedule, config.diffusion.sigma_data)
    weight = build_weight(config.diffusion.weight, parameterization, schedule)
    denoiser = Denoiser(network, parameterization, config.diffusion.residual, weight, motion)
    return Predictor(
        denoiser, autoencoder, calibration, schedule,
        config.sampling, config.conditioning.context_frames, config.data.num_frames,
    )


def open_subject(checkpoint: Path | None, preset: Path, device: str = "auto") -> Subject:
    """The model that a tool examines: `checkpoint`, else the newest run under runs/, else `preset` untrained.

    `preset` is a configuration file of rendered shapes. Raises UserError.
    """
    path = checkpoint or newest_run("runs")
    if path is not None:
        return subject_from_checkpoint(path, device)
    config = load_config(FEW_CLIPS, preset)
    chosen = distributed.choose_device(device)
    autoencoder = build_autoencoder(config.autoencoder).to(chosen)
    calibration = calibrate(config, build_dataset(config.data, "train", config.seed), autoencoder, chosen)
    predictor = build_predictor(config, autoencoder, calibration, chosen)
    predictor.denoiser.eval().requires_grad_(False)
    return Subject(
        title=f"untrained model of {preset.name} (no run under {Path('runs').absolute()})",
        predictor=predictor, weights=predictor.denoiser.network.state_dict(), averaged=None, ema_updates=None,
        data=config.data, conditioning=config.conditioning, seed=config.seed, folder=Path.cwd(), name="untrained",
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
    factor = autoencoder.down_factor
    for key in ("height", "width"):
        size = getattr(config.data, key)
        if size % factor:
            raise UserError(
                f"data.{key}: {size} is not a multiple of the autoencoder's down factor {factor}; "
                f"choose {max(size // factor, 1) * factor}"
            )


def _require_same_run(config: Config, checkpoint: Checkpoint) -> None:
    """A resume must be of the same model and data; the length, the rates and the rhythms may change."""
    before, now = (_identity(values) for values in (checkpoint.config, config.resolved()))
    for key in sorted(before.keys() & now.keys()):  # a key that one of them lacks is of another version
        if before[key] != now[key]:
            raise UserError(
                f"{key}: is {now[key]}, but the run in {checkpoint.path.parents[1]} was started with "
                f"{before[key]}; give the old value to go on, or another --name for a new run"
            )


def _identity(resolved: dict[str, Any]) -> dict[str, Any]:
    """What must not change within a run, by dotted key."""
    fixed = {key: value for key, value in _flat(resolved) if key.startswith(FIXED_KEYS)}
    return {key: value for key, value in fixed.items() if key not in FREE_KEYS}


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _save_resolved(config: Config, folder: Path) -> None:
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config.resolved(), sort_keys=False), encoding="utf-8")
