"""The comparison of objectives: its figures in closed form, and a series of tiny runs that goes on."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from end_to_end_helper import cache  # noqa: F401  (a fixture)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import compare_objectives  # noqa: E402
from compare_objectives import Drawn, parse, summarize, table  # noqa: E402

from vidpred import range_checks  # noqa: E402
from vidpred.errors import UserError  # noqa: E402
from vidpred.training import RunOutcome  # noqa: E402

TINY = [
    "--data.num_frames=4", "--data.clip_frames=4", "--data.height=16", "--data.width=16", "--data.num_workers=0",
    "--data.num_clips=4", "--data.num_val_clips=3", "--data.num_test_clips=1", "--conditioning.context_frames=2",
    "--network.channels=[8,16]", "--network.patch_size=1", "--network.head_dim=8", "--training.batch_size=2",
    "--sampling.num_inference_steps=2", "--training.validation_clips=2", "--training.visualize_clips=1",
]  # fmt: skip


def drawn(values, motion=1.0, clip_rate=0.0):
    return Drawn(np.array(values, dtype=float), motion, clip_rate)


def test_gains_are_paired_by_seed_and_clip():
    reference = {seed: drawn([10.0 + seed, 20.0 + seed]) for seed in (0, 1, 2)}
    other = {seed: drawn([12.0 + seed, 21.0 + seed + seed % 2]) for seed in (0, 1, 2)}
    summary = summarize({"x0, uniform": reference, "v, uniform": other})
    gain = summary["v, uniform"]["gain"]
    # Gains of the clips: (2, 1), (2, 2), (2, 1); of the seeds 1.5, 2, 1.5.
    assert gain["mean"] == pytest.approx(5 / 3) and "gain" not in summary["x0, uniform"]
    assert gain["ci95_over_seeds"] == pytest.approx(4.3027 * np.std([1.5, 2, 1.5], ddof=1) / 3**0.5, rel=1e-4)
    assert gain["ci95_over_clips"] == pytest.approx(12.706 * np.std([2, 4 / 3], ddof=1) / 2**0.5, rel=1e-4)
    assert not gain["separate"]
    same = {seed: drawn([11.0 + seed, 21.0 + seed]) for seed in (0, 1, 2)}
    assert summarize({"x0, uniform": reference, "v, uniform": same})["v, uniform"]["gain"]["separate"]


def test_a_seed_that_failed_is_left_out_of_the_pairs_and_one_seed_separates_nothing():
    summary = summarize({"x0, uniform": {0: drawn([1, 2]), 2: drawn([5, 6])}, "eps, uniform": {2: drawn([7, 8])}})
    gain = summary["eps, uniform"]["gain"]
    assert gain["mean"] == 2 and gain["ci95_over_seeds"] is None and not gain["separate"]
    text = table(summary)
    assert text.splitlines()[2].startswith("| eps, uniform | 7.50 | +2.00 (± 0.00, n/a) not separate | 1.00 |")


@pytest.mark.usefixtures("cache")
def test_a_series_of_runs_is_compared_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    names = []

    def train(config):
        names.append(config.name)
        if config.name == "v_uniform_0" and names.count("v_uniform_0") == 1:
            return RunOutcome("interrupted", 1)
        range_checks.reset()
        return original(config)

    original = compare_objectives.train
    monkeypatch.setattr(compare_objectives, "train", train)
    command = ["x", "--objectives", "x0", "v", "edm", "--weights", "uniform", "--seeds", "0", "--steps", "8",
               "--device", "cpu", "--out", str(tmp_path), *TINY]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    for code in (1, 0):
        with pytest.raises(SystemExit) as ended:
            compare_objectives.main()
        assert ended.value.code == code
    range_checks.reset()
    assert names == ["x0_uniform_0", "v_uniform_0", "x0_uniform_0", "v_uniform_0", "edm_uniform_0"]
    result = json.loads((tmp_path / "compare_objectives.json").read_text())
    assert list(result["combinations"]) == ["x0, uniform", "v, uniform", "edm, uniform"] and not result["failed"]
    (evaluation,) = (tmp_path / "v_uniform_0" / "evaluation").glob("*.json")
    expected = json.loads(evaluation.read_text())
    row = result["combinations"]["v, uniform"]
    assert row["psnr"] == pytest.approx(expected["model"]["psnr"]["mean"])
    assert row["motion_energy_ratio"] == expected["motion_energy_ratio"] and 0 <= row["clip_rate"] <= 1
    assert "| v, uniform |" in capsys.readouterr().out


@pytest.mark.usefixtures("cache")
def test_a_run_that_cannot_be_is_told_and_does_not_end_the_series(tmp_path, monkeypatch, capsys):
    command = ["x", "--objectives", "x0", "eps", "--weights", "uniform", "--seeds", "0", "--steps", "8", "--device",
               "cpu", "--out", str(tmp_path), *TINY, "--diffusion.residual=false"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    range_checks.reset()
    with pytest.raises(SystemExit) as ended:
        compare_objectives.main()
    range_checks.reset()
    assert ended.value.code == 1
    output = capsys.readouterr().out
    assert "failed: x0, uniform, seed 0: diffusion.motion_radius" in output and "| eps, uniform |" in output


@pytest.mark.parametrize(
    "arguments, message",
    [(["--steps", "4"], "--steps: 4 is too few"), (["--seeds", "1", "1"], "--seeds: each may be given once"),
     (["--objectives", "edm", "--weights", "min_snr"], "--weights: edm has uniform only")],
)  # fmt: skip
def test_impossible_options_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        parse(arguments)


@pytest.mark.parametrize(
    "more, message",
    [(["--seed=5"], "^--seed: is what this comparison sets itself"),
     (["--diffusion.parameterization", "v"], "^--diffusion.parameterization: is what this comparison sets itself"),
     (["--training.learning_rat=1"], "training.learning_rat")],
)  # fmt: skip
def test_overrides_that_would_compare_something_else_are_refused_before_any_training(tmp_path, more, message):
    options = parse(["--objectives", "x0", "--out", str(tmp_path), "--device", "cpu", *more])
    with pytest.raises(UserError, match=message):
        compare_objectives.configurations([("x0", "uniform", 0)], options)


def test_a_folder_of_runs_with_other_settings_is_refused(tmp_path):
    def configurations(*more):
        options = parse(["--out", str(tmp_path), "--device", "cpu", *more])
        return compare_objectives.configurations([("x0", "uniform", 0)], options)[0]

    config = configurations()["x0", "uniform", 0]
    folder = tmp_path / config.name
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config.resolved()))
    assert configurations()["x0", "uniform", 0] == config
    for more in (["--steps", "600"], ["--training.learning_rate=1e-5"], ["--sampling.sampler=ddim"]):
        with pytest.raises(UserError, match="^--out: .*x0_uniform_0 is a run with other settings"):
            configurations(*more)
