"""The fixed clips of evaluation, in batches of one fixed shape."""

from typing import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vidpred.data.clips import ClipBatch, ClipDataset, ClipError, collate
from vidpred.data.workers import IDLE, Logbook, WorkerCrew, WorkersDied
from vidpred.errors import UserError
from vidpred.random_streams import host_generator


class _IndexReader(Dataset):
    """Indices -> ClipBatch or, of a clip that fails, the line to show; runs in the workers."""

    def __init__(
        self, dataset: ClipDataset, given_mask: Callable, seed: int, logbook: Logbook, timeout: float
    ):
        self._dataset = dataset
        self._given_mask = given_mask
        self._seed = seed
        self._logbook = logbook
        self._timeout = timeout

    def __getitem__(self, indices: list[int]) -> ClipBatch | str:
        clips = {}
        for index in dict.fromkeys(indices):  # Padding repeats an index: decode it once.
            try:
                with self._logbook.working_on(index, self._timeout):
                    clips[index] = self._dataset.clip(index, None)
            except (ClipError, OSError) as error:
                return f"{self._dataset.item_name(index)}: {error}"
        chosen = [clips[index] for index in indices]
        masks = [
            self._given_mask(host_generator(self._seed, "evaluation given", index), len(clip.frames))
            for index, clip in zip(indices, chosen)
        ]
        return collate(chosen, np.stack(masks), indices)


def evaluation_batches(
    dataset: ClipDataset,
    indices: Sequence[int],
    batch_size: int,
    given_mask: Callable[[np.random.Generator, int], np.ndarray],
    *,
    seed: int = 0,
    num_workers: int = 1,
    timeout: float = 60.0,
) -> Iterator[tuple[ClipBatch, Tensor]]:
    """Yields (batch of exactly `batch_size` clips, valid (batch_size,) bool) over this rank's `indices`.

    Each clip is its item's fixed one (first window, centre crop, no flip) and its draw number is the index.
    The last batch is filled up with its first clip, marked not valid. A file that hangs, kills or fails the
    decoder raises UserError with its name, since numbers over other clips would not be comparable.
    """
    groups = [list(indices[place : place + batch_size]) for place in range(0, len(indices), batch_size)]
    padded = [group + [group[0]] * (batch_size - len(group)) for group in groups]
    logbook = Logbook(num_workers)
    reader = _IndexReader(dataset, given_mask, seed, logbook, timeout)
    crew = WorkerCrew(reader, padded, min(num_workers, len(padded)), logbook, timeout, pin=False)
    try:
        for group in groups:
            result = _next(crew, dataset)
            if isinstance(result, str):
                raise UserError(f"evaluation: {result}; remove or repair the file")
            yield result, torch.arange(batch_size) < len(group)
    finally:
        crew.stop()


def _next(crew: WorkerCrew, dataset: ClipDataset) -> ClipBatch | str:
    try:
        return next(crew)
    except WorkersDied as error:
        for death in error.deaths:
            if death.item != IDLE:
                return f"{dataset.item_name(death.item)}: {death.reason}"
        raise RuntimeError(f"evaluation: {error}") from error
