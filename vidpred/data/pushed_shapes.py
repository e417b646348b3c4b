"""Shapes that are pushed: what a frame shows next is decided by an action, and by nothing that was seen before.

One shape rests on a ground of one colour. On the way to every frame but the first it is pushed by (dx, dy) pixels,
right and down, each uniform in [-s, s]; a component that would carry it beyond a wall is turned round. So of centres p,

    p(t) - p(t - 1) = (dy, dx)(t),    r <= p <= size - r,

and who does not know the pushes can only guess. Rendered in memory, when it is wanted; a function of (render_seed,
split, index). The class of a clip is the shape's outline, and its text says it too.
"""

from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch

from vidpred.conditions import ClipConditions, actions_at
from vidpred.data.clips import Clip, ClipDataset
from vidpred.data.config import DATASETS, SPLITS, ClipConfig, require
from vidpred.data.shapes import BACKGROUND, OUTLINES, Shape, random_shape
from vidpred.random_streams import host_generator


@dataclass
class PushedShapesConfig(ClipConfig):
    """Shapes that are steered by random pushes, which are the actions of their frames; needs no data."""

    kind: str = "pushed_shapes"
    height: int = 32
    """Height of the pictures in pixels."""
    width: int = 32
    """Width of the pictures in pixels."""
    num_workers: int = 2
    """Processes per rank that render clips. 0 renders in the training process."""
    num_clips: int = 100_000
    """Training clips. Each is rendered when it is wanted, so many cost no more than few."""
    num_val_clips: int = 256
    """Validation clips."""
    num_test_clips: int = 256
    """Test clips."""
    max_push: float = 3.0
    """Largest push along either axis in pixels per frame; of skipped frames the pushes are added up."""
    radius: tuple[float, float] = (0.12, 0.22)
    """Smallest and largest shape: its radius as a part of the picture's shorter side."""
    render_seed: int = 0
    """Another number gives other clips; the run's own seed does not change them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.fps is None, "fps", "pushed shapes have no rate; set data.frame_stride")
        require(self.crop == "center", "crop", "pushed shapes are not cut; leave it center")
        require(not self.flip, "flip", "a mirrored shape does not follow its pushes; leave it false")
        for key in ("min_motion", "max_cut", "max_frame_stride"):
            require(getattr(self, key) is None, key, "pushed shapes do not have it; leave it unset")
        for key in ("num_clips", "num_val_clips", "num_test_clips"):
            require(getattr(self, key) >= 1, key, "a split without a clip; set at least 1")
        smallest, largest = self.radius
        require(0 < smallest <= largest < 0.5, "radius", f"{list(self.radius)} must ascend between 0 and 0.5")
        room = (1 - 2 * largest) * min(self.height, self.width)
        require(
            0 < self.max_push <= room / 2,
            "max_push",
            f"{self.max_push} is not possible; set a number up to {room / 2:g}, half of the largest shape's room",
        )


@dataclass(frozen=True)
class PushedScene:
    """One clip before it is cut: its ground, its shape, and for each of N frames where it is and what pushed it there.

    background: (3,) in [0, 1]. centres: (N, 2), (y, x) in pixels from the upper left corner. pushes: (N, 2) float32,
    (dx, dy); the first one is 0.
    """

    background: np.ndarray
    shape: Shape
    centres: np.ndarray
    pushes: np.ndarray

    def pixels(self, height: int, width: int, frames: np.ndarray) -> np.ndarray:
        """(T, height, width, 3) uint8 of the chosen frames."""
        pixels = np.empty((len(frames), height, width, 3), dtype=np.float32)
        pixels[:] = self.background
        self.shape.draw_at(pixels, self.centres[frames])
        return np.rint(pixels * 255).astype(np.uint8)


def pushed_scene(config: PushedShapesConfig, split: str, index: int) -> PushedScene:
    """Of the frames that a clip of `config` spans; a longer clip begins like a shorter one."""
    generator = host_generator(config.render_seed, f"pushed shapes {split}", index)
    background = generator.uniform(*BACKGROUND, 3)
    shape = random_shape((config.height, config.width), config.radius, (0.0, 0.0), generator)
    frames = (config.num_frames - 1) * config.frame_stride + 1
    wanted = generator.uniform(-config.max_push, config.max_push, (frames - 1, 2))  # (dy, dx)
    low, high = shape.radius, np.array([config.height, config.width]) - shape.radius
    centres = [shape.start]
    for push in wanted:
        beyond = (centres[-1] + push < low) | (centres[-1] + push > high)
        centres.append(centres[-1] + np.where(beyond, -push, push))
    centres = np.stack(centres)
    pushes = np.diff(centres, axis=0, prepend=centres[:1])[:, ::-1]
    return PushedScene(background, shape, centres, pushes.astype(np.float32))


class PushedShapes(ClipDataset):
    class_names = tuple(sorted(OUTLINES))
    has_text = True

    def __init__(self, config: PushedShapesConfig, split: str):
        self.name = f"pushed shapes ({split})"
        self.config = config
        self._split = split
        size = config.max_push * np.sqrt(config.frame_stride / 3)  # of a uniform number, and of sums of several
        self.action_scale = (float(f"{size:.6g}"),) * 2

    def __len__(self) -> int:
        counts = (self.config.num_clips, self.config.num_val_clips, self.config.num_test_clips)
        return dict(zip(SPLITS, counts))[self._split]

    def item_name(self, index: int) -> str:
        return f"{self._split}/{index:06d}"

    def clip(self, index: int, generator: Optional[np.random.Generator]) -> Clip:
        """Always the same: an item is one clip."""
        config = self.config
        scene = pushed_scene(config, self._split, index)
        frames = np.arange(config.num_frames) * config.frame_stride
        pixels = torch.from_numpy(scene.pixels(config.height, config.width, frames)).permute(0, 3, 1, 2)
        actions = actions_at(torch.from_numpy(scene.pushes.copy()), torch.from_numpy(frames))
        outline = scene.shape.outline
        conditions = ClipConditions(outline, f"a {outline}", actions)
        return Clip(pixels, torch.arange(float(config.num_frames)), self.item_name(index), conditions)


@DATASETS.register("pushed_shapes", PushedShapesConfig)
def build_pushed_shapes(config: PushedShapesConfig, split: str, seed: int) -> PushedShapes:
    return PushedShapes(config, split)
