"""The result of an evaluation: summaries, the JSON file, the table that is printed."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Iterator, Optional

import numpy as np
import torch

from vidpred.evaluation.records import (
    ENSEMBLE_METRICS,
    METRICS,
    TO_RECONSTRUCTION,
    ClipSample,
    ClipScores,
    row_titles,
)
from vidpred.evaluation.statistics import Summary, half_width, summarize
from vidpred.evaluation.video_distance import VIEWS, VideoDistances
from vidpred.files import write_json
from vidpred.metrics import spread_over_skill

HEADINGS = {
    "psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "crps": "CRPS", TO_RECONSTRUCTION: "PSNR to ceiling",
}  # fmt: skip
VIEW_HEADINGS = {"generated": "FVD", "whole_clip": "FVD (whole clips)"}
FLOORS = ("floor", "decoded_floor", "context_mean", "linear")
DECIMALS = {"psnr": 2, "ssim": 4, "lpips": 4, "crps": 4, TO_RECONSTRUCTION: 2}
TITLE_WIDTH = 18
NOTHING_TO_COPY = "no frame is given that could be copied"
ONE_OF_MANY = "it is a score of all trajectories, not of one"
THE_MODELS_ALONE = "it is of the model's samples alone"
NO_TRUTH = "no frame is given, so no clip is the truth of what is generated"


@dataclass
class Evaluation:
    """Scores of N clips in clip order; the same on every rank and for every number of ranks.

    protocol: what must be equal for two results to compare. run: whose weights, and where it was.
    left_out: {"index", "name", "reason"} of each clip that could not be scored.
    """

    protocol: dict[str, Any]
    clips: list[ClipScores]
    lpips_unavailable: Optional[str] = None
    """Why there is no LPIPS; None where there is."""
    run: dict[str, Any] = field(default_factory=dict)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    fvd: Optional[VideoDistances] = None
    """None where it was not asked for."""

    @property
    def titles(self) -> dict[str, str]:
        """The rows and what the table calls them; see `unavailable` for those without figures."""
        return row_titles(self.protocol["task"], self.protocol["trajectories_per_clip"])

    @property
    def metrics(self) -> tuple[str, ...]:
        metrics = ENSEMBLE_METRICS if self._trajectories > 1 else METRICS
        return (*metrics, TO_RECONSTRUCTION) if TO_RECONSTRUCTION in self.protocol else metrics

    @property
    def samples(self) -> list[ClipSample]:
        """A few clips with their frames, for `video_io.save_clip_panels`."""
        return [clip.sample for clip in self.clips if clip.sample is not None]

    @property
    def motion_energy_ratio(self) -> Optional[float]:
        """Motion of the predictions over the truths': 1 is right, 0 is frozen; None where no truth moves."""
        return self._motion_over_truth("model")

    def unavailable(self, row: str, metric: str) -> Optional[str]:
        """Why there is no such figure; None where there is."""
        if row not in self.clips[0].scores:
            return NO_TRUTH if row == "model" else NOTHING_TO_COPY
        if (row, metric) == ("best_of_n", "crps"):
            return ONE_OF_MANY
        if metric == TO_RECONSTRUCTION and row != "model":
            return THE_MODELS_ALONE
        return self.lpips_unavailable if metric == "lpips" else None

    def values(self, row: str, metric: str) -> np.ndarray:
        """(N, H) float64: one value per clip and horizon, of what is not `unavailable`."""
        return np.stack([clip.scores[row][metric] for clip in self.clips])

    def summary(self, row: str, metric: str) -> Optional[Summary]:
        """Mean, 95 % interval and curve over horizons; None for what is `unavailable`."""
        if self.unavailable(row, metric):
            return None
        return summarize(self.values(row, metric))

    def diversity(self) -> Optional[Summary]:
        """Mean |difference| of two trajectories, in [0, 1]; None of a single one."""
        return summarize(self._spread("diversity")) if self._trajectories > 1 else None

    def spread_over_skill(self) -> Optional[dict[str, Any]]:
        """{"mean", "per_horizon"} of all clips; None of a single trajectory or where their mean is exact."""
        if self._trajectories == 1:
            return None
        variance, error = (self._spread(name).mean(axis=0) for name in ("variance", "squared_error"))
        return self._over_skill(variance, error)

    def psnr_gain(self, row: str) -> tuple[float, Optional[float]]:
        """PSNR of the model minus that of `row` in dB, paired by clip: mean and half of its 95 % interval.
        Not for what is `unavailable`."""
        gain = (self.values("model", "psnr") - self.values(row, "psnr")).mean(axis=1)
        return float(gain.mean()), half_width(gain)

    def scalars(self) -> dict[str, float]:
        """The model's means and their distance to the floors, under the keys that are logged."""
        summaries = {metric: self.summary("model", metric) for metric in self.metrics}
        logged = {f"eval/{metric}": summary.mean for metric, summary in summaries.items() if summary}
        for row in self._floors():
            key = self.titles[row].replace(",", "").replace(" ", "_")  # copy_last, copy_last_decoded, linear
            logged[f"eval/psnr_over_{key}"] = self.psnr_gain(row)[0]
        if self.motion_energy_ratio is not None:
            logged["eval/motion_energy_ratio"] = self.motion_energy_ratio
        for view, figures in (self.fvd.figures if self.fvd else {}).items():
            if figures["model"] is not None:
                logged["eval/fvd" if view == "generated" else f"eval/fvd_{view}"] = figures["model"]
        return logged

    def to_json(self) -> dict[str, Any]:
        """Plain data: `protocol`; `run`; `left_out`; each row (`model`, `floor`, ...) with `psnr`, `ssim`,
        `lpips`, each {"mean", "ci95", "per_horizon"}, and `crps` of several trajectories;
        `motion_energy_ratio`; `ensemble` and `fvd`, None where there is neither; `clips` with the means of
        each clip, and the model's figures of each horizon. What is unavailable is None, with the reason."""
        return {
            "protocol": self.protocol,
            "run": self.run,
            "left_out": self.left_out,
            **{row: {name: self._summary_json(row, name) for name in self.metrics} for row in self.titles},
            "motion_energy_ratio": self.motion_energy_ratio,
            "ensemble": self._ensemble_json(),
            "fvd": self._fvd_json(),
            "clips": [self._clip_json(clip) for clip in self.clips],
        }

    def save(self, path: str | Path) -> Path:
        """Writes the JSON file, whole or not at all."""
        write_json(path, self.to_json())
        return Path(path)

    def table(self) -> str:
        """The rows, aligned, and below them the gain over the floors, the motion and what is missing."""
        shape, net = self.protocol, self.protocol.get("lpips", {}).get("net")
        width = max(TITLE_WIDTH, *map(len, self.titles.values()))
        headings = [f"{HEADINGS[m]} {net}" if m == "lpips" and net else HEADINGS[m] for m in self.metrics]
        views = list(self.fvd.figures) if self.fvd else []
        headings += [VIEW_HEADINGS[view] for view in views]
        lines = [
            f"{shape['clips']} clips of {shape['dataset']}, {shape['context_frames']} given and "
            f"{shape['predicted_frames']} predicted frames ({shape['task']}); "
            "mean +- 95 % confidence interval over clips",
            "".join([" " * width, *(f"{heading:>20}" for heading in headings)]),
        ]
        for row, title in self.titles.items():
            cells = [cell(self.summary(row, metric), DECIMALS[metric]) for metric in self.metrics]
            cells += [_distance(self.fvd.figures[view].get(row)) for view in views]
            lines.append("".join([f"{title:<{width}}", *(f"{cell:>20}" for cell in cells)]))
        if self._floors():
            over = [f"over {self.titles[row]} {_gain(*self.psnr_gain(row))}" for row in self._floors()]
            lines.append(f"PSNR of the model {', '.join(over)} (paired by clip)")
        lines.append(
            f"motion energy over the truth's: model {_ratio(self.motion_energy_ratio)}, "
            f"ceiling {_ratio(self._motion_over_truth('ceiling'))}"
        )
        return "\n".join([*lines, *self.notes()])

    def notes(self) -> Iterator[str]:
        """What a reader of the table must know of what is in it, and of what is missing."""
        if "best_of_n" in self.titles:
            title = self.titles["best_of_n"]
            chosen = self.protocol["best_of_n"]["chosen_by"].upper()
            yield f"{title}: of each clip the one with the best {chosen}, for all metrics; model is the first"
            yield from self._ensemble_notes()
        yield from self._fvd_notes()
        if reason := self.unavailable("model", "psnr"):
            yield f"model n/a: {reason}; its motion compares. Floors n/a: {self.unavailable('floor', 'psnr')}"
        if self.left_out:
            names = ", ".join(bad["name"] for bad in self.left_out[:3])
            more = ", ..." if len(self.left_out) > 3 else ""
            yield f"{len(self.left_out)} bad clips left out: {names}{more}"
        if self.lpips_unavailable:
            yield f"LPIPS unavailable: {self.lpips_unavailable}"

    def _ensemble_notes(self) -> Iterator[str]:
        ratio = self.spread_over_skill()
        reliability = f"{ratio['mean']:.3f} (1: reliable, below: too sure)" if ratio else "n/a (no error)"
        yield (
            f"{self._trajectories} trajectories: diversity {cell(self.diversity(), 4)}, spread over skill "
            f"{reliability}; CRPS is of all of them, of floors and ceiling it is the absolute error"
        )

    def _fvd_notes(self) -> Iterator[str]:
        if self.fvd is None:
            return
        halves = [f"{_distance(value)} ({VIEWS[view]})" for view, value in self.fvd.truth_halves.items()]
        yield f"FVD between the truth's own two halves: {', '.join(halves)}"
        if self.fvd.warning:
            yield f"WARNING: {self.fvd.warning}"
        if missing := [VIEWS[view] for view in VIEWS if view not in self.fvd.figures]:
            yield f"no FVD of {missing[0]}: too short for an I3D, or nothing is given"

    def _floors(self) -> list[str]:
        """The rows that the model's PSNR is compared with."""
        return [row for row in FLOORS if not self.unavailable(row, "psnr")]

    @property
    def _trajectories(self) -> int:
        return self.protocol["trajectories_per_clip"]

    def _spread(self, name: str) -> np.ndarray:
        """(N, H) of a figure of the trajectories."""
        return np.stack([clip.spread[name] for clip in self.clips])

    def _over_skill(self, variance: np.ndarray, error: np.ndarray) -> Optional[dict[str, Any]]:
        """{"mean", "per_horizon"} of (H,) each; None where the mean of the trajectories has no error."""
        if not error.any():
            return None
        pairs = [(variance.mean(), error.mean()), *zip(variance, error)]
        ratios = [float(spread_over_skill(*map(torch.as_tensor, pair), self._trajectories)) for pair in pairs]
        mean, *per_horizon = [None if np.isnan(ratio) else ratio for ratio in ratios]
        return {"mean": mean, "per_horizon": per_horizon}

    def _ensemble_json(self) -> Optional[dict[str, Any]]:
        if self._trajectories == 1:
            return None
        return {"diversity": asdict(self.diversity()), "spread_over_skill": self.spread_over_skill()}

    def _fvd_json(self) -> Optional[dict[str, Any]]:
        if self.fvd is None:
            return None
        views = {
            view: {"frames": VIEWS[view], **figures, "truth_halves": self.fvd.truth_halves[view]}
            for view, figures in self.fvd.figures.items()
        }
        return {"clips": self.fvd.clips, "warning": self.fvd.warning, **views}

    def _motion_over_truth(self, row: str) -> Optional[float]:
        truth = sum(clip.motion["truth"] for clip in self.clips)
        return sum(clip.motion[row] for clip in self.clips) / truth if truth > 0 else None

    def _summary_json(self, row: str, metric: str) -> dict[str, Any]:
        summary = self.summary(row, metric)
        if summary is None:
            nothing = dict.fromkeys(("mean", "ci95", "per_horizon"))
            return {**nothing, "unavailable": self.unavailable(row, metric)}
        return asdict(summary)

    def _clip_json(self, clip: ClipScores) -> dict[str, Any]:
        means = {
            row: {metric: float(values.mean()) for metric, values in metrics.items()}
            for row, metrics in clip.scores.items()
        }
        described = {
            "index": clip.index,
            "name": clip.name,
            "sha256": clip.content,
            **{row: means.get(row) for row in self.titles},
            "motion": clip.motion,
            "model_per_horizon": {k: v.tolist() for k, v in clip.scores.get("model", {}).items()},
        }
        if clip.spread is not None:
            ratio = self._over_skill(clip.spread["variance"], clip.spread["squared_error"])
            described["best_trajectory"] = clip.best_trajectory
            described["diversity"] = float(clip.spread["diversity"].mean())
            described["spread_over_skill"] = ratio and ratio["mean"]
            described["model_per_horizon"]["diversity"] = clip.spread["diversity"].tolist()
            described["model_per_horizon"]["spread_over_skill"] = ratio and ratio["per_horizon"]
        return described


def cell(summary: Optional[Summary], decimals: int) -> str:
    """A cell of a table of text: mean +- half width of its interval, n/a without a measurement."""
    if summary is None:
        return "n/a"
    return _with_interval(f"{summary.mean:.{decimals}f}", summary.ci95, decimals)


def _distance(value: Optional[float]) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def _with_interval(mean: str, ci95: Optional[float], decimals: int) -> str:
    return mean if ci95 is None else f"{mean} +- {ci95:.{decimals}f}"


def _gain(mean: float, ci95: Optional[float]) -> str:
    return _with_interval(f"{mean:+.2f}", ci95, 2) + " dB"


def _ratio(ratio: Optional[float]) -> str:
    return "n/a (no truth moves)" if ratio is None else f"{ratio:.3f}"
