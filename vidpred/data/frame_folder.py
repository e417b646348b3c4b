"""Folders of numbered frames: every folder that directly holds pictures is one clip source."""

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Optional

import numpy as np

from vidpred.data.clips import ClipError
from vidpred.data.config import DATASETS, FolderConfig, require
from vidpred.data.folders import build_split, find_files
from vidpred.data.picture_files import EXTENSIONS, read_picture
from vidpred.data.probing import Thumbnails
from vidpred.data.selection import needs_changes
from vidpred.data.source_dataset import SourceDataset
from vidpred.data.sources import Source


@dataclass
class FrameFolderConfig(FolderConfig):
    """Pictures named by number (frame_000001.png), one folder per clip, in any depth of sub-folders."""

    kind: str = "frame_folder"
    source_fps: float = 25.0
    """Frames per second of the pictures; only used together with fps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.source_fps > 0, "source_fps", f"{self.source_fps} is not possible; set a positive rate")


def numbered_pictures(folder: Path) -> list[str]:
    """The pictures of a folder by the last number in their name. Raises ClipError where there is no order."""
    names = [
        name for name in os.listdir(folder) if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
    ]
    numbers = {name: re.findall(r"\d+", os.path.splitext(name)[0]) for name in names}
    without = sorted(name for name in names if not numbers[name])
    if without:
        raise ClipError(f"'{without[0]}' has no number in its name")
    ordered = sorted(names, key=lambda name: int(numbers[name][-1]))
    for one, other in zip(ordered, ordered[1:]):
        if int(numbers[one][-1]) == int(numbers[other][-1]):
            raise ClipError(f"'{one}' and '{other}' have the same number")
    return ordered


def _read(folder: Path, name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises ClipError with the picture's name."""
    try:
        return read_picture(folder / name)
    except ClipError as error:
        raise ClipError(f"{name} {error}") from error


class FrameFolder(SourceDataset):
    def __init__(self, name: str, sources: list[Source], config: FrameFolderConfig, root: Path):
        super().__init__(name, sources, config)
        self.root = root

    def read(self, source: Source, indices: np.ndarray, size: Optional[tuple[int, int]]) -> np.ndarray:
        folder = self.root / source.name
        pictures = numbered_pictures(folder)
        if len(pictures) != source.frames:
            raise ClipError(f"has {len(pictures)} pictures, the scan counted {source.frames}")
        frames = [_read(folder, pictures[index]) for index in indices]
        if any(frame.shape != (source.height, source.width, 3) for frame in frames):
            raise ClipError("its pictures differ in size")
        return np.stack(frames)


def probe_folder(
    root: Path, fps: float, quick: bool, with_changes: bool, name: str, alive: Callable[[], None]
) -> list[Source]:
    """Reads every picture (quick: three of them). Raises ClipError."""
    pictures = numbered_pictures(root / name)
    last = len(pictures) - 1
    wanted = {0, last // 2, last} if quick and not with_changes else range(len(pictures))
    thumbnails, size = Thumbnails(), None
    for index in sorted(wanted):
        alive()
        frame = _read(root / name, pictures[index])
        if size not in (None, frame.shape):
            raise ClipError(
                f"{pictures[index]} is {frame.shape[1]}x{frame.shape[0]}, others {size[1]}x{size[0]}"
            )
        size = frame.shape
        if with_changes:
            thumbnails.add_pixels(frame)
    return [
        Source(
            name=name,
            frames=len(pictures),
            height=size[0],
            width=size[1],
            fps=fps,
            reader="images",
            changes=tuple(thumbnails.changes) if with_changes else None,
        )
    ]


@DATASETS.register("frame_folder", FrameFolderConfig)
def build_frame_folder(config: FrameFolderConfig, split: str, seed: int) -> FrameFolder:
    root = config.root_folder()
    files, ignored = find_files(root, EXTENSIONS)
    folders = sorted({os.path.dirname(name) or "." for name in files})
    changes = needs_changes(config)
    probe = partial(probe_folder, root, config.source_fps, config.scan == "quick", changes)

    def make(name: str, sources: list[Source]) -> FrameFolder:
        return FrameFolder(name, sources, config, root)

    variant = f"frames 2 {config.scan} {changes} {config.source_fps}"
    return build_split(config, split, folders, ignored, probe, variant, make)
