"""The tool for long rollouts: what it measures by window, and the command itself."""

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vidpred.checkpoint_store import CheckpointStore, read_checkpoint
from vidpred.conditioning import ConditioningConfig
from vidpred.networks import NETWORKS, build_network
from vidpred.prediction import LatentCalibration, RolloutOptions
from vidpred.video_io import read_frames, write_video

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tools"))

import digit_classifier  # noqa: E402
import rollout_figures  # noqa: E402
from digit_detector import NO_DIGIT  # noqa: E402
from evaluation_helper import CONTEXT, FRAMES, CopyLast, make_predictor  # noqa: E402
from rollout_figures import Digits, RangeWatch, Scene, in_windows, measure_references, roll_out  # noqa: E402
from long_rollout import _notes  # noqa: E402
from test_data_moving_digits import write_mnist  # noqa: E402
from test_prediction_conditions import asked  # noqa: E402
from test_prediction_conditions import make as make_told  # noqa: E402

TOOL = REPOSITORY / "tools" / "long_rollout.py"
WINDOW = FRAMES - CONTEXT


# Figures by window -----------------------------------------------------------------------------------------


class Rolls(nn.Module):
    """Knows the truth of `wandering`: every frame is the last given one, two pixels further for each step."""

    def forward(self, x, level, given, frame_times):
        last = x[:, CONTEXT - 1]
        return torch.stack([last.roll(t - CONTEXT + 1, dims=-1) for t in range(x.shape[1])], dim=1)


class BreaksLater(CopyLast):
    """Not a number from the second window on."""

    calls = 0

    def forward(self, x, level, given, frame_times):
        self.calls += 1
        x0 = super().forward(x, level, given, frame_times)
        return x0 if self.calls <= 3 else x0 * torch.nan


