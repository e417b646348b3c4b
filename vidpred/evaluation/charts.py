"""Charts as inline SVG: curves, histograms and gauges. Colours come from the page's style sheet, by class.

A chart is 360 units wide, about its width in pixels on a phone, so that its text stays readable there. All
text is escaped. Values that are not finite are left out.
"""

import math
from dataclasses import dataclass
from typing import Iterable, Iterator, Optional, Sequence

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 236
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 14, 42
BINS = 28


@dataclass(frozen=True)
class Curve:
    """One value per place on the x axis. `name` is the class of its colour; `band` half a width around it."""

    name: str
    title: str
    values: Sequence[float]
    band: Optional[Sequence[float]] = None


@dataclass(frozen=True)
class _Axis:
    """Values between `low` and `high` onto pixels between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + min(max(share, -0.5), 1.5) * (self.end - self.start), 1)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round values in the range: multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / count
        power = 10 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.75)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 10) for number in range(first, last + 1)]


def line_chart(
    title: str,
    x_label: str,
    xs: Sequence[float],
    curves: Sequence[Curve],
    *,
    highest: float = math.inf,
    from_zero: bool = False,
) -> Markup:
    """Curves over `xs`. What lies above `highest` is cut off and does not stretch the axis."""
    values = [v for curve in curves for v in _with_band(curve) if math.isfinite(v) and v <= highest]
    y = _Axis(*_padded(values, from_zero), HEIGHT - BOTTOM, TOP)
    x = _Axis(*_padded(xs, margin=0.03), LEFT, WIDTH - RIGHT)
    whole = all(float(value).is_integer() for value in xs)
    ticks = [value for value in x.ticks(6) if min(xs) <= value <= max(xs)]
    body = [*_grid(x, y, [value for value in ticks if not whole or float(value).is_integer()], x_label)]
    for curve in reversed(curves):  # the first one on top
        points = [(x(a), y(v), a, v) for a, v in zip(xs, curve.values) if math.isfinite(v)]
        if points:
            body.append(_band(curve, xs, x, y))
            body.append(_tag("path", d=_path(points), cls=f"line {curve.name}"))
        if curve is curves[0]:
            body += [_dot(curve, *point) for point in points]
    return _svg(title, HEIGHT, body)


def histogram_rows(
    title: str, x_label: str, rows: Sequence[Curve], decimals: int, *, highest: float = math.inf
) -> Markup:
    """Below each other the histograms of (N,) values each, with the median and the middle half of them.

    Values above `highest` are drawn in the last bin.
    """
    shown = [np.asarray(row.values, dtype=np.float64) for row in rows]
    shown = [np.minimum(values[~np.isnan(values)], highest) for values in shown]
    height, step = 26, 56
    bottom = TOP + step * len(rows)
    low, high = _padded(np.concatenate(shown).tolist(), margin=0.04)
    x = _Axis(low, high, 12, WIDTH - RIGHT)
    body = [*_vertical(x, x.ticks(), TOP, bottom, x_label)]
    for place, (row, values) in enumerate(zip(rows, shown)):
        base = TOP + step * (place + 1) - 8
        if not len(values):
            continue
        counts, edges = np.histogram(values, bins=BINS, range=(low, high))
        tops = base - height * counts / counts.max()
        outline = [f"M{x(edges[0])} {base}"]
        outline += [f"V{top:.1f}H{x(edge)}" for top, edge in zip(tops, edges[1:])]
        quarter, median, three = (x(value) for value in np.percentile(values, (25, 50, 75)))
        body.append(_tag("path", d="".join([*outline, f"V{base}Z"]), cls=f"bars {row.name}"))
        body.append(_tag("path", d=f"M{quarter} {base}H{three}", cls=f"half {row.name}"))
        body.append(_tag("path", d=f"M{median} {base - height}V{base + 4}", cls=f"median {row.name}"))
        label = f"{row.title} · median {np.median(values):.{decimals}f}"
        body.append(_text(label, 14, base - height - 4, cls="name"))
    return _svg(title, bottom + BOTTOM - 4, body)


def gauge(title: str, marks: Sequence[Curve], low: float, high: float) -> Markup:
    """A line from `low` to `high`, which may be the lesser, with a mark for each single value.

    The first one is a disc, with its band beside it. Values beyond the ends are drawn at them.
    """
    x = _Axis(low, high, 12, WIDTH - 12)
    least, most = sorted((low, high))
    body = [_tag("path", d=f"M12 20H{WIDTH - 12}", cls="rail")]
    for place, mark in reversed(list(enumerate(marks))):
        value = mark.values[0]
        left, middle, right = (
            x(min(max(value + side * (mark.band or [0])[0], least), most)) for side in (-1, 0, 1)
        )
        if mark.band:
            body.append(_tag("path", d=f"M{left} 20H{right}", cls=f"spread {mark.name}"))
        tip = _tag("title", f"{mark.title}: {value:.4g}")
        if place == 0:
            body.append(_tag("circle", tip, cx=middle, cy=20, r=9, cls=f"mark {mark.name}"))
        else:
            box = {"x": middle - 3, "y": 4, "width": 6, "height": 32, "rx": 2}
            body.append(_tag("rect", tip, cls=f"mark {mark.name}", **box))
    return _svg(title, 40, body)


def _with_band(curve: Curve) -> Iterator[float]:
    for place, value in enumerate(curve.values):
        width = curve.band[place] if curve.band else 0
        yield from (value - width, value + width)


def _padded(values: Sequence[float], from_zero: bool = False, margin: float = 0.06) -> tuple[float, float]:
    """A range around the values, with some air; (0, 1) around none."""
    low, high = (min(values), max(values)) if len(values) else (0.0, 1.0)
    low = min(low, 0.0) if from_zero else low
    air = margin * (high - low) or max(abs(high), 1.0) * margin
    return (low if from_zero else low - air), high + air


def _grid(x: _Axis, y: _Axis, ticks: Sequence[float], x_label: str) -> Iterator[Markup]:
    yield from _vertical(x, ticks, TOP, HEIGHT - BOTTOM, x_label)
    for value in y.ticks():
        yield _tag("path", d=f"M{LEFT} {y(value)}H{WIDTH - RIGHT}", cls="grid")
        yield _text(f"{value:g}", LEFT - 6, y(value) + 4, anchor="end")


def _vertical(x: _Axis, ticks: Sequence[float], top: float, bottom: float, label: str) -> Iterator[Markup]:
    for value in ticks:
        yield _tag("path", d=f"M{x(value)} {top}V{bottom}", cls="grid")
        yield _text(f"{value:g}", x(value), bottom + 16, anchor="middle")
    yield _text(label, (x.start + x.end) / 2, bottom + 34, anchor="middle", cls="label")


def _band(curve: Curve, xs: Sequence[float], x: _Axis, y: _Axis) -> Markup:
    if not curve.band or len(xs) < 2:
        return Markup()
    rows = [(x(a), v, w) for a, v, w in zip(xs, curve.values, curve.band) if math.isfinite(v + w)]
    edge = [(a, y(v + w)) for a, v, w in rows] + [(a, y(v - w)) for a, v, w in reversed(rows)]
    return _tag("path", d=_path(edge) + "Z", cls=f"band {curve.name}")


def _dot(curve: Curve, left: float, top: float, place: float, value: float) -> Markup:
    tip = _tag("title", f"{curve.title} at {place:g}: {value:.4g}")
    return _tag("circle", tip, cx=left, cy=top, r=3.5, cls=f"dot {curve.name}")


def _path(points: Iterable[tuple]) -> str:
    return "M" + "L".join(f"{point[0]} {point[1]}" for point in points)


def _text(text: str, x: float, y: float, anchor: str = "start", cls: str = "tick") -> Markup:
    return _tag("text", text, x=round(x, 1), y=round(y, 1), text_anchor=anchor, cls=cls)


def _tag(tag: str, content: str = "", **attributes: object) -> Markup:
    named = {"class" if key == "cls" else key.replace("_", "-"): value for key, value in attributes.items()}
    written = "".join(f' {key}="{escape(value)}"' for key, value in named.items())
    return Markup(f"<{tag}{written}>{escape(content)}</{tag}>")


def _svg(title: str, height: float, body: Iterable[Markup]) -> Markup:
    # A label and no <title>, which browsers would show as a tip over the whole chart.
    return _tag("svg", Markup().join(body), viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=title)
