"""The data set that cuts clips out of sources; its kinds differ in how frames are read."""

import abc
import dataclasses
from typing import Any, Optional

import numpy as np
import torch

from vidpred.conditions import ClipConditions
from vidpred.data.clips import Clip, ClipDataset, ClipError
from vidpred.data.config import ClipConfig
from vidpred.data.item_conditions import ItemConditions
from vidpred.data.selection import disjoint_starts, starts_by_stride
from vidpred.data.sources import Source, window
from vidpred.data.transforms import decoding_size, transform


class SourceDataset(ClipDataset):
    """Clips cut from sources; a kind adds how frames of a source are read."""

    report: Any = None
    conditions: Optional[ItemConditions] = None
    """What the items are besides their frames; None where nothing is known of them."""
    smallest_crop: float = 1.0
    """The smallest window that is cut out for training, as a part of the largest one's sides."""

    def __init__(self, name: str, sources: list[Source], config: ClipConfig):
        self.name = name
        self.sources = sources
        self.config = config

    @abc.abstractmethod
    def read(self, source: Source, indices: np.ndarray, size: Optional[tuple[int, int]]) -> np.ndarray:
        """Frames (T, h, w, 3) uint8 RGB at `indices` (T,), ascending. Raises ClipError.

        `size` (h, w) is what a reader that can shrink frames as it decodes should return; others, and all where
        it is None, return the source's own size.
        """

    def add_conditions(self, conditions: ItemConditions) -> None:
        """From now on clips come with these."""
        self.conditions = conditions
        self.class_names = conditions.class_names
        self.has_text = conditions.texts is not None
        self.action_scale = conditions.action_scale

    def __len__(self) -> int:
        return len(self.sources)

    def item_name(self, index: int) -> str:
        return self.sources[index].name

    def clip(self, index: int, generator: Optional[np.random.Generator]) -> Clip:
        if generator is None:
            return self.fixed_clip(index, 0)
        possible = starts_by_stride(self.sources[index], self.config)
        # Of one stride nothing is drawn: without max_frame_stride the other draws are what they always were.
        chosen = int(generator.integers(len(possible))) if len(possible) > 1 else 0
        stride, starts = list(possible.items())[chosen]
        return self._cut(index, int(starts[generator.integers(len(starts))]), generator, stride)

    def num_windows(self, index: int) -> int:
        try:
            return len(disjoint_starts(self.sources[index], self.config))
        except ClipError:
            return 1  # The reason is told, and dealt with, where the clip is read.

    def fixed_clip(self, index: int, window: int) -> Clip:
        return self._cut(index, int(disjoint_starts(self.sources[index], self.config)[window]), None)

    def _cut(
        self, index: int, start: int, generator: Optional[np.random.Generator], stride: Optional[int] = None
    ) -> Clip:
        source, config = self.sources[index], self.config
        indices, times = window(source, config, start, stride)
        size = decoding_size(source.height, source.width, config.height, config.width, config.crop)
        frames = self.read(source, indices, size)
        pixels = transform(
            frames, config.height, config.width, config.crop, config.flip, generator, self.smallest_crop
        )
        conditions = self._conditions(source, indices, generator)
        return Clip(pixels, torch.from_numpy(times), source.name, conditions)

    def _conditions(
        self, source: Source, indices: np.ndarray, generator: Optional[np.random.Generator]
    ) -> Optional[ClipConditions]:
        if self.conditions is None:
            return None
        conditions, templates = self.conditions.of(source, indices), self.conditions.prompt_templates
        if not templates:
            return conditions
        # Drawn for an empty text too: what else is drawn of a clip does not depend on its text.
        template = templates[0 if generator is None else int(generator.integers(len(templates)))]
        return dataclasses.replace(conditions, text=conditions.text and template.replace("{}", conditions.text))
