"""Means over clips and their 95 % confidence intervals.

For N clips with sample standard deviation s the interval is mean +- t s / sqrt(N), t being the 0.975 quantile
of Student's distribution with N - 1 degrees of freedom: clips are the independent draws, frames are not.
"""

import math
from dataclasses import dataclass
from typing import Optional

import numpy as np


@dataclass(frozen=True)
class Summary:
    """`ci95` is half the interval's width, None for a single clip; `per_horizon` is one mean per frame."""

    mean: float
    ci95: Optional[float]
    per_horizon: list[float]


def summarize(values: np.ndarray) -> Summary:
    """Values (N, H) of clips in their order, N >= 1: the mean over frames, then over clips, in float64."""
    values = np.asarray(values, dtype=np.float64)
    per_clip = values.mean(axis=1)
    return Summary(float(per_clip.mean()), half_width(per_clip), values.mean(axis=0).tolist())


def half_width(per_clip: np.ndarray) -> Optional[float]:
    """Half of the 95 % interval of the mean of (N,) values; None for N = 1, where nothing is known of it."""
    count = len(per_clip)
    if count < 2:
        return None
    return float(student_t(count - 1) * per_clip.std(ddof=1) / math.sqrt(count))


def student_t(degrees: int, probability: float = 0.95) -> float:
    """t with P(|T| < t) = probability for a whole number of degrees of freedom."""
    low, high = 0.0, math.pi / 2
    for _ in range(100):  # bisection in theta = atan(t / sqrt(degrees))
        middle = (low + high) / 2
        low, high = (middle, high) if _central_probability(middle, degrees) < probability else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _central_probability(theta: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) tan(theta)): Abramowitz and Stegun 26.7.3 (odd) and 26.7.4 (even degrees)."""
    odd = degrees % 2
    cosine, total = math.cos(theta), 0.0
    term = cosine if odd else 1.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= k / (k + 1) * cosine**2
    if odd:
        return 2 / math.pi * (theta + math.sin(theta) * total)
    return math.sin(theta) * total
