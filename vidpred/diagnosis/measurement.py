"""The measurements of an examination; see `records` for what each figure means."""

import math
from typing import Any, Optional

import torch
from torch import Tensor

from vidpred import random_streams
from vidpred.data import ClipBatch
from vidpred.diagnosis.records import LatentFigures, LevelRow, StepRow, WeightFigures
from vidpred.diffusion import MotionCompensation, NoiseLevel, StepReport, add_noise
from vidpred.prediction import LatentCalibration, Predictor
from vidpred.tensor_ops import reference_frames

PURPOSE = "diagnosis"
LEVELS = 10


class Trace:
    """A sampler callback that keeps the figures of every step, on the device until `rows` asks for them."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []

    def __call__(self, report: StepReport) -> None:
        # The noisiest of the moving frames.
        alpha = torch.where(report.moving, report.level.alpha, torch.inf).amin()
        figures = [alpha, torch.where(report.moving, report.level.sigma, 0.0).amax()]
        figures += [*report.value_range(report.x), *report.value_range(report.x0_raw)]
        self._steps.append(torch.stack([*figures, report.clip_rate, report.eps_norm]).double())

    def rows(self) -> list[StepRow]:
        table = torch.stack(self._steps).tolist() if self._steps else []
        return [
            StepRow(step, alpha, sigma, (x_low, x_high), (x0_low, x0_high), clip_rate, eps_norm)
            for step, (alpha, sigma, x_low, x_high, x0_low, x0_high, clip_rate, eps_norm) in enumerate(table)
        ]


def sampling_steps(predictor: Predictor, latents: Tensor, clips: ClipBatch, seed: int) -> list[StepRow]:
    """Samples the unknown frames of `latents` (B, T, C, h, w) once, with the model's own settings."""
    trace = Trace()
    predictor.sample_latents(
        latents, clips.given, clips.frame_times, clips.draws, seed,
        condition=predictor.conditions_of(clips), callback=trace, purpose=PURPOSE,
    )  # fmt: skip
    return trace.rows()


def untrained_reference(denoiser: Any, latents: Tensor, clips: ClipBatch) -> Tensor:
    """What an untrained network's prediction is relative to: the nearest given frame, a little blurred where kernels
    move it."""
    motion = getattr(denoiser, "motion", MotionCompensation())
    if not motion.radius:
        return reference_frames(latents, clips.given, clips.frame_times)
    kernels = latents.new_zeros(*latents.shape[:2], motion.channels, *latents.shape[3:])
    return motion(kernels, latents, clips.given, clips.frame_times)


@torch.no_grad()
def one_step_errors(predictor: Predictor, latents: Tensor, clips: ClipBatch, seed: int) -> list[LevelRow]:
    """The error of one call of the denoiser at ten levels, from pure noise to a tenth of the timesteps."""
    clips = clips.to(latents.device)
    unknown = ~clips.given
    condition = predictor.condition(predictor.conditions_of(clips), *clips.given.shape)
    told = () if condition is None else (condition,)
    copied = untrained_reference(predictor.denoiser, latents, clips)
    zero, copy_last = _rms(latents[unknown]), _rms((latents - copied)[unknown])
    rows = []
    for t in predictor.schedule.timesteps(min(LEVELS, predictor.schedule.num_train_timesteps)):
        at_t = predictor.schedule.level(torch.full_like(clips.given, t, dtype=torch.int64))
        level = NoiseLevel.where(clips.given, NoiseLevel.clean((1, 1), latents.device), at_t)
        shape = tuple(latents.shape[1:])
        noise = random_streams.normal(seed, f"{PURPOSE}/level {t}", clips.draws, shape, latents.device)
        estimate = predictor.denoiser(
            add_noise(latents, noise, level), level, clips.given, clips.frame_times, *told
        )
        error = _rms((estimate - latents)[unknown])
        alpha, sigma = (float(value[unknown][0]) for value in (level.alpha, level.sigma))
        rows.append(LevelRow(t, alpha, sigma, error, zero, copy_last))
    return rows


def latent_figures(calibration: LatentCalibration, latents: Tensor) -> LatentFigures:
    """Of calibrated latents (B, T, C, h, w)."""
    values = latents.double().transpose(1, 2).flatten(2)  # (B, C, T*h*w)
    of_clips = values.mean(2)  # (B, C)
    clips = len(of_clips)
    spread = of_clips.std(0) / math.sqrt(clips) if clips > 1 else torch.full_like(of_clips[0], math.inf)
    never = LatentCalibration(latents.shape[2]).state_dict()
    held = calibration.state_dict()
    return LatentFigures(
        mean=tuple(of_clips.mean(0).tolist()),
        std=tuple(values.transpose(0, 1).flatten(1).std(1, correction=0).tolist()),
        uncertainty=tuple(spread.tolist()),
        low=float(latents.min()),
        high=float(latents.max()),
        measured=not all(torch.equal(held[name].cpu(), never[name]) for name in never),
    )


def weight_figures(
    weights: dict[str, Tensor], averaged: Optional[dict[str, Tensor]], ema_updates: Optional[int] = None
) -> WeightFigures:
    """Of weights by name, and of their moving average under the same names."""
    not_finite = [name for name, values in weights.items() if not values.isfinite().all()]
    ema_norm, distance, stuck = None, None, []
    if averaged is not None:
        not_finite += [f"EMA {name}" for name, values in averaged.items() if not values.isfinite().all()]
        stuck = [name for name in weights if weights[name].any() and not averaged[name].any()]
        ema_norm = _norm(averaged)
        differences = {name: averaged[name].double() - weights[name].double() for name in weights}
        distance = _norm(differences) / max(_norm(weights), 1e-30)
    return WeightFigures(
        count=sum(values.numel() for values in weights.values()),
        raw_norm=_norm(weights),
        ema_norm=ema_norm,
        distance=distance,
        not_finite=tuple(not_finite),
        stuck=tuple(stuck),
        ema_updates=ema_updates,
    )


def _norm(tensors: dict[str, Tensor]) -> float:
    squares = [float(values.double().square().sum()) for values in tensors.values()]
    return math.sqrt(sum(squares))


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
