"""A small classifier of MNIST's digits as moving_digits renders them, trained once and kept in the cache.

A digit's square has s pixels a side in the clips and S = 20 here: every frame is first resized by S / s. The network
looks at one square of S x S: without strides but for one pooling, so that it can look at all squares of a frame at
once, the later layers dilated by 2 (Giusti et al. 2013, "Fast image scanning with deep max-pooling convolutional
neural networks"); scores are the same either way. Positions (y, x) are those of a square's upper left corner.
Labels are 0 .. 9, and NOTHING for background, parts of digits, noise and smears.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from vidpred.data import MovingDigitsConfig
from vidpred.data.mnist_files import Digits, find_file, resize
from vidpred.data.moving_digits import read_digits
from vidpred.data.scan import cache_folder, fingerprint
from vidpred.errors import UserError
from vidpred.files import written_aside

VERSION = 1  # part of the file's name: raise it with any change of the network or its training
SQUARE = 20  # S
NOTHING = 10
CLOSE, FAR = 2, 5  # of S: a square this close to a digit's shows it, one this far from all shows none
LEAST_ACCURACY = 0.98
STEPS, FRAMES_PER_STEP, PEAK_RATE = 1400, 160, 4e-3


class DigitNetwork(nn.Module):
    """Scores of squares: (N, 1, h, w) in [0, 1] -> (N, 11, h - 19, w - 19) logits, one for every square.

    On single squares (h = w = 20) with a stride, else dilated.
    """

    def __init__(self, channels: tuple[int, int, int] = (16, 32, 64)):
        super().__init__()
        ins = (1, *channels[:-1])
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3, bias=False) for i, o in zip(ins, channels))
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in channels)
        self.head = nn.Conv2d(channels[-1], NOTHING + 1, 5)  # 20 -3x3-> 18 -pool-> 9 -3x3-> 7 -3x3-> 5

    def forward(self, x: Tensor) -> Tensor:
        stride = 2 if x.shape[-2:] == (SQUARE, SQUARE) else 1
        dilation = 2 // stride
        first, second, third = self.convolutions
        x = self.norms[0](first(x)).relu()
        x = F.max_pool2d(x, 2, stride)
        x = self.norms[1](F.conv2d(x, second.weight, dilation=dilation)).relu()
        x = self.norms[2](F.conv2d(x, third.weight, dilation=dilation)).relu()
        return F.conv2d(x, self.head.weight, self.head.bias, dilation=dilation)


@dataclass(frozen=True)
class DigitClassifier:
    """network: in eval mode. side: of a digit's square in the clips' pixels (s). accuracy: on MNIST's test digits,
    each alone in its frame."""

    network: DigitNetwork
    side: int
    accuracy: float

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """Frames (N, 3 or 1, H, W) uint8 -> probabilities (N, 11, y, x) of every square, on the network's device."""
        grey = frames.to(self.network.head.weight.device).float().mean(dim=1, keepdim=True) / 255
        return self.network(to_scale(grey, self.side)).softmax(dim=1)


def to_scale(grey: Tensor, side: int) -> Tensor:
    """(N, 1, H, W) with digits of `side` pixels -> the same with digits of S pixels."""
    if side == SQUARE:
        return grey
    size = [round(length * SQUARE / side) for length in grey.shape[-2:]]
    return F.interpolate(grey, size=size, mode="bilinear", antialias=True, align_corners=False)


def trained_classifier(config: MovingDigitsConfig, device: torch.device) -> DigitClassifier:
    """The classifier for clips of `config`: from the cache, or trained (a minute or two on one core).

    Raises UserError where MNIST's files are missing, or where the result knows less than 98 % of the test digits.
    """
    path = _path(config)
    network = DigitNetwork()
    if path.is_file():
        with safe_open(str(path), "pt") as file:
            accuracy = float(file.metadata()["accuracy"])
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
    else:
        network = train(config, device)
        accuracy = isolated_accuracy(network, config)
        if accuracy < LEAST_ACCURACY:
            raise UserError(
                f"digits: the classifier knows {accuracy:.1%} of the test digits, {config.side} pixels a side, "
                f"and {LEAST_ACCURACY:.0%} are needed; set a larger data.digit_size, or check MNIST's files"
            )
        _save(network, accuracy, path)
    return DigitClassifier(network.to(device).eval().requires_grad_(False), config.side, accuracy)


