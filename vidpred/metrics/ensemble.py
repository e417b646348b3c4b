"""An ensemble of predictions of one clip against what happened, per frame, pixelwise in [0, 1].

x_1 .. x_N are the trajectories of a pixel, y its truth, m the mean of the trajectories.
Sums run over whole numbers, so that a figure depends neither on the batch nor on the order of a sum.
"""

import torch
from torch import Tensor

from vidpred.metrics.checks import check_pair
from vidpred.tensor_ops import fold_frames, unfold_frames

ENSEMBLE_PROTOCOL = {
    "crps": (
        "continuous ranked probability score of the trajectories, pixelwise in [0, 1], mean over a frame's "
        "values, fair (unbiased) estimator: mean |x_i - y| - sum over pairs |x_i - x_j| / (N (N - 1)) "
        "(Gneiting and Raftery 2007; Ferro 2014); lower is better; of a single prediction (floors, ceiling) "
        "it is the mean absolute error"
    ),
    "diversity": "mean |x_i - x_j| over pairs of trajectories and a frame's values in [0, 1]; 0: all equal",
    "spread_over_skill": (
        "sqrt((N + 1) / N * mean variance of the trajectories (N - 1) / mean squared error of their mean), "
        "both averaged over pixels, frames and clips before the root; 1: reliable, below: too sure of itself "
        "(Fortin et al. 2014)"
    ),
}
_FRAMES_AT_ONCE = 8


def ensemble_figures(trajectories: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """uint8 (N, B, T, C, H, W), N >= 2, and the truth (B, T, C, H, W) -> figure -> (B, T) float64.

    crps: the fair estimator, which can be below 0. diversity: mean |x_i - x_j|. variance: mean unbiased
    variance of the trajectories. squared_error: mean (m - y)^2.
    """
    if len(trajectories) < 2:
        raise ValueError("an ensemble needs two trajectories at least")
    check_pair(trajectories[0], truth)
    members, frames = trajectories.flatten(1, 2), fold_frames(truth)
    pieces = zip(members.split(_FRAMES_AT_ONCE, dim=1), frames.split(_FRAMES_AT_ONCE))
    sums = torch.cat([_sums(some, of) for some, of in pieces])  # (B*T, 4)
    means = unfold_frames(sums.double() / truth[0, 0].numel(), len(truth))
    absolute, pairs, variance, squared = means.unbind(-1)
    count = len(trajectories)
    diversity = 2 * pairs / (count * (count - 1) * 255)
    return {
        "crps": absolute / (count * 255) - diversity / 2,
        "diversity": diversity,
        "variance": variance / (count * (count - 1) * 255**2),
        "squared_error": squared / (count * 255) ** 2,
    }


def absolute_error(prediction: Tensor, truth: Tensor) -> Tensor:
    """uint8 (B, T, C, H, W) twice -> mean |x - y| in [0, 1], (B, T) float64: the CRPS of one prediction."""
    check_pair(prediction, truth)
    sums = (prediction.int() - truth.int()).abs().sum(dim=(2, 3, 4), dtype=torch.int64)
    return sums.double() / (truth[0, 0].numel() * 255)


def spread_over_skill(variance: Tensor, squared_error: Tensor, count: int) -> Tensor:
    """Of means over whatever is put together, any shape; NaN where the ensemble's mean is exact."""
    return ((count + 1) / count * variance / squared_error.where(squared_error > 0, torch.nan)).sqrt()


def _sums(members: Tensor, truth: Tensor) -> Tensor:
    """(N, F, C, H, W) and (F, C, H, W) -> (F, 4) int64, in whole levels, summed over a frame: sum |x_i - y|,
    sum over pairs |x_i - x_j|, N sum x_i^2 - (sum x_i)^2, (sum x_i - N y)^2."""
    x, y = members.flatten(2).int(), truth.flatten(1).int()
    count = len(x)
    # In ascending order x_k is the larger one of k pairs and the smaller one of N - 1 - k.
    ranks = 2 * torch.arange(count, device=x.device, dtype=torch.int32) - (count - 1)
    pairs = (ranks[:, None, None] * members.flatten(2).sort(dim=0).values).sum(dim=0)
    total = x.sum(dim=0)
    variance = count * x.square().sum(dim=0) - total.square()
    per_value = [(x - y).abs().sum(dim=0), pairs, variance, (total - count * y).square()]
    return torch.stack([values.sum(dim=1) for values in per_value], dim=1)
