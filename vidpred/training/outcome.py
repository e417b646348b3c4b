"""How a run ends, and the mark that an interrupted one leaves in its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

INTERRUPTED_FILE = "interrupted"


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended, and the number of steps that are done."""

    status: Literal["finished", "already finished", "interrupted"]
    step: int


def mark_interrupted(folder: Path, line: str) -> None:
    """Writes the file by which a job script knows that the same command is to be run again."""
    (folder / INTERRUPTED_FILE).write_text(line + "\n", encoding="utf-8")


def remove_mark(folder: Path) -> None:
    """Makes the folder of a run that begins or goes on, without the mark of an earlier end."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INTERRUPTED_FILE).unlink(missing_ok=True)
