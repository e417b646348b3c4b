"""The schemes: how the roles of one clip's T frames are drawn."""

import numpy as np

from vidpred.conditioning.config import TASKS, ConditioningConfig, TaskName
from vidpred.errors import require
from vidpred.frame_roles import FREE, GIVEN, HIDDEN, UNKNOWN, FrameRoles


def prediction_roles(context_frames: int) -> FrameRoles:
    """The first `context_frames` given, the rest unknown: what a model is validated and evaluated on."""
    return lambda generator, num_frames: _first_given(context_frames, num_frames)


def evaluation_roles(task: TaskName, context_frames: int) -> FrameRoles:
    """The roles that a task is evaluated on: as many given frames in every clip of one length.

    prediction: the first `context_frames` are given; interpolation: the first and the last; infilling: a
    random half (rounded down, but one at least), drawn by the clip's generator; unconditional: none.
    """
    return {
        "prediction": prediction_roles(context_frames),
        "interpolation": _ends_given,
        "infilling": _half_given,
        "unconditional": prediction_roles(0),
    }[task]


def trained_tasks(config: ConditioningConfig) -> tuple[str, ...]:
    """The tasks whose roles occur among those of training clips, in the order of TASKS."""
    schemes = [scheme for scheme, probability in config.mixture().items() if probability > 0]
    trained = {task for scheme in schemes for task in _TRAINS[scheme]}
    if config.context_frames == 0 and "random" not in schemes:
        trained = {"unconditional"}
    if "prediction" in schemes and config.min_context_frames == 0:
        trained.add("unconditional")
    return tuple(task for task in TASKS if task in trained)


def require_trained_histories(config: ConditioningConfig, key: str, hidden: bool, noised: bool) -> None:
    """UserError, which begins with `key`, where guidance asks a network that was trained like this about a history
    that it never met: `hidden`, no given frame; `noised`, given frames under noise."""
    require(
        not hidden or config.history_dropout > 0 or "unconditional" in trained_tasks(config),
        f"{key}: guidance compares with what is predicted without given frames, and conditioning.history_dropout is 0 "
        f"and conditioning.scheme {config.scheme} always gives some; train with a dropout, or leave guidance out",
    )
    require(
        not noised or config.context_noise > 0,
        f"{key}: kind fractional noises the given frames, and conditioning.context_noise is 0; train with some, "
        "or use kind vanilla",
    )


def generated_frames(config: ConditioningConfig, num_frames: int, has_images: bool) -> int:
    """Frames of the clips that a model learns to draw from nothing: `num_frames`, those of its training clips; 1 where
    only the images that it is trained on besides (`has_images`) have no given frame; 0: it never learns to."""
    if "unconditional" in trained_tasks(config):
        return num_frames
    return 1 if has_images else 0


def training_roles(config: ConditioningConfig) -> FrameRoles:
    """The configured mixture of schemes."""
    names, probabilities = zip(*config.mixture().items())

    def draw(generator: np.random.Generator, num_frames: int) -> np.ndarray:
        scheme = names[0] if len(names) == 1 else generator.choice(names, p=probabilities)
        roles = _DRAW[scheme](config, generator, num_frames)
        if config.history_dropout and generator.random() < config.history_dropout:
            roles[roles == GIVEN] = HIDDEN
        return roles

    return draw


def _prediction(config: ConditioningConfig, generator: np.random.Generator, num_frames: int) -> np.ndarray:
    return _first_given(_context_frames(config, config.min_context_frames, generator), num_frames)


def _random(config: ConditioningConfig, generator: np.random.Generator, num_frames: int) -> np.ndarray:
    """One clip in three lacks its last frames, one a run of frames wherever it is, one any frames.

    Each leaves at least one frame out, and may leave out all. Of scattered frames alone a network would hardly
    learn to predict far ahead: nearly always some given frame would be close.
    """
    lacks = generator.integers(3)
    if lacks == 0:
        unknown = np.arange(generator.integers(num_frames), num_frames)
    elif lacks == 1:
        start, end = sorted(generator.choice(num_frames + 1, size=2, replace=False))
        unknown = np.arange(start, end)
    else:
        unknown = generator.permutation(num_frames)[: generator.integers(1, num_frames + 1)]
    roles = np.full(num_frames, GIVEN, dtype=np.uint8)
    roles[unknown] = UNKNOWN
    return roles


def _unconditional(config: ConditioningConfig, generator: np.random.Generator, num_frames: int) -> np.ndarray:
    return _first_given(0, num_frames)


def _diffusion_forcing(
    config: ConditioningConfig, generator: np.random.Generator, num_frames: int
) -> np.ndarray:
    """Some clips begin with given frames, as predictions do; a network that never saw any could not use them."""
    roles = _first_given(_context_frames(config, 0, generator), num_frames)
    roles[roles == UNKNOWN] = FREE
    return roles


_DRAW = {
    "prediction": _prediction,
    "random": _random,
    "unconditional": _unconditional,
    "diffusion_forcing": _diffusion_forcing,
}


_TRAINS = {
    "prediction": ("prediction",),
    "random": TASKS,
    "unconditional": ("unconditional",),
    "diffusion_forcing": ("prediction", "unconditional"),
}


def _context_frames(config: ConditioningConfig, fewest: int | None, generator: np.random.Generator) -> int:
    if fewest is None:
        return config.context_frames
    return int(generator.integers(fewest, config.context_frames + 1))


def _first_given(context_frames: int, num_frames: int) -> np.ndarray:
    roles = np.full(num_frames, UNKNOWN, dtype=np.uint8)
    roles[:context_frames] = GIVEN
    return roles


def _ends_given(generator: np.random.Generator, num_frames: int) -> np.ndarray:
    roles = _first_given(1, num_frames)
    roles[-1] = GIVEN
    return roles


def _half_given(generator: np.random.Generator, num_frames: int) -> np.ndarray:
    roles = np.full(num_frames, UNKNOWN, dtype=np.uint8)
    roles[generator.permutation(num_frames)[: max(num_frames // 2, 1)]] = GIVEN
    return roles
