"""tools/evaluate.py by the command line: every task, any split, best of N, several processes, refusals."""

import hashlib
import json
import signal
from functools import partial
from pathlib import Path

import pytest
from distributed_helper import run_torchrun, torchrun_command
from end_to_end_helper import CONTEXT, FRAMES, cache, started, train_tiny, wait_until  # noqa: F401
from evaluation_helper import save_stand_in

from vidpred.assembly import prediction_parts
from vidpred.checkpoint_store import CheckpointStore, read_checkpoint
from vidpred.conditioning import TASKS
from vidpred.data import ClipError
from vidpred.data.source_dataset import SourceDataset
from vidpred.metrics import video_features

TOOL = Path(__file__).resolve().parent.parent / "tools" / "evaluate.py"
EVALUATION = "evaluation/val_step_00000006"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, cache):  # noqa: F811
    """A folder with a run in it of one network for all tasks, and the splits that its training has read."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "runs").mkdir()
    splits, build = set(), prediction_parts.build_dataset

    def watched(data, split, *others):
        splits.add(split)
        return build(data, split, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction_parts, "build_dataset", watched)
        train_tiny(folder / "runs", "--conditioning.scheme=random", "--data.num_test_clips=2")
    (folder / "splits.json").write_text(json.dumps(sorted(splits)))
    return folder


def test_training_reads_no_test_clip(workplace):
    """So none can choose a checkpoint."""
    assert json.loads((workplace / "splits.json").read_text()) == ["train", "val"]


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
        assert protocol["sampling"]["num_inference_steps"] == 1 and saved["run"]["step"] == 6
        assert saved["run"]["chosen"] == "the newest of the newest run"
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
    tool, training = json.loads(saved.read_text()), json.loads(trained.read_text())
    runs = [result.pop("run") for result in (tool, training)]
    assert tool == training and tool["protocol"]["split"] == "val" and tool["protocol"]["clips"] == 3
    same = {key for key in runs[0] if runs[0][key] == runs[1][key]}
    assert runs[0].keys() - same == {"checkpoint", "chosen"}, "the same weights, device and code"
    assert runs[1]["chosen"] == "the weights of the training run at this step"
    assert not list(saved.parent.glob("*.unfinished"))


def test_another_split_another_folder_other_settings(workplace, evaluate, tmp_path):
    checkpoint = workplace / "runs" / "tiny" / "checkpoints" / "step_00000003"
    code, lines, _ = evaluate(
        "--checkpoint", checkpoint, "--split", "test", "--clips", 1, "--batch-size", 1, "--seed", 5,
        "--task", "infilling", "--out", tmp_path, cwd=tmp_path,
    )  # fmt: skip
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    protocol, described = saved["protocol"], saved["run"]
    assert code == 0 and (protocol["split"], protocol["clips"], protocol["items_in_split"]) == ("test", 1, 2)
    assert (described["step"], protocol["seed"], protocol["task"]) == (3, 5, "infilling")
    assert described["chosen"] == "given" and described["checkpoint"] == str(checkpoint)
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


def test_more_frames_than_a_window_have_a_report_too(workplace, evaluate, tmp_path):
    run = workplace / "runs" / "tiny"
    arguments = ("--checkpoint", run, "--frames", FRAMES + 2, "--clips", 2, "--report", "--out", tmp_path)
    code, _, _ = evaluate(*arguments, cwd=tmp_path)
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert code == 0 and (tmp_path / "report.html").exists()
    assert saved["protocol"]["predicted_frames"] == FRAMES + 2 - CONTEXT == len(saved["model"]["psnr"]["per_horizon"])
    assert saved["run"]["window_frames"] == FRAMES


def test_a_runs_longer_predictions_do_not_hinder_other_tasks(workplace, evaluate, tmp_path):
    checkpoint = read_checkpoint(workplace / "runs" / "tiny")
    checkpoint.config["evaluation"]["num_frames"] = FRAMES + 1
    store = CheckpointStore(tmp_path / "long" / "checkpoints")
    store.save(checkpoint.step, checkpoint.tensors, checkpoint.state, checkpoint.config, {})
    arguments = ["--checkpoint", tmp_path / "long", "--task", "prediction", "infilling", "--steps", 1]
    assert evaluate(*arguments, cwd=tmp_path)[0] == 0
    results = (tmp_path / "long" / EVALUATION).glob("evaluation_*.json")
    shapes = {task: sum(json.loads(file.read_text())["protocol"][key] for key in ("context_frames", "predicted_frames"))
              for file in results for task in [file.stem.split("_")[1]]}  # fmt: skip
    assert shapes == {"prediction": FRAMES + 1, "infilling": FRAMES}
    code, _, errors = evaluate(*arguments, "--frames", FRAMES + 1, cwd=tmp_path)
    assert code == 2 and "is of prediction alone" in errors[-1]
    assert not any("clip/s" in line for line in errors), "refused before the work"


def test_figures_are_equal_under_torchrun(workplace, evaluate, tmp_path):
    run = workplace / "runs" / "tiny"
    arguments = ["--checkpoint", run, "--task", "infilling", "--batch-size", 2, "--trajectories", 2]
    evaluate(*arguments, "--out", tmp_path / "one", cwd=workplace)
    arguments += ["--device", "cpu", "--out", tmp_path / "two"]
    done = run_torchrun(TOOL, arguments, nproc=2, timeout=240)
    assert done.stdout.count("model: ") == 1  # rank 0 speaks
    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two"))
    assert one == two and one["protocol"]["clips"] == 3


def test_the_best_checkpoint_is_chosen_by_validation(workplace, evaluate, tmp_path):
    run, out = workplace / "runs" / "tiny", ["--steps", 1, "--clips", 1, "--out", tmp_path]
    best = read_checkpoint(run).info["best"]
    code, lines, _ = evaluate("--checkpoint", run, "--best", *out, cwd=workplace)
    described = json.loads((tmp_path / "evaluation.json").read_text())["run"]
    assert code == 0 and described["step"] == best["step"] and f"(step {best['step']})" in lines[0]
    assert described["chosen"].startswith("the best of the given run by validation/loss_ema (")
    assert described["chosen"].endswith(") on the validation split")


def test_two_results_are_compared(workplace, evaluate, tmp_path):
    for name, step, extra in (("a", 3, []), ("b", 6, []), ("c", 6, ["--seed", 9])):
        checkpoint = workplace / "runs" / "tiny" / "checkpoints" / f"step_{step:08d}"
        evaluate("--checkpoint", checkpoint, "--steps", 1, "--out", tmp_path / name, *extra, cwd=workplace)
    a, b, c = (tmp_path / name / "evaluation.json" for name in "abc")
    code, lines, _ = evaluate("--compare", a, b, cwd=tmp_path)
    assert code == 0 and "step 3" in lines[0] and "step 6" in lines[1]
    assert any(line.startswith("model psnr ") and " +- " in line for line in lines)
    code, lines, errors = evaluate("--compare", a, c, cwd=tmp_path)
    assert code == 2 and lines == [] and len(errors) == 2
    assert errors[0] == f"protocol differs: seed is 0 in {a}, 9 in {c}"
    assert errors[1].startswith("error: --compare: the protocols differ in 1 key")
    code, lines, _ = evaluate("--compare", a, c, "--anyway", cwd=tmp_path)
    assert code == 0 and lines[0] == errors[0] and any(line.startswith("model psnr ") for line in lines)


def test_bad_clips_end_it_or_are_left_out(workplace, evaluate, tmp_path, monkeypatch):
    read = SourceDataset.fixed_clip

    def damaged(dataset, index, window):
        if index == 1:
            raise ClipError("damaged")
        return read(dataset, index, window)

    monkeypatch.setattr(SourceDataset, "fixed_clip", damaged)
    arguments = ["--checkpoint", workplace / "runs" / "tiny", "--steps", 1, "--out", tmp_path]
    code, _, errors = evaluate(*arguments, cwd=tmp_path)
    assert code == 2 and errors[-1].startswith("error: evaluation: 1 of the first 3 clips are bad: '")
    assert "(index 1): damaged; " in errors[-1] and not (tmp_path / "evaluation.json").exists()
    code, lines, _ = evaluate(*arguments, "--skip-bad", cwd=tmp_path)
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert code == 0 and [bad["index"] for bad in saved["left_out"]] == [1] and saved["protocol"]["clips"] == 2
    assert any(line.startswith("1 bad clips left out: ") for line in lines)


def test_an_interrupted_evaluation_goes_on_with_the_same_command(workplace, evaluate, tmp_path):
    """Two processes are interrupted as by Ctrl-C; one goes on."""
    arguments = ["--checkpoint", workplace / "runs" / "tiny", "--device", "cpu", "--batch-size", 1, "--steps", 60,
                 "--trajectories", 2, "--task", "prediction", "infilling"]  # fmt: skip
    out, log = tmp_path / "parts", tmp_path / "log"

    def scored() -> bool:
        return any(path.read_bytes().count(b"\n") > 1 for path in out.glob("*.unfinished/*.jsonl"))

    command = torchrun_command(TOOL, [*arguments, "--out", out], nproc=2)
    with started(command, log) as process:
        wait_until(scored, process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) != 0
    text = log.read_text()
    line = "SIGINT: stopping after this batch, the same command goes on from there; a second Ctrl-C ends at once"
    assert text.count(line) == 1, text
    assert not (out / "evaluation_infilling.json").exists()
    code, _, errors = evaluate(*arguments, "--out", out, cwd=workplace)
    assert code == 0 and any("going on, " in line for line in errors), errors
    assert not list(out.glob("*.unfinished"))
    evaluate(*arguments, "--out", tmp_path / "whole", cwd=workplace)
    for name in ("evaluation_prediction.json", "evaluation_infilling.json"):
        assert (out / name).read_text() == (tmp_path / "whole" / name).read_text()


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
        (["--checkpoint", run, "--frames", 500], "data.num_frames: 500 frames need 500 of the"),
        (["--checkpoint", run, "--frames", CONTEXT], "evaluation: prediction needs clips whose first"),
        (["--checkpoint", run, "--frames", 9, "--task", "infilling"], "evaluation.num_frames: 9 is of prediction"),
        (["--checkpoint", run, "--batch-size", 0], "evaluation.batch_size: 0"),
        (["--checkpoint", run, "--trajectories", 0], "trajectories: 0 must be 1 or more"),
        (["--checkpoint", run, "--fvd-weights", "/no/such.pt"], "evaluation.fvd_weights: no file /no/such"),
        (["--checkpoint", run, "--steps", 5000], "sampling.num_inference_steps: 5000"),
        (["--checkpoint", run, "--device", "gpu"], "device: 'gpu' is not known"),
        (["--checkpoint", run, "--out", file / "below"], "give another folder with --out"),
        (["--compare", file, file], f"--compare: {file} cannot be read (not JSON)"),
    ):
        code, _, errors = evaluate(*arguments, cwd=tmp_path)
        assert code == 2 and sum(line.startswith("error: ") for line in errors) == 1, errors
        assert message in errors[-1] and not any("Traceback" in line for line in errors), errors


def test_help(evaluate, tmp_path):
    code, lines, _ = evaluate("--help", cwd=tmp_path)
    assert code == 0 and any("--checkpoint DIR" in line for line in lines)
