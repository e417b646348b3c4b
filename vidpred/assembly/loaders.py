"""The batches of a run: those that it trains on, and those of its validation loss and pictures."""

from typing import Callable

import torch

from vidpred.configuration import RunConfig
from vidpred.data import ClipDataset, ClipLoader, training_loader
from vidpred.frame_roles import FrameRoles
from vidpred.training.validation_set import ValidationSet


def loader_opener(
    config: RunConfig, clips: ClipDataset, roles: FrameRoles, device: torch.device
) -> Callable[[int], ClipLoader]:
    """First step -> this rank's training batches from that step on."""

    def open_loader(first_step: int) -> ClipLoader:
        return training_loader(
            clips, seed=config.seed, global_batch=config.training.batch_size,
            accumulation=config.training.accumulation, first_step=first_step, frame_roles=roles,
            num_workers=config.data.num_workers, timeout=config.data.decode_timeout, device_type=device.type,
            repeat_draws=config.training.batch_size if config.overfit_one_batch else None,
        )

    return open_loader


def validation_set(config: RunConfig, clips: ClipDataset, roles: FrameRoles) -> ValidationSet:
    return ValidationSet(
        clips, roles, config.training.validation_clips, config.training.visualize_clips,
        batch_size=config.evaluation.batch_size, num_workers=config.data.num_workers,
        timeout=config.data.decode_timeout,
    )
