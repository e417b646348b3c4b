"""Which items belong to train, val and test.

By hash: h = the first 8 bytes of BLAKE2b of the item's group (its path, unless a regular expression says
more), as a fraction of 2^64; h < test_fraction is test, then val, the rest train. Adding files moves none of
the others.
"""

import hashlib
import re
from pathlib import Path
from typing import Optional

from vidpred.data.config import SPLITS, FolderConfig
from vidpred.errors import UserError

FOLDER_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def group_key(name: str, pattern: Optional[str]) -> str:
    """The scene of an item: what the pattern matches in its path (all its groups), else the path itself."""
    found = re.search(pattern, name) if pattern else None
    if found is None:
        return name
    return "/".join(part or "" for part in found.groups()) if found.groups() else found.group(0)


def stable_fraction(key: str) -> float:
    """A number in [0, 1) that depends on the text alone, on every machine."""
    return (
        int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")
        / 2**64
    )


def split_by_hash(names: list[str], config: FolderConfig, splits: tuple[str, ...] = SPLITS) -> dict[str, str]:
    """name -> split. Of a small collection, each of `splits` with a fraction gets at least one group."""
    keys = {name: group_key(name, config.group) for name in names}
    fractions = {"test": config.test_fraction, "val": config.val_fraction}
    bounds, low = {}, 0.0
    for split in ("test", "val"):
        if split in splits and fractions[split] > 0:
            bounds[split] = (low, low + fractions[split])
            low += fractions[split]
    ordered = sorted(set(keys.values()), key=lambda key: (stable_fraction(key), key))
    chosen = {}
    for key in ordered:
        inside = (split for split, (start, end) in bounds.items() if start <= stable_fraction(key) < end)
        chosen[key] = next(inside, "train")
    _fill_empty(chosen, ordered, list(bounds))
    return {name: chosen[keys[name]] for name in names}


def _fill_empty(chosen: dict[str, str], ordered: list[str], splits: list[str]) -> None:
    """Gives an empty split the training group of the lowest hash, as long as another group still trains."""
    for split in splits:
        training = [key for key in ordered if chosen[key] == "train"]
        if split not in chosen.values() and len(training) >= 2:
            chosen[training[0]] = split


def split_method(names: list[str], config: FolderConfig) -> str:
    """What "auto" comes to: lists, folders or hash."""
    if config.split_by != "auto":
        return config.split_by
    if config.train_list or config.val_list or config.test_list:
        return "lists"
    return "folders" if any(name.split("/")[0] in FOLDER_NAMES["train"] for name in names) else "hash"


def assign_splits(names: list[str], root: Path, config: FolderConfig) -> dict[str, str]:
    """name (relative path) -> "train", "val" or "test"; names that no split claims are left out."""
    split_by = split_method(names, config)
    if split_by == "lists":
        return _split_by_lists(
            names, root, config, {split: getattr(config, f"{split}_list") for split in SPLITS}
        )
    if split_by == "folders":
        return _split_by_folders(names, root, config)
    return split_by_hash(names, config)


def _carve(chosen: dict[str, str], config: FolderConfig, missing: tuple[str, ...]) -> dict[str, str]:
    """Splits that have no list or folder of their own are cut out of train, by hash."""
    if not missing:
        return chosen
    training = [name for name, split in chosen.items() if split == "train"]
    return {**chosen, **split_by_hash(training, config, ("train", *missing))}


def _split_by_folders(names: list[str], root: Path, config: FolderConfig) -> dict[str, str]:
    folders = {folder: split for split, group in FOLDER_NAMES.items() for folder in group}
    chosen = {name: folders[name.split("/")[0]] for name in names if name.split("/")[0] in folders}
    if "train" not in chosen.values():
        raise UserError(f"data.split_by: folders, but {root} has no folder 'train' with items in it")
    missing = tuple(split for split in ("val", "test") if split not in chosen.values())
    return _carve(chosen, config, missing)


def _split_by_lists(
    names: list[str], root: Path, config: FolderConfig, lists: dict[str, Optional[str]]
) -> dict[str, str]:
    known, chosen = set(names), {}
    for split, path in lists.items():
        for name in _read_list(path, f"data.{split}_list", root, known) if path else ():
            if chosen.setdefault(name, split) != split:
                raise UserError(
                    f"data.{split}_list: '{name}' is also in data.{chosen[name]}_list; keep it in one"
                )
    if "train" not in chosen.values():
        raise UserError("data.train_list: not set or empty; name the training items in it")
    return _carve(chosen, config, tuple(split for split in ("val", "test") if not lists[split]))


def _read_list(path: str, key: str, root: Path, known: set[str]) -> list[str]:
    """The names in a list file; a label after the name (as UCF-101's lists have) is ignored, # begins a
    comment."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{key}: {file} is not a file")
    names = []
    for number, line in enumerate(
        file.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), start=1
    ):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        candidates = [entry.removeprefix("./") for entry in (line, line.rsplit(maxsplit=1)[0])]
        name = next((entry for entry in candidates if entry in known), None)
        if name is None:
            raise UserError(f"{key}: line {number} of {file}: '{line}' is no item under {root}")
        names.append(name)
    return names
