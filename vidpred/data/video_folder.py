"""A folder of video files."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Optional

import numpy as np

from vidpred.data import decoding
from vidpred.data.config import DATASETS, FolderConfig
from vidpred.data.folders import build_split, find_files
from vidpred.data.probing import probe_video
from vidpred.data.selection import needs_changes
from vidpred.data.source_dataset import SourceDataset
from vidpred.data.sources import Source

EXTENSIONS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".gif")


@dataclass
class VideoFolderConfig(FolderConfig):
    """mp4, m4v, mov, avi, mkv, webm and gif files, in any depth of sub-folders."""

    kind: str = "video_folder"


class VideoFolder(SourceDataset):
    """Clips of video files; the scan has found a reader for each."""

    may_hang = True

    def __init__(self, name: str, sources: list[Source], config: FolderConfig, root: Path):
        super().__init__(name, sources, config)
        self.root = root

    def read(self, source: Source, indices: np.ndarray, size: Optional[tuple[int, int]]) -> np.ndarray:
        return decoding.read_video(self.root / source.name, source, indices, size)


def probe_one(
    root: Path, quick: bool, with_changes: bool, name: str, alive: Callable[[], None]
) -> list[Source]:
    decoding.check_file(root / name, root)
    return [probe_video(root / name, name, quick, with_changes, alive)]


def scan_variant(config: FolderConfig) -> str:
    """What the outcome of a scan of videos depends on, besides the file."""
    from importlib.metadata import version

    return f"video {config.scan} {needs_changes(config)} av{version('av')} decord{version('decord')}"


@DATASETS.register("video_folder", VideoFolderConfig)
def build_video_folder(config: FolderConfig, split: str, seed: int) -> VideoFolder:
    root = config.root_folder()
    names, ignored = find_files(root, EXTENSIONS)
    probe = partial(probe_one, root, config.scan == "quick", needs_changes(config))

    def make(name: str, sources: list[Source]) -> VideoFolder:
        return VideoFolder(name, sources, config, root)

    return build_split(config, split, names, ignored, probe, scan_variant(config), make)
