"""A trained model up to its latents: its parts, what it takes of conditions, and what it samples.

    given latents -> sampler(denoiser) -> predicted latents, all of them calibrated
"""

import dataclasses
from typing import Callable, Optional, Sequence

import torch
from torch import Tensor, nn

from vidpred.conditioning import Conditioner
from vidpred.conditions import Condition, ConditionBatch
from vidpred.data import ClipBatch
from vidpred.diffusion import Callback, NoiseSchedule, SamplingConfig, build_clip
from vidpred.errors import UserError, require
from vidpred.prediction.calibration import LatentCalibration
from vidpred.prediction.latent_rollout import roll_out
from vidpred.prediction.latent_sampling import Denoiser, LatentSampler
from vidpred.prediction.rollout import RolloutOptions


class LatentPredictor:
    """The parts of a `Predictor`, the way into latents and back, and what it samples there.

    Args:
        denoiser: the clean estimate, in eval mode, on the calibration's device.
        autoencoder: `encode`, `decode`, `down_factor`; on the same device.
        context_frames, num_frames: given frames and all frames of a training clip. With 0 given ones the model
            generates: it continues clips of no frame, from nothing.
        log: receives the named range lines of each prediction, e.g. `print` or `logger.info`; None is silent.
        conditioner: of a denoiser whose network takes conditions; None: it takes none.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        autoencoder: nn.Module,
        calibration: LatentCalibration,
        schedule: NoiseSchedule,
        sampling: SamplingConfig,
        context_frames: int,
        num_frames: int,
        log: Optional[Callable[[str], None]] = None,
        conditioner: Optional[Conditioner] = None,
    ):
        if not 0 <= context_frames < num_frames:
            raise UserError(
                f"conditioning.context_frames: {context_frames} must be in 0..{num_frames - 1}, "
                f"below data.num_frames ({num_frames})"
            )
        self.denoiser = denoiser
        self.autoencoder = autoencoder
        self.calibration = calibration
        self.schedule = schedule
        self.sampling = sampling
        self.context_frames = context_frames
        self.num_frames = num_frames
        self.log = log
        self.conditioner = conditioner

    @property
    def device(self) -> torch.device:
        return self.calibration.shift.device

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) uint8 -> calibrated latents (B, T, C, h, w) float32, on the device."""
        return self.calibration.normalize(self.autoencoder.encode(frames.to(self.device)))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Calibrated latents (B, T, C, h, w) -> frames (B, T, 3, H, W) float32, [0, 1] and beyond."""
        return self.autoencoder.decode(self.calibration.denormalize(latents))

    # Conditions --------------------------------------------------------------------------------------------

    def conditions_of(self, clips: ClipBatch) -> Optional[ConditionBatch]:
        """What the model takes of the conditions that clips come with."""
        there = clips.conditions is not None and self.conditioner is not None
        return self.conditioner.parts_of(clips.conditions) if there else None

    def prompts(self, words: Sequence[str]) -> ConditionBatch:
        """A row for each word: a text, or a class in a model that takes no text. UserError where it takes neither."""
        if self.conditioner is None:
            raise UserError("prompts: the model takes no condition (condition.kinds); ask for none")
        return self.conditioner.prompts(words)

    def guided(self, scale: float) -> SamplingConfig:
        """The sampling settings with another scale of guidance on the condition, 1 is none. UserError where the network
        was never trained without its condition, with which guidance compares."""
        config = self.conditioner.config if self.conditioner else None
        require(config is not None, f"guidance {scale:g}: the model takes no condition to be guided by; leave it out")
        require(
            scale == 1 or config.dropout > 0,
            f"guidance {scale:g}: the model was trained with condition.dropout 0, so it does not know what to predict "
            "without its condition; ask for 1, or train it with a dropout",
        )
        guidance = dataclasses.replace(self.sampling.guidance, condition_scale=scale)
        return dataclasses.replace(self.sampling, guidance=guidance)

    def condition(self, asked: Optional[ConditionBatch], rows: int, frames: int) -> Optional[Condition]:
        """What the denoiser receives for `rows` clips of `frames` frames: null where nothing is asked for, and None
        where the model takes no condition. Raises UserError where it does not take what is asked for."""
        if asked is not None and not asked.parts():
            asked = None
        if self.conditioner is None:
            if asked is not None:
                raise UserError(f"{asked.parts()[0]}: the model takes no condition (condition.kinds); ask for none")
            return None
        if asked is not None:
            self.conditioner.require_kinds(asked)
        return self.conditioner(asked, rows, frames, self.device)

    # Samples -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample_latents(
        self,
        latents: Tensor,
        given: Tensor,
        frame_times: Tensor,
        draws: Tensor,
        seed: int,
        *,
        condition: Optional[ConditionBatch] = None,
        num_inference_steps: Optional[int] = None,
        callback: Optional[Callback] = None,
        purpose: str = "prediction",
    ) -> Tensor:
        """Samples the unknown frames of one window.

        Args:
            latents: (B, T, C, h, w) calibrated; what unknown frames hold is ignored.
            given: (B, T) bool. frame_times: (B, T) float32, in frame intervals.
            draws: (B,) int64. A row's noise depends on (seed, purpose, draws[b]) and nothing else.
            condition: of the B clips, an action for each of the T frames; for models that take it.
            num_inference_steps: the configured number where None.
            callback: called with a StepReport at every step.
        Returns:
            (B, T, C, h, w); given frames are those of `latents`, bit for bit.
        """
        latents, given = latents.to(self.device), given.to(self.device)
        sampler = self._sampler(draws, seed, purpose, num_inference_steps, callback, condition)
        return sampler.sample(
            latents, given, frame_times.to(self.device), context_noise=self.sampling.context_noise,
            condition=self.condition(condition, *latents.shape[:2]),
        )  # fmt: skip

    @torch.no_grad()
    def continue_latents(
        self,
        context: Tensor,
        num_frames: int,
        draws: Tensor,
        seed: int,
        *,
        condition: Optional[ConditionBatch] = None,
        options: RolloutOptions = RolloutOptions(),
        num_inference_steps: Optional[int] = None,
        purpose: str = "prediction",
    ) -> Tensor:
        """The next `num_frames` frames, window after window: (B, K, C, h, w) calibrated latents, K the
        model's context frames -> (B, num_frames, C, h, w). `condition` has an action for each of the K + num_frames
        frames. Other arguments as `sample_latents`'s."""
        sampler = self._sampler(draws, seed, purpose, num_inference_steps, None, condition)
        told = self.condition(condition, len(context), context.shape[1] + num_frames)
        windows = roll_out(sampler, context.to(self.device), num_frames, self.num_frames, options, told)
        return torch.cat(list(windows), dim=1)

    def _sampler(
        self,
        draws: Tensor,
        seed: int,
        purpose: str,
        num_inference_steps: Optional[int],
        callback: Optional[Callback],
        condition: Optional[ConditionBatch],
    ) -> LatentSampler:
        # The bound is built here, so that it is that of the calibration as it is now.
        clip = build_clip(self.sampling.clip, self.calibration.low, self.calibration.high)
        steps = self.sampling.num_inference_steps if num_inference_steps is None else num_inference_steps
        sampling = self.sampling
        if condition is None and sampling.guidance.condition_scale != 1:  # nothing to follow: no second call
            guidance = dataclasses.replace(sampling.guidance, condition_scale=1.0)
            sampling = dataclasses.replace(sampling, guidance=guidance)
        return LatentSampler(
            self.denoiser, self.schedule, sampling, clip, draws.to(self.device), seed, purpose, steps, callback
        )
