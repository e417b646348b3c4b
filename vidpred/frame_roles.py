"""What each frame of a clip is to the model: one code per frame, which covers every kind of conditioning.

    UNKNOWN   to be predicted; all unknown frames of a clip share one noise level
    FREE      to be predicted, at a noise level of its own (diffusion forcing, arXiv:2407.01392)
    GIVEN     known to the network, clean or slightly noised
    HIDDEN    there, but pure noise that the network is not asked about: a history that was dropped, which is
              what guidance compares with

The loss is on UNKNOWN and FREE frames.
"""

from typing import Callable

import numpy as np
from torch import Tensor

UNKNOWN, GIVEN, HIDDEN, FREE = range(4)

FrameRoles = Callable[[np.random.Generator, int], np.ndarray]
"""(generator, T) -> (T,) uint8: the roles in one clip, drawn by that clip's own generator."""


def all_unknown(generator: np.random.Generator, frames: int) -> np.ndarray:
    """The roles of a clip of which nothing is given."""
    return np.full(frames, UNKNOWN, dtype=np.uint8)


def is_scored(roles: Tensor) -> Tensor:
    """Roles of any shape -> bool: the frames whose prediction the loss is about."""
    return (roles == UNKNOWN) | (roles == FREE)
