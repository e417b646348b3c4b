"""Moving digits: Stochastic Moving MNIST, rendered in memory from MNIST's own files.

The motion is that of the generator of Denton and Fergus, "Stochastic Video Generation with a Learned Prior"
(ICML 2018), which later papers share. A digit's position p = (y, x) is its upper left corner. Positions and
velocities v are whole pixels, so that a digit looks the same wherever it is:

    p(0) uniform in the room [0, H - side) x [0, W - side),    v(0) uniform in {-s .. s}^2,    p += v,

and where p has left the room through a wall, it is put back at that wall and v is drawn again: its component
across the wall uniform in {1 .. s}, inwards, the other one uniform in {-s .. s}. Nobody can foresee it. A
frame is the sum of its digits, no brighter than white.
"""

import dataclasses
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
import torch

from vidpred import distributed
from vidpred.data.clips import Clip, ClipDataset
from vidpred.data.config import DATASETS, SPLITS, ClipConfig, require
from vidpred.data.mnist_files import AXES, Digits, find_file, read_collection, resize
from vidpred.data.shapes import ShapesConfig, build_shapes
from vidpred.random_streams import host_generator

logger = logging.getLogger(__name__)

COLLECTIONS = {"train": "train", "val": "t10k", "test": "t10k"}
# Every other one: the first half of MNIST's test file was written by other people than the second.
ROWS = {"train": slice(None), "val": slice(0, None, 2), "test": slice(1, None, 2)}
MOST_DIGITS = 100


@dataclass
class MovingDigitsConfig(ClipConfig):
    """Digits of MNIST that move straight and leave the picture's walls in random directions."""

    kind: str = "moving_digits"
    root: Optional[str] = None
    """The folder with MNIST's four files: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the same
    of t10k, packed or unpacked. Not set, or a folder with none of them: moving shapes take the digits' place."""
    height: int = 64
    """Height of the pictures in pixels."""
    width: int = 64
    """Width of the pictures in pixels."""
    num_workers: int = 2
    """Processes per rank that render clips. 0 renders in the training process."""
    num_clips: int = 1_000_000
    """Training clips. Each is rendered when it is wanted, so many cost no more than few."""
    num_val_clips: int = 1024
    """Validation clips, of every other digit of MNIST's test file."""
    num_test_clips: int = 1024
    """Test clips, of the other digits of MNIST's test file."""
    num_digits: int = 2
    """Digits in a clip."""
    digit_size: Optional[int] = None
    """Side of a digit's square in pixels. Not set: half of the picture's shorter side."""
    max_speed: Optional[int] = None
    """Fastest motion along either axis in pixels per frame; frame_stride multiplies it. Not set: a sixteenth
    of the picture's shorter side, 4 of 64."""
    render_seed: int = 0
    """Another number gives other clips; the run's own seed does not change them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.fps is None, "fps", "moving digits have no rate; set data.frame_stride")
        require(not self.flip, "flip", "a mirrored digit is none; leave it false")
        for key in ("min_motion", "max_cut"):
            require(getattr(self, key) is None, key, "moving digits are not selected; leave it unset")
        for key in ("num_clips", "num_val_clips", "num_test_clips"):
            require(getattr(self, key) >= 1, key, "a split without a clip; set at least 1")
        digits, speed = self.num_digits, self.max_speed
        require(1 <= digits <= MOST_DIGITS, "num_digits", f"{digits} is not possible; set 1 to {MOST_DIGITS}")
        require(speed is None or speed >= 1, "max_speed", f"{speed} is no motion; set at least 1")
        shorter = min(self.height, self.width)
        require(shorter >= 2, "height", f"{self.height}x{self.width} leaves a digit no room to move")
        require(
            1 <= self.side < shorter,
            "digit_size",
            f"{self.digit_size} does not fit; set 1 to {shorter - 1} for {self.height}x{self.width} pixels",
        )

    @property
    def side(self) -> int:
        """Side of a digit's square in pixels."""
        return min(self.height, self.width) // 2 if self.digit_size is None else self.digit_size

    @property
    def speed(self) -> int:
        """The fastest motion along either axis, in pixels per frame at stride 1."""
        return max(1, round(min(self.height, self.width) / 16)) if self.max_speed is None else self.max_speed


def read_digits(config: MovingDigitsConfig, split: str) -> Digits:
    """The digits that may appear in a split; those of two splits have none in common.

    Raises UserError where a file is missing or damaged.
    """
    digits = read_collection(config.root, COLLECTIONS[split])
    return Digits(digits.pictures[ROWS[split]], digits.labels[ROWS[split]])


# Motion and pictures ---------------------------------------------------------------------------------------


class DigitTracks(NamedTuple):
    """Which digits a clip shows, and where. A digit's square is `config.side` pixels wide and high."""

    labels: np.ndarray  # (n,) int64, 0 to 9
    positions: np.ndarray  # (T, n, 2) int64: (y, x) of the squares' upper left corners, in pixels


def digit_tracks(
    config: MovingDigitsConfig, split: str, index: int, stride: Optional[int] = None
) -> DigitTracks:
    """What clip `index` of a split shows: of as many frames as the configuration has, at `stride` or its own.

    Of a configuration with more frames, the first ones are the same. Raises UserError where MNIST's files are
    missing or damaged.
    """
    digits = read_digits(config, split)
    chosen, positions = _tracks(config, split, index, len(digits.labels), stride or config.frame_stride)
    return DigitTracks(digits.labels[chosen].astype(np.int64), positions)


