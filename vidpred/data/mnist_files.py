"""MNIST's own files: idx, packed or not, under the names that they usually have."""

import gzip
import math
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidpred.data.config import require
from vidpred.data.scan import fingerprint
from vidpred.errors import UserError

FOLDERS = ("", "raw", "MNIST/raw")  # the last two are made by torchvision's downloader
AXES = {"images": 3, "labels": 1}



@dataclass(frozen=True)
class Digits:
    """Pictures and what they show."""

    pictures: np.ndarray  # (N, h, w) uint8, bright on black; 28x28 of MNIST itself
    labels: np.ndarray  # (N,) uint8, 0 to 9


def find_file(root: Path, collection: str, content: str) -> Optional[Path]:
    """The file of `collection` (train or t10k) with the `content` images or labels, or None."""
    for folder in FOLDERS:
        for dot in "-.":
            for ending in ("", ".gz"):
                path = root / folder / f"{collection}-{content}{dot}idx{AXES[content]}-ubyte{ending}"
                if path.is_file():
                    return path
    return None


def read_collection(root: Optional[str], collection: str) -> Digits:
    """All digits of `collection`, train or t10k. Raises UserError where a file is missing or damaged."""
    require(root is not None, "root", "not set; give the folder that holds MNIST's files")
    folder = Path(str(root)).expanduser().absolute()
    paths = {content: find_file(folder, collection, content) for content in AXES}
    for content, path in paths.items():
        name = f"{collection}-{content}-idx{AXES[content]}-ubyte.gz"
        require(path is not None, "root", f"{folder} lacks {name}; add this file of MNIST")
    pictures, labels = (_read_idx(path, AXES[content], *fingerprint(path)) for content, path in paths.items())
    if len(pictures) != len(labels) or labels.max() > 9:
        raise _unusable(paths["labels"], f"does not fit the {len(pictures)} pictures beside it")
    return Digits(pictures, labels)


@lru_cache(maxsize=4)
def _read_idx(path: Path, axes: int, *stamp: int) -> np.ndarray:
    """The array of unsigned bytes in an idx file, packed or not. `stamp` changes with the file."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise _unusable(path, f"cannot be read ({error})") from error
    start = 4 + 4 * axes
    if data[:4] != bytes([0, 0, 8, axes]) or len(data) < start:
        raise _unusable(path, f"is no idx file of bytes with {axes} axes")
    shape = [int(size) for size in np.frombuffer(data, ">u4", axes, 4)]
    if math.prod(shape) != len(data) - start:
        raise _unusable(path, f"has {len(data) - start} bytes for {' x '.join(map(str, shape))} values")
    if len(data) == start or shape[0] < 2:
        raise _unusable(path, "holds fewer than two digits")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _unusable(path: Path, reason: str) -> UserError:
    return UserError(f"data.root: {path} {reason}; put MNIST's own file there")


def resize(picture: np.ndarray, side: int) -> np.ndarray:
    """(h, w) uint8 -> (side, side) uint8, as `resize_all`."""
    return resize_all(picture[None], side)[0].numpy()


def resize_all(pictures: np.ndarray, side: int) -> Tensor:
    """(N, h, w) uint8 -> (N, side, side) uint8: bilinear, with antialiasing where it shrinks."""
    parts = torch.tensor(pictures)[:, None].split(4096)  # in floats, all at once would be large
    resized = [F.interpolate(part.float(), size=(side, side), mode="bilinear", antialias=True) for part in parts]
    return torch.cat([part.round().to(torch.uint8) for part in resized])[:, 0]
