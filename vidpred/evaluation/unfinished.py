"""Records of an evaluation that is not finished yet, so that the same command goes on where it stopped.

Beside the result `evaluation.json` lies a folder `evaluation.unfinished` with one file of JSON lines for each
process of each start. Its first line is the key, all that the records depend on; each other line is one clip,
written as soon as it is scored. A record is what `plain_of` makes of it: any fields of plain data and arrays,
bit for bit. Reading runs no code.
"""

import base64
import dataclasses
import json
import logging
import shutil
import uuid
from pathlib import Path
from typing import Any, BinaryIO, Iterator, Optional, Sequence

import numpy as np

from vidpred import distributed
from vidpred.errors import UserError
from vidpred.evaluation import records as known_records
from vidpred.evaluation.protocol import differences
from vidpred.evaluation.records import ClipScores

logger = logging.getLogger(__name__)

PLAIN = (bool, int, float, str, type(None))
SHOWN_DIFFERENCES = 3


def unfinished_folder(result: Path) -> Path:
    """Where the records of the evaluation lie whose result will be the file `result`."""
    return Path(result).with_suffix(".unfinished")


def forget_unfinished(result: Path) -> None:
    """Deletes them, when the result is written."""
    shutil.rmtree(unfinished_folder(result), ignore_errors=True)


class UnfinishedEvaluation:
    """The records beside `result`; all ranks hold one, and each writes a file of its own.

    `key` is plain data, all that a record depends on: records of another key are deleted, in one line of log.
    """

    def __init__(self, result: Path, key: dict[str, Any]):
        self.folder = unfinished_folder(result)
        self._key = json.loads(json.dumps(key))  # as a file gives it back
        self._file: Optional[BinaryIO] = None

    def read(self) -> list[ClipScores]:
        """The records of earlier starts, in clip order, on all ranks, which must call this together."""
        mine = self._read_files() if distributed.local_rank() == 0 else []
        found = {record.index: record for share in distributed.gather_objects(mine) for record in share}
        return [found[index] for index in sorted(found)]

    def append(self, records: Sequence[ClipScores]) -> None:
        """Writes finished clips through to the system, where they survive the end of this process. UserError
        where it cannot."""
        if not records:
            return
        try:
            file = self._opened()
            for record in records:
                file.write(_line(plain_of(record)))
            file.flush()
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            raise UserError(f"{self.folder}: {reason}; give another folder with --out") from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # A file of its own: the last line of an older one may be torn.
            self._file = open(self.folder / f"{uuid.uuid4().hex}.jsonl", "ab")
            self._file.write(_line(self._key))
        return self._file

    def _read_files(self) -> list[ClipScores]:
        """Of this machine; deletes what is of another key."""
        found: list[ClipScores] = []
        told = False
        for path in sorted(self.folder.glob("*.jsonl")):
            lines = list(_whole_lines(path))
            if lines and lines[0] == self._key:
                found += [record_of(line) for line in lines[1:]]
                continue
            if lines and not told:
                told = True
                self._tell(lines[0])
            path.unlink(missing_ok=True)
        return found

    def _tell(self, other: Any) -> None:
        """In one line, what differs."""
        keys = [each.key for each in differences(other, self._key)] if isinstance(other, dict) else []
        more = ", ..." if len(keys) > SHOWN_DIFFERENCES else ""
        logger.warning(
            "evaluation: what was unfinished in %s is of another evaluation (%s%s); starting anew",
            self.folder, ", ".join(keys[:SHOWN_DIFFERENCES]), more,
        )  # fmt: skip


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _whole_lines(path: Path) -> Iterator[Any]:
    """Up to the first that is torn, as the last may be."""
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        try:
            yield json.loads(line)
        except ValueError:
            return


# Records as JSON -------------------------------------------------------------------------------------------


def plain_of(value: Any) -> Any:
    """What JSON can hold, of plain values, arrays, lists, tuples, dictionaries and the dataclasses of
    `records`. Raises TypeError for anything else. `record_of` gives it back exactly.
    """
    if isinstance(value, np.generic):
        return {"scalar": plain_of(np.asarray(value))}
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        content = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"array": [value.dtype.str, list(value.shape), content]}
    if isinstance(value, list):
        return [plain_of(each) for each in value]
    if isinstance(value, tuple):
        return {"tuple": [plain_of(each) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[plain_of(key), plain_of(each)] for key, each in value.items()]}
    if type(value) in _record_classes().values():
        fields = {each.name: plain_of(getattr(value, each.name)) for each in dataclasses.fields(value)}
        return {"record": [type(value).__name__, fields]}
    raise TypeError(f"a record of a clip cannot hold {type(value).__name__}; use plain data and arrays")


def record_of(plain: Any) -> Any:
    """The value that `plain_of` was given."""
    if isinstance(plain, list):
        return [record_of(each) for each in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "scalar":
        return record_of(content)[()]
    if kind == "array":
        dtype, shape, encoded = content
        return np.frombuffer(base64.b64decode(encoded), np.dtype(dtype)).reshape(shape).copy()
    if kind == "tuple":
        return tuple(record_of(each) for each in content)
    if kind == "dict":
        return {record_of(key): record_of(each) for key, each in content}
    name, fields = content
    return _record_classes()[name](**{field: record_of(each) for field, each in fields.items()})


def _record_classes() -> dict[str, type]:
    """Whatever dataclasses `records` has: new ones, and new fields, need no code here."""
    return {name: each for name, each in vars(known_records).items() if dataclasses.is_dataclass(each)}
