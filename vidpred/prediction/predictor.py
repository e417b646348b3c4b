"""From given frames to predicted ones: encode, sample, decode.

    frames uint8 -> autoencoder -> calibrated latents -> sampler(denoiser) -> autoencoder -> frames uint8
"""

from typing import Callable, Iterator, Optional

import torch
from torch import Tensor, nn

from vidpred.diffusion import Callback, NoiseSchedule, SamplingConfig, StepReport, build_clip
from vidpred.errors import UserError
from vidpred.prediction.calibration import LatentCalibration
from vidpred.prediction.latent_sampling import Denoiser, LatentSampler
from vidpred.prediction.range_lines import ClipCount, prediction_lines
from vidpred.prediction.rollout import RolloutOptions, Window, keyframes_first, pyramid, slide
from vidpred.tensor_ops import append_dims, to_uint8

NEXT_TRAJECTORY = 2**40  # between the draw numbers of two trajectories of one clip


class NotFiniteError(UserError):
    """A prediction that is not finite: the model is broken, not what was asked of it."""


class Predictor:
    """Predicts frames with a trained denoiser. `load_predictor` rebuilds one from a checkpoint.

    Args:
        denoiser: the clean estimate, in eval mode, on the calibration's device.
        autoencoder: `encode`, `decode`, `down_factor`; on the same device.
        context_frames, num_frames: given frames and all frames of a training clip. With 0 given ones the model
            generates: `predict` takes clips of no frame, (B, 0, 3, H, W), and continues them from nothing.
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
        sampler = self._sampler(draws, seed, purpose, num_inference_steps, callback)
        return sampler.sample(
            latents, given, frame_times.to(self.device), context_noise=self.sampling.context_noise
        )

    @torch.no_grad()
    def continue_latents(
        self,
        context: Tensor,
        num_frames: int,
        draws: Tensor,
        seed: int,
        *,
        options: RolloutOptions = RolloutOptions(),
        num_inference_steps: Optional[int] = None,
        purpose: str = "prediction",
    ) -> Tensor:
        """The next `num_frames` frames, window after window: (B, K, C, h, w) calibrated latents, K the
        model's context frames -> (B, num_frames, C, h, w). Other arguments as `sample_latents`'s."""
        sampler = self._sampler(draws, seed, purpose, num_inference_steps, None)
        return torch.cat(list(self._windows(sampler, context.to(self.device), num_frames, options)), dim=1)

    @torch.no_grad()
    def predict(
        self,
        frames: Tensor,
        num_frames: int,
        seed: int = 0,
        *,
        trajectories: Optional[int] = None,
        options: RolloutOptions = RolloutOptions(),
        num_inference_steps: Optional[int] = None,
        callback: Optional[Callback] = None,
        draws: Optional[Tensor] = None,
        purpose: str = "prediction",
    ) -> Tensor:
        """Continues a video: all of `rollout` at once, with the range lines in the log.

        Arguments and errors as `rollout`'s. Returns the new frames only, uint8 (..., num_frames, 3, H, W), with
        the leading axes that `rollout` states, on the device of `frames`.
        """
        count = ClipCount()
        watch = _both(count if self.log else None, callback)
        sampler, pieces = self._rollout(
            frames, num_frames, seed, trajectories, options, num_inference_steps, watch, draws, purpose
        )
        latents, rows, frame_range = [], [], []
        for window, decoded in pieces:
            latents.append(window)
            rows.append(to_uint8(decoded))
            frame_range += [decoded.min(), decoded.max()]
        if self.log:
            self._write_log(count, sampler.num_steps, torch.cat(latents, dim=1), torch.stack(frame_range))
        return _leading_axes(torch.cat(rows, dim=1), frames, trajectories)

    @torch.no_grad()
    def rollout(
        self,
        frames: Tensor,
        num_frames: int,
        seed: int = 0,
        *,
        trajectories: Optional[int] = None,
        options: RolloutOptions = RolloutOptions(),
        num_inference_steps: Optional[int] = None,
        callback: Optional[Callback] = None,
        draws: Optional[Tensor] = None,
        purpose: str = "prediction",
    ) -> Iterator[Tensor]:
        """Continues a video to any length; a generator of frames as they are finished, in constant memory.

        Args:
            frames: (T, 3, H, W) or (B, T, 3, H, W) uint8; the last `context_frames` of them are used.
            num_frames: how many new frames; beyond the training horizon window follows window, as `options` say.
            seed: of the noise; another seed is another sample of the future.
            trajectories: several samples of the future of each clip, in one batch. Trajectory k of a clip is the
                same however many are asked for, and number 0 is what None gives.
            num_inference_steps: the configured number where None.
            callback: called with a StepReport at every network call.
            draws: (B,) int64 running numbers of the rows' randomness; 0..B-1 where None.
        Yields:
            uint8 (..., n, 3, H, W) on the device of `frames`, n new frames, with an axis of clips in front where
            `frames` have one, and one of trajectories after it where they are asked for.
        Raises:
            UserError: wrong type or size, or too few frames.
            NotFiniteError (a UserError): a prediction that is not finite.
        """
        _, pieces = self._rollout(
            frames, num_frames, seed, trajectories, options, num_inference_steps, callback, draws, purpose
        )
        for _, decoded in pieces:
            yield _leading_axes(to_uint8(decoded), frames, trajectories)

    @torch.no_grad()
    def fill(
        self,
        frames: Tensor,
        given: Tensor,
        seed: int = 0,
        *,
        frame_times: Optional[Tensor] = None,
        trajectories: Optional[int] = None,
        num_inference_steps: Optional[int] = None,
        callback: Optional[Callback] = None,
        draws: Optional[Tensor] = None,
        purpose: str = "prediction",
    ) -> Tensor:
        """Samples whichever frames are not given: interpolation, infilling, and, with none given, generation.

        For networks that were trained with such roles (conditioning.scheme random, unconditional).

        Args:
            frames: (T, 3, H, W) or (B, T, 3, H, W) uint8; what unknown ones hold is not looked at.
            given: (T,) or (B, T) bool.
            frame_times: (T,) or (B, T) in the frame intervals of the training clips; 0, 1, 2, ... where None.
            others: as `rollout`'s.
        Returns:
            uint8 like `frames`, with an axis of trajectories before T where they are asked for; given frames as
            they came.
        """
        self._check(frames, 1, 1)
        batch, draws = self._rows(frames, trajectories, draws)
        length = batch.shape[1]
        copies = trajectories or 1
        given = _per_clip(given.bool(), "given", frames).repeat_interleave(copies, 0).to(batch.device)
        times = torch.arange(float(length)) if frame_times is None else frame_times.float()
        times = _per_clip(times, "frame_times", frames).repeat_interleave(copies, 0)
        mask = append_dims(given, batch.ndim)
        latents = self.encode(torch.where(mask, batch, 0))
        sampler = self._sampler(draws, seed, purpose, num_inference_steps, callback)
        sampled = sampler.sample(
            latents, given.to(self.device), times.to(self.device), context_noise=self.sampling.context_noise
        )
        filled = torch.where(mask, batch, to_uint8(self._decoded(sampled)).to(batch.device))
        return _leading_axes(filled, frames, trajectories)

    def _rollout(
        self,
        frames: Tensor,
        num_frames: int,
        seed: int,
        trajectories: Optional[int],
        options: RolloutOptions,
        num_inference_steps: Optional[int],
        callback: Optional[Callback],
        draws: Optional[Tensor],
        purpose: str,
    ) -> tuple[LatentSampler, Iterator[tuple[Tensor, Tensor]]]:
        """The sampler, and (latents, decoded frames) of each piece; bad arguments are refused here."""
        self._check(frames, self.context_frames, num_frames)
        if self.context_frames == 0 and not options.overlap and num_frames > self.num_frames:
            raise UserError(
                f"num_frames: {num_frames} is more than the {self.num_frames} frames that this model generates from "
                "nothing; ask for fewer"
            )
        batch, draws = self._rows(frames, trajectories, draws)
        sampler = self._sampler(draws, seed, purpose, num_inference_steps, callback)
        context = self.encode(batch[:, batch.shape[1] - self.context_frames :])
        windows = self._windows(sampler, context, num_frames, options)
        return sampler, ((window, self._decoded(window)) for window in windows)

    def _rows(
        self, frames: Tensor, trajectories: Optional[int], draws: Optional[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Frames (rows, T, 3, H, W) and draw numbers (rows,): each clip once for each trajectory."""
        if trajectories is not None and trajectories < 1:
            raise UserError(f"trajectories: {trajectories} must be 1 or more")
        batch = frames if frames.ndim == 5 else frames[None]
        draws = torch.arange(len(batch)) if draws is None else draws
        numbers = NEXT_TRAJECTORY * torch.arange(trajectories or 1, device=draws.device)
        return batch.repeat_interleave(len(numbers), 0), (draws[:, None] + numbers).flatten()

    def _sampler(
        self,
        draws: Tensor,
        seed: int,
        purpose: str,
        num_inference_steps: Optional[int],
        callback: Optional[Callback],
    ) -> LatentSampler:
        # The bound is built here, so that it is that of the calibration as it is now.
        clip = build_clip(self.sampling.clip, self.calibration.low, self.calibration.high)
        steps = self.sampling.num_inference_steps if num_inference_steps is None else num_inference_steps
        return LatentSampler(
            self.denoiser, self.schedule, self.sampling, clip, draws.to(self.device), seed, purpose, steps, callback
        )

    def _windows(
        self, sampler: LatentSampler, context: Tensor, num_frames: int, options: RolloutOptions
    ) -> Iterator[Tensor]:
        """The latents (B, n, C, h, w) of each piece of a rollout after `context` (B, K, C, h, w)."""

        def expanded(window: Window) -> tuple[Tensor, Tensor, str, float | Tensor]:
            rows = (len(window.latents), -1)
            name = f"window {window.number}/" if window.number else ""
            noise: float | Tensor = self.sampling.context_noise
            if options.stabilization > 0:
                noise = window.context_noise.clamp(min=noise)
            return window.given.expand(rows), window.frame_times.expand(rows), name, noise

        def sample(window: Window) -> Tensor:
            return sampler.sample(window.latents, *expanded(window))

        def advance(window: Window, steps: Tensor) -> Tensor:
            given, times, name, noise = expanded(window)
            return sampler.walk(window.latents, given, times, steps, name, noise)

        arguments = (context, num_frames, self.num_frames)
        if options.scheme == "pyramid":
            yield from pyramid(
                advance, lambda frame: sampler.pure_noise(f"frame {frame}", context[:, :1]),
                *arguments, sampler.num_steps, options,
            )  # fmt: skip
        else:
            scheme = {"sliding": slide, "keyframes": keyframes_first}[options.scheme]
            yield from scheme(sample, *arguments, options)

    def _decoded(self, latents: Tensor) -> Tensor:
        decoded = self.decode(latents)
        _require_finite("latents", latents)
        _require_finite("decoded values", decoded)
        return decoded

    def _write_log(self, count: ClipCount, num_steps: int, latents: Tensor, frame_range: Tensor) -> None:
        raw = self.calibration.denormalize(latents)
        for line in prediction_lines(count, num_steps, latents, raw, frame_range):
            self.log(line)

    def _check(self, frames: Tensor, least: int, num_frames: int) -> None:
        if frames.ndim not in (4, 5) or frames.shape[-3] != 3:
            raise UserError(f"frames: expected (T, 3, H, W) or (B, T, 3, H, W), got {tuple(frames.shape)}")
        if frames.dtype != torch.uint8:
            raise UserError(f"frames: expected uint8 in 0..255, got {frames.dtype}; convert them first")
        if frames.shape[-4] < least:
            raise UserError(f"frames: {frames.shape[-4]} given, the model needs {least} context frames")
        height, width = frames.shape[-2:]
        factor = self.autoencoder.down_factor
        if height % factor or width % factor:
            raise UserError(
                f"frames: {height}x{width} is not a multiple of {factor} as the autoencoder needs; "
                "resize or crop them"
            )
        if num_frames < 1:
            raise UserError(f"num_frames: {num_frames} must be 1 or more")


def _leading_axes(rows: Tensor, frames: Tensor, trajectories: Optional[int]) -> Tensor:
    """(rows, T, 3, H, W) -> an axis of clips where `frames` have one, one of trajectories where asked for."""
    rows = rows.to(frames.device)
    if trajectories is None:
        return rows if frames.ndim == 5 else rows[0]
    return rows.unflatten(0, (-1, trajectories)) if frames.ndim == 5 else rows


def _per_clip(values: Tensor, name: str, frames: Tensor) -> Tensor:
    """(T,) or (B, T) -> (B, T), for frames (T, ...) or (B, T, ...)."""
    shape = (frames.shape[0], frames.shape[1]) if frames.ndim == 5 else (1, frames.shape[0])
    if values.shape not in (shape, shape[1:]):
        raise UserError(f"{name}: expected {shape[1:]} or {shape} values, got {tuple(values.shape)}")
    return values.expand(shape)


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
