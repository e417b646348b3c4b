"""Checkpoints as directories: written aside, flushed to the disk, checksummed, then renamed.

    step_00000100/   <name>.safetensors   one file for each group of tensors (model, ema, calibration)
                     training.pt          optimizer and other state: plain values and tensors, weights_only
                     config.yaml          the resolved configuration
                     info.json            step and other plain data
                     manifest.json        schema version; size and SHA-256 of each file above

Complete: has a manifest, and every file in it has its size. Intact: complete, and the checksums are right. A
crash at any moment leaves either the whole directory or a hidden one that nobody reads. Reading runs no code:
safetensors, `torch.load(weights_only=True)`, `yaml.safe_load`, JSON.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Collection, Optional, Union

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidpred.errors import UserError

SCHEMA_VERSION = 2  # 2: networks see x itself, and not its difference to the nearest given frame
MANIFEST = "manifest.json"
STEP_FOLDER = re.compile(r"step_(\d{8,})")
PLAIN_TYPES = (int, float, str, bool, type(None))

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What one directory holds: `tensors` by group and name, on the CPU; `state` is {} when not asked for."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    config: dict[str, Any]
    info: dict[str, Any]

    @property
    def run_folder(self) -> Path:
        """The folder of the run that wrote it; of a checkpoint that was copied elsewhere, its own."""
        folder = self.path.absolute()
        return folder.parents[1] if folder.parent.name == "checkpoints" else folder


class CheckpointStore:
    """The checkpoints of one run in `folder` (`runs/<name>/checkpoints`). Only rank 0 saves and prunes."""

    def __init__(self, folder: Union[str, Path]):
        self.folder = Path(folder)
        self._named: set[Path] = set()  # torn checkpoints that were already spoken of

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def save(
        self,
        step: int,
        tensors: dict[str, dict[str, Tensor]],
        state: dict[str, Any],
        config: dict[str, Any],
        info: dict[str, Any],
    ) -> Path:
        """Writes one checkpoint and returns its directory; one of the same step is replaced.

        `state` holds nothing but tensors, numbers, strings, None, lists, tuples and dicts (TypeError names
        the key otherwise). When this returns the checkpoint survives a power failure.
        """
        _require_plain("state", state)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clear_leftovers()
        target = self.path(step)
        aside = self.folder / f".{target.name}.writing"
        aside.mkdir()
        _write_files(aside, step, tensors, state, config, info)
        _sync(aside)
        replaced = self.folder / f".{target.name}.replaced"
        if target.exists():
            os.replace(target, replaced)
        os.replace(aside, target)
        _sync(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)
        self._named.discard(target)
        return target

    def complete(self) -> list[Path]:
        """All complete checkpoints, the oldest step first (sizes checked, contents not)."""
        return [path for path in self._step_folders() if _incompleteness(path) is None]

    def latest(self) -> Optional[Path]:
        """The intact checkpoint of the highest step, or None; damaged ones above it are named in the log."""
        for path in reversed(self._step_folders()):
            reason = _incompleteness(path) or _damage(path)
            if reason is None:
                return path
            if path not in self._named:
                log.warning("skipping checkpoint %s: %s", path, reason)
                self._named.add(path)
        return None

    def prune(self, keep_last: int, keep_every: int = 0, keep: Collection[Path] = ()) -> list[Path]:
        """Deletes complete checkpoints except the last `keep_last` (at least 1), every step that is a
        multiple of `keep_every` (0: none) and those in `keep` (the best). Returns what was deleted. Torn and
        damaged ones stay, and do not count.
        """
        kept_names = {Path(path).name for path in keep}
        deleted = []
        intact = [path for path in self.complete() if path not in self._named]  # what `latest` found damaged
        for path in intact[: -max(keep_last, 1)]:
            if path.name in kept_names or (keep_every and _step_of(path) % keep_every == 0):
                continue
            hidden = self.folder / f".{path.name}.deleting"  # so that a crash leaves no half of a checkpoint
            os.replace(path, hidden)
            shutil.rmtree(hidden)
            deleted.append(path)
        return deleted

    def _step_folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        self._restore_replaced()
        folders = [
            path for path in self.folder.iterdir() if STEP_FOLDER.fullmatch(path.name) and path.is_dir()
        ]
        return sorted(folders, key=_step_of)

    def _restore_replaced(self) -> None:
        """Undoes a replacement that a crash cut between its two renames."""
        for hidden in self.folder.glob(".step_*.replaced"):
            target = self.folder / hidden.name[1:].removesuffix(".replaced")
            if not target.exists():
                try:
                    os.rename(hidden, target)
                except OSError:
                    log.debug("another rank has restored %s", target)

    def _clear_leftovers(self) -> None:
        """Removes what earlier, interrupted saves and prunings left."""
        self._restore_replaced()
        for pattern in (".step_*.writing", ".step_*.deleting", ".step_*.replaced"):
            for hidden in self.folder.glob(pattern):
                shutil.rmtree(hidden)


def read_checkpoint(path: Union[str, Path], with_state: bool = True, verify: bool = True) -> Checkpoint:
    """Reads a checkpoint directory; `path` may also be the `checkpoints` folder or the run folder above it,
    which mean the latest intact one.

    `with_state=False` leaves the optimizer's state on the disk; `verify=False` skips the checksums (just done
    by `latest`). Raises UserError when there is none, or it is damaged or newer than this program.
    """
    folder = find_checkpoint(path)
    reason = _incompleteness(folder) or (_damage(folder) if verify else None)
    if reason is not None:
        raise UserError(f"checkpoint {folder}: {reason}; use another step of the same run")
    info = json.loads((folder / "info.json").read_text())
    groups = sorted(name for name in _manifest(folder)[1] if name.endswith(".safetensors"))
    state = {}
    if with_state:
        state = torch.load(folder / "training.pt", map_location="cpu", weights_only=True)
    return Checkpoint(
        path=folder,
        step=info["step"],
        tensors={name.removesuffix(".safetensors"): load_file(folder / name) for name in groups},
        state=state,
        config=yaml.safe_load((folder / "config.yaml").read_text()),
        info=info,
    )


def find_checkpoint(path: Union[str, Path]) -> Path:
    """The directory that `path` (a checkpoint, a `checkpoints` or a run folder) means, or UserError."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(
            f"checkpoint {path}: no such folder; give a run folder or one of its checkpoints/step_*"
        )
    if STEP_FOLDER.fullmatch(path.name) or (path / MANIFEST).exists():
        return path
    inner = path / "checkpoints"
    latest = CheckpointStore(inner if inner.is_dir() else path).latest()
    if latest is None:
        raise UserError(
            f"checkpoint {path}: holds no complete checkpoint (step_*/{MANIFEST}); choose another run"
        )
    return latest


