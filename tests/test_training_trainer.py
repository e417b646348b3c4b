"""The loop on a task of two linear layers: order, resume, skipped steps, signals, several processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from distributed_helper import child_environment, run_torchrun, torchrun_command
from training_tiny import TinyTask, metrics, tiny_settings, train_tiny

from vidpred import range_checks
from vidpred.checkpoint_store import CheckpointStore, read_checkpoint
from vidpred.errors import UserError
from vidpred.training.interruption import StopRequest
from vidpred.training.outcome import RunOutcome
from vidpred.training.settings import TrainingConfig
from vidpred.training.snapshots import load_weights

TINY = Path(__file__).with_name("training_tiny.py")


@pytest.fixture(autouse=True)
def fresh_ranges():
    range_checks.reset()
    yield
    range_checks.reset()


def settings(**changes) -> TrainingConfig:
    values = dict(
        num_steps=20,
        batch_size=8,
        learning_rate=1e-2,
        warmup_steps=3,
        lr_schedule="cosine",
        log_every_step=5,
        validate_every_step=5,
        visualize_every_step=10,
        evaluate_every_step=10,
        checkpoint_every_step=10,
        precision="fp32",
    )
    return TrainingConfig(**(values | changes))


def assert_same(left, right, where=""):
    """Bit for bit, through dictionaries and lists."""
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


def test_a_run_learns_and_keeps_its_rhythms(tmp_path, caplog):
    task = TinyTask(8)
    with caplog.at_level("INFO", "vidpred"):
        trainer, outcome = train_tiny(tmp_path, settings(num_steps=40), task)
    assert (outcome.status, outcome.step, trainer.step) == ("finished", 40, 40)
    assert task.pictured == [10, 20, 30, 40] and task.evaluated == [10, 20, 30, 40]
    assert task.seen == list(range(40 * 8))
    rows = metrics(tmp_path)
    train = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in train] == list(range(5, 41, 5))
    assert train[-1]["train/loss"] < 0.75 * train[0]["train/loss"]
    for key in (
        "train/grad_norm",
        "train/learning_rate",
        "train/samples_per_second",
        "train/data_wait_share",
        "train/memory_gib",
        "train/loss_right",
        "train/loss_all",
        "range/loss/max",
        "train/skipped_steps",
    ):
        assert key in train[0], key
    assert train[0]["train/loss_all"] == pytest.approx(train[0]["train/loss"], rel=1e-6)
    assert train[0]["range/gradient norm/mean"] == pytest.approx(train[0]["train/grad_norm"], rel=1e-6)
    validated = [row for row in rows if "validation/loss" in row]
    assert [row["step"] for row in validated] == list(range(5, 41, 5))
    assert validated[0]["validation/loss_ema"] != validated[0]["validation/loss"]
    assert {"eval/psnr": 1.0, "step": 40} in rows
    for line in ("EMA initialised and verified equal", "step 40/40  loss", "loss range: [", "run finished"):
        assert line in caplog.text


def test_checkpoint_holds_what_a_predictor_and_a_resume_need(tmp_path):
    trainer, _ = train_tiny(tmp_path, settings())
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.step == 20 and checkpoint.config == {"seed": 0}
    assert set(checkpoint.tensors) == {"model", "ema", "calibration", "record"}
    assert checkpoint.state["task"] == {"quarantined": {"bad.mp4": "hung"}}
    assert checkpoint.state["ema_updates"] == 20 and checkpoint.info["samples"] == 160
    assert (
        checkpoint.tensors["model"].keys()
        == checkpoint.tensors["ema"].keys()
        == trainer._task.network.state_dict().keys()
    )


@pytest.mark.parametrize("dropout, accumulation", [(0.0, 1), (0.5, 1), (0.5, 2)])
def test_resume_is_bit_exact(tmp_path, dropout, accumulation):
    """2N steps = N steps, a fresh trainer, N steps: weights, EMA, optimizer, best, data order, log."""

    def task():
        return TinyTask(8, accumulation, dropout=dropout)

    config = settings(num_steps=20, accumulation=accumulation, log_every_step=5)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    first = task()
    train_tiny(whole, config, first)

    stopped = task()
    real_loss = stopped.loss

    def loss_until_stop(network, batch, step):
        if step == 8:
            os.kill(os.getpid(), signal.SIGTERM)  # noticed one step late: 10 steps are done
        return real_loss(network, batch, step)

    stopped.loss = loss_until_stop
    _, outcome = train_tiny(parts, config, stopped)
    assert (outcome.status, outcome.step) == ("interrupted", 10)
    resumed = task()
    _, outcome = train_tiny(parts, config, resumed)
    assert outcome.status == "finished" and resumed.loaded_state == {"quarantined": {"bad.mp4": "hung"}}
    assert stopped.seen + resumed.seen == first.seen
    one, two = read_checkpoint(whole), read_checkpoint(parts)
    assert_same(one.tensors, two.tensors)
    assert_same(one.state, two.state)
    timed = ("train/samples_per_second", "train/data_wait_share", "train/memory_gib")
    logs = [
        [{k: v for k, v in row.items() if k not in timed} for row in metrics(folder) if "train/loss" in row]
        for folder in (whole, parts)
    ]
    assert logs[0][2:] == logs[1][-2:]


def test_a_finished_run_says_so(tmp_path, caplog):
    train_tiny(tmp_path, settings())
    task = TinyTask(8)
    task.evaluated = [20]
    with caplog.at_level("INFO", "vidpred"):
        _, outcome = train_tiny(tmp_path, settings(), task)
    assert (outcome.status, outcome.step, task.seen) == ("already finished", 20, [])
    assert "run already finished: 20 of 20 steps done; raise training.num_steps" in caplog.text
    unevaluated = TinyTask(8)  # stopped in the middle of its last evaluation
    train_tiny(tmp_path, settings(), unevaluated)
    assert unevaluated.evaluated == [20]
    _, outcome = train_tiny(tmp_path, settings(num_steps=25))
    assert (outcome.status, outcome.step) == ("finished", 25)


def test_a_non_finite_step_is_skipped_and_named(tmp_path, caplog):
    with caplog.at_level("WARNING", "vidpred"):
        _, outcome = train_tiny(tmp_path, settings(), TinyTask(8, poison=(6, 7)))
    assert outcome.status == "finished"
    assert "step 7: loss nan, gradient norm nan: not finite, update skipped (1 in a row)" in caplog.text
    assert "step 8: loss nan, gradient norm nan: not finite, update skipped (2 in a row)" in caplog.text
    row = [row for row in metrics(tmp_path) if row["step"] == 10 and "train/loss" in row][0]
    assert row["train/skipped_steps"] == 2 and row["train/loss"] > 0
    assert row["range/loss/non_finite"] == 2
    checkpoint = read_checkpoint(tmp_path)
    assert all(bool(tensor.isfinite().all()) for tensor in checkpoint.tensors["model"].values())
    assert {entry["step"].item() for entry in checkpoint.state["optimizer"]["state"].values()} == {18.0}


def test_too_many_bad_steps_stop_the_run(tmp_path):
    config = settings(max_bad_steps=4, num_steps=30)
    with pytest.raises(UserError, match="4 steps in a row, up to step 15: lower training.learning_rate"):
        train_tiny(tmp_path, config, TinyTask(8, poison=range(11, 30)))
    assert read_checkpoint(tmp_path).step == 10


def test_a_broken_expectation_stops_the_run_with_name_and_step(tmp_path):
    range_checks.expect("gradient norm", 0.0, 1e-9)
    with pytest.raises(UserError, match="gradient norm left its range at step 5"):
        train_tiny(tmp_path, settings())


def test_the_best_checkpoint_is_kept(tmp_path):
    class Scripted(TinyTask):
        losses = iter([9.0, 9.0, 5.0, 5.0, 7.0, 7.0, 8.0, 8.0, 6.0, 6.0])

        def validate(self, network):
            return {"loss": next(self.losses)}

    config = settings(num_steps=50, keep_last=1, validate_every_step=10)
    train_tiny(tmp_path, config, Scripted(8))
    assert [path.name for path in CheckpointStore(tmp_path / "checkpoints").complete()] == [
        "step_00000020",
        "step_00000050",
    ]
    assert read_checkpoint(tmp_path).state["best"] == {
        "metric": "validation/loss_ema",
        "value": 5.0,
        "step": 20,
    }


def test_weights_only_start(tmp_path):
    train_tiny(tmp_path / "first", settings())
    checkpoint = read_checkpoint(tmp_path / "first")
    task = TinyTask(8)
    load_weights(task.network, checkpoint)
    assert_same(dict(task.network.state_dict()), dict(checkpoint.tensors["ema"]))
    other = TinyTask(8)
    other.network = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="its network is not the one configured"):
        load_weights(other.network, checkpoint)


def test_accumulation_does_not_change_the_step(tmp_path):
    config = settings(checkpoint_every_step=20)
    train_tiny(tmp_path / "one", config)
    train_tiny(tmp_path / "four", settings(checkpoint_every_step=20, accumulation=4))
    one, four = read_checkpoint(tmp_path / "one"), read_checkpoint(tmp_path / "four")
    for name, tensor in one.tensors["model"].items():
        torch.testing.assert_close(tensor, four.tensors["model"][name], rtol=1e-4, atol=1e-5)


def test_out_of_memory_names_the_cure(tmp_path, monkeypatch):
    task = TinyTask(8)
    monkeypatch.setattr(task, "loss", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA")))
    with pytest.raises(UserError, match="out of GPU memory at step 1: raise training.accumulation"):
        train_tiny(tmp_path, settings(), task)


@pytest.mark.parametrize("changes", [{"compile": True}, {"precision": "bf16"}])
def test_switches_of_the_network_train_too(tmp_path, changes):
    if changes.get("compile"):
        torch._dynamo.reset()
    _, outcome = train_tiny(tmp_path, settings(num_steps=10, **changes))
    rows = [row["train/loss"] for row in metrics(tmp_path) if "train/loss" in row]
    assert outcome.status == "finished" and rows[-1] < rows[0]
    assert not any(name.startswith("_orig_mod") for name in read_checkpoint(tmp_path).tensors["model"])


# Real processes


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "metrics.jsonl").exists() and any(row["step"] >= step for row in metrics(folder)):
            return
        time.sleep(0.05)
    process.terminate()
    raise AssertionError(f"{folder} did not reach step {step}: {process.communicate(timeout=60)[1]}")


def test_a_signal_saves_and_exits_cleanly(tmp_path):
    command = [sys.executable, str(TINY), str(tmp_path), "--steps", "1000", "--pause", "0.02"]
    process = subprocess.Popen(command, env=child_environment(), stderr=subprocess.PIPE, text=True)
    wait_for_step(tmp_path, 3, process)
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 0, output
    step = read_checkpoint(tmp_path).step
    assert f"interrupted at step {step} of 1000: checkpoint saved; run the same command again" in output
    assert (tmp_path / "interrupted").read_text().startswith(f"interrupted at step {step}")
    assert "\r" not in output and "\x1b" not in output  # no terminal, no control characters
    _, outcome = train_tiny(tmp_path, tiny_settings(step + 2, 1))
    assert outcome == RunOutcome("finished", step + 2)
    assert not (tmp_path / "interrupted").exists()
    steps = [row["step"] for row in metrics(tmp_path) if "train/loss" in row]
    assert steps == list(range(1, step + 3))


def test_two_ranks_with_accumulation_give_the_loss_of_one_process(tmp_path):
    """1 x 8 and 2 ranks x 2 rounds x 2 agree over 20 steps; rank 0's NaN skips the step on both ranks."""
    done = run_torchrun(TINY, [tmp_path / "two", "--steps", 20, "--poison", 4, "--accumulation", 2])
    assert done.stderr.count("update skipped") == 1, done.stderr
    train_tiny(tmp_path / "one", tiny_settings(20, 1), TinyTask(8, poison=(4,)))
    one, two = (
        [row["train/loss"] for row in metrics(tmp_path / name) if "train/loss" in row]
        for name in ("one", "two")
    )
    assert len(one) == 20 and one[4] == "nan" and one[-1] < one[0]
    for left, right in zip(one, two):
        assert float(left) == pytest.approx(float(right), abs=1e-5, nan_ok=True)


def test_sigterm_to_torchrun_saves_on_an_agreed_step(tmp_path):
    command = torchrun_command(TINY, [tmp_path, "--steps", "1000", "--pause", "0.02"], 2)
    process = subprocess.Popen(command, env=child_environment(), stderr=subprocess.PIPE, text=True)
    wait_for_step(tmp_path, 3, process)
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=90)
    assert (tmp_path / "interrupted").exists(), output
    assert read_checkpoint(tmp_path).step >= 3


def test_a_second_interrupt_ends_at_once_but_an_echo_does_not(monkeypatch):
    ended, now = [], [100.0]
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    request = StopRequest()
    assert not request
    request.receive(signal.SIGINT)
    request.receive(signal.SIGINT)  # torchrun hands on what the terminal has sent already
    now[0] += 10
    request.receive(signal.SIGTERM)
    assert request and ended == []
    request.receive(signal.SIGINT)
    assert ended == [130]
