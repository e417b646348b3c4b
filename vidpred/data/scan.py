"""The scan: every file is probed once, in worker processes, on all ranks, and remembered by size and date.

Records are lines of JSON in the cache folder; each rank appends its own as it goes, so a scan that was
stopped continues where it was. A probe that makes no progress for `timeout` seconds, or whose process dies,
costs its file and nothing else.
"""

import hashlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

from vidpred import distributed
from vidpred.data.clips import ClipError
from vidpred.data.sources import Source
from vidpred.files import written_aside

logger = logging.getLogger(__name__)

RECORD_VERSION = 1

Probe = Callable[[str, Callable[[], None]], list[Source]]
"""probe(name, alive) -> the sources of one file; raises ClipError with the reason why it is unusable."""


@dataclass
class ScanResult:
    sources: dict[str, list[Source]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    """Unusable files, with the reason."""


def cache_folder() -> Path:
    """Where rendered clips and scans are kept: $VIDPRED_CACHE, or ~/.cache/vidpred."""
    return Path(os.environ.get("VIDPRED_CACHE") or Path.home() / ".cache" / "vidpred").expanduser().absolute()


def fingerprint(path: Path) -> list[int]:
    """[size, date in ns] of a file; of a folder of frames the sum and the newest. Raises OSError."""
    if not path.is_dir():
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    with os.scandir(path) as entries:
        states = [entry.stat() for entry in entries if entry.is_file()]
    return [sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=0)]


def scan(
    root: Path, names: list[str], probe: Probe, variant: str, workers: int, timeout: float
) -> ScanResult:
    """Probes the files `names` under `root` that the cache lacks, shared over ranks, which must all call it.

    `variant` states everything but the file that the outcome depends on (kind, thoroughness, decoder
    versions).
    """
    book = CacheBook(root, variant)
    prints, problems, known = distributed.broadcast_object(
        _look_up(root, names, book) if distributed.is_main() else None
    )
    todo = [name for name in names if name in prints and name not in known]
    mine = [todo[place] for place in distributed.shard(len(todo))]
    for name, outcome in _with_progress(ProbePool(probe, workers, timeout).run(mine), len(mine)):
        known[name] = outcome
        book.append(name, prints[name], outcome)
    for found in distributed.gather_objects({name: known[name] for name in mine}):
        known.update(found)
    if distributed.is_main() and todo:
        book.rewrite(prints, known)
    book.close()
    result = ScanResult(problems=problems)
    for name in names:
        if name in known and isinstance(known[name], str):
            result.problems[name] = known[name]
        elif name in known:
            result.sources[name] = [Source.from_json(record) for record in known[name]]
    return result


def _look_up(root: Path, names: list[str], book: "CacheBook") -> tuple[dict, dict, dict]:
    """(fingerprints, problems of files that cannot be reached, outcomes that the cache knows)."""
    prints, problems = {}, {}
    for name in names:
        try:
            prints[name] = fingerprint(root / name)
        except OSError as error:
            problems[name] = f"cannot be reached: {error.strerror}"
    return prints, problems, book.load(prints)


def _with_progress(outcomes: Iterator, total: int) -> Iterator:
    if total == 0:
        return outcomes
    from tqdm import tqdm

    return tqdm(
        outcomes,
        total=total,
        desc="scanning",
        unit="file",
        disable=not distributed.is_main(),
        mininterval=0.5,
    )


