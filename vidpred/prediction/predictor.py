"""From given frames to predicted ones: encode, sample, decode.

    frames uint8 -> autoencoder -> calibrated latents -> sampler(denoiser) -> autoencoder -> frames uint8
"""

import dataclasses
from typing import Iterator, Optional

import torch
from torch import Tensor

from vidpred.conditions import Condition, ConditionBatch
from vidpred.diffusion import Callback
from vidpred.errors import UserError
from vidpred.prediction.frames import check_frames, leading_axes, per_clip, require_finite
from vidpred.prediction.latent_predictor import LatentPredictor
from vidpred.prediction.latent_rollout import roll_out
from vidpred.prediction.latent_sampling import LatentSampler
from vidpred.prediction.range_lines import ClipCount, in_turn, prediction_lines
from vidpred.prediction.rollout import RolloutOptions
from vidpred.tensor_ops import append_dims, to_uint8

NEXT_TRAJECTORY = 2**40  # between the draw numbers of two trajectories of one clip


class Predictor(LatentPredictor):
    """Predicts frames with a trained denoiser. `load_predictor` rebuilds one from a checkpoint.

    Its arguments are those of `LatentPredictor`. Where the model has no context frames, `predict` takes clips of no
    frame, (B, 0, 3, H, W).
    """

    @torch.no_grad()
    def predict(
        self,
        frames: Tensor,
        num_frames: int,
        seed: int = 0,
        *,
        condition: Optional[ConditionBatch] = None,
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
        watch = in_turn(count if self.log else None, callback)
        sampler, pieces = self._rollout(
            frames, num_frames, seed, condition, trajectories, options, num_inference_steps, watch, draws, purpose
        )
        latents, rows, frame_range = [], [], []
        for window, decoded in pieces:
            latents.append(window)
            rows.append(to_uint8(decoded))
            frame_range += [decoded.min(), decoded.max()]
        if self.log:
            self._write_log(count, sampler.num_steps, torch.cat(latents, dim=1), torch.stack(frame_range))
        return leading_axes(torch.cat(rows, dim=1), frames, trajectories)

    @torch.no_grad()
    def rollout(
        self,
        frames: Tensor,
        num_frames: int,
        seed: int = 0,
        *,
        condition: Optional[ConditionBatch] = None,
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
            condition: of the clips, one row each: class and text hold for all windows; of actions there is one for each
                of `frames`, then one for each new frame. None: the model is asked for nothing in particular.
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
            frames, num_frames, seed, condition, trajectories, options, num_inference_steps, callback, draws, purpose
        )
        for _, decoded in pieces:
            yield leading_axes(to_uint8(decoded), frames, trajectories)

    @torch.no_grad()
    def fill(
        self,
        frames: Tensor,
        given: Tensor,
        seed: int = 0,
        *,
        frame_times: Optional[Tensor] = None,
        condition: Optional[ConditionBatch] = None,
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
            condition: of the clips, one row each, with an action for each of `frames`.
            others: as `rollout`'s.
        Returns:
            uint8 like `frames`, with an axis of trajectories before T where they are asked for; given frames as
            they came.
        """
        check_frames(frames, 1, 1, self.autoencoder.down_factor)
        batch, draws = self._rows(frames, trajectories, draws)
        length = batch.shape[1]
        copies = trajectories or 1
        told = self._told(condition, len(batch) // copies, length, copies)
        given = per_clip(given.bool(), "given", frames).repeat_interleave(copies, 0).to(batch.device)
        times = torch.arange(float(length)) if frame_times is None else frame_times.float()
        times = per_clip(times, "frame_times", frames).repeat_interleave(copies, 0)
        mask = append_dims(given, batch.ndim)
        latents = self.encode(torch.where(mask, batch, 0))
        sampler = self._sampler(draws, seed, purpose, num_inference_steps, callback, condition)
        sampled = sampler.sample(
            latents, given.to(self.device), times.to(self.device),
            context_noise=self.sampling.context_noise, condition=told,
        )  # fmt: skip
        filled = torch.where(mask, batch, to_uint8(self._decoded(sampled)).to(batch.device))
        return leading_axes(filled, frames, trajectories)

    @torch.no_grad()
    def generate(
        self,
        height: int,
        width: int,
        draws: Tensor,
        seed: int = 0,
        *,
        condition: Optional[ConditionBatch] = None,
        num_frames: Optional[int] = None,
        num_inference_steps: Optional[int] = None,
        callback: Optional[Callback] = None,
        purpose: str = "generation",
    ) -> Tensor:
        """Clips from nothing but their conditions, for networks that were trained without given frames.

        Args:
            height, width: in pixels. num_frames: T, those of a training clip where None.
            draws: (B,) int64 running numbers of the clips' randomness. others: as `rollout`'s.
        Returns:
            uint8 (B, T, 3, H, W) on the CPU.
        """
        length = num_frames or self.num_frames
        factor = self.autoencoder.down_factor
        check_frames(torch.empty(1, 3, height, width, dtype=torch.uint8), 1, length, factor)
        shape = (len(draws), length, self.autoencoder.latent_channels, height // factor, width // factor)
        given = torch.zeros(shape[:2], dtype=torch.bool)
        times = torch.arange(float(length)).expand(shape[:2])
        latents = self.sample_latents(
            torch.zeros(shape), given, times, draws, seed, condition=condition,
            num_inference_steps=num_inference_steps, callback=callback, purpose=purpose,
        )  # fmt: skip
        return to_uint8(self._decoded(latents)).cpu()

    def _rollout(
        self,
        frames: Tensor,
        num_frames: int,
        seed: int,
        condition: Optional[ConditionBatch],
        trajectories: Optional[int],
        options: RolloutOptions,
        num_inference_steps: Optional[int],
        callback: Optional[Callback],
        draws: Optional[Tensor],
        purpose: str,
    ) -> tuple[LatentSampler, Iterator[tuple[Tensor, Tensor]]]:
        """The sampler, and (latents, decoded frames) of each piece; bad arguments are refused here."""
        check_frames(frames, self.context_frames, num_frames, self.autoencoder.down_factor)
        if self.context_frames == 0 and not options.overlap and num_frames > self.num_frames:
            raise UserError(
                f"num_frames: {num_frames} is more than the {self.num_frames} frames that this model generates from "
                "nothing; ask for fewer"
            )
        batch, draws = self._rows(frames, trajectories, draws)
        clips, length = len(batch) // (trajectories or 1), batch.shape[1]
        before = length - self.context_frames
        told = self._told(condition, clips, length + num_frames, trajectories or 1, before)
        sampler = self._sampler(draws, seed, purpose, num_inference_steps, callback, condition)
        windows = roll_out(sampler, self.encode(batch[:, before:]), num_frames, self.num_frames, options, told)
        return sampler, ((window, self._decoded(window)) for window in windows)

    def _told(
        self, asked: Optional[ConditionBatch], clips: int, frames: int, copies: int, skipped: int = 0
    ) -> Optional[Condition]:
        """The condition of each clip once for each trajectory; actions of all frames but the `skipped` first ones."""
        condition = self.condition(asked, clips, frames)
        if condition is None:
            return None
        if condition.actions is not None:
            condition = dataclasses.replace(condition, actions=condition.actions[:, skipped:])
        return condition.repeat_interleave(copies)

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

    def _decoded(self, latents: Tensor) -> Tensor:
        decoded = self.decode(latents)
        require_finite("latents", latents)
        require_finite("decoded values", decoded)
        return decoded

    def _write_log(self, count: ClipCount, num_steps: int, latents: Tensor, frame_range: Tensor) -> None:
        raw = self.calibration.denormalize(latents)
        for line in prediction_lines(count, num_steps, latents, raw, frame_range):
            self.log(line)
