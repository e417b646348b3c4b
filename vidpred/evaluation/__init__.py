"""How good the prediction is: against the truth, two floors and a ceiling, with the protocol beside it.

Any frames may be given: the first few (prediction), others (interpolation, infilling) or none (generation).
Rows: model; best_of_n (of several trajectories one, by all metrics); floor (copy of the nearest given frame,
which for prediction is the last); decoded_floor (that copy as the autoencoder shows it); context_mean (mean
of the given frames); linear (the line through two of them); ceiling (the truth through the autoencoder).
Horizon h = 1 .. H counts predicted frames.
"""

from vidpred.evaluation.baselines import copy_nearest, linear, mean_of_given
from vidpred.evaluation.config import EvaluationConfig
from vidpred.evaluation.evaluator import evaluate
from vidpred.evaluation.of_checkpoint import evaluate_checkpoint
from vidpred.evaluation.pictures import save_pictures
from vidpred.evaluation.records import ClipSample, ClipScores, row_titles
from vidpred.evaluation.results import Evaluation
from vidpred.evaluation.statistics import Summary, student_t, summarize

__all__ = [
    "ClipSample",
    "ClipScores",
    "Evaluation",
    "EvaluationConfig",
    "Summary",
    "copy_nearest",
    "evaluate",
    "evaluate_checkpoint",
    "linear",
    "mean_of_given",
    "row_titles",
    "save_pictures",
    "student_t",
    "summarize",
]
