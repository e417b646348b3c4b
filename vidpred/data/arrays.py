"""Clips in npy, npz and HDF5 files: one array per file, of one or many clips.

Letters of a layout name the axes: N clips, T frames, C colours (1 or 3), H rows, W columns.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from vidpred.data.clips import DAMAGES, ClipError
from vidpred.data.config import DATASETS, FolderConfig, require
from vidpred.data.folders import build_split, find_files
from vidpred.data.probing import Thumbnails
from vidpred.data.scan import fingerprint
from vidpred.data.selection import needs_changes
from vidpred.data.source_dataset import SourceDataset
from vidpred.data.sources import Source

HDF5 = (".h5", ".hdf5")
EXTENSIONS = (".npy", ".npz", *HDF5)


@dataclass
class ArraysConfig(FolderConfig):
    """npy, npz or HDF5 files of uint8 (or floating point in [0, 1]) clips."""

    kind: str = "arrays"
    key: Optional[str] = None
    """The array's name inside npz and HDF5 files. Not set: the only array that has 3 to 5 axes."""
    layout: str = "auto"
    """The order of the axes, of N (clips), T (frames), C (colours), H, W: NTHWC, NTCHW, TNHW, THW, ... auto:
    N first where there are 5 axes, T, then C where an axis of 1 or 3 is last, or in its place before H."""
    source_fps: float = 25.0
    """Frames per second of the arrays; only used together with fps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.source_fps > 0, "source_fps", f"{self.source_fps} is not possible; set a positive rate")
        require(not self.actions, "actions", "side files of arrays cannot be told from the arrays; use frame_folder")
        letters = set(self.layout)
        valid = letters <= set("NTCHW") and letters >= set("THW") and len(letters) == len(self.layout)
        require(
            self.layout == "auto" or valid,
            "layout",
            f"'{self.layout}' is not known; use each of T, H, W once, and N and C where there are such axes",
        )


def guess_layout(shape: tuple[int, ...]) -> str:
    """NTHWC, NTCHW, THWC, TCHW, NTHW or THW. Raises ClipError where colours cannot be told from frames."""
    if len(shape) == 3:
        return "THW"
    if len(shape) == 5 and shape[-1] in (1, 3):
        return "NTHWC"
    if len(shape) == 5 and shape[2] in (1, 3):
        return "NTCHW"
    if len(shape) == 4 and shape[-1] in (1, 3):
        return "THWC"
    if len(shape) == 4:
        return "TCHW" if shape[1] in (1, 3) else "NTHW"
    raise ClipError(f"an array of shape {shape} is no clip in a known order; set data.layout")


@lru_cache(maxsize=2)
def _load_numpy(path: str, key: Optional[str], stamp: tuple[int, ...]) -> np.ndarray:
    """An npy file as a memory map, or one array of an npz file in memory; the last two are kept."""
    try:
        if path.lower().endswith(".npy"):
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with np.load(path, allow_pickle=False) as archive:
            shapes = {
                name: archive[name].ndim
                for name in ([key] if key else archive.files)
                if name in archive.files
            }
            return archive[_choose(shapes, key)]
    except (OSError, ValueError, EOFError, *DAMAGES) as error:
        raise ClipError(f"cannot be read: {error}") from error


def _choose(axes: dict[str, int], key: Optional[str]) -> str:
    """The name of the array among {name: number of axes}."""
    fitting = [name for name, ndim in axes.items() if 3 <= ndim <= 5]
    if key is not None and key not in axes:
        raise ClipError(f"has no array named '{key}'")
    if key is None and len(fitting) != 1:
        raise ClipError(
            f"has {len(fitting)} arrays of 3 to 5 axes ({', '.join(sorted(axes)[:5])}); set data.key"
        )
    return key if key is not None else fitting[0]


class ArrayFile:
    """One array of clips; opened per use, since HDF5 handles must not be carried across a fork."""

    def __init__(self, path: Path, config: ArraysConfig):
        self._file: Any = None
        if path.suffix.lower() in HDF5:
            self._array = self._open_hdf5(path, config.key)
        else:
            self._array = _load_numpy(str(path), config.key, tuple(fingerprint(path)))
        shape = tuple(self._array.shape)
        self.layout = guess_layout(shape) if config.layout == "auto" else config.layout
        if len(self.layout) != len(shape):
            raise ClipError(f"has an array of shape {shape}, data.layout is {self.layout}")
        self._sizes = dict(zip(self.layout, shape))
        self.rows = self._sizes.get("N", 1)
        self.frames, self.height, self.width = (self._sizes[letter] for letter in "THW")
        if self._sizes.get("C", 3) not in (1, 3) or 0 in shape:
            raise ClipError(
                f"has an array of shape {shape} ({self.layout}): 1 or 3 colours and no empty axis, please"
            )
        if self._array.dtype != np.uint8 and not np.issubdtype(self._array.dtype, np.floating):
            raise ClipError(f"has values of type {self._array.dtype}; convert them to uint8")

    def _open_hdf5(self, path: Path, key: Optional[str]) -> Any:
        import h5py

        axes: dict[str, int] = {}

        def note(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                axes[name] = item.ndim

        try:
            self._file = h5py.File(path, "r")
            self._file.visititems(note)
            return self._file[_choose(axes, key)]
        except (OSError, RuntimeError) as error:
            raise ClipError(f"cannot be read: {error}") from error

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(self, *unused: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, row: int, indices: np.ndarray) -> np.ndarray:
        """(T, H, W, 3) uint8 of clip `row`. Raises ClipError."""
        first, steps = int(indices[0]), set(np.diff(indices).tolist())
        regular = len(steps) <= 1 and 0 not in steps
        # A slice, not a list: NumPy and h5py disagree about the place of a list's axis beside an integer.
        frames = slice(first, int(indices[-1]) + 1, steps.pop() if regular and steps else 1)
        place = {"N": row, "T": frames}
        try:
            taken = np.asarray(self._array[tuple(place.get(letter, slice(None)) for letter in self.layout)])
        except (OSError, ValueError, IndexError) as error:
            raise ClipError(f"cannot be read: {error}") from error
        pixels = self._as_pixels(taken)
        return pixels if regular else pixels[np.asarray(indices) - first]

    def _as_pixels(self, taken: np.ndarray) -> np.ndarray:
        order = [letter for letter in self.layout if letter != "N"]
        if "C" not in order:
            taken, order = taken[..., None], [*order, "C"]
        taken = np.transpose(taken, [order.index(letter) for letter in "THWC"])
        if taken.dtype != np.uint8:
            if not (taken.min() >= 0 and taken.max() <= 1):
                raise ClipError(
                    "has floating point values outside [0, 1] or not finite; convert them to uint8"
                )
            taken = np.rint(taken * 255).astype(np.uint8)
        # A copy: a memory-mapped file stays closed to writing.
        return np.array(np.broadcast_to(taken, (*taken.shape[:3], 3)))


class Arrays(SourceDataset):
    def __init__(self, name: str, sources: list[Source], config: ArraysConfig, root: Path):
        super().__init__(name, sources, config)
        self.root = root

    def read(self, source: Source, indices: np.ndarray, size: Optional[tuple[int, int]]) -> np.ndarray:
        name = source.name.rsplit("#", 1)[0] if source.row or source.name.endswith("#0") else source.name
        with ArrayFile(self.root / name, self.config) as file:
            return file.read(source.row, indices)


def probe_arrays(
    root: Path, config: ArraysConfig, with_changes: bool, name: str, alive: Callable[[], None]
) -> list[Source]:
    """One source per clip. Reads every clip (quick: the first and the last one)."""
    sources = []
    with ArrayFile(root / name, config) as file:
        for row in range(file.rows):
            alive()
            changes = None
            if config.scan == "full" or with_changes or row in (0, file.rows - 1):
                pixels = file.read(row, np.arange(file.frames))
            if with_changes:
                thumbnails = Thumbnails()
                for frame in pixels:
                    thumbnails.add_pixels(frame)
                changes = tuple(thumbnails.changes)
            sources.append(
                Source(
                    name=f"{name}#{row}" if "N" in file.layout else name,
                    frames=file.frames,
                    height=file.height,
                    width=file.width,
                    fps=config.source_fps,
                    reader="arrays",
                    row=row,
                    changes=changes,
                )
            )
    return sources


@DATASETS.register("arrays", ArraysConfig)
def build_arrays(config: ArraysConfig, split: str, seed: int) -> Arrays:
    root = config.root_folder()
    names, ignored = find_files(root, EXTENSIONS)
    probe = partial(probe_arrays, root, config, needs_changes(config))

    def make(name: str, sources: list[Source]) -> Arrays:
        return Arrays(name, sources, config, root)

    variant = f"arrays {config.scan} {needs_changes(config)} {config.key} {config.layout} {config.source_fps}"
    return build_split(config, split, names, ignored, probe, variant, make, by_source=True)
