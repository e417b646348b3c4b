"""A diagnosis as lines of text; where results are written."""

from pathlib import Path
from typing import Iterator, Optional

from vidpred.diagnosis.diagnose import Diagnosis
from vidpred.diagnosis.records import LatentFigures, LevelRow, StepRow
from vidpred.errors import UserError
from vidpred.prediction import clip_advice


OF_GIVEN_FRAMES = ("undertrained", "loss_plateau", "vae_bottleneck", "frozen_output", "given_frames_ignored")


def results_folder(chosen: Optional[Path], default: Path) -> Path:
    """`chosen` or else `default`, made where it is missing. UserError when it cannot be written."""
    folder = chosen or default
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        reason = error.strerror
        raise UserError(f"{folder}: cannot be written ({reason}); give another folder with --out") from error
    return folder


def diagnosis_lines(diagnosis: Diagnosis) -> Iterator[str]:
    """What was measured, then every finding with its evidence, cause and change; the verdict is not among them."""
    yield from _weight_lines(diagnosis.measures)
    if diagnosis.latents is not None:
        yield from _latent_lines(diagnosis.latents, diagnosis.clips)
    if diagnosis.chain is not None:
        yield ""
        yield from _step_lines(diagnosis.chain.steps)
        rate = diagnosis.measures["chain/clip_rate"]
        yield f"clip rate over all steps: {100 * rate:.3f} % ({clip_advice(rate)})"
    if diagnosis.levels:
        yield ""
        yield from _level_lines(diagnosis.levels)
    yield ""
    yield from _prediction_lines(diagnosis.measures)
    if left := not_judged(diagnosis.measures):
        yield f"not judged, for want of given frames to predict from, or of actions beyond the clips: {', '.join(left)}"
    for number, finding in enumerate(diagnosis.findings, start=1):
        yield ""
        yield f"finding {number} of {len(diagnosis.findings)} ({finding.severity}): {finding.name}"
        yield f"    evidence: {finding.evidence}"
        yield f"    likely cause: {finding.cause}"
        yield f"    change: {finding.change}"
    if any(finding.severity == "fatal" for finding in diagnosis.findings):
        yield "    (what else is off would follow from this, and was not judged)"


def not_judged(measures: dict[str, float]) -> list[str]:
    """Findings that this model could not be accused of, because what they are about was not measured."""
    of_rollouts = [] if "rollout/finite" in measures else ["rollout_drift"]
    if not measures.get("chain/finite"):
        return []  # where weights or predictions are not finite, that is the finding
    return of_rollouts if "chain/mse" in measures else [*OF_GIVEN_FRAMES, *of_rollouts]


def summary(diagnosis: Diagnosis) -> str:
    """The figures of a healthy model in one line."""
    measures = diagnosis.measures
    left = len(not_judged(measures))
    return (
        f"the one-step error is {measures['levels/ratio']:.2f} of what needs no learning, "
        f"clip rate {100 * measures['chain/clip_rate']:.2f} %, eps norm {measures['chain/eps_norm_least']:.2f} to "
        f"{measures['chain/eps_norm_most']:.2f}" + (f"; {left} findings could not be judged" if left else "")
    )


def _weight_lines(measures: dict[str, float]) -> Iterator[str]:
    yield f"parameters: {measures['weights/count']:,.0f}, norm {measures['weights/norm']:.6g}"
    if "ema/norm" not in measures:
        yield "EMA: none"
    else:
        updates = f"{measures['ema/updates']:.0f}" if "ema/updates" in measures else "unknown"
        distance = measures["ema/distance"]
        yield f"EMA: norm {measures['ema/norm']:.6g}, |EMA - raw| / |raw| {distance:.4g}, updates {updates}"
    if not measures["record/present"]:
        yield "record of training: none, so inference is not compared with it"
    elif measures.get("pixels/compared") == 0:
        yield "recorded clips: the data hold none of them now, so what is read is not compared with what training read"


def _latent_lines(figures: LatentFigures, clips: int) -> Iterator[str]:
    channels = "; ".join(f"{mean:+.2f} +- {std:.2f}" for mean, std in zip(figures.mean, figures.std))
    whole = _range((figures.low, figures.high))
    yield f"latents of {clips} clips, calibrated: {whole}, channels {channels}"


def _step_lines(rows: list[StepRow]) -> Iterator[str]:
    yield f"sampling, {len(rows)} network calls: the unknown frames at each"
    yield (
        f"{'call':>4}  {'alpha':>6}  {'sigma':>6}  {'x_t range':>18}  {'x0 before clipping':>22}  "
        f"{'clipped':>8}  {'eps norm / expected':>19}"
    )
    for row in rows:
        yield (
            f"{row.step:>4}  {row.alpha:6.4f}  {row.sigma:6.4f}  {_range(row.x):>18}  {_range(row.x0):>22}  "
            f"{100 * row.clip_rate:6.2f} %  {row.eps_norm:19.3f}"
        )


def _level_lines(rows: list[LevelRow]) -> Iterator[str]:
    yield "one-step error of x0 by level, rms"
    yield "('no learning' is the best constant filter of x_t around the better of the two references)"
    yield (
        f"{'timestep':>8}  {'alpha':>6}  {'sigma':>6}  {'model':>9}  {'predict zero':>12}  {'copy last':>9}  "
        f"{'no learning':>11}  {'model / no learning':>19}"
    )
    for row in rows:
        yield (
            f"{row.timestep:>8}  {row.alpha:6.4f}  {row.sigma:6.4f}  {row.error:9.4f}  {row.zero:12.4f}  "
            f"{row.copy_last:9.4f}  {row.unlearned:11.4f}  {row.error / max(row.unlearned, 1e-6):19.3f}"
        )


PREDICTION_LINES = {
    "chain/error": "whole prediction, rms error of latents",
    "chain/copy_last": "    of the copied frame",
    "chain/predict_zero": "    of predicting zero",
    "chain/detail": "detail over that of decoded true frames",
    "chain/motion": "motion energy over that of decoded true frames",
    "given/swapped_over_own": "error with another clip's frames given, over the own one",
    "vae/psnr": "autoencoder alone, dB",
    "rollout/shift": "fourth window of a rollout: sure shift of a channel's mean, deviations",
    "rollout/contrast": "fourth window of a rollout: sure change of a channel's contrast, factor",
    "curve/fall_late": "fall of the loss in the last part of training, fraction",
}


def _prediction_lines(measures: dict[str, float]) -> Iterator[str]:
    for name, title in PREDICTION_LINES.items():
        if name in measures:
            yield f"{title}: {measures[name]:.3f}"


def _range(bounds: tuple[float, float]) -> str:
    return f"[{bounds[0]:.2f}, {bounds[1]:.2f}]"
