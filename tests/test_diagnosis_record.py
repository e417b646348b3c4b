"""The record in a checkpoint, and the curve of the loss."""

import math

import torch
from end_to_end_helper import cache, train_tiny  # noqa: F401 (a fixture)

from vidpred.checkpoint_store import find_checkpoint, read_checkpoint
from vidpred.diagnosis import subject_from_checkpoint
from vidpred.diagnosis.curve import MOST, LossCurve
from vidpred.diagnosis.record import CLIPS, read_history, record_capacity, weight_sample
from vidpred.diagnosis.record_measures import record_measures, reference_measures
from vidpred.diagnosis.subject import recorded_clips
from vidpred.training.inspection import Inspection


def test_the_curve_keeps_every_loss_in_few_points():
    curve = LossCurve()
    for step in range(1, 3001):
        curve.add(step, float(step), 1 / step)
    points = curve.points
    assert MOST / 2 < len(points) <= MOST and points[-1].step == 3000
    assert points[0].loss == 4.5 and points[0].step == 8  # the mean of 1 .. 8
    assert points[-1].learning_rate == 1 / 3000
    resumed = LossCurve.from_state(curve.state())
    curve.add(3001, 1.0, 0.5)
    resumed.add(3001, 1.0, 0.5)
    assert resumed.points == curve.points
    resumed.add(3002, math.nan, 0.5)
    assert resumed.points == curve.points


def test_a_sample_of_weights_does_not_depend_on_their_order():
    weights = {"b": torch.arange(1000.0), "a": torch.tensor([7.0, 8.0]), "n": torch.tensor([3])}
    sample = weight_sample(weights)
    assert sample[:2].tolist() == [7, 8] and len(sample) < 2 + 70
    assert torch.equal(sample, weight_sample(dict(reversed(weights.items()))))


def test_the_record_is_bounded_for_any_size():
    assert record_capacity((8, 3, 64, 64), (8, 3, 16, 16)) == (CLIPS, 8)
    for side, frames in ((256, 16), (512, 25)):
        clips, kept = record_capacity((frames, 3, side, side), (frames, 4, side // 8, side // 8))
        assert clips >= 1 <= kept <= frames and clips * kept * 3 * side**2 < 4e6


def test_a_checkpoint_holds_what_training_saw_and_inference_repeats_it(tmp_path, cache):  # noqa: F811
    train_tiny(tmp_path)
    path = find_checkpoint(tmp_path / "tiny")
    assert (path / "record.safetensors").stat().st_size < 2**20
    subject = subject_from_checkpoint(path, "cpu")
    history = subject.history
    record = history.record
    assert (history.step, history.num_steps, history.one_batch) == (6, 6, False)
    assert len(history.curve.points) == 6 and history.curve.points[-1].learning_rate > 0
    assert record.frames.shape[0] == len(record.names) == 3 and record.frames.dtype == torch.uint8
    assert torch.equal(record.latents, subject.predictor.autoencoder.encode(record.frames))
    assert torch.allclose(record.calibrated, subject.predictor.encode(record.frames))
    assert torch.equal(history.raw, weight_sample(subject.weights)) and not torch.equal(history.raw, history.start)
    now = recorded_clips(subject)
    assert tuple(now.names) == record.names and torch.equal(now.frames, record.frames)
    read_now = dict(zip(now.names, now.frames))
    measures, _ = record_measures(subject, record, read_now)
    for name in ("pixels/difference", "vae/difference", "calibration/difference", "schedule/difference"):
        assert measures[name] < 1e-6, name
    few = reference_measures(subject.predictor, record.first(1, 2), {})
    assert few["vae/recorded_psnr"] == few["vae/psnr_on_recorded"] != measures["vae/recorded_psnr"]
    assert measures["x0/difference"] < 1e-3 < measures["x0/raw_to_averaged"] and record.scaling == 1


def test_a_resumed_run_keeps_the_recorded_clips(tmp_path, cache):  # noqa: F811
    """Read and encoded again, they would hide that the autoencoder is another one."""
    train_tiny(tmp_path)
    subject = subject_from_checkpoint(tmp_path / "tiny", "cpu")
    recorded = subject.history.record
    inspection = Inspection(subject.predictor, subject.conditioning, unreadable, 0, 4, reference=recorded)
    tensors, values = inspection.record(None)
    assert torch.equal(tensors["latents"], recorded.latents) and tuple(values["names"]) == recorded.names
    assert torch.equal(tensors["reconstruction_psnr"], recorded.reconstruction_psnr)


def unreadable(count, roles):
    raise AssertionError("clips are read again")


def test_an_older_checkpoint_has_no_history(tmp_path, cache):  # noqa: F811
    train_tiny(tmp_path)
    checkpoint = read_checkpoint(tmp_path / "tiny")
    checkpoint.tensors["record"].pop("reconstruction_psnr")
    assert read_history(checkpoint).record is None
    checkpoint.tensors.pop("record")
    assert read_history(checkpoint) is None
