"""Faults that appear while a model is trained are named in the log, by the rules of the diagnosis."""

import json

import pytest
import torch
from diagnosis_helper import moving
from end_to_end_helper import cache, metrics, train_tiny  # noqa: F401 (a fixture)

from vidpred.data import ClipBatch
from vidpred.diagnosis import judge
from vidpred.training.ema import Ema
from vidpred.training.settings import TrainingConfig
from vidpred.training.verdicts import Verdict
from vidpred.training.video_prediction import VideoPredictionTask
from vidpred.training.watch import BATCHES, EVERY, ClipWatch, Watch

STEPS, FAULT = 24, 12
MORE = (f"--training.num_steps={STEPS}", "--training.checkpoint_every_step=100", "--training.validate_every_step=0",
        "--training.log_every_step=4")  # fmt: skip


def found(run):
    """(step, name) of every finding in the metrics."""
    return [
        (row["step"], key.removeprefix("finding/")) for row in metrics(run) for key in row if key.startswith("finding/")
    ]


def plant(monkeypatch, change):
    """From step FAULT on, `change(task)` has happened."""
    real = VideoPredictionTask.loss

    def loss(self, network, batch, step):
        if step == FAULT:
            change(self)
        return real(self, network, batch, step)

    monkeypatch.setattr(VideoPredictionTask, "loss", loss)


def test_a_sound_run_has_no_finding(tmp_path, cache):  # noqa: F811
    train_tiny(tmp_path, *MORE)
    assert found(tmp_path / "tiny") == []


FAULTS = {
    "latent_scale_doubled": lambda task: task._predictor.calibration.scale.mul_(0.2),
    "wrong_pixel_normalization": lambda task: (
        task._predictor.autoencoder.pixel_mean.zero_(), task._predictor.autoencoder.pixel_std.fill_(1.0)),
    "wrong_schedule": lambda task: (
        task._predictor.schedule.alphas.copy_(task._predictor.schedule.alphas.flip(0))),
    "weights_not_finite": lambda task: next(task.network.parameters()).data.fill_(torch.nan),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_at_the_next_check(tmp_path, cache, monkeypatch, caplog, name):  # noqa: F811
    plant(monkeypatch, FAULTS[name])
    with caplog.at_level("WARNING", "vidpred"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidpred.training.trainer.Trainer._require_finite_weights", lambda self: None)
        patch.setattr("vidpred.training.trainer.Trainer._evaluate", lambda self: None)
        train_tiny(tmp_path, *MORE)
    findings = found(tmp_path / "tiny")
    assert (FAULT + 4, name) in findings and min(step for step, _ in findings) > FAULT
    assert sum(f"finding/{name}" in record.message for record in caplog.records) == 1  # once, and not at each check


def test_an_average_that_stops_is_named(tmp_path, cache, monkeypatch):  # noqa: F811
    real = Ema.update

    def update(self, network):
        if self.updates < FAULT:
            real(self, network)
        else:
            self.updates += 1

    monkeypatch.setattr(Ema, "update", update)
    train_tiny(tmp_path, *MORE)
    findings = found(tmp_path / "tiny")
    assert {name for _, name in findings} == {"ema_never_updated"} and min(findings)[0] <= FAULT + 8


def test_one_that_can_never_follow_is_named_at_once_and_a_long_run_is_not_accused(tmp_path):
    def names(num_steps):
        network = torch.nn.Linear(4, 4)
        ema = Ema(network, 0.9999, warmup=False)
        watch = Watch(network, ema, TrainingConfig(num_steps=num_steps, ema_decay=0.9999, ema_warmup=False))
        for step in range(1, 200):
            network.weight.data += 1e-2
            ema.update(network)
            if step % 50 == 0:
                last = [finding.name for finding in watch.check(step, {}, {})]
        return last

    assert names(2000) == ["ema_too_slow"] and names(100_000) == []


def test_a_loss_that_jumps_and_steps_that_are_skipped(caplog):
    network = torch.nn.Linear(4, 4)
    ema = Ema(network)
    ema.update(network)
    watch = Watch(network, ema, TrainingConfig())
    for step in range(EVERY):
        watch.enter(Verdict(step, 0.1, 1.0, False, False))
    assert watch.check(100, {}, {}) == []
    for step in range(EVERY):
        watch.enter(Verdict(step, 2.0, 1.0, step == 0, False))
    with caplog.at_level("INFO", "vidpred"):
        assert [finding.name for finding in watch.check(200, {}, {})] == ["weights_exploded", "loss_not_finite"]
        for step in range(EVERY):
            watch.enter(Verdict(step, 0.1, 1.0, False, False))
        assert watch.check(300, {}, {}) == []
    assert "step 300  finding/weights_exploded: gone" in caplog.text


def batch_of(frames, names):
    count, length = frames.shape[:2]
    times = torch.arange(float(length)).expand(count, -1)
    return ClipBatch(frames, torch.zeros(count, length, dtype=torch.uint8), times, torch.arange(count), names)


@pytest.mark.parametrize("fault, name", [(None, None), ("constant", "data_constant"), ("twice", "data_duplicated"),
                                         ("one clip", "data_duplicated"), ("shuffled", "data_shuffled")])  # fmt: skip
def test_broken_clips_are_named(fault, name):
    watch = ClipWatch(None, None)
    for number in range(4 * BATCHES):
        frames = moving(clips=2, seed=0 if fault == "one clip" else number)
        if fault == "constant":
            frames = frames[:, :1].expand_as(frames)
        elif fault == "twice":
            frames = frames.repeat_interleave(2, 1)[:, :8]
        elif fault == "shuffled":
            frames = frames[:, [3, 7, 0, 5, 1, 6, 2, 4]]
        watch.see(batch_of(frames, [f"{number}.mp4", f"other {number}.mp4"]))
    assert [finding.name for finding in judge(watch.measures())] == ([name] if name else [])


def test_findings_are_metrics_of_their_step(tmp_path, cache, monkeypatch):  # noqa: F811
    plant(monkeypatch, FAULTS["latent_scale_doubled"])
    train_tiny(tmp_path, *MORE)
    rows = [json.loads(line) for line in (tmp_path / "tiny" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("finding/latent_scale_doubled") == 1.0] == [16, 20, 24]
