"""The rules: measures -> findings. Pure functions of numbers, so that bounds can be tried without measuring again.

They are asked in the order of cause and effect: what is loaded, how it is fed, what it was trained on, how it is
drawn, what it has learned. After a fatal finding the later stages are not asked: they would name its consequences.

The bounds are wide on purpose: a finding means that something is broken, not that a model could be better. A measure
that is absent satisfies no rule.
"""

import math
from typing import Callable, Iterator, Mapping, Optional

from vidpred.diagnosis.findings import Finding
from vidpred.diagnosis.learning_rules import learning, prediction, training_data

SAME, OTHER = 0.02, 0.05  # differences to the record: arithmetic, and another thing
REORDERED = 0.1  # of pixels that were saved again after their channels were exchanged, or their range
CODE_DIFFERENCE = 0.02  # of levels, as a fraction of the way from clean to pure noise
EXPLODED_NORM = 1.5  # times the norm that was recorded
DIVERGED_LOSS = 3.0  # times the least loss of the run
EXPLODED_X0 = 10.0  # times the largest latent, where x shows x0
LOST_DB = 3.0  # of the recorded reconstruction
LEAST_GAIN = 0.1
UNRECOGNISABLE_DB = 15.0
EMA_MOVED = 0.02  # of the way of the weights: an average that never left the start
EQUAL, EMA_APART = 1e-7, 1e-5  # relative distance of average and weights; the way of the weights that shows in it
EMA_STEPS = 5  # before them there is no average to speak of
EMA_LAG = 0.6
EMA_WORSE = 1.15  # times the error of the raw weights

Measures = Mapping[str, float]


class Known:
    """Measures by name, nan where one is absent: every comparison with it is false."""

    def __init__(self, measures: Measures, notes: Mapping[str, str]):
        self._measures, self.notes = measures, notes

    def __getitem__(self, name: str) -> float:
        value = self._measures.get(name)
        return math.nan if value is None else value


def judge(measures: Measures, notes: Optional[Mapping[str, str]] = None) -> list[Finding]:
    """What is wrong, the root cause first; empty for a healthy model.

    measures: by name, as `Diagnosis.measures` has them; None counts as absent. notes: words for the evidence.
    """
    known = Known(measures, notes or {})
    findings: list[Finding] = []
    for stage in STAGES:
        findings += stage(known)
        if any(finding.severity == "fatal" for finding in findings):
            break
    return sorted(findings, key=lambda finding: finding.severity != "fatal")


def weights(m: Known) -> Iterator[Finding]:
    """Weights that are no weights any more."""
    if m["weights/not_finite"] > 0:
        yield Finding(
            "fatal",
            "weights_not_finite",
            f"{m['weights/not_finite']:.0f} tensors hold NaN or infinity",
            "an update with a gradient that was not finite, or a damaged file",
            "go back to an earlier checkpoint, lower the learning rate, clip gradients",
        )
        return
    grown = max(_or(m["weights/norm_over_recorded"], 1), _or(m["ema/norm_over_recorded"], 1))
    diverged = m["curve/last_over_least"] > DIVERGED_LOSS and _or(m["curve/end"], m["curve/last"]) > m["curve/first"]
    exploded = m["chain/x0_over_truth_late"] > EXPLODED_X0 or m["chain/finite"] == 0
    if grown > EXPLODED_NORM or diverged or (exploded and not _misfed(m)):
        yield Finding(
            "fatal",
            "weights_exploded",
            f"the norm of the weights is {grown:.2f} of what was trained, x0 before the bound reaches "
            f"{m['chain/x0_over_truth_late']:.1f} times the largest latent, the loss ends at "
            f"{_or(m['curve/last_over_least'], 1):.1f} times its least",
            "weights that diverged or were scaled",
            "use an earlier checkpoint, lower the learning rate, clip gradients",
        )


def _misfed(m: Known) -> bool:
    """Whether what goes into the network, or what is made of its output, is not what training had."""
    return (
        m["vae/difference"] > OTHER
        or m["calibration/difference"] > OTHER
        or m["schedule/difference"] > CODE_DIFFERENCE
        or (m["x0/difference"] > OTHER and m["weights/changed"] == 0 and not m["ema/changed"] > 0)
        or m["latents/calibrated"] == 0
        or m["clip/none"] == 1
    )


