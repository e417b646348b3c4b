"""Assembling a run, in this process: what it leaves behind, how it goes on, and what it refuses to begin."""

import json
from dataclasses import dataclass

import pytest
import torch
import yaml
from end_to_end_helper import (
    CONTEXT,
    FRAMES,
    SIZE,
    assert_same,
    cache,  # noqa: F401  (a fixture)
    losses,
    metrics,
    tiny_arguments,
    tiny_config,
    train_tiny,
)
from torch import nn

from vidpred.assembly import build_predictor, build_task, calibrate
from vidpred.autoencoders import build_autoencoder
from vidpred.checkpoint_store import read_checkpoint
from vidpred.conditioning import conditioner
from vidpred.configuration import config_from_resolved, load_config
from vidpred.data import Clip, ClipDataset, ClipError
from vidpred.errors import UserError
from vidpred.networks import NETWORKS, UNetConfig
from vidpred.prediction import LatentCalibration, load_predictor
from vidpred.training import RunOutcome

pytestmark = pytest.mark.usefixtures("cache")
RHYTHMS = ["--training.visualize_every_step=3", "--training.evaluate_every_step=3", "--logging.tensorboard"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):  # noqa: F811
    """A run of six steps with everything switched on; tests only look at it."""
    folder = tmp_path_factory.mktemp("finished")
    assert train_tiny(folder, *RHYTHMS) == RunOutcome("finished", 6)
    return folder / "tiny"


def refusal(folder, *more) -> str:
    with pytest.raises(UserError) as caught:
        train_tiny(folder, *more)
    message = str(caught.value)
    assert "\n" not in message, message
    return message


def test_pictures_every_epoch(tmp_path):
    """6 items in batches of 2 are an epoch of 3 steps, of 4 rounded up one of 2."""
    for batch, steps in ((2, [3, 6]), (4, [2, 4, 6])):
        (tmp_path / str(batch)).mkdir()
        train_tiny(tmp_path / str(batch), "--training.visualize_every_step=epoch", f"--training.batch_size={batch}")
        pictured = sorted(int(path.name[5:]) for path in (tmp_path / str(batch) / "tiny" / "samples").iterdir())
        assert pictured == steps
    with pytest.raises(UserError, match="training.visualize_every_step: 'year' is not possible; give .* or epoch"):
        tiny_config(tmp_path, "--training.visualize_every_step=year")


# What a run leaves behind ----------------------------------------------------------------------------------


def test_the_run_folder_holds_what_was_promised(finished):
    assert {path.name for path in finished.iterdir()} == {
        "config.yaml", "metrics.jsonl", "data_report.json", "samples", "evaluation", "checkpoints",
        "tensorboard",
    }  # fmt: skip
    steps = ["step_00000003", "step_00000006"]
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == steps
    assert sorted(path.name for path in (finished / "samples").iterdir()) == steps
    assert {path.suffix for path in (finished / "samples" / steps[0]).iterdir()} == {".png", ".gif", ".mp4"}
    reports = (finished / "evaluation").glob("*.json")
    assert sorted(path.stem for path in reports) == steps
    assert {path.name for path in (finished / "checkpoints" / steps[1]).iterdir()} == {
        "model.safetensors", "ema.safetensors", "calibration.safetensors", "record.safetensors", "training.pt",
        "config.yaml", "info.json", "manifest.json",
    }  # fmt: skip
    assert next((finished / "tensorboard").iterdir()).stat().st_size > 1000


def test_the_resolved_configuration_is_saved_in_run_folder_and_checkpoint(finished):
    config = tiny_config(finished.parent, *RHYTHMS)
    saved = yaml.safe_load((finished / "config.yaml").read_text())
    assert saved == config.resolved() == read_checkpoint(finished).config
    assert config_from_resolved(saved) == config


