"""The tools that examine a model or predict with it, through the command line: untrained, trained and broken."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidpred.checkpoint_store import CheckpointStore, read_checkpoint
from vidpred.video_io import read_frames, write_video

REPOSITORY = Path(__file__).resolve().parent.parent
DIAGNOSE = REPOSITORY / "tools" / "diagnose_diffusion.py"
INFERENCE = REPOSITORY / "tools" / "test_model_inference.py"
PREDICT = REPOSITORY / "tools" / "predict.py"
RANGE_LINES = (
    "num_inference_steps=",
    "clipped=",
    "Final latents range: [",
    "Denormalized: [",
    "Predicted frames range: [",
)
TINY = """
data: {num_frames: 5, height: 32, width: 32, clip_frames: 8, num_clips: 32, num_val_clips: 8,
       num_test_clips: 1}
conditioning: {context_frames: 2, history_dropout: 0.05}
network: {channels: [32, 64], blocks_per_level: 1, spatial_attention_levels: [],
          temporal_attention_levels: [1]}
diffusion: {schedule: {kind: scaled_linear, beta_start: 0.00085, beta_end: 0.012}, parameterization: x0}
sampling: {num_inference_steps: 4, clip: {kind: auto}}
training: {num_steps: 50, batch_size: 8, learning_rate: 3e-3, warmup_steps: 5, ema_decay: 0.9,
           validation_clips: 4, log_every_step: 50, visualize_every_step: 0, evaluate_every_step: 0}
evaluation: {num_clips: 2, batch_size: 2}
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of the tools' processes: one thread, a cache of their own."""
    cache = str(tmp_path_factory.mktemp("cache"))
    return {**os.environ, "OMP_NUM_THREADS": "1", "VIDPRED_CACHE": cache}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, environment):
    """A folder with a run in it that was trained for a few seconds by the real command."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "tiny.yaml").write_text(TINY)
    train = [sys.executable, str(REPOSITORY / "train_video_pred.py"), "--config", "tiny.yaml"]
    done = subprocess.run(train, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture
def run_tool(environment, monkeypatch, run_file):
    monkeypatch.setenv("VIDPRED_CACHE", environment["VIDPRED_CACHE"])
    return run_file


def plant(workplace, target, change):
    """A copy of the trained run whose checkpoint tensors went through `change`; returns its folder."""
    checkpoint = read_checkpoint(workplace / "runs" / "tiny")
    change(checkpoint.tensors)
    store = CheckpointStore(target / "checkpoints")
    store.save(checkpoint.step, checkpoint.tensors, checkpoint.state, checkpoint.config, {})
    return target


def test_diagnosis_of_an_untrained_model_in_a_clone_that_is_not_installed(tmp_path, environment):
    """An installation in development mode is taken out of sight; the tool's own place leads to vidpred."""
    script = """if True:
        import runpy, sys
        tool, repository = sys.argv[1:]
        sys.argv = [tool]
        sys.path = [folder for folder in sys.path if folder and not repository.startswith(folder)]
        sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
        runpy.run_path(tool, run_name="__main__")
    """
    command = [sys.executable, "-c", script, str(DIAGNOSE), str(REPOSITORY)]
    environment = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("model: untrained model of quickstart.yaml")
    assert lines[-1].startswith("verdict: untrained: the one-step error is")
    assert (tmp_path / "diagnosis" / "untrained.png").stat().st_size > 10_000


def test_inference_with_an_untrained_model(tmp_path, run_tool):
    code, lines, _ = run_tool(INFERENCE, cwd=tmp_path)
    assert code == 0 and lines[-1] == "verdict: healthy: the prediction is finite and in range"
    for start in RANGE_LINES:
        assert sum(line.startswith(start) for line in lines) == 1
    pictures = [Path(line.removeprefix("picture: ")) for line in lines if line.startswith("picture: ")]
    assert len(pictures) == 12 and all(path.stat().st_size for path in pictures)
    assert any("ms per predicted frame" in line and "ms per sampling step" in line for line in lines)


def test_help(run_tool, tmp_path):
    for tool, option in ((DIAGNOSE, "--checkpoint DIR"), (INFERENCE, "--video FILE")):
        code, lines, _ = run_tool(tool, "--help", cwd=tmp_path)
        assert code == 0 and any(option in line for line in lines)


def test_the_newest_run_is_examined_and_healthy(workplace, run_tool):
    code, lines, _ = run_tool(DIAGNOSE, cwd=workplace)
    assert code == 0, lines
    assert lines[0].startswith("model: runs/tiny/checkpoints/step_00000050")
    assert lines[-1].startswith("verdict: healthy: the one-step error is")
    assert any(line.startswith("EMA: norm") and line.endswith("updates 50") for line in lines)
    assert (workplace / "runs" / "tiny" / "diagnosis" / "step_00000050.png").exists()

    code, lines, _ = run_tool(INFERENCE, "--clips", 1, cwd=workplace)
    assert code == 0 and "num_inference_steps=4" in lines
    assert len(list((workplace / "runs" / "tiny" / "inference" / "step_00000050").iterdir())) == 3


