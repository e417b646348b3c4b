"""How much moves: a frozen or blurred prediction can have a good PSNR, but not the motion of the truth."""

from typing import Optional

import torch
from torch import Tensor

from vidpred.tensor_ops import check_clip


def motion_energy(frames: Tensor, counted: Optional[Tensor] = None) -> Tensor:
    """uint8 frames (B, T, C, H, W), T >= 2 -> (B,) float64 in [0, 1]: mean |frame[t + 1] - frame[t]|.

    `counted` (B, T - 1) bool says which of these steps belong to the mean, one at least in each clip; None:
    all. Count the steps from or to a predicted frame, so that those between context and prediction count too.
    """
    check_clip("frames", frames)
    if frames.shape[1] < 2:
        raise ValueError("motion energy needs at least two frames")
    steps = (frames[:, 1:].int() - frames[:, :-1].int()).abs().flatten(2).sum(dim=2)  # (B, T - 1), exact
    if counted is None:
        counted = torch.ones_like(steps, dtype=torch.bool)
    most = counted.sum(dim=1).double() * frames[0, 0].numel() * 255.0
    return (steps * counted).sum(dim=1).double() / most
