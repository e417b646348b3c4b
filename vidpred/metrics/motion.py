"""How much moves: a frozen or blurred prediction can have a good PSNR, but not the motion of the truth."""

from torch import Tensor

from vidpred.tensor_ops import check_clip


def motion_energy(frames: Tensor) -> Tensor:
    """uint8 frames (B, T, C, H, W), T >= 2 -> (B,) float64 in [0, 1]: mean |frame[t + 1] - frame[t]|.

    Hand in the last context frame followed by the predicted ones, so that the first step counts too.
    """
    check_clip("frames", frames)
    if frames.shape[1] < 2:
        raise ValueError("motion energy needs at least two frames")
    steps = (frames[:, 1:].int() - frames[:, :-1].int()).abs()
    return steps.flatten(1).sum(dim=1).double() / (steps[0].numel() * 255.0)