@pytest.mark.parametrize("frames, with_truth", [(9, True), (3, False)])
def test_inference_on_a_video(workplace, run_tool, tmp_path, frames, with_truth):
    """Of another size and shape than the training clips; the second is too short to hold the truth."""
    video = tmp_path / "video of mine.mp4"
    ramp = torch.arange(frames * 3 * 48 * 80).remainder(256).to(torch.uint8).reshape(frames, 3, 48, 80)
    write_video(video, ramp, 10)
    code, lines, _ = run_tool(
        INFERENCE, "--video", video, "--out", tmp_path / "out", "--checkpoint", workplace / "runs" / "tiny",
        cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, lines
    strip = tmp_path / "out" / "00_video of mine.png"
    from PIL import Image

    rows = 3 if with_truth else 1
    width, height = Image.open(strip).size
    assert rows * 128 < height < (rows + 1) * 128 and 5 * 128 < width < 8 * 128


@pytest.fixture
def video(tmp_path):
    """Ten frames, 48x80, ten a second; the first line of each tells its number."""
    ramp = torch.arange(10)[:, None, None, None].mul(20).expand(-1, 3, 48, 80).to(torch.uint8)
    write_video(tmp_path / "mine.mp4", ramp, 10)
    return tmp_path / "mine.mp4"


@pytest.mark.parametrize(
    "more, fps, frames",
    [([], 10, 2 + 5),
     (["--start", 0.6, "--guidance", 1.5, "--sampler", "euler", "--steps", 2], 10, 2 + 5),
     (["--rollout", "keyframes", "--stride", 2, "--stabilization", 0.1], 10, 2 + 5),
     (["--rollout", "pyramid", "--overlap", 1], 10, 2 + 5),
     (["--interpolate", 2], 30, 5 + 4 * 2)],
)  # fmt: skip
def test_a_video_goes_on(workplace, run_tool, video, tmp_path, more, fps, frames):
    run, out = workplace / "runs" / "tiny", tmp_path / "out.mp4"
    code, lines, _ = run_tool(
        PREDICT, video, "-n", 5, "--trajectories", 2, "--out", out, "--save-frames", tmp_path / "png",
        "--checkpoint", run, *more, cwd=tmp_path,
    )  # fmt: skip
    assert code == 0 and lines[-1].startswith(f"video: {out}"), lines
    pictures, rate = read_frames(out)
    assert len(pictures) == frames and rate == fps
    saved = [sorted((tmp_path / "png" / f"trajectory_{k}").iterdir()) for k in range(2)]
    assert [len(paths) for paths in saved] == [frames, frames]
    first, last = ([paths[time].read_bytes() for paths in saved] for time in (0, -3))
    assert first[0] == first[1] and last[0] != last[1]  # what is given is given to all, their futures differ


@pytest.mark.parametrize(
    "more, message",
    [(["--start", 2], "ends at 0.90 s, before 2 s"),
     (["--start", 0.9], "holds 1 frames from 0.9 s on, and the model needs 2"),
     (["-n", 0], "--num-frames: 0 must be 1 or more"),
     (["--overlap", 5], "overlap: 5 leaves no frame to predict"),
     (["--steps", 0], "sampling.num_inference_steps: 0")],
)  # fmt: skip
def test_a_video_that_cannot_go_on_is_one_line(workplace, run_tool, video, tmp_path, more, message):
    run = workplace / "runs" / "tiny"
    code, lines, errors = run_tool(PREDICT, video, "--checkpoint", run, *more, cwd=tmp_path)
    assert code == 2 and message in errors[-1] and not any("Traceback" in line for line in errors)
    assert not list(tmp_path.glob("*.png")) and not list(tmp_path.glob("*_predicted.mp4"))


def test_guidance_of_a_model_that_never_missed_its_history_is_refused(workplace, run_tool, video, tmp_path):
    trained = read_checkpoint(workplace / "runs" / "tiny")
    conditioning = {**trained.config["conditioning"], "history_dropout": 0.0}
    store = CheckpointStore(tmp_path / "never" / "checkpoints")
    store.save(trained.step, trained.tensors, trained.state, {**trained.config, "conditioning": conditioning}, {})
    arguments = (video, "--checkpoint", tmp_path / "never", "--guidance")
    code, _, errors = run_tool(PREDICT, *arguments, 1.5, cwd=tmp_path)
    assert code == 2 and "--guidance 1.5: guidance compares with what is predicted without given frames" in errors[-1]
    assert run_tool(PREDICT, *arguments, 1, "-n", 1, cwd=tmp_path)[0] == 0


def test_not_finite_weights(workplace, run_tool, tmp_path):
    def poison(tensors):
        next(iter(tensors["ema"].values())).fill_(torch.nan)

    run = plant(workplace, tmp_path / "poisoned", poison)
    for tool in (DIAGNOSE, INFERENCE):
        code, lines, _ = run_tool(tool, "--checkpoint", run, cwd=tmp_path)
        assert code == 1 and lines[-1].startswith("verdict: weights_not_finite: 1 tensors hold NaN"), lines
    assert json.loads((run / "diagnosis" / "diagnosis.json").read_text())["healthy"] is False


def test_exploded_weights(workplace, run_tool, tmp_path):
    def explode(tensors):
        for values in [*tensors["model"].values(), *tensors["ema"].values()]:
            values.mul_(30)

    run = plant(workplace, tmp_path / "exploded", explode)
    for tool, said in ((DIAGNOSE, "weights_exploded: the norm"), (INFERENCE, "x0_explodes: x0 before clipping is in")):
        code, lines, _ = run_tool(tool, "--checkpoint", run, cwd=tmp_path)
        assert code == 1 and lines[-1].startswith(f"verdict: {said}"), lines


def test_an_average_that_was_never_updated(workplace, run_tool, tmp_path):
    def reset(tensors):
        for values in list(tensors["ema"].values())[-2:]:
            values.zero_()

    run = plant(workplace, tmp_path / "stuck", reset)
    code, lines, _ = run_tool(DIAGNOSE, "--checkpoint", run, cwd=tmp_path)
    assert code == 1 and lines[-1].startswith("verdict: ema_never_updated: ") and "2 of its tensors" in lines[-1], lines


def test_raw_latents(workplace, run_tool, tmp_path):
    def identity(tensors):
        for name, value in (("shift", 0.0), ("scale", 1.0), ("low", -3.0), ("high", 3.0)):
            tensors["calibration"][name].fill_(value)

    run = plant(workplace, tmp_path / "raw", identity)
    code, lines, _ = run_tool(DIAGNOSE, "--checkpoint", run, cwd=tmp_path)
    assert code == 1 and lines[-1].startswith("verdict: latent_scale_missing: "), lines


@pytest.mark.parametrize(
    "section, values, name",
    [("diffusion", {"parameterization": "v"}, "wrong_parameterization"),
     ("diffusion", {"schedule": {"kind": "cosine"}}, "wrong_schedule"),
     ("autoencoder", {"pixel_norm": "imagenet"}, "wrong_pixel_normalization"),
     ("sampling", {"clip": {"kind": "static", "bound": 0.3}}, "clip_bound_binds")],
)  # fmt: skip
def test_a_configuration_that_is_not_that_of_the_training(workplace, run_tool, tmp_path, section, values, name):
    checkpoint = read_checkpoint(workplace / "runs" / "tiny")
    checkpoint.config[section].update(values)
    store = CheckpointStore(tmp_path / "changed" / "checkpoints")
    store.save(checkpoint.step, checkpoint.tensors, checkpoint.state, checkpoint.config, {})
    code, lines, _ = run_tool(DIAGNOSE, "--checkpoint", tmp_path / "changed", cwd=tmp_path)
    assert code == 1 and lines[-1].startswith(f"verdict: {name}: "), lines[-20:]


def test_too_little_memory_is_one_line(workplace, run_tool, tmp_path, monkeypatch):
    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("vidpred.diagnosis.diagnose_subject", run_out)
    code, _, errors = run_tool(DIAGNOSE, "--checkpoint", workplace / "runs" / "tiny", "--clips", 7, cwd=tmp_path)
    assert (code, errors) == (2, ["error: out of GPU memory with 7 clips; look at fewer of them (--clips)"])


def test_what_cannot_be_examined_is_one_line(workplace, run_tool, tmp_path):
    run = workplace / "runs" / "tiny"
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    torn = tmp_path / "torn"
    shutil.copytree(run / "checkpoints", torn / "checkpoints")
    (torn / "checkpoints" / "step_00000050" / "manifest.json").unlink()
    file = tmp_path / "file"
    file.touch()
    for tool, arguments, message in (
        (DIAGNOSE, ["--checkpoint", tmp_path / "nowhere"], "nowhere: no such folder"),
        (DIAGNOSE, ["--checkpoint", torn / "checkpoints" / "step_00000050"], "manifest.json is missing"),
        (DIAGNOSE, ["--checkpoint", run, "--clips", "0"], "--clips: 0 must be"),
        (DIAGNOSE, ["--checkpoint", run, "--device", "gpu"], "device: 'gpu' is not known"),
        (DIAGNOSE, ["--checkpoint", run, "--out", file / "below"], "give another folder with --out"),
        (INFERENCE, ["--checkpoint", run, "--video", tmp_path / "none.mp4"], "none.mp4: does not exist"),
        (INFERENCE, ["--checkpoint", run, "--video", broken], "broken.mp4: cannot be opened"),
    ):
        code, _, errors = run_tool(tool, *arguments, cwd=tmp_path)
        assert code == 2 and len(errors) == 1, errors
        assert errors[0].startswith("error: ") and message in errors[0]
