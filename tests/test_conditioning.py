"""The roles of frames: every scheme, their mixture, dropped histories."""

import numpy as np
import pytest

from vidpred.conditioning import (
    SCHEMES,
    TASKS,
    ConditioningConfig,
    evaluation_roles,
    prediction_roles,
    trained_tasks,
    training_roles,
)
from vidpred.errors import UserError
from vidpred.frame_roles import FREE, GIVEN, HIDDEN, UNKNOWN

FRAMES = 7


def many(count=2000, **changes):
    """(count, FRAMES) roles, each row by a generator of its own."""
    draw = training_roles(ConditioningConfig(**changes))
    return np.stack([draw(np.random.default_rng(seed), FRAMES) for seed in range(count)])


@pytest.mark.parametrize("context, frames, expected", [(2, 5, [1, 1, 0, 0, 0]), (1, 3, [1, 0, 0]), (3, 2, [1, 1])])
def test_prediction_gives_the_first_frames(context, frames, expected):
    for roles in (prediction_roles(context), training_roles(ConditioningConfig(context_frames=context))):
        drawn = roles(np.random.default_rng(0), frames)
        assert drawn.dtype == np.uint8 and drawn.tolist() == [GIVEN if value else UNKNOWN for value in expected]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_equal_generators_give_equal_roles(scheme):
    assert np.array_equal(many(50, scheme=scheme), many(50, scheme=scheme))


def test_the_number_of_given_frames_varies_evenly():
    given = (many(context_frames=4, min_context_frames=2) == GIVEN).sum(axis=1)
    counts = np.bincount(given, minlength=5)
    assert not counts[:2].any() and (np.abs(counts[2:] - 2000 / 3) < 80).all()


def test_random_gives_any_frames_and_always_asks_for_one():
    roles = many(scheme="random")
    assert set(np.unique(roles)) == {UNKNOWN, GIVEN}
    unknown = roles == UNKNOWN
    assert unknown.any(axis=1).all() and (unknown.mean(axis=0) > 0.3).all()
    runs = (np.diff(unknown.astype(int), axis=1) == 1).sum(axis=1) + unknown[:, 0]
    first_given = unknown[:, -1] & ~unknown[:, 0] & (runs == 1)  # prediction
    inside = ~unknown[:, 0] & ~unknown[:, -1] & (runs == 1)  # interpolation
    assert first_given.mean() > 0.3 and inside.mean() > 0.15 and (runs > 1).mean() > 0.15
    assert unknown.all(axis=1).mean() > 0.03  # and now and then nothing is given


def test_diffusion_forcing_frees_all_but_a_few_first_frames():
    roles = many(scheme="diffusion_forcing", context_frames=3)
    given = (roles == GIVEN).sum(axis=1)
    assert (np.bincount(given) > 400).all() and len(np.bincount(given)) == 4
    assert all((row[:k] == GIVEN).all() and (row[k:] == FREE).all() for row, k in zip(roles, given))


def test_a_mixture_has_its_probabilities():
    roles = many(scheme={"prediction": 0.25, "unconditional": 0.75}, context_frames=3)
    assert {tuple(row) for row in roles} == {(1, 1, 1, 0, 0, 0, 0), (0,) * 7}
    assert abs((roles[:, 0] == GIVEN).mean() - 0.25) < 0.03


def test_a_dropped_history_is_hidden_as_a_whole():
    roles = many(context_frames=3, history_dropout=0.1)
    hidden = roles == HIDDEN
    assert {tuple(row) for row in hidden} == {(True,) * 3 + (False,) * 4, (False,) * 7}
    assert abs(hidden[:, 0].mean() - 0.1) < 0.02 and (roles[:, 3:] == UNKNOWN).all()


@pytest.mark.parametrize(
    "task, frames, expected",
    [("prediction", 5, [1, 1, 0, 0, 0]), ("interpolation", 5, [1, 0, 0, 0, 1]),
     ("interpolation", 3, [1, 0, 1]), ("unconditional", 5, [0, 0, 0, 0, 0])],
)  # fmt: skip
def test_tasks_give_the_first_frames_both_ends_or_none(task, frames, expected):
    drawn = evaluation_roles(task, 2)(np.random.default_rng(0), frames)
    assert drawn.dtype == np.uint8 and drawn.tolist() == [GIVEN if value else UNKNOWN for value in expected]


