"""Inference against the record of training: each part of the way from frames to x0 by itself, on the recorded values.

Where a part differs from what training recorded, causes are tried in turn, and one counts where it reproduces the
record; a difference is an rms over the rms of what was recorded (0: the same, 1: unrelated).
"""

import copy
import itertools
import math
from typing import Iterator

import torch
from torch import Tensor

from vidpred.autoencoders import Autoencoder
from vidpred.autoencoders.base import PIXEL_NORMS
from vidpred.autoencoders.reconstruction import reconstruction_psnr
from vidpred.denoiser import Denoiser
from vidpred.diagnosis.record import FRACTIONS, LARGEST, TrainingRecord
from vidpred.diagnosis.rules import OTHER, SAME
from vidpred.diagnosis.subject import Subject
from vidpred.diffusion import MotionCompensation, build_parameterization
from vidpred.diffusion.parameterizations import PARAMETERIZATIONS
from vidpred.errors import UserError
from vidpred.prediction import Predictor
from vidpred.tensor_ops import to_float, to_uint8

SHOWS = 0.1  # alpha, of a level of unit variance, below which x0 = (x - sigma eps) / alpha enlarges any arithmetic
ORDERS = [order for order in itertools.permutations(range(3)) if order != (0, 1, 2)]
OTHER_NORMS = {"unit": ((0.0,) * 3, (1.0,) * 3), "bytes": ((0.0,) * 3, (1 / 255,) * 3)}
Notes = dict[str, str]


def record_measures(subject: Subject, record: TrainingRecord, read_now: dict[str, Tensor]) -> tuple[dict, Notes]:
    """`pixels/*`, `vae/*`, `calibration/*`, `schedule/*`, `x0/*`, and words for some of them.

    read_now: clips by name, (T, 3, H, W) uint8, as the data are read now.
    """
    notes: Notes = {}
    found = _pixel_measures(record, read_now) | reference_measures(subject.predictor, record, notes)
    with torch.no_grad():
        found |= _estimate_measures(subject, record, notes)
    return found, notes


@torch.no_grad()
def reference_measures(predictor: Predictor, record: TrainingRecord, notes: Notes) -> dict[str, float]:
    """`vae/*`, `calibration/*` and `schedule/*` alone: without a call of the network."""
    found = _encoding_measures(predictor.autoencoder, record, notes)
    found |= _decoding_measures(predictor.autoencoder, record)
    found |= _calibration_measures(predictor, record)
    return found | _schedule_measures(predictor, record)


def _pixel_measures(record: TrainingRecord, read_now: dict[str, Tensor]) -> dict[str, float]:
    """The same clips, read then and now."""
    pairs = [
        (frames, read_now[name][: len(frames)])
        for name, frames in zip(record.names, record.frames)
        if name in read_now and read_now[name].shape[1:] == frames.shape[1:]
    ]
    if not pairs:
        return {"pixels/compared": 0.0}
    then, now = (to_float(torch.stack(side)).double() for side in zip(*pairs))
    found = {"pixels/compared": float(len(pairs)), "pixels/difference": _difference(now, then)}
    found["pixels/difference_reordered"] = min(_difference(now[:, :, list(order)], then) for order in ORDERS)
    gain, offset, rest = _fit(then, now)
    return found | {"pixels/gain": gain, "pixels/offset": offset, "pixels/difference_fitted": rest}


def _encoding_measures(autoencoder: Autoencoder, record: TrainingRecord, notes: Notes) -> dict[str, float]:
    device = next(iter(autoencoder.buffers()), record.frames).device
    frames = record.frames.to(device)
    then = record.latents[:, : frames.shape[1]]
    encoded = autoencoder.encode(frames).cpu()
    found = {"vae/difference": _difference(encoded, then)}
    gain, _, rest = _fit(then, encoded)
    found |= {"vae/gain": gain, "vae/scaling": record.scaling, "vae/difference_fitted": rest}
    if not found["vae/difference"] > OTHER:
        return found  # nothing is to be explained
    by_order = {
        order: _difference(autoencoder.encode(frames[:, :, list(order)]).cpu(), then) for order in ORDERS
    }
    found["vae/difference_reordered"] = min(by_order.values())
    by_norm = {name: _difference(other.encode(frames).cpu(), then) for name, other in _other_norms(autoencoder)}
    if by_norm:
        nearest = min(by_norm, key=by_norm.__getitem__)
        notes["pixel_norm"] = nearest
        found["vae/difference_renormalized"] = by_norm[nearest]
    return found


def _other_norms(autoencoder: Autoencoder) -> Iterator[tuple[str, Autoencoder]]:
    """The same autoencoder behind every other normalisation of pixels."""
    if not hasattr(autoencoder, "pixel_mean"):
        return
    for name, (mean, std) in (PIXEL_NORMS | OTHER_NORMS).items():
        other = copy.copy(autoencoder)
        other._buffers = dict(autoencoder._buffers)
        other.pixel_mean = autoencoder.pixel_mean.new_tensor(mean)
        other.pixel_std = autoencoder.pixel_std.new_tensor(std)
        if not torch.equal(other.pixel_mean, autoencoder.pixel_mean):
            yield name, other


def _decoding_measures(autoencoder: Autoencoder, record: TrainingRecord) -> dict[str, float]:
    device = next(iter(autoencoder.buffers()), record.frames).device
    frames = record.frames
    decoded = to_uint8(autoencoder.decode(record.latents[:, : frames.shape[1]].to(device))).cpu()
    return {
        "vae/recorded_psnr": float(record.reconstruction_psnr.mean()),
        # What is not finite is as good as nothing.
        "vae/psnr_on_recorded": float(reconstruction_psnr(autoencoder, frames.to(device)).nan_to_num(0.0).mean()),
        "vae/decoded_psnr": _psnr(decoded, frames),
        "vae/decoded_psnr_reordered": max(_psnr(decoded[:, :, list(order)], frames) for order in ORDERS),
    }


