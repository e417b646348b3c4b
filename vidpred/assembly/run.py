"""A training run: its folder, its beginning or going on, its parts put together once.

    folder and checks -> task (see `prediction_parts` and `vae_parts`) -> trainer
"""

from pathlib import Path

import yaml

from vidpred import distributed, range_checks
from vidpred.assembly.identity import require_same_run
from vidpred.assembly.prediction_parts import build_task
from vidpred.assembly.vae_parts import build_vae_task
from vidpred.checkpoint_store import CheckpointStore
from vidpred.configuration import Config, RunConfig, VaeConfig
from vidpred.training import RunOutcome, Trainer, build_loggers, latest_checkpoint, setup_console

TASK_BUILDERS = {Config: build_task, VaeConfig: build_vae_task}


def train(config: RunConfig) -> RunOutcome:
    """Trains, or goes on with, the run that `config` names; every process of torchrun calls it."""
    with distributed.process_group(config.device) as device:
        setup_console()
        range_checks.reset()
        config.training.micro_batch_size(distributed.world_size())  # refused here, before any data is touched
        folder = Path(config.runs_dir) / config.name
        store = CheckpointStore(folder / "checkpoints")
        checkpoint = latest_checkpoint(store)
        if checkpoint is not None:
            require_same_run(config, checkpoint)
        else:
            _save_resolved(config, folder)
        task = TASK_BUILDERS[type(config)](config, folder, device, checkpoint)
        # With what the data told: classes, the scale of actions. A resume that is refused leaves the file as it was.
        _save_resolved(config, folder)
        resolved, step = config.resolved(), checkpoint.step if checkpoint else 0
        loggers = build_loggers(config.logging, config.wandb, folder, config.name, resolved, step)
        trainer = Trainer(
            task, config.training, store, loggers, device,
            run_folder=folder, resolved=resolved, seed=config.seed, resume_from=checkpoint,
        )
        return trainer.run()


def _save_resolved(config: RunConfig, folder: Path) -> None:
    if distributed.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config.resolved(), sort_keys=False), encoding="utf-8")
