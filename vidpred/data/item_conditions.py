"""What the items under a folder are besides their frames: classes by folder, texts, actions in side files.

Everything that the configuration asks for must be there for every usable item of all splits: what is missing is one
line that names the file, at the scan and not in the middle of a training.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import torch

from vidpred import distributed
from vidpred.conditions import ClipConditions, actions_at
from vidpred.data.clips import DAMAGES, ClipError
from vidpred.data.config import FolderConfig
from vidpred.data.sources import Source, nearest_frames
from vidpred.errors import UserError

METADATA = "metadata.jsonl"
ACTION_ENDINGS = (".npy", ".npz", ".csv")


@dataclass(frozen=True)
class ItemConditions:
    """Of the items of all splits, by the name of their source.

    classes: name -> class, None without classes. texts: name -> text. action_files: name -> path under root.
    action_scale: (A,) root mean square of each number over the training items, of frames at frame_stride, or at fps,
        as clips show them (a larger stride, up to max_frame_stride, is not looked at); 1 where it is always 0.
    prompt_templates: as data.prompt_templates; `of` gives the text alone.
    """

    root: Path
    classes: Optional[dict[str, str]]
    texts: Optional[dict[str, str]]
    action_files: Optional[dict[str, str]]
    action_scale: tuple[float, ...]
    prompt_templates: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(sorted(set((self.classes or {}).values())))

    def of(self, source: Source, indices: np.ndarray) -> ClipConditions:
        """The conditions of the clip of the frames `indices` (T,), ascending. Raises ClipError."""
        actions = None
        if self.action_files is not None:
            rows = read_actions(self.root / self.action_files[source.name], source.frames)
            actions = actions_at(torch.from_numpy(rows), torch.from_numpy(np.asarray(indices, dtype=np.int64)))
        return ClipConditions(
            self.classes and self.classes[source.name], self.texts and self.texts[source.name], actions
        )


def find_conditions(
    root: Path, config: FolderConfig, sources: dict[str, list[Source]], in_split_folders: bool
) -> Optional[ItemConditions]:
    """What the configuration asks for, of every source of each split; None where it asks for nothing. Rank 0 looks, and
    all ranks, which must all call it, know. Raises UserError with the first item that lacks something."""
    if config.classes == "none" and config.captions == "none" and not config.actions:
        return None
    found = distributed.broadcast_object(
        _attempt(lambda: _find(root, config, sources, in_split_folders)) if distributed.is_main() else None
    )
    if isinstance(found, str):
        raise UserError(found)
    return found


def _attempt(find: Callable[[], ItemConditions]) -> ItemConditions | str:
    try:
        return find()
    except UserError as error:
        return str(error)


def _find(
    root: Path, config: FolderConfig, splits: dict[str, list[Source]], in_split_folders: bool
) -> ItemConditions:
    sources = [source for split in splits.values() for source in split]
    names = [source.name for source in sources]
    classes = {name: _class_of(name, in_split_folders) for name in names} if config.classes == "folders" else None
    texts = _texts(root, config.captions, names) if config.captions != "none" else None
    files, scale = None, ()
    if config.actions:
        files, sizes = _action_files(root, config, sources)
        scale = _scale(np.array([sizes[source.name] for source in splits["train"] or sources]))
    return ItemConditions(root, classes, texts, files, scale, tuple(config.prompt_templates))


def file_of(name: str) -> str:
    """The path, relative to root, of the file that holds a source: clips of an array file are NAME#row."""
    stem, _, row = name.rpartition("#")
    return stem if row.isdigit() and stem else name


def _side_file(root: Path, name: str) -> str:
    """What the files beside an item are called, without their endings."""
    file = file_of(name)
    return file if (root / file).is_dir() else os.path.splitext(file)[0]


def _class_of(name: str, in_split_folders: bool) -> str:
    folders = name.split("/")[:-1][in_split_folders:]
    if not folders:
        raise UserError(
            f"data.classes: folders, but {name} lies in no folder of a class; move it into one, or set none"
        )
    return folders[0]


# Texts -----------------------------------------------------------------------------------------------------


def read_metadata(root: Path) -> dict[str, dict[str, Any]]:
    """root/metadata.jsonl: file name, relative to root -> the other values of its line. Raises UserError."""
    path, rows = root / METADATA, {}
    try:
        # Not splitlines: a text may hold other separators than the newline that ends a line of JSON.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); write a line for each file into it, as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error}); correct it") from error
        name = values.get("file_name") if isinstance(values, dict) else None
        if not isinstance(name, str):
            raise UserError(f'{path}: line {number} has no text "file_name"; write {{"file_name": ..., "text": ...}}')
        name = name.removeprefix("./")
        if name in rows:
            raise UserError(f"{path}: line {number} is the second one of {name}; keep one")
        rows[name] = values
    return rows


