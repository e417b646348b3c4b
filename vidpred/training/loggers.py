"""Where the numbers of a run go: console and metrics.jsonl always, wandb and TensorBoard by switch.

Rank 0 speaks. A logger that leaves the machine must never stop a training run, so wandb and TensorBoard run
inside a fence; the JSONL file is the record of the run, so a failure there is an error.
"""

import json
import logging
import math
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Literal, Optional, Protocol, Sequence

import numpy as np
from tqdm import tqdm

from vidpred import distributed
from vidpred.errors import UserError
from vidpred.files import written_aside

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


@dataclass
class WandbConfig:
    """Weights & Biases. The key comes from `wandb login` or WANDB_API_KEY, never from a configuration."""

    enabled: bool = False
    """Send metrics and pictures to wandb."""
    project: str = "vidpred"
    """Project on the wandb server."""
    entity: Optional[str] = None
    """Team or user; the account's default without it."""
    name: Optional[str] = None
    """Name shown there; the run's name without it."""
    mode: Literal["online", "offline"] = "online"
    """offline writes into the run folder, for `wandb sync` later."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""


@dataclass
class LoggingConfig:
    """Where the numbers go besides the console, metrics.jsonl and wandb."""

    tensorboard: bool = False
    """Write TensorBoard files into the run folder."""


class Logger(Protocol):
    """Receives plain numbers by name, and the paths of pictures."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def log_pictures(self, step: int, name: str, paths: Sequence[Path]) -> None: ...

    def close(self) -> None: ...


class JsonLinesLogger:
    """`metrics.jsonl`: one JSON object a line, with `step`. A non-finite number is the string "nan" or "inf".

    Opened for a run that resumes at `step`, it first drops the lines past that step (they will be written
    again) and a last line torn by a crash.
    """

    def __init__(self, path: Path, step: int = 0):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _drop_lines_past(path, step)
        self._file = open(path, "a", encoding="utf-8")

    def log(self, step: int, values: dict[str, float]) -> None:
        record = {"step": step} | {name: _json_number(value) for name, value in values.items()}
        self._write(record)

    def log_pictures(self, step: int, name: str, paths: Sequence[Path]) -> None:
        self._write(
            {
                "step": step,
                name: [
                    str(path.relative_to(self._path.parent))
                    if path.is_relative_to(self._path.parent)
                    else str(path)
                    for path in paths
                ],
            }
        )

    def close(self) -> None:
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()


class WandbLogger:
    """One wandb run for the whole life of a run folder: its id is kept there and resumed."""

    def __init__(self, config: WandbConfig, run_folder: Path, run_name: str, resolved: dict[str, Any]):
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.name or run_name,
            id=_kept_id(run_folder / "wandb_id.txt"),
            resume="allow",
            mode=config.mode,
            tags=list(config.tags) or None,
            dir=str(run_folder),
            config=resolved,
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def log_pictures(self, step: int, name: str, paths: Sequence[Path]) -> None:
        images = [self._wandb.Image(str(path), caption=path.stem) for path in paths if path.suffix == ".png"]
        self._run.log({name: images}, step=step)

    def close(self) -> None:
        self._run.finish()


