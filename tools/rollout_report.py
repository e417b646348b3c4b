"""A long rollout as lines of text, as a picture and as a video."""

import math
from pathlib import Path
from typing import Any, Iterator, Optional

from rollout_figures import Behaviour, References, Scene, WindowFigures
from torch import Tensor

from vidpred.video_io import trajectory_video

LOSSLESS = 60.0  # dB: a ceiling above it would press the other curves flat
SHOWN_WINDOWS = (1, 2, 5, 10, 20, 50, 100)
RIGHT_MOTION = (0.5, 2.0)
LEAST_MOTION = 1 / 16


# Text ------------------------------------------------------------------------------------------------------


def lines(scene: Scene, references: References, behaviours: list[Behaviour]) -> Iterator[str]:
    """A table for each way of rolling out, of some windows; and what is to be said of the last one."""
    for behaviour in behaviours:
        yield ""
        yield behaviour.name
        yield from _table(scene, references, behaviour)
        yield _summary(references, behaviour)
    if scene.digits:
        share, apart = references.digits_apart, references.apart_share
        accuracy = scene.digits.detector.classifier.accuracy
        yield ""
        yield (
            f"detector: the classifier knows {accuracy:.1%} of the test digits; found in true frames whose "
            f"digits overlap by at most a quarter: {_percent(share)} (they are {apart:.0%} of all)"
        )


def _table(scene: Scene, references: References, behaviour: Behaviour) -> Iterator[str]:
    has_digits, device = references.digits is not None, _on_device(behaviour)
    header = (
        f"{'window':>6}  {'frames':>9}  {'PSNR':>6}  {'copy last':>9}  {'ceiling':>7}  {'motion ratio':>12}  "
        f"{'beyond [-0.1, 1.1]':>18}  {'GPU MiB' if device else 'MiB':>7}"
    )
    yield header + (f"  {'digits found':>12}  {'in true frames':>14}  {'by chance':>9}" if has_digits else "")
    size, count = scene.window_frames, len(behaviour.windows)
    for number in sorted({n - 1 for n in SHOWN_WINDOWS if n <= count} | {count - 1} - {-1}):
        window, frames = behaviour.windows[number], slice(number * size, (number + 1) * size)
        memory = window.device_mib if device else window.resident_mib
        row = (
            f"{number + 1:>6}  {f'{frames.start + 1}-{frames.stop}':>9}  {_mean(window.psnr):>6}  "
            f"{_mean(references.floor[frames]):>9}  {_mean(references.ceiling[frames]):>7}  "
            f"{_ratio(window.motion_ratio):>12}  {_percent(window.far_outside):>18}  {memory:7.0f}"
        )
        if has_digits:
            found, true = window.digits, references.digits[number]
            row += f"  {_percent(found.found):>12}  {_percent(true.found):>14}  {_percent(found.chance):>9}"
        yield row


def _summary(references: References, behaviour: Behaviour) -> str:
    if not behaviour.windows:
        return f"last window: none; {behaviour.failure}"
    last, number = behaviour.windows[-1], len(behaviour.windows)
    parts = [
        f"motion ratio {_ratio(last.motion_ratio)}",
        f"values in [{last.lowest:.2f}, {last.highest:.2f}]",
        f"memory {behaviour.memory_growth:+.1%} since the first",
    ]
    if last.digits:
        in_half, true = last.digits.in_half, references.digits[number - 1].in_half
        parts.append(f"{in_half:.0%} of the digits recognised in half of its frames (truth: {true:.0%})")
    ending = f"; then {behaviour.failure}" if behaviour.failure else ""
    return f"window {number}: {', '.join(parts)}{ending}"


def _on_device(behaviour: Behaviour) -> bool:
    return any(window.device_mib is not None for window in behaviour.windows)


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f}" if values else "-"


def _ratio(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.1%}"


# Picture ---------------------------------------------------------------------------------------------------


