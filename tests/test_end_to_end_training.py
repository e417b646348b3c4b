"""Whole runs through the real command: stopped, killed, resumed, on one process and on two."""

import json
import signal
import sys

import pytest
import torch
from distributed_helper import REPOSITORY, run_command, run_torchrun, torchrun_command
from end_to_end_helper import (
    assert_same,
    cache,  # noqa: F401  (a fixture)
    losses,
    metrics,
    newest_checkpoint,
    started,
    steps_done,
    tiny_arguments,
    train_tiny,
    wait_until,
)

from vidpred.checkpoint_store import read_checkpoint
from vidpred.training import RunOutcome

pytestmark = [pytest.mark.usefixtures("cache"), pytest.mark.timeout(900)]
SCRIPT = str(REPOSITORY / "train_video_pred.py")
STEPS = 24
LONG = [f"--training.num_steps={STEPS}", "--training.lr_schedule=cosine"]
# Validation in every step makes the steps long enough to be interrupted in time. It changes nothing else.
SLOWLY = "--training.validate_every_step=1"


def command(folder):
    return [sys.executable, SCRIPT, *tiny_arguments(folder, *LONG, SLOWLY)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, cache):  # noqa: F811
    folder = tmp_path_factory.mktemp("uninterrupted")
    output = run_command(command(folder), timeout=400).stderr
    assert f"run finished: {STEPS} of {STEPS} steps done" in output
    return folder / "tiny"


def test_stopped_killed_and_resumed_is_bit_for_bit_the_uninterrupted_run(tmp_path, uninterrupted):
    run, log = tmp_path / "tiny", tmp_path / "log"
    with started(command(tmp_path), log) as process:
        wait_until(lambda: steps_done(run) >= 4, process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=200) == 0
    stopped = read_checkpoint(run).step
    line = f"interrupted at step {stopped} of {STEPS}: checkpoint saved; run the same command again to go on"
    assert 4 <= stopped < STEPS and (run / "interrupted").read_text() == line + "\n"
    assert line in log.read_text()

    with started(command(tmp_path), log) as process:
        wait_until(lambda: newest_checkpoint(run) > stopped, process, log)
        process.kill()
    killed = newest_checkpoint(run)
    assert stopped < killed < STEPS and not (run / "interrupted").exists()
    assert f"resumed at step {stopped} of {STEPS}" in log.read_text()

    output = run_command(command(tmp_path), timeout=400).stderr
    assert f"resumed at step {killed} of {STEPS}" in output
    left, right = read_checkpoint(run), read_checkpoint(uninterrupted)
    assert left.step == right.step == STEPS
    assert left.tensors.keys() == {"model", "ema", "calibration", "record"}
    for name in left.tensors:
        assert_same(dict(left.tensors[name]), dict(right.tensors[name]), name)
    for name in ("optimizer", "ema_updates", "task", "history"):
        assert_same(left.state[name], right.state[name], name)
    # The loss of each step is a function of its clips, levels and noise: they came in the same order.
    assert len(losses(run)) == STEPS and losses(run) == losses(uninterrupted)
    ours, theirs = (json.loads(next(p.glob("evaluation/*.json")).read_text()) for p in (run, uninterrupted))
    assert ours == theirs


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, cache):  # noqa: F811
    """The same run on two processes: (run folder, its log)."""
    folder = tmp_path_factory.mktemp("two")
    output = run_torchrun(SCRIPT, tiny_arguments(folder, *LONG), nproc=2, timeout=400).stderr
    return folder / "tiny", output


def assert_agree(run, other):
    """Equal up to the order in which numbers were added: the same clips, levels and noise in each step."""
    assert len(losses(run)) == len(losses(other)) == STEPS >= 20
    for key in ("train/loss", "train/grad_norm", "validation/loss", "validation/loss_ema"):
        left, right = ({row["step"]: row[key] for row in metrics(one) if key in row} for one in (run, other))
        both = left.keys() & right.keys()  # they are not validated in the same steps
        assert len(both) >= (STEPS if key.startswith("train") else 6), key
        assert [left[step] for step in both] == pytest.approx([right[step] for step in both], abs=1e-5), key
    left, right = (read_checkpoint(one).tensors["ema"] for one in (run, other))
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=1e-4)


