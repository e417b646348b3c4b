"""How good the prediction is: against the truth, two floors and a ceiling, with the protocol beside it.

Rows: model; floor (copy of the last given frame); decoded_floor (that copy as the autoencoder shows it); linear (extrapolation of the last two given frames);
ceiling (the truth through the autoencoder). Horizon h = 1 .. H counts predicted frames.
"""

from vidpred.evaluation.baselines import copy_last, extrapolate
from vidpred.evaluation.config import EvaluationConfig
from vidpred.evaluation.evaluator import evaluate
from vidpred.evaluation.records import ROWS, ClipSample, ClipScores
from vidpred.evaluation.results import Evaluation
from vidpred.evaluation.statistics import Summary, student_t, summarize

__all__ = [
    "ClipSample",
    "ClipScores",
    "Evaluation",
    "EvaluationConfig",
    "ROWS",
    "Summary",
    "copy_last",
    "evaluate",
    "extrapolate",
    "student_t",
    "summarize",
]
