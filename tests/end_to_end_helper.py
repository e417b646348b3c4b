"""A training run as small as it can be, through the same functions and commands that a user calls."""

import contextlib
import json
import subprocess
import time
from pathlib import Path
from typing import Callable, Iterator

import pytest
import torch
from distributed_helper import child_environment, kill_tree

from vidpred import range_checks
from vidpred.assembly import train
from vidpred.configuration import Config, load_config
from vidpred.training import RunOutcome

TINY = """
data: {num_frames: 4, height: 16, width: 16, clip_frames: 6, num_workers: 0, num_clips: 6, num_val_clips: 3,
       num_test_clips: 1}
autoencoder: {down_factor: 2}
conditioning: {context_frames: 2}
network: {channels: [8, 16], blocks_per_level: 1, head_dim: 8, spatial_attention_levels: [1],
          temporal_attention_levels: [1]}
diffusion: {parameterization: x0}
sampling: {num_inference_steps: 2}
training: {num_steps: 6, batch_size: 8, learning_rate: 1e-3, warmup_steps: 2, log_every_step: 1,
           validate_every_step: 3, validation_clips: 3, checkpoint_every_step: 3, visualize_every_step: 0,
           visualize_clips: 1, evaluate_every_step: 0}
evaluation: {num_clips: 3, num_panels: 1, lpips_net: none}
"""
FRAMES, CONTEXT, SIZE = 4, 2, 16


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Clips are rendered once per session, into a temporary folder and not the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDPRED_CACHE", str(folder))
        yield folder


def tiny_arguments(folder: Path, *more: str) -> list[str]:
    """The command line of the run `folder`/tiny."""
    file = Path(folder) / "tiny.yaml"
    file.write_text(TINY)
    return ["--config", str(file), "--runs_dir", str(folder), "--device", "cpu", *more]


def tiny_config(folder: Path, *more: str) -> Config:
    return load_config(tiny_arguments(folder, *more))


def train_tiny(folder: Path, *more: str) -> RunOutcome:
    """Trains in this process."""
    range_checks.reset()
    try:
        return train(tiny_config(folder, *more))
    finally:
        range_checks.reset()


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [row["train/loss"] for row in metrics(run) if "train/loss" in row]


def assert_same(left, right, where: str = "") -> None:
    """Equal bit for bit, through dictionaries and lists."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right)):
            assert_same(*pair, f"{where}.{index}")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right, where


@contextlib.contextmanager
def started(command: list, log: Path, **environment: str) -> Iterator[subprocess.Popen]:
    """A process that runs meanwhile, its output in `log`; whatever is left of it at the end is killed."""
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, env=child_environment(environment), stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            kill_tree(process.pid)
            process.wait()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen, log: Path) -> None:
    """Returns as soon as the condition holds; AssertionError with the log where the process ends before."""
    deadline = time.monotonic() + 240
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"what was waited for did not come:\n{log.read_text()[-4000:]}")
        time.sleep(0.005)


def steps_done(run: Path) -> int:
    """Of a run that is being written: its last logged step."""
    file = run / "metrics.jsonl"
    whole_lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return max((json.loads(line)["step"] for line in whole_lines), default=0)


def newest_checkpoint(run: Path) -> int:
    """The step of the last checkpoint that has its final name."""
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step_*")), default=0)
