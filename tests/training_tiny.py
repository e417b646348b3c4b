"""A task small enough to check by hand, and a command that trains it: `training_tiny.py FOLDER ...`."""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

from vidpred import distributed, random_streams
from vidpred.checkpoint_store import CheckpointStore
from vidpred.training.averages import Averages
from vidpred.training.loggers import LoggingConfig, WandbConfig, build_loggers, setup_console
from vidpred.training.outcome import RunOutcome
from vidpred.training.settings import TrainingConfig
from vidpred.training.snapshots import latest_checkpoint
from vidpred.training.task import Findings, TaskLoss
from vidpred.training.trainer import Trainer


class TinyBatch:
    def __init__(self, x, y, draws):
        self.x, self.y, self.draws = x, y, draws

    def to(self, device, non_blocking=False):
        return TinyBatch(self.x.to(device), self.y.to(device), self.draws.to(device))


class TinyTask:
    """Linear regression y = A x with dropout, on draws that are numbered as the real loader numbers them.

    `poison` are the running numbers of steps (0-based) at which rank 0 alone meets a NaN.
    """

    def __init__(self, batch_size=8, accumulation=1, poison=(), pause=0.0, dropout=0.0, device="cpu"):
        torch.manual_seed(distributed.rank())  # DDP must bring rank 0's weights to all ranks
        layers = [nn.Linear(6, 16), nn.SiLU(), nn.Dropout(dropout), nn.Linear(16, 3)]
        self.network = nn.Sequential(*layers).to(device)
        self.discriminator = None
        self._batch_size, self._accumulation = batch_size, accumulation
        self._poison, self._pause = set(poison), pause
        self.seen: list[int] = []
        self.evaluated: list[int] = []
        self.pictured: list[int] = []
        self.exported: list[int] = []
        self.loaded_state = None

    def batches(self, first_step):
        local = self._batch_size // distributed.world_size() // self._accumulation
        step = first_step
        while True:
            for round_ in range(self._accumulation):
                start = (distributed.rank() * self._accumulation + round_) * local
                draws = step * self._batch_size + start + torch.arange(local)
                self.seen += draws.tolist()
                yield self._batch(draws)
            step += 1

    def _batch(self, draws):
        x = random_streams.normal(0, "x", draws, (6,))
        mixing = random_streams.normal(0, "mixing", torch.arange(6), (3,))
        return TinyBatch(x, x @ mixing, draws)

    def loss(self, network, batch, step):
        time.sleep(self._pause)
        per_sample = (network(batch.x) - batch.y).square().mean(1)
        loss = per_sample.mean()
        if step in self._poison and distributed.rank() == 0:
            loss = loss * torch.nan
        sums = torch.stack([per_sample[batch.x[:, 0] > 0].sum(), per_sample.sum()])
        weights = torch.tensor([float((batch.x[:, 0] > 0).sum()), len(per_sample)])
        return TaskLoss(loss, Averages(("train/loss_right", "train/loss_all"), sums, weights))

    @torch.no_grad()
    def validate(self, network):
        batch = self._batch(torch.arange(10**6, 10**6 + 16))
        return {"loss": float((network(batch.x) - batch.y).square().mean())}

    def visualize(self, network, step, progress):
        self.pictured.append(step)
        return Findings({"sampling/progress": progress})

    def evaluate(self, network, step):
        self.evaluated.append(step)
        return Findings({"eval/psnr": 1.0})

    def is_evaluated(self, step):
        return step in self.evaluated

    def export(self, network):
        self.exported.append(len(self.seen))

    def tensors(self):
        return {"calibration": {"shift": torch.ones(2)}}

    def record(self, averaged):
        return None

    def measures(self):
        return {}

    def state(self):
        return {"quarantined": {"bad.mp4": "hung"}}

    def load_state(self, state):
        self.loaded_state = state


def train_tiny(folder: Path, config: TrainingConfig, task: TinyTask = None) -> tuple[Trainer, RunOutcome]:
    """One run of the trainer in `folder`, resuming what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    task = task or TinyTask(config.batch_size, config.accumulation)
    store = CheckpointStore(folder / "checkpoints")
    checkpoint = latest_checkpoint(store)
    loggers = build_loggers(
        LoggingConfig(), WandbConfig(), folder, "tiny", {}, checkpoint.step if checkpoint else 0
    )
    trainer = Trainer(
        task,
        config,
        store,
        loggers,
        torch.device("cpu"),
        run_folder=folder,
        resolved={"seed": 0},
        seed=0,
        resume_from=checkpoint,
    )
    return trainer, trainer.run()


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tiny_settings(num_steps: int, accumulation: int) -> TrainingConfig:
    return TrainingConfig(
        num_steps=num_steps,
        batch_size=8,
        accumulation=accumulation,
        learning_rate=1e-2,
        warmup_steps=3,
        log_every_step=1,
        validate_every_step=5,
        checkpoint_every_step=10,
        visualize_every_step=0,
        evaluate_every_step=0,
        precision="fp32",
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--poison", type=int, nargs="*", default=())
    parser.add_argument("--pause", type=float, default=0.0)
    options = parser.parse_args()
    with distributed.process_group("cpu"):
        setup_console()
        task = TinyTask(8, options.accumulation, options.poison, options.pause)
        train_tiny(options.folder, tiny_settings(options.steps, options.accumulation), task)
    return 0


if __name__ == "__main__":
    sys.exit(main())
