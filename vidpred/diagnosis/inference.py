"""A check of inference: predict, insist on finite values in range, measure the time, draw the panels."""

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, Optional

import torch
from torch import Tensor

from vidpred.data import ClipBatch
from vidpred.diagnosis.findings import (
    OUTSIDE,
    Finding,
    frame_findings,
    ranked,
    sampling_findings,
    weight_findings,
)
from vidpred.diagnosis.measurement import Trace, latent_figures, weight_figures
from vidpred.diagnosis.subject import Subject
from vidpred.diffusion import StepReport
from vidpred.prediction import NotFiniteError
from vidpred.video_io import save_clip_panels, save_grid


@dataclass(frozen=True)
class InferenceCheck:
    """prediction: (B, N, 3, H, W) uint8, None where there is none. seconds: of one prediction of all clips.
    seconds_per_step: of one sampling step of all clips. pictures: PNG, GIF and MP4 of each clip.
    """

    prediction: Optional[Tensor]
    findings: list[Finding]
    seconds: float
    seconds_per_step: float
    pictures: list[Path]

    def lines(self) -> Iterator[str]:
        """What was made and how long it took; the findings."""
        for picture in self.pictures:
            yield f"picture: {picture}"
        if self.prediction is not None:
            clips, frames = self.prediction.shape[:2]
            per_frame, per_step = 1e3 * self.seconds / (clips * frames), 1e3 * self.seconds_per_step
            yield (
                f"timing: {per_frame:.1f} ms per predicted frame, {per_step:.1f} ms per sampling step "
                f"({clips} clips of {frames} frames at once)"
            )
        for finding in self.findings:
            yield f"finding ({finding.severity}): {finding}"


class _Watch:
    """A sampler callback that keeps a trace, the time of each step and the last clean estimate."""

    def __init__(self, device: torch.device):
        self.trace = Trace()
        self.latents: Optional[Tensor] = None
        self._device = device
        self._times: list[float] = []

    def __call__(self, report: StepReport) -> None:
        self.trace(report)
        self.latents = report.x0
        self._times.append(now(self._device))

    def seconds_per_step(self, total: float) -> float:
        """From step to step; one step alone is counted as the `total` seconds around it."""
        steps = len(self._times) - 1
        return (self._times[-1] - self._times[0]) / steps if steps else total


def now(device: torch.device) -> float:
    """Seconds, when the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def check_inference(
    subject: Subject, clips: ClipBatch, fps: float, folder: Path, log: Callable[[str], None] = print
) -> InferenceCheck:
    """Predicts one horizon after the context of `clips`, judges what came out and draws it.

    `log` receives the named range lines. Panels go to `folder`, beside the truth where the clips hold it.
    """
    predictor = copy.copy(subject.predictor)
    known = predictor.context_frames
    context, truth = clips.frames[:, :known], clips.frames[:, known:]
    horizon = predictor.num_frames - known
    watch, condition = _Watch(predictor.device), predictor.conditions_of(clips)
    findings = list(weight_findings(weight_figures(subject.weights, subject.averaged, subject.ema_updates)))
    try:
        # The first call is slower than all others.
        predictor.predict(context, horizon, condition=condition, num_inference_steps=1)
        predictor.log = log
        started = now(predictor.device)
        prediction = predictor.predict(
            context, horizon, subject.seed, condition=condition, callback=watch, draws=clips.draws
        )
        seconds = now(predictor.device) - started
    except NotFiniteError as error:
        findings.append(_not_finite(str(error)))
        return InferenceCheck(None, ranked(findings), math.nan, math.nan, [])
    data = latent_figures(predictor.calibration, predictor.encode(clips.frames))
    findings += sampling_findings(watch.trace.rows(), data)
    findings += _frame_findings(predictor.decode(watch.latents[:, known:]))
    pictures = save_grid(folder / "grid.png", prediction[:, 0]) if predictor.num_frames == 1 else []
    for row, name in enumerate(() if pictures else clips.names):
        beside = truth[row] if known and truth.shape[1] == horizon else None  # what is generated has no truth
        label = f"{row:02d}_{Path(name).stem}"
        pictures += save_clip_panels(folder, label, context[row], beside, prediction[row], fps)
    return InferenceCheck(prediction, ranked(findings), seconds, watch.seconds_per_step(seconds), pictures)


def _not_finite(evidence: str) -> Finding:
    return Finding(
        "fatal",
        "prediction_not_finite",
        evidence,
        "weights or activations that are not finite",
        "use an earlier checkpoint or full precision",
    )


def _frame_findings(decoded: Tensor) -> Iterator[Finding]:
    """Of decoded frames before they are clamped to [0, 1]."""
    outside = ((decoded < -OUTSIDE) | (decoded > 1 + OUTSIDE)).double().mean()
    yield from frame_findings(float(outside), float(decoded.min()), float(decoded.max()))
