"""A comparison of samplers as lines of text and as a picture."""

from pathlib import Path
from typing import Any, Callable, Iterator

from vidpred.diagnosis.sampler_comparison import SamplerComparison, SamplerRow
from vidpred.diffusion import SAMPLERS
from vidpred.evaluation import Summary, row_titles

# Marker, its size, and the line: of two that coincide, as ddim and euler do, both are seen.
STYLES = {
    "ddim": ("o", 11, "-"),
    "ddpm": ("s", 9, "-"),
    "euler": ("D", 5, "--"),
    "heun": ("^", 6, "-"),
    "dpmpp_2m": ("v", 6, "-"),
    "pndm": ("P", 6, "-"),
    "unipc": ("X", 6, "-"),
    "dpmpp_sde": ("*", 6, "--"),
}


def sampler_lines(comparison: SamplerComparison) -> Iterator[str]:
    """The table, the references and what was refused."""
    shape, own = comparison.protocol, comparison.configured
    seeds = ", ".join(map(str, comparison.seeds))
    yield (
        f"{shape['clips']} clips of {shape['dataset']}, {shape['context_frames']} given and "
        f"{shape['predicted_frames']} predicted frames, seeds {seeds}; "
        "mean +- 95 % confidence interval over clips"
    )
    yield f"difference: to the model's own sampler (*), {own.sampler} with {own.steps} steps, paired by clip"
    yield (
        f"{'sampler':<18}  {'steps':>5}  {'calls':>5}  {'PSNR (dB)':>16}  {'difference (dB)':>17}  "
        f"{'motion':>6}  {'clipped':>9}  {'ms/frame':>8}"
    )
    for rows in comparison.by_sampler().values():
        for row in rows:
            yield _row_line(row, own)
    titles = row_titles("prediction")
    for name, summary in comparison.references.items():
        yield f"{titles[name]:<18}  {'':>5}  {'':>5}  {_with_interval(summary, '.2f'):>16}"
    yield from _refusal_lines(comparison)


def _row_line(row: SamplerRow, own: SamplerRow) -> str:
    name = f"{row.sampler} *" if row is own else row.sampler
    gain = "" if row is own else _with_interval(row.psnr_over(own), "+.3f")
    motion = "n/a" if row.motion_energy_ratio is None else f"{row.motion_energy_ratio:.3f}"
    return (
        f"{name:<18}  {row.steps:>5}  {row.network_calls:>5}  {_with_interval(row.psnr, '.2f'):>16}  "
        f"{gain:>17}  {motion:>6}  {100 * row.clip_rate:7.3f} %  {row.milliseconds_per_frame:8.2f}"
    )


def _with_interval(summary: Summary, form: str) -> str:
    half = "" if summary.ci95 is None else f" +- {summary.ci95:{form.lstrip('+')}}"
    return f"{summary.mean:{form}}{half}"


def _refusal_lines(comparison: SamplerComparison) -> Iterator[str]:
    """One line for each sampler and reason."""
    grouped: dict[tuple[str, str], list[int]] = {}
    for refusal in comparison.refused:
        grouped.setdefault((refusal.sampler, refusal.reason), []).append(refusal.steps)
    for (sampler, reason), steps in grouped.items():
        counts = ", ".join(map(str, sorted(steps)))
        yield f"not possible: {sampler} with {counts} steps: {reason}"


def save_sampler_plot(path: Path, comparison: SamplerComparison) -> None:
    """PSNR over network calls and over time as a PNG: above with floor and ceiling, below as the difference
    to the model's own sampler."""
    import matplotlib

    matplotlib.use("Agg")  # no display is needed
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharex="col", sharey="row", layout="constrained")
    figure.suptitle(comparison.title, fontsize=10)
    own = comparison.configured
    for column, (label, place) in enumerate(
        (
            ("network calls per clip", lambda row: row.network_calls),
            ("milliseconds per predicted frame", lambda row: row.milliseconds_per_frame),
        )
    ):
        above, below = axes[:, column]
        _plot_rows(above, comparison, place, lambda row: row.psnr, intervals=False)
        _plot_references(above, comparison)
        _plot_rows(below, comparison, place, lambda row: row.psnr_over(own), intervals=True)
        below.axhline(0, color="black", linewidth=0.8)
        below.set(xlabel=label, xscale="log")
        _label_places(below, [place(row) for row in comparison.rows])
    axes[0, 0].set_ylabel("PSNR, dB")
    axes[1, 0].set_ylabel(f"PSNR over {own.sampler} with {own.steps} steps, dB")
    axes[0, 1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_rows(
    axes: Any,
    comparison: SamplerComparison,
    place: Callable[[SamplerRow], float],
    value: Callable[[SamplerRow], Summary],
    intervals: bool,
) -> None:
    """A line for each sampler, with 95 % intervals or without."""
    for name, rows in comparison.by_sampler().items():
        summaries = [value(row) for row in rows]
        marker, size, line = STYLES[name]
        axes.errorbar(
            [place(row) for row in rows],
            [summary.mean for summary in summaries],
            [summary.ci95 or 0 for summary in summaries] if intervals else None,
            marker=marker,
            markersize=size,
            linestyle=line,
            linewidth=1.5,
            elinewidth=1,
            capsize=size / 2,
            color=f"C{SAMPLERS.index(name)}",  # always the same
            label=name,
        )
    own = comparison.configured
    ring = dict(marker="o", markersize=16, markerfacecolor="none", markeredgecolor="black", linestyle="")
    axes.plot([place(own)], [value(own).mean], label="the model's own", **ring)


def _plot_references(axes: Any, comparison: SamplerComparison) -> None:
    titles = row_titles("prediction")
    styles = {"ceiling": ("black", "--"), "decoded_floor": ("grey", "-."), "floor": ("grey", ":")}
    for name, (color, style) in styles.items():
        axes.axhline(comparison.references[name].mean, color=color, linestyle=style, label=titles[name])


def _label_places(axes: Any, places: list[float]) -> None:
    """Plain numbers on a logarithmic axis, at 1, 2, 5, 10, ..."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(places) / 1.15, max(places) * 1.15)
