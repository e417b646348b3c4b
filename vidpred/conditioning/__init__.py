"""What a prediction is conditioned on: the roles of a clip's frames. Mixing schemes makes one network for all."""

from vidpred.conditioning.config import SCHEMES, TASKS, ConditioningConfig, TaskName
from vidpred.conditioning.schemes import evaluation_roles, prediction_roles, trained_tasks, training_roles

__all__ = [
    "SCHEMES",
    "TASKS",
    "ConditioningConfig",
    "TaskName",
    "evaluation_roles",
    "prediction_roles",
    "trained_tasks",
    "training_roles",
]
