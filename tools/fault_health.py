"""What a model of the fault bench is worth, without any diagnosis; and healthy models, trained until they are.

    prediction   its PSNR is above that of whatever needs no learning, by a margin (of clips under sensor noise, which
                 nobody can predict and copying gets half of right: no more than 0.2 dB below)
    mean         of an uncertain future: so is that of the mean over trajectories
    generation   of nothing given: its clips are nearer to real ones, as distributions, than the mean picture is
    memory       of one batch: its loss has fallen towards 0
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from fault_models import COMMON, HEALTHY, Model, Recipe, SetName, hash_of, trained
from torch import Tensor

from vidpred.conditions import ConditionBatch
from vidpred.diagnosis.subject import subject_from_checkpoint, validation_clips
from vidpred.files import write_json
from vidpred.prediction import NotFiniteError, Predictor, load_predictor

CLIPS = 12
MANY = 24  # clips of a distribution
TRAJECTORIES = 8
ATTEMPTS = 3
LONGER = 1.8  # times as many steps in each attempt
NEARER = 0.5  # of the mean picture's distance from real clips
FALLEN = 0.1  # of the first loss
RISEN, SEVERAL = 10.0, 5  # times the least loss; losses in a row
OVERFLOWN = 1e30  # stands for a loss that is not finite


@dataclass(frozen=True)
class Health:
    """healthy: whether the criterion is met. psnr, floor: of the criterion in dB, None where it is another number.
    words: the criterion with its numbers. attempt: which training."""

    healthy: bool
    psnr: Optional[float]
    floor: Optional[float]
    words: str
    attempt: int = 0


def healthy(set_name: SetName, kind: str, out: Path) -> tuple[Model, Health]:
    """The model of a kind, trained where it is not, again and longer while it misses its criterion."""
    number, recipe = list(HEALTHY[set_name]).index(kind), HEALTHY[set_name][kind]
    for attempt in range(ATTEMPTS):
        longer = recipe.but({"training.num_steps": round(LONGER**attempt * steps_of(set_name, recipe))})
        model = trained(set_name, longer, number, out, f"healthy_{number}_{attempt}", watched=True)
        health = dataclasses.replace(_known_health(model), attempt=attempt)
        if health.healthy:
            break
    return model, health


def steps_of(set_name: SetName, recipe: Recipe) -> int:
    return recipe.settings.get("training.num_steps", COMMON[set_name]["training.num_steps"])


def found_while_training(run: Path) -> list[str]:
    """Names of what the watch found at any step, in the order of their first time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = (key.removeprefix("finding/") for line in lines for key, value in line.items()
             if key.startswith("finding/") and value)  # fmt: skip
    return list(dict.fromkeys(found))


def _known_health(model: Model) -> Health:
    """Measured once for a checkpoint and this code."""
    path = model.run / "health.json"
    key = hash_of(Path(__file__), str(model.recipe), str(model.checkpoint.stat().st_mtime_ns))
    if path.exists():
        held = json.loads(path.read_text(encoding="utf-8"))
        if held.pop("key") == key:
            return Health(**held)
    health = measured_health(model)
    write_json(path, dataclasses.asdict(health) | {"key": key})
    return health


def measured_health(model: Model) -> Health:
    if model.recipe.health == "memory":
        return _memory(model.run)
    predictor = load_predictor(model.checkpoint, "cpu")
    frames, conditions = _shown(model)
    if model.recipe.health == "generation":
        return _generation(predictor, frames, conditions)
    copies = TRAJECTORIES if model.recipe.health == "mean" else 1
    return _prediction(predictor, frames[:CLIPS], conditions, copies, model.recipe.margin)


# Criteria --------------------------------------------------------------------------------------------------


def _prediction(
    predictor: Predictor, frames: Tensor, conditions: Optional[ConditionBatch], copies: int, margin: float
) -> Health:
    known, length = predictor.context_frames, predictor.num_frames
    total = torch.zeros(())
    conditions = conditions and conditions.rows(range(len(frames)))
    for seed in range(copies):
        total = total + predictor.predict(frames[:, :known], length - known, seed, condition=conditions).double()
    psnr, floor = psnr_of(total / copies, frames[:, known:length]), floor_of(predictor, frames)
    words = f"{'mean over trajectories' if copies > 1 else 'prediction'} {psnr - floor:+.1f} dB"
    return Health(psnr >= floor + margin, psnr, floor, words)


