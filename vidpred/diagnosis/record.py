"""What training leaves in each checkpoint, so that inference can be compared with it and not with a guess.

A few validation clips as training read them, their latents before calibration, the calibration, the levels of the
schedule, and what the raw and the averaged weights made of these latents at three levels; and a sample of the
weights at the start and now. A few megabytes at most. It is taken by rank 0 alone and uses no collective operation.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Callable, Mapping, Optional

import torch
from torch import Tensor, nn

from vidpred import random_streams
from vidpred.autoencoders.reconstruction import reconstruction_psnr
from vidpred.checkpoint_store import Checkpoint
from vidpred.data import ClipBatch
from vidpred.diagnosis.curve import LossCurve
from vidpred.diffusion import NoiseLevel, add_noise
from vidpred.prediction import Predictor

GROUP = "record"  # of tensors in a checkpoint
CLIPS = 4
FRAME_BYTES, LATENT_BYTES = 2**21, 2**19  # of all recorded frames, of the latents of all clips
FRACTIONS = (1.0, 0.7, 0.4)  # of the schedule, where estimates are recorded
SAMPLE = 64  # values of each tensor of weights
LARGEST = 6e4  # float16 ends at 65504


@dataclass(frozen=True)
class TrainingRecord:
    """N clips of T frames. Tensors are on the CPU.

    frames: (N, F, 3, H, W) uint8, the first F frames of each clip. latents: (N, T, C, h, w) as the autoencoder gave
    them. shift, scale: (C,) the calibration. given: (N, T) bool; frame_times: (N, T); draws: (N,) numbers of the clips.
    alphas, sigmas: (levels,) the schedule's table. estimates: x0 at FRACTIONS, (3, N, T, C, h, w) float16 in calibrated
    units, of the averaged weights; raw_estimates: of the trained ones. names: of the clips. seed: of the noise in them.
    reconstruction_psnr: (N, F) dB, of decode(encode(frames)). scaling: what the autoencoder multiplies latents with.
    """

    frames: Tensor
    latents: Tensor
    shift: Tensor
    scale: Tensor
    given: Tensor
    frame_times: Tensor
    draws: Tensor
    alphas: Tensor
    sigmas: Tensor
    estimates: Tensor
    raw_estimates: Tensor
    reconstruction_psnr: Tensor
    names: tuple[str, ...]
    seed: int
    scaling: float = math.nan

    @property
    def calibrated(self) -> Tensor:
        """The latents as the denoiser saw them, (N, T, C, h, w)."""
        shift, scale = (values[:, None, None] for values in (self.shift, self.scale))
        return (self.latents - shift) / scale

    def first(self, clips: int, frames: int) -> "TrainingRecord":
        """Of fewer clips, with fewer frames in pixels and as latents: enough to know an autoencoder by."""
        few = {name: getattr(self, name)[:clips] for name in ("given", "frame_times", "draws", "names")}
        few |= {name: getattr(self, name)[:, :clips] for name in ("estimates", "raw_estimates")}
        return dataclasses.replace(
            self, frames=self.frames[:clips, :frames], latents=self.latents[:clips, :frames],
            reconstruction_psnr=self.reconstruction_psnr[:clips, :frames], **few,
        )  # fmt: skip

    def estimates_of(self, denoiser: Callable[..., Tensor], predictor: Predictor) -> Tensor:
        """The x0 (3, N, T, C, h, w) of `denoiser` for exactly what the recorded estimates were made of."""
        device = predictor.device
        return _estimates(
            _unconditional(denoiser, predictor, self.given),
            self.calibrated.to(device), self.given.to(device), self.frame_times.to(device),
            self.draws.to(device), self.alphas, self.sigmas, self.seed,
        ).cpu()  # fmt: skip


@dataclass(frozen=True)
class TrainingHistory:
    """What a checkpoint tells of its training.

    step, num_steps: done and planned. ema_decay: as configured. one_batch: whether it is to overfit one batch. curve:
    of the losses. record: None where no clip could be recorded. start, raw, averaged: weights, see
    `weight_sample`.
    """

    step: int
    num_steps: int
    ema_decay: float
    one_batch: bool
    curve: LossCurve
    record: Optional[TrainingRecord]
    start: Tensor
    raw: Tensor
    averaged: Tensor


def weight_sample(weights: Mapping[str, Tensor]) -> Tensor:
    """Up to SAMPLE evenly spaced values of each floating tensor, by name in order: (S,) float32 on the CPU."""
    parts = []
    for _, values in sorted(weights.items()):
        if values.is_floating_point():
            flat = values.detach().flatten()
            parts.append(flat[:: -(-max(len(flat), 1) // SAMPLE)].float())
    return torch.cat(parts).cpu() if parts else torch.zeros(0)


def record_capacity(clip_shape: tuple[int, ...], latent_shape: tuple[int, ...]) -> tuple[int, int]:
    """(clips, frames of each): how many clips (T, 3, H, W) with latents (T, C, h, w) fit; one at least."""
    frame = clip_shape[1] * clip_shape[2] * clip_shape[3]
    latents = 4 * latent_shape[0] * latent_shape[1] * latent_shape[2] * latent_shape[3]
    clips = min(max(LATENT_BYTES // latents, 1), CLIPS)
    return clips, min(max(FRAME_BYTES // (clips * frame), 1), clip_shape[0])


@dataclass(frozen=True)
class RecordedClips:
    """What a record holds of its clips: training does not change it. See `TrainingRecord`; all on the CPU."""

    frames: Tensor
    latents: Tensor
    given: Tensor
    frame_times: Tensor
    draws: Tensor
    reconstruction_psnr: Tensor
    names: tuple[str, ...]


@torch.no_grad()
def record_clips(predictor: Predictor, clips: ClipBatch) -> RecordedClips:
    """As many of `clips`, and as many of their frames, as a record has room for."""
    autoencoder = predictor.autoencoder
    _, length, _, height, width = clips.frames.shape
    factor = autoencoder.down_factor
    latent_shape = (length, autoencoder.latent_channels, height // factor, width // factor)
    kept, frames = record_capacity(tuple(clips.frames.shape[1:]), latent_shape)
    clips = clips.first(kept)
    on_device = clips.frames.to(predictor.device)
    shown = on_device[:, :frames].contiguous()
    return RecordedClips(
        shown.cpu(), autoencoder.encode(on_device).cpu(), clips.given, clips.frame_times, clips.draws,
        reconstruction_psnr(autoencoder, shown).cpu(), tuple(clips.names),
    )  # fmt: skip


def clips_of(record: TrainingRecord) -> RecordedClips:
    """What `record_clips` gave for it."""
    return RecordedClips(**{field.name: getattr(record, field.name) for field in dataclasses.fields(RecordedClips)})


@torch.no_grad()
def take_record(
    predictor: Predictor, averaged: Optional[nn.Module], clips: RecordedClips, seed: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and plain values of a `TrainingRecord`. `predictor` has the trained weights; both networks are in
    evaluation mode. Without `averaged` no network is called, and there are no estimates, (0, N, T, C, h, w)."""
    device, schedule = predictor.device, predictor.schedule
    latents = predictor.calibration.normalize(clips.latents.to(device))
    given, frame_times, draws = (values.to(device) for values in (clips.given, clips.frame_times, clips.draws))
    tensors = {
        "frames": clips.frames,
        "latents": clips.latents,
        "shift": predictor.calibration.shift,
        "scale": predictor.calibration.scale,
        "given": clips.given,
        "frame_times": clips.frame_times,
        "draws": clips.draws,
        "alphas": schedule.alphas,
        "sigmas": schedule.sigmas,
        "reconstruction_psnr": clips.reconstruction_psnr,
    }
    for name, network in (("estimates", averaged), ("raw_estimates", predictor.denoiser.network)):
        found = latents.new_zeros(0, *latents.shape)
        if averaged is not None:
            denoise = _unconditional(predictor.denoiser.with_network(network), predictor, given)
            found = _estimates(denoise, latents, given, frame_times, draws, schedule.alphas, schedule.sigmas, seed)
        tensors[name] = found.clamp(-LARGEST, LARGEST).half()
    values = {"names": list(clips.names), "seed": seed, "scaling": scaling_of(predictor.autoencoder)}
    return tensors, values


