"""tools/evaluate.py --report: a page for each task, the same from one process and from two."""

import re
from functools import partial
from pathlib import Path

import pytest
from distributed_helper import run_torchrun
from end_to_end_helper import cache, train_tiny  # noqa: F401

from vidpred.conditioning import TASKS

TOOL = Path(__file__).resolve().parent.parent / "tools" / "evaluate.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):  # noqa: F811
    """A run of one network for all tasks."""
    folder = tmp_path_factory.mktemp("runs")
    train_tiny(folder, "--conditioning.scheme=random")
    return folder / "tiny"


@pytest.fixture
def evaluate(run_file):
    return partial(run_file, TOOL)


def test_each_task_has_its_page(run, evaluate, tmp_path):
    arguments = ["--checkpoint", run, "--task", *TASKS, "--trajectories", 2, "--steps", 1, "--out", tmp_path]
    code, lines, _ = evaluate(*arguments, "--report", cwd=tmp_path)
    assert code == 0
    for task in TASKS:
        assert f"report: {tmp_path / f'report_{task}.html'}" in lines
        text = (tmp_path / f"report_{task}.html").read_text(encoding="utf-8")
        assert f"<title>Evaluation: {task}, " in text and "Error by noise level" in text
        # Three clips each: context, truth, two trajectories, error; of generation the one trajectory.
        assert len(re.findall("<canvas", text)) == (3 if task == "unconditional" else 15)
        assert "this device predicts it" not in text  # what is shown is what was scored


def test_page_is_equal_under_torchrun_and_only_there_when_asked_for(run, evaluate, tmp_path):
    arguments = ["--checkpoint", run, "--task", "infilling", "--batch-size", 2, "--device", "cpu", "--report"]
    evaluate(*arguments, "--out", tmp_path / "one", cwd=tmp_path)
    done = run_torchrun(TOOL, [*arguments, "--out", tmp_path / "two"], nproc=2, timeout=240)
    assert done.stdout.count("report: ") == 1  # rank 0 writes
    one, two = ((tmp_path / name / "report.html").read_bytes() for name in ("one", "two"))
    assert one == two
    evaluate(*arguments[:-1], "--out", tmp_path / "none", cwd=tmp_path)
    assert not list((tmp_path / "none").glob("*.html"))