def wandering(count):
    """(3, count, 3, 32, 32) uint8: noise that moves by two pixels a frame and comes back on the other side."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 256, (3, 1, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return torch.cat([first.roll(2 * t, dims=-1) for t in range(count)], dim=1)


def scene_of(denoiser, windows=4, truth_frames=None, digits=None):
    frames = wandering(CONTEXT + windows * WINDOW)
    truth = frames[:, CONTEXT:][:, :truth_frames]
    return Scene(make_predictor(denoiser), frames[:, :CONTEXT], truth, torch.arange(3), windows, WINDOW, 0, digits)


def behaviour_of(scene, **options):
    references = measure_references(scene)
    shown = torch.zeros(scene.num_frames, 3, 32, 32, dtype=torch.uint8)
    return references, roll_out(scene, RolloutOptions(**options), references, shown), shown


def test_a_model_that_knows_the_truth():
    scene = scene_of(Rolls())
    references, behaviour, shown = behaviour_of(scene)
    assert [window.psnr for window in behaviour.windows] == [[100.0] * WINDOW] * 4
    assert [window.motion_ratio for window in behaviour.windows] == [pytest.approx(1)] * 4
    assert all(window.outside == 0 and window.far_outside == 0 for window in behaviour.windows)
    assert torch.equal(shown, scene.truth[0])
    assert references.ceiling == [100.0] * (4 * WINDOW) and max(references.floor) < 15
    assert behaviour.failure is None and behaviour.to_json()["finite"] is True


def test_a_frozen_model_is_the_floor_and_does_not_move():
    references, behaviour, _ = behaviour_of(scene_of(CopyLast()))
    assert sum((window.psnr for window in behaviour.windows), []) == pytest.approx(references.floor)
    assert [window.motion_ratio for window in behaviour.windows] == [0.0] * 4


@pytest.mark.parametrize("scheme", ["sliding", "keyframes", "pyramid"])
def test_all_windows_are_whole_whatever_the_pieces(scheme):
    scene = scene_of(CopyLast(), windows=3)
    _, behaviour, shown = behaviour_of(scene, scheme=scheme, stride=2, stabilization=0.1)
    assert [len(window.psnr) for window in behaviour.windows] == [WINDOW] * 3
    assert behaviour.name == f"{scheme}, stabilization 0.1"
    assert shown.flatten(1).any(dim=1).all()  # every frame of the first clip was handed over


def test_a_truth_that_ends_within_the_second_window():
    references, behaviour, _ = behaviour_of(scene_of(Rolls(), truth_frames=WINDOW + 1))
    assert [len(window.psnr) for window in behaviour.windows] == [WINDOW, 1, 0, 0]
    assert len(references.floor) == len(references.ceiling) == WINDOW + 1
    assert references.motion == [references.motion[0]] * 4 and references.motion[0] > 0
    assert [window.motion_ratio for window in behaviour.windows] == [pytest.approx(1, rel=0.05)] * 4


def test_without_any_truth():
    references, behaviour, _ = behaviour_of(scene_of(Rolls(), truth_frames=0))
    assert references.floor == [] and references.motion == [None] * 4
    assert [window.motion_ratio for window in behaviour.windows] == [None] * 4
    assert all(window.motion > 0 and window.psnr == [] for window in behaviour.windows)


def test_a_rollout_that_breaks_keeps_what_it_measured():
    _, behaviour, _ = behaviour_of(scene_of(BreaksLater()))
    assert len(behaviour.windows) == 1 and "not finite" in behaviour.failure
    assert behaviour.to_json()["finite"] is False and json.dumps(behaviour.to_json())


def test_conditions_are_those_of_the_clips():
    predictor, count = make_told(), 6
    context, truth = (torch.zeros(2, frames, 3, 32, 32, dtype=torch.uint8) for frames in (2, count))
    told = asked(2 + count)
    behaviour_of(Scene(predictor, context, truth, torch.arange(2), 2, 3, 0, None, told))
    seen = [call.actions[0, :, 0].tolist() for call in predictor.denoiser.calls]
    assert seen[0] == [1, 2, 3, 4, 5] and seen[-1] == [4, 5, 6, 7, 8]
    assert all(call.actions_known.all() and call.classes.tolist() == [1, 0] for call in predictor.denoiser.calls)


def test_a_video_is_continued_without_conditions_and_that_is_said():
    subject = SimpleNamespace(predictor=make_told(), conditioning=ConditioningConfig(context_noise=0.1))
    assert [line[:19] for line in _notes(subject, [], True)] == ["conditions withheld"]
    assert not _notes(subject, [], False)
    assert not _notes(SimpleNamespace(**{**vars(subject), "predictor": make_told(config=None)}), [], True)


def test_digits_by_window():
    """A detector that reads two corner pixels: it finds a clip's digits in as many frames as are painted."""
    labels = torch.tensor([[1, 2], [3, 3], [4, 5]])
    found = labels[:, None].repeat(1, WINDOW, 1)
    found[0, 1:, 1] = NO_DIGIT  # one digit in one of three frames: in less than half
    found[1, 2, 0] = NO_DIGIT  # another in two of three
    figures = rollout_figures._digit_figures(found, labels)
    assert figures.found == pytest.approx((18 - 3) / 18) and figures.in_half == pytest.approx(5 / 6)
    positions = torch.zeros(3, 4 * WINDOW, 2, 2, dtype=torch.long)
    positions[:, :WINDOW, 1] = 20

    def read(frames):
        return frames[:, :, 0, 0, :2].long() // 20

    scene = scene_of(CopyLast(), digits=Digits(read, labels, positions, 16))
    scene.context[:, -1, :, 0, :2] = 20 * labels[:, None]
    scene.truth[:, :, :, 0, :2] = 0
    scene.truth[:, :WINDOW, :, 0, :2] = 20 * labels[:, None, None]
    references, behaviour, _ = behaviour_of(scene)
    assert [window.digits.found for window in behaviour.windows] == [1.0] * 4
    assert [window.found for window in references.digits] == [1.0, 0.0, 0.0, 0.0]
    assert references.digits_apart == 1.0 and references.apart_share == pytest.approx(1 / 4)
    assert behaviour.windows[0].digits.chance == 0.0


def test_pieces_are_cut_into_windows():
    frames = torch.arange(2 * 12).reshape(2, 12)
    for sizes in ([12], [4, 4, 4], [1] * 12, [5, 1, 6], [3, 9]):
        windows = list(in_windows(iter(frames.split(sizes, dim=1)), 4))
        assert len(windows) == 3 and torch.equal(torch.cat(windows, dim=1), frames)


def test_values_out_of_range_frame_by_frame():
    decoded = torch.full((1, 3, 1, 1, 4), 0.5)
    decoded[0, 0, 0, 0, :2] = torch.tensor([-0.001, 1.001])  # rounding takes them back
    decoded[0, 1, 0, 0, :2] = torch.tensor([-0.05, 1.3])
    decoded[0, 2, 0, 0, 0] = 1.05
    parts = {"encode": None, "down_factor": 1, "decode": lambda self, latents: latents}
    autoencoder = type("Identity", (), parts)()
    watch = RangeWatch(autoencoder)
    assert watch.decode(decoded) is decoded
    first, rest = watch.take(2), watch.take(1)
    assert first["outside"] == pytest.approx(2 / 8) and first["far_outside"] == pytest.approx(1 / 8)
    assert first["lowest"] == pytest.approx(-0.05) and first["highest"] == pytest.approx(1.3)
    assert rest["outside"] == pytest.approx(1 / 4) and rest["far_outside"] == 0


