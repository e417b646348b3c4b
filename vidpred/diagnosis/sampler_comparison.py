"""Samplers and numbers of steps on one model: the quality of each, its clip rate, network calls and time.

A cell is one sampler with one number of steps: an evaluation on the same clips, with the same noise at the
start, as every other cell. It is compared, clip by clip, with the model's own sampler at its own number of
steps.
"""

import dataclasses
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vidpred.conditioning import prediction_roles
from vidpred.data import evenly_spaced_clips
from vidpred.diagnosis.inference import now
from vidpred.diagnosis.subject import Subject
from vidpred.diffusion import SAMPLERS, SamplingConfig, StepReport, require_sampling
from vidpred.errors import UserError
from vidpred.evaluation import Evaluation, EvaluationConfig, Summary, evaluate, summarize
from vidpred.files import write_json
from vidpred.prediction import Predictor

BATCH_SIZE = 8
REFERENCES = ("floor", "decoded_floor", "ceiling")
DEFINITIONS = {
    "psnr": "of a clip: mean over its predicted frames, then over the seeds; mean and ci95 are over clips",
    "psnr_over_configured": "minus that of the configured cell, paired by clip",
    "motion_energy_ratio": "as in the protocol, mean over the seeds",
    "clip_rate": "share of the values of all clean estimates that the bound on x0 changed",
    "network_calls_per_clip": "calls of the denoiser; guidance asks for all that it needs in one call",
    "milliseconds_per_frame": (
        "time of the sampler alone over the number of predicted frames of a batch, median over batches; "
        "encoding and decoding, which are the same for all, are not in it"
    ),
}


@dataclass(frozen=True)
class SamplerRow:
    """A cell. psnr_by_clip: dB by number of the clip. motion_energy_ratio: None where no truth moves."""

    sampler: str
    steps: int
    psnr_by_clip: dict[int, float]
    motion_energy_ratio: Optional[float]
    clip_rate: float
    network_calls: int
    milliseconds_per_frame: float

    @property
    def psnr(self) -> Summary:
        return _over_clips(list(self.psnr_by_clip.values()))

    def psnr_over(self, other: "SamplerRow") -> Summary:
        """The difference in dB over the clips that both have."""
        common = [number for number in self.psnr_by_clip if number in other.psnr_by_clip]
        return _over_clips([self.psnr_by_clip[number] - other.psnr_by_clip[number] for number in common])


@dataclass(frozen=True)
class Refusal:
    """A cell that is none: what cannot be combined with this model, or did not give a finite prediction."""

    sampler: str
    steps: int
    reason: str


@dataclass
class SamplerComparison:
    """What is known so far. `rows` are in the order of their measurement, the configured one first.

    references: PSNR of the rows REFERENCES of the evaluation. planned: the number of rows in the end.
    """

    title: str
    device: str
    protocol: dict[str, Any]
    seeds: list[int]
    batch_size: int
    references: dict[str, Summary]
    rows: list[SamplerRow]
    refused: list[Refusal]
    planned: int

    @property
    def configured(self) -> SamplerRow:
        """The model's own sampler at its own number of steps."""
        return self.rows[0]

    def by_sampler(self) -> dict[str, list[SamplerRow]]:
        """The rows of each sampler by rising number of steps."""
        found: dict[str, list[SamplerRow]] = {}
        for row in sorted(self.rows, key=lambda row: (SAMPLERS.index(row.sampler), row.steps)):
            found.setdefault(row.sampler, []).append(row)
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "model": self.title,
            "device": self.device,
            "seeds": self.seeds,
            "batch_size": self.batch_size,
            "definitions": DEFINITIONS,
            "protocol": self.protocol,
            **{name: _figures(summary) for name, summary in self.references.items()},
            "cells": [self._cell_json(row) for rows in self.by_sampler().values() for row in rows],
            "cells_missing": self.planned - len(self.rows),
            "refused": [dataclasses.asdict(refusal) for refusal in self.refused],
        }

    def save(self, path: Path) -> None:
        """Writes the JSON file, whole or not at all."""
        write_json(path, self.to_json())

    def _cell_json(self, row: SamplerRow) -> dict[str, Any]:
        return {
            "sampler": row.sampler,
            "steps": row.steps,
            "configured": row is self.configured,
            "psnr": _figures(row.psnr),
            "psnr_over_configured": _figures(row.psnr_over(self.configured)),
            "motion_energy_ratio": row.motion_energy_ratio,
            "clip_rate": row.clip_rate,
            "network_calls_per_clip": row.network_calls,
            "milliseconds_per_frame": row.milliseconds_per_frame,
            "psnr_by_clip": row.psnr_by_clip,
        }


