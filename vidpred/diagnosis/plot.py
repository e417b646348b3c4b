"""The plot page of a diagnosis, one PNG."""

import math
from pathlib import Path
from typing import Any, Sequence

import torch

from vidpred.diagnosis.curve import LossPoint
from vidpred.diagnosis.diagnose import Diagnosis
from vidpred.diagnosis.prediction_measures import Chain
from vidpred.diagnosis.records import LatentFigures, LevelRow, StepRow
from vidpred.prediction import clip_advice

MODEL, GREY, GREEN, ORANGE = "tab:blue", "tab:grey", "tab:green", "tab:orange"
LINE = 110  # characters of a finding's line


def save_plot(path: Path, diagnosis: Diagnosis) -> None:
    """Error by level and of whole predictions; x0 range, clip rate and eps norm by step; x0 along the chain; the loss;
    and the findings. What could not be measured is an empty chart."""
    import matplotlib

    matplotlib.use("Agg")  # no display is needed
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 3, figsize=(15, 12.5), layout="constrained")
    figure.suptitle("\n".join([diagnosis.title, *_headlines(diagnosis)]), fontsize=11)
    if diagnosis.levels:
        _plot_levels(axes[0, 0], diagnosis.levels)
    _plot_prediction(axes[0, 1], diagnosis.measures)
    _plot_curve(axes[0, 2], diagnosis.curve)
    if diagnosis.chain is not None:
        steps = diagnosis.chain.steps
        _plot_ranges(axes[1, 0], steps, diagnosis.latents)
        rate = diagnosis.measures["chain/clip_rate"]
        advice = clip_advice(rate).replace(": ", ":\n")
        _plot_by_step(axes[1, 1], steps, [100 * row.clip_rate for row in steps], "clipped values, %", 1.0)
        axes[1, 1].set_title(f"{100 * rate:.2f} % over all steps; {advice}", fontsize=9)
        _plot_by_step(axes[1, 2], steps, [row.eps_norm for row in steps], "eps norm / its expectation", 1.5)
        axes[1, 2].axhline(1, color=GREY, linestyle=":")
    strip = _one_row(figure, axes[2])
    if diagnosis.chain is not None:
        _plot_pictures(strip, diagnosis.chain)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _headlines(diagnosis: Diagnosis) -> list[str]:
    if not diagnosis.findings:
        return ["healthy"]
    lines = [f"{finding.name}: {finding.evidence}" for finding in diagnosis.findings[:3]]
    return [line if len(line) <= LINE else f"{line[:LINE]} …" for line in lines]


def _one_row(figure: Any, row: Sequence[Any]) -> Any:
    """The three axes of a row as one."""
    grid = row[0].get_gridspec()
    for axes in row:
        axes.remove()
    return figure.add_subplot(grid[2, :])


def _plot_levels(axes: Any, rows: list[LevelRow]) -> None:
    for name, style, color, label in (
        ("error", "o-", MODEL, "model"),
        ("unlearned", "--", GREY, "no learning"),
        ("zero", ":", GREEN, "predict zero"),
        ("copy_last", ":", ORANGE, "copy last given frame"),
    ):
        axes.plot([row.timestep for row in rows], [getattr(row, name) for row in rows], style, color=color, label=label)
    highest = 1.25 * max(rows[0].zero, rows[0].copy_last, 0.1)
    if math.isfinite(highest):
        axes.set_ylim(0, highest)  # an error that explodes leaves the chart, the references stay in it
    axes.set(xlabel="timestep (right: pure noise)", ylabel="one-step error of x0, rms")
    axes.legend(fontsize=8)


def _plot_prediction(axes: Any, measures: dict[str, float]) -> None:
    bars = (("model", "chain/error", MODEL), ("copy last", "chain/copy_last", ORANGE),
            ("predict zero", "chain/predict_zero", GREEN))  # fmt: skip
    for label, name, color in bars:
        value = measures.get(name, math.nan)
        if math.isfinite(value):
            axes.bar(label, value, color=color)
            axes.annotate(f"{value:.3f}", (label, value), ha="center", va="bottom", fontsize=9)
    axes.set_ylabel("error of whole predictions, rms of latents")


def _plot_curve(axes: Any, points: list[LossPoint]) -> None:
    axes.set(xlabel="training step", ylabel="training loss")
    if not points:
        axes.set_title("no record of the training", fontsize=9)
        return
    steps = [point.step for point in points]
    axes.plot(steps, [point.loss for point in points], color=MODEL, linewidth=1)
    axes.set_yscale("log")
    rates = axes.twinx()
    rates.plot(steps, [point.learning_rate for point in points], "--", color=GREY, linewidth=1)
    rates.set_ylabel("learning rate (dashed)")
    rates.set_ylim(bottom=0)


def _plot_ranges(axes: Any, rows: list[StepRow], latents: LatentFigures) -> None:
    for name, color, label in (("x", GREY, "x_t"), ("x0", MODEL, "x0 before clipping")):
        low, high = zip(*(getattr(row, name) for row in rows))
        axes.fill_between(range(len(rows)), low, high, color=color, alpha=0.3, label=label)
    axes.axhline(latents.low, color="black", linestyle=":", label="data")
    axes.axhline(latents.high, color="black", linestyle=":")
    _label_steps(axes, "range")
    axes.legend(fontsize=8, loc="center")


def _plot_by_step(axes: Any, rows: list[StepRow], values: list[float], label: str, least: float) -> None:
    axes.plot(range(len(rows)), values, "o-", color=MODEL)
    _label_steps(axes, label)
    highest = max((value for value in values if math.isfinite(value)), default=0.0)
    axes.set_ylim(0, max(least, 1.1 * highest))


def _label_steps(axes: Any, label: str) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="network call of the sampler", ylabel=label)


def _plot_pictures(axes: Any, chain: Chain) -> None:
    """Side by side, above the number of their call; the true frame beside them."""
    pictures = torch.cat([chain.pictures, chain.truth[None]]).permute(0, 2, 3, 1).numpy()  # (n, H, W, 3)
    labels = [*(f"call {step}" for step in chain.picture_steps), "true frame"]
    for place, (picture, label) in enumerate(zip(pictures, labels)):
        axes.imshow(picture, extent=(1.06 * place, 1.06 * place + 1, 0, picture.shape[0] / picture.shape[1]))
        axes.text(1.06 * place + 0.5, -0.02, label, ha="center", va="top", fontsize=9)
    axes.set_xlim(0, 1.06 * len(pictures) - 0.06)
    axes.set_ylim(-0.12, pictures.shape[1] / pictures.shape[2])
    axes.set_title("x0 along the chain, decoded: the last frame of the first clip", fontsize=10)
    axes.set_aspect("equal")
    axes.axis("off")