def test_memory_of_this_process():
    before = rollout_figures.resident_mib()
    held = torch.ones(2**24)  # 64 MiB
    assert 50 < rollout_figures.resident_mib() - before < 80 and len(held)


# The command -----------------------------------------------------------------------------------------------

NETWORK = {"kind": "unet", "channels": [8, 16], "blocks_per_level": 1, "spatial_attention_levels": [],
           "temporal_attention_levels": [1], "head_dim": 8}  # fmt: skip
SHAPES = {"kind": "shapes", "num_frames": 5, "height": 32, "width": 32, "clip_frames": 8, "num_clips": 4,
          "num_val_clips": 4, "num_test_clips": 1, "num_workers": 0}  # fmt: skip


def untrained(folder, data, context_frames=2):
    """A run folder whose network has random weights."""
    network = build_network(NETWORKS.from_mapping(NETWORK), 3, 3)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():  # outputs begin at zero
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    config = {
        "network": NETWORK, "autoencoder": {"kind": "mock"}, "data": data,
        "diffusion": {"parameterization": "x0", "residual": True, "schedule": {}},
        "sampling": {"num_inference_steps": 2, "clip": {"kind": "auto"}},
        "conditioning": {"context_frames": context_frames},
    }  # fmt: skip
    weights = network.state_dict()
    tensors = {"model": weights, "ema": weights, "calibration": LatentCalibration(3).state_dict()}
    CheckpointStore(folder / "checkpoints").save(10, tensors, {"ema_updates": 10}, config, {})
    return folder


@pytest.fixture
def run_tool(tmp_path_factory, monkeypatch, run_file):
    monkeypatch.setenv("VIDPRED_CACHE", str(tmp_path_factory.getbasetemp() / "long_rollout_cache"))
    return partial(run_file, TOOL)


def results(folder):
    report = json.loads((folder / "long_rollout.json").read_text())
    assert (folder / "long_rollout.png").stat().st_size > 10_000
    return report, read_frames(folder / "long_rollout.mp4")[0]


def test_shapes_are_rendered_as_long_as_the_rollout(run_tool, tmp_path):
    """Eight frames a file are too few for six windows, so longer ones of the same clips take their place."""
    run = untrained(tmp_path / "run", SHAPES)
    code, lines, _ = run_tool(
        "--checkpoint", run, "--windows", 6, "--clips", 2, "--rollout", "sliding", "keyframes", "--stride", 2,
        "--stabilization", 0, 0.1, 0,
    )  # fmt: skip
    assert code == 0, lines
    report, video = results(run / "long_rollout" / "step_00000010")
    assert report["protocol"]["truth_frames"] == 18 and len(report["references"]["floor"]) == 18
    names = [(way["options"]["scheme"], way["options"]["stabilization"]) for way in report["rollouts"]]
    assert names == [("sliding", 0), ("sliding", 0.1), ("keyframes", 0), ("keyframes", 0.1)]
    assert all(way["finite"] and len(way["windows"]) == 6 for way in report["rollouts"])
    assert all(window["digits"] is None for way in report["rollouts"] for window in way["windows"])
    assert len(video) == 2 + 18 and report["references"]["digits"] is None
    assert sum(line.startswith("window 6: motion ratio") for line in lines) == 4
    assert any(line.startswith("note: trained with conditioning.context_noise 0") for line in lines)

    _, short = results_of_first_frames(run_tool, run, tmp_path / "short")
    floors = short["references"]["floor"], report["references"]["floor"]
    assert floors[0] == pytest.approx(floors[1][:3], abs=0.3)  # the same clips, encoded once more


def results_of_first_frames(run_tool, run, out):
    code, lines, _ = run_tool(
        "--checkpoint", run, "--windows", 1, "--clips", 2, "--stabilization", 0, "--steps", 1, "--out", out
    )
    assert code == 0, lines
    report, _ = results(out)
    assert report["protocol"]["num_inference_steps"] == 1
    return lines, report


