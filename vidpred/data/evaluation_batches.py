"""The fixed clips of validation and evaluation: which ones, and their batches of one fixed shape.

Of a data set of N items, clip number n is window n div N of item n mod N. The windows of an item have no
frame in common, so that clips are as independent as the data set allows.
"""

import logging
import re
from dataclasses import dataclass
from typing import Callable, Iterator, Mapping, Optional, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vidpred.data.clips import Clip, ClipBatch, ClipDataset, ClipError, collate
from vidpred.data.workers import Inquest, Logbook, WorkerCrew, WorkersDied
from vidpred.errors import UserError
from vidpred.frame_roles import FrameRoles
from vidpred.random_streams import host_generator

logger = logging.getLogger(__name__)


def evenly_spaced_clips(dataset: ClipDataset, wanted: int) -> list[int]:
    """The numbers of `wanted` clips that are spread evenly over the data set, or of all where it has fewer.

    No more clips than items: evenly spaced items, the middle window of each. More: of every item several
    windows, spread evenly over it, as equally many as the items' lengths allow. Any first few of the numbers
    are of different items.
    """
    items = len(dataset)
    if wanted <= items:
        chosen = [i * items // wanted for i in range(wanted)]
        shares = {item: (dataset.num_windows(item), 1) for item in chosen}
    else:
        shares = _equal_shares([dataset.num_windows(item) for item in range(items)], wanted)
    rounds = max((share for _, share in shares.values()), default=0)
    return [
        (2 * turn + 1) * windows // (2 * share) * items + item
        for turn in range(rounds)
        for item, (windows, share) in shares.items()
        if turn < share
    ]


def _equal_shares(windows: list[int], wanted: int) -> dict[int, tuple[int, int]]:
    """item -> (its windows, how many of them are taken); what a short item lacks, longer ones give."""
    shares, left = {}, wanted
    ascending = sorted(range(len(windows)), key=lambda item: windows[item])
    for place, item in enumerate(ascending):
        shares[item] = (windows[item], min(windows[item], left // (len(windows) - place)))
        left -= shares[item][1]
    return dict(sorted(shares.items()))


def require_half(kept: int, dropped: Mapping[int, str], dataset: ClipDataset) -> None:
    """Raises UserError where fewer than half of the fixed clips could be read; over all ranks."""
    if kept < len(dropped):
        shown = "; ".join(dropped[number] for number in sorted(dropped)[:3])
        raise UserError(
            f"data: {len(dropped)} of {kept + len(dropped)} fixed clips of {dataset.name} cannot be read "
            f"({shown}); remove or repair the files, or raise data.decode_timeout"
        )


@dataclass
class _Reading:
    """What became of a group of numbers: `batch` has the `count` clips that could be read, and padding."""

    batch: Optional[ClipBatch]
    count: int
    failures: list[tuple[int, str]]


class _NumberReader(Dataset):
    """Numbers of clips -> _Reading; runs in the workers."""

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int,
        frame_roles: FrameRoles,
        seed: int,
        logbook: Logbook,
        timeout: float,
    ):
        self.excluded: set[int] = set()  # known to workers that start later
        self._dataset = dataset
        self._batch_size = batch_size
        self._frame_roles = frame_roles
        self._seed = seed
        self._logbook = logbook
        self._timeout = timeout

    def __getitem__(self, numbers: list[int]) -> _Reading:
        clips, failures = {}, []
        for number in numbers:
            if number in self.excluded:
                continue
            try:
                with self._logbook.working_on(number, self._timeout):
                    clips[number] = self._read(number)
            except (ClipError, OSError) as error:
                failures.append((number, str(error)))
        if not clips:
            return _Reading(None, 0, failures)
        rows = [*clips, *[next(iter(clips))] * (self._batch_size - len(clips))]
        roles = [self._roles(number, clips[number]) for number in rows]
        batch = collate([clips[number] for number in rows], np.stack(roles), rows)
        return _Reading(batch, len(clips), failures)

    def _read(self, number: int) -> Clip:
        window, item = divmod(number, len(self._dataset))
        clip = self._dataset.fixed_clip(item, window)
        clip.name = clip_name(self._dataset, number)
        return clip

    def _roles(self, number: int, clip: Clip) -> np.ndarray:
        return self._frame_roles(host_generator(self._seed, "evaluation given", number), len(clip.frames))


def clip_name(dataset: ClipDataset, number: int) -> str:
    """The item's name, and which of its windows where it has several."""
    window, item = divmod(number, len(dataset))
    windows = dataset.num_windows(item)
    name = dataset.item_name(item)
    return name if windows == 1 else f"{name} (window {window + 1} of {windows})"


def clip_numbers(dataset: ClipDataset, names: Sequence[str]) -> list[int]:
    """Of the clips of these `clip_name`s, as many of them as there are: numbers change with the files, names do not."""
    places = {dataset.item_name(item): item for item in range(len(dataset))}
    numbers = []
    for name in names:
        parts = re.fullmatch(r"(.*) \(window (\d+) of \d+\)", name)
        item, window = (parts[1], int(parts[2]) - 1) if parts else (name, 0)
        number = window * len(dataset) + places[item] if item in places else -1
        if number >= 0 and window < dataset.num_windows(places[item]) and clip_name(dataset, number) == name:
            numbers.append(number)
    return numbers


class EvaluationBatches:
    """Iterates once over (ClipBatch, valid); made by `evaluation_batches`.

    A clip whose decoder hangs, dies or fails is left out: logged in one line, and recorded in `dropped`
    (number -> "name: reason"), which is complete at the end. Whether a clip is dropped does not depend on the
    others, so neither on batches nor on ranks.
    """

    def __init__(self, reader: _NumberReader, groups: list[list[int]], start: Callable, name: Callable):
        """`start(groups)` starts workers for the remaining groups; `name(number)` names a clip."""
        self.dropped: dict[int, str] = {}
        self._reader = reader
        self._groups = groups
        self._start = start
        self._name = name

    def __iter__(self) -> Iterator[tuple[ClipBatch, Tensor]]:
        inquest, done, crew = Inquest(), 0, None
        try:
            while done < len(self._groups):
                crew = crew or self._start(self._groups[done:])
                try:
                    reading = next(crew)
                except WorkersDied as error:
                    crew.stop()
                    crew = None
                    for number, reason in inquest.guilty(error):
                        self._drop(number, reason)
                    continue
                done += 1
                inquest.batch_arrived()
                for number, reason in reading.failures:
                    self._drop(number, reason)
                if reading.batch is not None:
                    yield reading.batch, torch.arange(len(reading.batch)) < reading.count
        finally:
            if crew is not None:
                crew.stop()

    def _drop(self, number: int, reason: str) -> None:
        self._reader.excluded.add(number)
        self.dropped[number] = f"{self._name(number)}: {reason}"
        logger.warning("cannot read %s", self.dropped[number])


def evaluation_batches(
    dataset: ClipDataset,
    numbers: Sequence[int],
    batch_size: int,
    frame_roles: FrameRoles,
    *,
    seed: int = 0,
    num_workers: int = 1,
    timeout: float = 60.0,
) -> EvaluationBatches:
    """Iterates over (batch of exactly `batch_size` clips, valid (batch_size,) bool) of this rank's `numbers`.

    Clips are fixed (centre crop, no flip; see `evenly_spaced_clips` for their numbers), and a clip's draw
    number is its number. Valid clips come first; the rest of a batch is filled up with its first clip. Clips
    that cannot be read are left out, see `EvaluationBatches`: gather `dropped` from all ranks at the end, and
    call `require_half`. `timeout` is seconds for one clip.
    """
    groups = [list(numbers[place : place + batch_size]) for place in range(0, len(numbers), batch_size)]
    workers = max(num_workers, int(dataset.may_hang))
    logbook = Logbook(workers)
    reader = _NumberReader(dataset, batch_size, frame_roles, seed, logbook, timeout)

    def start(remaining: list[list[int]]) -> WorkerCrew:
        return WorkerCrew(reader, remaining, min(workers, len(remaining)), logbook, timeout, pin=False)

    return EvaluationBatches(reader, groups, start, lambda number: clip_name(dataset, number))