def _tracks(
    config: MovingDigitsConfig, split: str, index: int, count: int, stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """(which of `count` digits (n,), their positions (T, n, 2) at every `stride`-th frame): of (render_seed,
    split, index) alone."""
    frames = (config.num_frames - 1) * stride + 1
    room = np.array([config.height, config.width]) - config.side
    chosen, positions = [], []
    for number in range(config.num_digits):
        # A stream for each digit: longer clips go on as shorter ones began.
        generator = host_generator(config.render_seed, f"moving digits {split} {number}", index)
        chosen.append(generator.integers(count))
        positions.append(_track(generator, frames, room, config.speed)[::stride])
    return np.array(chosen), np.stack(positions, axis=1)


def _track(generator: np.random.Generator, frames: int, room: np.ndarray, speed: int) -> np.ndarray:
    """(frames, 2) int64 positions of one digit, each in [0, room); the module's formulas."""
    positions = np.empty((frames, 2), dtype=np.int64)
    position = generator.integers(0, room)
    velocity = generator.integers(-speed, speed + 1, 2)
    for row in positions:
        for axis in (0, 1):
            inside = min(max(position[axis], 0), room[axis] - 1)
            if position[axis] != inside:
                velocity = generator.integers(-speed, speed + 1, 2)
                inwards = 1 if position[axis] < 0 else -1
                velocity[axis] = inwards * generator.integers(1, speed + 1)
                position[axis] = inside
        row[:] = position
        position += velocity
    return positions


class MovingDigits(ClipDataset):
    """Item `index` is one clip, rendered when it is asked for; its generator decides its stride alone."""

    def __init__(self, config: MovingDigitsConfig, split: str, digits: Digits):
        self.name = f"moving digits ({split})"
        self._config = config
        self._split = split
        self._digits = digits
        lengths = (config.num_clips, config.num_val_clips, config.num_test_clips)
        self._length = dict(zip(SPLITS, lengths))[split]

    def __len__(self) -> int:
        return self._length

    def item_name(self, index: int) -> str:
        return f"{self._split}/{index:06d}"

    def clip(self, index: int, generator: Optional[np.random.Generator]) -> Clip:
        config = self._config
        strides = config.strides if generator is not None else config.strides[:1]
        stride = strides[int(generator.integers(len(strides)))] if len(strides) > 1 else strides[0]
        chosen, positions = _tracks(config, self._split, index, len(self._digits.labels), stride)
        grey = np.zeros((config.num_frames, config.height, config.width), dtype=np.uint16)
        for digit, corners in zip(chosen, positions.swapaxes(0, 1).tolist()):
            picture = resize(self._digits.pictures[digit], config.side)
            for frame, (top, left) in zip(grey, corners):
                frame[top : top + config.side, left : left + config.side] += picture
        frames = torch.from_numpy(np.minimum(grey, 255).astype(np.uint8))
        times = torch.arange(config.num_frames, dtype=torch.float32) * stride / config.frame_stride
        return Clip(frames[:, None].expand(-1, 3, -1, -1), times, self.item_name(index))


# The choice ------------------------------------------------------------------------------------------------


@DATASETS.register("moving_digits", MovingDigitsConfig)
def build_moving_digits(config: MovingDigitsConfig, split: str, seed: int) -> ClipDataset:
    # Rank 0 decides for all: shapes are rendered together.
    missing = distributed.gather_or_fail(lambda: _why_no_digits(config))[0]
    if missing:
        _tell_once(missing)
        return _shapes_instead(config, split, seed)
    # Both collections: what is wrong with the test digits is better said before the training.
    return MovingDigits(config, split, {every: read_digits(config, every) for every in SPLITS}[split])


def _why_no_digits(config: MovingDigitsConfig) -> str:
    """Why there are no digits at all; empty where there is at least one file."""
    if config.root is None:
        return "data.root is not set"
    root = Path(config.root).expanduser().absolute()
    require(root.is_dir(), "root", f"{root} is not a folder; give the one that holds MNIST's files")
    found = [find_file(root, collection, content) for collection in ("train", "t10k") for content in AXES]
    return "" if any(found) else f"data.root {root} has no file of MNIST (train-images-idx3-ubyte.gz, ...)"


@lru_cache(maxsize=None)
def _tell_once(missing: str) -> None:
    if distributed.is_main():
        logger.warning("%s: moving shapes take the place of the moving digits", missing)


def _shapes_instead(config: MovingDigitsConfig, split: str, seed: int) -> ClipDataset:
    """Moving shapes of the same size and length, one for each digit."""
    common = {field.name: getattr(config, field.name) for field in dataclasses.fields(ClipConfig)}
    frames = (config.num_frames - 1) * config.strides[-1] + 1
    # Shapes are rendered into files, all of them at the first run.
    counts = {
        key: min(getattr(config, key), getattr(ShapesConfig, key))
        for key in ("num_clips", "num_val_clips", "num_test_clips")
    }
    changes = {
        "kind": ShapesConfig.kind,
        "num_shapes": config.num_digits,
        "clip_frames": max(ShapesConfig.clip_frames, frames),
        "render_seed": config.render_seed,
    }
    dataset = build_shapes(ShapesConfig(**{**common, **counts, **changes}), split, seed)
    dataset.name, dataset.substitute = f"moving shapes in the place of digits ({split})", "moving shapes"
    return dataset
