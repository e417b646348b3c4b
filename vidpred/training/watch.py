"""The watch while training: the cheap part of a diagnosis, every EVERY steps, judged by the same rules.

A fault is named in the log, and as the metric `finding/<name>`, within 200 steps. Nothing here runs inside a step.
Rank 0 watches for all, without collective operations, and what it sees does not depend on the number of processes.
"""

import logging
import math
from collections import deque
from typing import Any, Iterator, Optional

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

EVERY = 100  # steps from check to check
STEPS = 4  # of which one is looked at, for a clip
CLIPS = 8  # that are remembered
FRAMES, PIXELS = 6, 64  # of a remembered clip, and of its shorter side at most
LEAST_CLIPS = 6
LEAST_RANGED = 32  # clips without which a range says nothing of the scale
SLOW = 0.4  # of the start still in the average at the end of the run
DIVERGED = 3.0  # times the least mean loss of the run


class ClipWatch:
    """Looks at some of the clips that are trained on, and at what `reference` says of autoencoder and schedule.

    Of every STEPS-th global batch of `global_batch` clips the first one, which rank 0 has on any number of processes.
    Where videos and pictures are trained on, the videos.
    """

    def __init__(self, predictor: Predictor, reference: Optional[TrainingRecord], global_batch: int):
        self._predictor, self._reference, self._global_batch = predictor, reference, global_batch
        self._clips: deque[tuple[str, Tensor]] = deque(maxlen=CLIPS)

    def see(self, batch: ClipBatch) -> None:
        """A batch on the host, before it goes to the device."""
        step, place = divmod(int(batch.draws[0]), self._global_batch)
        if place or step % STEPS:
            return
        stride = max(min(batch.frames.shape[-2:]) // PIXELS, 1)
        clip = batch.frames[0, :FRAMES, :, ::stride, ::stride].clone()
        remembered = len(self._clips[-1][1]) if self._clips else len(clip)
        if len(clip) > remembered:
            self._clips.clear()
        if len(clip) >= remembered:
            self._clips.append((batch.names[0], clip))

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
    """Weights, average and loss of a run; and what the task says of its own.

    with_loss: whether the loss is an error that falls as the network learns; that of a network with an adversary is
    not.
    """

    def __init__(self, network: nn.Module, ema: Ema, config: TrainingConfig, with_loss: bool = True):
        self._network, self._ema, self._config, self._with_loss = network, ema, config, with_loss
        self._losses: deque[float] = deque(maxlen=EVERY)
        self._first: Optional[float] = None  # mean loss of as many steps, at the first check and the least of all
        self._least = math.inf
        self._skipped = 0
        self._entered = 0  # steps since the last check
        self._ranges: list[RangeStats] = []  # of calibrated latents since then
        self._before = self._weights()
        self._standing: set[str] = set()

    def enter(self, verdict: Verdict) -> None:
        """Takes in one step."""
        if math.isfinite(verdict.loss):
            self._losses.append(verdict.loss)
        self._skipped += verdict.skipped
        self._entered += 1

    def see_ranges(self, ranges: dict[str, RangeStats]) -> None:
        """Those of the steps since the last call."""
        stats = ranges.get("calibrated latents")
        if stats is not None and stats.count > stats.non_finite:
            self._ranges.append(stats)

    def check(self, step: int, of_task: dict[str, float]) -> dict[str, float]:
        """`finding/<name>`: 1 for what is wrong now, 0 for what was and is gone. Both are logged when they begin."""
        findings = self._findings(step, of_task)
        names = {finding.name for finding in findings}
        fatal = any(finding.severity == "fatal" for finding in findings)  # what comes after it is not judged
        hidden = self._standing - {"loss_not_finite"} if fatal else self._unjudged()
        gone = self._standing - names - hidden
        for finding in findings:
            if finding.name not in self._standing:
                logger.warning("step %d  finding/%s", step, finding)
        for name in sorted(gone):
            logger.info("step %d  finding/%s: gone", step, name)
        names |= self._standing - gone
        self._standing = names
        self._skipped, self._entered, self._ranges = 0, 0, []
        return {f"finding/{name}": float(name in names) for name in sorted(names | gone)}

    def _unjudged(self) -> set[str]:
        """Names that nothing can be said of at this check: too few clips were seen since the last one."""
        return set() if self._range_measures() else {"latent_scale_missing", "latent_scale_doubled"}

    def _findings(self, step: int, of_task: dict[str, float]) -> list[Finding]:
        findings = judge({**of_task, **self._weight_measures(step)})
        if not any(finding.severity == "fatal" for finding in findings) and not of_task.get("training/one_batch"):
            findings += judge(self._range_measures())
        known = {finding.name for finding in findings}
        findings += [finding for finding in self._of_the_run() if finding.name not in known]
        return sorted(findings, key=lambda finding: finding.severity != "fatal")

    def _weight_measures(self, step: int) -> dict[str, float]:
        """The one place where the host waits for the weights."""
        before, self._before = self._before, self._weights()
        moved, followed = (_distance(now, then) for now, then in zip(self._before, before))
        broken = sum(_not_finite_tensors(network) for network in (self._network, self._ema.network))
        found = {
            "weights/not_finite": float(broken),
            "weights/moved": moved,
            "ema/decay": self._config.ema_decay,
            "ema/updates": float(self._ema.updates),
            "ema/distance": _distance(*self._before),
            "training/steps": float(step),
        }
        if moved > 0 and followed == 0:
            found["ema/moved_share"] = 0.0
        return found

    def _weights(self) -> tuple[Tensor, Tensor]:
        return weight_sample(self._network.state_dict()), weight_sample(self._ema.state_dict())

    def _range_measures(self) -> dict[str, float]:
        """What the rules for a model without a record ask for. Clips are at most as far apart as values are, so that
        the deviation of all values bounds the standard error of a mean over clips."""
        clips = self._entered * self._config.batch_size
        if clips < LEAST_RANGED or not self._ranges:
            return {}
        mean, std = _pooled(self._ranges)
        return {
            "record/present": 0.0,
            "latents/calibrated": 1.0,
            "latents/largest_std": std,
            "latents/least_std": std,
            "latents/largest_mean": abs(mean),
            "latents/largest_uncertainty": std / math.sqrt(clips),
        }

    def _of_the_run(self) -> Iterator[Finding]:
        """What shows in the course of a run alone."""
        if self._with_loss and len(self._losses) >= EVERY // 4:
            mean = sum(self._losses) / len(self._losses)
            self._first = mean if self._first is None else self._first
            self._least = min(self._least, mean)
            if mean > DIVERGED * self._least and mean > self._first:
                yield _diverged(mean, self._least, len(self._losses))
        decay, planned = self._config.ema_decay, self._config.num_steps
        # A long average in the middle of a long run may be far behind and still be right.
        if not self._config.ema_warmup and decay**planned > SLOW:
            yield _too_slow(decay, planned)
        if self._skipped:
            yield _not_finite(self._skipped)

    # Checkpoints -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Plain values, for a run that is resumed; it says once more what is wrong."""
        return {
            "losses": list(self._losses),
            "first": self._first,
            "least": self._least if self._first is not None else None,
            "skipped": self._skipped,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from a saved `state`, with weights and average of its checkpoint."""
        self._losses.extend(state["losses"])
        self._first, self._skipped = state["first"], state["skipped"]
        self._least = math.inf if state["least"] is None else state["least"]
        self._before = self._weights()


def _pooled(ranges: list[RangeStats]) -> tuple[float, float]:
    """(mean, deviation) of all finite values together."""
    counts = [stats.count - stats.non_finite for stats in ranges]
    total = sum(counts)
    mean = sum(count * stats.mean for count, stats in zip(counts, ranges)) / total
    square = sum(count * (stats.std**2 + stats.mean**2) for count, stats in zip(counts, ranges)) / total
    return mean, math.sqrt(max(square - mean**2, 0.0))


def _diverged(mean: float, least: float, steps: int) -> Finding:
    return Finding(
        "fatal",
        "weights_exploded",
        f"the mean loss of the last {steps} steps is {mean:.4g}, {mean / max(least, 1e-12):.1f} times the least that "
        "it was, and more than at the start",
        "weights that diverged",
        "go back to an earlier checkpoint, lower the learning rate, clip gradients",
    )


def _too_slow(decay: float, planned: int) -> Finding:
    return Finding(
        "fatal",
        "ema_too_slow",
        f"with decay {decay:g} and no warmup {100 * decay**planned:.0f} % of the average will still be the start "
        f"after all {planned} steps",
        "the average is longer than the training",
        "lower training.ema_decay (1 - 10 / steps is a good one), or set training.ema_warmup true",
    )


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


def _not_finite_tensors(network: nn.Module) -> int:
    return int((~torch.stack([p.detach().isfinite().all() for p in network.parameters()])).sum())
