"""One case of the fault bench: planted, looked at, diagnosed; what is done is kept with a key of the code it is of."""

import dataclasses
import inspect
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from fault_models import COMMON, HEALTHY, SetName, hash_of
from fault_plants import BASES, FAULTS, Case, Planted, healthy

from vidpred.diagnosis import diagnose, judge
from vidpred.errors import UserError
from vidpred.files import write_json
from vidpred.prediction import NotFiniteError, load_predictor

TOOLS = Path(__file__).resolve().parent
PER_FAULT = {"tuning": 3, "judgement": 5}
VISIBLE_DB = 1.0  # what a fault costs at least, or its next attempt is planted
ATTEMPTS = 4
CLIPS = 12


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
    of the copied last frame). attempt: of the plant. visible: whether it costs at least VISIBLE_DB. findings: names,
    the root cause first. error: why it could not be planted or diagnosed.
    """

    fault: str
    kind: str
    number: int
    checkpoint: str = ""
    psnr: Optional[float] = None
    twin_psnr: Optional[float] = None
    attempt: int = 0
    visible: bool = True
    findings: list[str] = field(default_factory=list)
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
    keys = {"plant_key": plant_key(name), "diagnosis_key": DIAGNOSIS_CODE}
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
    """Of the set's models and, of a fault, of its own function and of what all of them use."""
    set_name = name.set_name
    return hash_of(PLANT_CODE, CODE_OF.get(name.fault, ""), str((COMMON[set_name], HEALTHY[set_name], BASES[set_name])))


# As imported: files may change while the bench runs.
DIAGNOSIS_CODE = hash_of(*sorted((TOOLS.parent / "vidpred").rglob("*.py")))
PLANT_CODE = hash_of(*(TOOLS / f"fault_{part}.py" for part in ("data", "vaes", "edits")), inspect.getsource(Case))
CODE_OF = {fault: inspect.getsource(plant) for fault, plant in FAULTS.items()}


def _planted(name: Name, out: Path) -> Result:
    result = Result(name.fault, name.kind, name.number)
    if name.fault == "healthy":
        model = healthy(name.set_name, name.kind, out)
        psnr, copied = against_copy(model.checkpoint, model.clips)
        return dataclasses.replace(result, checkpoint=str(model.checkpoint), psnr=psnr, twin_psnr=copied)
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
    diagnosis = diagnose(Path(result.checkpoint), "cpu")
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
    copied = against_copy(planted.twin, planted.twin_clips)[1]
    return psnr - copied <= planted.gain * max(twin - copied, 0)


def last_window(checkpoint: Path, clips: Path, windows: int) -> Optional[float]:
    """Mean PSNR in dB over the frames of the last of `windows` predicted windows; None where it is not finite."""
    predictor = load_predictor(checkpoint, "cpu")
    known, horizon = predictor.context_frames, predictor.num_frames - predictor.context_frames
    frames = _clips(clips)
    try:
        predicted = predictor.predict(frames[:, :known], windows * horizon)[:, -horizon:]
    except NotFiniteError:
        return None
    return _psnr(predicted, frames[:, known + (windows - 1) * horizon : known + windows * horizon])


def against_copy(checkpoint: Path, clips: Path) -> tuple[Optional[float], float]:
    """PSNR in dB of a model's first window, and of the last given frame in its place."""
    predictor = load_predictor(checkpoint, "cpu")
    known, length = predictor.context_frames, predictor.num_frames
    frames = _clips(clips)
    return last_window(checkpoint, clips, 1), _psnr(frames[:, known - 1 : known], frames[:, known:length])


def _clips(folder: Path) -> torch.Tensor:
    """Up to CLIPS validation clips (B, T, 3, H, W) uint8."""
    clips = np.load(folder / "val" / "clips.npy", mmap_mode="r")[:CLIPS]
    return torch.from_numpy(np.ascontiguousarray(clips)).permute(0, 1, 4, 2, 3)


def _psnr(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    error = ((predicted.double() - truth.double()) / 255).square().mean(dim=(2, 3, 4)).clamp(min=1e-10)
    return float((-10 * error.log10()).mean())


def quiet(logs: Path) -> None:
    """Of a worker process: one thread, and what trainings say goes into a file of its own."""
    torch.set_num_threads(1)
    logs.mkdir(parents=True, exist_ok=True)
    log = os.open(logs / f"worker_{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
