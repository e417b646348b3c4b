"""Files that are written whole or not at all."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Iterator, Union


@contextlib.contextmanager
def written_aside(path: Union[str, os.PathLike]) -> Iterator[Path]:
    """Yields a temporary sibling with the same ending and renames it to `path` when the block succeeds."""
    path = Path(os.path.abspath(path))  # FFmpeg reads a bare name such as `concat:...` as an instruction
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Union[str, os.PathLike], values: Any) -> None:
    """Plain data as a file for people and programs. NaN and infinities, which JSON has not, are a ValueError."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