def _path(config: MovingDigitsConfig) -> Path:
    """Beside the data's own cache; the name states all that the weights depend on."""
    root = Path(str(config.root)).expanduser().absolute()
    files = [find_file(root, "train", content) for content in ("images", "labels")]
    prints = [fingerprint(file) for file in files if file is not None]
    identity = json.dumps([VERSION, config.height, config.width, config.side, config.num_digits, prints])
    digest = hashlib.blake2b(identity.encode(), digest_size=5).hexdigest()
    name = f"{config.width}x{config.height}_{config.side}_{digest}.safetensors"
    return cache_folder() / "digit_classifiers" / name


def _save(network: nn.Module, accuracy: float, path: Path) -> None:
    tensors = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    with written_aside(path) as aside:
        save_file(tensors, str(aside), {"accuracy": f"{accuracy:.6f}"})


# Training --------------------------------------------------------------------------------------------------


class Squares(NamedTuple):
    """pictures (N, 1, S, S) in [0, 1]; labels (N,) int64, -100 where it is not clear what a square shows."""

    pictures: Tensor
    labels: Tensor


def train(config: MovingDigitsConfig, device: torch.device) -> DigitNetwork:
    """A network trained on frames of MNIST's training digits; a function of the configuration alone."""
    digits = _resized(read_digits(config, "train"), config.side)
    generator = np.random.default_rng(VERSION)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(VERSION)
        network = DigitNetwork().to(device).train()
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=STEPS)
        for _ in tqdm(range(STEPS), desc="training a classifier of digits", unit="step", leave=False):
            squares = training_squares(digits, config, FRAMES_PER_STEP, generator)
            logits = network(squares.pictures.to(device)).flatten(1)
            loss = F.cross_entropy(logits, squares.labels.to(device), ignore_index=-100)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            rate.step()
    return network.eval()


def _resized(digits: Digits, side: int) -> Digits:
    return Digits(np.stack([resize(picture, side) for picture in digits.pictures]), digits.labels)


