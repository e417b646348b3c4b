"""Clips: the typed records that travel from the data room to every other one.

T frames of one clip, C = 3 channels (RGB), H x W pixels, uint8. B clips in a batch.
Frame times are in units of the clip's frame interval and begin at 0.
"""

import abc
import zipfile
import zlib
from dataclasses import dataclass
from types import MappingProxyType
from typing import Mapping, Optional

import numpy as np
import torch
from torch import Tensor

from vidpred.conditions import ClipConditions, ConditionBatch
from vidpred.frame_roles import GIVEN


# What a damaged .npz file raises, besides OSError, ValueError and EOFError.
DAMAGES = (zipfile.BadZipFile, zlib.error, NotImplementedError)


class ClipError(Exception):
    """An item cannot give a clip (damaged, gone, too short); the message is the reason, without the name."""


@dataclass
class Clip:
    frames: Tensor  # (T, C, H, W) uint8, of any strides
    frame_times: Tensor  # (T,) float32
    name: str
    conditions: Optional[ClipConditions] = None


@dataclass
class ClipBatch:
    """`roles` are those of `vidpred.frame_roles`; all randomness of a clip is a function of its number in `draws`."""

    frames: Tensor  # (B, T, C, H, W) uint8, colours last in memory
    roles: Tensor  # (B, T) uint8
    frame_times: Tensor  # (B, T) float32
    draws: Tensor  # (B,) int64
    names: list[str]
    conditions: Optional[ConditionBatch] = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ClipBatch":
        return ClipBatch(
            self.frames.to(device, non_blocking=non_blocking),
            self.roles.to(device, non_blocking=non_blocking),
            self.frame_times.to(device, non_blocking=non_blocking),
            self.draws.to(device, non_blocking=non_blocking),
            self.names,
            self.conditions and self.conditions.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "ClipBatch":
        return ClipBatch(
            self.frames.pin_memory(),
            self.roles.pin_memory(),
            self.frame_times.pin_memory(),
            self.draws.pin_memory(),
            self.names,
            self.conditions and self.conditions.pin_memory(),
        )

    def first(self, count: int) -> "ClipBatch":
        """The first `count` clips, or all where there are fewer."""
        return ClipBatch(
            self.frames[:count], self.roles[:count], self.frame_times[:count], self.draws[:count], self.names[:count],
            self.conditions and self.conditions.rows(range(min(count, len(self)))),
        )  # fmt: skip

    @property
    def given(self) -> Tensor:
        """(B, T) bool: the frames that the network knows."""
        return self.roles == GIVEN

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> tuple:
        # From a worker, every tensor travels as a file descriptor of its own; that pays for the pixels alone.
        small = (values.numpy() for values in (self.roles, self.frame_times, self.draws))
        return self.frames, *small, self.names, self.conditions

    def __setstate__(self, state: tuple) -> None:
        self.frames, *small, self.names, self.conditions = state
        self.roles, self.frame_times, self.draws = map(torch.from_numpy, small)


class ClipDataset(abc.ABC):
    """The items of one split. One's own kind of data implements the four without a body here and registers
    its builder; the rest may stay as it is.
    """

    name: str
    substitute: Optional[str] = None
    """What took the place of the data that was asked for and is not there; None where it is."""
    may_hang: bool = False
    """Whether reading a clip can hang or crash, as video decoders do. Such clips are validated and evaluated
    from processes of their own, even with data.num_workers 0."""
    one_clip: bool = False
    """Whether all clips of all splits are the same one, so that even what is generated from nothing has a truth."""
    class_names: tuple[str, ...] = ()
    """The classes of the clips of all splits, sorted; empty where clips have none."""
    has_text: bool = False
    """Whether clips come with a text; which of them do not, `lacking` says."""
    lacking: Mapping[str, str] = MappingProxyType({})
    """Kind of condition -> the part of the data whose clips all come without it; empty where there is none."""
    action_scale: tuple[float, ...] = ()
    """The size of each of the numbers of an action (root mean square over the training data); empty where clips have no
    actions."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of items (files, mostly) in the split; an item gives one clip per draw."""

    @abc.abstractmethod
    def clip(self, index: int, generator: Optional[np.random.Generator]) -> Clip:
        """A clip of item `index`.

        The generator decides window, crop and flip, so that equal generators give equal clips; None asks for
        the fixed clip of evaluation: first window, centre crop, no flip. Raises ClipError.
        """

    @abc.abstractmethod
    def item_name(self, index: int) -> str:
        """A name that stays the same from run to run (a path relative to the root)."""

    def steps_per_epoch(self, batch_size: int) -> int:
        """Training steps of `batch_size` clips until every item was seen once."""
        return -(-len(self) // batch_size)

    def num_windows(self, index: int) -> int:
        """How many fixed clips without common frames item `index` has; more than one is used where a split
        has fewer items than clips are wanted."""
        return 1

    def fixed_clip(self, index: int, window: int) -> Clip:
        """Fixed clip `window` of num_windows(index), in their order in time: centre crop, no flip. Raises
        ClipError."""
        return self.clip(index, None)


def collate(clips: list[Clip], roles: np.ndarray, draws: list[int]) -> ClipBatch:
    """Stacks clips of equal shape; `roles` is (B, T)."""
    shapes = {tuple(clip.frames.shape) for clip in clips}
    if len(shapes) > 1:
        raise ValueError(f"clips of one batch differ in shape: {sorted(shapes)} ({clips[0].name}, ...)")
    num_frames, colors, height, width = clips[0].frames.shape
    # In memory as decoders give them: rearranging bytes costs ten times what copying them does.
    frames = torch.empty((len(clips), num_frames, height, width, colors), dtype=torch.uint8)
    frames = frames.permute(0, 1, 4, 2, 3)
    for row, clip in zip(frames, clips):
        # The one copy of the pixels; a clip may be a view of what the decoder returned.
        row.copy_(clip.frames)
    return ClipBatch(
        frames=frames,
        roles=torch.from_numpy(np.ascontiguousarray(roles, dtype=np.uint8)),
        frame_times=torch.stack([clip.frame_times for clip in clips]),
        draws=torch.tensor(draws, dtype=torch.int64),
        names=[clip.name for clip in clips],
        conditions=ConditionBatch.stack([clip.conditions for clip in clips]),
    )
