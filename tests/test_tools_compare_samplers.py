"""Samplers compared on one model, a tiny network with random weights: the records and the command."""

import dataclasses
import itertools
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from vidpred.assembly import build_predictor, calibrate, open_subject
from vidpred.autoencoders import build_autoencoder
from vidpred.checkpoint_store import CheckpointStore
from vidpred.conditioning import prediction_roles
from vidpred.configuration import load_config
from vidpred.data import build_dataset
from vidpred.diagnosis import compare_samplers, sampler_lines, subject_from_checkpoint, validation_clips
from vidpred.diagnosis import sampler_comparison as module
from vidpred.diagnosis.measurement import untrained_reference
from vidpred.diagnosis.sampler_report import STYLES
from vidpred.diffusion import SAMPLERS
from vidpred.errors import UserError
from vidpred.evaluation import EvaluationConfig, evaluate, student_t
from vidpred.tensor_ops import append_dims

ROOT = Path(__file__).resolve().parent.parent
TOOL, QUICKSTART = ROOT / "tools" / "compare_samplers.py", ROOT / "configs" / "quickstart.yaml"
TINY = """
data: {num_frames: 5, height: 32, width: 32, clip_frames: 8, num_clips: 16, num_val_clips: 10,
       num_test_clips: 1, num_workers: 1}
conditioning: {context_frames: 2}
network: {channels: [32, 64], blocks_per_level: 1, spatial_attention_levels: [],
          temporal_attention_levels: [1]}
diffusion: {schedule: {kind: scaled_linear, beta_start: 0.00085, beta_end: 0.012}, parameterization: x0}
sampling: {num_inference_steps: 4, clip: {kind: static, bound: 1.5}}
"""
CLIPS = 10  # two batches: one of eight, and one of two that is filled up
STEPS = [2, 5]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDPRED_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def make_run(folder, *overrides) -> Path:
    """A run folder with a checkpoint of step 0. Its weights are random: a new network returns zeros, whatever
    the noise is."""
    preset = folder / "tiny.yaml"
    preset.write_text(TINY)
    config = load_config(list(overrides), preset)
    autoencoder = build_autoencoder(config.autoencoder)
    calibration = calibrate(config, build_dataset(config.data, "train", 0), autoencoder, torch.device("cpu"))
    predictor = build_predictor(config, autoencoder, calibration, torch.device("cpu"))
    network, generator = predictor.denoiser.network, torch.Generator().manual_seed(0)
    with torch.no_grad():
        for values in network.parameters():
            values.add_(0.05 * torch.randn(values.shape, generator=generator))
    tensors = {name: network.state_dict() for name in ("model", "ema")}
    tensors["calibration"] = calibration.state_dict()
    CheckpointStore(folder / "runs" / "tiny" / "checkpoints").save(0, tensors, {}, config.resolved(), {})
    return folder / "runs" / "tiny"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("workplace"))


@pytest.fixture
def run_tool(run_file):
    return partial(run_file, TOOL)


@pytest.fixture
def subject(run):
    return subject_from_checkpoint(run, "cpu")


def last(cells):
    """The comparison when all is measured."""
    for comparison in cells:
        pass
    return comparison


@pytest.fixture(scope="module")
def measured(run):
    """The default grid of samplers over two numbers of steps."""
    cells = compare_samplers(subject_from_checkpoint(run, "cpu"), SAMPLERS, STEPS, clips=CLIPS, seeds=[0])
    return last(cells).to_json()


def cells_of(result) -> dict:
    return {(cell["sampler"], cell["steps"]): cell for cell in result["cells"]}


# The figures -----------------------------------------------------------------------------------------------


