"""The result of an evaluation: summaries, the JSON file, the table that is printed."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Iterator, Optional

import numpy as np

from vidpred.evaluation.records import METRICS, ClipSample, ClipScores, row_titles
from vidpred.evaluation.statistics import Summary, half_width, summarize
from vidpred.files import write_json

HEADINGS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS"}
FLOORS = ("floor", "decoded_floor", "linear")
DECIMALS = {"psnr": 2, "ssim": 4, "lpips": 4}
TITLE_WIDTH = 18
NOTHING_TO_COPY = "no frame is given that could be copied"
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

    @property
    def titles(self) -> dict[str, str]:
        """The rows and what the table calls them; see `unavailable` for those without figures."""
        return row_titles(self.protocol["task"], self.protocol["trajectories_per_clip"])

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
        return self.lpips_unavailable if metric == "lpips" else None

    def values(self, row: str, metric: str) -> np.ndarray:
        """(N, H) float64: one value per clip and horizon, of what is not `unavailable`."""
        return np.stack([clip.scores[row][metric] for clip in self.clips])

    def summary(self, row: str, metric: str) -> Optional[Summary]:
        """Mean, 95 % interval and curve over horizons; None for what is `unavailable`."""
        if self.unavailable(row, metric):
            return None
        return summarize(self.values(row, metric))

    def psnr_gain(self, row: str) -> tuple[float, Optional[float]]:
        """PSNR of the model minus that of `row` in dB, paired by clip: mean and half of its 95 % interval.
        Not for what is `unavailable`."""
        gain = (self.values("model", "psnr") - self.values(row, "psnr")).mean(axis=1)
        return float(gain.mean()), half_width(gain)

    def scalars(self) -> dict[str, float]:
        """The model's means and their distance to the floors, under the keys that are logged."""
        summaries = {metric: self.summary("model", metric) for metric in METRICS}
        logged = {f"eval/{metric}": summary.mean for metric, summary in summaries.items() if summary}
        for row in self._floors():
            key = self.titles[row].replace(",", "").replace(" ", "_")  # copy_last, copy_last_decoded, linear
            logged[f"eval/psnr_over_{key}"] = self.psnr_gain(row)[0]
        if self.motion_energy_ratio is not None:
            logged["eval/motion_energy_ratio"] = self.motion_energy_ratio
        return logged

    def to_json(self) -> dict[str, Any]:
        """Plain data: `protocol`; `run`; `left_out`; each row (`model`, `floor`, ...) with `psnr`, `ssim`,
        `lpips`, each {"mean", "ci95", "per_horizon"}; `motion_energy_ratio`; `clips` with the means of each
        clip, and of the model the value at each horizon. What is unavailable is None, with the reason."""
        return {
            "protocol": self.protocol,
            "run": self.run,
            "left_out": self.left_out,
            **{row: {metric: self._summary_json(row, metric) for metric in METRICS} for row in self.titles},
            "motion_energy_ratio": self.motion_energy_ratio,
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
        headings = [f"{HEADINGS[m]} {net}" if m == "lpips" and net else HEADINGS[m] for m in METRICS]
        lines = [
            f"{shape['clips']} clips of {shape['dataset']}, {shape['context_frames']} given and "
            f"{shape['predicted_frames']} predicted frames ({shape['task']}); "
            "mean +- 95 % confidence interval over clips",
            "".join([" " * width, *(f"{heading:>20}" for heading in headings)]),
        ]
        for row, title in self.titles.items():
            cells = [_cell(self.summary(row, metric), DECIMALS[metric]) for metric in METRICS]
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
            yield f"{title}: the best of each clip by each metric itself; model is the first of them"
        if reason := self.unavailable("model", "psnr"):
            yield f"model n/a: {reason}; its motion compares. Floors n/a: {self.unavailable('floor', 'psnr')}"
        if self.left_out:
            names = ", ".join(bad["name"] for bad in self.left_out[:3])
            more = ", ..." if len(self.left_out) > 3 else ""
            yield f"{len(self.left_out)} bad clips left out: {names}{more}"
        if self.lpips_unavailable:
            yield f"LPIPS unavailable: {self.lpips_unavailable}"

    def _floors(self) -> list[str]:
        """The rows that the model's PSNR is compared with."""
        return [row for row in FLOORS if not self.unavailable(row, "psnr")]

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
        return {
            "index": clip.index,
            "name": clip.name,
            "sha256": clip.content,
            **{row: means.get(row) for row in self.titles},
            "motion": clip.motion,
            "model_per_horizon": {k: v.tolist() for k, v in clip.scores.get("model", {}).items()},
        }


def _cell(summary: Optional[Summary], decimals: int) -> str:
    if summary is None:
        return "n/a"
    return _with_interval(f"{summary.mean:.{decimals}f}", summary.ci95, decimals)


def _with_interval(mean: str, ci95: Optional[float], decimals: int) -> str:
    return mean if ci95 is None else f"{mean} +- {ci95:.{decimals}f}"


def _gain(mean: float, ci95: Optional[float]) -> str:
    return _with_interval(f"{mean:+.2f}", ci95, 2) + " dB"


def _ratio(ratio: Optional[float]) -> str:
    return "n/a (no truth moves)" if ratio is None else f"{ratio:.3f}"
