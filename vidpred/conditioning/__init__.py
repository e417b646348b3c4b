"""What a prediction is conditioned on: which frames are given."""

from dataclasses import dataclass
from typing import Callable, Literal

import numpy as np

from vidpred.errors import UserError

GivenMask = Callable[[np.random.Generator, int], np.ndarray]


@dataclass
class ConditioningConfig:
    """Which frames of a clip are given and which are predicted."""

    scheme: Literal["prediction"] = "prediction"
    """prediction: the first `context_frames` frames are given, the rest is predicted."""
    context_frames: int = 4
    """Number of given frames."""

    def __post_init__(self):
        if self.scheme != "prediction":
            raise UserError(f"conditioning.scheme: '{self.scheme}' is not known; choose prediction")
        if self.context_frames < 1:
            raise UserError(f"conditioning.context_frames: {self.context_frames} must be 1 or more")


def given_mask(config: ConditioningConfig) -> GivenMask:
    """A function (generator, T) -> bool (T,): the mask of one clip, drawn by that clip's own generator."""

    def prediction(generator: np.random.Generator, num_frames: int) -> np.ndarray:
        return np.arange(num_frames) < config.context_frames

    return prediction
