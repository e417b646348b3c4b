"""One picture, which is all of the data: a red ring on white, rendered, or a file.

A pixel's coverage by the ring is clamp(1/2 + outer - d, 0, 1) clamp(1/2 + d - inner, 0, 1), d the distance of its
centre from the picture's, all in pixels: edges are anti-aliased.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from vidpred.data.clips import Clip, ClipDataset, ClipError
from vidpred.data.config import DATASETS, ClipConfig, require
from vidpred.data.picture_files import read_picture
from vidpred.data.transforms import transform

RED, WHITE = (255.0, 0.0, 0.0), (255.0, 255.0, 255.0)


@dataclass
class PictureConfig(ClipConfig):
    """A single picture, to be learnt by heart."""

    kind: str = "picture"
    num_frames: int = 1
    """Frames in a clip: 1."""
    height: int = 64
    """Height of the picture in pixels."""
    width: int = 64
    """Width of the picture in pixels."""
    file: Optional[str] = None
    """A picture file. Not set: a red ring on white is rendered."""
    ring: tuple[float, float] = (0.22, 0.36)
    """Inner and outer radius of the ring, as parts of the picture's shorter side."""
    num_val_clips: int = 8
    """Copies of the picture in validation and in test: as many samples are drawn, and compared with it."""
    num_workers: int = 0
    """Processes per rank that hand out the picture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_single_pictures()
        require(not self.flip and self.crop != "random", "crop", "the picture is one; leave crop center and flip false")
        require(self.num_val_clips >= 1, "num_val_clips", "nothing to compare with; set at least 1")
        inner, outer = self.ring
        require(0 < inner < outer <= 0.5, "ring", f"{list(self.ring)} must ascend between 0 and 0.5")


def render_ring(height: int, width: int, inner: float, outer: float) -> Tensor:
    """(3, height, width) uint8; radii in pixels."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    distance = np.hypot(rows - height / 2, columns - width / 2)
    cover = np.clip(0.5 + outer - distance, 0, 1) * np.clip(0.5 + distance - inner, 0, 1)
    red, white = (np.array(colour)[:, None, None] for colour in (RED, WHITE))
    return torch.from_numpy(np.rint(white + cover * (red - white)).astype(np.uint8))


class Picture(ClipDataset):
    """`copies` items, all of them the same clip of one frame."""

    one_clip = True

    def __init__(self, name: str, picture: Tensor, copies: int, config: PictureConfig):
        self.name = name
        self.config = config
        self._frames = picture[None]  # (1, 3, H, W)
        self._copies = copies

    def __len__(self) -> int:
        return self._copies

    def item_name(self, index: int) -> str:
        return f"{self.name}/{index}"

    def clip(self, index: int, generator: Optional[np.random.Generator]) -> Clip:
        return Clip(self._frames, torch.zeros(1), self.item_name(index))


@DATASETS.register("picture", PictureConfig)
def build_picture(config: PictureConfig, split: str, seed: int) -> Picture:
    size = config.height, config.width
    if config.file is None:
        name, picture = "ring", render_ring(*size, *(part * min(size) for part in config.ring))
    else:
        path = Path(config.file).expanduser()
        try:
            pixels = read_picture(path)
        except ClipError as error:
            require(False, "file", f"{path} {error}; give another picture")
        name, picture = path.stem, transform(pixels[None], *size, config.crop, False, None)[0].contiguous()
    return Picture(name, picture, 1 if split == "train" else config.num_val_clips, config)
