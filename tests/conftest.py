"""One thread per process, set before PyTorch is imported: the tests' tensors are tiny, and several processes run."""

import os
import runpy
import sys

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # whatever was set: with more, sums of floats depend on the number of processes


@pytest.fixture
def run_file(monkeypatch, capsys):
    """Runs a tool as `python TOOL ARGUMENTS` does, without the seconds that a new process takes to import:
    (exit code, lines, lines of errors)."""

    def run(tool, *arguments, cwd=None):
        if cwd is not None:
            monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [str(tool), *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(tool), run_name="__main__")
        printed = capsys.readouterr()
        return ended.value.code, printed.out.splitlines(), printed.err.splitlines()

    return run
