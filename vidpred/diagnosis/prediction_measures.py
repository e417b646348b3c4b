"""What predictions come to: whole chains against truth, floors and ceiling; which frames they follow.

Errors of latents are rms in calibrated units, those of pixels mean squared over frames in [0, 1]. `coarse` ones are
of means over squares of pixels (a sixteenth of the picture's side), in which noise is averaged away.
"""

import copy
import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vidpred.data import ClipBatch
from vidpred.diagnosis.measurement import PURPOSE, Trace
from vidpred.diagnosis.records import StepRow
from vidpred.diffusion import StepReport, build_clip
from vidpred.prediction import Predictor
from vidpred.tensor_ops import fold_frames, reference_frames, to_float, unfold_frames

OUTSIDE = 0.1  # beyond [0, 1]
PICTURES = 6  # of the chain
COARSE = 16


@dataclass(frozen=True)
class Chain:
    """One prediction of all clips: every step, the latents it ended in, decoded x0 of the first clip's last frame on
    the way, (PICTURES, 3, H, W) in [0, 1], with the numbers of their steps, and that frame as it was, (3, H, W)."""

    steps: list[StepRow]
    latents: Tensor
    pictures: Tensor
    picture_steps: list[int]
    truth: Tensor


class _Pictures:
    """A sampler callback that keeps x0 of the first clip's last moving frame."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def __call__(self, report: StepReport) -> None:
        self.kept.append(report.x0[:1, -1:].clone())


def run_chain(predictor: Predictor, latents: Tensor, clips: ClipBatch, seed: int) -> Chain:
    """Samples the unknown frames of calibrated latents (B, T, C, h, w) with the model's own settings."""
    trace, watched = Trace(), _Pictures()

    def watch(report: StepReport) -> None:
        trace(report)
        watched(report)

    sampled = sample(predictor, latents, clips, seed, watch)
    places = torch.linspace(0, len(watched.kept) - 1, min(PICTURES, len(watched.kept))).round().long().tolist()
    chosen = torch.cat([watched.kept[place] for place in places], dim=1)
    pictures = predictor.decode(chosen)[0].clamp(0, 1).cpu()
    return Chain(trace.rows(), sampled, pictures, places, to_float(clips.frames[0, -1]).cpu())


def sample(predictor: Predictor, latents: Tensor, clips: ClipBatch, seed: int, callback=None) -> Tensor:
    return predictor.sample_latents(
        latents, clips.given, clips.frame_times, clips.draws, seed,
        condition=predictor.conditions_of(clips), callback=callback, purpose=PURPOSE,
    )  # fmt: skip


def chain_measures(predictor: Predictor, latents: Tensor, clips: ClipBatch, chain: Chain) -> dict[str, float]:
    """`chain/*` and `vae/psnr`: the whole chain against truth, the copied frame and the autoencoder's own loss."""
    unknown = ~clips.given.to(latents.device)
    found = _step_measures(chain.steps, latents[unknown])
    found["chain/finite"] = float(bool(chain.latents.isfinite().all()))
    truth = to_float(clips.frames)
    ceiling = predictor.decode(latents).clamp(0, 1).cpu()
    found["vae/psnr"] = float((-10 * torch.log10(_mse(ceiling, truth).clamp(min=1e-10))).mean())
    if not found["chain/finite"]:
        return found
    decoded = predictor.decode(chain.latents).cpu()
    shown = decoded[unknown.cpu()]
    found["chain/outside"] = float(((shown < -OUTSIDE) | (shown > 1 + OUTSIDE)).double().mean())
    found["chain/error"] = _rms((chain.latents - latents)[unknown])
    found["chain/predict_zero"] = _rms(latents[unknown])
    if not bool(clips.given.any()):
        return found
    copied = reference_frames(latents, clips.given.to(latents.device), clips.frame_times.to(latents.device))
    found["chain/copy_last"] = _rms((latents - copied)[unknown])
    pixels = reference_frames(truth, clips.given, clips.frame_times)
    decoded_copy = reference_frames(ceiling, clips.given, clips.frame_times)
    found |= _pixel_measures(clips, decoded.clamp(0, 1), truth, ceiling, pixels, decoded_copy)
    return found