class CacheBook:
    """The records of one root folder: name, fingerprint, and sources (or the reason why there are none)."""

    def __init__(self, root: Path, variant: str):
        identity = f"{RECORD_VERSION}|{variant}|{os.path.realpath(root)}"
        self._stem = hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=10).hexdigest()
        self._folder = cache_folder() / "scans"
        self._part: Optional[Path] = None
        self._file: Any = None
        self._broken = False

    def load(self, prints: dict[str, list[int]]) -> dict[str, Any]:
        """name -> outcome, of the files that have not changed since."""
        known = {}
        for path in sorted(self._folder.glob(f"{self._stem}*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue  # The last line of a scan that was killed.
                if prints.get(record["name"]) == record["print"]:
                    known[record["name"]] = record["outcome"]
        return known

    def append(self, name: str, fingerprint: list[int], outcome: Any) -> None:
        if self._broken:
            return
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._part = self._folder / f"{self._stem}.{distributed.rank()}.{os.getpid()}.jsonl"
                self._file = open(self._part, "a", encoding="utf-8", buffering=1)
            self._file.write(_line(name, fingerprint, outcome))
        except OSError as error:
            self._broken = True
            logger.warning("the scan cannot be remembered in %s: %s", self._folder, error.strerror)

    def rewrite(self, prints: dict[str, list[int]], known: dict[str, Any]) -> None:
        """All records in one file, put in place at once."""
        target = self._folder / f"{self._stem}.jsonl"
        try:
            with written_aside(target) as aside:
                lines = (_line(name, prints[name], known[name]) for name in known)
                aside.write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            logger.warning("the scan cannot be remembered in %s: %s", self._folder, error.strerror)

    def close(self) -> None:
        """Removes this rank's part once rank 0 has written the whole."""
        distributed.barrier()
        if self._file is not None:
            self._file.close()
            if (self._folder / f"{self._stem}.jsonl").exists():
                self._part.unlink(missing_ok=True)


def _line(name: str, fingerprint: list[int], outcome: Any) -> str:
    return json.dumps({"name": name, "print": fingerprint, "outcome": outcome}) + "\n"


class ProbePool:
    """Worker processes that probe one file each at a time and are replaced when they hang or die."""

    def __init__(self, probe: Probe, workers: int, timeout: float):
        self._probe = probe
        self._workers = max(1, workers)
        self._timeout = timeout
        # Forked, so that a probe needs no pickling and starts at once; a child opens all its readers itself.
        self._context = multiprocessing.get_context("fork")

    def run(self, names: list[str]) -> Iterator[tuple[str, Any]]:
        """Yields (name, list of records or reason) in the order in which they finish."""
        waiting = list(reversed(names))
        busy: list[_Worker] = []
        try:
            for _ in range(min(self._workers, len(names))):
                busy.append(_Worker(self._context, self._probe, waiting.pop()))
            while busy:
                multiprocessing.connection.wait([worker.pipe for worker in busy], timeout=0.2)
                for place, worker in reversed(list(enumerate(busy))):
                    outcome = worker.outcome(self._timeout)
                    if outcome is None:
                        continue
                    yield worker.name, outcome
                    if waiting:
                        busy[place] = worker.next(self._context, self._probe, waiting.pop())
                    else:
                        worker.stop()
                        del busy[place]
        finally:
            for worker in busy:
                worker.stop()


class _Worker:
    """One probing process, the file that it is at, and the time of its last sign of life."""

    def __init__(self, context: Any, probe: Probe, name: str):
        self.pipe, other = context.Pipe()
        self._beat = context.RawValue("d", time.monotonic())
        self._process = context.Process(target=_probe_files, args=(other, probe, self._beat), daemon=True)
        self._process.start()
        other.close()
        self._give(name)

    def _give(self, name: str) -> None:
        self.name = name
        self._beat.value = time.monotonic()
        self.pipe.send(name)

    def outcome(self, timeout: float) -> Any:
        """Records, or the reason why there are none; None while the probe is at work."""
        try:
            if self.pipe.poll():
                return self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            return f"crashed the decoder (exit code {self._process.exitcode})"
        if time.monotonic() - self._beat.value > timeout:
            self.stop()
            return f"hung the decoder: no frame in {timeout:g} s"
        return None

    def next(self, context: Any, probe: Probe, name: str) -> "_Worker":
        """This worker, or a new one in the place of a dead one, at work on another file."""
        try:
            self._give(name)
            return self
        except OSError:
            self.stop()
        return _Worker(context, probe, name)

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _probe_files(pipe: Any, probe: Probe, beat: Any) -> None:
    """The worker's loop: a name in, records or a reason out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def alive() -> None:
        beat.value = time.monotonic()

    parent = os.getppid()
    while True:
        while not pipe.poll(2.0):
            # Siblings hold copies of the pipe's other end, so its closing does not tell that the parent is
            # gone.
            if os.getppid() != parent:
                return
        try:
            name = pipe.recv()
        except EOFError:
            return
        try:
            outcome: Any = [source.to_json() for source in probe(name, alive)]
        except ClipError as error:
            outcome = str(error)
        pipe.send(outcome)