def scaling_of(autoencoder: nn.Module) -> float:
    """What latents are multiplied with; the geometric mean over channels."""
    scale = getattr(autoencoder, "scale", None)
    return float(scale.abs().log().mean().exp()) if isinstance(scale, Tensor) else 1.0


def as_record(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> TrainingRecord:
    """What `take_record` returned, copied to the CPU: what it was taken of may change."""
    on_host = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
    return TrainingRecord(**on_host, **{**values, "names": tuple(values["names"])})


def read_history(checkpoint: Checkpoint) -> Optional[TrainingHistory]:
    """The history in a checkpoint that was read with its state; None where it has none."""
    values, tensors = checkpoint.state.get("history"), checkpoint.tensors.get(GROUP)
    if values is None or tensors is None:
        return None
    tensors = dict(tensors)
    weights = {name: tensors.pop(f"weights_{name}") for name in ("start", "raw", "averaged")}
    complete = values["record"] is not None and "reconstruction_psnr" in tensors  # older ones are not compared with
    record = as_record(tensors, values["record"]) if complete else None
    training = checkpoint.config.get("training", {})
    return TrainingHistory(
        checkpoint.step,
        training.get("num_steps", checkpoint.step),
        training.get("ema_decay", 0.0),
        bool(checkpoint.config.get("overfit_one_batch")),
        LossCurve.from_state(values["curve"]),
        record,
        **weights,
    )


def _unconditional(denoiser: Callable[..., Tensor], predictor: Predictor, given: Tensor) -> Callable[..., Tensor]:
    """`denoiser` without class, text or actions."""
    condition = predictor.condition(None, *given.shape)
    return denoiser if condition is None else lambda *told: denoiser(*told, condition)


def _estimates(
    denoiser: Callable[..., Tensor],
    latents: Tensor,
    given: Tensor,
    frame_times: Tensor,
    draws: Tensor,
    alphas: Tensor,
    sigmas: Tensor,
    seed: int,
) -> Tensor:
    """(3, N, T, C, h, w) of calibrated latents (N, T, C, h, w), at FRACTIONS of the table, given frames clean."""
    found = []
    for fraction in FRACTIONS:
        place = round(fraction * len(alphas)) - 1
        alpha, sigma = (table[place].float().to(latents.device).expand(given.shape) for table in (alphas, sigmas))
        level = NoiseLevel.where(
            given, NoiseLevel.clean((1, 1), latents.device), NoiseLevel.from_alpha_sigma(alpha, sigma)
        )
        noise = random_streams.normal(seed, f"record/{fraction}", draws, tuple(latents.shape[1:]), latents.device)
        found.append(denoiser(add_noise(latents, noise, level), level, given, frame_times))
    return torch.stack(found)