def _step_measures(steps: list[StepRow], truth: Tensor) -> dict[str, float]:
    largest = float(truth.abs().max())
    low_noise = [row for row in steps if row.alpha > 0.3 * math.hypot(row.alpha, row.sigma)]
    norms = [row.eps_norm for row in steps]

    def size(rows: list[StepRow]) -> float:
        sizes = [max(map(abs, row.x0)) for row in rows]
        return (max(sizes) if all(map(math.isfinite, sizes)) else math.inf) if sizes else 0.0

    return {
        "chain/largest_truth": largest,
        "chain/x0_over_truth": size(steps) / max(largest, 1e-9),  # the largest of any estimate, before the bound
        "chain/x0_over_truth_late": size(low_noise) / max(largest, 1e-9),  # where x shows x0
        "chain/clip_rate": sum(row.clip_rate for row in steps) / max(len(steps), 1),
        "chain/eps_norm_least": min(norms),
        "chain/eps_norm_most": max(norms) if all(map(math.isfinite, norms)) else math.inf,
    }


def _pixel_measures(
    clips: ClipBatch, shown: Tensor, truth: Tensor, ceiling: Tensor, copied: Tensor, decoded_copy: Tensor
) -> dict[str, float]:
    """All clips (B, T, 3, H, W) in [0, 1]."""
    unknown = ~clips.given
    found = {}
    for name, frames in (("", shown), ("copy_", copied), ("decoded_copy_", decoded_copy), ("ceiling_", ceiling)):
        found[f"chain/{name}mse"] = float(_mse(frames, truth)[unknown].mean())
        found[f"chain/{name}coarse_mse"] = float(_mse(_coarse(frames), _coarse(truth))[unknown].mean())
    found["chain/detail"] = _detail(shown)[unknown].mean().item() / max(_detail(ceiling)[unknown].mean().item(), 1e-12)
    moved, true_motion = (_motion(frames, clips.given) for frames in (shown, ceiling))
    found["chain/motion"] = moved / max(true_motion, 1e-12)  # energy of changes, over that of the decoded truth
    predicted, true = (_motion_of_clips(_coarse(frames), clips.given) for frames in (shown, ceiling))
    found["chain/coarse_motion"] = float((predicted / true.clamp(min=1e-12)).median())  # of the median clip
    found["chain/true_coarse_motion"] = 255 * math.sqrt(float(true.median()))  # grey levels
    noise = _noise(truth[unknown])  # of pixels: squared error that nobody can predict
    found["chain/noise_mse"] = noise
    found["chain/coarse_noise_mse"] = noise / _coarse_factor(truth) ** 2
    known_mean = _mean_of_given(truth, clips.given)
    found["chain/mean_coarse_mse"] = float(_mse(_coarse(known_mean), _coarse(truth))[unknown].mean())
    return found


def _mean_of_given(frames: Tensor, given: Tensor) -> Tensor:
    weight = given.to(frames)[..., None, None, None]
    return ((frames * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)).expand_as(frames)


def _noise(frames: Tensor) -> float:
    """Variance of white noise in frames (N, 3, H, W): the Laplacian difference of Immerkaer (1996), of which the median
    over pixels is taken, so that edges do not count."""
    kernel = frames.new_tensor([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])[None, None]
    differences = F.conv2d(frames.flatten(0, 1)[:, None], kernel).abs().flatten(1).median(1).values
    return float(((differences / (6 * 0.6745)).square()).double().mean())


