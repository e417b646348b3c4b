"""The report's charts: what is drawn lies where the axes say, and every text is escaped."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from vidpred.evaluation.charts import HEIGHT, WIDTH, Curve, gauge, histogram_rows, line_chart

HOSTILE = "</script><script>alert('1')</script>\"'&<img src=x onerror=alert(2)>"


def svg(chart) -> ElementTree.Element:
    return ElementTree.fromstring(str(chart))


def numbers(path: str) -> list[float]:
    return [float(value) for value in re.findall(r"-?\d+\.?\d*", path)]


def ticks(root: ElementTree.Element, anchor: str) -> list[tuple[float, float]]:
    """(value, place) of the axis whose labels are anchored so."""
    place = {"end": "y", "middle": "x"}[anchor]
    texts = [t for t in root.iter("text") if t.get("text-anchor") == anchor and t.get("class") == "tick"]
    return [(float(t.text), float(t.get(place)) - (4 if anchor == "end" else 0)) for t in texts]


def test_points_of_a_curve_lie_where_its_axes_say():
    xs, values = [1, 2, 3, 4], [20.0, 23.0, 21.0, 26.0]
    root = svg(line_chart("title", "frame", xs, [Curve("model", "model", values, [1.0] * 4)]))
    line = next(p for p in root.iter("path") if p.get("class") == "line model")
    places = np.array(numbers(line.get("d"))).reshape(-1, 2)
    for axis, data, anchor in ((0, xs, "middle"), (1, values, "end")):
        (low, low_place), *_, (high, high_place) = ticks(root, anchor)
        expected = np.interp(data, [low, high], [low_place, high_place])
        inside = (np.array(data) >= low) & (np.array(data) <= high)
        assert inside.sum() >= 2
        np.testing.assert_allclose(places[inside, axis], expected[inside], atol=0.11)
    assert [value for value, _ in ticks(root, "middle")] == xs
    band = np.array(numbers(next(p for p in root.iter("path") if p.get("class") == "band model").get("d")))
    (low, low_place), *_, (high, high_place) = ticks(root, "end")
    height = 2 * (low_place - high_place) / (high - low)
    assert band[-1] - band[1] == pytest.approx(height, abs=0.2)  # from value + 1 to value - 1


def test_what_is_exact_or_broken_does_not_press_the_others_flat():
    curves = [Curve("model", "model", [20.0, float("nan"), 24.0]), Curve("ceiling", "ceiling", [100.0] * 3)]
    root = svg(line_chart("title", "frame", [1, 2, 3], curves, highest=60))
    assert max(value for value, _ in ticks(root, "end")) <= 25
    ceiling = next(p for p in root.iter("path") if p.get("class") == "line ceiling")
    assert max(numbers(ceiling.get("d"))[1::2]) < 0  # above the picture
    assert len([dot for dot in root.iter("circle")]) == 2 and "nan" not in ElementTree.tostring(root).decode()
    assert svg(line_chart("title", "frame", [1], [Curve("model", "model", [float("inf")])])) is not None


def test_histogram_shows_the_median_and_as_many_clips_as_there_are():
    values = np.array([10.0] * 3 + [12.0] * 2 + [18.0, 20.0])
    root = svg(histogram_rows("title", "dB", [Curve("model", "model", values)], 2))
    (low, low_place), *_, (high, high_place) = ticks(root, "middle")
    paths = {p.get("class"): numbers(p.get("d")) for p in root.iter("path") if p.get("class") != "grid"}
    expected = np.interp(12, [low, high], [low_place, high_place])
    assert paths["median model"][0] == pytest.approx(expected, abs=0.11)
    assert any("median 12.00" in text.text for text in root.iter("text"))
    base, tops = paths["bars model"][1], paths["bars model"][2::2]
    heights = base - np.array(tops)
    assert heights.sum() == pytest.approx(heights.max() * 7 / 3, abs=0.3)  # three of seven in the fullest
    clipped = svg(histogram_rows("title", "dB", [Curve("ceiling", "ceiling", [30.0, 100.0])], 2, highest=60))
    assert max(value for value, _ in ticks(clipped, "middle")) <= 65


def test_gauge_can_run_from_high_to_low():
    marks = [Curve("model", "", [0.2], [0.05]), Curve("ceiling", "", [0.1]), Curve("floor0", "", [9.0])]
    root = svg(gauge("LPIPS", marks, 0.3, 0.1))
    disc = float(root.find("circle").get("cx"))
    ceiling, beyond = (float(rect.get("x")) + 3 for rect in reversed(root.findall("rect")))
    assert disc == pytest.approx(WIDTH / 2) and ceiling == WIDTH - 12 and beyond == 12


def test_charts_escape_their_text():
    for chart in (
        line_chart(HOSTILE, HOSTILE, [1, 2], [Curve("model", HOSTILE, [1.0, 2.0])]),
        histogram_rows(HOSTILE, HOSTILE, [Curve("model", HOSTILE, [1.0, 2.0])], 2),
        gauge(HOSTILE, [Curve("model", HOSTILE, [1.0])], 0.0, 2.0),
    ):
        root = svg(chart)  # well-formed
        assert not {"script", "img"} & {element.tag for element in root.iter()}
        assert root.get("aria-label") == HOSTILE and float(root.get("viewBox").split()[3]) <= HEIGHT
