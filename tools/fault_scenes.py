"""More scenes of the fault bench, which its judgement alone shows: each (T, H, W, 3) in [0, 1] of one generator.

`speed` is in pixels per frame; where a scene turns or zooms, that of a point half the shorter side from its centre.
"""

from typing import Any, Callable

import numpy as np

GRAVITY = 0.35  # pixels per frame and frame


def rotating(scene: Any, generator: np.random.Generator) -> np.ndarray:
    """A picture of waves that turns evenly around the middle of the frame, either way."""
    y, x = _grid(scene)
    speed = generator.uniform(*scene.speed) / (min(scene.height, scene.width) / 2)
    turn = speed * (1 if scene.heading is not None else generator.choice([-1, 1]))
    angles = generator.uniform(0, 2 * np.pi) + turn * np.arange(scene.frames)[:, None, None]
    return _waves(scene, generator, np.cos(angles) * y - np.sin(angles) * x, np.sin(angles) * y + np.cos(angles) * x)


def plasma(scene: Any, generator: np.random.Generator) -> np.ndarray:
    """Clouds: two pictures of waves that drift over each other, each its own way."""
    y, x = _grid(scene)
    layers = []
    for _ in range(2):
        heading = generator.uniform(0, 2 * np.pi) if scene.heading is None else scene.heading
        shift = generator.uniform(*scene.speed) * np.arange(scene.frames)[:, None, None]
        layers.append(_waves(scene, generator, y + np.sin(heading) * shift, x + np.cos(heading) * shift))
    return layers[0] / 2 + layers[1] / 2


def zoom(scene: Any, generator: np.random.Generator) -> np.ndarray:
    """A soft checkerboard of two colours that comes nearer."""
    y, x = _grid(scene)
    rate = generator.uniform(*scene.speed) / (min(scene.height, scene.width) / 2) / 2
    size = scene.wavelength / 2 * (1 + rate) ** np.arange(scene.frames)[:, None, None]
    phases = generator.uniform(-np.pi, np.pi, 2)
    board = np.tanh(3 * np.sin(np.pi * y / size + phases[0]) * np.sin(np.pi * x / size + phases[1]))
    colours = generator.uniform(0.05, 0.95, (2, 3))
    return colours[0] + (board[..., None] + 1) / 2 * (colours[1] - colours[0])


def falling(scene: Any, generator: np.random.Generator) -> np.ndarray:
    """Letters of 3 x 3 blocks that fall, in columns of one speed, and come in again at the top."""
    speed, cell = generator.uniform(*scene.speed), 8
    rows, columns = -(-scene.height // cell) + 1, -(-scene.width // cell)
    letters = np.zeros((rows, columns, cell, cell))
    letters[..., 1:7, 1:7] = (generator.random((rows, columns, 3, 3)) < 0.5).repeat(2, axis=2).repeat(2, axis=3)
    page = letters.transpose(0, 2, 1, 3).reshape(rows * cell, columns * cell)
    ground, ink = generator.uniform(0, 0.3, 3), generator.uniform(0.5, 1, 3)
    frames = np.empty((scene.frames, scene.height, scene.width, 3))
    for number, frame in enumerate(frames):
        place = (np.arange(scene.height) - speed * number) % len(page)
        low, part = np.floor(place).astype(int), (place % 1)[:, None]
        lines = (1 - part) * page[low] + part * page[(low + 1) % len(page)]
        frame[:] = ground + lines[:, : scene.width, None] * (ink - ground)
    return frames


def balls(scene: Any, generator: np.random.Generator) -> np.ndarray:
    """Balls that fall and bounce, before a standing picture of waves."""
    return _balls(scene, generator, kicked=False)


def kicked(scene: Any, generator: np.random.Generator) -> np.ndarray:
    """Balls without weight that take another direction at a quarter of the frames: nobody knows which."""
    return _balls(scene, generator, kicked=True)


def _balls(scene: Any, generator: np.random.Generator, kicked: bool) -> np.ndarray:
    y, x = _grid(scene)
    ground = 0.5 * _waves(scene, generator, y[None], x[None])
    frames = np.repeat(ground, scene.frames, axis=0)
    centre = np.array([scene.height, scene.width]) / 2
    for _ in range(scene.objects):
        radius, colour = generator.uniform(0.14, 0.22) * min(scene.height, scene.width), generator.uniform(0.4, 1, 3)
        room = centre - radius
        place, velocity = generator.uniform(-room, room), _direction(generator) * generator.uniform(*scene.speed)
        for frame in frames:
            inside = np.clip(radius - np.hypot(y - place[0], x - place[1]) + 0.5, 0, 1)[..., None]
            frame[:] = frame + inside * (colour - frame)
            if not kicked:
                velocity = velocity + np.array([GRAVITY, 0])
            elif generator.random() < 0.25:
                velocity = np.hypot(*velocity) * _direction(generator)
            place = place + velocity
            beyond = np.abs(place) > room
            place = np.where(beyond, np.sign(place) * 2 * room - place, place)
            velocity = np.where(beyond, -velocity, velocity)
    return frames


SCENES: dict[str, Callable[[Any, np.random.Generator], np.ndarray]] = {
    scene.__name__: scene for scene in (rotating, plasma, zoom, falling, balls, kicked)
}


def _grid(scene: Any) -> tuple[np.ndarray, np.ndarray]:
    """(H, 1), (1, W): rows and columns in pixels from the middle."""
    y, x = (np.arange(side) - (side - 1) / 2 for side in (scene.height, scene.width))
    return y[:, None], x[None, :]


def _waves(scene: Any, generator: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(..., 3) in [0, 1] at the places (y, x)."""
    picture = 0.0
    for _ in range(6):
        angle, length = generator.uniform(0, 2 * np.pi), scene.wavelength * generator.uniform(1, 2.5)
        phase = 2 * np.pi / length * (np.sin(angle) * y + np.cos(angle) * x) + generator.uniform(0, 2 * np.pi)
        picture = picture + np.cos(phase)[..., None] * generator.uniform(0.05, 0.3, 3)
    return np.clip(0.5 + picture / 2, 0, 1)


def _direction(generator: np.random.Generator) -> np.ndarray:
    angle = generator.uniform(0, 2 * np.pi)
    return np.array([np.sin(angle), np.cos(angle)])
