"""From a folder to the data set of one split: find the items, split and scan them, report the unusable."""

import json
import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

from vidpred import distributed
from vidpred.data.clips import ClipError
from vidpred.data.config import SPLITS, FolderConfig
from vidpred.data.item_conditions import find_conditions
from vidpred.data.scan import Probe, ScanResult, scan
from vidpred.data.selection import ClipRejected, allowed_starts
from vidpred.data.source_dataset import SourceDataset
from vidpred.data.sources import Source
from vidpred.data.splits import assign_splits, split_by_hash, split_method
from vidpred.errors import UserError

logger = logging.getLogger(__name__)

SHOWN_PROBLEMS = 5


@dataclass
class DataReport:
    """What the scan found under a root, for `data_report.json`."""

    root: str
    files: int
    sources: dict[str, list[Source]] = field(default_factory=dict)
    """Per split, those that can be used."""
    unusable: dict[str, str] = field(default_factory=dict)
    """Item -> reason."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Usable, but set aside by the selection that the configuration asks for."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Extensions of files that are no items, and how many there are."""

    def items(self) -> int:
        """All items: files, or clips inside array files."""
        return sum(map(len, self.sources.values())) + len(self.unusable) + len(self.rejected)

    def to_json(self) -> dict:
        every = [source for sources in self.sources.values() for source in sources]
        return {
            "root": self.root,
            "files": self.files,
            "unusable_fraction": len(self.unusable) / max(1, self.items()),
            "unusable": self.unusable,
            "rejected": self.rejected,
            "ignored_extensions": self.ignored,
            "splits": {
                split: {
                    "items": len(sources),
                    "frames": sum(source.frames for source in sources),
                    "seconds": round(sum(source.frames / source.fps for source in sources), 2),
                }
                for split, sources in self.sources.items()
            },
            "readers": dict(Counter(source.reader for source in every)),
            "not_decord": {source.name: source.note for source in every if source.note},
        }

    def save(self, path: Path) -> None:
        """Writes it on rank 0."""
        if distributed.is_main():
            path.parent.mkdir(parents=True, exist_ok=True)
            # A name that is not UTF-8 is written with its bytes escaped.
            path.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")


class UnusableData(UserError):
    """Too many files cannot be used; `report` says which and why."""

    def __init__(self, report: DataReport, message: str):
        super().__init__(message)
        self.report = report


def find_files(root: Path, extensions: tuple[str, ...]) -> tuple[list[str], dict[str, int]]:
    """(sorted names under `root` with these extensions, count of other files by extension), on all ranks.

    Hidden files and folders are passed over; links to folders are followed once.
    """
    found = distributed.broadcast_object(_walk(root, extensions) if distributed.is_main() else None)
    if not found[0]:
        raise UserError(f"data.root: {root} holds no file that ends in {', '.join(extensions)}")
    return found


def _walk(root: Path, extensions: tuple[str, ...]) -> tuple[list[str], dict[str, int]]:
    names, others, seen = [], Counter(), set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(entry for entry in subfolders if not entry.startswith("."))
        for file in files:
            extension = os.path.splitext(file)[1].lower()
            if file.startswith("."):
                continue
            if extension in extensions:
                names.append(os.path.relpath(os.path.join(folder, file), root).replace(os.sep, "/"))
            else:
                others[extension or "(none)"] += 1
    return sorted(names), dict(sorted(others.items()))


def build_split(
    config: FolderConfig,
    split: str,
    names: list[str],
    ignored: dict[str, int],
    probe: Probe,
    variant: str,
    make: Callable[[str, list[Source]], SourceDataset],
    by_source: bool = False,
    require_usable: Optional[Callable[[Source, str], Any]] = None,
    missing: Optional[dict[str, str]] = None,
) -> SourceDataset:
    """Scans the files (or folders) `names`, and makes the data set of `split` out of the usable ones.

    With `by_source` the hash divides the sources inside files, not the files. `require_usable(source, its split)`
    raises ClipError or ClipRejected, in place of the check that the source holds a clip. `missing`: items that should
    be there and are not, with the reason. The data set's attribute `report` is the DataReport of all splits. Raises
    UnusableData, and UserError where an item lacks a condition that the configuration asks for.
    """
    root = config.root_folder()
    # Splitting before looking inside: a file that turns bad moves no other one.
    splits = assign_splits(names, root, config)
    wanted = sorted(splits)
    result = scan(root, wanted, probe, variant, config.num_workers, config.decode_timeout)
    by_name = {source.name: splits[name] for name in result.sources for source in result.sources[name]}
    if by_source and split_method(names, config) == "hash":
        by_name = split_by_hash(sorted(by_name), config)
    result.problems |= missing or {}
    judge = require_usable or (lambda source, split: allowed_starts(source, config))
    report = _judge(judge, root, len(wanted), by_name, result, ignored)
    _check_bad_fraction(report, config.max_bad_fraction)
    dataset = make(f"{root.name} ({split})", report.sources[split])
    dataset.report = report
    conditions = find_conditions(root, config, report.sources, split_method(names, config) == "folders")
    if conditions is not None:
        dataset.add_conditions(conditions)
    return dataset


def _judge(
    require_usable: Callable[[Source, str], Any],
    root: Path,
    files: int,
    splits: dict[str, str],
    result: ScanResult,
    ignored: dict[str, int],
) -> DataReport:
    """Sorts the sources into the splits, or out. `splits` is source name -> split."""
    report = DataReport(str(root), files, {split: [] for split in SPLITS}, dict(result.problems), {}, ignored)
    for sources in result.sources.values():
        for source in sources:
            try:
                require_usable(source, splits[source.name])
            except ClipRejected as reason:
                report.rejected[source.name] = str(reason)
            except ClipError as reason:
                report.unusable[source.name] = str(reason)
            else:
                report.sources[splits[source.name]].append(source)
    return report


def _check_bad_fraction(report: DataReport, allowed: float) -> None:
    bad, items = len(report.unusable), report.items()
    if bad and distributed.is_main():
        logger.warning("%d of %d items in %s cannot be used", bad, items, report.root)
    if bad > allowed * items:
        shown = "; ".join(
            f"{name}: {reason}" for name, reason in list(report.unusable.items())[:SHOWN_PROBLEMS]
        )
        more = f"; and {bad - SHOWN_PROBLEMS} more, see data_report.json" if bad > SHOWN_PROBLEMS else ""
        raise UnusableData(
            report,
            f"data.max_bad_fraction: {bad} of {items} items cannot be used, more than {allowed:.0%} "
            f"({shown}{more}); remove or repair them, shorten the clips, or raise data.max_bad_fraction",
        )
