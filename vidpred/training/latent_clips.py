"""Validation clips as the denoiser wants them."""

from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from vidpred.conditions import ConditionBatch
from vidpred.training.validation_set import ValidationSet


@dataclass(frozen=True)
class LatentClips:
    """A validation batch, kept on the host between validations. latents: (B, T, C, h, w), calibrated. valid: (B,) bool,
    False for what only fills up the batch. The others as of `ClipBatch`."""

    latents: Tensor
    roles: Tensor
    frame_times: Tensor
    draws: Tensor
    valid: Tensor
    conditions: ConditionBatch | None = None

    def to(self, device: torch.device) -> "LatentClips":
        """The same clips there."""
        return LatentClips(*(value if value is None else value.to(device) for value in vars(self).values()))


class EncodedValidation:
    """This rank's share of the validation clips, read and encoded once; a clip that cannot be read then is left out of
    every validation, and is one of `dropped`, by its number, with the reason.

    encode: frames (B, T, 3, H, W) uint8 -> calibrated latents.
    """

    def __init__(self, validation: ValidationSet, encode: Callable[[Tensor], Tensor]):
        self._validation, self._encode = validation, encode
        self._clips: list[LatentClips] | None = None
        self.dropped: dict[int, str] = {}

    def batches(self) -> list[LatentClips]:
        """All of them, on the host."""
        if self._clips is None:
            batches = self._validation.batches(self._validation.count)
            self._clips = [
                LatentClips(
                    self._encode(batch.frames).cpu(),
                    batch.roles,
                    batch.frame_times,
                    batch.draws,
                    valid,
                    batch.conditions,
                )
                for batch, valid in batches
            ]
            self.dropped = batches.dropped
        return self._clips
