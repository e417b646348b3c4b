"""The evaluation of a checkpoint alone: its configuration says which clips, its tensors which model."""

import dataclasses
from typing import Any, Iterator, Optional, Sequence

from vidpred.checkpoint_store import Checkpoint
from vidpred.conditioning import ConditioningConfig, TaskName, evaluation_roles, trained_tasks
from vidpred.data import DATASETS, ClipConfig, build_dataset
from vidpred.errors import UserError
from vidpred.evaluation.config import EvaluationConfig
from vidpred.evaluation.evaluator import evaluate
from vidpred.evaluation.results import Evaluation
from vidpred.prediction import predictor_from_checkpoint
from vidpred.registry import from_mapping


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    tasks: Sequence[TaskName],
    *,
    split: str = "val",
    device: str = "auto",
    changes: Optional[dict[str, Any]] = None,
    trajectories: int = 1,
    seed: Optional[int] = None,
    num_inference_steps: Optional[int] = None,
    untrained_tasks: bool = False,
) -> Iterator[Evaluation]:
    """Evaluates the averaged weights for one task after the other; every rank must call it and iterate.

    Everything that can be refused before the work is refused by the call itself.

    Args:
        split: train, val or test, of the data of the run.
        changes: of keys of the run's section `evaluation`, such as {"num_clips": 256}.
        seed: of roles and noise; the run's where None.
        trajectories, num_inference_steps: as `evaluate`'s.
        untrained_tasks: whether tasks that training never showed to the network are evaluated all the same.
    Raises:
        UserError: such a task, and whatever `evaluate`, the checkpoint and the data raise.
    """
    predictor, config = predictor_from_checkpoint(checkpoint, device), checkpoint.config
    if not untrained_tasks:
        _require_trained(tasks, from_mapping(ConditioningConfig, config["conditioning"], "conditioning"))
    changed = {**config.get("evaluation", {}), **(changes or {})}
    settings = from_mapping(EvaluationConfig, changed, "evaluation")
    data, run_seed = DATASETS.from_mapping(config["data"]), config.get("seed", 0)
    dataset = build_dataset(data, split, run_seed)
    return (
        evaluate(
            predictor,
            dataset,
            dataclasses.replace(settings, task=task),
            evaluation_roles(task, predictor.context_frames),
            seed=run_seed if seed is None else seed,
            trajectories=trajectories,
            step=checkpoint.step,
            ema=True,
            split=split,
            num_inference_steps=num_inference_steps,
            num_workers=getattr(data, "num_workers", 1),
            timeout=getattr(data, "decode_timeout", ClipConfig.decode_timeout),
        )
        for task in tasks
    )


def _require_trained(tasks: Sequence[TaskName], conditioning: ConditioningConfig) -> None:
    trained = trained_tasks(conditioning)
    for task in tasks:
        if task not in trained:
            raise UserError(
                f"--task {task}: conditioning.scheme {conditioning.scheme} never gave this network such "
                f"frames in training; choose {' or '.join(trained)}, or add --anyway"
            )
