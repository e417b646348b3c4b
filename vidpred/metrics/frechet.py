"""The Fréchet distance of two Gaussians (Dowson and Landau 1982), from statistics gathered as features come:
d^2 = |m_1 - m_2|^2 + tr(S_1) + tr(S_2) - 2 tr((S_1 S_2)^(1/2)).
"""

from typing import Optional

import torch
from torch import Tensor

from vidpred.distributed import all_reduce_sum


class FeatureStatistics:
    """Count, mean (D,) and centred scatter (D, D), the sum of (x - mean)(x - mean)^T, in float64 on the CPU.

    Memory does not grow with what is added. Means are subtracted before squaring (Chan et al. 1979): sums of
    raw squares would lose the digits of features that are far from 0.
    """

    def __init__(self, size: int):
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.scatter = torch.zeros(size, size, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Features (N, D) of N more clips."""
        features = features.to("cpu", torch.float64)
        if not len(features):
            return
        batch = FeatureStatistics(len(self.mean))
        batch.count, batch.mean = len(features), features.mean(dim=0)
        centred = features - batch.mean
        batch.scatter = centred.mT @ centred
        merged = self.merged(batch)
        self.count, self.mean, self.scatter = merged.count, merged.mean, merged.scatter

    def merged(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Of the clips of both."""
        result = FeatureStatistics(len(self.mean))
        result.count = self.count + other.count
        if result.count:
            share = other.count / result.count
            gap = other.mean - self.mean
            result.mean = self.mean + share * gap
            result.scatter = self.scatter + other.scatter + self.count * share * torch.outer(gap, gap)
        return result

    def reduced(self) -> "FeatureStatistics":
        """Of the clips of all ranks; every rank must call it."""
        result = FeatureStatistics(len(self.mean))
        result.count = int(all_reduce_sum(torch.tensor(self.count)))
        if result.count:
            result.mean = all_reduce_sum(self.count * self.mean) / result.count
            gap = self.mean - result.mean
            result.scatter = all_reduce_sum(self.scatter + self.count * torch.outer(gap, gap))
        return result

    def covariance(self) -> Tensor:
        """(D, D), unbiased."""
        return self.scatter / (self.count - 1)


def frechet_distance(left: FeatureStatistics, right: FeatureStatistics) -> Optional[float]:
    """d^2, as FID and FVD are stated; None where one side has less than two clips.

    tr((S_1 S_2)^(1/2)) is the sum of the singular values of R_1^T R_2 for S = R R^T. Of singular covariances
    (fewer clips than features, the usual case) the root of a product is badly conditioned: eigenvalues that
    are 0 up to rounding would each add the root of the rounding error.
    """
    if min(left.count, right.count) < 2:
        return None
    first, second = _factor(left.covariance()), _factor(right.covariance())
    common = torch.linalg.svdvals(first.mT @ second).sum()
    squared_gap = (left.mean - right.mean).square().sum()
    distance = squared_gap + first.square().sum() + second.square().sum() - 2 * common
    return max(float(distance), 0.0)  # of equal Gaussians rounding can leave -1e-13


def _factor(covariance: Tensor) -> Tensor:
    """R (D, rank) with R R^T the covariance, without the directions in which it is 0 up to rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    noise = len(values) * torch.finfo(values.dtype).eps * values[-1].clamp_min(0)
    kept = values > noise
    return vectors[:, kept] * values[kept].sqrt()
