"""What is measured of a long rollout, window by window, and beside it what the truth gives.

B clips of K context frames, N new frames in windows of U. A window is what the figures are of; how many frames the
predictor makes at once may be another number.
The truth may end before the rollout does (M <= N frames), as a video file may. Everything but the frames of the first
clip is reduced as soon as a window is finished, so that measuring takes no memory that grows with the length.
"""

import copy
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterator, Optional

import torch
from digit_detector import DigitDetector, apart, chance, matches
from torch import Tensor
from tqdm import tqdm

from vidpred.autoencoders import Autoencoder
from vidpred.conditions import ConditionBatch
from vidpred.data import DigitTracks
from vidpred.diagnosis.findings import OUTSIDE
from vidpred.metrics import motion_energy, psnr
from vidpred.prediction import NotFiniteError, Predictor, RolloutOptions
from vidpred.tensor_ops import to_uint8

HALF_GREY = 0.5 / 255  # rounding takes values this far outside [0, 1] back


@dataclass(frozen=True)
class Digits:
    """Which digits the clips show: labels (B, n), positions (B, M, n, 2) in pixels, side of their squares."""

    detector: DigitDetector
    labels: Tensor
    positions: Tensor
    side: int

    @staticmethod
    def of_tracks(detector: DigitDetector, tracks: list[DigitTracks], context: int, side: int) -> "Digits":
        positions = torch.stack([torch.from_numpy(track.positions[context:]) for track in tracks])
        labels = torch.stack([torch.from_numpy(track.labels) for track in tracks])
        return Digits(detector, labels, positions, side)


@dataclass(frozen=True)
class Scene:
    """What is rolled out: context (B, K, 3, H, W) and truth (B, M, 3, H, W), uint8; draws (B,) of the randomness;
    windows of `window_frames` frames each; conditions: of the clips, what the model takes, an action for each frame."""

    predictor: Predictor
    context: Tensor
    truth: Tensor
    draws: Tensor
    windows: int
    window_frames: int
    seed: int
    digits: Optional[Digits]
    conditions: Optional[ConditionBatch] = None

    @property
    def num_frames(self) -> int:
        return self.windows * self.window_frames

    def window_truth(self, number: int) -> Tensor:
        """(B, m, 3, H, W), m < U where the truth ends in this window or before it."""
        return self.truth[:, number * self.window_frames : (number + 1) * self.window_frames]


@dataclass(frozen=True)
class DigitFigures:
    """Shares of the clips' digits in a window's frames.

    found: recognised. in_half: of the digits, those that are recognised in at least half of the frames. chance:
    "found" when each clip is given the labels of another one, None of a single clip.
    """

    found: float
    in_half: float
    chance: Optional[float]


@dataclass(frozen=True)
class WindowFigures:
    """One window, means over the clips.

    psnr: dB of each frame that has a truth. motion: energy in [0, 1]. motion_ratio: over that of the truth, None
    where no truth moves. outside, far_outside: shares of the decoded values beyond [0, 1] and beyond [-0.1, 1.1];
    lowest, highest: of them. resident_mib: of the process when the window is done. device_mib: the GPU's peak while
    the window was sampled.
    """

    psnr: list[float]
    motion: float
    motion_ratio: Optional[float]
    outside: float
    far_outside: float
    lowest: float
    highest: float
    resident_mib: float
    device_mib: Optional[float]
    digits: Optional[DigitFigures]


@dataclass(frozen=True)
class Behaviour:
    """A whole rollout; `failure` says what ended it early, a value that is not finite."""

    options: RolloutOptions
    windows: list[WindowFigures]
    failure: Optional[str]

    @property
    def name(self) -> str:
        return f"{self.options.scheme}, stabilization {self.options.stabilization:g}"

    @property
    def memory_growth(self) -> Optional[float]:
        """From the first window to the last, as a fraction: of the GPU's peak where there is one, else resident."""
        if not self.windows:
            return None
        first, last = (
            window.resident_mib if window.device_mib is None else window.device_mib
            for window in (self.windows[0], self.windows[-1])
        )
        return last / first - 1

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "finite": self.failure is None, "memory_growth": self.memory_growth}


