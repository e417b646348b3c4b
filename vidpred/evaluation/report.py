"""The report: one HTML page about one evaluation, whole in itself. It opens from disk and loads nothing.

Every text in it is escaped by the template engine; pictures are inside the page as data.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vidpred.evaluation.charts import Curve, gauge, histogram_rows, line_chart
from vidpred.evaluation.film_pictures import film_views
from vidpred.evaluation.films import ClipFilm
from vidpred.evaluation.records import LOWER_IS_BETTER, TO_RECONSTRUCTION, ClipScores
from vidpred.evaluation.results import DECIMALS, HEADINGS, Evaluation
from vidpred.evaluation.statistics import Summary, half_width
from vidpred.files import written_aside

PAGE = Path(__file__).parent / "report_page"
LOSSLESS = 60.0  # dB: what is above, an exact copy above all, would press the other curves flat
FEWEST_CLIPS = 4  # of which a distribution can be drawn
LISTED_CLIPS = 200
MOST_IN_PLACE = 24  # more entries of the protocol are folded away
FLOOR_COLOURS = 4


@dataclass(frozen=True)
class LevelErrors:
    """The error of the clean estimate after one call of the denoiser, rms over latents, at one noise level.

    error: the model's; zero: of predicting the mean of the data; copy: of repeating the nearest given frame;
    unlearned: of the better of these rules together with the best constant filter of the noisy latents.
    """

    timestep: int
    error: float
    zero: float
    copy: float
    unlearned: float


def write_report(
    path: str | Path, evaluation: Evaluation, films: Sequence[ClipFilm], levels: Sequence[LevelErrors]
) -> Path:
    """Writes the page, whole or not at all; call it on one rank. `levels` in any order; of none no chart."""
    page = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html")  # fmt: skip
    text = page.render(_Content(evaluation).everything(films, levels))
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return Path(path)


class _Content:
    """What the template shows of an evaluation. The style sheet knows rows by what they are: `model`, `best`,
    `ceiling`, and floors by their order."""

    def __init__(self, evaluation: Evaluation):
        self._evaluation = evaluation
        self._protocol = evaluation.protocol
        self._plain = evaluation.to_json()
        self._metrics = [metric for metric in evaluation.metrics if self._summaries(metric)]
        self._floors = [row for row in evaluation.titles if row not in ("model", "best_of_n", "ceiling")]
        fixed = {"model": "model", "best_of_n": "best", "ceiling": "ceiling"}
        floors = {row: f"floor{place % FLOOR_COLOURS}" for place, row in enumerate(self._floors)}
        self._colours = {**fixed, **floors}

    def everything(self, films: Sequence[ClipFilm], levels: Sequence[LevelErrors]) -> dict[str, Any]:
        evaluation, protocol = self._evaluation, self._protocol
        drawn = [row for row in evaluation.titles if self._summaries(self._metrics[0]).get(row)]
        many = len(evaluation.clips) >= FEWEST_CLIPS
        views, images, error_scale = film_views(films, evaluation)
        return {
            "protocol": protocol,
            "step": {**protocol, **self._plain.get("run", {})}.get("step"),
            "stamp": list(_flat(protocol)),
            "run": list(_flat(self._plain.get("run", {}))),
            "verdict": self._verdict(),
            "cards": [*map(self._card, self._metrics), *self._motion_card()],
            "metrics": [(self._heading(m), m in LOWER_IS_BETTER) for m in self._metrics],
            "rows": list(self._table()),
            "notes": list(evaluation.notes()),
            "films": views,
            "images": images,
            "error_scale": error_scale,
            "legend_entries": [(evaluation.titles[row], self._colours[row]) for row in drawn],
            "curves": [(self._heading(m), self._curve(m), self._horizons(m)) for m in self._metrics],
            "distributions": [(self._heading(m), self._distribution(m)) for m in self._metrics if many],
            "wins": self._wins(),
            "level_chart": _level_chart(levels) if levels else None,
            "clips": self._clips(),
            "figures": list(_flat(self._further_figures())),
            "lossless": LOSSLESS,
        }

    def _heading(self, metric: str) -> str:
        net = self._protocol.get("lpips", {}).get("net") if metric == "lpips" else None
        return HEADINGS.get(metric, metric) + (f" {net}" if net else "")

    def _summaries(self, metric: str) -> dict[str, Summary]:
        found = {row: self._evaluation.summary(row, metric) for row in self._evaluation.titles}
        return {row: summary for row, summary in found.items() if summary}

    def _verdict(self) -> str:
        """What the figures say, for who reads no further."""
        if self._evaluation.unavailable("model", "psnr"):
            return "Generated from nothing: no clip is the truth of it, and only its motion compares."
        if TO_RECONSTRUCTION in self._metrics:
            shown = (("model", TO_RECONSTRUCTION), ("ceiling", "psnr"))
            to_ceiling, own = (self._evaluation.summary(*which) for which in shown)
            return (
                f"One picture, generated from nothing: {to_ceiling.mean:.2f}\u00a0dB to its reconstruction by the "
                f"autoencoder, which itself has {own.mean:.2f}\u00a0dB."
            )
        titles, summaries = self._evaluation.titles, self._summaries("psnr")
        gains = {row: self._evaluation.psnr_gain(row) for row in self._floors if row in summaries}
        row = min(gains, key=lambda name: gains[name][0])
        gain, width = gains[row]
        over = f"{gain:+.2f}{'' if width is None else f' ± {width:.2f}'} dB over {titles[row]}"
        if width is not None and abs(gain) <= width:
            said = f"By PSNR not told apart from its best floor: {over}"
        elif gain > 0:
            said = f"By PSNR better than every floor: {over}, the best of them"
        else:
            said = f"By PSNR worse than a floor: {over}"
        below = -self._evaluation.psnr_gain("ceiling")[0]
        parts = [f"{said}; {below:.2f} dB below the ceiling that the autoencoder sets.", *self._lost()]
        return " ".join(parts).replace(" ± ", "\u00a0±\u00a0").replace(" dB", "\u00a0dB")

    def _lost(self) -> Iterator[str]:
        """Metrics other than PSNR by which floors are better than the model."""
        for metric in self._metrics:
            means = {row: summary.mean for row, summary in self._summaries(metric).items()}
            sign = -1 if metric in LOWER_IS_BETTER else 1
            floors = [row for row in self._floors if row in means and metric != "psnr"]
            better = [row for row in floors if sign * (means[row] - means["model"]) > 0]
            if better:
                names = "; ".join(self._evaluation.titles[row] for row in better)
                yield f"By {self._heading(metric)} better than the model: {names}."

    def _card(self, metric: str) -> dict[str, Any]:
        summaries, decimals = self._summaries(metric), DECIMALS.get(metric, 4)
        marks = [
            self._single(row, summary, metric) for row, summary in summaries.items() if row != "best_of_n"
        ]
        ends = [mark.values[0] for mark in marks]
        air = 0.08 * (max(ends) - min(ends)) or 1.0
        low, high = min(ends) - air, max(ends) + air
        if metric in LOWER_IS_BETTER:
            low, high = high, low
        shown = summaries.get("model") or summaries["ceiling"]
        return {
            "name": self._heading(metric),
            "value": f"{shown.mean:.{decimals}f}",
            "interval": _interval(shown, decimals),
            "gauge": gauge(f"{self._heading(metric)}, from worse to better", marks, low, high),
            "ends": ("worse", "better"),
            "of": None if "model" in summaries else "the ceiling's",
        }

    def _single(self, row: str, summary: Summary, metric: str) -> Curve:
        value = min(summary.mean, LOSSLESS) if metric == "psnr" else summary.mean
        band = [summary.ci95] if row == "model" and summary.ci95 else None
        return Curve(self._colours[row], self._evaluation.titles[row], [value], band)

    def _motion_card(self) -> Iterator[dict[str, Any]]:
        ratio = self._evaluation.motion_energy_ratio
        if ratio is None:
            return
        marks = [Curve("model", "model", [ratio]), Curve("ceiling", "the truth", [1.0])]
        yield {
            "name": "motion, of the truth's",
            "value": f"{ratio:.3f}",
            "interval": None,
            "gauge": gauge("motion energy: from frozen over the truth's to twice as much", marks, 0.0, 2.0),
            "ends": ("frozen", "jittery"),
            "of": None,
        }

    def _table(self) -> Iterator[dict[str, Any]]:
        for row, title in self._evaluation.titles.items():
            summaries = [self._evaluation.summary(row, metric) for metric in self._metrics]
            cells = [_cell(s, DECIMALS.get(m, 4)) for s, m in zip(summaries, self._metrics)]
            gain = None
            compared = not any(self._evaluation.unavailable(one, "psnr") for one in ("model", row))
            if row not in ("model", "best_of_n") and compared:
                mean, width = self._evaluation.psnr_gain(row)
                gain = (f"{mean:+.2f}", None if width is None else f"{width:.2f}")
            yield {"title": title, "colour": self._colours[row], "cells": cells, "gain": gain}

    def _curve(self, metric: str) -> Markup:
        values = {row: summary.per_horizon for row, summary in self._summaries(metric).items()}
        curves = [
            Curve(self._colours[row], self._evaluation.titles[row], line, self._band(row, metric))
            for row, line in values.items()
        ]
        horizons = range(1, len(curves[0].values) + 1)
        highest = LOSSLESS if metric == "psnr" else math.inf
        name = self._heading(metric)
        return line_chart(f"{name} by horizon", "predicted frame", horizons, curves, highest=highest)

    def _band(self, row: str, metric: str) -> Optional[list[float]]:
        if row != "model" or len(self._evaluation.clips) < 2:
            return None
        return [half_width(frame) for frame in self._evaluation.values(row, metric).T]

    def _horizons(self, metric: str) -> dict[str, Any]:
        """The curves as a table."""
        summaries, decimals = self._summaries(metric), DECIMALS.get(metric, 4)
        columns = zip(*(summary.per_horizon for summary in summaries.values()))
        return {
            "titles": [self._evaluation.titles[row] for row in summaries],
            "rows": [[f"{value:.{decimals}f}" for value in values] for values in columns],
        }

    def _distribution(self, metric: str) -> Markup:
        rows = [
            Curve(self._colours[row], self._evaluation.titles[row],
                  self._evaluation.values(row, metric).mean(axis=1))
            for row in self._summaries(metric)
        ]  # fmt: skip
        highest = LOSSLESS if metric == "psnr" else math.inf
        name = self._heading(metric)
        label, decimals = f"{name}, mean of a clip", DECIMALS.get(metric, 4)
        return histogram_rows(f"{name} of the clips", label, rows, decimals, highest=highest)

    def _wins(self) -> str:
        """On how many clips the model is better than each floor."""
        floors = [row for row in self._floors if not self._evaluation.unavailable(row, "psnr")]
        if not floors:
            return ""
        counts = {row: int((self._clip_means("model") > self._clip_means(row)).sum()) for row in floors}
        on = ", ".join(f"{count} ({self._evaluation.titles[row]})" for row, count in counts.items())
        return f"Of {len(self._evaluation.clips)} clips the model's PSNR is higher than the floor's on {on}."

    def _clip_means(self, row: str) -> np.ndarray:
        return self._evaluation.values(row, "psnr").mean(axis=1)

    def _clips(self) -> dict[str, Any]:
        """The clips as a table, the worst first."""
        summaries = self._summaries("psnr")
        rows = [row for row in ("model", *self._floors[:1], "ceiling") if row in summaries]

        def mean(clip: ClipScores, row: str) -> float:
            return float(clip.scores[row]["psnr"].mean())

        worst_first = sorted(self._evaluation.clips, key=lambda clip: mean(clip, rows[0]))[:LISTED_CLIPS]
        return {
            "titles": [self._evaluation.titles[row] for row in rows],
            "rows": [(clip.name, [f"{mean(clip, row):.2f}" for row in rows]) for clip in worst_first],
            "all": len(self._evaluation.clips),
        }

    def _further_figures(self) -> dict[str, Any]:
        """What the result holds beside what has its own place on the page, whatever it is."""
        known = {"protocol", "run", "clips", "motion_energy_ratio", *self._evaluation.titles}
        return {key: value for key, value in self._plain.items() if key not in known and value}


def _level_chart(levels: Sequence[LevelErrors]) -> Markup:
    levels = sorted(levels, key=lambda level: level.timestep)
    # What no learning reaches bounds the chart, so that a model that explodes does not hide it.
    highest = 1.5 * max(max(level.zero, level.copy, level.unlearned) for level in levels)
    curves = [
        Curve("model", "model", [level.error for level in levels]),
        Curve("floor0", "copy of the nearest given frame", [level.copy for level in levels]),
        Curve("floor1", "the mean of the data", [level.zero for level in levels]),
        Curve("floor2", "no learning", [level.unlearned for level in levels]),
    ]
    title, label = "error of x0 by noise level", "timestep (right: pure noise)"
    timesteps = [level.timestep for level in levels]
    return line_chart(title, label, timesteps, curves, highest=highest, from_zero=True)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str | list[str]]]:
    """Nested plain data as (dotted name, text), or a list of texts where there are too many for a line."""
    for key, value in values.items():
        if isinstance(value, dict) and 0 < len(value) <= MOST_IN_PLACE:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, dict):
            yield prefix + key, [f"{name}: {_text(inner)}" for name, inner in value.items()]
        elif isinstance(value, (list, tuple)) and len(value) > MOST_IN_PLACE:
            yield prefix + key, [_text(inner) for inner in value]
        else:
            yield prefix + key, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_text(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)


def _cell(summary: Optional[Summary], decimals: int) -> Optional[tuple[str, Optional[str]]]:
    return None if summary is None else (f"{summary.mean:.{decimals}f}", _interval(summary, decimals))


def _interval(summary: Summary, decimals: int) -> Optional[str]:
    return None if summary.ci95 is None else f"{summary.ci95:.{decimals}f}"
