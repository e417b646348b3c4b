"""Training: one `Trainer` (the loop) that drives a `Task` (what one step means)."""

from vidpred.training.loggers import LoggingConfig, WandbConfig, build_loggers, setup_console
from vidpred.training.outcome import RunOutcome
from vidpred.training.settings import TrainingConfig
from vidpred.training.snapshots import latest_checkpoint, load_weights
from vidpred.training.task import Findings, Task, TaskLoss
from vidpred.training.trainer import Trainer

__all__ = [
    "Findings",
    "LoggingConfig",
    "RunOutcome",
    "Task",
    "TaskLoss",
    "Trainer",
    "TrainingConfig",
    "WandbConfig",
    "build_loggers",
    "latest_checkpoint",
    "load_weights",
    "setup_console",
]
