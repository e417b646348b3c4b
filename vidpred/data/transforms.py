"""Cropping, resizing and flipping of uint8 frames: functions of the clip's generator and nothing else."""

from typing import Literal, Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DECODER_SCALES_FROM = 1.5  # A decoder that shrinks by less than this saves nothing.


def decoding_size(
    height: int, width: int, out_height: int, out_width: int, crop: str
) -> Optional[tuple[int, int]]:
    """The (height, width) to which a decoder should shrink a frame of a large source; None: not at all.

    The smallest that covers the clip, of which `transform` then only cuts a window (crop "none": the clip's own).
    Converting all pixels of a large frame to RGB costs more than decoding it.
    """
    if min(height / out_height, width / out_width) < DECODER_SCALES_FROM:
        return None
    if crop == "none":
        return out_height, out_width
    scale = max(out_height / height, out_width / width)
    return max(out_height, round(height * scale)), max(out_width, round(width * scale))


def crop_window(
    height: int,
    width: int,
    out_height: int,
    out_width: int,
    crop: str,
    generator: Optional[np.random.Generator],
    smallest: float = 1.0,
) -> tuple[int, int, int, int]:
    """(top, left, height, width), in source pixels, of the window that is resized to the clip's size.

    The largest window of the clip's aspect ratio, or with crop "random" one of `smallest` to 1 times its sides; `crop`
    places it. "none" is the whole frame.
    """
    if crop == "none":
        return 0, 0, height, width
    scale = min(height / out_height, width / out_width)
    if smallest < 1 and crop == "random" and generator is not None:
        scale *= generator.uniform(smallest, 1)
    window_height = max(1, min(height, round(out_height * scale)))
    window_width = max(1, min(width, round(out_width * scale)))
    free = (height - window_height, width - window_width)
    if crop == "random" and generator is not None:
        top, left = (int(generator.integers(room + 1)) for room in free)
    else:
        top, left = (room // 2 for room in free)
    return top, left, window_height, window_width


def transform(
    frames: np.ndarray,
    height: int,
    width: int,
    crop: Literal["center", "random", "none"],
    flip: bool,
    generator: Optional[np.random.Generator],
    smallest: float = 1.0,
) -> Tensor:
    """(T, h, w, C) uint8 of any size -> (T, C, height, width) uint8, possibly a view with other strides.

    Resizing is bilinear with antialiasing. No generator: centre crop, no flip. `smallest` as `crop_window`'s.
    """
    top, left, rows, columns = crop_window(*frames.shape[1:3], height, width, crop, generator, smallest)
    mirrored = flip and generator is not None and bool(generator.random() < 0.5)
    cut = torch.from_numpy(frames[:, top : top + rows, left : left + columns])  # (T, rows, columns, C)
    cut = cut.permute(0, 3, 1, 2)
    if (rows, columns) != (height, width):
        # The permuted view is channels-last in memory, which takes torch's vectorised uint8 path.
        cut = F.interpolate(cut, size=(height, width), mode="bilinear", antialias=True)
    if mirrored:
        cut = cut.flip(-1)
    return cut


def jitter_colors(frames: Tensor, amount: float, generator: np.random.Generator) -> Tensor:
    """(T, 3, H, W) uint8 -> the same with brightness, contrast and saturation each times 1 - amount to 1 + amount.

    Contrast is around the mean grey of all frames, saturation around the grey of each pixel (Rec. 601).
    """
    brightness, contrast, saturation = generator.uniform(1 - amount, 1 + amount, 3)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    values = brightness * frames.float()
    mean = (values * weights).sum(dim=1).mean()
    values = mean + contrast * (values - mean)
    grey = (values * weights).sum(dim=1, keepdim=True)
    return (grey + saturation * (values - grey)).round().clamp(0, 255).to(torch.uint8)
