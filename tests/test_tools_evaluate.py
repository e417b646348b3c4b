"""tools/evaluate.py by the command line: every task, any split, best of N, several processes, refusals."""

import hashlib
import json
from functools import partial
from pathlib import Path

import pytest
from distributed_helper import run_torchrun
from end_to_end_helper import CONTEXT, FRAMES, cache, train_tiny  # noqa: F401
from evaluation_helper import save_stand_in

from vidpred.checkpoint_store import CheckpointStore, read_checkpoint
from vidpred.conditioning import TASKS
from vidpred.metrics import video_features

TOOL = Path(__file__).resolve().parent.parent / "tools" / "evaluate.py"
EVALUATION = "evaluation/val_step_00000006"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, cache):  # noqa: F811
    """A folder with a run in it of one network for all tasks."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "runs").mkdir()
    train_tiny(folder / "runs", "--conditioning.scheme=random", "--data.num_test_clips=2")
    return folder


@pytest.fixture
def evaluate(run_file):
    return partial(run_file, TOOL)


def test_all_tasks_of_the_newest_run(workplace, evaluate):
    code, lines, _ = evaluate("--task", *TASKS, "--trajectories", 2, "--steps", 1, cwd=workplace)
    assert code == 0 and lines[0].startswith("model: runs/tiny/checkpoints/step_00000006 (step 6); val split")
    folder = workplace / "runs" / "tiny" / EVALUATION
    for task in TASKS:
        saved = json.loads((folder / f"evaluation_{task}.json").read_text())
        protocol = saved["protocol"]
        given = 0 if task == "unconditional" else CONTEXT  # half of four frames, both ends, or the first two
        assert (protocol["task"], protocol["split"], protocol["clips"]) == (task, "val", 3)
        assert (protocol["context_frames"], protocol["predicted_frames"]) == (given, FRAMES - given)
        assert protocol["sampling"]["num_inference_steps"] == 1 and protocol["step"] == 6
        assert any(f"predicted frames ({task})" in line for line in lines)
        assert len(list((folder / f"evaluation_{task}").iterdir())) == 3  # a strip, a GIF and a video
        assert saved["motion_energy_ratio"] > 0
        if task == "unconditional":
            assert saved["model"]["psnr"]["mean"] is None
            continue
        assert saved["best_of_n"]["psnr"]["mean"] >= saved["model"]["psnr"]["mean"] > 0
        assert saved["protocol"]["best_of_n"]["chosen_by"] == "psnr"
        assert saved["ensemble"]["diversity"]["mean"] > 0
    assert sum(line.startswith("model, best of 2 ") for line in lines) == 3


def test_one_task_is_the_evaluation_of_the_training_run(workplace, evaluate):
    code, lines, _ = evaluate(cwd=workplace)
    run = workplace / "runs" / "tiny"
    assert code == 0 and lines[-1] == f"evaluation: {run / EVALUATION / 'evaluation.json'}"
    saved, trained = run / EVALUATION / "evaluation.json", run / "evaluation" / "step_00000006.json"
    assert json.loads(saved.read_text()) == json.loads(trained.read_text())


def test_another_split_another_folder_other_settings(workplace, evaluate, tmp_path):
    checkpoint = workplace / "runs" / "tiny" / "checkpoints" / "step_00000003"
    code, lines, _ = evaluate(
        "--checkpoint", checkpoint, "--split", "test", "--clips", 1, "--batch-size", 1, "--seed", 5,
        "--task", "infilling", "--out", tmp_path, cwd=tmp_path,
    )  # fmt: skip
    protocol = json.loads((tmp_path / "evaluation.json").read_text())["protocol"]
    assert code == 0 and (protocol["split"], protocol["clips"], protocol["items_in_split"]) == ("test", 1, 2)
    assert (protocol["step"], protocol["seed"], protocol["task"]) == (3, 5, "infilling")
    assert not (workplace / "runs" / "tiny" / "evaluation" / "test_step_00000003").exists()


def test_ensemble_and_fvd_of_a_run(evaluate, cache, tmp_path, monkeypatch):  # noqa: F811
    weights = save_stand_in(tmp_path / "i3d_torchscript.pt")
    checksum = hashlib.sha256(weights.read_bytes()).hexdigest()
    monkeypatch.setattr(video_features, "TORCHSCRIPT_SHA256", checksum)
    longer = ("--data.num_frames=9", "--data.clip_frames=9", "--training.num_steps=1", "--data.num_clips=2")
    train_tiny(tmp_path, *longer, "--training.batch_size=2")
    run = tmp_path / "tiny"
    code, lines, _ = evaluate("--checkpoint", run, "--trajectories", 2, "--fvd-weights", weights)
    assert code == 0
    assert any("CRPS" in line and "FVD (whole clips)" in line for line in lines)
    saved = json.loads(next((run / "evaluation").glob("val_step_*/evaluation.json")).read_text())
    rows = {"model", "floor", "decoded_floor", "context_mean", "linear", "ceiling"}
    assert rows <= saved["fvd"]["whole_clip"].keys() and "generated" not in saved["fvd"]
    assert saved["protocol"]["fvd"]["weights_sha256"] == checksum
    assert saved["ensemble"]["spread_over_skill"]["mean"] > 0 and saved["model"]["crps"]["mean"] > 0


def test_figures_are_equal_under_torchrun(workplace, evaluate, tmp_path):
    run = workplace / "runs" / "tiny"
    arguments = ["--checkpoint", run, "--task", "infilling", "--batch-size", 2, "--trajectories", 2]
    evaluate(*arguments, "--out", tmp_path / "one", cwd=workplace)
    arguments += ["--device", "cpu", "--out", tmp_path / "two"]
    done = run_torchrun(TOOL, arguments, nproc=2, timeout=240)
    assert done.stdout.count("model: ") == 1  # rank 0 speaks
    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two"))
    assert one == two and one["protocol"]["clips"] == 3


def test_a_task_that_the_network_never_saw_is_refused(workplace, evaluate, tmp_path):
    checkpoint = read_checkpoint(workplace / "runs" / "tiny")
    checkpoint.config["conditioning"]["scheme"] = "prediction"
    store = CheckpointStore(tmp_path / "narrow" / "checkpoints")
    store.save(checkpoint.step, checkpoint.tensors, checkpoint.state, checkpoint.config, {})
    arguments = ["--checkpoint", tmp_path / "narrow", "--task", "prediction", "interpolation", "--steps", 1]
    code, _, errors = evaluate(*arguments, cwd=tmp_path)
    assert code == 2 and len(errors) == 1
    assert "--task interpolation: conditioning.scheme prediction never gave" in errors[0]
    assert errors[0].endswith("choose prediction, or add --anyway")
    assert not (tmp_path / "narrow" / "evaluation").exists()
    code, _, _ = evaluate(*arguments, "--anyway", cwd=tmp_path)
    assert code == 0 and (tmp_path / "narrow" / EVALUATION / "evaluation_interpolation.json").exists()


def test_what_cannot_be_evaluated_is_one_line(workplace, evaluate, tmp_path):
    run = workplace / "runs" / "tiny"
    file = tmp_path / "file"
    file.touch()
    for arguments, message in (
        ([], "--checkpoint: no run under"),
        (["--checkpoint", tmp_path / "nowhere"], "nowhere: no such folder"),
        (["--checkpoint", run, "--clips", 0], "evaluation.num_clips: 0"),
        (["--checkpoint", run, "--batch-size", 0], "evaluation.batch_size: 0"),
        (["--checkpoint", run, "--trajectories", 0], "trajectories: 0 must be 1 or more"),
        (["--checkpoint", run, "--fvd-weights", "/no/such.pt"], "evaluation.fvd_weights: no file /no/such"),
        (["--checkpoint", run, "--steps", 5000], "sampling.num_inference_steps: 5000"),
        (["--checkpoint", run, "--device", "gpu"], "device: 'gpu' is not known"),
        (["--checkpoint", run, "--out", file / "below"], "give another folder with --out"),
    ):
        code, _, errors = evaluate(*arguments, cwd=tmp_path)
        assert code == 2 and sum(line.startswith("error: ") for line in errors) == 1, errors
        assert message in errors[-1] and not any("Traceback" in line for line in errors), errors


def test_help(evaluate, tmp_path):
    code, lines, _ = evaluate("--help", cwd=tmp_path)
    assert code == 0 and any("--checkpoint DIR" in line for line in lines)
