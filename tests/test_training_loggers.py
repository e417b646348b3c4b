"""Loggers: the record survives crashes and resumes; what leaves the machine cannot stop a run."""

import json
import logging
import math
import sys
import types

import pytest
import torch
from PIL import Image

from vidpred.training.averages import Averages, RunningAverages
from vidpred.training.loggers import Fenced, JsonLinesLogger, LoggingConfig, WandbConfig, build_loggers
from vidpred.training.progress import Pace


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_one_strict_json_object_a_line(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    logger = JsonLinesLogger(path)
    logger.log(3, {"train/loss": 0.5, "train/grad_norm": math.inf})
    logger.log_pictures(3, "train/visualization", [tmp_path / "run" / "samples" / "a.png"])
    logger.close()
    assert lines(path) == [
        {"step": 3, "train/loss": 0.5, "train/grad_norm": "inf"},
        {"step": 3, "train/visualization": ["samples/a.png"]},
    ]


def test_resume_drops_what_lies_past_the_step_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 3, "a": 3}\n{"step": 4, "a"')
    logger = JsonLinesLogger(path, step=2)
    logger.log(3, {"a": 30.0})
    logger.close()
    assert lines(path) == [{"step": 1, "a": 1}, {"step": 2, "a": 2}, {"step": 3, "a": 30.0}]


def fake_wandb(fail: set[str], calls: list) -> types.ModuleType:
    """A stand-in for wandb whose chosen calls raise."""

    def call(name):
        def run(*args, **kwargs):
            calls.append((name, args, kwargs))
            if name in fail:
                raise ConnectionError("no route to the server")
            return types.SimpleNamespace(log=call("log"), finish=call("finish"))

        return run

    module = types.ModuleType("wandb")
    module.init, module.Image = call("init"), lambda path, caption: path
    return module


@pytest.mark.parametrize("fail", [{"init"}, {"log"}, {"finish"}, {"init", "log", "finish"}])
def test_no_failure_of_wandb_reaches_the_run(tmp_path, monkeypatch, caplog, fail):
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(fail, calls))
    config = WandbConfig(enabled=True)
    with caplog.at_level(logging.WARNING, "vidpred"):
        loggers = build_loggers(LoggingConfig(), config, tmp_path, "name", {"a": 1})
        for step in range(5):
            loggers.log(step, {"train/loss": 1.0})
        loggers.log_pictures(5, "train/visualization", [tmp_path / "a.png"])
        loggers.close()
    assert "no route to the server" in caplog.text and "training goes on" in caplog.text
    assert len(lines(tmp_path / "metrics.jsonl")) == 6
    # Three failures in a row, and wandb is not asked again.
    assert sum(name == "log" for name, *_ in calls) == (0 if "init" in fail else 3 if "log" in fail else 6)


def test_wandb_keeps_its_id_in_the_run_folder(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(set(), calls))
    config = WandbConfig(enabled=True, mode="offline")
    for _ in range(2):
        build_loggers(LoggingConfig(), config, tmp_path, "name", {"seed": 3}).close()
    starts = [kwargs for name, _, kwargs in calls if name == "init"]
    assert starts[0]["id"] == starts[1]["id"] == (tmp_path / "wandb_id.txt").read_text().strip()
    assert starts[0]["resume"] == "allow" and starts[0]["mode"] == "offline"
    assert starts[0]["config"] == {"seed": 3} and starts[0]["name"] == "name"


def test_a_missing_package_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)  # import wandb raises ImportError
    with caplog.at_level(logging.WARNING, "vidpred"):
        build_loggers(LoggingConfig(), WandbConfig(enabled=True), tmp_path, "name", {}).close()
    assert "wandb failed to start" in caplog.text


def test_a_success_in_between_keeps_the_logger(caplog):
    outcomes = iter([True, True, False, True, True, False])
    count = []

    class Flaky:
        def log(self, step, values):
            count.append(step)
            if next(outcomes):
                raise OSError("flaky")

    fenced = Fenced("flaky", Flaky)
    for step in range(6):
        fenced.log(step, {})
    assert count == list(range(6))


def test_tensorboard_writes_scalars_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (8, 8)).save(tmp_path / "clip.png")
    loggers = build_loggers(LoggingConfig(tensorboard=True), WandbConfig(), tmp_path, "name", {})
    loggers.log(7, {"train/loss": 0.25})
    loggers.log_pictures(7, "train/visualization", [tmp_path / "clip.png"])
    loggers.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(7, 0.25)]
    assert events.Tags()["images"] == ["train/visualization/clip"]


@pytest.mark.slow
def test_wandb_offline_for_real(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "clip.png")
    config = WandbConfig(enabled=True, mode="offline")
    for step in (0, 1):
        loggers = build_loggers(LoggingConfig(), config, tmp_path, "name", {"seed": 1}, step)
        loggers.log(step + 1, {"train/loss": 0.5})
        loggers.log_pictures(step + 1, "train/visualization", [tmp_path / "clip.png"])
        loggers.close()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_running_averages_weigh_and_leave_out_what_is_empty_or_not_finite():
    averages = RunningAverages()
    names = ("a", "b", "c")
    averages.add(Averages(names, torch.tensor([3.0, 0.0, 1.0]), torch.tensor([3.0, 0.0, 1.0])))
    averages.add(Averages(names, torch.tensor([9.0, 0.0, math.nan]), torch.tensor([1.0, 0.0, 1.0])))
    assert averages.read() == {"a": 3.0, "c": 1.0}
    assert averages.read() == {}


def test_pace_leaves_pauses_out():
    now = [0.0]
    pace = Pace(lambda: now[0])
    with pace.waiting_for_data():
        now[0] += 1.0
    now[0] += 3.0
    pace.count(8)
    with pace.pause():
        now[0] += 100.0
    assert pace.read() == {"train/samples_per_second": 2.0, "train/data_wait_share": 0.25}
    now[0] += 1.0
    assert pace.read()["train/samples_per_second"] == 0.0