def test_metrics_hold_every_key_at_its_step(finished):
    steps: dict[str, list[int]] = {}
    for row in metrics(finished):
        for key in row:
            steps.setdefault(key, []).append(row["step"])
    for key in ("train/loss", "train/grad_norm", "train/learning_rate", "train/samples_per_second",
                "train/data_wait_share", "train/memory_gib", "range/encoded latents/min"):  # fmt: skip
        assert steps[key] == [1, 2, 3, 4, 5, 6], key
    for key in ("validation/loss", "validation/loss_ema", "train/visualization", "sampling/clip_rate",
                "sampling/num_inference_steps", "eval/psnr", "eval/ssim", "eval/psnr_over_copy_last",
                "eval/psnr_over_linear", "eval/motion_energy_ratio"):  # fmt: skip
        assert steps[key] == [3, 6], key
    assert any(key.startswith("train/loss_code_") for key in steps) and "eval/lpips" not in steps
    pictures = next(row["train/visualization"] for row in metrics(finished) if "train/visualization" in row)
    assert pictures and all((finished / path).is_file() for path in pictures)


def test_layout_of_the_evaluation(finished):
    result = json.loads((finished / "evaluation" / "step_00000006.json").read_text())
    assert {"protocol", "model", "floor", "linear", "ceiling", "motion_energy_ratio"} <= result.keys()
    for row in ("model", "floor", "linear", "ceiling"):
        for metric in ("psnr", "ssim"):
            entry = result[row][metric]
            assert entry.keys() == {"mean", "ci95", "per_horizon"}
            assert len(entry["per_horizon"]) == FRAMES - CONTEXT
            assert entry["mean"] == pytest.approx(sum(entry["per_horizon"]) / 2)
        assert result[row]["lpips"]["mean"] is None
        assert "switched off" in result[row]["lpips"]["unavailable"]
    protocol = result["protocol"]
    assert (protocol["clips"], protocol["context_frames"], protocol["predicted_frames"]) == (3, CONTEXT, 2)
    text = json.dumps(protocol)
    for word in ("seed", "sampler", "num_inference_steps", "ema", "round", "lpips"):
        assert word in text, word
    logged = next(row["eval/psnr"] for row in reversed(metrics(finished)) if "eval/psnr" in row)
    assert logged == result["model"]["psnr"]["mean"]


def test_the_checkpoint_alone_predicts(finished):
    predictor = load_predictor(finished, device="cpu")
    frames = torch.randint(0, 256, (CONTEXT, 3, SIZE, SIZE), dtype=torch.uint8)
    prediction = predictor.predict(frames, num_frames=3)
    assert prediction.shape == (3, 3, SIZE, SIZE) and prediction.dtype == torch.uint8
    assert torch.equal(prediction, load_predictor(finished / "checkpoints", device="cpu").predict(frames, 3))


# The same command again ------------------------------------------------------------------------------------


def test_a_finished_run_says_so_and_does_nothing(finished, caplog):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("step_*")}
    with caplog.at_level("INFO", "vidpred"):
        assert train_tiny(finished.parent, *RHYTHMS[:2]) == RunOutcome("already finished", 6)
    assert "run already finished: 6 of 6 steps done; raise training.num_steps to go on" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("step_*")} == before
    assert len([row for row in metrics(finished) if "train/loss" in row]) == 6


@pytest.mark.parametrize(
    "change, message",
    [
        ("--seed=1", "seed: is 1, but the run in"),
        ("--data.height=32", "data.height: is 32, but the run in"),
        ("--network.channels=[8, 24]", "network.channels: is [8, 24], but the run in"),
        ("--diffusion.schedule.beta_end=0.03", "diffusion.schedule.beta_end: is 0.03"),
        ("--conditioning.context_frames=1", "conditioning.context_frames: is 1"),
        ("--autoencoder.kind=pixel_unshuffle", "autoencoder.kind: is pixel_unshuffle"),
    ],
)
def test_another_model_or_other_data_do_not_resume(finished, change, message):
    before = (finished / "config.yaml").read_text()
    line = refusal(finished.parent, change)
    assert message in line and "was started with" in line and "--name" in line
    assert (finished / "config.yaml").read_text() == before


def test_a_longer_run_with_other_rates_goes_on(finished, tmp_path):
    train_tiny(tmp_path)
    longer = ["--training.num_steps=8", "--training.learning_rate=1e-4", "--data.num_workers=1"]
    assert train_tiny(tmp_path, *longer) == RunOutcome("finished", 8)
    rows = [row for row in metrics(tmp_path / "tiny") if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 9)) and rows[-1]["train/learning_rate"] == 1e-4
    # The first six are those of the other run: two runs of one configuration are one run.
    assert losses(tmp_path / "tiny")[:6] == losses(finished)


