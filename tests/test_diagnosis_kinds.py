"""The diagnosis runs on models of every kind: what they cannot show is not measured."""

from pathlib import Path

import pytest
from end_to_end_helper import cache, train_tiny  # noqa: F401 (a fixture)
from test_end_to_end_conditions import train_pushed

from vidpred import range_checks
from vidpred.assembly import train
from vidpred.configuration import load_config
from vidpred.diagnosis import (
    check_inference,
    diagnose,
    diagnosis_lines,
    save_plot,
    subject_from_checkpoint,
    validation_clips,
)
from vidpred.diagnosis.report import not_judged

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
KINDS = {
    "prediction": (),
    "unconditional": ("--conditioning.scheme=unconditional", "--evaluation.task=unconditional"),
    "no given frames": ("--conditioning.context_frames=0", "--evaluation.task=unconditional"),
    "images": ("--conditioning.context_frames=0", "--data.num_frames=1", "--evaluation.task=unconditional"),
    "two frames": ("--data.num_frames=2", "--conditioning.context_frames=1"),
    "random masks": ("--conditioning.scheme=random",),
    "eps": ("--diffusion.parameterization=eps",),
    "flow, euler": ("--diffusion.parameterization=flow", "--diffusion.schedule.kind=flow", "--sampling.sampler=euler"),
    "edm": ("--diffusion.parameterization=edm", "--diffusion.schedule.kind=edm"),
    "heun": ("--sampling.sampler=heun", "--diffusion.residual=false"),
    "one step of sampling": ("--sampling.num_inference_steps=1",),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_measured_and_judged(tmp_path, cache, kind):  # noqa: F811
    train_tiny(tmp_path, *KINDS[kind])
    diagnosis = examined(tmp_path / "tiny")
    predicts = kind not in ("unconditional", "no given frames", "images")
    left = not_judged(diagnosis.measures)
    assert (left == []) == predicts == ("loss_plateau" not in left)
    assert any(line.startswith("not judged") for line in diagnosis_lines(diagnosis)) == (not predicts)
    for name in ("chain/copy_last", "rollout/finite", "given/swapped_over_own"):
        assert (name in diagnosis.measures) == predicts, name


def test_a_model_that_takes_conditions(tmp_path, cache):  # noqa: F811
    """Rollouts would need actions of frames that no clip has."""
    train_pushed(tmp_path)
    measures = examined(tmp_path / "pushed").measures
    assert "chain/copy_last" in measures and "rollout/finite" not in measures
    assert not_judged(measures) == ["rollout_drift"]


def test_one_picture_again_and_again_is_no_duplicate(tmp_path):
    keys = {"name": "ring", "runs_dir": tmp_path, "device": "cpu", "data.height": 32, "data.width": 32,
            "network.channels": [32, 32], "training.num_steps": 4, "training.batch_size": 2,
            "training.visualize_every_step": 0, "evaluation.lpips_net": "none"}  # fmt: skip
    ring = [f"--config={CONFIGS / 'red_circle.yaml'}", *(f"--{name}={value}" for name, value in keys.items())]
    range_checks.reset()
    assert train(load_config(ring)).status == "finished"
    range_checks.reset()
    diagnosis = diagnose(tmp_path / "ring", "cpu")
    assert not {"data/twins", "data/val_twins"} & diagnosis.measures.keys()
    assert "data_duplicated" not in {finding.name for finding in diagnosis.findings}


def examined(run):
    diagnosis = diagnose(run, "cpu")
    assert {finding.name for finding in diagnosis.findings} <= {"untrained", "undertrained", "loss_plateau"}
    assert diagnosis.measures["record/present"] and diagnosis.measures["x0/difference"] < 1e-2
    assert list(diagnosis_lines(diagnosis))
    save_plot(run / "plot.png", diagnosis)
    subject = subject_from_checkpoint(run, "cpu")
    check = check_inference(subject, validation_clips(subject, 2), 8.0, run / "inference", log=lambda line: None)
    # What has hardly been trained may leave the range; nothing has exploded, and its noise is that of its levels.
    assert {finding.name for finding in check.findings} <= {"clip_rate_high", "frames_out_of_range"}
    return diagnosis