@dataclass(frozen=True)
class References:
    """floor (copy of the last context frame) and ceiling (the truth through the autoencoder): dB, (M,).
    motion: mean energy of the truth in each window; past the truth's end the mean of the windows before, None where
    there are none. digits: what is found in the true frames of each window; digits_apart: `found` over all true
    frames whose digits do not overlap much, apart_share of them all. last_shown: the last context frame as the
    autoencoder shows it, (B, 1, 3, H, W) uint8.
    """

    floor: list[float]
    ceiling: list[float]
    motion: list[Optional[float]]
    digits: Optional[list[DigitFigures]]
    digits_apart: Optional[float]
    apart_share: Optional[float]
    last_shown: Tensor

    def to_json(self) -> dict[str, Any]:
        digits = self.digits and [asdict(window) for window in self.digits]
        plain = {name: value for name, value in vars(self).items() if name != "last_shown"}
        return {**plain, "digits": digits}


# The truth -------------------------------------------------------------------------------------------------


def measure_references(scene: Scene) -> References:
    """Floor, ceiling, motion and digits of the truth; the same for all ways of rolling out."""
    floor, ceiling, motion = [], [], []
    previous = scene.context[:, -1:]
    for number in range(scene.windows):
        truth = scene.window_truth(number)
        if truth.shape[1]:
            ceiling += _mean_psnr(_through_autoencoder(scene.predictor, truth), truth)
            floor += _mean_psnr(scene.context[:, -1:].expand_as(truth), truth)
        whole = truth.shape[1] == scene.window_frames
        motion.append(float(motion_energy(torch.cat([previous, truth], dim=1)).mean()) if whole else None)
        previous = truth[:, -1:]
    known = [value for value in motion if value is not None]
    typical = sum(known) / len(known) if known else None
    digits, found_apart, share = _true_digits(scene) if scene.digits else (None, None, None)
    return References(
        floor, ceiling, [typical if value is None else value for value in motion], digits, found_apart, share,
        _through_autoencoder(scene.predictor, scene.context[:, -1:]),
    )  # fmt: skip


def _true_digits(scene: Scene) -> tuple[list[DigitFigures], Optional[float], float]:
    """(figures by window, share found where digits are apart, share of such frames): the detector's own ceiling."""
    digits = scene.digits
    found = [digits.detector(scene.window_truth(number)) for number in range(scene.windows)]
    clear = apart(digits.positions, digits.side)  # (B, M)
    right = matches(torch.cat(found, dim=1), digits.labels[:, None])[clear].double()
    by_window = [_digit_figures(some, digits.labels) for some in found]
    return by_window, float(right.mean()) if len(right) else None, float(clear.double().mean())


def _digit_figures(found: Tensor, labels: Tensor) -> DigitFigures:
    """Of answers (B, U, n) in a window of clips with `labels` (B, n)."""
    right = matches(found, labels[:, None]).double()  # (B, U, n)
    in_half = (right.mean(dim=1) >= 0.5).double()
    return DigitFigures(float(right.mean()), float(in_half.mean()), chance(found, labels))


def _through_autoencoder(predictor: Predictor, frames: Tensor) -> Tensor:
    return to_uint8(predictor.decode(predictor.encode(frames))).to(frames.device)


def _mean_psnr(frames: Tensor, truth: Tensor) -> list[float]:
    return psnr(frames, truth).mean(dim=0).tolist()


# The rollout -----------------------------------------------------------------------------------------------