class TensorBoardLogger:
    """Event files in `<run>/tensorboard`; events past the resumed step are hidden by TensorBoard."""

    def __init__(self, run_folder: Path, step: int = 0):
        from torch.utils.tensorboard import SummaryWriter

        purge = step + 1 if step else None
        self._writer = SummaryWriter(str(run_folder / "tensorboard"), purge_step=purge)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_pictures(self, step: int, name: str, paths: Sequence[Path]) -> None:
        from PIL import Image

        for path in paths:
            if path.suffix == ".png":
                image = np.asarray(Image.open(path).convert("RGB"))
                self._writer.add_image(f"{name}/{path.stem}", image, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Fenced:
    """A logger whose failures are reported and otherwise ignored; after three in a row it is switched off."""

    PATIENCE = 3

    def __init__(self, name: str, build: Callable[[], Logger]):
        self._name = name
        self._failures = 0
        self._logger: Optional[Logger] = None
        self._logger = self._try("start", build)

    def log(self, step: int, values: dict[str, float]) -> None:
        if self._logger:
            self._try("log", lambda: self._logger.log(step, values))

    def log_pictures(self, step: int, name: str, paths: Sequence[Path]) -> None:
        if self._logger:
            self._try("log pictures", lambda: self._logger.log_pictures(step, name, paths))

    def close(self) -> None:
        if self._logger:
            self._try("close", self._logger.close)

    def _try(self, action: str, call: Callable[[], Any]) -> Any:
        try:
            result = call()
        # Anything may come out of a client of a remote service, and no metric is worth a stopped run.
        except Exception as error:
            self._failures += 1
            logger.warning(
                "%s failed to %s (%s: %s); training goes on", self._name, action, type(error).__name__, error
            )
            if self._failures >= self.PATIENCE:
                logger.warning("%s is switched off after %d failures in a row", self._name, self._failures)
                self._logger = None
            return None
        self._failures = 0
        return result


class Loggers:
    """All loggers of a run as one. Empty on every rank but the first."""

    def __init__(self, loggers: Sequence[Logger] = ()):
        self._loggers = list(loggers)

    def log(self, step: int, values: dict[str, float]) -> None:
        for one in self._loggers:
            one.log(step, values)

    def log_pictures(self, step: int, name: str, paths: Sequence[Path]) -> None:
        for one in self._loggers:
            one.log_pictures(step, name, paths)

    def close(self) -> None:
        for one in self._loggers:
            one.close()


def build_loggers(
    logging_config: LoggingConfig,
    wandb_config: WandbConfig,
    run_folder: Path,
    run_name: str,
    resolved: dict[str, Any],
    step: int = 0,
) -> Loggers:
    """The loggers of this rank.

    Args:
        resolved: the resolved configuration, which wandb shows.
        step: that of the resumed checkpoint, 0 for a new run.
    """
    if not distributed.is_main():
        return Loggers()
    loggers: list[Logger] = [JsonLinesLogger(run_folder / METRICS_FILE, step)]
    if wandb_config.enabled:
        loggers.append(Fenced("wandb", lambda: WandbLogger(wandb_config, run_folder, run_name, resolved)))
    if logging_config.tensorboard:
        loggers.append(Fenced("TensorBoard", lambda: TensorBoardLogger(run_folder, step)))
    return Loggers(loggers)


def setup_console(level: int = logging.INFO) -> None:
    """Sends the log of `vidpred` to stderr around a progress bar: rank 0 all of it, other ranks warnings.

    Calling it twice does no harm.
    """
    root = logging.getLogger("vidpred")
    if not any(isinstance(handler, _ConsoleHandler) for handler in root.handlers):
        root.addHandler(_ConsoleHandler())
    root.setLevel(level if distributed.is_main() else max(level, logging.WARNING))


class _ConsoleHandler(logging.Handler):
    """Writes through tqdm, so that a line does not land inside the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        who = (
            "" if distributed.world_size() == 1 or distributed.is_main() else f"[rank {distributed.rank()}] "
        )
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        try:
            tqdm.write(f"{who}{prefix}{record.getMessage()}", file=sys.stderr)
        except (OSError, ValueError):  # the terminal went away (a closed pipe, a dropped connection)
            self.handleError(record)


def _json_number(value: float) -> Any:
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _drop_lines_past(path: Path, step: int) -> None:
    """Rewrites the file, aside and then in place, with the complete lines whose step is at most `step`."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # torn by a crash
            continue
        if isinstance(record, dict) and record.get("step", step + 1) <= step:
            kept.append(line + "\n")
    with written_aside(path) as aside:
        aside.write_text("".join(kept), encoding="utf-8")


def _kept_id(path: Path) -> str:
    """The wandb id of this run folder, made on the first start."""
    if not path.exists():
        path.write_text(secrets.token_hex(8) + "\n", encoding="utf-8")
    kept = path.read_text(encoding="utf-8").strip()
    if not kept:
        raise UserError(f"{path} is empty: delete it to start a new wandb run")
    return kept