def test_every_sampler_and_the_models_own_is_measured(measured):
    assert list(cells_of(measured)) == [
        (name, steps) for name in SAMPLERS for steps in ([2, 4, 5] if name == "ddim" else [2, 5])
    ]
    assert [key for key, cell in cells_of(measured).items() if cell["configured"]] == [("ddim", 4)]
    assert (measured["cells_missing"], measured["refused"], measured["seeds"]) == (0, [], [0])
    assert measured["protocol"]["clips"] == CLIPS
    assert measured["floor"]["mean"] < measured["ceiling"]["mean"]
    # euler is ddim, and solvers of second order take a first step, and a last one, of first order; all others differ.
    same = [
        {("ddim", 2), ("dpmpp_2m", 2), ("euler", 2), ("unipc", 2)}, {("ddim", 5), ("euler", 5)},
        {("ddpm", 2), ("dpmpp_sde", 2)},
    ]  # fmt: skip
    means = {key: cell["psnr"]["mean"] for key, cell in cells_of(measured).items()}
    for one, other in itertools.combinations(means, 2):
        alike = any({one, other} <= group for group in same)
        assert (abs(means[one] - means[other]) < 2e-5) == alike, (one, other)


@pytest.mark.parametrize("sampler, steps", [("ddim", 4), ("ddim", 5), ("heun", 2), ("dpmpp_sde", 5)])
def test_a_row_is_the_evaluators_own_figure(measured, subject, sampler, steps):
    predictor = subject.predictor
    predictor.sampling = dataclasses.replace(predictor.sampling, sampler=sampler, num_inference_steps=steps)
    expected = evaluate(
        predictor, build_dataset(subject.data, "val", 0),
        EvaluationConfig(num_clips=CLIPS, batch_size=8, lpips_net="none"), prediction_roles(2), seed=0,
    )  # fmt: skip
    cell = cells_of(measured)[sampler, steps]
    references = {name: measured[name] for name in ("floor", "decoded_floor", "ceiling")}
    for row, figures in {"model": cell["psnr"], **references}.items():
        summary = expected.summary(row, "psnr")
        assert (figures["mean"], figures["ci95"]) == pytest.approx((summary.mean, summary.ci95), rel=1e-12)
    assert cell["motion_energy_ratio"] == pytest.approx(expected.motion_energy_ratio, rel=1e-12)


def test_euler_is_ddim_without_fresh_noise(measured):
    for steps in STEPS:
        ddim, euler = (cells_of(measured)[name, steps] for name in ("ddim", "euler"))
        for key in ("psnr", "psnr_over_configured", "psnr_by_clip", "clip_rate", "motion_energy_ratio"):
            assert ddim[key] == euler[key], key
        assert ddim["psnr_by_clip"] != cells_of(measured)["ddpm", steps]["psnr_by_clip"]


def test_differences_are_paired_by_clip(measured):
    own = cells_of(measured)["ddim", 4]
    assert own["psnr_over_configured"] == {"mean": 0, "ci95": 0}
    for cell in measured["cells"]:
        gain = np.array([value - own["psnr_by_clip"][clip] for clip, value in cell["psnr_by_clip"].items()])
        assert len(gain) == CLIPS and cell["psnr_over_configured"]["mean"] == pytest.approx(gain.mean())
        width = student_t(CLIPS - 1) * gain.std(ddof=1) / np.sqrt(CLIPS)
        assert cell["psnr_over_configured"]["ci95"] == pytest.approx(width)
        assert cell["psnr"]["mean"] == pytest.approx(np.mean(list(cell["psnr_by_clip"].values())))


def test_network_calls(measured, subject):
    """S, but 2 S - 1 for Heun's method and S + 1 for PLMS; and so often the network is called indeed."""
    clips, predictor = validation_clips(subject, 3), subject.predictor
    latents = predictor.encode(clips.frames)
    counted = []
    predictor.denoiser.network.register_forward_hook(lambda *call: counted.append(len(call[1][0])))
    for (sampler, steps), cell in cells_of(measured).items():
        cell_settings = module.cell_of(predictor.sampling, sampler, steps)
        expected = {"heun": 2 * steps - 1, "pndm": steps + 1}.get(sampler, steps)
        assert cell["network_calls_per_clip"] == module.calls_of(cell_settings) == expected
        watched, ticks = module.WatchedPredictor(predictor, cell_settings, lambda: ticks.append(1)), []
        watched.sample_latents(latents, clips.given, clips.frame_times, clips.draws, 0)
        assert counted == [3] * expected and watched.calls == len(ticks) == expected
        counted.clear()
        assert cell["milliseconds_per_frame"] > 0 and watched.milliseconds_per_frame[0] > 0


