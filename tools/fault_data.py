"""Clips for the fault bench: small scenes rendered into npy files, sound or damaged, which the `arrays` kind reads.

A scene's clips are a function of the scene alone. `damage` is what may have happened to them on the way to the files.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
from fault_scenes import SCENES

from vidpred.data.config import SPLITS
from vidpred.data.shapes import ShapesConfig, random_shapes
from vidpred.files import written_aside
from vidpred.random_streams import host_generator

DAMAGES = ("none", "constant", "duplicated", "one_clip", "shuffled", "swapped", "foreign", "cast", "brightens")
SEGMENTS = (  # of the digits 0 to 9: top, upper left and right, middle, lower left and right, bottom
    "1110111", "0010010", "1011101", "1011011", "0111010", "1101011", "1101111", "1010010", "1111111", "1111011",
)  # fmt: skip
WARM = np.array([1.0, 0.7, 0.2]), np.array([0.0, 0.05, 0.3])  # factor and offset of red, green, blue


@dataclass(frozen=True)
class Scene:
    """What clips show.

    kind: shapes (discs, squares, triangles that bounce), digits (seven segments, which leave the walls in random
    directions), panorama (a smooth picture that scrolls), street (shapes before a standing picture), or a name in
    fault_scenes.SCENES.
    height, width: in pixels. frames: in a file's clip. speed: slowest and fastest motion, in pixels per frame.
    heading: its direction, in radians; None: any. objects: shapes or digits. wavelength: shortest in a panorama, in
    pixels. colours: any, warm (red far above blue) or grey. bars: black rows at the top and at the bottom. noise:
    deviation of white noise, in grey levels. cuts: part of the clips that change to another scene in their middle.
    damage: one of DAMAGES. held: how often a duplicated frame is shown, or how many frames come from another clip, or
    come before a cast. strength: of a cast on all later frames, in grey levels (red up and blue down), or of what each
    frame is brighter than the one before it.
    clips: (training, validation).
    """

    kind: str = "shapes"
    height: int = 32
    width: int = 32
    frames: int = 20
    speed: tuple[float, float] = (1.0, 2.5)
    heading: Optional[float] = None
    objects: int = 1
    wavelength: float = 12.0
    colours: str = "any"
    bars: int = 0
    noise: float = 0.0
    cuts: float = 0.0
    damage: str = "none"
    held: int = 3
    strength: float = 0.0
    clips: tuple[int, int] = (256, 32)
    seed: int = 0


def write_scene(scene: Scene, folder: Path) -> Path:
    """The folder below `folder` with the scene's clips, for data.kind arrays and data.root; rendered once."""
    root = folder / hashlib.sha256(json.dumps(dataclasses.asdict(scene)).encode()).hexdigest()[:16]
    for split, count in zip(SPLITS, (*scene.clips, 1)):
        path = root / split / "clips.npy"
        if not path.exists():
            clips = np.stack([damaged_clip(scene, split, index) for index in range(count)])
            with written_aside(path) as aside:
                np.save(aside, clips)
    return root


def damaged_clip(scene: Scene, split: str, index: int) -> np.ndarray:
    """(T, H, W, 3) uint8 of clip `index` of a split, with the scene's damage."""
    if scene.damage == "one_clip":
        return clip(scene, "train", 0)
    frames = clip(scene, split, index)
    if scene.damage == "foreign":
        return np.concatenate([clip(scene, f"{split} elsewhere", index)[: scene.held], frames[scene.held :]])
    if scene.damage == "constant":
        return np.repeat(frames[:1], len(frames), axis=0)
    if scene.damage == "duplicated":
        return np.repeat(frames, scene.held, axis=0)[: len(frames)]
    if scene.damage == "shuffled":
        return frames[host_generator(scene.seed, f"order {split}", index).permutation(len(frames))]
    if scene.damage in ("cast", "brightens"):
        return _tinted(scene, frames)
    return frames[..., ::-1] if scene.damage == "swapped" else frames


def _tinted(scene: Scene, frames: np.ndarray) -> np.ndarray:
    number = np.arange(len(frames))[:, None, None, None]
    if scene.damage == "cast":
        added = scene.strength * (number >= scene.held) * np.array([1.0, 0.3, -1.0])
    else:  # none at the middle frame
        added = scene.strength * (number - (len(frames) - 1) / 2)
    return (frames + added).round().clip(0, 255).astype(np.uint8)


def clip(scene: Scene, split: str, index: int) -> np.ndarray:
    """(T, H, W, 3) uint8 of clip `index` of a split, sound."""
    pixels = _picture(scene, split, index).astype(np.float64)
    generator = host_generator(scene.seed, f"film {split}", index)
    if generator.random() < scene.cuts:
        half = scene.frames // 2
        pixels[half:] = _picture(scene, f"{split} after the cut", index)[half:]
    if scene.colours == "grey":
        pixels = np.repeat(pixels.mean(axis=3, keepdims=True), 3, axis=3)
    elif scene.colours == "warm":
        pixels = pixels * WARM[0] + 255 * WARM[1]
    if scene.noise:
        pixels = pixels + scene.noise * generator.standard_normal(pixels.shape)
    if scene.bars:
        pixels[:, : scene.bars] = pixels[:, -scene.bars :] = 0
    return pixels.round().clip(0, 255).astype(np.uint8)


