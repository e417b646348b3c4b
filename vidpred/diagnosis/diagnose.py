"""The diagnosis of a model: everything is measured once, then judged by rules that see nothing but the measures."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, Union

from torch import Tensor

from vidpred.data import ClipBatch
from vidpred.denoiser import Denoiser
from vidpred.diagnosis.curve import LossPoint
from vidpred.diagnosis.data_measures import STILL, data_measures, frame_changes
from vidpred.diagnosis.findings import Finding
from vidpred.diagnosis.measurement import latent_figures, one_step_errors
from vidpred.diagnosis.prediction_measures import Chain, chain_measures, clip_measures, influence_measures, run_chain
from vidpred.diagnosis.record_measures import record_measures
from vidpred.diagnosis.records import LatentFigures, LevelRow
from vidpred.diagnosis.rollout_measures import rollout_measures
from vidpred.diagnosis.rules import judge
from vidpred.diagnosis.subject import Subject, diagnosed_clips, recorded_clips, subject_from_checkpoint, training_clips
from vidpred.diagnosis.weight_measures import curve_measures, weight_measures
from vidpred.files import write_json

CLIPS = 12
TRAINING_CLIPS = 16
# What is done in turn, and its share of the time in per cent, roughly: a rollout is four predictions.
PARTS = {"reading clips": 25, "against the record": 10, "one step": 10, "prediction": 10, "other given frames": 10,
         "bound on x0": 5, "rollout": 30}  # fmt: skip
Progress = Callable[[str], None]  # called with the name of a part when it starts


@dataclass(frozen=True)
class Diagnosis:
    """What was measured of a model, and what it says.

    measures: every number that the rules use, by name; one that could not be measured is absent. notes: words for
    some of them. findings: the root cause first. levels, chain, latents, curve: what the plot page draws; None where
    the weights are not finite.
    """

    title: str
    clips: int
    measures: dict[str, float]
    notes: dict[str, str]
    findings: list[Finding]
    levels: list[LevelRow]
    chain: Optional[Chain]
    latents: Optional[LatentFigures]
    curve: list[LossPoint]

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not finite is null."""
        return {
            "model": self.title,
            "clips": self.clips,
            "healthy": not self.findings,
            "findings": [vars(finding) for finding in self.findings],
            "measures": {
                name: value if math.isfinite(value) else None for name, value in sorted(self.measures.items())
            },
            "notes": self.notes,
        }

    def save(self, path: Path) -> None:
        write_json(path, self.to_json())


def diagnose(checkpoint: Union[str, Path], device: str = "auto", clips: int = CLIPS) -> Diagnosis:
    """The diagnosis of a checkpoint directory, or of a run's latest one, on data as they are read now. UserError."""
    return diagnose_subject(subject_from_checkpoint(checkpoint, str(device)), clips)


def diagnose_subject(subject: Subject, clips: int = CLIPS, starts: Progress = lambda part: None) -> Diagnosis:
    """As `diagnose`, of a model that is already read. starts: is told each of PARTS when it starts."""
    starts("reading clips")
    return diagnose_clips(subject, diagnosed_clips(subject, clips), starts)


def diagnose_clips(subject: Subject, examined: ClipBatch, starts: Progress = lambda part: None) -> Diagnosis:
    """As `diagnose_subject`, on clips that are already read."""
    measures, notes = weight_measures(subject), {}
    points = subject.history.curve.points if subject.history else []
    measures |= curve_measures(points) if subject.history else {}
    recorded = recorded_clips(subject)
    measures |= _data(subject, examined, recorded)
    measures["record/present"] = float(subject.history is not None and subject.history.record is not None)
    levels, chain, latents = [], None, None
    if not measures["weights/not_finite"]:
        if measures["record/present"]:
            starts("against the record")
            read_now = {} if recorded is None else dict(zip(recorded.names, recorded.frames))
            found, notes = record_measures(subject, subject.history.record, read_now)
            measures |= found
        found, levels, chain, latents = _predictions(subject, examined, starts)
        measures |= found
    return Diagnosis(
        subject.title, len(examined), measures, notes, judge(measures, notes), levels, chain, latents, points
    )