def _texts(root: Path, captions: str, names: list[str]) -> dict[str, str]:
    if captions == "text_files":
        return {name: _read_text(root / f"{_side_file(root, name)}.txt", name) for name in names}
    rows = read_metadata(root)
    texts = {}
    for name in names:
        row = rows.get(name, rows.get(file_of(name)))
        text = row.get("text") if row else None
        if not isinstance(text, str):
            lacks = 'has no text "text" in its line of' if row else "has no line in"
            raise UserError(f"data.captions: {name} {lacks} {root / METADATA}; add it, or set captions none")
        # JSON can write half of a character (\ud83d), which no encoding of text can.
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError(
                f"data.captions: {name} has half of a character in its line of {root / METADATA}; correct it"
            )
        texts[name] = text
    return texts


def _read_text(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        raise UserError(f"data.captions: {name} has no {path}; write it, or set captions none") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 ({error}); correct it") from error


# Actions ---------------------------------------------------------------------------------------------------


def _action_files(
    root: Path, config: FolderConfig, sources: list[Source]
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Source -> its side file relative to root, and the mean squares (A,) of its actions as clips show them; every file
    is read once."""
    files, squares = {}, {}
    for source in sources:
        files[source.name] = _action_file(root, source)
        squares[source.name] = _mean_squares(root / files[source.name], config, source)
        first = sources[0].name
        size, before = len(squares[source.name]), len(squares[first])
        if size != before:
            raise UserError(
                f"data.actions: {files[source.name]} has rows of {size} numbers, {files[first]} of {before}; "
                "make them equal"
            )
    return files, squares


def _action_file(root: Path, source: Source) -> str:
    stem = _side_file(root, source.name)
    found = [stem + ending for ending in ACTION_ENDINGS if (root / (stem + ending)).is_file()]
    if not found:
        raise UserError(
            f"data.actions: {source.name} has no {stem}.npy, .npz or .csv beside it; write one row for each of its "
            f"{source.frames} frames into it"
        )
    if len(found) > 1:
        raise UserError(f"data.actions: {source.name} has both {found[0]} and {found[1]}; keep one")
    return found[0]


def _mean_squares(path: Path, config: FolderConfig, source: Source) -> np.ndarray:
    """(A,) of the actions on the way to the frames that are taken from the source, of those between them the sum."""
    try:
        rows = read_actions(path, source.frames)
    except ClipError as error:
        raise UserError(f"data.actions: {error}") from error
    taken = actions_at(torch.from_numpy(rows), torch.from_numpy(_taken_frames(config, source)))
    return np.square(taken.numpy(), dtype=np.float64).mean(axis=0)


def _taken_frames(config: FolderConfig, source: Source) -> np.ndarray:
    """(T,) int64 indices: the source from its first frame on, at the stride or the rate of clips."""
    if config.fps is None:
        return np.arange(0, source.frames, config.frame_stride)
    times = source.frame_times()
    return nearest_frames(times, np.arange(0, times[-1] + 0.5 / source.fps, 1 / config.fps))


def _scale(squares: np.ndarray) -> tuple[float, ...]:
    """Mean squares (items, A) -> (A,); in six digits, which are read in a configuration."""
    rms = np.sqrt(squares.mean(axis=0))
    return tuple(float(f"{value:.6g}") if value > 0 else 1.0 for value in rms)


def read_actions(path: Path, frames: Optional[int] = None) -> np.ndarray:
    """(N, A) float32 finite numbers of a side file; `frames` is what N must be. Raises ClipError, with the path."""
    try:
        rows = _load(path)
    except (OSError, ValueError, EOFError, *DAMAGES) as error:
        raise ClipError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    real = np.issubdtype(rows.dtype, np.integer) or np.issubdtype(rows.dtype, np.floating)
    if rows.ndim != 2 or rows.shape[1] == 0 or not real:
        raise ClipError(f"{path}: holds {rows.dtype} {rows.shape}, not one row of numbers for each frame")
    if frames is not None and len(rows) != frames:
        raise ClipError(f"{path}: has {len(rows)} rows, and its clip {frames} frames; write one row for each frame")
    with np.errstate(over="ignore"):  # refused in the next line
        rows = np.ascontiguousarray(rows, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise ClipError(f"{path}: has values that are not finite numbers of 32 bits")
    return rows


def _load(path: Path) -> np.ndarray:
    ending = path.suffix.lower()
    if ending == ".npy":
        return np.load(path, allow_pickle=False)
    if ending == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            if len(archive.files) != 1:
                raise ValueError(f"holds {len(archive.files)} arrays, not one")
            return archive[archive.files[0]]
    if ending == ".csv":
        return np.loadtxt(path, delimiter=",", ndmin=2, dtype=np.float32, encoding="utf-8")
    raise ValueError(f"is no {', '.join(ACTION_ENDINGS)} file")