def _over_clips(values: list[float]) -> Summary:
    return summarize(np.array(values)[:, None])


def _figures(summary: Summary) -> dict[str, Optional[float]]:
    return {"mean": summary.mean, "ci95": summary.ci95}


# The cells -------------------------------------------------------------------------------------------------


def cell_of(configured: SamplingConfig, sampler: str, steps: int) -> SamplingConfig:
    """The model's own settings with another sampler and number of steps. UserError where that is none."""
    fixed = dataclasses.replace(configured, num_inference_steps=steps, num_inference_steps_start=None)
    return fixed.with_sampler(sampler)


def plan_cells(
    predictor: Predictor, samplers: Sequence[str], steps: Sequence[int]
) -> tuple[list[SamplingConfig], list[Refusal]]:
    """The cells, the configured one first and then by rising number of steps, and what is not possible.

    So the cheap ones are known first.
    """
    own, schedule = predictor.sampling, predictor.schedule
    cells, refused = [cell_of(own, own.sampler, own.num_inference_steps)], []
    for count in sorted(set(steps)):
        for sampler in dict.fromkeys(samplers):
            try:
                cell = cell_of(own, sampler, count)
                require_sampling(cell, schedule)
                schedule.path(count, cell.spacing)
            except UserError as reason:
                refused.append(Refusal(sampler, count, str(reason)))
                continue
            cells += [cell] if cell not in cells else []
    return cells, refused


def calls_of(cell: SamplingConfig) -> int:
    """How often the network will be called, for the progress bar: heun may do with fewer."""
    steps = cell.num_inference_steps
    return {"heun": 2 * steps - 1, "pndm": steps + 1}.get(cell.sampler, steps)


# The measurement -------------------------------------------------------------------------------------------


class WatchedPredictor(Predictor):
    """A predictor with other sampling settings, that counts and times what its sampler does.

    Attributes:
        batches, calls: batches so far, and calls of the network in all of them.
        milliseconds_per_frame: of each batch.
    """

    def __init__(
        self, predictor: Predictor, sampling: SamplingConfig, on_call: Callable[[], Any] = lambda: None
    ):
        super().__init__(
            predictor.denoiser,
            predictor.autoencoder,
            predictor.calibration,
            predictor.schedule,
            sampling,
            predictor.context_frames,
            predictor.num_frames,
            conditioner=predictor.conditioner,
        )
        self.batches = self.calls = 0
        self.milliseconds_per_frame: list[float] = []
        self._on_call = on_call
        self._clipped: Tensor | float = 0.0
        self._frames: Tensor | float = 0.0

    @property
    def clip_rate(self) -> float:
        """Fraction of the values of all clean estimates of unknown frames that the bound changed."""
        return float(self._clipped) / max(float(self._frames), 1.0)

    def sample_latents(
        self, latents: Tensor, given: Tensor, frame_times: Tensor, draws: Tensor, seed: int, **options: Any
    ) -> Tensor:
        """As `Predictor.sample_latents`."""
        own = (draws != draws[:1]).to(self.device)  # what fills up a batch repeats its first clip
        own[0] = True
        started = now(self.device)
        sampled = super().sample_latents(
            latents, given, frame_times, draws, seed,
            callback=lambda report: self._count(report, own), **options,
        )  # fmt: skip
        seconds = now(self.device) - started
        self.milliseconds_per_frame.append(1000 * seconds / int((~given).sum()))
        self.batches += 1
        return sampled

    def _count(self, report: StepReport, own: Tensor) -> None:
        frames = report.moving & own[:, None]  # (B, T)
        changed = (report.x0 != report.x0_raw).flatten(2).double().mean(dim=2)
        self._clipped = self._clipped + torch.where(frames, changed, 0.0).sum()
        self._frames = self._frames + frames.sum()
        self.calls += 1
        self._on_call()