def floor_of(predictor: Predictor, frames: Tensor) -> float:
    """The best PSNR in dB of: the last given frame, the mean of them, both through the autoencoder, latents of 0."""
    known, length = predictor.context_frames, predictor.num_frames
    truth = frames[:, known:length]
    still = [frames[:, known - 1 : known], frames[:, :known].double().mean(1, keepdim=True).round().to(torch.uint8)]
    latents = [predictor.encode(frame) for frame in still]
    decoded = [predictor.decode(z).clamp(0, 1) * 255 for z in (*latents, torch.zeros_like(latents[0]))]
    return max(psnr_of(one, truth) for one in (*still, *decoded))


def _generation(predictor: Predictor, frames: Tensor, conditions: Optional[ConditionBatch]) -> Health:
    length = predictor.num_frames
    numbers = torch.arange(len(frames))
    drawn = predictor.generate(*frames.shape[-2:], numbers, condition=conditions, num_frames=length)
    real = _points(frames[:, :length])
    mean = real.mean(0, keepdim=True).expand_as(real)
    ratio = energy_distance(_points(drawn), real) / energy_distance(mean, real)
    return Health(ratio < NEARER, None, None, f"generated {ratio:.2f} of the mean picture's distance")


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| over two samples (N, D); 0 between equal distributions (Szekely 2013)."""

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return float(2 * torch.cdist(a, b).mean() - within(a) - within(b))


def burst(run: Path) -> Optional[int]:
    """The step that ends the SEVERAL losses in a row with the largest geometric mean, of a training that logged every
    step; None where it is not far above the least loss before them, or nothing was learned until then."""
    logs = np.log([max(loss, 1e-9) if math.isfinite(loss) else OVERFLOWN for loss in _losses(run)])
    means = np.convolve(logs, np.ones(SEVERAL) / SEVERAL, mode="valid")
    worst = int(means.argmax())
    least = logs[: worst + 1].min()
    return worst + SEVERAL if least < logs[0] and means[worst] > least + math.log(RISEN) else None


def _memory(run: Path) -> Health:
    losses = _losses(run)
    ratio = float(np.mean(losses[-3:])) / losses[0]
    return Health(ratio < FALLEN, None, None, f"loss {ratio:.3f} of the first")


def _losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [float(line["train/loss"]) for line in lines if "train/loss" in line]


# Clips and PSNR --------------------------------------------------------------------------------------------


def last_window(checkpoint: Path, clips: Path, windows: int) -> Optional[float]:
    """Mean PSNR in dB over the frames of the last of `windows` predicted windows; None where it is not finite."""
    predictor = load_predictor(checkpoint, "cpu")
    known, horizon = predictor.context_frames, predictor.num_frames - predictor.context_frames
    frames = clips_in(clips, CLIPS)
    try:
        predicted = predictor.predict(frames[:, :known], windows * horizon)[:, -horizon:]
    except NotFiniteError:
        return None
    return psnr_of(predicted, frames[:, known + (windows - 1) * horizon : known + windows * horizon])


def copied(checkpoint: Path, clips: Path) -> float:
    """PSNR in dB of the last given frame in the place of the first window."""
    predictor = load_predictor(checkpoint, "cpu")
    known, frames = predictor.context_frames, clips_in(clips, CLIPS)
    return psnr_of(frames[:, known - 1 : known], frames[:, known : predictor.num_frames])


def clips_in(folder: Path, count: int) -> Tensor:
    """Up to `count` validation clips (B, T, 3, H, W) uint8."""
    clips = np.load(folder / "val" / "clips.npy", mmap_mode="r")[:count]
    return torch.from_numpy(np.ascontiguousarray(clips)).permute(0, 1, 4, 2, 3)


def psnr_of(predicted: Tensor, truth: Tensor) -> float:
    error = ((predicted.double() - truth.double()) / 255).square().mean(dim=(2, 3, 4)).clamp(min=1e-10)
    return float((-10 * error.log10()).mean())


def _shown(model: Model) -> tuple[Tensor, Optional[ConditionBatch]]:
    """Validation clips of a model, and their conditions."""
    if model.recipe.settings.get("data.kind", "arrays") == "arrays":
        return clips_in(model.clips, MANY), None
    subject = subject_from_checkpoint(model.checkpoint, "cpu")
    batch = validation_clips(subject, MANY)
    return batch.frames, subject.predictor.conditions_of(batch)


def _points(frames: Tensor) -> Tensor:
    """(N, T, 3, H, W) uint8 -> (N, D), in [0, 1]."""
    return frames.double().flatten(1) / 255