def test_the_clip_rate_is_of_all_values_and_counts_no_filling(measured, subject):
    """Clip by clip, without any batch to fill up."""
    predictor = subject.predictor
    predictor.sampling = dataclasses.replace(predictor.sampling, num_inference_steps=5)
    clips, clipped, values = validation_clips(subject, CLIPS), 0, 0

    def count(report):
        nonlocal clipped, values
        unknown = append_dims(report.moving, report.x0.ndim).expand_as(report.x0)
        clipped += int((unknown & (report.x0 != report.x0_raw)).sum())
        values += int(unknown.sum())

    latents = torch.where(append_dims(clips.given, 5), predictor.encode(clips.frames), 0)
    for n in range(CLIPS):
        row = slice(n, n + 1)
        predictor.sample_latents(
            latents[row], clips.given[row], clips.frame_times[row], clips.draws[row], 0,
            callback=count, purpose="evaluation",
        )  # fmt: skip
    assert values == CLIPS * 5 * 3 * latents[0, 0].numel() and 0.001 < clipped / values < 0.9
    # A value within rounding of the bound may fall to either side of it in another batch.
    assert cells_of(measured)["ddim", 5]["clip_rate"] == pytest.approx(clipped / values, abs=2 / values)


def test_seeds_are_averaged_clip_by_clip(subject):
    def measure(seeds):
        return last(compare_samplers(subject, ["ddpm"], [2], clips=3, seeds=seeds)).to_json()

    both, *alone = (cells_of(measure(seeds))["ddpm", 2] for seeds in ([1, 2], [1], [2]))
    for clip, value in both["psnr_by_clip"].items():
        assert value == pytest.approx(np.mean([one["psnr_by_clip"][clip] for one in alone]))
    ratios = [one["motion_energy_ratio"] for one in alone]
    assert both["motion_energy_ratio"] == pytest.approx(np.mean(ratios))
    assert alone[0]["psnr_by_clip"] != alone[1]["psnr_by_clip"]


def test_what_is_ddims_alone_stays_with_ddim(subject):
    """With eta 1 it is DDPM; Euler's method has none."""
    predictor = subject.predictor
    predictor.sampling = dataclasses.replace(predictor.sampling, eta=1.0, num_inference_steps_start=2)
    samplers = ["ddim", "ddpm", "euler", "pndm"]
    result = last(compare_samplers(subject, samplers, [4], clips=2, seeds=[0])).to_json()
    cells = cells_of(result)
    assert len(cells) == 4 and cells["ddim", 4]["configured"] and not result["refused"]
    assert cells["ddim", 4]["psnr_by_clip"] == cells["ddpm", 4]["psnr_by_clip"]
    assert cells["ddpm", 4]["psnr_over_configured"] == {"mean": 0, "ci95": 0}
    assert cells["euler", 4]["psnr_by_clip"] != cells["ddim", 4]["psnr_by_clip"]


# What is not possible --------------------------------------------------------------------------------------


def test_what_cannot_be_combined_is_listed_with_its_reason(tmp_path, run_tool):
    run = make_run(
        tmp_path,
        "--diffusion.schedule.kind=flow",
        "--diffusion.parameterization=flow",
        "--data.num_val_clips=2",
    )
    code, lines, _ = run_tool("--steps", 2, 2000, "--clips", 2, cwd=tmp_path)
    assert code == 0
    result = json.loads((run / "samplers" / "step_00000000" / "compare_samplers.json").read_text())
    ours = ("ddim", "ddpm", "euler", "heun", "dpmpp_2m")
    assert list(cells_of(result)) == [("ddim", 2), ("ddim", 4), *((name, 2) for name in ours[1:])]
    refused = {(one["sampler"], one["steps"]): one["reason"] for one in result["refused"]}
    assert set(refused) == {(name, steps) for name in SAMPLERS for steps in (2, 2000)} - set(cells_of(result))
    for name in ("pndm", "unipc", "dpmpp_sde"):
        assert f"{name} of diffusers walks variance-preserving levels only" in refused[name, 2]
        (line,) = [line for line in lines if line.startswith(f"not possible: {name} with 2, 2000 steps: ")]
        assert line.endswith("use ddim, euler, heun or dpmpp_2m")
    assert "2000 is outside 1..1000" in refused["heun", 2000]
    # Heun's method corrects neither the step from pure noise nor the one to clean.
    assert cells_of(result)["heun", 2]["network_calls_per_clip"] == 2


