"""Prediction: a trained denoiser, its autoencoder and their calibration, from given frames to new ones."""

from vidpred.prediction.calibration import LatentCalibration, measure_calibration
from vidpred.prediction.frames import NotFiniteError
from vidpred.prediction.loading import load_predictor, predictor_from_checkpoint
from vidpred.prediction.predictor import Predictor
from vidpred.prediction.range_lines import ClipCount, clip_advice
from vidpred.prediction.rollout import RolloutOptions

__all__ = [
    "ClipCount",
    "LatentCalibration",
    "NotFiniteError",
    "Predictor",
    "RolloutOptions",
    "clip_advice",
    "load_predictor",
    "measure_calibration",
    "predictor_from_checkpoint",
]
