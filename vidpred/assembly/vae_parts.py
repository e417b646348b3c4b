"""The parts of a VAE's training run, built by name: data -> VAE -> discriminator -> metrics and floor -> task."""

import contextlib
import functools
import logging
from pathlib import Path

import torch
from torch import nn

from vidpred import distributed, random_streams
from vidpred.assembly.loaders import loader_opener, validation_set
from vidpred.assembly.prediction_parts import CALIBRATION_CLIPS, require_multiple
from vidpred.checkpoint_store import Checkpoint, read_checkpoint
from vidpred.configuration import VaeConfig
from vidpred.data import ClipDataset, build_dataset, evenly_spaced_clips, sample_clips
from vidpred.errors import UserError
from vidpred.evaluation.judge import Judge
from vidpred.frame_roles import all_unknown
from vidpred.training import load_weights
from vidpred.vae_training import VAES
from vidpred.vae_training.discriminator import PatchDiscriminator
from vidpred.vae_training.evaluation import ReconstructionResult, evaluate_reconstruction
from vidpred.vae_training.floor import PatchPca, measure_patch_pca
from vidpred.vae_training.network import VaeNetwork
from vidpred.vae_training.task import AutoencoderTask

logger = logging.getLogger(__name__)


def build_vae_task(
    config: VaeConfig, folder: Path, device: torch.device, checkpoint: Checkpoint | None
) -> AutoencoderTask:
    """Data, VAE, discriminator, metrics and floor of a run as one task."""
    fresh = checkpoint is None
    beginning = read_checkpoint(config.init_from, with_state=False) if fresh and config.init_from else None
    network = build_vae_network(config).to(device)
    discriminator = _build_discriminator(config)
    if discriminator is not None:
        discriminator.to(device)
    report = folder / "data_report.json"
    train_clips, val_clips = (build_dataset(config.data, split, config.seed, report) for split in ("train", "val"))
    logger.info("data: %d training and %d validation items of %s", len(train_clips), len(val_clips), train_clips.name)
    config.training.settle_epoch(train_clips.steps_per_epoch(config.training.batch_size))
    if beginning is not None:
        load_weights(network, beginning)
    judge = Judge(config.evaluation, device)
    judge.fit(config.data.height, config.data.width)

    @functools.cache
    def floor() -> PatchPca:
        return _measure_floor(config, train_clips, network)

    def evaluate_on_validation(current: nn.Module, step: int) -> ReconstructionResult:
        return evaluate_reconstruction(
            current, val_clips, config.evaluation, judge, floor(), split="val", step=step,
            num_workers=config.data.num_workers, timeout=config.data.decode_timeout,
        )

    return AutoencoderTask(
        network, discriminator, config.vae, judge, loader_opener(config, train_clips, all_unknown, device),
        validation_set(config, val_clips, all_unknown), evaluate_on_validation,
        run_folder=folder, seed=config.seed,
        repeat_draws=config.training.batch_size if config.overfit_one_batch else None,
    )


def build_vae_network(config: VaeConfig) -> VaeNetwork:
    """The VAE as the run finds it; a new one's weights are a function of the seed."""
    _seed_weights(config, "weights")
    vae = VAES.build(config.vae)
    network = VaeNetwork(vae, decoder_only=getattr(config.vae, "part", "all") == "decoder")
    for key in ("height", "width"):
        require_multiple(f"data.{key}", getattr(config.data, key), network.down_factor)
    if config.vae.crop is not None:
        require_multiple("vae.crop", config.vae.crop, network.down_factor)
    return network


def _build_discriminator(config: VaeConfig) -> PatchDiscriminator | None:
    adversarial = config.vae.adversarial
    if adversarial.weight == 0:
        return None
    side = config.vae.crop or min(config.data.height, config.data.width)
    if side // 2**adversarial.layers < 3:
        raise UserError(
            f"vae.adversarial.layers: {adversarial.layers} layers leave nothing of a picture of {side} pixels; "
            "lower it, or train on larger pictures"
        )
    _seed_weights(config, "discriminator weights")
    return PatchDiscriminator(adversarial.channels, adversarial.layers)


def _seed_weights(config: VaeConfig, purpose: str) -> None:
    torch.manual_seed(int(random_streams.host_generator(config.seed, purpose, 0).integers(2**63)))


def _measure_floor(config: VaeConfig, dataset: ClipDataset, network: VaeNetwork) -> PatchPca:
    """Of training clips as training sees them, but for the crops: random windows."""
    loader = sample_clips(
        dataset, len(evenly_spaced_clips(dataset, CALIBRATION_CLIPS)), seed=config.seed, purpose="floor",
        batch_size=config.evaluation.batch_size, num_workers=config.data.num_workers,
        timeout=config.data.decode_timeout,
    )
    with contextlib.closing(loader):
        clips = distributed.all_or_fail(lambda: [batch.frames for batch in loader])
    return measure_patch_pca(clips, network.down_factor, network.latent_channels)
