"""Images, which are clips of one frame, through the commands that a user calls."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed_helper import REPOSITORY, run_torchrun
from end_to_end_helper import assert_same, losses, metrics
from PIL import Image
from test_data_moving_digits import write_mnist

from vidpred import range_checks
from vidpred.assembly import train
from vidpred.checkpoint_store import read_checkpoint
from vidpred.configuration import load_config
from vidpred.data.picture import render_ring
from vidpred.errors import UserError
from vidpred.prediction import load_predictor
from vidpred.tensor_ops import to_uint8

SCRIPT, TOOLS = str(REPOSITORY / "train_video_pred.py"), REPOSITORY / "tools"

SETTINGS = """
autoencoder: {kind: mock, down_factor: 2, min_psnr: 5}
conditioning: {scheme: unconditional, context_frames: 0}
network: {channels: [8, 16], blocks_per_level: 1, head_dim: 8, spatial_attention_levels: [1],
          temporal_attention_levels: [1]}
diffusion: {parameterization: eps}
sampling: {num_inference_steps: 2}
training: {num_steps: 4, batch_size: 4, learning_rate: 1e-3, warmup_steps: 2, log_every_step: 1,
           validate_every_step: 2, validation_clips: 3, checkpoint_every_step: 2, visualize_every_step: 0,
           visualize_clips: 3, evaluate_every_step: 0}
evaluation: {task: unconditional, num_clips: 3, num_panels: 3, lpips_net: none}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDPRED_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path) -> str:
    """A data section: a dozen pictures of noise around another colour each."""
    folder, generator = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for number in range(12):
        noise = generator.integers(0, 60, (20, 24, 3)) + generator.integers(0, 190, 3)
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number}.png")
    return f"data: {{kind: image_folder, root: {folder}, height: 16, width: 16, num_workers: 0, val_fraction: 0.3}}\n"


def without(section: str) -> str:
    """The settings, so that the section may have another kind."""
    return re.sub(rf"^{section}: \{{.*?\}}\n", "", SETTINGS, flags=re.DOTALL | re.MULTILINE)


def arguments(folder: Path, data: str, *more: str, settings: str = SETTINGS) -> list[str]:
    """The command line of the run `folder`/images."""
    file = Path(folder) / "images.yaml"
    file.write_text(data + settings)
    return ["--config", str(file), "--runs_dir", str(folder), "--device", "cpu", *more]


def train_images(folder: Path, data: str, *more: str, settings: str = SETTINGS):
    range_checks.reset()
    try:
        return train(load_config(arguments(folder, data, *more, settings=settings)))
    finally:
        range_checks.reset()


def test_pictures_are_trained_evaluated_diagnosed_and_drawn(tmp_path, pictures, run_file):
    outcome = train_images(tmp_path, pictures)
    run = tmp_path / "images"
    assert outcome.step == 4 and len(losses(run)) == 4
    with Image.open(run / "evaluation" / "step_00000004" / "grid.png") as grid:
        assert grid.size[0] == grid.size[1] > 2 * 128, "three pictures in a square of four"
    result = json.loads((run / "evaluation" / "step_00000004.json").read_text())
    assert result["protocol"]["task"] == "unconditional" and result["protocol"]["predicted_frames"] == 1
    assert result["ceiling"]["psnr"]["mean"] > 5 and result["model"]["psnr"]["mean"] is None
    assert result["motion_energy_ratio"] is None

    picture = load_predictor(run, "cpu").predict(torch.empty(2, 0, 3, 16, 16, dtype=torch.uint8), 1)
    assert picture.shape == (2, 1, 3, 16, 16)
    code, lines, _ = run_file(TOOLS / "evaluate.py", "--checkpoint", run, "--split", "test", "--report")
    assert code == 0 and "0 given and 1 predicted frames (unconditional)" in "\n".join(lines)
    for tool in ("diagnose_diffusion.py", "test_model_inference.py"):
        code, lines, errors = run_file(TOOLS / tool, "--checkpoint", run, "--device", "cpu")
        assert code in (0, 1) and not errors and lines[-1].startswith("verdict: ")
    assert (run / "inference" / "step_00000004" / "grid.png").is_file()
    video = tmp_path / "some.mp4"
    code, _, errors = run_file(TOOLS / "test_model_inference.py", "--checkpoint", run, "--video", video)
    assert code == 2 and "this model generates from nothing and cannot continue a video" in errors[-1]


