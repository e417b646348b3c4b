"""Faults that appear while a model is trained are named in the log, by the rules of the diagnosis."""

import json

import pytest
import torch
from diagnosis_helper import moving
from end_to_end_helper import cache, metrics, train_tiny  # noqa: F401 (a fixture)

from vidpred.data import ClipBatch
from vidpred.diagnosis import judge
from vidpred.range_checks import measure
from vidpred.training.ema import Ema
from vidpred.training.settings import TrainingConfig
from vidpred.training.verdicts import Verdict
from vidpred.training.video_prediction import VideoPredictionTask
from vidpred.training.watch import CLIPS, EVERY, STEPS as LOOKED, ClipWatch, Watch

STEPS, FAULT = 24, 12
MORE = (f"--training.num_steps={STEPS}", "--training.checkpoint_every_step=100", "--training.validate_every_step=0",
        "--training.log_every_step=6")  # fmt: skip


def found(run):
    """(step, name) of every finding that stands in the metrics."""
    return [
        (row["step"], key.removeprefix("finding/"))
        for row in metrics(run)
        for key in row
        if key.startswith("finding/") and row[key] == 1.0
    ]


@pytest.fixture(autouse=True)
def checked_often(monkeypatch):
    monkeypatch.setattr("vidpred.training.trainer.EVERY", 4)


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
        patch.setattr("vidpred.training.review.Review.evaluate", lambda self, step: None)
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


def run_watch(steps, every=50, stuck=(), **changes):
    """(names at each check, lines) of a network that moves evenly, and of an average that does not in `stuck`."""
    network = torch.nn.Linear(4, 4)
    config = TrainingConfig(**changes)
    ema = Ema(network, config.ema_decay, warmup=config.ema_warmup)
    watch, names = Watch(network, ema, config), []
    for step in range(1, steps + 1):
        network.weight.data += 1e-2
        if step not in stuck:
            ema.update(network)
        if step % every == 0:
            names.append([name for name, stands in watch.check(step, {}).items() if stands])
    return names


def no_nan(caplog):
    lines = [record.getMessage() for record in caplog.records if "finding/" in record.getMessage()]
    return lines and not any("nan" in line for line in lines)


def test_one_that_can_never_follow_is_named_at_every_check_and_a_long_run_is_not_accused(caplog):
    slow = dict(ema_decay=0.9999, ema_warmup=False)
    assert run_watch(200, num_steps=2000, **slow) == [["finding/ema_too_slow"]] * 4
    assert "82 % of the average will still be the start after all 2000 steps" in caplog.text and no_nan(caplog)
    assert run_watch(200, num_steps=100_000, **slow) == [[]] * 4
    assert run_watch(200, num_steps=2000, ema_decay=0.9999, ema_warmup=True) == [[]] * 4


def test_an_average_that_rests_for_a_while_is_named_meanwhile(caplog):
    names = run_watch(200, stuck=range(51, 101), num_steps=2000, ema_decay=0.98)
    assert names == [[], ["finding/ema_never_updated"], [], []] and no_nan(caplog)


def make_watch(**changes):
    network = torch.nn.Linear(4, 4)
    ema = Ema(network)
    ema.update(network)
    with_loss = changes.pop("with_loss", True)
    return Watch(network, ema, TrainingConfig(**changes), with_loss)


def enter(watch, losses, skipped=()):
    for step, loss in enumerate(losses):
        watch.enter(Verdict(step, loss, 1.0, step in skipped, False))


def test_a_loss_that_jumps_and_steps_that_are_skipped(caplog):
    watch = make_watch()
    enter(watch, [0.1] * EVERY)
    assert watch.check(100, {}) == {}
    enter(watch, [2.0] * EVERY, skipped=[0])
    with caplog.at_level("INFO", "vidpred"):
        assert watch.check(200, {}) == {"finding/weights_exploded": 1.0, "finding/loss_not_finite": 1.0}
        enter(watch, [0.1] * EVERY)
        gone = {"finding/loss_not_finite": 0.0, "finding/weights_exploded": 0.0}
        assert watch.check(300, {}) == gone and watch.check(400, {}) == {}
    assert "step 300  finding/weights_exploded: gone" in caplog.text and no_nan(caplog)


WRONG_VAE = {"vae/difference": 1.2, "vae/difference_fitted": 1.0, "vae/difference_reordered": 1.2}
SHUFFLED = {"data/disorder": 0.97, "data/order_contrast": 0.3}


def test_what_a_fatal_finding_hides_is_not_gone():
    watch, both = make_watch(), {"finding/data_shuffled": 1.0, "finding/wrong_vae": 1.0}
    assert watch.check(100, SHUFFLED) == {"finding/data_shuffled": 1.0}
    assert watch.check(200, {**SHUFFLED, **WRONG_VAE}) == both, "hidden, not gone"
    assert watch.check(300, {}) == {name: 0.0 for name in both} and watch.check(400, {}) == {}


