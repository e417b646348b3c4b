"""The order of training clips: pure functions of the seed and the running draw number.

Step s of a global batch of G clips holds the draws s G .. s G + G - 1; rank r of W takes the contiguous chunk
[r G/W, (r+1) G/W), cut into micro batches. Draw n of N items takes item permutation(seed, n div N)[n mod N].
None of it depends on ranks or workers, so 1 process x 8 and 2 x 4 see the same clips, and a resumed run
continues exactly.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Iterator, Optional

import numpy as np

from vidpred.errors import UserError
from vidpred.random_streams import host_generator


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, items: int) -> np.ndarray:
    """(items,) int64: the order of one epoch."""
    return host_generator(seed, "item order", epoch).permutation(items)


@dataclass(frozen=True)
class DrawOrder:
    seed: int
    items: int
    repeat: Optional[int] = None
    """Draws n and n + repeat show the same clip (to overfit one batch); not set: an endless run of epochs."""
    purpose: str = "clip"
    """Of the generator that decides window, crop and flip."""

    def content(self, draw: int) -> int:
        """The draw number that decides which clip is shown, its window and the roles of its frames."""
        return draw % self.repeat if self.repeat else draw

    def candidates(self, draw: int) -> Iterator[int]:
        """The item of a draw, then the next in the order, which take its place where it cannot be used."""
        content = self.content(draw)
        order = permutation(self.seed, content // self.items, self.items)
        for skipped in range(self.items):
            yield int(order[(content + skipped) % self.items])


def micro_batches(
    first_step: int, global_batch: int, accumulation: int, rank: int, world: int
) -> Iterator[list[int]]:
    """This rank's draw numbers, micro batch by micro batch, for ever.

    Raises UserError where the global batch cannot be divided.
    """
    parts = world * accumulation
    if global_batch < 1 or global_batch % parts:
        raise UserError(
            f"training.batch_size: {global_batch} clips cannot be divided among {world} processes "
            f"x {accumulation} accumulation steps; choose a multiple of {parts}"
        )
    return _micro_batches(first_step, global_batch, global_batch // parts, accumulation, rank)


def _micro_batches(
    first_step: int, global_batch: int, size: int, accumulation: int, rank: int
) -> Iterator[list[int]]:
    step = first_step
    while True:
        begin = step * global_batch + rank * size * accumulation
        for part in range(accumulation):
            yield list(range(begin + part * size, begin + (part + 1) * size))
        step += 1