def test_two_processes_and_a_resume_see_what_one_run_sees(tmp_path, pictures):
    """Every parameter of the temporal layers receives a gradient with one frame, or DDP would stop."""
    folders = [tmp_path / name for name in ("one", "two", "parts")]
    for folder in folders:
        folder.mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes have
    try:
        train_images(folders[0], pictures)
        train_images(folders[2], pictures, "--training.num_steps=2")
        train_images(folders[2], pictures)
    finally:
        torch.set_num_threads(threads)
    run_torchrun(SCRIPT, arguments(folders[1], pictures), nproc=2, timeout=200)
    one, two, parts = (read_checkpoint(folder / "images") for folder in folders)
    assert_same(dict(one.tensors["ema"]), dict(parts.tensors["ema"]))
    assert losses(folders[1] / "images") == pytest.approx(losses(folders[0] / "images"), abs=1e-5)
    for name, values in one.tensors["ema"].items():
        torch.testing.assert_close(values, two.tensors["ema"][name], rtol=0, atol=1e-4)


def test_pictures_during_training_are_a_grid(tmp_path, pictures):
    train_images(tmp_path, pictures, "--training.visualize_every_step=2", "--training.num_steps=2")
    run = tmp_path / "images"
    assert [path.name for path in (run / "samples" / "step_00000002").iterdir()] == ["grid.png"]
    assert any("sampling/clip_rate" in row for row in metrics(run))


@pytest.mark.parametrize(
    "more, message",
    [(["--evaluation.task=prediction"],
      "evaluation.task: prediction needs 1 or more, and conditioning.context_frames is 0"),
     (["--evaluation.task=infilling"], "evaluation.task: infilling needs 2 or more, and data.num_frames is 1"),
     (["--conditioning.context_frames=1"], "conditioning.context_frames: 1 given frames leave nothing to predict")],
)  # fmt: skip
def test_what_one_frame_cannot_do_is_refused_at_once(tmp_path, pictures, more, message):
    with pytest.raises(UserError, match=message):
        load_config(arguments(tmp_path, pictures, *more))


RING = "data: {kind: picture, height: 16, width: 16}\n"


def test_one_picture_is_compared_with_its_reconstruction(tmp_path, run_file):
    train_images(tmp_path, RING, "--training.num_steps=1")
    run = tmp_path / "images"
    result = json.loads((run / "evaluation" / "step_00000001.json").read_text())
    assert "PSNR of the sample" in result["protocol"]["psnr_to_reconstruction"] and len(result["clips"]) == 3
    model, ceiling = result["model"], result["ceiling"]
    assert ceiling["psnr_to_reconstruction"] == {
        "mean": None, "ci95": None, "per_horizon": None, "unavailable": "it is of the model's samples alone"
    }  # fmt: skip
    rows = (model["psnr"], model["psnr_to_reconstruction"], ceiling["psnr"])
    to_picture, to_ceiling, own = (row["mean"] for row in rows)
    assert 0 < to_picture < 40 and 0 < to_ceiling < 40 and own > 10 and to_picture != to_ceiling
    logged = [row for row in metrics(run) if "eval/psnr_to_reconstruction" in row]
    assert logged[0]["eval/psnr_to_reconstruction"] == to_ceiling

    predictor = load_predictor(run, "cpu")
    sample = predictor.predict(torch.empty(1, 0, 3, 16, 16, dtype=torch.uint8), 1, 0, purpose="evaluation").double()
    picture = render_ring(16, 16, 0.22 * 16, 0.36 * 16)[None, None]
    shown = to_uint8(predictor.decode(predictor.encode(picture))).double()
    figures = [-10 * math.log10(((sample - other) / 255).square().mean()) for other in (picture.double(), shown)]
    of_first = result["clips"][0]["model"]
    assert [of_first["psnr"], of_first["psnr_to_reconstruction"]] == pytest.approx(figures, abs=1e-6)

    code, lines, _ = run_file(TOOLS / "evaluate.py", "--checkpoint", run, "--report", "--out", tmp_path / "out")
    assert code == 0 and any("PSNR to ceiling" in line for line in lines)
    assert "to its reconstruction by the autoencoder" in (tmp_path / "out" / "report.html").read_text()


def test_digits_are_trained_from_mnists_own_files(tmp_path):
    write_mnist(tmp_path / "mnist")
    data = f"data: {{kind: mnist, root: {tmp_path / 'mnist'}, height: 16, width: 16}}\n"
    more = ["--autoencoder.kind=identity", "--autoencoder.channels=1", "--training.num_steps=2"]
    train_images(tmp_path, data, *more, settings=without("autoencoder"))
    digits = load_predictor(tmp_path / "images", "cpu").predict(torch.empty(2, 0, 3, 16, 16, dtype=torch.uint8), 1)
    assert torch.equal(digits[:, :, 0], digits[:, :, 1]), "grey"