class RangeWatch:
    """An autoencoder that remembers, of every frame that it decodes, how far its values leave [0, 1]."""

    def __init__(self, autoencoder: Autoencoder):
        self._autoencoder = autoencoder
        self.encode, self.down_factor = autoencoder.encode, autoencoder.down_factor
        self._frames: list[tuple[float, float, float, float]] = []

    def decode(self, latents: Tensor) -> Tensor:
        frames = self._autoencoder.decode(latents)
        beyond = torch.maximum(-frames, frames - 1).transpose(0, 1).flatten(1)  # (T, values)
        by_frame = frames.transpose(0, 1).flatten(1)
        columns = (
            (beyond > HALF_GREY).float().mean(dim=1), (beyond > OUTSIDE).float().mean(dim=1),
            by_frame.amin(dim=1), by_frame.amax(dim=1),
        )  # fmt: skip
        self._frames += zip(*(column.tolist() for column in columns))
        return frames

    def take(self, count: int) -> dict[str, float]:
        """Figures of the next `count` frames, which are then forgotten."""
        taken, self._frames = self._frames[:count], self._frames[count:]
        outside, far, lowest, highest = zip(*taken)
        return {
            "outside": sum(outside) / count, "far_outside": sum(far) / count,
            "lowest": min(lowest), "highest": max(highest),
        }  # fmt: skip


def roll_out(scene: Scene, options: RolloutOptions, references: References, shown: Tensor) -> Behaviour:
    """Rolls the clips out and measures every window; `shown` (N, 3, H, W) receives the first clip's frames."""
    predictor = copy.copy(scene.predictor)
    predictor.autoencoder = watch = RangeWatch(scene.predictor.autoencoder)
    pieces = predictor.rollout(
        scene.context, scene.num_frames, scene.seed,
        condition=scene.conditions, options=options, draws=scene.draws,
    )  # fmt: skip
    behaviour, previous = Behaviour(options, [], None), references.last_shown
    device = predictor.device
    with tqdm(total=scene.num_frames, desc=behaviour.name, unit="frame", leave=False) as bar:
        try:
            _forget_peak(device)
            for number, frames in enumerate(in_windows(pieces, scene.window_frames)):
                peak = _device_peak_mib(device)
                shown[number * scene.window_frames :][: scene.window_frames] = frames[0]
                ranges = watch.take(scene.window_frames)
                measured = _measure(scene, number, frames, previous, references, ranges, peak)
                behaviour.windows.append(measured)
                previous = frames[:, -1:]
                bar.update(scene.window_frames)
                _forget_peak(device)
        except NotFiniteError as error:
            return Behaviour(options, behaviour.windows, str(error))
    return behaviour


def in_windows(pieces: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """Pieces (B, any number, ...) of a rollout -> windows (B, size, ...)."""
    held: list[Tensor] = []
    for piece in pieces:
        held.append(piece)
        while sum(some.shape[1] for some in held) >= size:
            joined = torch.cat(held, dim=1)
            held = [joined[:, size:]]
            yield joined[:, :size]


def _measure(
    scene: Scene, number: int, frames: Tensor, previous: Tensor, references: References,
    ranges: dict[str, float], peak: Optional[float],
) -> WindowFigures:  # fmt: skip
    """Window `number` of a rollout, frames (B, U, 3, H, W) after `previous` (B, 1, 3, H, W)."""
    truth, digits = scene.window_truth(number), scene.digits
    motion = float(motion_energy(torch.cat([previous, frames], dim=1)).mean())
    true_motion = references.motion[number]
    return WindowFigures(
        psnr=_mean_psnr(frames[:, : truth.shape[1]], truth) if truth.shape[1] else [],
        motion=motion,
        motion_ratio=motion / true_motion if true_motion else None,
        **ranges,
        digits=_digit_figures(digits.detector(frames), digits.labels) if digits else None,
        resident_mib=resident_mib(),
        device_mib=peak,
    )


def resident_mib() -> float:
    """Memory that the process holds now; its highest so far on systems that do not tell."""
    pages = Path("/proc/self/statm")
    if pages.is_file():
        return int(pages.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _device_peak_mib(device: torch.device) -> Optional[float]:
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
