"""The whole examination of a model: measured, and judged."""

from dataclasses import dataclass

from vidpred.data import ClipBatch
from vidpred.diagnosis.findings import (
    Finding,
    calibration_findings,
    clip_rate,
    learning_findings,
    learning_ratio,
    ranked,
    sampling_findings,
    weight_findings,
)
from vidpred.diagnosis.measurement import latent_figures, one_step_errors, sampling_steps, weight_figures
from vidpred.diagnosis.records import LatentFigures, LevelRow, StepRow, WeightFigures
from vidpred.diagnosis.subject import Subject


@dataclass(frozen=True)
class Examination:
    """All measurements of one model on a few clips. levels: from pure noise to almost none."""

    clips: int
    weights: WeightFigures
    latents: LatentFigures
    steps: list[StepRow]
    levels: list[LevelRow]

    def findings(self) -> list[Finding]:
        """What is wrong, the gravest first; empty for a healthy model."""
        return ranked(
            [
                *weight_findings(self.weights),
                *calibration_findings(self.latents),
                *sampling_findings(self.steps, self.latents),
                *learning_findings(self.levels),
            ]
        )

    def summary(self) -> str:
        """The figures of a healthy model in one line."""
        norms = [row.eps_norm for row in self.steps]
        return (
            f"the one-step error is {learning_ratio(self.levels):.2f} of what needs no learning, "
            f"clip rate {100 * clip_rate(self.steps):.2f} %, eps norm {min(norms):.2f} to {max(norms):.2f}"
        )


def examine(subject: Subject, clips: ClipBatch) -> Examination:
    """Measures the model on `clips`; takes as many network calls as sampling steps, and ten."""
    predictor = subject.predictor
    latents = predictor.encode(clips.frames)
    return Examination(
        clips=len(clips),
        weights=weight_figures(subject.weights, subject.averaged, subject.ema_updates),
        latents=latent_figures(predictor.calibration, latents),
        steps=sampling_steps(predictor, latents, clips, subject.seed),
        levels=one_step_errors(predictor, latents, clips, subject.seed),
    )
