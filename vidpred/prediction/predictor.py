"""From given frames to predicted ones: encode, sample, decode.

    frames uint8 -> autoencoder -> calibrated latents -> sampler(denoiser) -> autoencoder -> frames uint8
"""

from typing import Callable, Optional

import torch
from torch import Tensor, nn

from vidpred import random_streams
from vidpred.diffusion import NoiseSchedule, SamplingConfig, StepReport, build_clip, build_sampler
from vidpred.diffusion.samplers import Callback
from vidpred.errors import UserError
from vidpred.prediction.calibration import LatentCalibration
from vidpred.prediction.range_lines import ClipCount, prediction_lines
from vidpred.prediction.rollout import rollout
from vidpred.tensor_ops import append_dims, to_uint8

Denoiser = Callable[..., Tensor]
"""(x (B, T, C, h, w), level, given, frame_times, all (B, T)) -> x0, as `vidpred.denoiser.Denoiser`."""


class NotFiniteError(UserError):
    """A prediction that is not finite: the model is broken, not what was asked of it."""


class Predictor:
    """Predicts frames with a trained denoiser. `load_predictor` rebuilds one from a checkpoint.

    Args:
        denoiser: the clean estimate, in eval mode, on the calibration's device.
        autoencoder: `encode`, `decode`, `down_factor`; on the same device.
        context_frames, num_frames: given frames and all frames of a training clip.
        log: receives the named range lines of each `predict`, e.g. `print` or `logger.info`; None is silent.
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
    ):
        if not 1 <= context_frames < num_frames:
            raise UserError(
                f"conditioning.context_frames: {context_frames} must be in 1..{num_frames - 1}, "
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

    @torch.no_grad()
    def sample_latents(
        self,
        latents: Tensor,
        given: Tensor,
        frame_times: Tensor,
        draws: Tensor,
        seed: int,
        *,
        num_inference_steps: Optional[int] = None,
        callback: Optional[Callback] = None,
        purpose: str = "prediction",
    ) -> Tensor:
        """Samples the unknown frames of one window.

        Args:
            latents: (B, T, C, h, w) calibrated; what unknown frames hold is ignored.
            given: (B, T) bool. frame_times: (B, T) float32, in frame intervals.
            draws: (B,) int64. A row's noise depends on (seed, purpose, draws[b]) and nothing else.
            num_inference_steps: the configured number where None.
            callback: called with a StepReport at every step.
        Returns:
            (B, T, C, h, w); given frames are those of `latents`, bit for bit.
        """
        latents, given = latents.to(self.device), given.to(self.device)
        frame_times, draws = frame_times.to(self.device), draws.to(self.device)
        levels = self.schedule.sampling_levels(self._steps(num_inference_steps), given)

        def noise(name: str) -> Tensor:
            shape = tuple(latents.shape[1:])
            return random_streams.normal(seed, f"{purpose}/{name}", draws, shape, self.device)

        # Pure noise of the first level's total deviation: 1 for variance-preserving levels.
        deviation = torch.hypot(levels.alpha[0], levels.sigma[0])
        start = append_dims(deviation, latents.ndim) * noise("start")
        # Built here, so that the bound is that of the calibration as it is now.
        clip = build_clip(self.sampling.clip, self.calibration.low, self.calibration.high)
        sample = build_sampler(self.sampling, clip, self.schedule)
        return sample(
            lambda x, level: self.denoiser(x, level, given, frame_times),
            torch.where(append_dims(given, latents.ndim), latents, start),
            levels,
            noise=lambda step: noise(f"step {step}"),
            callback=callback,
        )

    @torch.no_grad()
    def predict(
        self,
        frames: Tensor,
        num_frames: int,
        seed: int = 0,
        *,
        num_inference_steps: Optional[int] = None,
        callback: Optional[Callback] = None,
        draws: Optional[Tensor] = None,
        purpose: str = "prediction",
    ) -> Tensor:
        """Continues a video.

        Args:
            frames: (T, 3, H, W) or (B, T, 3, H, W) uint8; the last `context_frames` of them are used.
            num_frames: how many new frames; beyond the training horizon windows slide (`rollout`).
            seed: the trajectory: another seed is another sample of the future.
            draws: (B,) int64 running numbers of the rows' randomness; 0..B-1 where None.
        Returns:
            the new frames only, uint8, with as many axes as `frames` and on its device.
        Raises:
            UserError: wrong type or size, or too few frames.
            NotFiniteError (a UserError): a prediction that is not finite.
        """
        self._check(frames, num_frames)
        batch = frames if frames.ndim == 5 else frames[None]
        draws = torch.arange(len(batch)) if draws is None else draws
        count = ClipCount()

        def sample(latents: Tensor, given: Tensor, frame_times: Tensor, window: int) -> Tensor:
            return self.sample_latents(
                latents,
                given,
                frame_times,
                draws,
                seed,
                num_inference_steps=num_inference_steps,
                callback=_both(count if self.log else None, callback),
                purpose=f"{purpose}/window {window}" if window else purpose,
            )

        context = self.encode(batch[:, -self.context_frames :])
        latents, pieces, frame_range = [], [], []
        for window in rollout(sample, context, num_frames, self.num_frames):
            decoded = self.decode(window)
            _require_finite("latents", window)
            _require_finite("decoded values", decoded)
            latents.append(window)
            pieces.append(to_uint8(decoded))
            frame_range += [decoded.min(), decoded.max()]
        if self.log:
            self._write_log(count, num_inference_steps, torch.cat(latents, dim=1), torch.stack(frame_range))
        prediction = torch.cat(pieces, dim=1).to(frames.device)
        return prediction if frames.ndim == 5 else prediction[0]

    def _write_log(
        self, count: ClipCount, num_inference_steps: Optional[int], latents: Tensor, frame_range: Tensor
    ) -> None:
        raw = self.calibration.denormalize(latents)
        for line in prediction_lines(count, self._steps(num_inference_steps), latents, raw, frame_range):
            self.log(line)

    def _steps(self, num_inference_steps: Optional[int]) -> int:
        return self.sampling.num_inference_steps if num_inference_steps is None else num_inference_steps

    def _check(self, frames: Tensor, num_frames: int) -> None:
        if frames.ndim not in (4, 5) or frames.shape[-3] != 3:
            raise UserError(f"frames: expected (T, 3, H, W) or (B, T, 3, H, W), got {tuple(frames.shape)}")
        if frames.dtype != torch.uint8:
            raise UserError(f"frames: expected uint8 in 0..255, got {frames.dtype}; convert them first")
        if frames.shape[-4] < self.context_frames:
            raise UserError(
                f"frames: {frames.shape[-4]} given, the model needs {self.context_frames} context frames"
            )
        height, width = frames.shape[-2:]
        factor = self.autoencoder.down_factor
        if height % factor or width % factor:
            raise UserError(
                f"frames: {height}x{width} is not a multiple of {factor} as the autoencoder needs; "
                "resize or crop them"
            )
        if num_frames < 1:
            raise UserError(f"num_frames: {num_frames} must be 1 or more")


def _both(first: Optional[Callback], second: Optional[Callback]) -> Optional[Callback]:
    callbacks = [callback for callback in (first, second) if callback is not None]
    if not callbacks:
        return None

    def call(report: StepReport) -> None:
        for callback in callbacks:
            callback(report)

    return call


def _require_finite(name: str, values: Tensor) -> None:
    # Cast to uint8, NaN would become a black pixel: a broken model must not look like a dark video.
    bad = int((~values.isfinite()).sum())
    if bad:
        raise NotFiniteError(
            f"prediction: {bad} of {values.numel()} {name} are not finite; use an earlier checkpoint, "
            "full precision, or look at tools/diagnose_diffusion.py"
        )
