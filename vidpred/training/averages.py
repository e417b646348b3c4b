"""Means over many steps, kept on the device until they are logged."""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from vidpred import distributed


@dataclass(frozen=True)
class Averages:
    """K named means in the making: `names` (K), and (K,) tensors of sums and of weights."""

    names: tuple[str, ...]
    sums: Tensor
    weights: Tensor

    def and_also(self, other: "Averages") -> "Averages":
        """Both."""
        sums, weights = (torch.cat(pair) for pair in ((self.sums, other.sums), (self.weights, other.weights)))
        return Averages(self.names + other.names, sums, weights)


class RunningAverages:
    """Adds up `Averages` and reads them over all ranks. The names must be the same in every call."""

    def __init__(self) -> None:
        self._total: Optional[Averages] = None

    def add(self, part: Averages) -> None:
        """Adds without waiting for the device. Sums that are not finite count as absent."""
        finite = part.sums.detach().isfinite()
        sums = torch.where(finite, part.sums.detach(), 0).double()
        weights = torch.where(finite, part.weights.detach(), 0).double()
        if self._total is not None:
            sums, weights = self._total.sums + sums, self._total.weights + weights
        self._total = Averages(part.names, sums, weights)

    def read(self) -> dict[str, float]:
        """The means since the last call, over all ranks; names without any weight are left out."""
        if self._total is None:
            return {}
        total, self._total = self._total, None
        sums, weights = distributed.all_reduce_sum(torch.stack([total.sums, total.weights])).tolist()
        return {name: s / w for name, s, w in zip(total.names, sums, weights) if w > 0}
