"""Which digits a frame shows, wherever they are: nobody can foresee where a digit goes after a random bounce.

A classifier looks at every square of a frame; the strongest answers are kept, as many as the clip has digits, none of
them beside a stronger one. What counts is the multiset of labels: of a clip with a 3 and a 7, a frame in which a 3 and
a 5 are found shows half of the digits. L = 10 labels, n digits in a clip.
"""

from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from digit_classifier import NOTHING, DigitClassifier
from torch import Tensor

NO_DIGIT = -1
LEAST_SCORE = 0.4
SAME, OTHER = 8, 3  # two answers with the same label, with different ones, are further apart than this
APART = 0.25  # digits whose squares have at most this share in common do not overlap much
FRAMES_AT_ONCE = 64


def strongest(scores: Tensor, count: int) -> Tensor:
    """Labels (N, count) int64 of the strongest answers among `scores` (N, L, h, w), strongest first.

    Suppressed are squares within 3 of a stronger answer, and those of its label within 8 (of the squares' 20 pixels).
    NO_DIGIT where no score of at least 0.4 is left.
    """
    scores, found = scores.clone(), []
    labels, height, width = scores.shape[1:]
    rows, columns = (torch.arange(size, device=scores.device) for size in (height, width))
    for _ in range(count):
        score, place = scores.flatten(1).max(dim=1)
        label, square = place // (height * width), place % (height * width)
        found.append(torch.where(score >= LEAST_SCORE, label, NO_DIGIT))
        dy = (rows - (square // width)[:, None]).abs()[:, :, None]
        dx = (columns - (square % width)[:, None]).abs()[:, None, :]
        distance = torch.maximum(dy, dx)[:, None]  # (N, 1, h, w)
        same = (torch.arange(labels, device=scores.device) == label[:, None])[..., None, None]  # (N, L, 1, 1)
        scores.masked_fill_((distance <= OTHER) | (same & (distance <= SAME)), -1.0)
    return torch.stack(found, dim=1)


def matches(found: Tensor, labels: Tensor) -> Tensor:
    """Which of the digits `labels` (..., n) are among `found` (..., m), each answer used once: (..., n) bool.

    Of several digits with one label, the first ones are found first.
    """
    alike = labels[..., :, None] == labels[..., None, :]
    earlier = alike.tril(-1).sum(dim=-1)  # digits before this one with its label
    answers = (found[..., None, :] == labels[..., :, None]).sum(dim=-1)
    return earlier < answers


def apart(positions: Tensor, side: int) -> Tensor:
    """Frames whose digits do not overlap much: positions (..., n, 2) of squares' corners in pixels -> (...) bool."""
    distance = (positions[..., :, None, :] - positions[..., None, :, :]).abs()  # (..., n, n, 2)
    common = (1 - distance / side).clamp(min=0).prod(dim=-1)
    pairs = torch.ones(common.shape[-2:], dtype=torch.bool, device=common.device).triu(1)
    return (common.where(pairs, 0.0) <= APART).flatten(-2).all(dim=-1)


@dataclass(frozen=True)
class DigitDetector:
    """count: digits in a clip (n), the most answers that a frame can give."""

    classifier: DigitClassifier
    count: int

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """Frames (B, T, C, H, W) uint8 -> labels found (B, T, n) int64 on the CPU, NO_DIGIT where fewer are."""
        found = [self._labels(some) for some in frames.flatten(0, 1).split(FRAMES_AT_ONCE)]
        return torch.cat(found).unflatten(0, frames.shape[:2]).cpu()

    def _labels(self, frames: Tensor) -> Tensor:
        # A digit is seen from several squares around its own: their mean is highest in their middle.
        scores = F.avg_pool2d(self.classifier(frames)[:, :NOTHING], 3, 1, 1, count_include_pad=False)
        return strongest(scores, self.count)


def chance(found: Tensor, labels: Tensor) -> Optional[float]:
    """Share of digits "found" if each clip had the labels of another one, over all pairs; None for a single clip.

    found (B, T, n), labels (B, n).
    """
    others = [matches(found, labels.roll(shift, 0)[:, None]) for shift in range(1, len(labels))]
    return float(torch.stack(others).double().mean()) if others else None
