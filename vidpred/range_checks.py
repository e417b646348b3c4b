"""Named ranges of tensors: measured anywhere, reduced once, never repaired.

    report("latents", latents)        # any number of times on any rank: no host synchronisation
    for name, stats in collect(step).items():
        log(f"{name} range: {stats}")

`report` adds to accumulators on the tensor's own device. `collect` is called by every rank: it brings the
figures to the host (the one synchronisation), merges those of all ranks by name, so ranks may have reported
different names, enforces what `expect` registered and starts afresh. Non-finite values are counted and kept
out of the other figures. Do not report from code that activation checkpointing runs a second time: it would
count twice.
"""

import math
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from vidpred import distributed
from vidpred.errors import UserError


@dataclass(frozen=True)
class RangeStats:
    """The figures of one name: `count` values, of which `non_finite` are nan or infinite; the rest over
    finite values (nan where there is none). `std` is the population's.
    """

    count: int
    mean: float
    std: float
    minimum: float
    maximum: float
    non_finite: int

    def __str__(self) -> str:
        text = f"[{self.minimum:.4f}, {self.maximum:.4f}] mean {self.mean:.4f} std {self.std:.4f}"
        return text + (f" ({self.non_finite} of {self.count} values not finite)" if self.non_finite else "")


@dataclass(frozen=True)
class Expectation:
    """Bounds of a name; None leaves that side open. `cure` is what to do when they are broken."""

    low: Optional[float] = None
    high: Optional[float] = None
    finite: bool = True
    cure: Optional[str] = None

    def broken_by(self, stats: RangeStats) -> bool:
        too_low = self.low is not None and stats.minimum < self.low
        too_high = self.high is not None and stats.maximum > self.high
        return too_low or too_high or (self.finite and stats.non_finite > 0)

    def __str__(self) -> str:
        low, high = ("open" if bound is None else f"{bound:g}" for bound in (self.low, self.high))
        return f"[{low}, {high}]" + (" and finite" if self.finite else "")


class RangeError(UserError):
    """An expectation was broken. Attributes: name, stats (RangeStats), step (None outside training)."""

    def __init__(self, name: str, stats: RangeStats, expected: Expectation, step: Optional[int]):
        self.name, self.stats, self.step = name, stats, step
        when = "" if step is None else f" at step {step}"
        cure = expected.cure or f"lower the learning rate or check the normalisation of what goes into {name}"
        super().__init__(f"{name} left its range{when}: {stats}, expected {expected}; {cure}")


# Per name, float64 on the tensors' device: (values, finite values, sum, sum of squares) and (-min, max).
_sums: dict[str, Tensor] = {}
_extremes: dict[str, Tensor] = {}
_expectations: dict[str, Expectation] = {}


def report(name: str, tensor: Tensor) -> None:
    """Adds all values of `tensor` (any shape, any real dtype) to the figures of `name`, on its device."""
    if tensor.numel() == 0:
        return
    sums, extremes = _measure(tensor.detach())
    if name in _sums and _sums[name].device == sums.device:
        sums = _sums[name] + sums
        extremes = torch.maximum(_extremes[name], extremes)
    elif name in _sums:
        raise ValueError(f"range '{name}' was reported on {_sums[name].device} and now on {sums.device}")
    _sums[name], _extremes[name] = sums, extremes


def expect(
    name: str,
    low: Optional[float] = None,
    high: Optional[float] = None,
    finite: bool = True,
    cure: Optional[str] = None,
) -> None:
    """From now on `collect` raises RangeError when a value of `name` is outside [low, high] or not finite.

    `cure` ends the error's line: what the user can do about it. Not given: what helps against a network that
    diverges.
    """
    _expectations[name] = Expectation(low, high, finite, cure)


def collect(step: Optional[int] = None) -> dict[str, RangeStats]:
    """The figures of every name over all ranks since the last call, by name; every rank must call it.

    Raises RangeError, on every rank alike, for the first name (in alphabetical order) that broke its
    expectation. The figures start afresh in either case.
    """
    figures = dict(zip(_sums, _to_host([torch.cat([_sums[n], _extremes[n]]) for n in _sums])))
    _sums.clear()
    _extremes.clear()
    by_rank = distributed.gather_objects(figures)
    names = sorted(set().union(*by_rank))
    ranges = {name: _merge([figures[name] for figures in by_rank if name in figures]) for name in names}
    for name, stats in ranges.items():
        if name in _expectations and _expectations[name].broken_by(stats):
            raise RangeError(name, stats, _expectations[name], step)
    return ranges


def reset() -> None:
    """Forgets all figures and expectations (a new run in the same process)."""
    for ledger in (_sums, _extremes, _expectations):
        ledger.clear()


def measure(tensor: Tensor) -> RangeStats:
    """The figures of one tensor at once, on this rank only. This waits for the tensor's device."""
    if tensor.numel() == 0:
        return _merge([])
    return _merge(_to_host([torch.cat(_measure(tensor.detach()))]))


def _measure(tensor: Tensor) -> tuple[Tensor, Tensor]:
    values = tensor if tensor.is_floating_point() else tensor.double()
    finite = values.isfinite()
    zeroed = values.where(finite, 0).double()  # double: squares of large float32 and sums of many
    sums = [finite.new_full((), tensor.numel(), dtype=torch.float64), finite.sum().double()]
    sums += [zeroed.sum(), zeroed.square().sum()]
    extremes = [
        -values.where(finite, math.inf).amin().double(),
        values.where(finite, -math.inf).amax().double(),
    ]
    return torch.stack(sums), torch.stack(extremes)


def _to_host(rows: list[Tensor]) -> list[list[float]]:
    """Equal-length rows, possibly on several devices, to lists: one transfer for each device."""
    by_device: dict[torch.device, list[int]] = {}
    for index, row in enumerate(rows):
        by_device.setdefault(row.device, []).append(index)
    lists: list[list[float]] = [[] for _ in rows]
    for indices in by_device.values():
        for index, values in zip(indices, torch.stack([rows[i] for i in indices]).tolist()):
            lists[index] = values
    return lists


def _merge(rows: list[list[float]]) -> RangeStats:
    """Rows (values, finite, sum, squares, -min, max) of one name, in rank order -> its figures."""
    values, finite, total, squares = (sum(row[column] for row in rows) for column in range(4))
    if finite == 0:
        return RangeStats(int(values), math.nan, math.nan, math.nan, math.nan, int(values))
    mean = total / finite
    std = math.sqrt(max(squares / finite - mean * mean, 0.0))
    low, high = -max(row[4] for row in rows), max(row[5] for row in rows)
    return RangeStats(int(values), mean, std, low, high, int(values - finite))
