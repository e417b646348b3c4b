"""Findings: each names what is wrong, why it is believed, and what to change. Here the rules of one look at inference.

The bounds are wide on purpose: a finding means that something is broken, not that a model could be better.
"""

import math
from dataclasses import dataclass
from typing import Iterable, Iterator, Literal, Sequence

from vidpred.diagnosis.records import LatentFigures, StepRow, WeightFigures
from vidpred.prediction.range_lines import MANY

Severity = Literal["fatal", "serious"]

EXPLODED = 10.0  # times the largest value of the data
EXPLODED_FROM = 0.3  # alpha, of a level of unit variance, below which x0 = x / alpha + ... may be large
EPS_TOO_LARGE, EPS_TOO_SMALL = 1.5, 0.5  # times the bounds within which the eps norm lies
OUTSIDE, OUTSIDE_FRACTION = 0.1, 0.05  # how far beyond [0, 1] decoded frames may go, and how many of them


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    severity: fatal, no prediction of this model means anything; serious, predictions are damaged. name: for
    programs, it stays. evidence: what was measured. cause: the likely reason. change: what to do.
    """

    severity: Severity
    name: str
    evidence: str
    cause: str
    change: str

    def __str__(self) -> str:
        return f"{self.name}: {self.evidence}; {self.cause}; {self.change}"


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """Fatal ones first; causes before effects, which is the order in which they were found."""
    return sorted(findings, key=lambda finding: finding.severity != "fatal")


def verdict(findings: Sequence[Finding], healthy: str) -> str:
    """The last line of a report: the first finding and its evidence, or `healthy`."""
    if not findings:
        return f"verdict: healthy: {healthy}"
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return f"verdict: {findings[0].name}: {findings[0].evidence}{more}"


def weight_findings(figures: WeightFigures) -> Iterator[Finding]:
    """NaN in the weights; an average that never followed them."""
    if figures.not_finite:
        yield Finding(
            "fatal",
            "weights_not_finite",
            f"{len(figures.not_finite)} tensors hold NaN or infinity, the first is {figures.not_finite[0]}",
            "an update with a gradient that was not finite",
            "go back to an earlier checkpoint, lower the learning rate, clip gradients",
        )
    elif figures.stuck or (figures.ema_updates == 0 and figures.distance):
        stuck = f"{len(figures.stuck)} averaged tensors are still zero where the weights are not"
        idle = f"0 updates, but its distance to the weights is {figures.distance:.3g}"
        yield Finding(
            "fatal",
            "ema_never_updated",
            stuck if figures.stuck else idle,
            "the average was not updated, or not from the weights that were trained",
            "call the EMA update after every optimizer step, on every rank",
        )


def sampling_findings(rows: Sequence[StepRow], latents: LatentFigures) -> Iterator[Finding]:
    """Values that are not finite, explode, are clipped a lot, or carry the wrong amount of noise."""
    broken = next((row for row in rows if not row.finite), None)
    if broken is not None:
        yield Finding(
            "fatal",
            "sampling_not_finite",
            f"x0 is in {_range(broken.x0)} at step {broken.step} (sigma {broken.sigma:.3f})",
            "weights or activations that are not finite",
            "use an earlier checkpoint or full precision",
        )
        return
    largest = max(abs(latents.low), abs(latents.high))
    exploded = [
        row
        for row in rows
        if row.alpha > EXPLODED_FROM * math.hypot(row.alpha, row.sigma) and _size(row.x0) > EXPLODED * largest
    ]
    if exploded:
        worst = max(exploded, key=lambda row: _size(row.x0))
        yield Finding(
            "fatal",
            "x0_explodes",
            f"x0 before clipping is in {_range(worst.x0)} at step {worst.step}, the data in "
            f"{_range((latents.low, latents.high))}",
            "weights that diverged, or a network that was trained with another parameterization or schedule",
            "use an earlier checkpoint, lower the learning rate, clip gradients",
        )
    rate = clip_rate(rows)
    if rate > MANY:
        yield Finding(
            "serious",
            "clip_rate_high",
            f"{100 * rate:.1f} % of the values of x0 are clipped",
            "x0 estimates lie outside of the range of the data",
            "lower the learning rate, clip gradients, check the normalisation",
        )
    yield from _eps_findings(rows)


def clip_rate(rows: Sequence[StepRow]) -> float:
    """Mean over the steps."""
    return sum(row.clip_rate for row in rows) / max(len(rows), 1)


def _eps_findings(rows: Sequence[StepRow]) -> Iterator[Finding]:
    """The noise level of the state, by its eps.

    E|eps|^2 is 1. Of its best estimate E[eps | x] it is less, since estimating averages (Jensen), but no less
    than sigma^2 / (alpha^2 + sigma^2) for latents of unit deviation, in the square: even the best constant filter of x
    finds that much of it.
    """
    off = [
        row
        for row in rows
        if not EPS_TOO_SMALL * row.sigma / math.hypot(row.alpha, row.sigma) <= row.eps_norm <= EPS_TOO_LARGE
    ]
    if off:
        worst = max(off, key=lambda row: abs(row.eps_norm - 1))
        yield Finding(
            "serious",
            "eps_norm_off",
            f"the eps norm is {worst.eps_norm:.2f} of its expectation at step {worst.step} "
            f"(sigma {worst.sigma:.3f})",
            "the state holds more or less noise than its level says",
            "check that training and sampling use one schedule and parameterization, and the clip bound",
        )


def frame_findings(outside: float, low: float, high: float) -> Iterator[Finding]:
    """outside: fraction of the decoded values further than 0.1 from [0, 1]. low, high: their range."""
    if outside > OUTSIDE_FRACTION:
        yield Finding(
            "serious",
            "frames_out_of_range",
            f"{100 * outside:.1f} % of the decoded values lie beyond [{-OUTSIDE}, {1 + OUTSIDE}], range "
            f"{_range((low, high))}",
            "latents that the autoencoder never made",
            "bound x0 (sampling.clip.kind auto or static), run tools/diagnose_diffusion.py",
        )


def _size(bounds: tuple[float, float]) -> float:
    return max(map(abs, bounds))


def _range(bounds: tuple[float, float]) -> str:
    return f"[{bounds[0]:.2f}, {bounds[1]:.2f}]"

