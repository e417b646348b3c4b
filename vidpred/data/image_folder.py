"""A folder of pictures: every picture is a clip of one frame."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from vidpred import distributed
from vidpred.data.clips import Clip, ClipError
from vidpred.data.config import DATASETS, FolderConfig, require
from vidpred.data.folders import build_split, find_files
from vidpred.data.item_conditions import METADATA, read_metadata
from vidpred.data.picture_files import EXTENSIONS, read_picture
from vidpred.data.selection import ClipRejected
from vidpred.data.source_dataset import SourceDataset
from vidpred.data.sources import Source
from vidpred.data.transforms import jitter_colors


@dataclass
class ImageFolderConfig(FolderConfig):
    """png, jpg, jpeg, bmp, webp, tif and tiff files, in any depth of sub-folders; each is a clip of one frame."""

    kind: str = "image_folder"
    num_frames: int = 1
    """Frames in a clip: 1."""
    max_enlargement: float = 2.0
    """Pictures that would have to be enlarged by more than this are too small to be used."""
    min_crop: float = 1.0
    """With crop random: the smallest window that is cut out for training, as a part of the largest one's sides."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation of training pictures vary by up to this part of themselves."""
    min_score: Optional[float] = None
    """Train only on pictures with at least this score in root/metadata.jsonl; validation and test keep all
    of theirs."""
    score_column: str = "score"
    """The score's name in metadata.jsonl."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_single_pictures()
        require(self.max_enlargement > 0, "max_enlargement", f"{self.max_enlargement} is no factor; set 2, or more")
        require(0 < self.min_crop <= 1, "min_crop", f"{self.min_crop} is not a part; set above 0, to 1 at most")
        needs = "cuts windows of several sizes with crop random alone; set data.crop random, or 1"
        require(self.min_crop == 1 or self.crop == "random", "min_crop", f"{self.min_crop} {needs}")
        require(0 <= self.color_jitter < 1, "color_jitter", f"{self.color_jitter} is not possible; set 0 to below 1")
        require(not self.actions, "actions", "a picture has one frame; leave it false")


class ImageFolder(SourceDataset):
    def __init__(self, name: str, sources: list[Source], config: ImageFolderConfig, root: Path):
        super().__init__(name, sources, config)
        self.root = root
        self.smallest_crop = config.min_crop

    def read(self, source: Source, indices: np.ndarray, size: Optional[tuple[int, int]]) -> np.ndarray:
        # A window that is a part of the picture needs all of its pixels.
        return read_picture(self.root / source.name, size if self.smallest_crop == 1 else None)[None]

    def clip(self, index: int, generator: Optional[np.random.Generator]) -> Clip:
        clip = super().clip(index, generator)
        if self.config.color_jitter and generator is not None:
            clip.frames = jitter_colors(clip.frames, self.config.color_jitter, generator)
        return clip


def probe_picture(root: Path, name: str, alive: Callable[[], None]) -> list[Source]:
    """Decodes the whole picture, which a header alone does not tell to be whole. Raises ClipError."""
    height, width, _ = read_picture(root / name).shape
    return [Source(name=name, frames=1, height=height, width=width, fps=1.0, reader="pictures")]


class _Usable:
    """Whether a picture can be used, and is wanted, in its split: called as `folders.build_split` says."""

    def __init__(self, config: ImageFolderConfig, rows: dict[str, dict[str, Any]]):
        self._config, self._rows = config, rows

    def __call__(self, source: Source, split: str) -> None:
        enlargement = max(self._config.height / source.height, self._config.width / source.width)
        if enlargement > self._config.max_enlargement:
            raise ClipError(
                f"too small: {source.width}x{source.height} would be enlarged {enlargement:.3g} times, more than "
                f"data.max_enlargement {self._config.max_enlargement:g}"
            )
        least = self._config.min_score
        if least is not None and split == "train":
            score = self._score(source.name)
            if score < least:
                raise ClipRejected(f"{self._config.score_column} {score:g} is below data.min_score {least:g}")

    def _score(self, name: str) -> float:
        column = self._config.score_column
        score = self._rows.get(name, {}).get(column)
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
            raise ClipError(f"has no number '{column}' in {METADATA}")
        return score


def _rows(config: ImageFolderConfig, root: Path) -> dict[str, dict[str, Any]]:
    """What metadata.jsonl says of each picture, where the configuration makes use of it; every rank reads it."""
    if config.min_score is None and config.captions != "metadata":
        return {}
    return distributed.all_or_fail(lambda: read_metadata(root))


@DATASETS.register("image_folder", ImageFolderConfig)
def build_image_folder(config: ImageFolderConfig, split: str, seed: int) -> ImageFolder:
    from importlib.metadata import version

    root = config.root_folder()
    names, ignored = find_files(root, EXTENSIONS)
    rows, known = _rows(config, root), set(names)
    missing = {name: f"named in {METADATA}, but not there" for name in rows if name not in known}
    variant = f"pictures pillow{version('pillow')}"

    def make(name: str, sources: list[Source]) -> ImageFolder:
        return ImageFolder(name, sources, config, root)

    return build_split(
        config, split, names, ignored, partial(probe_picture, root), variant, make,
        require_usable=_Usable(config, rows), missing=missing,
    )  # fmt: skip