def save_plot(
    path: Path, title: str, scene: Scene, references: References, behaviours: list[Behaviour]
) -> None:
    """PSNR by frame above; motion, and digits or else decoded values out of range, by window below."""
    import matplotlib

    matplotlib.use("Agg")  # no display is needed
    import matplotlib.pyplot as plt

    places = [["psnr", "psnr"], ["motion", "last"]]
    figure, axes = plt.subplot_mosaic(places, figsize=(11, 7.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    _plot_psnr(axes["psnr"], scene, references, behaviours)
    _plot_motion(axes["motion"], behaviours)
    if references.digits is None:
        _plot_range(axes["last"], behaviours)
    else:
        _plot_digits(axes["last"], references, behaviours)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_psnr(axes: Any, scene: Scene, references: References, behaviours: list[Behaviour]) -> None:
    for place, behaviour in enumerate(behaviours):
        values = [value for window in behaviour.windows for value in window.psnr]
        axes.plot(range(1, len(values) + 1), values, color=f"C{place}", linewidth=1.2, label=behaviour.name)
    horizons = range(1, len(references.floor) + 1)
    axes.plot(horizons, references.floor, "--", color="grey", label="floor: copy of the last frame")
    ceiling = references.ceiling
    if ceiling and max(ceiling) < LOSSLESS:
        axes.plot(horizons, ceiling, ":", color="black", label="ceiling: the truth through the autoencoder")
    elif ceiling:
        axes.plot([], [], ":", color="black", label=f"ceiling: over {LOSSLESS:.0f} dB")
    for boundary in range(scene.window_frames, scene.num_frames, scene.window_frames):
        axes.axvline(boundary + 0.5, color="black", alpha=0.08, linewidth=0.8)
    if len(references.floor) < scene.num_frames:
        where = len(references.floor) + 0.5
        end = scene.num_frames + 0.5
        axes.axvspan(where, end, color="grey", alpha=0.12, label="no truth: the video has ended")
    axes.set(xlabel="predicted frame (a line after each window)", ylabel="PSNR, dB")
    axes.set_xlim(0.5, scene.num_frames + 0.5)
    _legend_above(axes, columns=4)


def _plot_motion(axes: Any, behaviours: list[Behaviour]) -> None:
    axes.axhspan(*RIGHT_MOTION, color="tab:green", alpha=0.1)
    axes.axhline(1, color="grey", linestyle=":")
    values = _plot_by_window(axes, behaviours, _visible_motion)
    axes.set_yscale("log", base=2)
    axes.set_ylim(LEAST_MOTION / 1.2, max([4.0, *values]) * 1.2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(ylabel="motion over the truth's (green: half to twice)")


def _visible_motion(window: WindowFigures) -> Optional[float]:
    """A frozen picture is drawn on the chart's bottom, not left out."""
    return None if window.motion_ratio is None else max(window.motion_ratio, LEAST_MOTION)


def _plot_digits(axes: Any, references: References, behaviours: list[Behaviour]) -> None:
    numbers = range(1, len(references.digits) + 1)
    _plot_by_window(axes, behaviours, lambda window: 100 * window.digits.found)
    true = [100 * window.found for window in references.digits]
    axes.plot(numbers, true, ":", color="black", label="true frames")
    chances = [window.digits.chance for window in behaviours[0].windows]
    if chances and None not in chances:
        axes.plot(numbers[: len(chances)], [100 * value for value in chances], "--", color="grey",
                  label="labels of another clip")  # fmt: skip
    axes.set(ylabel="digits recognised, %", ylim=(0, 102))
    _legend_above(axes, columns=2)


def _plot_range(axes: Any, behaviours: list[Behaviour]) -> None:
    values = _plot_by_window(axes, behaviours, lambda window: 100 * window.far_outside)
    axes.set(ylabel="values beyond [-0.1, 1.1], %", ylim=(0, 1.1 * max([1.0, *values])))


def _legend_above(axes: Any, columns: int) -> None:
    """Outside of the chart, where no curve runs."""
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False)


def _plot_by_window(axes: Any, behaviours: list[Behaviour], figure: Any) -> list[float]:
    """A line for each way of rolling out; returns all of their values."""
    drawn: list[float] = []
    for place, behaviour in enumerate(behaviours):
        values = [figure(window) for window in behaviour.windows]
        values = [math.nan if value is None else value for value in values]
        axes.plot(range(1, len(values) + 1), values, "o-", color=f"C{place}", markersize=3)
        drawn += [value for value in values if math.isfinite(value)]
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="window")
    return drawn


# Video -----------------------------------------------------------------------------------------------------


def save_video(path: Path, scene: Scene, shown: Tensor, fps: float) -> None:
    """The first clip: the truth above, below it every way of rolling out, from the left in the order of `shown`
    (ways, N, 3, H, W)."""
    with trajectory_video(path, fps) as write:
        for frame in scene.context[0]:
            write(frame.expand(len(shown), -1, -1, -1), True, frame)
        truth = scene.truth[0]
        for time, frames in enumerate(shown.unbind(1)):
            write(frames, False, truth[time] if time < len(truth) else None)
