"""Decoding in worker processes that may hang or die: who was at which item, and how it is stopped.

A decoder that hangs cannot be interrupted from Python: no signal handler runs meanwhile. So each worker sets
the kernel's alarm, whose default action ends the process, and notes in shared memory which item it is at;
from that note the parent knows what killed a worker.
"""

import atexit
import multiprocessing
import os
import signal
import threading
import time
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Iterator

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vidpred.errors import UserError

IDLE = -1
GRACE = 15.0  # Seconds beyond the timeout after which a process that the alarm could not end is given up.
POLL = 2.0  # Seconds between looks at the workers while a batch is waited for.
MAX_RESTARTS = 5  # In a row, without a single batch in between.


class Logbook:
    """Shared memory, one row per worker: process id, item at work (-1: none), since when."""

    def __init__(self, workers: int):
        self._shared = torch.zeros(max(1, workers), 3, dtype=torch.float64).share_memory_()
        self._rows = self._shared.numpy()
        self._rows[:, 1] = IDLE

    def enlist(self, worker: int) -> None:
        self._rows[worker, 0] = os.getpid()

    @contextmanager
    def working_on(self, item: int, timeout: float) -> Iterator[None]:
        """Notes the item and ends this process when it takes longer than `timeout` s. Outside a worker:
        nothing."""
        info = get_worker_info()
        if info is None:
            yield
            return
        self._rows[info.id, 2] = time.time()
        self._rows[info.id, 1] = item
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._rows[info.id, 1] = IDLE

    def item_of(self, process_id: int) -> tuple[int, float]:
        """(item at work or -1, seconds since it began) of a worker."""
        for pid, item, since in self._rows.tolist():
            if int(pid) == process_id:
                return int(item), time.time() - since
        return IDLE, 0.0


@dataclass(frozen=True)
class Death:
    """A worker that is gone, or that hangs beyond its alarm; `item` is -1 where it was not decoding."""

    item: int
    reason: str
    killed: bool
    """From outside by SIGKILL, as the kernel does when memory runs out: the item may be innocent."""


class WorkersDied(Exception):
    def __init__(self, deaths: list[Death]):
        super().__init__("; ".join(death.reason for death in deaths))
        self.deaths = deaths


class Inquest:
    """Who is to blame when workers die, and when to give up."""

    def __init__(self) -> None:
        self._deaths_at: dict[int, int] = {}
        self._restarts = 0

    def guilty(self, error: WorkersDied) -> list[tuple[int, str]]:
        """(item, reason) of the items that must not be tried again; then new workers may be started.

        Raises UserError where workers die again and again without an item to blame.
        """
        self._restarts += 1
        found = []
        for death in error.deaths:
            count = self._deaths_at[death.item] = self._deaths_at.get(death.item, 0) + 1
            # Killed from outside, perhaps for want of memory: blamed only where it happens twice.
            if death.item != IDLE and not (death.killed and count < 2):
                found.append((death.item, death.reason))
                self._restarts = 0
        if self._restarts > MAX_RESTARTS:
            raise UserError(
                f"data: the processes that read clips die again and again ({error}); lower data.num_workers, "
                "and look at the free memory and at /dev/shm (in a container: more --shm-size)"
            ) from error
        return found

    def batch_arrived(self) -> None:
        self._restarts = 0


class _Answers(Dataset):
    """A data set whose UserErrors are values: raised in a worker they would reach the user as a traceback."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset

    def __getitem__(self, batch: Any) -> Any:
        try:
            return self._dataset[batch]
        except UserError as error:
            return UserError(str(error))


def _start_worker(logbook: Logbook, worker: int) -> None:
    # A signal to the process group (Ctrl-C, a job's end) must leave the workers alive until the parent has
    # saved.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logbook.enlist(worker)


class WorkerCrew:
    """A torch DataLoader over batches, its processes, and a way to know and to stop them.

    dataset[batch] is computed in a worker for every `batch` in turn; results come in that order.
    """

    def __init__(
        self, dataset: Dataset, batches: Any, workers: int, logbook: Logbook, timeout: float, pin: bool
    ):
        """`timeout` is seconds for one item."""
        self._logbook = logbook
        self._timeout = timeout
        before = set(multiprocessing.active_children())
        loader = DataLoader(
            _Answers(dataset),
            batch_size=None,
            sampler=batches,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin,
            timeout=POLL if workers else 0,
            worker_init_fn=lambda worker: _start_worker(logbook, worker),
            multiprocessing_context="fork" if workers else None,
        )
        self._iterator = iter(loader)
        self._processes = [child for child in multiprocessing.active_children() if child not in before]
        if workers and threading.current_thread() is threading.main_thread():
            # torch's handler raises wherever the main thread happens to be, in the middle of a training step;
            # __next__ also notices that a worker is gone, where it can be dealt with.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _crews.add(self)

    def __next__(self) -> Any:
        """The next result, however long it takes. Raises WorkersDied, and what the dataset raised."""
        while True:
            try:
                result = next(self._iterator)
            except (RuntimeError, OSError, EOFError) as error:
                # A worker's end shows as a RuntimeError of torch's loader, or as a lost connection to it.
                waiting = str(error).startswith("DataLoader timed out")
                deaths = self.deaths() if waiting else self._wait_for_deaths()
                if deaths:
                    raise WorkersDied(deaths) from error
                if not waiting:
                    raise
                continue
            if isinstance(result, UserError):
                raise result
            return result

    def _wait_for_deaths(self) -> list["Death"]:
        """A lost connection can be seen a moment before the process is gone."""
        for _ in range(20):
            deaths = self.deaths()
            if deaths:
                return deaths
            time.sleep(0.05)
        return []

    def deaths(self) -> list[Death]:
        """The workers that are gone or beyond help."""
        found = []
        for process in self._processes:
            item, seconds = self._logbook.item_of(process.pid)
            if not process.is_alive():
                code = process.exitcode
                if code == -signal.SIGALRM:
                    reason = f"the decoder hung: no clip in {self._timeout:g} s"
                else:
                    reason = f"the decoding process died (exit code {code}{_hint(code)})"
                found.append(Death(item, reason, killed=code == -signal.SIGKILL))
            elif item != IDLE and seconds > self._timeout + GRACE:
                reason = f"the decoder hung beyond its alarm: no clip in {seconds:.0f} s"
                found.append(Death(item, reason, killed=False))
        return found

    def stop(self) -> None:
        """Ends all workers at once; nothing is waited for. May be called twice."""
        for process in self._processes:
            if process.is_alive():
                process.kill()
        self._iterator = iter(())
        _crews.discard(self)


def _hint(code: int | None) -> str:
    if code == -signal.SIGBUS:
        return ", bus error: shared memory is full; enlarge /dev/shm or lower data.num_workers"
    if code == -signal.SIGKILL:
        return ", killed from outside: out of memory? lower data.num_workers"
    return ""


def _as_it_is(batch: Any) -> Any:
    return batch


_crews: "weakref.WeakSet[WorkerCrew]" = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Workers ignore SIGTERM, which is how Python would end them, and then wait for them, at exit."""
    for crew in list(_crews):
        crew.stop()