def test_two_processes_leave_the_record_and_the_findings_of_one(two_processes, uninterrupted):
    runs = (uninterrupted, two_processes[0])
    one, two = (dict(read_checkpoint(run).tensors["record"]) for run in runs)
    assert one.keys() == two.keys() and len(one["draws"]) == 3
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-3, msg=name)
    for name in ("frames", "given", "draws", "frame_times", "alphas", "sigmas"):
        assert torch.equal(one[name], two[name]), name
    left, right = ([(row["step"], key, row[key]) for row in metrics(run) for key in row if key.startswith("finding/")]
                   for run in runs)  # fmt: skip
    assert left == right


def test_two_processes_see_what_one_sees(two_processes, uninterrupted):
    """1 process x 8 clips and 2 x 4."""
    assert_agree(two_processes[0], uninterrupted)


def test_one_rank_speaks(two_processes):
    _, output = two_processes
    for line in ("latent calibration per channel", "EMA initialised and verified equal", "run finished"):
        assert output.count(line) == 1, line
    assert "on 2 rank(s)" in output and "batch 8 = 2 process(es) x 1 accumulation x 4" in output


def test_a_finished_run_is_evaluated_alike_by_one_and_by_two_processes(two_processes):
    """The report is deleted and made again, without a training step."""
    run, _ = two_processes
    file = run / "evaluation" / f"step_{STEPS:08d}.json"
    by_two = json.loads(file.read_text())
    file.unlink()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes had
    try:
        assert train_tiny(run.parent, *LONG) == RunOutcome("already finished", STEPS)
    finally:
        torch.set_num_threads(threads)
    assert json.loads(file.read_text()) == by_two
    assert len(losses(run)) == STEPS


@pytest.mark.slow
def test_torchrun_stopped_and_resumed_agrees_too(tmp_path, uninterrupted):
    run, log = tmp_path / "tiny", tmp_path / "log"
    arguments = tiny_arguments(tmp_path, *LONG, SLOWLY)
    with started(torchrun_command(SCRIPT, arguments, nproc=2), log) as process:
        wait_until(lambda: steps_done(run) >= 4, process, log)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=200)
    stopped = read_checkpoint(run).step
    assert (run / "interrupted").read_text().startswith(f"interrupted at step {stopped} of {STEPS}")
    assert 4 <= stopped < STEPS
    output = run_torchrun(SCRIPT, arguments, nproc=2, timeout=400).stderr
    assert f"resumed at step {stopped} of {STEPS}" in output
    assert_agree(run, uninterrupted)


@pytest.mark.slow
def test_three_processes_resume_and_evaluate_what_one_began(tmp_path):
    """A run moves between numbers of processes: 12 clips x 1 at first, then 4 x 3."""
    batch = "--training.batch_size=12"
    for name, rounds in (("one", [(1, 6)]), ("moved", [(1, 3), (3, 6)])):
        (tmp_path / name).mkdir()
        for processes, steps in rounds:
            arguments = tiny_arguments(tmp_path / name, batch, f"--training.num_steps={steps}")
            run_torchrun(SCRIPT, arguments, nproc=processes, timeout=400)
    one, moved = (tmp_path / name / "tiny" for name in ("one", "moved"))
    assert losses(moved) == pytest.approx(losses(one), abs=1e-5)
    rows = [json.loads((run / "evaluation" / "step_00000006.json").read_text()) for run in (one, moved)]
    for row in ("model", "floor", "linear", "ceiling"):
        assert rows[0][row]["psnr"]["mean"] == pytest.approx(rows[1][row]["psnr"]["mean"], abs=1e-2)
    for row in ("floor", "linear", "ceiling"):
        assert rows[0][row] == rows[1][row]


@pytest.mark.slow
def test_what_is_refused_under_torchrun_is_one_line_before_torchruns_own(tmp_path):
    result = run_torchrun(
        SCRIPT, tiny_arguments(tmp_path, "--training.batch_size=7"), nproc=2, timeout=400, check=False
    )
    line = "error: training.batch_size 7 cannot be shared equally by 2 processes x 1 accumulation rounds"
    assert result.returncode != 0 and result.stderr.startswith(line) and result.stderr.count(line) == 1
    assert "vidpred/" not in result.stderr, "a traceback of ours"
    assert not (tmp_path / "tiny").exists()
