"""One case of the fault bench: planted, looked at, diagnosed; what is done is kept with a key of the code it is of."""

import dataclasses
import inspect
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from fault_case import BASES, Case, Planted
from fault_health import copied, found_while_training, healthy, last_window
from fault_models import ALL_CODE, COMMON, HEALTHY, TRAINING_CODE, SetName, hash_of
from fault_plants import FAULTS

from vidpred.diagnosis import diagnose, judge
from vidpred.errors import UserError
from vidpred.files import write_json

TOOLS = Path(__file__).resolve().parent
PER_FAULT = {"tuning": 3, "rehearsal": 2, "judgement": 5}
VISIBLE_DB = 1.0  # what a fault costs at least, or its next attempt is planted
ATTEMPTS = 6


@dataclass(frozen=True)
class Name:
    """fault: a fault's name, or healthy. number: of the plant, or of the healthy kind."""

    set_name: SetName
    fault: str
    number: int

    def __str__(self) -> str:
        return f"{self.fault}_{self.number}"

    @property
    def kind(self) -> str:
        return list(HEALTHY[self.set_name])[self.number] if self.fault == "healthy" else self.fault


@dataclass(frozen=True)
class Result:
    """What became of a case.

    psnr: dB of its predictions, None where they are not finite; twin_psnr: of its healthy twin's (of a healthy model:
    of the best that needs no learning; None where its criterion is another number). attempt: of the plant, or of the
    healthy training. visible: whether a fault costs at least VISIBLE_DB, or a healthy model met its criterion, which
    `health` tells. findings: names, the root cause first. watched: what the watch found while a healthy model trained.
    error: why it could not be planted or diagnosed.
    """

    fault: str
    kind: str
    number: int
    checkpoint: str = ""
    psnr: Optional[float] = None
    twin_psnr: Optional[float] = None
    attempt: int = 0
    visible: bool = True
    health: str = ""
    findings: list[str] = field(default_factory=list)
    watched: list[str] = field(default_factory=list)
    measures: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    error: str = ""
    plant_key: str = ""
    diagnosis_key: str = ""


def names_of(set_name: SetName, only: list[str]) -> list[Name]:
    """All cases of a set, healthy ones first; or those of the faults and healthy kinds in `only`."""
    kinds = [Name(set_name, "healthy", number) for number in range(len(HEALTHY[set_name]))]
    faults = [Name(set_name, fault, number) for fault in FAULTS for number in range(PER_FAULT[set_name])]
    return [name for name in kinds + faults if not only or {name.kind, name.fault} & set(only)]


def run(name: Name, out: Path) -> Result:
    """Plants and diagnoses a case, as far as that is not done. Written to out/done."""
    path = out / "done" / f"{name}.json"
    before = read(path)
    keys = {"plant_key": plant_key(name), "diagnosis_key": ALL_CODE}
    if before and keys.items() <= vars(before).items():
        return before
    result = before if before and before.plant_key == keys["plant_key"] and not before.error else _planted(name, out)
    if not result.error:
        result = _diagnosed(result)
    result = dataclasses.replace(result, **keys)
    write_json(path, dataclasses.asdict(result))
    return result


def run_alone(name: Name, out: Path) -> Result:
    """In a worker process, which ends where a training was interrupted, and takes no other case."""
    try:
        return run(name, out)
    except KeyboardInterrupt:
        os._exit(130)


def read(path: Path) -> Optional[Result]:
    return Result(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def rejudged(result: Result) -> Result:
    """Its saved measures under the rules as they are now."""
    if result.error:
        return result
    measures = {key: float(value) for key, value in result.measures.items()}
    return dataclasses.replace(result, findings=[finding.name for finding in judge(measures, result.notes)])


def plant_key(name: Name) -> str:
    """Of all code and recipes that make the case and measure its effect, but the functions of other faults."""
    others = str((COMMON[name.set_name], HEALTHY[name.set_name], BASES[name.set_name]))
    of_case = ALL_CODE if name.fault == "healthy" else CODE_OF[name.fault]  # its watch asked the rules
    return hash_of(TRAINING_CODE, PLANT_CODE, of_case, others)


def _plant_code() -> str:
    """What all plants share: without the functions of the faults."""
    shared = (TOOLS / "fault_plants.py").read_text(encoding="utf-8")
    for source in CODE_OF.values():
        shared = shared.replace(source, "")
    effects = (inspect.getsource(function) for function in (_planted, effect, _hardly_learned))
    return hash_of(*(TOOLS / f"fault_{part}.py" for part in ("health", "edits", "case")), shared, *effects)


def _planted(name: Name, out: Path) -> Result:
    result = Result(name.fault, name.kind, name.number)
    if name.fault == "healthy":
        try:
            model, health = healthy(name.set_name, name.kind, out)
        except UserError as error:
            return dataclasses.replace(result, error=str(error))
        return dataclasses.replace(
            result, checkpoint=str(model.checkpoint), psnr=health.psnr, twin_psnr=health.floor, attempt=health.attempt,
            visible=health.healthy, health=health.words, watched=found_while_training(model.run),
        )  # fmt: skip
    for attempt in range(ATTEMPTS):
        try:
            planted = FAULTS[name.fault](Case(name.set_name, name.fault, name.number, attempt, out))
            psnr, twin = effect(planted)
        except UserError as error:  # what cannot be combined, or loaded: that fault would have been told at once
            result = dataclasses.replace(result, error=str(error), attempt=attempt)
            continue
        visible = psnr is None or (twin - psnr >= VISIBLE_DB and _hardly_learned(planted, psnr, twin))
        result = dataclasses.replace(
            result, checkpoint=str(planted.checkpoint), psnr=psnr, twin_psnr=twin, attempt=attempt, visible=visible,
            error="",
        )  # fmt: skip
        if visible:
            break
    return result


def _diagnosed(result: Result) -> Result:
    try:
        diagnosis = diagnose(Path(result.checkpoint), "cpu")
    except UserError as error:
        return dataclasses.replace(result, error=str(error))
    measures = {key: value if math.isfinite(value) else str(value) for key, value in diagnosis.measures.items()}
    names = [finding.name for finding in diagnosis.findings]
    return dataclasses.replace(result, findings=names, measures=measures, notes=diagnosis.notes)


# What a user sees ------------------------------------------------------------------------------------------


def effect(planted: Planted) -> tuple[Optional[float], float]:
    """PSNR in dB of the last predicted window, of the broken model (None: not finite) and of its twin."""
    twin = last_window(planted.twin, planted.twin_clips, planted.windows)
    return last_window(planted.checkpoint, planted.clips, planted.windows), twin


def _hardly_learned(planted: Planted, psnr: float, twin: float) -> bool:
    """Whether as little is left of the twin's gain over the copied last frame as the plant asks for."""
    if planted.gain is None:
        return True
    copy = copied(planted.twin, planted.twin_clips)
    return psnr - copy <= planted.gain * max(twin - copy, 0)


def quiet(logs: Path) -> None:
    """Of a worker process: one thread, and what trainings say goes into a file of its own."""
    torch.set_num_threads(1)
    logs.mkdir(parents=True, exist_ok=True)
    log = os.open(logs / f"worker_{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


# As imported: files may change while the bench runs.
CODE_OF = {fault: inspect.getsource(plant) for fault, plant in FAULTS.items()}
PLANT_CODE = _plant_code()
