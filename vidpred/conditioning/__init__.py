"""What a prediction is conditioned on: the roles of a clip's frames, and classes, texts and actions.

Mixing schemes makes one network for all roles; embedders, trained with the network, bring the rest to it.
"""

from vidpred.conditioning.condition_config import KINDS, ConditionConfig, TextConfig
from vidpred.conditioning.conditioner import Conditioner
from vidpred.conditioning.config import SCHEMES, TASKS, ConditioningConfig, TaskName
from vidpred.conditioning.embedders import EMBEDDERS, ConditionedNetwork, condition_shape
from vidpred.conditioning.schemes import (
    evaluation_roles,
    generated_frames,
    prediction_roles,
    require_trained_histories,
    trained_tasks,
    training_roles,
)
from vidpred.conditioning.text import TEXT_ENCODERS, TextEncoder

__all__ = [
    "EMBEDDERS",
    "KINDS",
    "SCHEMES",
    "TASKS",
    "TEXT_ENCODERS",
    "ConditionConfig",
    "ConditionedNetwork",
    "Conditioner",
    "ConditioningConfig",
    "TaskName",
    "TextConfig",
    "TextEncoder",
    "condition_shape",
    "evaluation_roles",
    "prediction_roles",
    "generated_frames",
    "require_trained_histories",
    "trained_tasks",
    "training_roles",
]