def newest_run(runs_folder: Union[str, Path]) -> Optional[Path]:
    """The run folder under `runs_folder` that wrote a complete checkpoint last, or None."""
    runs = Path(runs_folder)
    if not runs.is_dir():
        return None
    written = []
    for run in runs.iterdir():
        complete = CheckpointStore(run / "checkpoints").complete()
        if complete:
            written.append((max((path / MANIFEST).stat().st_mtime_ns for path in complete), run))
    return max(written)[1] if written else None


def _write_files(
    folder: Path,
    step: int,
    tensors: dict,
    state: dict[str, Any],
    config: dict[str, Any],
    info: dict[str, Any],
) -> None:
    """All files of a checkpoint, each flushed to the disk, the manifest last."""
    for group, named in tensors.items():
        # A copy of its own for each tensor: safetensors refuses views of shared memory.
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in named.items()}
        save_file(copies, folder / f"{group}.safetensors")
    torch.save(state, folder / "training.pt")
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    (folder / "info.json").write_text(json.dumps({**info, "step": step}, indent=2))
    files = {}
    for path in sorted(folder.iterdir()):
        _sync(path)
        files[path.name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    manifest = {"schema_version": SCHEMA_VERSION, "step": step, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))
    _sync(folder / MANIFEST)


def _require_plain(where: str, value: Any) -> None:
    """TypeError unless `weights_only` loading will accept `value` (NumPy's numbers it does not)."""
    if isinstance(value, Tensor) or type(value) in PLAIN_TYPES:
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in PLAIN_TYPES:
                raise TypeError(f"{where}: key {key!r} of type {type(key).__name__} cannot be stored")
            _require_plain(f"{where}.{key}", item)
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _require_plain(f"{where}.{index}", item)
    else:
        raise TypeError(
            f"{where}: {type(value).__name__} cannot be stored; use tensors, numbers, strings, lists"
        )


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _manifest(path: Path) -> tuple[int, dict[str, tuple[int, str]]]:
    """The schema version, and (size, SHA-256) by file name. ValueError, KeyError, ... when it is damaged."""
    content = json.loads((path / MANIFEST).read_text())
    files = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in content["files"].items()}
    return int(content["schema_version"]), files


def _incompleteness(path: Path) -> Optional[str]:
    """Why a checkpoint directory is not complete, or None. UserError when a program of another version wrote it."""
    try:
        version, files = _manifest(path)
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} is damaged ({type(error).__name__}: {error})"
    if version != SCHEMA_VERSION:
        newer = version > SCHEMA_VERSION
        cure = "update vidpred" if newer else "train again, or use the vidpred that wrote it"
        raise UserError(
            f"checkpoint {path}: schema version {version} is {'newer' if newer else 'older'} than this vidpred reads "
            f"({SCHEMA_VERSION}); {cure}"
        )
    for name, (size, _) in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    return None


def _damage(path: Path) -> Optional[str]:
    """The first file of a complete checkpoint whose contents are not what was written, or None."""
    for name, (_, checksum) in _manifest(path)[1].items():
        if _sha256(path / name) != checksum:
            return f"{name} has a wrong checksum"
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Waits until a file's contents, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
