"""Which frames are given."""

import numpy as np
import pytest

from vidpred.conditioning import ConditioningConfig, given_mask
from vidpred.errors import UserError


@pytest.mark.parametrize("context, frames, expected", [(2, 5, [1, 1, 0, 0, 0]), (1, 3, [1, 0, 0]), (3, 2, [1, 1])])
def test_prediction_gives_the_first_frames(context, frames, expected):
    mask = given_mask(ConditioningConfig(context_frames=context))(np.random.default_rng(0), frames)
    assert mask.dtype == bool and mask.tolist() == [bool(value) for value in expected]


@pytest.mark.parametrize(
    "changes, message",
    [(dict(scheme="magic"), "conditioning.scheme: 'magic' is not known; choose prediction"),
     (dict(context_frames=0), "conditioning.context_frames: 0 must be 1 or more")],
)  # fmt: skip
def test_impossible_conditioning_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        ConditioningConfig(**changes)
