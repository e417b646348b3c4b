"""Classes, texts and actions through the commands that a user calls, on pushed shapes, which have all three."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from distributed_helper import REPOSITORY, run_torchrun
from end_to_end_helper import assert_same, losses, metrics
from PIL import Image

from vidpred import range_checks
from vidpred.assembly import train
from vidpred.assembly.conditions import settle_conditions
from vidpred.checkpoint_store import read_checkpoint
from vidpred.conditioning import TextConfig
from vidpred.conditions import ConditionBatch
from vidpred.configuration import load_config
from vidpred.data import build_dataset, pushed_scene
from vidpred.errors import UserError
from vidpred.prediction import load_predictor
from vidpred.video_io import write_video

SCRIPT, TOOLS = str(REPOSITORY / "train_video_pred.py"), REPOSITORY / "tools"

SETTINGS = """
data: {kind: pushed_shapes, num_frames: 4, height: 16, width: 16, num_workers: 0, num_clips: 12, num_val_clips: 4,
       num_test_clips: 4, max_push: 2}
autoencoder: {kind: pixel_unshuffle, down_factor: 2}
conditioning: {context_frames: 2, scheme: {prediction: 0.5, unconditional: 0.5}}
condition: {kinds: [class, text, actions], width: 8, dropout: 0.25, text: {length: 12, layers: 1}}
network: {channels: [8, 16], blocks_per_level: 1, head_dim: 8, spatial_attention_levels: [1],
          temporal_attention_levels: [1]}
diffusion: {parameterization: x0, motion_radius: 1}
sampling: {num_inference_steps: 2, guidance: {condition_scale: 2.0}}
training: {num_steps: 4, batch_size: 4, learning_rate: 1e-3, warmup_steps: 2, log_every_step: 1, validate_every_step: 2,
           validation_clips: 3, checkpoint_every_step: 2, visualize_every_step: 4, visualize_clips: 1,
           visualize_prompts: [a disc, 圆, ''], evaluate_every_step: 0}