def influence_measures(
    predictor: Predictor, latents: Tensor, clips: ClipBatch, chain: Chain, seed: int
) -> dict[str, float]:
    """`given/*`: the given frames of each clip are exchanged for those of the next one, the noise is kept."""
    given = clips.given.to(latents.device)
    if len(clips) < 2 or not bool(given.any()):
        return {}
    others = latents.roll(1, dims=0)
    mask = given[..., None, None, None]
    swapped = sample(predictor, torch.where(mask, others, latents), clips, seed)
    unknown = ~given
    own, other = (_errors_of_clips(predicted, latents, unknown) for predicted in (chain.latents, swapped))
    worse = other - own
    error = worse.std() / math.sqrt(len(worse))
    return {
        # How much worse a clip is predicted from another one's frames; 1 where they do not matter.
        "given/swapped_over_own": math.sqrt(float(other.mean() / own.mean().clamp(min=1e-12))),
        # The mean over clips of the squared error that is added, in standard errors. An uncertain future has a small
        # one too, which is sure all the same: the noise is kept.
        "given/worse_certainty": float(worse.mean() / error.clamp(min=1e-12)),
        # What changes, of what the clips differ by.
        "given/change": _rms((swapped - chain.latents)[unknown]) / max(_rms((others - latents)[unknown]), 1e-9),
    }


def _errors_of_clips(predicted: Tensor, truth: Tensor, unknown: Tensor) -> Tensor:
    """(B,) squared error of the unknown frames."""
    weight = unknown.double()
    return (_mse(predicted, truth) * weight).sum(1) / weight.sum(1).clamp(min=1)


def clip_measures(
    predictor: Predictor, latents: Tensor, clips: ClipBatch, chain: Chain, seed: int
) -> dict[str, float]:
    """`clip/*`: what the bound does to true latents, and what the measured range would do for the prediction."""
    config, calibration = predictor.sampling.clip, predictor.calibration
    found = {"clip/none": float(config.kind == "none"), "clip/auto": float(config.kind == "auto")}
    bound = build_clip(config, calibration.low, calibration.high)
    if bound is not None:
        clipped = bound(latents)
        found["clip/truth_changed"] = float((clipped != latents).double().mean())
        found["clip/truth_rms"] = _rms(clipped - latents)
    if config.kind == "auto" or not chain.latents.isfinite().all():
        return found
    other = copy.copy(predictor)
    other.sampling = dataclasses.replace(predictor.sampling, clip=dataclasses.replace(config, kind="auto"))
    unknown = ~clips.given.to(latents.device)
    bounded = sample(other, latents, clips, seed)
    # How much larger the error is than with the range of the training latents as the bound.
    found["clip/error_over_auto"] = _rms((chain.latents - latents)[unknown]) / max(
        _rms((bounded - latents)[unknown]), 1e-9
    )
    return found


def _coarse(frames: Tensor) -> Tensor:
    return unfold_frames(F.avg_pool2d(fold_frames(frames), _coarse_factor(frames)), len(frames))


def _coarse_factor(frames: Tensor) -> int:
    return max(min(frames.shape[-2:]) // COARSE, 1)


def _detail(frames: Tensor) -> Tensor:
    """(B, T): energy of the differences of neighbouring pixels."""
    across = (frames[..., 1:] - frames[..., :-1]).double().square().mean(dim=(2, 3, 4))
    return across + (frames[..., 1:, :] - frames[..., :-1, :]).double().square().mean(dim=(2, 3, 4))


def _motion(frames: Tensor, given: Tensor) -> float:
    """Energy of the changes into unknown frames."""
    return float(_changes(frames)[~given[:, 1:]].mean())


def _motion_of_clips(frames: Tensor, given: Tensor) -> Tensor:
    """(B,), as `_motion`."""
    unknown = (~given[:, 1:]).double()
    return (_changes(frames) * unknown).sum(1) / unknown.sum(1).clamp(min=1)


def _changes(frames: Tensor) -> Tensor:
    """(B, T-1)."""
    return (frames[:, 1:] - frames[:, :-1]).double().square().mean(dim=(2, 3, 4))


def _mse(a: Tensor, b: Tensor) -> Tensor:
    """(B, T)."""
    return (a.double() - b.double()).square().mean(dim=(2, 3, 4))


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
