"""The training loader: this rank's micro batches in fixed order, and the quarantine of bad items."""

import logging
from dataclasses import dataclass, field
from typing import Callable, Iterable, Iterator, Optional

import numpy as np
import torch
from torch.utils.data import Dataset

from vidpred import distributed
from vidpred.data.clips import Clip, ClipBatch, ClipDataset, ClipError, collate
from vidpred.data.draws import DrawOrder, micro_batches
from vidpred.data.workers import Inquest, Logbook, WorkerCrew, WorkersDied
from vidpred.errors import UserError
from vidpred.frame_roles import FrameRoles, all_unknown
from vidpred.random_streams import host_generator

logger = logging.getLogger(__name__)


@dataclass
class Delivery:
    """A batch and what went wrong on the way: (item, reason) of items that could not be used."""

    batch: ClipBatch
    failures: list[tuple[int, str]] = field(default_factory=list)

    def pin_memory(self) -> "Delivery":
        return Delivery(self.batch.pin_memory(), self.failures)


class _DrawReader(Dataset):
    """Draw numbers -> Delivery; runs in the workers. `excluded` (N,) uint8 is shared with the parent."""

    def __init__(
        self,
        dataset: ClipDataset,
        order: DrawOrder,
        frame_roles: FrameRoles,
        excluded: torch.Tensor,
        logbook: Logbook,
        timeout: float,
    ):
        self._dataset = dataset
        self._order = order
        self._frame_roles = frame_roles
        self._excluded = excluded
        self._logbook = logbook
        self._timeout = timeout

    def __getitem__(self, draws: list[int]) -> Delivery:
        failures: list[tuple[int, str]] = []
        clips = [self._clip(draw, failures) for draw in draws]
        roles = [self._roles(draw, len(clip.frames)) for draw, clip in zip(draws, clips)]
        return Delivery(collate(clips, np.stack(roles), draws), failures)

    def _roles(self, draw: int, frames: int) -> np.ndarray:
        return self._frame_roles(host_generator(self._order.seed, "given", self._order.content(draw)), frames)

    def _clip(self, draw: int, failures: list[tuple[int, str]]) -> Clip:
        """The draw's clip, or that of the first item after it in the order that can give one."""
        content = self._order.content(draw)
        for item in self._order.candidates(draw):
            if self._excluded[item]:
                continue
            generator = host_generator(self._order.seed, self._order.purpose, content)
            try:
                with self._logbook.working_on(item, self._timeout):
                    return self._dataset.clip(item, generator)
            except (ClipError, OSError) as error:
                # Anything else is a fault of the program, not of the data, and ends the run.
                self._excluded[item] = 1
                failures.append((item, str(error)))
        raise UserError(f"data: no item of {self._dataset.name} can be used any more")