def pixels(m: Known) -> Iterator[Finding]:
    """Frames on their way from the disk to the autoencoder, and back."""
    reordered = m["pixels/difference_reordered"] < min(REORDERED, 0.5 * m["pixels/difference"])
    if m["pixels/difference"] > OTHER and reordered:
        yield _channel_order(
            f"the recorded clips are read with a difference of {m['pixels/difference']:.2f} now, of "
            f"{m['pixels/difference_reordered']:.3f} with their channels in another order",
            "the data are read with another order of channels than in training",
        )
    elif m["pixels/difference"] > OTHER and m["pixels/difference_fitted"] < REORDERED:
        gain, offset = m["pixels/gain"], m["pixels/offset"]
        if gain > LEAST_GAIN and (abs(gain - 1) > OTHER or abs(offset) > OTHER):
            yield _pixel_norm(
                f"pixels are read as {gain:.2f} times what training read, plus {offset:+.2f}",
                "the data are read with another range of values than in training",
            )
    if m["vae/difference"] > OTHER:
        if m["vae/difference_renormalized"] < SAME:
            yield _pixel_norm(
                f"recorded frames are encoded with a difference of {m['vae/difference']:.2f}, and of "
                f"{m['vae/difference_renormalized']:.3f} with pixel_norm {m.notes.get('pixel_norm', '')}",
                "pixels are normalised in another way than in training",
            )
        elif m["vae/difference_reordered"] < min(OTHER, 0.5 * m["vae/difference"]):
            yield _channel_order(
                f"recorded frames are encoded with a difference of {m['vae/difference']:.2f}, and of "
                f"{m['vae/difference_reordered']:.3f} with their channels in another order",
                "the autoencoder sees another order of channels than in training",
            )
    elif m["vae/decoded_psnr_reordered"] > m["vae/decoded_psnr"] + LOST_DB and _lost(m):
        yield _channel_order(
            f"recorded latents are decoded at {m['vae/decoded_psnr']:.1f} dB, and at "
            f"{m['vae/decoded_psnr_reordered']:.1f} dB with the channels of the frames in another order",
            "the decoder gives the channels back in another order",
        )


def autoencoder(m: Known) -> Iterator[Finding]:
    """The autoencoder itself and the scale of its latents."""
    if m["vae/difference"] > OTHER and m["vae/difference_fitted"] < SAME and abs(m["vae/gain"]) > 0:
        gain, scaling = m["vae/gain"], _or(m["vae/scaling"], 1)
        missing = gain > 1
        if scaling != 1:  # without it latents are 1/s times as large, with it twice s times
            to_missing, to_doubled = (abs(math.log(abs(gain) * factor)) for factor in (scaling, 1 / scaling))
            missing = to_missing < to_doubled
        yield _latent_scale(missing, f"the autoencoder's latents are {gain:.3g} times those of training")
    elif m["vae/difference"] > OTHER or _lost(m):
        if m["vae/psnr_on_recorded"] < min(UNRECOGNISABLE_DB, m["vae/recorded_psnr"] - LOST_DB):
            yield _vae_not_loaded(
                f"recorded frames come back at {m['vae/psnr_on_recorded']:.1f} dB, in training at "
                f"{m['vae/recorded_psnr']:.1f} dB"
            )
        else:
            yield Finding(
                "fatal",
                "wrong_vae",
                f"recorded frames are encoded with a difference of {m['vae/difference']:.2f} to training's latents, "
                f"and come back at {m['vae/psnr_on_recorded']:.1f} dB (then {m['vae/recorded_psnr']:.1f} dB)",
                "another autoencoder than the one that the model was trained with",
                "load the autoencoder of the training (autoencoder.pretrained, autoencoder.revision)",
            )
    elif not m["record/present"] and m["vae/psnr"] < 10:
        yield _vae_not_loaded(f"frames come back from the autoencoder at {m['vae/psnr']:.1f} dB")


def scale(m: Known) -> Iterator[Finding]:
    """The calibration of the latents."""
    if m["calibration/difference"] > OTHER:
        none = m["calibration/difference_to_none"]
        twice = min(m["calibration/difference_to_twice"], m["calibration/difference_to_scaled_twice"])
        missing = none <= twice
        if min(none, twice) > OTHER:  # scaling by s again makes latents 1/s times as large, not scaling s times
            missing = (m["calibration/gain"] > 1) == (m["calibration/scale"] > 1)
        yield _latent_scale(
            missing,
            f"calibrated latents are {m['calibration/gain']:.3g} times those of training (difference to none at all "
            f"{none:.3f}, to the calibration applied twice {twice:.3f})",
        )
    elif not m["record/present"]:
        far = m["latents/largest_mean"] > 0.25 + 4 * m["latents/largest_uncertainty"]
        wide, narrow = m["latents/largest_std"] > 2.5, m["latents/largest_std"] < 0.4
        if m["latents/calibrated"] == 0 or far or wide or narrow:
            yield _latent_scale(
                m["latents/calibrated"] == 0 or not narrow,
                f"calibrated latents have deviations {m['latents/least_std']:.2f} to {m['latents/largest_std']:.2f} "
                f"and a mean of up to {m['latents/largest_mean']:.2f} where 1 and 0 are right",
            )


def process(m: Known) -> Iterator[Finding]:
    """The levels, and what the network's output is taken for."""
    if m["schedule/difference"] > CODE_DIFFERENCE:
        yield Finding(
            "fatal",
            "wrong_schedule",
            f"levels differ from those of training by up to {m['schedule/difference']:.3f} of the way to pure noise",
            "diffusion.schedule is not the one that the model was trained with",
            "restore diffusion.schedule in the checkpoint's config.yaml",
        )
    elif m["x0/difference"] > OTHER and m["weights/changed"] == 0 and not m["ema/changed"] > 0:
        differs = f"the same weights give an x0 that differs by {m['x0/difference']:.2f} from training's"
        if not m["x0/difference_otherwise"] < SAME:
            yield _other_network(differs)
            return
        yield Finding(
            "fatal",
            "wrong_parameterization",
            f"{differs}, by {m['x0/difference_otherwise']:.3f} as {m.notes.get('parameterization', 'another one')}",
            "the network's output is taken for something else than it was trained to be",
            "restore diffusion.parameterization, residual and sigma_data in the checkpoint's config.yaml",
        )


