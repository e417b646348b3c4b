"""The denoiser: a network and a parameterization make an estimate of the clean latents.

Notation: x = alpha * x0 + sigma * eps, per frame; `given` frames have (alpha, sigma) = (1, 0), or little noise.
Whatever the network predicts (eps, v, x0), the denoiser returns x0: clipping and diagnosis see nothing else.
With `residual`, what the network predicts is relative to a reference m,

    D(x) = m + to_x0(x - alpha m, network(c_in x)),

which is the nearest given frame, or given frames moved as the network says (`MotionCompensation`). m is 0 where
no frame is given, and at the given frames themselves.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidpred.conditions import Condition
from vidpred.diffusion.levels import NoiseLevel, add_noise
from vidpred.diffusion.motion import MotionCompensation
from vidpred.diffusion.parameterizations import Parameterization
from vidpred.diffusion.weights import LossWeight, uniform_weight
from vidpred.tensor_ops import append_dims, check_clip, reference_frames


@dataclass(frozen=True)
class DenoisingLoss:
    """The unreduced training loss.

    per_frame: (B, T) mean over (C, H, W) of the squared error of the network's target, 0 where not scored.
    per_clip: (B,) mean of it over the scored frames.
    objective: (B,) the same with each frame weighted by its noise level: what training minimises.
    output: (B, T, C + motion channels, H, W) what the network returned, for range checks.
    x0: (B, T, C, H, W) the clean estimate, where it was asked for.
    """

    per_frame: Tensor
    per_clip: Tensor
    objective: Tensor
    output: Tensor
    x0: Tensor | None = None


class Denoiser(nn.Module):
    """`network` and `parameterization` as D(x, level) -> x0, always in float32 or the dtype of x."""

    def __init__(
        self,
        network: nn.Module,
        parameterization: Parameterization,
        residual: bool = True,
        weight: LossWeight = uniform_weight,
        motion: MotionCompensation = MotionCompensation(),
    ):
        super().__init__()
        if motion.radius and not residual:
            raise ValueError("motion moves what the residual is taken to; without residual it must have radius 0")
        self.network = network
        self.parameterization = parameterization
        self.residual = residual
        self.weight = weight
        self.motion = motion

    def with_network(self, network: nn.Module) -> "Denoiser":
        """The same denoiser around other weights (EMA, or the wrapped network of a training run)."""
        return Denoiser(network, self.parameterization, self.residual, self.weight, self.motion)

    def forward(
        self, x: Tensor, level: NoiseLevel, given: Tensor, frame_times: Tensor, condition: Condition | None = None
    ) -> Tensor:
        """The clean estimate x0 of every frame, (B, T, C, H, W), unclipped.

        x (B, T, C, H, W) at `level` (B, T); given (B, T) bool; frame_times (B, T); `condition` where the network takes
        one.
        """
        check_clip("x", x)
        return self._estimate(x, level, *self._run_network(x, level, given, frame_times, condition))

    def loss(
        self,
        x0: Tensor,
        noise: Tensor,
        level: NoiseLevel,
        given: Tensor,
        frame_times: Tensor,
        condition: Condition | None = None,
        *,
        scored: Tensor | None = None,
        with_x0: bool = False,
    ) -> DenoisingLoss:
        """Squared error of the network's target at the scored frames.

        x0, noise (B, T, C, H, W); `level` (B, T), of given frames too; `scored` (B, T) bool, all frames that are
        not given where None. `with_x0` keeps the clean estimate too.
        """
        scored = ~given if scored is None else scored
        x = add_noise(x0, noise, level)
        output, reference = self._run_network(x, level, given, frame_times, condition)
        target = self.parameterization.target(x0 - reference, noise, level)
        per_frame = (output[:, :, : x.shape[2]] - target).square().mean(dim=(2, 3, 4)) * scored
        count = scored.sum(dim=1).clamp(min=1)
        objective = (self.weight(level).to(per_frame.dtype) * per_frame).sum(dim=1) / count
        estimate = self._estimate(x, level, output, reference) if with_x0 else None
        return DenoisingLoss(per_frame, per_frame.sum(dim=1) / count, objective, output, estimate)

    def _estimate(self, x: Tensor, level: NoiseLevel, output: Tensor, reference: Tensor) -> Tensor:
        relative = x - append_dims(level.alpha, x.ndim).to(x.dtype) * reference  # the noised x0 - m
        return reference + self.parameterization.to_x0(relative, output[:, :, : x.shape[2]], level)

    def _run_network(self, x, level, given, frame_times, condition) -> tuple[Tensor, Tensor]:
        """All that the network returns, and the reference m (B, T, C, H, W) that its prediction is relative to."""
        scaled = append_dims(self.parameterization.c_in(level), x.ndim).to(x.dtype) * x
        output = self.network(scaled, level.code, given, frame_times, condition).to(x.dtype)
        channels = x.shape[2]
        if output.shape[2] != channels + self.motion.channels:
            raise ValueError(
                f"the network returned {output.shape[2]} channels; it was asked for {channels} of the latents and "
                f"{self.motion.channels} of the motion"
            )
        if not self.residual:
            return output, torch.zeros_like(x)
        # Given frames may be slightly noised: their best linear estimate, which is x itself without noise.
        estimate = append_dims(level.alpha / (level.alpha**2 + level.sigma**2), x.ndim).to(x.dtype) * x
        if self.motion.radius:
            return output, self.motion(output[:, :, channels:], estimate, given, frame_times)
        return output, reference_frames(estimate, given, frame_times)
