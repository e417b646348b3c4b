"""What a step came to, agreed by all ranks on the device and read by the host one step late.

Reading a number of the running step would make the host wait for the GPU, and leave the GPU idle while the
next step is queued. So each step sends four numbers on their way, and the host reads those of the step
before. All ranks read the same numbers at the same place of the loop, so they take the same decisions:
report a step that was skipped, stop after too many of them, stop on request.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from vidpred import distributed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """Of one step: the mean loss of the global batch, the gradient norm before clipping, whether the update
    was skipped for one of the two not being finite, and whether some rank was asked to stop."""

    step: int
    loss: float
    grad_norm: float
    skipped: bool
    stop: bool


class VerdictMail:
    """Posts the verdict of a step, delivers that of the step before."""

    def __init__(self, device: torch.device):
        self._device = device
        self._posted: Optional[tuple[int, Tensor, Optional[torch.cuda.Event]]] = None

    def post(
        self, step: int, loss: Tensor, grad_norm: Tensor, stop: bool
    ) -> tuple[Tensor, Optional[Verdict]]:
        """Agrees on step `step` and returns (found_inf, the verdict of the step before, if there is one).

        Args:
            loss: scalar, this rank's mean loss. grad_norm: scalar, of the gradients averaged over ranks.
        Returns:
            found_inf: float32 scalar on the device, equal on all ranks; 1 where the update must not happen.
        """
        world = distributed.world_size()
        sent = torch.stack(
            [
                loss.detach().float() / world,
                (~loss.isfinite()).float(),
                torch.full((), float(stop), device=self._device),
            ]
        )
        agreed = distributed.all_reduce_sum(sent)
        found_inf = ((agreed[1] > 0) | ~grad_norm.isfinite()).float()
        numbers = torch.stack([agreed[0], grad_norm.float(), found_inf, agreed[2]])
        previous = self.collect()
        self._posted = (step, *_send_to_host(numbers))
        return found_inf, previous

    def collect(self) -> Optional[Verdict]:
        """The verdict under way, once; waits until its step is through."""
        if self._posted is None:
            return None
        (step, numbers, arrived), self._posted = self._posted, None
        if arrived is not None:
            arrived.synchronize()
        loss, grad_norm, found_inf, stop = numbers.tolist()
        return Verdict(step, loss, grad_norm, found_inf > 0, stop > 0)


def _send_to_host(numbers: Tensor) -> tuple[Tensor, Optional[torch.cuda.Event]]:
    """Starts the copy; the event says when it has arrived."""
    if numbers.device.type != "cuda":
        return numbers, None
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return host, arrived


class Journal:
    """The verdicts since the last log line, and how many steps were skipped."""

    def __init__(self) -> None:
        self.learning_rate = math.nan
        self.bad_in_a_row = 0
        self._bad_in_total = 0
        self._since_last_read: list[Verdict] = []

    def enter(self, verdict: Verdict) -> None:
        """Takes in one step; one that was skipped is reported here, with its number."""
        self._since_last_read.append(verdict)
        self.bad_in_a_row = self.bad_in_a_row + 1 if verdict.skipped else 0
        if verdict.skipped:
            self._bad_in_total += 1
            if distributed.is_main():  # the verdict is the same on all ranks
                logger.warning(
                    "step %d: loss %g, gradient norm %g: not finite, update skipped (%d in a row)",
                    verdict.step,
                    verdict.loss,
                    verdict.grad_norm,
                    self.bad_in_a_row,
                )

    def read(self) -> dict[str, float]:
        """Means over the steps that were not skipped (nan if all were), under the names of the log."""
        good = [verdict for verdict in self._since_last_read if not verdict.skipped]
        self._since_last_read = []
        return {
            "train/loss": _mean([verdict.loss for verdict in good]),
            "train/grad_norm": _mean([verdict.grad_norm for verdict in good]),
            "train/learning_rate": self.learning_rate,
            "train/skipped_steps": float(self._bad_in_total),
        }

    def state(self) -> dict[str, Any]:
        return {"in_a_row": self.bad_in_a_row, "in_total": self._bad_in_total}

    def load_state(self, state: dict[str, Any]) -> None:
        self.bad_in_a_row, self._bad_in_total = state["in_a_row"], state["in_total"]


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