def training_squares(
    digits: Digits, config: MovingDigitsConfig, count: int, generator: np.random.Generator
) -> Squares:
    """Squares of `count` random frames: one at every digit, one anywhere, and a few of noise and of smears."""
    chosen = generator.integers(len(digits.labels), size=(count, config.num_digits))
    room = np.array([config.height, config.width]) - config.side
    positions = generator.integers(0, room, size=(*chosen.shape, 2))
    frames = to_scale(_frames(digits, config, chosen, positions), config.side)
    corners = positions * (SQUARE / config.side)  # of the digits, in pixels of `frames`
    last = np.array(frames.shape[-2:]) - SQUARE
    at_digits = np.rint(corners) + generator.integers(-CLOSE, CLOSE + 1, size=corners.shape)
    anywhere = generator.integers(0, last + 1, size=(count, 1, 2))
    places = np.concatenate([at_digits, anywhere], axis=1)  # (count, n + 1, 2)
    places = np.clip(places, 0, last).astype(np.int64)
    labels = _labels(places, corners, digits.labels[chosen])
    pictures = _disturbed(_cut(frames, places), generator)
    few = anywhere[: count // 4]
    smears = _cut(F.avg_pool2d(frames[: count // 4], SQUARE // 2 + 1, 1, SQUARE // 4), few)
    noise = torch.from_numpy(generator.random((count // 4, 1, SQUARE, SQUARE), dtype=np.float32))
    noise *= torch.from_numpy(generator.random((count // 4, 1, 1, 1), dtype=np.float32))
    nothing = np.full(len(smears) + len(noise), NOTHING)
    return Squares(
        torch.cat([pictures, smears, noise]), torch.from_numpy(np.concatenate([labels.ravel(), nothing]))
    )


def _frames(digits: Digits, config: MovingDigitsConfig, chosen: np.ndarray, positions: np.ndarray) -> Tensor:
    """(N, 1, H, W) in [0, 1] with the digits `chosen` (N, n) at `positions` (N, n, 2): their sum, as in the clips."""
    frames = np.zeros((len(chosen), config.height, config.width), dtype=np.uint16)
    for frame, row, corners in zip(frames, chosen, positions.tolist()):
        for digit, (top, left) in zip(row, corners):
            frame[top : top + config.side, left : left + config.side] += digits.pictures[digit]
    return torch.from_numpy(np.minimum(frames, 255).astype(np.float32) / 255)[:, None]


def _labels(places: np.ndarray, corners: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What squares at `places` (N, m, 2) show of digits with `labels` (N, n) at `corners` (N, n, 2): (N, m).

    The digit that is close, if no other one is nearly as close; nothing where all are far; else -100.
    """
    distances = np.abs(places[:, :, None] - corners[:, None]).max(axis=-1)  # (N, m, n)
    nearest = distances.argmin(axis=-1)
    nobody = np.full((*places.shape[:2], 1), np.inf)  # a second one where there is but one digit
    ascending = np.sort(np.concatenate([distances, nobody], axis=-1), axis=-1)
    shown = np.take_along_axis(labels, nearest, axis=1).astype(np.int64)
    clear = (ascending[..., 0] <= CLOSE + 0.5) & (ascending[..., 1] >= ascending[..., 0] + CLOSE)
    return np.where(clear, shown, np.where(ascending[..., 0] >= FAR, NOTHING, -100))


def _cut(frames: Tensor, places: np.ndarray) -> Tensor:
    """Squares of frames (N, 1, h, w) at whole `places` (N, m, 2): (N * m, 1, S, S)."""
    tops, lefts = (torch.from_numpy(places[..., axis, None]) + torch.arange(SQUARE) for axis in (0, 1))
    number = torch.arange(len(frames))[:, None, None, None]
    return frames[number, 0, tops[..., None], lefts[..., None, :]].flatten(0, 1)[:, None]


def _disturbed(pictures: Tensor, generator: np.random.Generator) -> Tensor:
    """A little darker, softer and noisier, each by another amount: predictions are not exact to the pixel."""
    shape = (len(pictures), 1, 1, 1)
    dim, soft, rough = (torch.from_numpy(generator.random(shape, dtype=np.float32)) for _ in range(3))
    pictures = pictures + soft * (F.avg_pool2d(pictures, 3, 1, 1) - pictures)
    noise = torch.from_numpy(generator.standard_normal(pictures.shape, dtype=np.float32))
    return ((1 - 0.4 * dim) * pictures + 0.08 * rough * noise).clamp(0, 1)


@torch.no_grad()
def isolated_accuracy(network: DigitNetwork, config: MovingDigitsConfig) -> float:
    """Share of MNIST's test digits (those of both splits that training never shows) that are known, each alone in
    its frame, somewhere."""
    generator, right, count = np.random.default_rng(VERSION), 0, 0
    device = network.head.weight.device
    for split in ("val", "test"):
        digits = _resized(read_digits(config, split), config.side)
        for rows in np.array_split(np.arange(len(digits.labels)), -(-len(digits.labels) // 500)):
            room = np.array([config.height, config.width]) - config.side
            positions = generator.integers(0, room, size=(len(rows), 1, 2))
            frames = to_scale(_frames(digits, config, rows[:, None], positions), config.side)
            last = np.array(frames.shape[-2:]) - SQUARE
            places = np.clip(np.rint(positions * (SQUARE / config.side)), 0, last).astype(np.int64)
            found = network(_cut(frames, places).to(device)).flatten(1).argmax(dim=1).cpu().numpy()
            right, count = right + int((found == digits.labels[rows]).sum()), count + len(rows)
    return right / count
