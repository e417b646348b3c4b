"""The evaluation of a checkpoint alone: its configuration says which clips, its tensors which model."""

from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Sequence

from vidpred.checkpoint_store import Checkpoint, CheckpointStore, find_checkpoint, newest_run, read_checkpoint
from vidpred.conditioning import ConditioningConfig, TaskName, evaluation_roles, trained_tasks
from vidpred.data import DATASETS, ClipConfig, build_dataset
from vidpred.errors import UserError
from vidpred.evaluation.config import EvaluationConfig
from vidpred.evaluation.evaluator import evaluate
from vidpred.evaluation.results import Evaluation
from vidpred.prediction import predictor_from_checkpoint
from vidpred.registry import from_mapping


def choose_checkpoint(given: Optional[Path], best: bool = False) -> tuple[Checkpoint, str]:
    """The checkpoint to evaluate, without its training state, and how it was chosen.

    `given` is a checkpoint or a run, whose newest is taken; None: the newest run under runs/. `best`: of that
    run the checkpoint with the lowest validation loss, which its training has kept; test clips never choose
    one. UserError where there is none.
    """
    run = given or newest_run("runs")
    if run is None:
        raise UserError(
            f"--checkpoint: no run under {Path('runs').absolute()}, and an untrained model is not evaluated; "
            "train one with train_video_pred.py, or give a run folder"
        )
    path = find_checkpoint(run)
    whose = "of the newest run" if given is None else "of the given run"
    if not best:
        chosen = "given" if given is not None and path == Path(given) else f"the newest {whose}"
        return read_checkpoint(path, with_state=False), chosen
    newest = read_checkpoint(path, with_state=False)
    record = newest.info.get("best")
    if record is None:
        raise UserError(f"--best: {newest.path} knows of no validation; leave --best out")
    store = CheckpointStore(newest.path.parent)
    chosen = f"the best {whose} by {record['metric']} ({record['value']:.6g}) on the validation split"
    return read_checkpoint(store.path(record["step"]), with_state=False), chosen


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
    chosen: str = "given",
    results: Optional[Sequence[Path]] = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Iterator[Evaluation]:
    """Evaluates the averaged weights for one task after the other; every rank must call it and iterate.

    Everything that can be refused before the work is refused by the call itself.

    Args:
        split: train, val or test, of the data of the run.
        changes: of keys of the run's section `evaluation`, such as {"num_clips": 256}.
        seed: of roles and noise; the run's where None.
        trajectories, num_inference_steps: as `evaluate`'s.
        untrained_tasks: whether tasks that training never showed to the network are evaluated all the same.
        chosen: how the checkpoint was; for the record.
        results: the files that the tasks' results will be saved to, where an interrupted evaluation goes on.
        stop_requested: as `evaluate`'s.
    Raises:
        UserError: such a task, and whatever `evaluate`, the checkpoint and the data raise.
    """
    predictor, config = predictor_from_checkpoint(checkpoint, device), checkpoint.config
    if not untrained_tasks:
        _require_trained(tasks, from_mapping(ConditioningConfig, config["conditioning"], "conditioning"))
    run_seed = config.get("seed", 0)
    settings = {task: _settings(config, changes or {}, task) for task in tasks}
    data = DATASETS.from_mapping(config["data"])
    # Scanned once for all tasks whose clips are of one length.
    lengths = {own.num_frames: own for own in settings.values()}
    datasets = {n: build_dataset(own.clip_config(data), split, run_seed) for n, own in lengths.items()}
    return (
        evaluate(
            predictor,
            datasets[settings[task].num_frames],
            settings[task],
            evaluation_roles(task, predictor.context_frames),
            seed=run_seed if seed is None else seed,
            trajectories=trajectories,
            step=checkpoint.step,
            ema=True,
            split=split,
            checkpoint=str(checkpoint.path),
            chosen=chosen,
            num_inference_steps=num_inference_steps,
            num_workers=getattr(data, "num_workers", 1),
            timeout=getattr(data, "decode_timeout", ClipConfig.decode_timeout),
            result=result,
            stop_requested=stop_requested,
        )
        for task, result in zip(tasks, results or [None] * len(tasks))
    )


def _settings(config: dict[str, Any], changes: dict[str, Any], task: TaskName) -> EvaluationConfig:
    """The run's settings with the changes, for one task."""
    own = dict(config.get("evaluation", {}))
    if task != "prediction":
        own.pop("num_frames", None)  # of prediction alone, and the run's task may have been that
    return from_mapping(EvaluationConfig, {**own, **changes, "task": task}, "evaluation")


def _require_trained(tasks: Sequence[TaskName], conditioning: ConditioningConfig) -> None:
    trained = trained_tasks(conditioning)
    for task in tasks:
        if task not in trained:
            raise UserError(
                f"--task {task}: conditioning.scheme {conditioning.scheme} never gave this network such "
                f"frames in training; choose {' or '.join(trained)}, or add --anyway"
            )