def _calibration_measures(predictor: Predictor, record: TrainingRecord) -> dict[str, float]:
    """How recorded latents come out of the calibration, against the recorded one, none at all and it twice."""
    calibration = copy.deepcopy(predictor.calibration).cpu()
    now, then = calibration.normalize(record.latents), record.calibrated
    shift, scale = (values[:, None, None] for values in (record.shift, record.scale))
    return {
        "calibration/difference": _difference(now, then),
        "calibration/difference_to_none": _difference(now, record.latents),
        "calibration/difference_to_twice": _difference(now, (then - shift) / scale),
        "calibration/difference_to_scaled_twice": _difference(now, then / scale),
        "calibration/gain": _fit(then, now)[0],
        "calibration/scale": float(record.scale.log().mean().exp()),  # raw units of one calibrated unit
    }


def _schedule_measures(predictor: Predictor, record: TrainingRecord) -> dict[str, float]:
    """The largest difference of the angle atan2(sigma, alpha) over the table, as a fraction of a right angle."""
    schedule = predictor.schedule
    codes = [
        torch.atan2(sigmas.double(), alphas.double()) * (2 / math.pi)
        for alphas, sigmas in ((schedule.alphas, schedule.sigmas), (record.alphas, record.sigmas))
    ]
    places = [torch.linspace(0, len(code) - 1, 65).round().long() for code in codes]
    now, then = (code[place] for code, place in zip(codes, places))
    return {"schedule/difference": float((now - then).abs().max())}


def _estimate_measures(subject: Subject, record: TrainingRecord, notes: Notes) -> dict[str, float]:
    """x0 on what the recorded estimates were made of; the averaged weights and, where they explain it, others."""
    predictor = subject.predictor
    unknown, shows = ~record.given, _levels_that_show(record)

    def compared(estimates: Tensor) -> Tensor:
        return _unknown(estimates.float().clamp(-LARGEST, LARGEST)[shows], unknown)

    then, raw = compared(record.estimates), compared(record.raw_estimates)
    now = compared(record.estimates_of(predictor.denoiser, predictor))
    found = {
        "x0/difference": _by_level(now, then),
        "x0/raw_to_averaged": _by_level(raw, then),
    }
    if isinstance(predictor.denoiser, Denoiser) and not found["x0/difference"] < SAME:
        rest = {
            name: _by_level(compared(record.estimates_of(other, predictor)), then)
            for name, other in _other_denoisers(subject)
        }
        if rest:
            nearest = min(rest, key=rest.__getitem__)
            notes["parameterization"] = nearest
            found["x0/difference_otherwise"] = rest[nearest]
    truth = compared(record.calibrated.expand_as(record.estimates))
    found["x0/error"], found["x0/recorded_error"] = _rms(now - truth), _rms(then - truth)
    return found


def _levels_that_show(record: TrainingRecord) -> list[int]:
    """Numbers of the recorded levels where a difference of x0 is one of the network, not of how exactly it computes."""
    places = [round(fraction * len(record.alphas)) - 1 for fraction in FRACTIONS]
    shares = [float(record.alphas[place] / torch.hypot(record.alphas[place], record.sigmas[place])) for place in places]
    return [number for number, share in enumerate(shares) if share > SHOWS] or [len(places) - 1]


def _other_denoisers(subject: Subject) -> Iterator[tuple[str, Denoiser]]:
    """The same network in every other parameterization, with and without the residual."""
    denoiser = subject.predictor.denoiser
    for name in PARAMETERIZATIONS:
        try:
            meant = build_parameterization(name, subject.predictor.schedule, denoiser.parameterization.sigma_data)
        except UserError:
            continue  # eps at pure noise
        for residual in (True, False):
            if (name, residual) == (denoiser.parameterization.name, denoiser.residual):
                continue
            motion = denoiser.motion if residual else MotionCompensation()
            if motion.channels != denoiser.motion.channels:
                continue  # the network's outputs are counted
            words = f"{name}, {'relative to the given frames' if residual else 'absolute'}"
            yield words, Denoiser(denoiser.network, meant, residual, motion=motion).eval()


def _unknown(estimates: Tensor, unknown: Tensor) -> Tensor:
    """(levels, N, T, ...) -> (levels, n): the values at unknown frames."""
    return estimates[:, unknown].flatten(1)


def _by_level(now: Tensor, then: Tensor) -> float:
    """The largest difference of any level."""
    differences = [_difference(a, b) for a, b in zip(now, then)]
    return max(differences) if all(map(math.isfinite, differences)) else math.inf


def _difference(now: Tensor, then: Tensor) -> float:
    """rms(now - then) / rms(then)."""
    value = _rms(now - then) / max(_rms(then), 1e-9)
    return value if math.isfinite(value) else math.inf


def _fit(then: Tensor, now: Tensor) -> tuple[float, float, float]:
    """(gain, offset, rms of the rest over the deviation of now) of now = gain then + offset."""
    x, y = then.double().flatten(), now.double().flatten()
    gain = float(((x - x.mean()) * (y - y.mean())).mean() / (x - x.mean()).square().mean().clamp(min=1e-18))
    offset = float(y.mean() - gain * x.mean())
    return gain, offset, _rms(y - gain * x - offset) / max(float(y.std()), 1e-9)


def _psnr(a: Tensor, b: Tensor) -> float:
    error = ((a.double() - b.double()) / 255).square().mean(dim=(2, 3, 4)).clamp(min=1e-10)
    return float((-10 * torch.log10(error)).mean())


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