@pytest.mark.parametrize("frames, given", [(2, 1), (3, 1), (4, 2), (7, 3), (16, 8)])
def test_infilling_gives_any_half_as_many_in_every_clip(frames, given):
    roles = evaluation_roles("infilling", 2)
    drawn = np.stack([roles(np.random.default_rng(seed), frames) for seed in range(400)]) == GIVEN
    assert (drawn.sum(axis=1) == given).all() and (np.abs(drawn.mean(axis=0) - given / frames) < 0.1).all()
    again = np.stack([roles(np.random.default_rng(seed), frames) for seed in range(400)]) == GIVEN
    assert np.array_equal(drawn, again)


@pytest.mark.parametrize(
    "changes, trained",
    [(dict(scheme="prediction"), TASKS[:1]), (dict(scheme="random"), TASKS),
     (dict(scheme="unconditional"), TASKS[3:]), (dict(scheme="diffusion_forcing"), (TASKS[0], TASKS[3])),
     (dict(scheme="prediction", min_context_frames=0), (TASKS[0], TASKS[3])),
     (dict(scheme={"prediction": 0.5, "unconditional": 0.5}), (TASKS[0], TASKS[3])),
     (dict(scheme={"prediction": 1.0, "random": 0.0}), TASKS[:1]),
     (dict(scheme="prediction", history_dropout=0.5), TASKS[:1])],  # what is hidden is not asked for
)  # fmt: skip
def test_a_task_is_trained_where_its_roles_are_drawn(changes, trained):
    config = ConditioningConfig(context_frames=3, **changes)
    assert trained_tasks(config) == trained
    seen = {tuple(np.where(row == FREE, UNKNOWN, row)) for row in many(context_frames=3, **changes)}
    for task in TASKS:
        wanted = {tuple(evaluation_roles(task, 3)(np.random.default_rng(seed), FRAMES)) for seed in range(50)}
        # More than one of many: the mask of prediction is one of those of infilling.
        assert (len(seen & wanted) > len(wanted) / 2) == (task in trained), task


@pytest.mark.parametrize(
    "changes, message",
    [(dict(scheme="magic"), "conditioning.scheme: 'magic' is not known; choose prediction, random"),
     (dict(scheme={"prediction": 0.5, "magic": 0.5}), "conditioning.scheme: 'magic' is not known"),
     (dict(scheme={"prediction": 0.5, "random": 0.4}), "must be 0 or more and add up to 1"),
     (dict(scheme={"prediction": 1.5, "random": -0.5}), "must be 0 or more and add up to 1"),
     (dict(scheme={}), "must be 0 or more and add up to 1"),
     (dict(context_frames=-1), "conditioning.context_frames: -1 must be 0 \\(none is given\\) or more"),
     (dict(min_context_frames=5), "conditioning.min_context_frames: 5 must be from 0 to context_frames"),
     (dict(history_dropout=1.5), "conditioning.history_dropout: 1.5 must be in"),
     (dict(context_noise=-0.1), "conditioning.context_noise: -0.1 must be in")],
)  # fmt: skip
def test_impossible_conditioning_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        ConditioningConfig(**changes)


@pytest.mark.parametrize("scheme", ["prediction", "unconditional", "diffusion_forcing"])
@pytest.mark.parametrize("frames", [1, 3])
def test_without_given_frames_everything_is_generated(scheme, frames):
    config = ConditioningConfig(scheme=scheme, context_frames=0)
    roles = training_roles(config)(np.random.default_rng(0), frames)
    assert set(roles) == {FREE if scheme == "diffusion_forcing" else UNKNOWN} and len(roles) == frames
    assert trained_tasks(config) == ("unconditional",)
    assert trained_tasks(ConditioningConfig(scheme="random", context_frames=0)) == TASKS