# Beginning from weights ------------------------------------------------------------------------------------


def test_init_from_takes_the_averaged_weights_and_nothing_else(finished, tmp_path):
    averaged = read_checkpoint(finished).tensors["ema"]
    config = tiny_config(tmp_path, f"--init_from={finished}", "--seed=9")
    task = build_task(config, tmp_path, torch.device("cpu"), None)
    assert_same(dict(task.network.state_dict()), dict(averaged))
    assert train_tiny(tmp_path, f"--init_from={finished}", "--training.num_steps=2").step == 2
    checkpoint = read_checkpoint(tmp_path / "tiny")
    assert checkpoint.step == 2 and checkpoint.state["ema_updates"] == 2
    assert losses(tmp_path / "tiny")[0] < losses(finished)[0]  # it begins where the other run ended


def test_init_from_is_checked_before_any_data_is_touched(finished, tmp_path):
    nothing = ["--data.kind=video_folder", "--data.root=/does/not/exist", f"--init_from={tmp_path}/none"]
    file = tmp_path / "folder.yaml"
    file.write_text("data: {height: 16, width: 16}\n")
    with pytest.raises(UserError, match=f"{tmp_path}/none"):
        build_task(load_config(["--config", str(file), *nothing]), tmp_path, torch.device("cpu"), None)
    assert "its network is not the one configured" in refusal(
        tmp_path, f"--init_from={finished}", "--network.channels=[16, 16]"
    )


# What a run is a function of -------------------------------------------------------------------------------


def test_first_weights_are_a_function_of_the_seed_alone(tmp_path):
    def weights(seed):
        torch.manual_seed(torch.seed() % 1000)  # whatever the process did before
        config = tiny_config(tmp_path, f"--seed={seed}")
        autoencoder = build_autoencoder(config.autoencoder)
        calibration = LatentCalibration(autoencoder.latent_channels)
        predictor = build_predictor(config, autoencoder, calibration, torch.device("cpu"))
        return predictor.denoiser.network.state_dict()

    assert_same(dict(weights(4)), dict(weights(4)))
    assert not torch.equal(weights(4)["stem.weight"], weights(5)["stem.weight"])


def test_what_a_text_encoder_draws_while_it_is_loaded_changes_no_weights(tmp_path, monkeypatch):
    def weights():
        config = tiny_config(tmp_path, '--condition.kinds=["text"]', "--condition.width=8")
        autoencoder = build_autoencoder(config.autoencoder)
        calibration = LatentCalibration(autoencoder.latent_channels)
        predictor = build_predictor(config, autoencoder, calibration, torch.device("cpu"))
        return dict(predictor.denoiser.network.state_dict())

    usual, build = weights(), conditioner.TEXT_ENCODERS["bytes"]

    def drawing(config):
        torch.randn(3)
        return build(config)

    monkeypatch.setitem(conditioner.TEXT_ENCODERS, "bytes", drawing)
    assert_same(usual, weights())


def test_one_batch_can_be_overfitted(tmp_path):
    """The first thing that everybody tries: far below copy-last (a loss of about 1 in calibrated units)."""
    arguments = ["--overfit_one_batch", "--training.num_steps=80", "--training.batch_size=2",
                 "--training.learning_rate=1e-2", "--training.validate_every_step=0",
                 "--training.visualize_every_step=80", "--network.channels=[16, 32]",
                 "--training.checkpoint_every_step=80"]  # fmt: skip
    train_tiny(tmp_path, *arguments)
    run = tmp_path / "tiny_overfit"  # apart from the real run of the same configuration
    curve = losses(run)
    assert sum(curve[-10:]) < 0.05 * sum(curve[:10]), curve
    assert list((run / "samples" / "step_00000080").glob("*.png"))


