"""What a prediction is conditioned on: the roles of a clip's frames. Mixing schemes makes one network for all."""

from vidpred.conditioning.config import SCHEMES, ConditioningConfig
from vidpred.conditioning.schemes import prediction_roles, training_roles

__all__ = ["SCHEMES", "ConditioningConfig", "prediction_roles", "training_roles"]