class _Bench:
    """What all cells share: the model, the clips, the seeds."""

    def __init__(self, subject: Subject, clips: int, seeds: Sequence[int]):
        self.subject = subject
        self.settings = EvaluationConfig(
            num_clips=clips, batch_size=min(BATCH_SIZE, clips), lpips_net="none", num_panels=0
        )
        self.seeds = list(seeds)
        self.dataset = subject.validation_data

    @property
    def batches(self) -> int:
        """Of one cell."""
        clips = len(evenly_spaced_clips(self.dataset, self.settings.num_clips))
        return len(self.seeds) * math.ceil(clips / self.settings.batch_size)

    def warm_up(self, cell: SamplingConfig) -> None:
        """One batch whose time is not counted: the first call of anything is slower than all others."""
        self._evaluate(
            WatchedPredictor(self.subject.predictor, cell),
            dataclasses.replace(self.settings, num_clips=1),
            self.seeds[0],
        )

    def measure(self, cell: SamplingConfig, on_call: Callable[[], Any]) -> tuple[SamplerRow, Evaluation]:
        """The row of a cell, and the evaluation with the first seed. UserError as `evaluate`."""
        watched = WatchedPredictor(self.subject.predictor, cell, on_call)
        results = [self._evaluate(watched, self.settings, seed) for seed in self.seeds]
        by_seed = [
            {clip.index: float(clip.scores["model"]["psnr"].mean()) for clip in result.clips}
            for result in results
        ]
        numbers = [number for number in by_seed[0] if all(number in one for one in by_seed)]
        ratios = [result.motion_energy_ratio for result in results]
        row = SamplerRow(
            cell.sampler,
            cell.num_inference_steps,
            {number: statistics.fmean(one[number] for one in by_seed) for number in numbers},
            None if None in ratios else statistics.fmean(ratios),
            watched.clip_rate,
            watched.calls // watched.batches,
            statistics.median(watched.milliseconds_per_frame),
        )
        return row, results[0]

    def _evaluate(self, predictor: Predictor, settings: EvaluationConfig, seed: int) -> Evaluation:
        data = self.subject.data
        return evaluate(
            predictor, self.dataset, settings, prediction_roles(self.subject.conditioning.context_frames),
            seed=seed, ema=self.subject.averaged is not None,
            num_workers=data.num_workers, timeout=data.decode_timeout,
        )  # fmt: skip


def compare_samplers(
    subject: Subject, samplers: Sequence[str], steps: Sequence[int], *, clips: int, seeds: Sequence[int]
) -> Iterator[SamplerComparison]:
    """Measures cell after cell on validation clips; yields all that is known after each.

    The same record grows; the model's own sampler comes first, whatever `samplers` and `steps` are. What is
    not possible with this model is in `refused`. UserError where even its own sampler cannot be evaluated.
    """
    bench = _Bench(subject, clips, seeds)
    cells, refused = plan_cells(subject.predictor, samplers, steps)
    known: Optional[SamplerComparison] = None
    warm: set[str] = set()
    with tqdm(total=bench.batches * sum(map(calls_of, cells)), desc="samplers", unit="call") as bar:
        done = 0
        for cell in cells:
            bar.set_postfix_str(f"{cell.sampler}, {cell.num_inference_steps} steps")
            try:
                if cell.sampler not in warm:
                    bench.warm_up(cell)
                    warm.add(cell.sampler)
                row, evaluation = bench.measure(cell, bar.update)
            except UserError as reason:
                if known is None:
                    raise
                known.refused.append(Refusal(cell.sampler, cell.num_inference_steps, str(reason)))
                known.planned -= 1
            else:
                known = known or _beginning(bench, evaluation, refused, len(cells))
                known.rows.append(row)
            done += bench.batches * calls_of(cell)
            bar.update(done - bar.n)
            yield known


def _beginning(
    bench: _Bench, evaluation: Evaluation, refused: list[Refusal], planned: int
) -> SamplerComparison:
    return SamplerComparison(
        bench.subject.title,
        str(bench.subject.predictor.device),
        evaluation.protocol,
        bench.seeds,
        bench.settings.batch_size,
        {name: evaluation.summary(name, "psnr") for name in REFERENCES},
        [],
        refused,
        planned,
    )
