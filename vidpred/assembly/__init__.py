"""From a configuration to a training run, or to the model that a tool examines: parts are built and put together."""

from vidpred.assembly.prediction_parts import build_predictor, build_task, calibrate
from vidpred.assembly.run import train
from vidpred.assembly.subject import open_subject

__all__ = ["build_predictor", "build_task", "calibrate", "open_subject", "train"]
