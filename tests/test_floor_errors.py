"""The door of a command: what its exit code says."""

import pytest

from vidpred.errors import UserError, door


def leave(main) -> int:
    with pytest.raises(SystemExit) as ended:
        door(main)()
    return ended.value.code


def raising(error):
    def main():
        raise error

    return main


def test_exit_codes(capsys):
    assert leave(lambda: None) == 0 and leave(lambda: 1) == 1
    assert leave(raising(UserError("data.root: none"))) == 2
    assert capsys.readouterr().err == "error: data.root: none\n"


def test_a_crash_is_no_verdict(capsys):
    """1 says that something was found."""
    assert leave(raising(KeyError("frames"))) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1] == "KeyError: 'frames'"