def _picture(scene: Scene, split: str, index: int) -> np.ndarray:
    """(T, H, W, 3) in [0, 255]: the scene as it is, before the film, with its colours, noise and bars."""
    if scene.kind == "digits":
        return digits(scene, split, index)
    if scene.kind == "panorama":
        return 255 * panorama(scene, split, index, moves=True)
    if scene.kind in SCENES:
        return 255 * SCENES[scene.kind](scene, host_generator(scene.seed, f"{scene.kind} {split}", index))
    config = ShapesConfig(
        num_frames=scene.frames, clip_frames=scene.frames, height=scene.height, width=scene.width,
        num_shapes=scene.objects, speed=scene.speed, radius=(0.15, 0.25),
    )  # fmt: skip
    ground, shapes = random_shapes(config, host_generator(scene.seed, f"shapes {split}", index))
    pixels = np.empty((scene.frames, scene.height, scene.width, 3), dtype=np.float32)
    pixels[:] = ground if scene.kind == "shapes" else 0.6 * panorama(scene, split, index, moves=False)
    for shape in shapes:
        if scene.heading is not None:
            speed = np.hypot(*shape.velocity)
            shape = dataclasses.replace(shape, velocity=speed * _heading(scene.heading))
        shape.draw(pixels)
    return 255 * pixels


def panorama(scene: Scene, split: str, index: int, moves: bool) -> np.ndarray:
    """(T, H, W, 3) in [0, 1]: eight random waves in each colour, seen from a place that moves evenly."""
    generator = host_generator(scene.seed, f"panorama {split}", index)
    shift = np.arange(scene.frames)[:, None] * _velocity(scene, generator) * moves
    y = np.arange(scene.height)[None, :, None] + shift[:, :1, None]  # (T, H, 1)
    x = np.arange(scene.width)[None, None, :] + shift[:, 1:, None]  # (T, 1, W)
    picture = np.zeros((scene.frames, scene.height, scene.width, 3))
    for _ in range(8):
        angle, length = generator.uniform(0, 2 * np.pi), scene.wavelength * generator.uniform(1, 3)
        phase = 2 * np.pi / length * (np.sin(angle) * y + np.cos(angle) * x) + generator.uniform(0, 2 * np.pi)
        picture += np.cos(phase)[..., None] * generator.uniform(0, 0.2, 3)
    return (0.5 + picture / 2).clip(0, 1)


def digits(scene: Scene, split: str, index: int) -> np.ndarray:
    """(T, H, W, 3) in [0, 255]: grey digits on black; each leaves a wall in a random direction."""
    pixels = np.zeros((scene.frames, scene.height, scene.width))
    side = min(scene.height, scene.width) // 2
    for number in range(scene.objects):
        generator = host_generator(scene.seed, f"digit {number} {split}", index)
        picture = glyph(int(generator.integers(10)), side)
        room = np.array([scene.height, scene.width]) - side
        position, velocity = generator.uniform(0, room), _velocity(scene, generator)
        for frame in pixels:
            top, left = position.round().astype(int)
            frame[top : top + side, left : left + side] += picture
            position = position + velocity
            inside = position.clip(0, room)
            if (inside != position).any():
                inwards, velocity = np.sign(inside - position), _velocity(scene, generator)
                velocity = np.where(inwards != 0, inwards * np.abs(velocity), velocity)
                position = inside
    return np.repeat(pixels.clip(0, 255)[..., None], 3, axis=3)


def glyph(digit: int, side: int) -> np.ndarray:
    """(side, side) in [0, 255]: a digit of seven segments, strokes an eighth of the side wide."""
    stroke, picture = max(1, side // 8), np.zeros((side, side))
    left, right, middle = side // 4, side - side // 4, side // 2
    tops = {0: 0, 3: middle - stroke // 2, 6: side - stroke}
    for segment, lit in enumerate(SEGMENTS[digit]):
        if lit == "0":
            continue
        if segment in tops:
            picture[tops[segment] : tops[segment] + stroke, left:right] = 255
        else:
            rows = slice(0, middle) if segment < 3 else slice(middle, side)
            column = left if segment in (1, 4) else right - stroke
            picture[rows, column : column + stroke] = 255
    return picture


def _velocity(scene: Scene, generator: np.random.Generator) -> np.ndarray:
    """(2,) in pixels per frame, down and right."""
    direction, speed = generator.uniform(0, 2 * np.pi), generator.uniform(*scene.speed)
    return speed * _heading(direction if scene.heading is None else scene.heading)


def _heading(direction: float) -> np.ndarray:
    return np.array([np.sin(direction), np.cos(direction)])
