"""How good the prediction is: against the truth, two floors and a ceiling, with the protocol beside it.

Any frames may be given: the first few (prediction), others (interpolation, infilling) or none (generation).
Rows: model; best_of_n (of several trajectories one, by all metrics); floor (copy of the nearest given frame,
which for prediction is the last); decoded_floor (that copy as the autoencoder shows it); context_mean (mean
of the given frames); linear (the line through two of them); ceiling (the truth through the autoencoder).
Horizon h = 1 .. H counts predicted frames.

`protocol` is what two results must have in common to compare, `provenance` whose weights they are of, on what
machine and by which code; `comparison` puts two results side by side; `unfinished` keeps what is scored so
far.
"""

from vidpred.evaluation.baselines import copy_nearest, linear, mean_of_given
from vidpred.evaluation.comparison import Comparison, compare
from vidpred.evaluation.config import EvaluationConfig, FiguresConfig
from vidpred.evaluation.evaluator import BadClipsError, EvaluationStopped, evaluate
from vidpred.evaluation.films import Retake, retake_of_checkpoint
from vidpred.evaluation.of_checkpoint import choose_checkpoint, evaluate_checkpoint
from vidpred.evaluation.pictures import save_pictures
from vidpred.evaluation.records import ClipSample, ClipScores, row_titles
from vidpred.evaluation.report import LevelErrors, write_report
from vidpred.evaluation.results import Evaluation
from vidpred.evaluation.statistics import Summary, student_t, summarize
from vidpred.evaluation.unfinished import forget_unfinished

__all__ = [
    "BadClipsError",
    "ClipSample",
    "ClipScores",
    "Comparison",
    "Evaluation",
    "EvaluationConfig",
    "EvaluationStopped",
    "FiguresConfig",
    "LevelErrors",
    "Retake",
    "Summary",
    "choose_checkpoint",
    "compare",
    "copy_nearest",
    "evaluate",
    "evaluate_checkpoint",
    "forget_unfinished",
    "linear",
    "mean_of_given",
    "retake_of_checkpoint",
    "row_titles",
    "save_pictures",
    "student_t",
    "summarize",
    "write_report",
]
