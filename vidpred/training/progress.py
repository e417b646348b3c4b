"""What the user sees of a running loop: a bar on a terminal, a line at each log step elsewhere."""

import contextlib
import logging
import resource
import sys
import time
from typing import Callable, Iterator

import torch
from tqdm import tqdm

from vidpred import distributed

logger = logging.getLogger(__name__)

KIB_PER_GIB = 2**20


class Pace:
    """Samples per second and the share of the time that was spent waiting for data, since the last `read`.

    Pauses (validation, pictures, checkpoints) do not count.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._restart()

    def _restart(self) -> None:
        self._begin, self._waited, self._paused, self._samples = self._clock(), 0.0, 0.0, 0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        begin = self._clock()
        yield
        self._waited += self._clock() - begin

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        begin = self._clock()
        yield
        self._paused += self._clock() - begin

    def count(self, samples: int) -> None:
        self._samples += samples

    def read(self) -> dict[str, float]:
        """The figures under the names of the log. Call it where the device has caught up."""
        seconds = max(self._clock() - self._begin - self._paused, 1e-9)
        figures = {
            "train/samples_per_second": self._samples / seconds,
            "train/data_wait_share": min(self._waited / seconds, 1.0),
        }
        self._restart()
        return figures


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process in GiB: allocated on its GPU, or resident on the host where it has none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_GIB


class ProgressBar:
    """tqdm on rank 0's terminal; without a terminal a line at each `show`, with no control characters."""

    def __init__(self, step: int, num_steps: int, batch_size: int):
        self._step, self._num_steps, self._batch_size = step, num_steps, batch_size
        self._on_terminal = distributed.is_main() and sys.stderr.isatty()
        self._bar = tqdm(
            total=num_steps,
            initial=step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            smoothing=0.05,
            disable=not self._on_terminal,
        )

    def advance(self) -> None:
        self._step += 1
        self._bar.update()

    def show(self, values: dict[str, float]) -> None:
        """Shows the figures of a log step."""
        text = (
            f"loss {values['train/loss']:.4f}  grad norm {values['train/grad_norm']:.3f}  "
            f"lr {values['train/learning_rate']:.2e}  {values['train/samples_per_second']:.2f} samples/s  "
            f"data wait {100 * values['train/data_wait_share']:.0f} %  "
            f"memory {values['train/memory_gib']:.2f} GiB"
        )
        if self._on_terminal:
            self._bar.set_postfix_str(text)
        else:
            logger.info("step %d/%d  %s  ETA %s", self._step, self._num_steps, text, self._eta(values))

    def close(self) -> None:
        self._bar.close()

    def _eta(self, values: dict[str, float]) -> str:
        remaining = (self._num_steps - self._step) * self._batch_size
        return tqdm.format_interval(remaining / max(values["train/samples_per_second"], 1e-9))