def test_steps_that_one_sampler_cannot_take(subject):
    cells, refused = module.plan_cells(subject.predictor, ["ddim", "pndm", "ddim"], [3, 5, 3])
    planned = [(cell.sampler, cell.num_inference_steps) for cell in cells]
    assert planned == [("ddim", 4), ("ddim", 3), ("ddim", 5), ("pndm", 5)]
    assert [(one.sampler, one.steps) for one in refused] == [("pndm", 3)] and "use" in refused[0].reason


def break_evaluate(monkeypatch, broken):
    """`broken(cell, calls)` may raise in the place of the evaluation of a cell; warming up is left alone."""
    calls, original = [], module.evaluate

    def evaluate_or_break(predictor, dataset, settings, *others, **options):
        if settings.num_clips > 1:
            calls.append(predictor.sampling.sampler)
            broken(predictor.sampling.sampler, len(calls))
        return original(predictor, dataset, settings, *others, **options)

    monkeypatch.setattr(module, "evaluate", evaluate_or_break)


def test_a_cell_that_fails_is_listed_and_the_others_are_measured(subject, monkeypatch):
    def fail(sampler, calls):
        if sampler == "heun":
            raise UserError("evaluation: the prediction of clip 'x' has 3 non-finite values")

    break_evaluate(monkeypatch, fail)
    comparison = last(compare_samplers(subject, ["heun", "euler"], [2], clips=2, seeds=[0]))
    result = comparison.to_json()
    assert list(cells_of(result)) == [("ddim", 4), ("euler", 2)] and result["cells_missing"] == 0
    assert [(one["sampler"], one["steps"]) for one in result["refused"]] == [("heun", 2)]
    assert any("heun with 2 steps: evaluation: the pred" in line for line in sampler_lines(comparison))


def test_a_model_whose_own_sampler_fails_is_one_line(run, tmp_path, run_tool, monkeypatch):
    def fail(sampler, calls):
        raise UserError("evaluation: broken")

    break_evaluate(monkeypatch, fail)
    code, _, errors = run_tool("--checkpoint", run, "--clips", 2, "--out", tmp_path, cwd=tmp_path)
    assert code == 2 and errors[-1] == "error: evaluation: broken" and not list(tmp_path.iterdir())


# The command -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [0, 1, 3])
def test_an_interruption_keeps_what_is_known(run, tmp_path, run_tool, monkeypatch, known):
    def interrupt(sampler, calls):
        if calls > known:
            raise KeyboardInterrupt

    break_evaluate(monkeypatch, interrupt)
    code, lines, errors = run_tool(
        "--checkpoint", run, "--samplers", "ddim", "euler", "--steps", 2, 5, "--clips", 2,
        "--out", tmp_path / "out", cwd=tmp_path,
    )  # fmt: skip
    assert code == 130 and errors[-1].startswith("interrupted") and not any("Traceback" in e for e in errors)
    if known == 0:
        assert not list((tmp_path / "out").iterdir())
        return
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "compare_samplers.json",
        "compare_samplers.png",
    ]
    result = json.loads((tmp_path / "out" / "compare_samplers.json").read_text())
    assert set(cells_of(result)) == set([("ddim", 4), ("ddim", 2), ("euler", 2)][:known])
    assert result["cells_missing"] == 5 - known
    assert sum(line.startswith(("ddim ", "euler ")) for line in lines) == known


