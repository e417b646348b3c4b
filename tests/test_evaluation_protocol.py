"""The stamp of a result: what must be equal to compare two, and what only describes one."""

import dataclasses
import hashlib
import json
import subprocess
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from evaluation_helper import CONTEXT, CopyLast, NoiseDependent, Squares, first_frames, make_predictor, run
from torch import nn

from vidpred.data import ClipConfig
from vidpred.evaluation import EvaluationConfig, evaluate
from vidpred.evaluation.protocol import ABSENT, Difference, content_sha256, differences, precision, shown
from vidpred.evaluation.provenance import device_name, git_state, package_versions, weights_sha256
from vidpred.metrics import ENSEMBLE_PROTOCOL, Lpips
from vidpred.training.settings import TrainingConfig


class Brighter(Squares):
    """The same names; one level of one pixel of one clip differs."""

    def clip(self, index, generator=None):
        clip = super().clip(index)
        if index == 2:
            clip.frames[0, 0, 0, 0] += 1
        return clip


class Cut(Squares):
    def __init__(self, **settings):
        super().__init__()
        self.config = ClipConfig(**settings)


def evaluated(predictor=None, dataset=None, **options):
    clips = options.pop("num_clips", 3)
    config = EvaluationConfig(lpips_net="none", batch_size=4, num_panels=0, num_clips=clips)
    options = {"seed": 3, "split": "val", "ema": True, "num_workers": 0, **options}
    predictor = predictor or make_predictor(CopyLast())
    return evaluate(predictor, dataset or Squares(), config, first_frames, **options)


def keys_between(left, right) -> list[str]:
    return [each.key for each in differences(left.protocol, right.protocol)]


@pytest.fixture(scope="module")
def usual():
    return evaluated()


# What defines and what describes ---------------------------------------------------------------------------


def test_who_answers_is_no_part_of_the_protocol(usual, monkeypatch):
    """Another network, step, checkpoint, device name, version and commit: the same protocol, another run."""
    others = {"device_name": "a GPU", "package_versions": (("torch", "9"),), "git_state": None}
    for name, value in others.items():
        monkeypatch.setattr(f"vidpred.evaluation.provenance.{name}", lambda *_, value=value: value)
    other = evaluated(make_predictor(NoiseDependent()), step=7, checkpoint="runs/a", chosen="given")
    assert keys_between(usual, other) == [] and usual.protocol == other.protocol
    changed = {key for key in usual.run if usual.run[key] != other.run[key]}
    assert changed >= {"step", "checkpoint", "chosen", "weights_sha256", "device", "versions"}
    assert (other.run["step"], other.run["checkpoint"], other.run["chosen"]) == (7, "runs/a", "given")
    assert other.run["device"] == "a GPU" and other.run["git"] is None
    assert not set(usual.run) & set(usual.protocol)


@pytest.mark.parametrize(
    "options, keys",
    [({"seed": 4}, ["seed"]), ({"split": "test"}, ["split"]), ({"ema": False}, ["ema"]),
     ({"num_inference_steps": 2}, ["sampling.num_inference_steps"]),
     ({"trajectories": 2}, ["trajectories_per_clip", "best_of_n.chosen_by", "best_of_n.definition",
                            *ENSEMBLE_PROTOCOL]),
     ({"num_clips": 2}, ["clips", "clips_sha256"]), ({"dataset": Brighter()}, ["clips_sha256"]),
     ({"dataset": Squares(8)}, ["items_in_split"])],
)  # fmt: skip
def test_what_was_asked_is(usual, options, keys):
    found = keys_between(usual, evaluated(**options))
    assert [key for key in found if key != "clips_sha256" or "clips_sha256" in keys] == keys


@pytest.mark.parametrize(
    "change, keys",
    [({"sampler": "euler"}, ["sampling.sampler"]), ({"num_inference_steps_start": 1}, []),
     ({"clip": {"bound": 2.0}}, ["sampling.clip.bound"]),
     ({"guidance": {"kind": "vanilla", "scale": 2.0}}, ["sampling.guidance.kind", "sampling.guidance.scale"])],
)  # fmt: skip
def test_how_predictions_are_drawn_is(usual, change, keys):
    predictor = make_predictor(CopyLast())
    sampling = predictor.sampling
    for name, value in change.items():
        if isinstance(value, dict):
            value = dataclasses.replace(getattr(sampling, name), **value)
        sampling = dataclasses.replace(sampling, **{name: value})
    predictor.sampling = sampling
    if "guidance" in change:  # of a network that cannot be guided only the stamp is asked
        predictor.sample_latents = lambda latents, *_, **__: latents
    assert keys_between(usual, evaluated(predictor)) == keys


def test_how_clips_are_cut_is_read_from_the_data():
    stride, rate, plain = (
        evaluated(dataset=Cut(**settings)).protocol
        for settings in ({"frame_stride": 2, "crop": "random"}, {"fps": 8.0, "crop": "none"}, {})
    )  # random crops are for training alone
    assert (stride["fps"], stride["frame_stride"], stride["crop"]) == (None, 2, "center")
    assert (rate["fps"], rate["frame_stride"], rate["crop"]) == (8.0, 1, "none")
    assert "bilinear" in plain["resize"]
    own = evaluated().protocol  # a data set of one's own that says nothing
    assert [own[key] for key in ("fps", "frame_stride", "crop", "resize")] == [None] * 4