evaluation: {num_clips: 3, num_panels: 1, lpips_net: none}
"""
WITHOUT_PICTURES = ("--training.visualize_every_step", "0", "--training.visualize_prompts", "[]")


def arguments(folder: Path, *more: str) -> list[str]:
    """The command line of the run `folder`/pushed."""
    file = Path(folder) / "pushed.yaml"
    file.write_text(SETTINGS, encoding="utf-8")
    return ["--config", str(file), "--runs_dir", str(folder), "--device", "cpu", *more]


def train_pushed(folder: Path, *more: str):
    range_checks.reset()
    try:
        return train(load_config(arguments(folder, *more)))
    finally:
        range_checks.reset()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pushed")
    assert train_pushed(folder).step == 4
    return folder / "pushed"


@pytest.fixture
def video(tmp_path) -> Path:
    frames = (40 * torch.rand(8, 3, 16, 16)).to(torch.uint8)
    frames[:, :, 4:9, 5:10] = 200
    write_video(tmp_path / "some.mp4", frames, 5.0)
    return tmp_path / "some.mp4"


# Training ---------------------------------------------------------------------------------------------------


def test_what_the_data_told_is_kept_with_the_run(run):
    checkpoint = read_checkpoint(run)
    for config in (checkpoint.config, yaml.safe_load((run / "config.yaml").read_text())):
        assert config["condition"]["class_names"] == ["disc", "square", "triangle"]
        assert config["condition"]["action_scale"] == pytest.approx([2 / 3**0.5] * 2, rel=1e-5)
    embedders = {name.split(".")[1] for name in checkpoint.tensors["ema"] if name.startswith("embedders")}
    assert embedders == {"class", "text", "actions"}
    assert checkpoint.tensors["model"]["embedders.class.table.weight"].shape == (4, 8)


def test_prompts_are_drawn_while_it_trains(run):
    folder = run / "samples" / "step_00000004"
    with Image.open(folder / "prompts.gif") as grid:
        assert grid.n_frames == 4 and grid.size[0] == grid.size[1] > 2 * 128, "three prompts in a square of four"
    assert (folder / "prompts.mp4").is_file()


def test_a_checkpoint_alone_follows_conditions(run):
    predictor = load_predictor(run, "cpu")
    frames = (60 * torch.rand(1, 2, 3, 16, 16)).to(torch.uint8)
    asked = ConditionBatch(["disc"], ["a disc"], torch.randn(1, 8, 2))
    predictions = [
        predictor.predict(frames, 6, condition=each).float()
        for each in (
            asked, None, ConditionBatch(["square"]), ConditionBatch(text=["圆"]), ConditionBatch(actions=asked.actions)
        )
    ]
    for first in range(5):
        for second in range(first):
            assert not torch.equal(predictions[first], predictions[second])
    with pytest.raises(UserError, match="class: 'cow' is not known to the model"):
        predictor.predict(frames, 6, condition=ConditionBatch(["cow"]))


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, run):
    train_pushed(tmp_path, "--training.num_steps", "2")
    assert train_pushed(tmp_path).step == 4
    left, right = read_checkpoint(tmp_path / "pushed"), read_checkpoint(run)
    for name in left.tensors:
        assert_same(dict(left.tensors[name]), dict(right.tensors[name]), name)
    assert losses(tmp_path / "pushed") == losses(run)


def test_two_processes_see_what_one_sees(tmp_path, run):
    """The same clips, conditions and dropped conditions; every parameter is used on each rank."""
    run_torchrun(SCRIPT, arguments(tmp_path), nproc=2, timeout=400)
    other = tmp_path / "pushed"
    assert losses(other) == pytest.approx(losses(run), abs=1e-5)
    key = "validation/loss"
    left, right = ([row[key] for row in metrics(one) if key in row] for one in (other, run))
    assert left == pytest.approx(right, abs=1e-5) and len(left) >= 2
    shown = [np.asarray(Image.open(each / "samples/step_00000004/prompts.gif").convert("RGB")) for each in (other, run)]
    assert np.abs(shown[0].astype(int) - shown[1]).mean() < 2


def test_dropout_changes_what_is_trained_and_is_a_function_of_the_seed(tmp_path, run):
    for name, dropout in (("same", "0.25"), ("never", "0.0")):
        extra = () if name == "same" else ("--sampling.guidance.condition_scale", "1.0")
        train_pushed(tmp_path, "--name", name, "--condition.dropout", dropout, *WITHOUT_PICTURES, *extra)
    assert losses(tmp_path / "same") == losses(run) and losses(tmp_path / "never") != losses(run)


@pytest.mark.parametrize("more, error", [
    (("--condition.class_names", "[square, disc, triangle]"), "condition.class_names: .*another order"),
    (("--condition.class_names", "[cow, disc, square, triangle]"), "condition.class_names: .*new cow"),
    (("--condition.class_names", "[disc, square]"), "condition.class_names: the data have the class triangle too"),
    (("--condition.action_scale", "[1.0]"), "condition.action_scale: 1 numbers, and the actions of the data have 2"),
    (("--condition.dropout", "0.1"), "condition.dropout: is 0.1, but the run"),
    (("--condition.kinds", "[class]"), "condition.kinds: is"),
])  # fmt: skip
def test_a_resume_with_other_conditions_is_refused(run, more, error):
    saved = (run / "config.yaml").read_text()
    with pytest.raises(UserError, match=error) as raised:
        train_pushed(run.parent, "--training.num_steps", "6", *more)
    assert "\n" not in str(raised.value)
    assert (run / "config.yaml").read_text() == saved


def test_a_resume_asks_for_the_text_encoder_that_it_was_trained_with(run):
    checkpoint = read_checkpoint(run)
    text = {**checkpoint.config["condition"]["text"], "encoder": "clip", "model": "some/clip"}
    condition = {**checkpoint.config["condition"], "text": {**text, "weights": "ab" * 32}}
    before = dataclasses.replace(checkpoint, config={**checkpoint.config, "condition": condition})
    config = load_config(arguments(run.parent))
    clips = build_dataset(config.data, "train", config.seed)
    for model, weights in (("some/clip", "ab" * 32), ("other/clip", None)):
        asked = dataclasses.replace(config.condition, text=TextConfig(encoder="clip", model=model))
        settled = dataclasses.replace(config, condition=asked)
        settle_conditions(settled, clips, before)
        assert settled.condition.text.weights == weights
    strange = dataclasses.replace(checkpoint, config={"condition": {**condition, "colour": 3}})
    with pytest.raises(UserError, match="condition.colour: unknown key"):
        settle_conditions(config, clips, strange)


def test_weights_begin_a_run_of_the_same_classes_alone(tmp_path, run):
    begin = ("--init_from", str(run), *WITHOUT_PICTURES)
    assert train_pushed(tmp_path, *begin, "--name", "next").step == 4
    with pytest.raises(UserError, match="condition.class_names: the classes are not those of .*another order"):
        train_pushed(tmp_path, *begin, "--name", "other", "--condition.class_names", "[square, disc, triangle]")


@pytest.mark.parametrize("more, error", [
    (("--data.kind", "shapes"), "condition.kinds: class, and the clips of .* come without; set data.classes folders"),
    (("--condition.kinds", "[]"), "sampling.guidance.condition_scale: 2.0 compares with the network without its"),
    (("--condition.dropout", "0"), "sampling.guidance.condition_scale: 2.0 compares .* condition.dropout 0"),
    (("--conditioning.scheme", "prediction"), "training.visualize_prompts: .* never trains to draw clips from nothing"),
    (("--condition.kinds", "[actions]"), "training.visualize_prompts: condition.kinds is"),
    (("--condition.kinds", "[class]"), "class: 'a disc' is not known to the model; choose one of disc, square"),
])  # fmt: skip
def test_what_cannot_be_trained_is_one_line(tmp_path, more, error, monkeypatch):
    monkeypatch.setenv("VIDPRED_CACHE", str(tmp_path / "cache"))
    if "shapes" in more:
        path = tmp_path / "pushed.yaml"
        kept = [line for line in SETTINGS.splitlines() if "data:" not in line and "num_test_clips: 4" not in line]
        data = "data: {kind: shapes, num_frames: 4, height: 16, width: 16, num_clips: 3, num_val_clips: 1}"
        path.write_text("\n".join([data, *kept]), encoding="utf-8")
        with pytest.raises(UserError, match=error):
            train(load_config(["--config", str(path), "--runs_dir", str(tmp_path), "--device", "cpu"]))
        return
    with pytest.raises(UserError, match=error):
        train_pushed(tmp_path, *more)


# Tools ------------------------------------------------------------------------------------------------------


def test_predict_under_conditions(run, video, tmp_path, run_file):
    np.savetxt(tmp_path / "steps.csv", np.ones((7, 2)), delimiter=",")
    out = tmp_path / "out.mp4"
    common = (TOOLS / "predict.py", video, "--checkpoint", run, "-n", "5", "--device", "cpu", "--out", out)
    asked = ("--class", "disc", "--text", "a disc", "--actions", tmp_path / "steps.csv", "--condition-guidance", "1.5")
    code, lines, errors = run_file(*common, *asked)
    assert code == 0 and out.is_file(), errors
    code, _, _ = run_file(*common, "--interpolate", "1", "--text", "a disc")
    assert code == 0
    for more, error in (
        (("--class", "cow"), "class: 'cow' is not known"),
        (("--actions", tmp_path / "none.csv"), "--actions: .*none.csv: cannot be read"),
        (("--actions", tmp_path / "steps.csv", "-n", "9"), "--actions: .* has 7 rows, and its clip 11 frames"),
        (("--condition-guidance", "2"), "--condition-guidance: nothing is asked for"),
        (("--interpolate", "1", "--actions", tmp_path / "steps.csv"), "--actions: frames between two others have none"),
    ):
        code, _, errors = run_file(*common, *more)
        assert code == 2 and len(errors) == 1 and re.search(error, errors[0]), (more, errors)


def test_samples_of_prompts_classes_and_nothing(run, tmp_path, run_file):
    def sample(*more, out="out"):
        common = (TOOLS / "sample.py", "--checkpoint", run, "--device", "cpu", "--out", tmp_path / out)
        return run_file(*common, *more)

    code, lines, errors = sample("--prompts", "a disc", "圆", "--count", "2", "--seeds", "0", "5", "--save-each")
    assert code == 0 and "8 samples" in lines[-1], errors
    with Image.open(tmp_path / "out" / "samples.gif") as grid:
        assert grid.n_frames == 4 and grid.size[0] > 4 * 128 > 2 * grid.size[1] - 200, "two rows of four"
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert record["rows"] == ["a disc", "圆"] and record["columns"][2] == {"seed": 5, "draw": 0}
    code, _, _ = sample("--classes", "all", "--guidance", "3", "--steps", "3", "--sampler", "heun", out="classes")
    assert code == 0
    record = json.loads((tmp_path / "classes" / "samples.json").read_text())
    assert record["rows"] == ["disc", "square", "triangle"] and record["condition_scale"] == 3
    assert sample("--count", "2", out="nothing")[0] == 0

    # A sample is a function of its seed, its number and its prompt.
    sample("--prompts", "x", "a disc", "--count", "2", "--seeds", "5", "--batch-size", "1", "--save-each", out="again")
    read = lambda *path: np.asarray(Image.open(tmp_path.joinpath(*path)).convert("RGB"))
    np.testing.assert_array_equal(read("again", "row_001_column_001.gif"), read("out", "row_000_column_003.gif"))

    for more, error in (
        (("--classes", "cow"), "class: 'cow' is not known to the model"),
        (("--count", "0"), "--count: 0 must be 1 or more"),
        (("--guidance", "3"), "--guidance: nothing is asked for; give --prompts or --classes"),
    ):
        code, _, errors = sample(*more)
        assert code == 2 and len(errors) == 1 and error in errors[0]


def test_a_model_that_only_continues_draws_nothing(tmp_path, run_file, run):
    path = tmp_path / "plain.yaml"
    path.write_text(SETTINGS, encoding="utf-8")
    plain = (
        "--conditioning.scheme", "prediction", "--condition.kinds", "[]", "--sampling.guidance.condition_scale", "1",
        *WITHOUT_PICTURES, "--training.num_steps", "1", "--evaluation.num_clips", "1",
    )  # fmt: skip
    train_pushed(tmp_path, "--name", "plain", *plain)
    code, _, errors = run_file(TOOLS / "sample.py", "--checkpoint", tmp_path / "plain", "--device", "cpu")
    assert code == 2 and "never trained without given frames" in errors[-1]
    code, _, errors = run_file(TOOLS / "check_steering.py", "--checkpoint", tmp_path / "plain", "--device", "cpu")
    assert code == 2 and "condition.kinds: the model takes no actions" in errors[-1]


@pytest.mark.parametrize("tool", ["test_model_inference.py", "diagnose_diffusion.py"])
def test_the_examination_knows_conditions(run, tmp_path, run_file, tool):
    code, lines, errors = run_file(TOOLS / tool, "--checkpoint", run, "--device", "cpu", "--out", tmp_path)
    assert code in (0, 1) and lines[-1].startswith("verdict: "), errors


def test_evaluation_uses_each_clips_own_condition(run, tmp_path, run_file):
    code, lines, errors = run_file(
        TOOLS / "evaluate.py", "--checkpoint", run, "--device", "cpu", "--clips", "2", "--frames", "8",
        "--lpips-net", "none", "--out", tmp_path / "result",
    )  # fmt: skip
    assert code == 0, errors
    (file,) = (tmp_path / "result").rglob("*.json")
    assert json.loads(file.read_text())["protocol"]["conditions"] == ["class", "text", "actions"]


# Steering ---------------------------------------------------------------------------------------------------


def test_the_check_finds_a_shape_where_it_is_and_notices_none(monkeypatch, run):
    monkeypatch.syspath_prepend(str(TOOLS))
    from check_steering import Row, _errors_of, centroids

    from vidpred.data import PushedShapesConfig

    scenes = [pushed_scene(PushedShapesConfig(num_frames=6), "test", index) for index in range(12)]
    found = np.stack([centroids(scene.pixels(32, 32, np.arange(6)), scene) for scene in scenes])
    assert _errors_of(found, scenes).max() < 0.4
    empty = np.zeros((6, 32, 32, 3), dtype=np.uint8) + (scenes[0].background * 255).astype(np.uint8)
    row = Row("empty", _errors_of(centroids(empty, scenes[0])[None], scenes[:1]))
    assert row.follows == 0 and row.to_json()["no_shape"] == 1 and row.to_json()["median_error_pixels"] is None
    moved = scenes[0].pixels(32, 32, np.zeros(6, dtype=int))
    errors = _errors_of(centroids(moved, scenes[0])[None], scenes[:1])
    np.testing.assert_allclose(errors[0], np.linalg.norm(scenes[0].centres[:1] - scenes[0].centres, axis=1), atol=0.5)


def test_who_guesses_right_without_actions_is_not_steered(monkeypatch):
    """Every clip follows in two of four frames where the shape stays, so that its interval is no wider than 0."""
    monkeypatch.syspath_prepend(str(TOOLS))
    from check_steering import Row, is_steered

    right, half, more = np.zeros((6, 4)), np.tile([0.0, 0, 9, 9], (6, 1)), np.tile([0.0, 0, 0, 9], (6, 1))
    told, stays = Row("told", right), Row("stays", half)
    assert stays.most_by_chance == 0.5 and is_steered(told, Row("withheld", half), stays)
    assert not is_steered(told, Row("withheld", more), stays), "0.75 without actions is below 95 %, and no chance"
    assert not is_steered(Row("told", more), Row("withheld", half), stays)
    uneven = Row("stays", np.concatenate([half[:3], more[:3]]))  # shares 0.5 and 0.75, half width t s / sqrt(6)
    assert uneven.most_by_chance == pytest.approx(0.625 + 2.5706 * 0.125 * (6 / 5) ** 0.5 / 6**0.5, abs=1e-4)


def test_a_shape_that_stays_is_where_it_was_seen_last(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from check_steering import errors_of_still

    from vidpred.data import PushedShapesConfig

    scenes = [pushed_scene(PushedShapesConfig(num_frames=6), "test", index) for index in range(3)]
    errors = errors_of_still(scenes, frames=6, known=2)
    for scene, of_scene in zip(scenes, errors):
        np.testing.assert_allclose(of_scene, np.linalg.norm(scene.centres[2:6] - scene.centres[1], axis=1))


def test_an_untrained_model_is_not_steered(run, tmp_path, run_file):
    code, lines, errors = run_file(
        TOOLS / "check_steering.py", "--checkpoint", run, "--device", "cpu", "--clips", "4", "--frames", "3",
        "--guidance", "1", "--out", tmp_path,
    )  # fmt: skip
    assert code == 1 and lines[-1].startswith("verdict: not steered"), errors
    report = json.loads((tmp_path / "steering.json").read_text())
    names = [row["name"] for row in report["rows"]]
    assert names == ["with actions, guidance 2", "with actions, guidance 1", "actions withheld", "the shape stays"]
    assert report["steered"] is False and all(len(row["follows_by_horizon"]) == 3 for row in report["rows"])