class ClipLoader:
    """This rank's micro batches; see `draws` for their order. Made by `training_loader` (no end) and
    `sample_clips`.

    An item whose decoder hangs, dies or fails is quarantined: recorded in `quarantined` (name -> reason, to
    be kept in checkpoints), logged in one line, and replaced by the next item of the order, now and from then
    on.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        order: DrawOrder,
        batches: Callable[[int], Iterator[list[int]]],
        frame_roles: FrameRoles,
        num_workers: int,
        timeout: float,
        pin: bool,
    ):
        """`batches(skip)` are the draw numbers of all micro batches from number `skip` on."""
        self.quarantined: dict[str, str] = {}
        self._dataset = dataset
        self._batches = batches
        self._workers = num_workers
        self._timeout = timeout
        self._pin = pin
        self._excluded = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()
        self._logbook = Logbook(num_workers)
        self._reader = _DrawReader(dataset, order, frame_roles, self._excluded, self._logbook, timeout)
        self._delivered = 0
        self._inquest = Inquest()
        self._crew: Optional[WorkerCrew] = None

    def __iter__(self) -> Iterator[ClipBatch]:
        return self

    def __next__(self) -> ClipBatch:
        while True:
            try:
                if self._crew is None:
                    self._crew = self._start()
                delivery = next(self._crew)
            except WorkersDied as error:
                self._recover(error)
                continue
            self._delivered += 1
            self._inquest.batch_arrived()
            for item, reason in delivery.failures:
                self._exclude(item, reason)
            return delivery.batch

    def quarantine(self, names: Iterable[str] | dict[str, str]) -> None:
        """Excludes items by name, as a checkpoint recorded them; names that are gone are ignored.

        Call before the first batch. A mapping keeps its reasons.
        """
        reasons = names if isinstance(names, dict) else {name: "quarantined before" for name in names}
        if not reasons:
            return
        for item in range(len(self._dataset)):
            name = self._dataset.item_name(item)
            if name in reasons:
                self._excluded[item] = 1
                self.quarantined[name] = reasons[name]
        self._check_enough()

    def close(self) -> None:
        """Ends the workers."""
        if self._crew is not None:
            self._crew.stop()
            self._crew = None

    def _start(self) -> WorkerCrew:
        return WorkerCrew(
            self._reader,
            self._batches(self._delivered),
            self._workers,
            self._logbook,
            self._timeout,
            self._pin,
        )

    def _recover(self, error: WorkersDied) -> None:
        """Quarantines what the dead workers were at, and starts again at the batch that is due."""
        self.close()
        for item, reason in self._inquest.guilty(error):
            self._exclude(item, reason)

    def _exclude(self, item: int, reason: str) -> None:
        name = self._dataset.item_name(item)
        self._excluded[item] = 1
        if name not in self.quarantined:
            self.quarantined[name] = reason
            logger.warning("quarantined %s: %s; the next clip takes its place", name, reason)
            self._check_enough()

    def _check_enough(self) -> None:
        if len(self.quarantined) * 2 > len(self._dataset):
            shown = "; ".join(f"{name}: {reason}" for name, reason in list(self.quarantined.items())[:3])
            raise UserError(
                f"data: {len(self.quarantined)} of {len(self._dataset)} items of {self._dataset.name} failed "
                f"to give a clip ({shown}); check the disk, the memory and data.decode_timeout"
            )


def training_loader(
    dataset: ClipDataset,
    *,
    seed: int,
    global_batch: int,
    accumulation: int,
    first_step: int,
    frame_roles: FrameRoles,
    num_workers: int,
    timeout: float,
    device_type: str,
    repeat_draws: Optional[int] = None,
) -> ClipLoader:
    """This rank's micro batches from `first_step` on, each of global_batch / world / accumulation clips.

    `timeout` is seconds for one clip. With `repeat_draws` the clips, windows and roles of draws 0 ..
    repeat_draws - 1 come again and again; the draw numbers in the batch, which noise is a function of, run
    on. Raises UserError where the batch cannot be divided among the processes.
    """
    rank, world = distributed.rank(), distributed.world_size()

    def batches(skip: int) -> Iterator[list[int]]:
        step, part = divmod(skip, accumulation)
        draws = micro_batches(first_step + step, global_batch, accumulation, rank, world)
        for _ in range(part):
            next(draws)
        return draws

    batches(0)  # Refuses a batch that cannot be divided, before a worker starts.
    return ClipLoader(
        dataset,
        DrawOrder(seed, len(dataset), repeat_draws),
        batches,
        frame_roles,
        num_workers,
        timeout,
        pin=device_type == "cuda",
    )


def sample_clips(
    dataset: ClipDataset,
    count: int,
    *,
    seed: int,
    purpose: str,
    batch_size: int,
    num_workers: int,
    timeout: float,
) -> ClipLoader:
    """This rank's share of `count` clips as training sees them: items in its order, in random windows.

    Clip n is a function of (seed, purpose, n); no frame is given. A bad item is replaced by the
    next one of the order. Ends after the share, which is empty on some ranks where there are few clips.
    """
    mine = list(distributed.shard(count))
    groups = [mine[place : place + batch_size] for place in range(0, len(mine), batch_size)]
    workers = max(num_workers, int(dataset.may_hang))
    return ClipLoader(
        dataset,
        DrawOrder(seed, len(dataset), purpose=purpose),
        lambda skip: iter(groups[skip:]),
        all_unknown,
        min(workers, len(groups)),
        timeout,
        pin=False,
    )