def test_the_stamp_is_plain_and_complete(usual):
    saved = json.loads(json.dumps(usual.to_json(), allow_nan=False))
    protocol, described = saved["protocol"], saved["run"]
    expected = (
        "task clips_sha256 context_frames predicted_frames fps resize crop colours range rounding psnr ssim lpips "
        "sampling precision seed split"
    )
    assert set(expected.split()) <= protocol.keys()
    assert {"sampler", "num_inference_steps", "clip", "guidance"} <= protocol["sampling"].keys()
    assert {"checkpoint", "chosen", "step", "weights_sha256", "device", "versions", "git"} <= described.keys()
    assert described["versions"]["torch"] == torch.__version__ and saved["left_out"] == []
    assert "no test clip ever chooses" in protocol["checkpoint_selection"]
    assert [clip["sha256"] for clip in saved["clips"]] == [clip.content for clip in usual.clips]


def test_the_best_checkpoint_is_chosen_by_validation_alone():
    choices = get_args(get_type_hints(TrainingConfig)["best_metric"])
    assert choices and all(choice.startswith("validation/") for choice in choices)


# Checksums -------------------------------------------------------------------------------------------------


def test_the_content_of_a_clip_by_hand(usual):
    for clip in usual.clips:
        frames = Squares().clip(clip.index).frames.numpy()
        expected = hashlib.sha256(str(frames.shape).encode() + frames.tobytes()).hexdigest()
        assert clip.content == expected
    assert len({clip.content for clip in usual.clips}) == 3
    strided = torch.from_numpy(frames).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).numpy()
    assert not strided.flags.c_contiguous and content_sha256(strided) == expected
    assert content_sha256(frames.reshape(1, -1, 1, 1)) != expected, "the shape counts"
    other = [clip.content for clip in evaluated(dataset=Brighter()).clips]
    assert [a == b.content for a, b in zip(other, usual.clips)] == [True, False, True], "clips 0, 2, 4"


def test_the_checksum_of_weights():
    layer = nn.Linear(3, 2)
    first = weights_sha256(layer)
    assert first == weights_sha256(layer) and len(first) == 64
    with torch.no_grad():
        layer.weight[1, 2] = torch.nextafter(layer.weight[1, 2], torch.tensor(9.0))
    assert weights_sha256(layer) != first
    assert weights_sha256(layer) != weights_sha256(layer, layer)
    assert weights_sha256(nn.Linear(3, 2).bfloat16()) != weights_sha256(nn.Linear(3, 2).half())
    assert weights_sha256(lambda x: x) == weights_sha256(), "a function has no weights"


def test_lpips_is_stamped_with_backbone_and_heads(tmp_path):
    import lpips
    from torchvision.models import squeezenet1_1

    path = tmp_path / "backbone.pth"
    torch.save(squeezenet1_1(weights=None).state_dict(), path)
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / "squeeze.pth"
    expected = hashlib.sha256(heads.read_bytes()).hexdigest()
    assert Lpips("squeeze", str(path)).protocol["heads_sha256"] == expected
    result = run(CopyLast(), str(path), num_clips=1)
    assert result.protocol["lpips"]["backbone_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "package" not in result.protocol["lpips"] and "lpips" in result.run["versions"]


# Code and machine ------------------------------------------------------------------------------------------


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *who, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_checkout(tmp_path):
    package = tmp_path / "clone" / "vidpred"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert git_state.__wrapped__(package) is None, "no repository"
    git(tmp_path / "clone", "init", "-q")
    assert git_state.__wrapped__(package) is None, "no commit"
    git(tmp_path / "clone", "add", ".")
    git(tmp_path / "clone", "commit", "-q", "-m", "first")
    commit = git(tmp_path / "clone", "rev-parse", "HEAD")
    assert git_state.__wrapped__(package) == {"commit": commit, "dirty": False}
    (package / "new.py").write_text("")
    assert git_state.__wrapped__(package)["dirty"] is False, "a file that git does not know changes nothing"
    (package / "__init__.py").write_text("x = 1\n")
    assert git_state.__wrapped__(package) == {"commit": commit, "dirty": True}
    installed = tmp_path / "clone" / "venv" / "site-packages" / "vidpred"
    installed.mkdir(parents=True)
    assert git_state.__wrapped__(installed) is None, "inside somebody else's repository"


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state.__wrapped__() is None


def test_device_and_versions_are_named():
    assert device_name(torch.device("cpu")).startswith("cpu: ") and len(device_name(torch.device("cpu"))) > 5
    versions = dict(package_versions())
    assert versions["torch"] == torch.__version__ and versions["numpy"]
    assert versions["python"].startswith("3.")


# Differences -----------------------------------------------------------------------------------------------


def test_differences_by_hand():
    left = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "only": None, "same": {"e": 0.5}, "empty": {}}
    right = {"a": 1, "b": {"c": (1, 2), "d": "y"}, "same": {"e": 0.5}, "new": 3, "empty": {}}
    assert differences(left, right) == [
        Difference("b.d", "x", "y"), Difference("only", None, ABSENT), Difference("new", ABSENT, 3)
    ]  # fmt: skip
    assert differences(left, left) == []
    assert [each.key for each in differences({"a": 1}, {"a": True})] == ["a"], "1 is not true"
    assert shown([1, 2]) == "[1, 2]" and shown("x" * 99) == "x" * 57 + "..." and shown(None) == "null"


@pytest.mark.parametrize("setting, said", [("highest", "float32"), ("high", "tf32")])
def test_precision_says_what_a_gpu_multiplies_matrices_in(setting, said):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(setting)
        assert precision(torch.device("cuda")) == said
        assert precision(torch.device("cpu")) == "float32"
    finally:
        torch.set_float32_matmul_precision(before)