# What is refused at the start ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--training.batch_size=8", "--training.accumulation=3"], "choose a multiple of 3"),
        (["--data.height=18", "--autoencoder.down_factor=4"], "data.height: 18 is not a multiple of the"),
        (["--init_from=none"], "none"),
    ],
)
def test_impossible_combinations_are_refused_before_any_data(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setenv("VIDPRED_CACHE", str(tmp_path / "untouched"))
    assert message in refusal(tmp_path, *arguments)
    assert not (tmp_path / "untouched").exists()


def test_more_processes_than_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    line = refusal(tmp_path, "--device=cuda")
    assert line == "--nproc_per_node 4 but 2 GPUs: lower it or use --device cpu"
    assert not (tmp_path / "tiny").exists()


def test_an_autoencoder_that_gives_back_something_else_is_named(tmp_path):
    line = refusal(tmp_path, "--autoencoder.min_psnr=60")
    assert "mock autoencoder" in line and "60" in line


# A model that breaks ---------------------------------------------------------------------------------------


@pytest.fixture
def breaking_network(monkeypatch):
    """`network.kind: breaking`: its fourth call in training leaves a NaN in its own weights."""
    monkeypatch.setattr(NETWORKS, "_kinds", dict(NETWORKS._kinds))

    class Breaking(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.mix = nn.Conv3d(channels, channels, 1)
            self.calls = 0

        def forward(self, x, noise_code, given, frame_times, condition=None):
            if self.training:
                self.calls += 1
            if self.calls == 4:
                nn.init.constant_(self.mix.bias, torch.nan)
            return self.mix(x.movedim(1, 2)).movedim(1, 2)

    @dataclass
    class BreakingConfig(UNetConfig):
        kind: str = "breaking"

    build = NETWORKS.register("breaking", BreakingConfig)
    build(lambda config, in_channels, out_channels: Breaking(in_channels))


def test_weights_that_become_nan_are_reported_and_not_saved(tmp_path, breaking_network, caplog):
    line = refusal(tmp_path, "--network.kind=breaking", "--training.num_steps=40")
    assert "step 6: the weights are not finite, so no checkpoint is written" in line
    assert "step 4: loss nan" in caplog.text and "(3 in a row)" in caplog.text
    saved = read_checkpoint(tmp_path / "tiny")
    assert saved.step == 3 and all(value.isfinite().all() for value in saved.tensors["model"].values())


def test_a_learning_rate_far_too_high_is_reported_with_its_step(tmp_path, caplog):
    line = refusal(tmp_path, "--training.learning_rate=1e30", "--training.num_steps=60")
    assert "step" in line and "learning_rate" in line, line
    for path in (tmp_path / "tiny" / "checkpoints").iterdir():
        assert all(value.isfinite().all() for value in read_checkpoint(path).tensors["model"].values()), path


def test_the_arguments_of_these_tests_are_a_file_of_differences(tmp_path):
    file = tiny_arguments(tmp_path)[1]
    assert load_config(["--config", file]).training.num_steps == 6


class Fading(ClipDataset):
    """Videos that open on black, of ten windows each; the first ones of `broken` cannot be read."""

    name = "fading"

    def __init__(self, broken):
        self.broken = broken

    def __len__(self):
        return 5

    def item_name(self, index):
        return f"item {index}"

    def num_windows(self, index):
        return 10

    def clip(self, index, generator):
        if index < self.broken:
            raise ClipError("damaged")
        shade = 0 if generator is None else int(generator.integers(256))
        frames = torch.full((FRAMES, 3, SIZE, SIZE), shade, dtype=torch.uint8)
        return Clip(frames, torch.arange(FRAMES, dtype=torch.float32), self.item_name(index))


def test_calibration_sees_whole_videos_and_does_without_damaged_ones(tmp_path):
    config = tiny_config(tmp_path, "--data.num_workers=0")
    autoencoder = build_autoencoder(config.autoencoder)
    first, again, damaged = (
        calibrate(config, Fading(broken), autoencoder, torch.device("cpu")).state_dict() for broken in (0, 0, 2)
    )
    # Shades are uniform in latents' [-1, 1]: mean 0, deviation 0.58.
    for moments in (first, damaged):
        assert moments["shift"].abs().max() < 0.25 and (moments["scale"] - 0.577).abs().max() < 0.12
    assert all(torch.equal(first[name], again[name]) for name in first)
    with pytest.raises(UserError, match="3 of 5 items of fading failed"):
        calibrate(config, Fading(3), autoencoder, torch.device("cpu"))
