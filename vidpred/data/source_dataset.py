"""The data set that cuts clips out of sources; its kinds differ in how frames are read."""

import abc
from typing import Any, Optional

import numpy as np
import torch

from vidpred.data.clips import Clip, ClipDataset
from vidpred.data.config import ClipConfig
from vidpred.data.selection import allowed_starts
from vidpred.data.sources import Source, window
from vidpred.data.transforms import transform


class SourceDataset(ClipDataset):
    """Clips cut from sources; a kind adds how frames of a source are read."""

    report: Any = None

    def __init__(self, name: str, sources: list[Source], config: ClipConfig):
        self.name = name
        self.sources = sources
        self.config = config

    @abc.abstractmethod
    def read(self, source: Source, indices: np.ndarray) -> np.ndarray:
        """Frames (T, h, w, 3) uint8 RGB at `indices` (T,), ascending. Raises ClipError."""

    def __len__(self) -> int:
        return len(self.sources)

    def item_name(self, index: int) -> str:
        return self.sources[index].name

    def clip(self, index: int, generator: Optional[np.random.Generator]) -> Clip:
        source, config = self.sources[index], self.config
        starts = allowed_starts(source, config)
        chosen = 0 if generator is None else int(generator.integers(len(starts)))
        indices, times = window(source, config, int(starts[chosen]))
        frames = self.read(source, indices)
        pixels = transform(frames, config.height, config.width, config.crop, config.flip, generator)
        return Clip(frames=pixels, frame_times=torch.from_numpy(times), name=source.name)
