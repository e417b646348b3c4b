"""An examination as lines of text and as a picture."""

import math
from pathlib import Path
from typing import Any, Iterator, Optional

from vidpred.diagnosis.examination import Examination
from vidpred.diagnosis.findings import clip_rate
from vidpred.diagnosis.records import LatentFigures, LevelRow, StepRow, WeightFigures
from vidpred.errors import UserError
from vidpred.prediction import clip_advice


def results_folder(chosen: Optional[Path], default: Path) -> Path:
    """`chosen` or else `default`, made where it is missing. UserError when it cannot be written."""
    folder = chosen or default
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        reason = error.strerror
        raise UserError(f"{folder}: cannot be written ({reason}); give another folder with --out") from error
    return folder


def examination_lines(examination: Examination) -> Iterator[str]:
    """Everything that was measured; the findings and the verdict are not among the lines."""
    yield from _weight_lines(examination.weights)
    yield from _latent_lines(examination.latents, examination.clips)
    yield ""
    yield from _step_lines(examination.steps)
    rate = clip_rate(examination.steps)
    yield f"clip rate over all steps: {100 * rate:.3f} % ({clip_advice(rate)})"
    yield ""
    yield from _level_lines(examination.levels)


def _weight_lines(figures: WeightFigures) -> Iterator[str]:
    yield f"parameters: {figures.count:,}, norm {figures.raw_norm:.6g}"
    if figures.ema_norm is None:
        yield "EMA: none"
        return
    updates = "unknown" if figures.ema_updates is None else figures.ema_updates
    yield f"EMA: norm {figures.ema_norm:.6g}, |EMA - raw| / |raw| {figures.distance:.4g}, updates {updates}"


def _latent_lines(figures: LatentFigures, clips: int) -> Iterator[str]:
    channels = "; ".join(f"{mean:+.2f} +- {std:.2f}" for mean, std in zip(figures.mean, figures.std))
    whole = _range((figures.low, figures.high))
    yield f"latents of {clips} clips, calibrated: {whole}, channels {channels}"


def _step_lines(rows: list[StepRow]) -> Iterator[str]:
    yield f"sampling, {len(rows)} inference steps: the unknown frames at each"
    yield (
        f"{'step':>4}  {'alpha':>6}  {'sigma':>6}  {'x_t range':>18}  {'x0 before clipping':>22}  "
        f"{'clipped':>8}  {'eps norm / expected':>19}"
    )
    for row in rows:
        yield (
            f"{row.step:>4}  {row.alpha:6.4f}  {row.sigma:6.4f}  {_range(row.x):>18}  {_range(row.x0):>22}  "
            f"{100 * row.clip_rate:6.2f} %  {row.eps_norm:19.3f}"
        )


def _level_lines(rows: list[LevelRow]) -> Iterator[str]:
    yield "one-step error of x0 by level, rms"
    yield "('no learning' is the best constant filter of x_t around the better of the two references)"
    yield (
        f"{'timestep':>8}  {'alpha':>6}  {'sigma':>6}  {'model':>9}  {'predict zero':>12}  {'copy last':>9}  "
        f"{'no learning':>11}  {'model / no learning':>19}"
    )
    for row in rows:
        yield (
            f"{row.timestep:>8}  {row.alpha:6.4f}  {row.sigma:6.4f}  {row.error:9.4f}  {row.zero:12.4f}  "
            f"{row.copy_last:9.4f}  {row.unlearned:11.4f}  {row.error / max(row.unlearned, 1e-6):19.3f}"
        )


def _range(bounds: tuple[float, float]) -> str:
    return f"[{bounds[0]:.2f}, {bounds[1]:.2f}]"


def save_plot(path: Path, title: str, examination: Examination) -> None:
    """Four charts as a PNG: error by level; x_t and x0 ranges, clip rate and eps norm by sampling step."""
    import matplotlib

    matplotlib.use("Agg")  # no display is needed
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    _plot_errors(axes[0, 0], examination.levels)
    steps = examination.steps
    _plot_ranges(axes[0, 1], steps, examination.latents)
    _plot_by_step(axes[1, 0], steps, [100 * row.clip_rate for row in steps], "clipped values, %")
    _plot_by_step(axes[1, 1], steps, [row.eps_norm for row in steps], "eps norm / its expectation")
    axes[1, 1].axhline(1, color="grey", linestyle=":")
    for chart, least in ((axes[1, 0], 1.0), (axes[1, 1], 1.5)):
        chart.set_ylim(0, max(least, 1.1 * chart.dataLim.y1) if math.isfinite(chart.dataLim.y1) else least)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_errors(axes: Any, rows: list[LevelRow]) -> None:
    for name, style, color, label in (
        ("error", "o-", "tab:blue", "model"),
        ("unlearned", "--", "tab:grey", "no learning"),
        ("zero", ":", "tab:green", "predict zero"),
        ("copy_last", ":", "tab:orange", "copy last given frame"),
    ):
        values = [getattr(row, name) for row in rows]
        axes.plot([row.timestep for row in rows], values, style, color=color, label=label)
    highest = 1.25 * max(rows[0].zero, rows[0].copy_last, 0.1)
    if math.isfinite(highest):
        axes.set_ylim(0, highest)  # an error that explodes leaves the chart, the references stay in it
    axes.set(xlabel="timestep (right: pure noise)", ylabel="one-step error of x0, rms")
    axes.legend(fontsize=8)


def _plot_ranges(axes: Any, rows: list[StepRow], latents: LatentFigures) -> None:
    for name, color, label in (("x", "tab:grey", "x_t"), ("x0", "tab:blue", "x0 before clipping")):
        low, high = zip(*(getattr(row, name) for row in rows))
        axes.fill_between([row.step for row in rows], low, high, color=color, alpha=0.3, label=label)
    axes.axhline(latents.low, color="black", linestyle=":", label="data")
    axes.axhline(latents.high, color="black", linestyle=":")
    _label_steps(axes, "range")
    axes.legend(fontsize=8, loc="center")


def _plot_by_step(axes: Any, rows: list[StepRow], values: list[float], label: str) -> None:
    axes.plot([row.step for row in rows], values, "o-", color="tab:blue")
    _label_steps(axes, label)


def _label_steps(axes: Any, label: str) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="sampling step", ylabel=label)
