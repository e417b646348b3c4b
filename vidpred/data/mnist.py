"""Single digits of MNIST, with their classes."""

from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidpred.conditions import ClipConditions
from vidpred.data.clips import Clip, ClipDataset
from vidpred.data.config import DATASETS, ClipConfig, require
from vidpred.data.mnist_files import Digits, read_collection, resize_all
from vidpred.distributed import all_or_fail

VALIDATION = 12  # every so-manyth digit of the training file
NAMES = tuple("0123456789")


@dataclass
class MnistConfig(ClipConfig):
    """Digits of MNIST, bright on black: a clip is one picture. The official test set is the test split, every 12th of
    the 60,000 others validates."""

    kind: str = "mnist"
    num_frames: int = 1
    """Frames in a clip: 1."""
    root: Optional[str] = None
    """The folder with MNIST's four files: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the same
    of t10k, packed or unpacked."""
    height: int = 28
    """Height of the pictures in pixels. Below the file's 28 they shrink, above they get a black border."""
    width: int = 28
    """Width of the pictures in pixels, equal to the height."""
    num_workers: int = 0
    """Processes per rank that hand out pictures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_single_pictures()
        require(self.height == self.width, "width", f"{self.height}x{self.width}: digits are square; set equal numbers")
        require(not self.flip, "flip", "a mirrored digit is none; leave it false")
        require(self.crop == "center", "crop", "digits are not cut; leave it center")


def sized(pictures: np.ndarray, side: int) -> Tensor:
    """(N, h, h) uint8 -> (N, side, side) uint8: bilinear with antialiasing where it shrinks, else a black border."""
    own = pictures.shape[-1]
    if side >= own:
        before = (side - own) // 2
        after = side - own - before
        return F.pad(torch.from_numpy(pictures.copy()), [before, after] * 2)
    return resize_all(pictures, side)


class Mnist(ClipDataset):
    class_names = NAMES

    def __init__(self, config: MnistConfig, split: str, digits: Digits, numbers: np.ndarray):
        """`numbers`: of each digit in its file."""
        self.name = f"MNIST ({split})"
        self.config = config
        self._file = "t10k" if split == "test" else "train"
        self._pictures = sized(digits.pictures, config.height)
        self._labels, self._numbers = digits.labels, numbers

    def __len__(self) -> int:
        return len(self._labels)

    def item_name(self, index: int) -> str:
        return f"{self._file}/{self._numbers[index]:05d}"

    def clip(self, index: int, generator: Optional[np.random.Generator]) -> Clip:
        frames = self._pictures[index].expand(1, 3, -1, -1)
        conditions = ClipConditions(class_name=NAMES[self._labels[index]])
        return Clip(frames, torch.zeros(1), self.item_name(index), conditions)


@DATASETS.register("mnist", MnistConfig)
def build_mnist(config: MnistConfig, split: str, seed: int) -> Mnist:
    # Both files: what is wrong with the test digits is better said before the training.
    every = all_or_fail(lambda: {name: read_collection(config.root, name) for name in ("train", "t10k")})
    digits = every["t10k" if split == "test" else "train"]
    numbers = np.arange(len(digits.labels))
    if split != "test":
        numbers = numbers[(numbers % VALIDATION == 0) == (split == "val")]
    return Mnist(config, split, Digits(digits.pictures[numbers], digits.labels[numbers]), numbers)
