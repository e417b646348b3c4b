"""Starts a script under a real torchrun, with a hard limit in time; when it fails, shows what it printed."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Mapping, Optional, Sequence, Union

REPOSITORY = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun_command(script_or_module: Union[str, Path], args: Sequence, nproc: int) -> list[str]:
    """The command line: a path that ends in `.py` is a script, anything else a module's dotted name."""
    target = [str(script_or_module)]
    if not target[0].endswith(".py"):
        target = ["-m", *target]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(nproc)]
    return [
        *launcher,
        "--master_addr",
        "127.0.0.1",
        "--master_port",
        str(free_port()),
        *target,
        *map(str, args),
    ]


def child_environment(env: Optional[Mapping[str, str]] = None) -> dict[str, str]:
    """One thread per process, the checkout importable, and none of an outer torchrun's variables."""
    outer = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    inherited = {name: value for name, value in os.environ.items() if name not in outer}
    paths = [str(REPOSITORY), *filter(None, [inherited.get("PYTHONPATH")])]
    inherited.update(OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(paths), **(env or {}))
    return inherited


def run_torchrun(
    script_or_module: Union[str, Path],
    args: Sequence = (),
    nproc: int = 2,
    timeout: float = 120.0,
    env: Optional[Mapping[str, str]] = None,
    cwd: Optional[Path] = None,
    check: bool = True,
) -> subprocess.CompletedProcess:
    """Runs it to its end; at `timeout` seconds the launcher and all its workers are killed (AssertionError).

    With `check`, an exit code other than 0 is an AssertionError that holds the output. `cwd` defaults to the
    checkout; `env` is added to the environment. stdout and stderr come back as text.
    """
    return run_command(torchrun_command(script_or_module, args, nproc), timeout, env, cwd, check)


def run_command(
    command: Sequence[str],
    timeout: float,
    env: Optional[Mapping[str, str]] = None,
    cwd: Optional[Path] = None,
    check: bool = True,
) -> subprocess.CompletedProcess:
    """The same for any command line (a tool in a plain process)."""
    process = subprocess.Popen(
        command,
        env=child_environment(env),
        cwd=cwd or REPOSITORY,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException as reason:
        # torchrun puts each worker into a session of its own: end those too, not only the launcher.
        kill_tree(process.pid)
        out, err = process.communicate()
        if not isinstance(reason, subprocess.TimeoutExpired):
            raise
        raise AssertionError(_report(f"still running after {timeout} s", command, out, err)) from None
    if check and process.returncode != 0:
        raise AssertionError(_report(f"exit code {process.returncode}", command, out, err))
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _descendants(pid: int) -> set[int]:
    """All processes below `pid`, read from /proc (a slim container has no `ps`)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()  # after the name: state, parent, ...
        except OSError:
            continue  # it ended meanwhile
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, queue = set(), [pid]
    while queue:
        new = children.get(queue.pop(), [])
        found.update(new)
        queue.extend(new)
    return found


def kill_tree(pid: int) -> None:
    """Ends a process and everything that it started."""
    for pid in {pid} | _descendants(pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _report(what: str, command: Sequence[str], out: str, err: str) -> str:
    return f"{what}: {' '.join(command)}\n--- stdout\n{out[-8000:]}\n--- stderr\n{err[-8000:]}"
