"""Predictions longer than the training horizon: windows that slide over what was predicted before."""

from typing import Callable, Iterator

import torch
from torch import Tensor

SampleWindow = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(latents (B, T, C, h, w), given (B, T), frame_times (B, T), number of the window) -> latents."""


def rollout(sample: SampleWindow, context: Tensor, num_frames: int, window_frames: int) -> Iterator[Tensor]:
    """Yields predicted latents window by window, until there are `num_frames` of them.

    Each window is as long as a training clip: the last K latents, given or predicted, and unknown ones after
    them. Predicted latents go on as they are, without a way through pixels. The last window is sampled at
    full length too, because that is what the network knows, and then cut.

    Args:
        sample: fills the unknown frames of a window.
        context: (B, K, C, h, w) calibrated latents of the given frames.
        num_frames: new frames in all.
        window_frames: T of a window, more than K.
    Yields:
        (B, n, C, h, w) with n = T - K, less in the last window.
    """
    batch, known = context.shape[:2]
    fresh = window_frames - known
    frame_times = torch.arange(window_frames, dtype=torch.float32, device=context.device).expand(batch, -1)
    given = frame_times < known
    unknown = context.new_zeros(batch, fresh, *context.shape[2:])
    for window, start in enumerate(range(0, num_frames, fresh)):
        latents = sample(torch.cat([context, unknown], dim=1), given, frame_times, window)
        yield latents[:, known:][:, : num_frames - start]
        context = latents[:, -known:]