def _data(subject: Subject, examined: ClipBatch, recorded: Optional[ClipBatch]) -> dict[str, float]:
    """Of training clips, as training draws them, and of validation clips; and how much those of the record move now."""
    if subject.data is None:
        return data_measures(examined.frames, examined.names)
    training = training_clips(subject, TRAINING_CLIPS)
    of_training = data_measures(training.frames, training.names)
    of_validation = data_measures(examined.frames, examined.names)
    found = dict(of_training)
    for name in ("twins", "still", "repetition"):
        if f"data/{name}" in of_training:
            found[f"data/val_{name}"] = of_validation[f"data/{name}"]
    if subject.validation_data.one_clip:  # is meant to be the same one again and again
        found = {name: value for name, value in found.items() if not name.endswith("twins")}
    record = subject.history.record if subject.history else None
    if record is not None and record.frames.shape[1] > 1:
        now = _typical_motion((recorded or examined).frames[:, : record.frames.shape[1]])
        found["data/motion_over_recorded"] = now / max(_typical_motion(record.frames), STILL)
    return found


def _typical_motion(clips: Tensor) -> float:
    """rms change from frame to frame of the median clip, in grey levels."""
    return float(frame_changes(clips).square().mean(1).sqrt().median())


def _predictions(
    subject: Subject, clips: ClipBatch, starts: Progress
) -> tuple[dict[str, float], list[LevelRow], Chain, LatentFigures]:
    predictor, seed = subject.predictor, subject.seed
    latents = predictor.encode(clips.frames)
    figures = latent_figures(predictor.calibration, latents)
    found = {
        "latents/largest_mean": max(map(abs, figures.mean)),
        "latents/largest_std": max(figures.std),
        "latents/least_std": min(figures.std),
        "latents/largest_uncertainty": max(figures.uncertainty),
        "latents/calibrated": float(figures.measured),
    }
    starts("one step")
    levels = one_step_errors(predictor, latents, clips, seed)
    found |= level_measures(levels, "levels")
    trained = _with_weights(subject)
    if trained is not None:
        raw = copy.copy(predictor)
        raw.denoiser = trained
        found |= level_measures(one_step_errors(raw, latents, clips, seed), "raw_levels")
    starts("prediction")
    chain = run_chain(predictor, latents, clips, seed)
    found |= chain_measures(predictor, latents, clips, chain)
    if found["chain/finite"]:
        starts("other given frames")
        found |= influence_measures(predictor, latents, clips, chain, seed)
        starts("bound on x0")
        found |= clip_measures(predictor, latents, clips, chain, seed)
        starts("rollout")
        found |= rollout_measures(predictor, latents, clips, seed)
    return found, levels, chain, figures


def level_measures(rows: list[LevelRow], prefix: str) -> dict[str, float]:
    """`<prefix>/ratio`: one-step error over what needs no learning, the geometric mean over levels; and its parts."""
    ratios = [row.error / max(row.unlearned, 1e-6) for row in rows]
    if not all(map(math.isfinite, ratios)):
        return {f"{prefix}/ratio": math.inf}
    logs = [math.log(max(ratio, 1e-12)) for ratio in ratios]
    third = max(len(rows) // 3, 1)

    def mean(part: list[float]) -> float:
        return math.exp(sum(part) / len(part))

    return {
        f"{prefix}/ratio": mean(logs),
        f"{prefix}/ratio_noisy": mean(logs[:third]),
        f"{prefix}/ratio_clean": mean(logs[-third:]),
        f"{prefix}/ratio_least": min(ratios),
        f"{prefix}/ratio_most": max(ratios),
        f"{prefix}/over_zero_least": min(row.error / max(row.of_zero, 1e-6) for row in rows),
    }


def _with_weights(subject: Subject) -> Optional[Denoiser]:
    """The denoiser with the trained weights in place of their average; None where there is only one of them."""
    denoiser = subject.predictor.denoiser
    if subject.averaged is None or not isinstance(denoiser, Denoiser):
        return None
    network = copy.deepcopy(denoiser.network)
    network.load_state_dict(subject.weights)
    return denoiser.with_network(network.to(subject.predictor.device).eval())