def _other_network(evidence: str) -> Finding:
    return Finding(
        "fatal",
        "other_code_or_settings",
        f"{evidence}, and in no other parameterization it is the same",
        "the network computes something else than in training: other settings of it, another version of the code",
        "restore the network and diffusion sections of the checkpoint's config.yaml, use the code of the training",
    )


def average(m: Known) -> Iterator[Finding]:
    """The moving average of the weights."""
    if not m["ema/decay"] > 0:
        if m["ema/stuck"] > 0:
            yield _never_updated(f"{m['ema/stuck']:.0f} averaged tensors are still zero where the weights are not")
        return
    idle = m["ema/updates"] == 0 and (m["ema/distance"] > 0 or m["training/steps"] > 0)
    if idle or m["ema/stuck"] > 0 or (m["ema/moved_share"] < EMA_MOVED and m["training/steps"] >= EMA_STEPS):
        if m["ema/updates"] > 0 and not m["ema/stuck"] > 0 and m["ema/moved_share"] > 1e-4:
            yield _too_slow(m)
        else:
            yield _never_updated(
                f"{_or(m['ema/updates'], 0):.0f} updates; the average has come "
                f"{100 * _or(m['ema/moved_share'], 0):.2g} % of the way of the weights, "
                f"{_or(m['ema/stuck'], 0):.0f} of its tensors are still zero"
            )
        return
    replaced = m["ema/changed"] > 1e-6 or m["x0/difference"] > SAME
    if m["ema/distance"] < EQUAL and m["ema/updates"] > 1 and (replaced or m["weights/moved"] > EMA_APART):
        yield Finding(
            "fatal",
            "ema_not_loaded",
            f"the averaged weights are the raw ones after {m['ema/updates']:.0f} updates with decay "
            f"{m['ema/decay']:g}; the average that was trained gives an x0 that differs by "
            f"{_or(m['x0/raw_to_averaged'], 0):.3f}",
            "the raw weights are used where the average should be",
            "load ema.safetensors of the training run, or train with training.ema_decay 0 if that is meant",
        )
    elif m["ema/moved_share"] < EMA_LAG and m["levels/ratio"] > EMA_WORSE * m["raw_levels/ratio"]:
        yield _too_slow(m)


def _lost(m: Known) -> bool:
    return m["vae/decoded_psnr"] < m["vae/recorded_psnr"] - LOST_DB


def _channel_order(evidence: str, cause: str) -> Finding:
    return Finding(
        "fatal",
        "wrong_channel_order",
        evidence,
        cause,
        "read and decode frames as RGB everywhere, as in training (OpenCV reads BGR)",
    )


def _pixel_norm(evidence: str, cause: str) -> Finding:
    return Finding(
        "fatal",
        "wrong_pixel_normalization",
        evidence,
        cause,
        "restore autoencoder.pixel_norm of the training, and give frames as uint8 in 0..255",
    )


def _latent_scale(missing: bool, evidence: str) -> Finding:
    name = "latent_scale_missing" if missing else "latent_scale_doubled"
    cause = "latents are not scaled" if missing else "latents are scaled twice"
    return Finding(
        "fatal",
        name,
        evidence,
        cause,
        "restore calibration.safetensors and the autoencoder's scaling factor of the training; scale once",
    )


def _vae_not_loaded(evidence: str) -> Finding:
    return Finding(
        "fatal",
        "vae_not_loaded",
        evidence,
        "the autoencoder's weights were not loaded, or are damaged",
        "load the autoencoder of the training (autoencoder.pretrained); autoencoder.half false where it overflows",
    )


def _never_updated(evidence: str) -> Finding:
    return Finding(
        "fatal",
        "ema_never_updated",
        evidence,
        "the average was not updated, or not from the weights that were trained",
        "call the EMA update after every optimizer step, on every rank; use the raw weights meanwhile",
    )


def _too_slow(m: Known) -> Finding:
    return Finding(
        "fatal",
        "ema_too_slow",
        f"the average has come {100 * m['ema/moved_share']:.0f} % of the way of the weights in "
        f"{m['training/steps']:.0f} steps with decay {m['ema/decay']:g}; its one-step error is {m['levels/ratio']:.2f} "
        f"of what needs no learning, the raw weights' {m['raw_levels/ratio']:.2f}",
        "the average is longer than the training",
        "lower training.ema_decay (1 - 10 / steps is a good one), or set training.ema_warmup true",
    )


def _or(value: float, other: float) -> float:
    return other if math.isnan(value) else value


STAGES: tuple[Callable[[Known], Iterator[Finding]], ...] = (
    weights, pixels, autoencoder, scale, process, average, training_data, prediction, learning,
)  # fmt: skip
