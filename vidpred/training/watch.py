"""The watch while training: the cheap part of a diagnosis, every so many steps, judged by the same rules.

A fault is named in the log, and as the metric `finding/<name>`, within 200 steps. Nothing here runs inside a step; on
several processes rank 0 watches its own share, and nothing is collective.
"""

import logging
import math
from collections import deque
from typing import Optional

import torch
from torch import Tensor, nn

from vidpred.data import ClipBatch
from vidpred.diagnosis import Finding, judge
from vidpred.diagnosis.data_measures import data_measures
from vidpred.diagnosis.record import TrainingRecord, weight_sample
from vidpred.diagnosis.record_measures import reference_measures
from vidpred.prediction import Predictor
from vidpred.range_checks import RangeStats
from vidpred.training.ema import Ema
from vidpred.training.settings import TrainingConfig
from vidpred.training.verdicts import Verdict

logger = logging.getLogger(__name__)

EVERY = 100  # steps, where log lines are further apart
BATCHES = 10  # of which one is looked at
CLIPS = 8  # that are remembered, two of a batch
FRAMES, PIXELS = 6, 64  # of a remembered clip, and of its shorter side at most
LEAST_CLIPS = 6
SLOW = 0.4  # of the start still in the average at the end of the run


class ClipWatch:
    """Looks at some of the clips that are trained on, and at what `reference` says of autoencoder and schedule."""

    def __init__(self, predictor: Predictor, reference: Optional[TrainingRecord]):
        self._predictor, self._reference = predictor, reference
        self._clips: deque[tuple[str, Tensor]] = deque(maxlen=CLIPS)
        self._batches = 0

    def see(self, batch: ClipBatch) -> None:
        """A batch on the host, before it goes to the device."""
        if self._batches % BATCHES == 0:
            step = max(min(batch.frames.shape[-2:]) // PIXELS, 1)
            few = batch.frames[:2, :FRAMES, :, ::step, ::step].clone()
            self._clips.extend(zip(batch.names[:2], few))
        self._batches += 1

    def measures(self) -> dict[str, float]:
        """Of the clips seen last, and of autoencoder, calibration and schedule against the reference."""
        found: dict[str, float] = {}
        if len(self._clips) >= LEAST_CLIPS:
            names, clips = zip(*self._clips)
            found = data_measures(torch.stack(clips), names)
            for name in ("twins", "still", "repetition"):
                if f"data/{name}" in found:
                    found[f"data/val_{name}"] = found[f"data/{name}"]
        if self._reference is not None:
            found |= reference_measures(self._predictor, self._reference, {})
        return found


class Watch:
    """Weights, average and loss of a run; and what the task says of its own."""

    def __init__(self, network: nn.Module, ema: Ema, config: TrainingConfig):
        self._network, self._ema, self._config = network, ema, config
        self._losses: deque[float] = deque(maxlen=EVERY)
        self._first: Optional[float] = None  # mean loss of as many steps, at the first check and the least of all
        self._least = math.inf
        self._skipped = 0
        self._before: Optional[tuple[int, Tensor, Tensor]] = None  # steps, weights, average at the last check
        self._standing: set[str] = set()

    def enter(self, verdict: Verdict) -> None:
        """Takes in one step."""
        if math.isfinite(verdict.loss):
            self._losses.append(verdict.loss)
        self._skipped += verdict.skipped

    def check(self, step: int, of_task: dict[str, float], ranges: dict[str, RangeStats]) -> list[Finding]:
        """What is wrong now. New findings are logged."""
        measures = {**of_task, **_range_measures(ranges), **self._weight_measures(step), **self._loss_measures()}
        findings = judge(measures)
        if self._skipped:
            findings.append(_not_finite(self._skipped))
            self._skipped = 0
        for finding in findings:
            if finding.name not in self._standing:
                logger.warning("step %d  finding/%s", step, finding)
        for name in self._standing - {finding.name for finding in findings}:
            logger.info("step %d  finding/%s: gone", step, name)
        self._standing = {finding.name for finding in findings}
        return findings

    def _weight_measures(self, step: int) -> dict[str, float]:
        """The one place where the host waits for the weights."""
        weights, average = weight_sample(self._network.state_dict()), weight_sample(self._ema.state_dict())
        norms = torch.stack([_squares(self._network), _squares(self._ema.network)])
        found = {"weights/not_finite": float((~norms.isfinite()).sum()), "ema/decay": self._config.ema_decay}
        found["ema/updates"] = float(self._ema.updates)
        before, self._before = self._before, (step, weights, average)
        if before is None or step <= before[0]:
            return found
        moved, followed = _distance(weights, before[1]), _distance(average, before[2])
        found |= {"weights/moved": moved, "training/steps": float(step)}
        found["ema/distance"] = _distance(average, weights)
        decay, planned = self._config.ema_decay, self._config.num_steps
        # A long average in the middle of a long run may be far behind and still be right.
        hopeless = not self._config.ema_warmup and decay**planned > SLOW
        if moved > 0 and (followed == 0 or hopeless):
            found["ema/moved_share"] = followed / moved
        return found

    def _loss_measures(self) -> dict[str, float]:
        if len(self._losses) < self._losses.maxlen // 4:
            return {}
        mean = sum(self._losses) / len(self._losses)
        self._first = mean if self._first is None else self._first
        self._least = min(self._least, mean)
        return {
            "curve/last": mean,
            "curve/first": self._first,
            "curve/last_over_least": mean / max(self._least, 1e-12),
        }


def _range_measures(ranges: dict[str, RangeStats]) -> dict[str, float]:
    stats = ranges.get("calibrated latents")
    if stats is None or not stats.count:
        return {}
    return {
        "record/present": 0.0,  # the range itself is judged
        "latents/calibrated": 1.0,
        "latents/largest_std": stats.std,
        "latents/least_std": stats.std,
        "latents/largest_mean": abs(stats.mean),
        "latents/largest_uncertainty": 0.1,
    }


def _not_finite(steps: int) -> Finding:
    return Finding(
        "serious",
        "loss_not_finite",
        f"{steps} steps since the last check had a loss or gradient that is not finite, and were skipped",
        "a learning rate that is too high, or values that overflow in half precision",
        "lower training.learning_rate, lengthen training.warmup_steps, or use training.precision fp32",
    )


def _distance(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vector_norm(a - b))


def _squares(network: nn.Module) -> Tensor:
    return torch.stack([p.detach().double().square().sum() for p in network.parameters()]).sum().cpu()
