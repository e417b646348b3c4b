"""Latent calibration: raw latents -> zero mean and unit deviation per channel, and back.

Diffusion assumes data of about unit scale. Raw latents are not: a disc under the mock autoencoder has
-0.92 +- 0.32, SD's autoencoder a deviation of 3 to 5. The moments are measured once on training clips and
travel with the checkpoint.

    calibrated = (raw - shift) / scale        raw = scale * calibrated + shift
"""

from typing import Callable, Iterable

import torch
from torch import Tensor, nn

from vidpred import distributed
from vidpred.errors import UserError
from vidpred.tensor_ops import append_dims, check_clip

SMALLEST_DEVIATION = 1e-6  # of 1 + |mean|: below it a channel is constant, and its deviation is rounding


class LatentCalibration(nn.Module):
    """Buffers, all (C,) float32: `shift` and `scale` in raw units; `low` and `high`, the range of the
    training latents in calibrated units, from which the `auto` clip bound is taken.

    Without measurements it is the identity with the range [-3, 3].
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("shift", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("low", torch.full((channels,), -3.0))
        self.register_buffer("high", torch.full((channels,), 3.0))

    def normalize(self, raw: Tensor) -> Tensor:
        """(B, T, C, h, w) latents of the autoencoder -> calibrated latents, float32."""
        return (raw - self._channels(self.shift, raw)) / self._channels(self.scale, raw)

    def denormalize(self, latents: Tensor) -> Tensor:
        """(B, T, C, h, w) calibrated latents -> latents of the autoencoder."""
        return latents * self._channels(self.scale, latents) + self._channels(self.shift, latents)

    def _channels(self, values: Tensor, latents: Tensor) -> Tensor:
        check_clip("latents", latents)
        return append_dims(values, latents.ndim - 2)

    def __str__(self) -> str:
        columns = zip(self.shift.tolist(), self.scale.tolist(), self.low.tolist(), self.high.tolist())
        rows = (f"{s:+.3f} +- {d:.3f} in [{low:+.2f}, {high:+.2f}]" for s, d, low, high in columns)
        return "latent calibration per channel: " + "; ".join(rows)


@torch.no_grad()
def measure_calibration(
    encode: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    channels: int,
    device: torch.device | str = "cpu",
) -> LatentCalibration:
    """Measures the calibration of an autoencoder on training clips, over all ranks.

    Args:
        encode: frames (B, T, 3, H, W) uint8 on `device` -> raw latents (B, T, C, h, w).
        batches: this rank's share of the frames. Ranks may hold different numbers of batches, also none.
        channels: C.
    Returns:
        the calibration on `device`, equal on every rank.
    Raises:
        UserError on every rank where there was no clip at all, or a latent is not finite.
    """
    # Moments in float64 and about 0: |mean| is never so far above the deviation that this loses digits.
    sums = torch.zeros(3, channels, dtype=torch.float64, device=device)  # count, sum, sum of squares
    low = torch.full((channels,), torch.inf, dtype=torch.float64, device=device)
    high = -low
    for frames in batches:
        raw = encode(frames.to(device)).double().movedim(2, 0).flatten(1)  # (C, B*T*h*w)
        sums += torch.stack([torch.ones_like(raw).sum(1), raw.sum(1), raw.square().sum(1)])
        low = torch.minimum(low, raw.amin(1))
        high = torch.maximum(high, raw.amax(1))
    # The check comes after the reduction: a rank that stopped alone would leave the others waiting.
    sums = distributed.all_reduce_sum(sums)
    low, high = distributed.all_reduce_min(low), distributed.all_reduce_max(high)
    return _from_moments(sums, low, high)


def _from_moments(sums: Tensor, low: Tensor, high: Tensor) -> LatentCalibration:
    count, total, squares = sums
    if not bool((count > 0).all()):
        raise UserError("data: no training clip to calibrate the latents with; check data.root and the split")
    if not bool(sums.isfinite().all()):
        raise UserError(
            "autoencoder: it encodes training clips to non-finite latents; use full precision "
            "(autoencoder.half false) or other weights"
        )
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    varies = deviation > SMALLEST_DEVIATION * (1 + mean.abs())
    scale = torch.where(varies, deviation, torch.ones_like(deviation))
    calibration = LatentCalibration(len(mean)).to(sums.device)
    calibration.shift.copy_(mean)
    calibration.scale.copy_(scale)
    calibration.low.copy_((low - mean) / scale)
    calibration.high.copy_((high - mean) / scale)
    return calibration