def test_few_clips_say_nothing_of_a_scale_that_was_wrong():
    watch = make_watch(batch_size=2)
    for step, clips, stands in ((100, 64, 1.0), (110, 16, 1.0), (200, 64, 0.0)):
        watch.see_ranges({"calibrated latents": measure((5 if step < 200 else 1) * torch.randn(4000))})
        enter(watch, [0.1] * (clips // 2))
        assert watch.check(step, {}) == {"finding/latent_scale_missing": stands}


def test_every_tensor_that_is_not_finite_is_counted(caplog):
    watch = make_watch()
    watch._network.bias.data[0] = torch.nan
    assert watch.check(100, {}) == {"finding/weights_not_finite": 1.0} and "1 tensors hold NaN" in caplog.text


def test_a_loss_with_an_adversary_may_jump_and_be_negative():
    watch = make_watch(with_loss=False)
    for step, loss in ((100, 0.1), (200, -0.5), (300, 3.0)):
        enter(watch, [loss] * EVERY)
        assert watch.check(step, {}) == {}


def test_a_resumed_watch_remembers_the_least_loss():
    watch = make_watch()
    enter(watch, [0.1] * EVERY)
    watch.check(100, {})
    enter(watch, [2.0] * EVERY)
    watch.check(200, {})
    resumed = make_watch()
    resumed.load_state(json.loads(json.dumps(watch.state())))
    assert resumed.state() == watch.state()
    enter(resumed, [2.0] * EVERY)
    assert resumed.check(300, {}) == {"finding/weights_exploded": 1.0}
    empty = make_watch()
    empty.load_state(json.loads(json.dumps(make_watch().state())))
    enter(empty, [0.1] * EVERY)
    assert empty.check(100, {}) == {}


@pytest.mark.parametrize("factor, shift, clips, one_batch, name", [
    (1, 0, 64, False, None), (5, 0, 64, False, "latent_scale_missing"), (0.2, 0, 64, False, "latent_scale_doubled"),
    (1, 1, 64, False, "latent_scale_missing"), (1, 0.5, 64, False, None),
    (5, 0, 64, True, None), (5, 0, 16, False, None),
])  # fmt: skip
def test_the_scale_of_latents_is_judged_by_enough_clips(factor, shift, clips, one_batch, name):
    """Of four log lines between two checks; a mean within four standard errors of 0 is chance."""
    watch = make_watch(batch_size=2)
    for part in range(4):
        latents = factor * torch.randn(1000, generator=torch.Generator().manual_seed(part)) + shift
        watch.see_ranges({"calibrated latents": measure(latents)})
    enter(watch, [0.1] * (clips // 2))
    found = watch.check(100, {"training/one_batch": float(one_batch)})
    assert found == ({f"finding/{name}": 1.0} if name else {})
    if name:  # what was cured is gone
        watch.see_ranges({"calibrated latents": measure(torch.randn(1000))})
        enter(watch, [0.1] * 50)
        assert watch.check(200, {}) == {f"finding/{name}": 0.0}


def batch_of(frames, names, draw=0):
    count, length = frames.shape[:2]
    times = torch.arange(float(length)).expand(count, -1)
    roles = torch.zeros(count, length, dtype=torch.uint8)
    return ClipBatch(frames, roles, times, draw + torch.arange(count), names)


@pytest.mark.parametrize("fault, name", [(None, None), ("constant", "data_constant"), ("twice", "data_duplicated"),
                                         ("one clip", "data_duplicated"), ("shuffled", "data_shuffled")])  # fmt: skip
def test_broken_clips_are_named(fault, name):
    watch = ClipWatch(None, None, 2)
    for number in range(CLIPS * LOOKED):
        frames = moving(clips=2, seed=0 if fault == "one clip" else number)
        if fault == "constant":
            frames = frames[:, :1].expand_as(frames)
        elif fault == "twice":
            frames = frames.repeat_interleave(2, 1)[:, :8]
        elif fault == "shuffled":
            frames = frames[:, [3, 7, 0, 5, 1, 6, 2, 4]]
        watch.see(batch_of(frames, [f"{number}.mp4", f"other {number}.mp4"], 2 * number))
    assert [finding.name for finding in judge(watch.measures())] == ([name] if name else [])


def test_what_is_seen_does_not_depend_on_processes_or_accumulation():
    def seen(parts):
        watch = ClipWatch(None, None, 8)
        for step in range(CLIPS * LOOKED):
            frames, size = moving(clips=8, seed=step), 8 // parts
            for part in range(parts):  # of rank 0's share, which begins with the first clip of the step
                names = [f"{step} {row}" for row in range(size * part, size * (part + 1))]
                watch.see(batch_of(frames[size * part : size * (part + 1)], names, 8 * step + size * part))
        assert len(watch._clips) == CLIPS
        return watch.measures()

    assert seen(1) == seen(2) == seen(8)


def test_pictures_among_videos_are_left_out_and_alone_they_are_seen():
    pictures, both = ClipWatch(None, None, 2), ClipWatch(None, None, 2)
    for step in range(CLIPS * LOOKED):
        frames, names = moving(clips=2, seed=step), [f"{step} a", f"{step} b"]
        picture = batch_of(frames[:, :1], names, 2 * (2**40 + step))
        pictures.see(picture)
        both.see(picture)
        both.see(batch_of(frames, names, 2 * step))
        both.see(picture)
    assert pictures.measures()["data/frames"] == 1 and pictures.measures()["data/clips"] == CLIPS
    assert both.measures()["data/frames"] == 6 and both.measures()["data/clips"] == CLIPS
    assert judge(pictures.measures()) == [] == judge(both.measures())


def test_findings_are_metrics_of_their_step(tmp_path, cache, monkeypatch):  # noqa: F811
    plant(monkeypatch, FAULTS["latent_scale_doubled"])
    train_tiny(tmp_path, *MORE)
    rows = [json.loads(line) for line in (tmp_path / "tiny" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("finding/latent_scale_doubled") == 1.0] == [16, 20, 24]