def test_a_video_gives_truth_as_far_as_it_goes(run_tool, tmp_path):
    run = untrained(tmp_path / "run", SHAPES)
    frames = torch.arange(9)[:, None, None, None].mul(20).expand(-1, 3, 48, 80).to(torch.uint8)
    write_video(tmp_path / "mine.mp4", frames, 10)
    code, lines, _ = run_tool(
        "--checkpoint", run, "--video", tmp_path / "mine.mp4", "--windows", 4, "--rollout", "pyramid",
        "--stabilization", 0, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, lines
    report, video = results(tmp_path / "out")
    assert report["protocol"]["truth_frames"] == 7 and report["protocol"]["clips"] == ["mine.mp4"]
    assert [len(window["psnr"]) for window in report["rollouts"][0]["windows"]] == [3, 3, 1, 0]
    assert len(video) == 2 + 12
    assert any(line.startswith("note: trained without diffusion forcing") for line in lines)


def test_digits_are_counted_and_the_classifier_is_kept(run_tool, tmp_path, monkeypatch):
    """A classifier that was hardly trained, on digits that are none: the way through is what is tested here."""
    root, empty = write_mnist(tmp_path / "mnist"), tmp_path / "empty"
    empty.mkdir()
    data = {"kind": "moving_digits", "root": str(empty), "num_frames": 5, "height": 32, "width": 32,
            "num_workers": 0}  # fmt: skip
    run, out = untrained(tmp_path / "run", data), tmp_path / "out"
    arguments = ("--checkpoint", run, "--windows", 2, "--clips", 3, "--stabilization", 0, "--out", out)
    code, lines, _ = run_tool(*arguments)  # shapes take the digits' place
    note = "note: no digits are recognised (data.root: "
    assert code == 0 and any(line.startswith(note) for line in lines), lines

    monkeypatch.setattr(digit_classifier, "STEPS", 4)
    code, _, errors = run_tool(*arguments, "--data-root", root)
    assert code == 2 and errors[-1].startswith("error: digits: the classifier knows ")
    monkeypatch.setattr(digit_classifier, "LEAST_ACCURACY", 0.0)
    code, first, _ = run_tool(*arguments, "--data-root", root)
    monkeypatch.delattr(digit_classifier, "train")  # the second time it comes from the cache
    again, second, _ = run_tool(*arguments, "--data-root", root)
    assert code == again == 0 and [line for line in second if "detector" in line] == [
        line for line in first if "detector" in line
    ]
    report, _ = results(out)
    assert len(report["references"]["digits"]) == 2 and 0 <= report["protocol"]["classifier_accuracy"] <= 1
    assert all(0 <= window["digits"]["found"] <= 1 for window in report["rollouts"][0]["windows"])
    assert any("digits found" in line for line in second)


def test_weights_that_are_not_finite(run_tool, tmp_path):
    run = untrained(tmp_path / "run", SHAPES)
    checkpoint = read_checkpoint(run)
    next(iter(checkpoint.tensors["ema"].values())).fill_(torch.nan)
    CheckpointStore(run / "checkpoints").save(20, checkpoint.tensors, {}, checkpoint.config, {})
    code, lines, _ = run_tool("--checkpoint", run, "--windows", 2, "--clips", 2, "--out", tmp_path / "out")
    assert code == 1 and sum("not finite" in line for line in lines) == 2
    report, _ = results(tmp_path / "out")
    assert [way["finite"] for way in report["rollouts"]] == [False, False]


def test_what_cannot_be_rolled_out_is_one_line(run_tool, tmp_path):
    run = untrained(tmp_path / "run", SHAPES)
    videos = tmp_path / "videos"
    for number in range(12):
        write_video(videos / f"{number}.mp4", wandering(9)[0], 8)
    files = {"kind": "video_folder", "root": str(videos), "num_frames": 5, "height": 32, "width": 32,
             "val_fraction": 0.4, "num_workers": 0}  # fmt: skip
    of_files = untrained(tmp_path / "files", files)
    for arguments, message in (
        (["--checkpoint", run, "--windows", 0], "--windows: 0 must be 1 or more"),
        (["--checkpoint", run, "--clips", 0], "--clips: 0 must be 1 or more"),
        (["--checkpoint", run, "--overlap", 5], "--overlap: 5 leaves no frame to predict in windows of 5"),
        (["--checkpoint", run, "--stabilization", 1], "rollout stabilization: 1.0 must be in [0, 1)"),
        (["--checkpoint", run, "--steps", 0], "sampling.num_inference_steps: 0"),
        (["--checkpoint", run, "--data-root", tmp_path], "--data-root: data of kind shapes have no root"),
        (["--checkpoint", run, "--video", tmp_path / "none.mp4"], "none.mp4: does not exist"),
        (["--checkpoint", of_files, "--windows", 20], "--windows 20: needs validation clips of 62 frames"),
    ):
        code, _, errors = run_tool(*arguments)
        assert code == 2 and message in errors[-1] and not any("Traceback" in line for line in errors), errors
    code, lines, _ = run_tool("--checkpoint", of_files, "--windows", 2, "--clips", 1, "--stabilization", 0)
    assert code == 0, lines  # as far as the files go
