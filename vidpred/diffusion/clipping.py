"""Bounds on the clean estimate x0, in calibrated units (training latents have mean 0 and deviation 1).

At high noise x0 = (x - sigma eps) / alpha divides by a small alpha: a bias of 0.01 in eps already puts the
whole first estimate outside of what latents can be. A bound is a function x0 (B, T, C, H, W) -> the same
shape. NaN stays NaN under every bound.
"""

from dataclasses import dataclass
from typing import Callable, Literal, Optional

import torch
from torch import Tensor

from vidpred.errors import UserError
from vidpred.tensor_ops import append_dims

ClipBound = Callable[[Tensor], Tensor]


@dataclass
class ClipBoundConfig:
    """How the clean estimate is bounded at each sampling step."""

    kind: Literal["static", "auto", "dynamic", "none"] = "static"
    """static: [-bound, bound]. auto: per channel, the measured range of the training latents and a margin.
    dynamic: thresholding by quantile as in Imagen. none: no bound."""
    bound: float = 3.0
    """static: the bound; dynamic: the smallest threshold. In calibrated units."""
    quantile: float = 0.995
    """dynamic: quantile of |x0| of a frame that becomes its threshold."""
    margin: float = 0.1
    """auto: widening at each end, as a fraction of the channel's range."""

    def __post_init__(self) -> None:
        if self.kind not in ("static", "auto", "dynamic", "none"):
            raise UserError(
                f"sampling.clip.kind: '{self.kind}' is not known; choose static, auto, dynamic or none"
            )
        if self.bound <= 0:
            raise UserError(f"sampling.clip.bound: {self.bound} must be above 0 (3.0 is usual)")
        if not 0 < self.quantile <= 1:
            raise UserError(f"sampling.clip.quantile: {self.quantile} must be in (0, 1] (0.995 is usual)")
        if self.margin < 0:
            raise UserError(f"sampling.clip.margin: {self.margin} must be 0 or more (0.1 is usual)")


def build_clip(
    config: ClipBoundConfig, low: Optional[Tensor] = None, high: Optional[Tensor] = None
) -> Optional[ClipBound]:
    """The bound of a configuration, None for "none".

    Args:
        low, high: (C,) range of the calibrated training latents; needed by "auto" alone.
    """
    if config.kind == "none":
        return None
    if config.kind == "static":
        return lambda x0: x0.clamp(-config.bound, config.bound)
    if config.kind == "dynamic":
        return lambda x0: clip_dynamic(x0, config.bound, config.quantile)
    if low is None or high is None:
        raise UserError("sampling.clip.kind: auto needs the range of calibrated latents; use static without")
    margin = config.margin * (high - low)
    return lambda x0: clip_channels(x0, low - margin, high + margin)


def clip_channels(x0: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clamps channel c to [low[c], high[c]]; x0 (B, T, C, H, W), low and high (C,).

    Two ends per channel, because latents are skewed: one symmetric quantile fades colours.
    """
    low, high = (append_dims(bound.to(x0), x0.ndim - 2) for bound in (low, high))
    return x0.clamp(low, high)


def clip_dynamic(x0: Tensor, bound: float, quantile: float) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3), frame by frame.

    The threshold is s = max(bound, quantile of |x0| over the frame's C, H, W). Values are clamped to [-s, s]
    and brought back into [-bound, bound] by the factor bound / s. Given frames are frames of their own here,
    so they do not move the threshold of unknown ones.
    """
    # torch.quantile refuses more than 16 M values; an order statistic of the sorted values does not.
    magnitude = x0.abs().flatten(2).sort(dim=2).values  # (B, T, C*H*W)
    position = quantile * (magnitude.shape[2] - 1)
    below = int(position)
    above = min(below + 1, magnitude.shape[2] - 1)
    threshold = torch.lerp(magnitude[:, :, below], magnitude[:, :, above], position - below).clamp(min=bound)
    threshold = append_dims(threshold, x0.ndim)
    return x0.clamp(-threshold, threshold) * (bound / threshold)
