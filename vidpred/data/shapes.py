"""Moving shapes: small real mp4 files, rendered once, read back like anybody's videos.

Position of a shape's centre, in pixels, at frame t: each coordinate moves with a constant velocity v between
the walls low = radius and high = size - radius and is mirrored there, which is a triangle wave:
    x(t) = low + span - |(x(0) - low + v t) mod 2 span - span|,   span = high - low.
The coverage of a pixel is clamp(1/2 - d, 0, 1), d the signed distance in pixels of its centre from the
outline, so edges are anti-aliased and motion is visible below one pixel.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import numpy as np

from vidpred import distributed
from vidpred.data.config import DATASETS, SPLITS, ClipConfig, require
from vidpred.data.scan import cache_folder
from vidpred.data.video_folder import VideoFolder, VideoFolderConfig, build_video_folder
from vidpred.files import written_aside
from vidpred.random_streams import host_generator

RENDER_VERSION = 2  # Part of the folder's name: raise it with any change of the pictures.
OUTLINES = ("disc", "square", "triangle")
BACKGROUND, FOREGROUND = (0.0, 0.3), (0.5, 1.0)  # each channel's range: bright shapes on dark ground


@dataclass
class ShapesConfig(ClipConfig):
    """Clips of moving shapes that are rendered into a cache folder at the first run; needs no data."""

    kind: str = "shapes"
    height: int = 64
    """Height of the rendered pictures in pixels."""
    width: int = 64
    """Width of the rendered pictures in pixels."""
    num_workers: int = 2
    """Processes per rank that decode clips."""
    num_clips: int = 640
    """Training clips to render."""
    num_val_clips: int = 64
    """Validation clips to render."""
    num_test_clips: int = 64
    """Test clips to render."""
    clip_frames: int = 24
    """Frames in a rendered file."""
    clip_fps: float = 8.0
    """Frames per second of a rendered file."""
    num_shapes: int = 1
    """Shapes in a clip; later ones are in front."""
    speed: tuple[float, float] = (1.5, 4.0)
    """Slowest and fastest motion, in pixels per frame."""
    radius: tuple[float, float] = (0.12, 0.22)
    """Smallest and largest shape: its radius as a part of the picture's shorter side."""
    render_seed: int = 0
    """Another number gives other clips; the run's own seed does not change them."""
    cache: str = ""
    """The folder to render into. Empty: $VIDPRED_CACHE, or ~/.cache/vidpred."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need = (self.num_frames - 1) * self.frame_stride + 1
        if self.fps is not None:
            require(
                self.fps <= self.clip_fps, "fps", f"{self.fps} is more than data.clip_fps {self.clip_fps}"
            )
            need = int(np.ceil((self.num_frames - 1) * self.clip_fps / self.fps)) + 1
        require(
            need <= self.clip_frames,
            "num_frames",
            f"{self.num_frames} frames need {need} of the {self.clip_frames} that a clip holds; "
            "raise data.clip_frames",
        )
        require(self.num_clips >= 1, "num_clips", "nothing to train on; set at least 1")
        require(self.num_val_clips >= 1, "num_val_clips", "nothing to validate on; set at least 1")
        require(self.num_test_clips >= 1, "num_test_clips", "nothing to test on; set at least 1")
        require(self.num_shapes >= 1, "num_shapes", "an empty picture does not move; set at least 1")
        require(self.clip_fps > 0, "clip_fps", f"{self.clip_fps} is not possible; set a positive rate")
        require(0 <= self.speed[0] <= self.speed[1], "speed", f"{list(self.speed)} is not slowest, fastest")
        smallest, largest = self.radius
        require(0 < smallest <= largest < 0.5, "radius", f"{list(self.radius)} must ascend between 0 and 0.5")
        for key in ("height", "width"):
            size = getattr(self, key)
            require(
                size % 2 == 0 and size >= 16, key, f"{size} cannot be rendered; set an even number from 16 on"
            )


@dataclass(frozen=True)
class Shape:
    """One moving shape; lengths in pixels, order (y, x)."""

    outline: str
    radius: float
    angle: float
    colour: np.ndarray  # (3,) in [0, 1]
    start: np.ndarray  # (2,)
    velocity: np.ndarray  # (2,) per frame

    def centres(self, frames: int, height: int, width: int) -> np.ndarray:
        """(frames, 2)."""
        low = self.radius
        span = np.array([height, width]) - 2 * self.radius
        phase = (self.start - low + self.velocity * np.arange(frames)[:, None]) % (2 * span)
        return low + span - np.abs(phase - span)

    def draw(self, pixels: np.ndarray) -> None:
        """Paints the shape over (T, height, width, 3) float32 in [0, 1], in place."""
        self.draw_at(pixels, self.centres(*pixels.shape[:3]))

    def draw_at(self, pixels: np.ndarray, centres: np.ndarray) -> None:
        """The same with the centre of every frame, (T, 2), in the place of the shape's own motion."""
        reach = int(np.ceil(self.radius)) + 1
        # Only the square around the shape is computed.
        corners = np.floor(centres).astype(int) - reach  # (T, 2)
        offsets = np.arange(2 * reach + 2) + 0.5
        y, x = (corners[:, axis, None] + offsets - centres[:, axis, None] for axis in (0, 1))  # (T, side)
        cover = self._coverage(y.astype(np.float32)[:, :, None], x.astype(np.float32)[:, None, :])[..., None]
        colour = self.colour.astype(np.float32)
        for frame, (top, left), part in zip(pixels, corners, cover):
            skip_y, skip_x = max(0, -top), max(0, -left)
            patch = frame[top + skip_y : top + len(offsets), left + skip_x : left + len(offsets)]
            patch += part[skip_y : skip_y + len(patch), skip_x : skip_x + patch.shape[1]] * (colour - patch)

    def _coverage(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """How much of the pixels centred at (y, x) from the shape's centre it covers, in [0, 1]."""
        cosine, sine = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        distance = _signed_distance(self.outline, cosine * x + sine * y, cosine * y - sine * x, self.radius)
        return np.clip(0.5 - distance, 0, 1)


def _signed_distance(outline: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Distance to the outline that the circle of `radius` circumscribes, negative inside.

    Of polygons it is the distance to the nearest side's line, which differs from it only outside a corner.
    """
    if outline == "disc":
        return np.sqrt(x * x + y * y) - np.float32(radius)
    sides = 4 if outline == "square" else 3
    apothem = np.float32(radius * np.cos(np.pi / sides))
    normals = [2 * np.pi * side / sides for side in range(sides)]
    return np.max([np.float32(np.cos(n)) * x + np.float32(np.sin(n)) * y for n in normals], axis=0) - apothem


def random_shapes(config: ShapesConfig, generator: np.random.Generator) -> tuple[np.ndarray, list[Shape]]:
    """(background colour (3,) in [0, 1], shapes in drawing order)."""
    background = generator.uniform(*BACKGROUND, 3)
    size = (config.height, config.width)
    return background, [random_shape(size, config.radius, config.speed, generator) for _ in range(config.num_shapes)]


def random_shape(
    size: tuple[int, int], radii: tuple[float, float], speeds: tuple[float, float], generator: np.random.Generator
) -> Shape:
    """In pictures of `size` (height, width); radii are parts of the shorter side, speeds pixels per frame."""
    radius = generator.uniform(*radii) * min(size)
    direction, speed = generator.uniform(0, 2 * np.pi), generator.uniform(*speeds)
    return Shape(
        outline=OUTLINES[int(generator.integers(len(OUTLINES)))],
        radius=radius,
        angle=generator.uniform(0, 2 * np.pi),
        colour=generator.uniform(*FOREGROUND, 3),
        start=radius + generator.uniform(0, 1, 2) * (np.array(size) - 2 * radius),
        velocity=speed * np.array([np.sin(direction), np.cos(direction)]),
    )


def render(config: ShapesConfig, split: str, index: int) -> np.ndarray:
    """Clip `index` of a split: (clip_frames, height, width, 3) uint8, a function of (render_seed, split,
    index)."""
    generator = host_generator(config.render_seed, f"shapes {split}", index)
    background, shapes = random_shapes(config, generator)
    pixels = np.empty((config.clip_frames, config.height, config.width, 3), dtype=np.float32)
    pixels[:] = background
    for shape in shapes:
        shape.draw(pixels)
    return np.rint(pixels * 255).astype(np.uint8)


def encode(path: Path, frames: np.ndarray, fps: float) -> None:
    """Writes (T, H, W, 3) uint8 as H.264 in mp4, close to lossless but for the colours' half resolution.

    Written aside and renamed, so that a file of this name is always whole.
    """
    import av
    from fractions import Fraction

    with written_aside(path) as aside, av.open(str(aside), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = {"crf": "8", "preset": "ultrafast"}
        stream.codec_context.thread_count = 1
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def shapes_folder(config: ShapesConfig) -> Path:
    """The folder of this configuration's files; its name states all that the pictures depend on."""
    keys = ("height", "width", "clip_frames", "clip_fps", "num_shapes", "speed", "radius", "render_seed")
    counts = tuple(f"num_{split}clips" for split in ("", "val_", "test_"))
    identity = json.dumps([RENDER_VERSION, *(getattr(config, key) for key in keys + counts)])
    digest = hashlib.blake2b(identity.encode(), digest_size=5).hexdigest()
    name = f"shapes_{config.width}x{config.height}_{digest}"
    return (Path(config.cache).expanduser().absolute() if config.cache else cache_folder()) / name


def _files(config: ShapesConfig, folder: Path) -> Iterator[tuple[Path, str, int]]:
    """(path, split, index) of every file."""
    for split, count in zip(SPLITS, (config.num_clips, config.num_val_clips, config.num_test_clips)):
        for index in range(count):
            yield folder / split / f"{index:06d}.mp4", split, index


def render_all(config: ShapesConfig) -> Path:
    """Renders the files that are missing, shared over ranks, which must all call it. Returns the folder."""
    from tqdm import tqdm

    folder = shapes_folder(config)
    for split in SPLITS:
        (folder / split).mkdir(parents=True, exist_ok=True)
    files = list(_files(config, folder))
    mine = [files[place] for place in distributed.shard(len(files)) if not files[place][0].exists()]
    quiet = not mine or not distributed.is_main()
    for path, split, index in tqdm(mine, desc=f"rendering shapes into {folder}", unit="clip", disable=quiet):
        encode(path, render(config, split, index), config.clip_fps)
    distributed.barrier()
    for path, split, index in files:
        if not path.exists():  # Ranks on other machines rendered into their own cache.
            encode(path, render(config, split, index), config.clip_fps)
    distributed.barrier()
    return folder


@DATASETS.register("shapes", ShapesConfig)
def build_shapes(config: ShapesConfig, split: str, seed: int) -> VideoFolder:
    folder = render_all(config)
    common = {field.name: getattr(config, field.name) for field in dataclasses.fields(ClipConfig)}
    videos = VideoFolderConfig(
        **{**common, "kind": "video_folder", "root": str(folder), "split_by": "folders"}
    )
    return build_video_folder(videos, split, seed)