def test_the_newest_run_is_taken_and_the_table_says_what_the_file_says(run, run_tool):
    code, lines, errors = run_tool("--samplers", "heun", "--steps", 2, "--clips", 3, cwd=run.parents[1])
    folder = run / "samplers" / "step_00000000"
    assert code == 0 and lines[-2:] == [
        f"figures: {folder / 'compare_samplers.json'}", f"plot: {folder / 'compare_samplers.png'}"
    ]  # fmt: skip
    assert (folder / "compare_samplers.png").stat().st_size > 10_000
    result = json.loads((folder / "compare_samplers.json").read_text())
    own, heun = result["cells"]
    assert lines[0].startswith("model: runs/tiny/checkpoints/step_00000000")
    assert any("ddim with 4 steps, paired by clip" in line for line in lines)
    (row,) = [line.split() for line in lines if line.startswith("heun ")]
    gain = heun["psnr_over_configured"]
    assert row[:6] == ["heun", "2", "3", f"{heun['psnr']['mean']:.2f}", "+-", f"{heun['psnr']['ci95']:.2f}"]
    assert row[6:9] == [f"{gain['mean']:+.3f}", "+-", f"{gain['ci95']:.3f}"]
    assert row[9:11] == [f"{heun['motion_energy_ratio']:.3f}", f"{100 * heun['clip_rate']:.3f}"]
    assert [line.split()[:3] for line in lines if line.startswith("ddim ")] == [["ddim", "*", "4"]]
    for start in ("copy last  ", "copy last, decoded  ", "ceiling  "):
        assert sum(line.startswith(start) for line in lines) == 1, start
    assert any("samplers: 100%" in line for line in errors)


def test_a_model_that_was_never_trained_and_a_single_clip(tmp_path, run_tool, monkeypatch):
    code, lines, _ = run_tool("--samplers", "euler", "--steps", 1, "--clips", 1, cwd=tmp_path)
    assert code == 0 and lines[0].startswith("model: untrained model of quickstart.yaml")
    result = json.loads((tmp_path / "samplers" / "untrained" / "compare_samplers.json").read_text())
    assert list(cells_of(result)) == [("ddpm", 20), ("euler", 1)]
    assert all(cell["psnr"]["ci95"] is None for cell in result["cells"])
    # It gives the last frame as kernels of equal logits move it, whatever the noise was.
    monkeypatch.chdir(tmp_path)
    subject = open_subject(None, QUICKSTART, "cpu")
    clips, predictor = validation_clips(subject, 1), subject.predictor
    frames = predictor.decode(untrained_reference(predictor.denoiser, predictor.encode(clips.frames), clips))
    error = (frames.clamp(0, 1) - clips.frames / 255)[~clips.given].square().mean((1, 2, 3))
    for cell in result["cells"]:
        assert cell["psnr"]["mean"] == pytest.approx(float(-10 * error.log10().mean()), abs=0.05)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--samplers", "ddim", "magic"], "--samplers: 'magic' is not known; choose some of ddim, ddpm"),
        (["--steps", 0], "--steps: 0 must be 1 or more"),
        (["--steps", 5, -3], "--steps: -3 must be 1 or more"),
        (["--clips", 0], "--clips: 0 must be 1 or more"),
        (["--checkpoint", "nowhere"], "nowhere: no such folder"),
        (["--device", "gpu"], "device: 'gpu' is not known"),
        (["--out", TOOL / "below"], "give another folder with --out"),
    ],
)
def test_bad_options_are_one_line(run, run_tool, arguments, message):
    code, _, errors = run_tool(*arguments, cwd=run.parents[1])
    assert code == 2 and len(errors) == 1 and message in errors[0], errors
    assert errors[0].startswith("error: ")


def test_the_plot_knows_every_sampler():
    assert list(STYLES) == list(SAMPLERS)


def test_help(run_tool, tmp_path):
    code, lines, _ = run_tool("--help", cwd=tmp_path)
    assert code == 0 and any("--samplers" in line for line in lines)
