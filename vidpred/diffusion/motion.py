"""Motion compensation: the network moves the given frames, and predicts only what that leaves.

A video codec codes the difference to an earlier frame that was moved to where things are now. So here: besides
its prediction the network gives every position a kernel k, weights that sum to 1 over the (2 r + 1)^2 neighbours
in each of the two nearest given frames, and the reference of the residual is

    m(p) = sum over frames f, |dy|, |dx| <= r of  k(p, f, dy, dx) given_f(p + (dy, dx))

(adaptive convolution, Niklaus et al. 2017, arXiv:1703.07514; for video prediction Finn et al. 2016,
arXiv:1605.07157). Colours and shapes are then taken from what was seen, and need not be drawn anew from noise.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vidpred.tensor_ops import append_dims, fold_frames, reference_frames, unfold_frames

FRAMES = 2  # between two given frames, both; in prediction what the last one hides, the one before it may show


@dataclass(frozen=True)
class MotionCompensation:
    """Moves the nearest given frames by up to `radius` positions; with 0 nothing is moved, and nothing called."""

    radius: int = 0

    @property
    def channels(self) -> int:
        """Outputs of the network that make the kernels, beside those of its prediction."""
        return FRAMES * (2 * self.radius + 1) ** 2 if self.radius else 0

    def __call__(self, logits: Tensor, x: Tensor, given: Tensor, frame_times: Tensor) -> Tensor:
        """The reference m of every unknown frame, (B, T, C, H, W); 0 at given frames and where none is given.

        logits (B, T, `channels`, H, W), where zeros leave half of all weight in place, or more with one given
        frame; x (B, T, C, H, W) with the given frames; given (B, T) bool; frame_times (B, T).
        """
        frames = reference_frames(x, given, frame_times, FRAMES)
        kernels = (logits + append_dims(self._bias(given, logits.dtype)[:, None], 5)).softmax(dim=2)
        moved = self._convolve(fold_frames(kernels), fold_frames(frames))
        return unfold_frames(moved, len(x))

    def _bias(self, given: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, channels) of the logits: at the nearest frame's own place e to its power is the number of the others; a
        second frame that is not there has no weight."""
        taps = self.channels // FRAMES
        bias = torch.zeros(len(given), self.channels, dtype=dtype, device=given.device)
        bias[:, taps // 2] = math.log(self.channels - 1)
        bias[:, taps:].masked_fill_(given.sum(dim=1, keepdim=True) < FRAMES, -math.inf)
        return bias

    def _convolve(self, kernels: Tensor, frames: Tensor) -> Tensor:
        """kernels (N, channels, H, W), frames (N, FRAMES * C, H, W) -> (N, C, H, W).

        One product for each weight: unfolding all neighbourhoods into one tensor takes several times as long.
        """
        height, width = frames.shape[-2:]
        padded = F.pad(frames, [self.radius] * 4, mode="replicate").chunk(FRAMES, dim=1)
        steps = range(2 * self.radius + 1)
        neighbours = [frame[..., y : y + height, x : x + width] for frame in padded for y in steps for x in steps]
        moved = torch.zeros_like(neighbours[0])
        for weight, neighbour in zip(kernels.unsqueeze(2).unbind(1), neighbours, strict=True):
            moved = torch.addcmul(moved, weight, neighbour)
        return moved
