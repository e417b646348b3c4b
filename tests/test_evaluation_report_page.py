"""The report in a real browser: the slider and the loop show the very frames, the console is clean."""

import time

import numpy as np
import pytest
from chromium_helper import CHROMIUM, chromium
from evaluation_helper import FRAMES, NoiseDependent, run
from test_evaluation_charts import HOSTILE
from test_evaluation_report import LEVELS, retake

from vidpred.evaluation import write_report

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)"
)
READY = "document.querySelectorAll('.film').length === document.querySelectorAll('.film[data-ready]').length"
# Through a canvas of the test's own: the browser warns of one that is read again and again.
SHOWN = """[...document.querySelectorAll('.film:first-of-type canvas')].map(canvas => {
    const { width, height } = canvas, copy = new OffscreenCanvas(width, height);
    const context = copy.getContext('2d', { willReadFrequently: true });
    context.drawImage(canvas, 0, 0);
    return [...context.getImageData(0, 0, width, height).data];
})"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """(path, films); one of its clips has a name that tries to be a script."""
    evaluation = run(NoiseDependent(), None, trajectories=2)
    films = retake(evaluation).films(evaluation)
    films[0].scores.name = HOSTILE
    path = tmp_path_factory.mktemp("a folder with spaces, % and ä") / "report.html"
    return write_report(path, evaluation, films, LEVELS), films


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser, report):
    """The report as a reader sees it who wants no motion; the console must be clean at the end."""
    browser.complaints.clear()
    browser.requests.clear()
    browser.look(1280, calm=True)
    browser.open(report[0])
    browser.wait_for(READY)
    yield browser
    assert browser.run("document.title").startswith("Evaluation: prediction") and browser.complaints == []
    assert browser.requests and all(url.startswith(("file:", "data:")) for url in browser.requests)


def shown(page) -> list[np.ndarray]:
    """(h, w, 3) of every panel of the first film."""
    return [np.array(data, np.uint8).reshape(32, 32, 4)[..., :3] for data in page.run(SHOWN)]


def expected(film, time: int) -> list[np.ndarray]:
    """The panels before the error."""
    frames = [film.frames[film.nearest[time]], film.frames[time]]
    for prediction in film.predictions:
        whole = film.frames.copy()
        whole[~film.given] = prediction
        frames.append(whole[time])
    return [frame.transpose(1, 2, 0) for frame in frames]


def time_of(page) -> int:
    return int(page.run("document.querySelector('.film input').value"))


def test_slider_shows_the_very_frames(page, report):
    film = report[1][0]
    page.run("document.querySelector('.film input').focus()")
    before = None
    for place in range(FRAMES):
        panels = shown(page)
        for panel, wanted in zip(panels, expected(film, place)):
            assert np.array_equal(panel, wanted), place
        assert panels[-1].any() == (not film.given[place])  # the error
        now = page.run(
            "[document.querySelector('.film').dataset.now, document.querySelector('.caption').innerText]"
        )
        assert now[0] == ("given" if film.given[place] else "predicted")
        assert now[1].startswith(f"frame {place + 1} of {FRAMES}: {now[0]}")
        assert page.run("document.querySelector('.film input').getAttribute('aria-valuetext')") == now[1]
        assert before is None or not np.array_equal(before, panels[1])
        before = panels[1]
        page.press("ArrowRight")
    page.press("Home")
    assert time_of(page) == 0 and np.array_equal(shown(page)[1], expected(film, 0)[1])


def test_films_loop_and_can_be_stopped(page, report):
    assert time_of(page) == 0  # nothing moves for who wants no motion
    page.look(1280)
    page.open(report[0])
    page.wait_for(READY)
    page.run("document.querySelector('.film').scrollIntoView()")
    page.wait_for("document.querySelector('.film input').value > 2")
    page.wait_for("document.querySelector('.film input').value == 0")  # from the beginning again
    page.click(".film button")
    label = "document.querySelector('.film button').getAttribute('aria-label')"
    assert page.run(label) == "Play the best clip"
    stopped = time_of(page)
    page.run("new Promise(done => setTimeout(done, 400))")
    assert time_of(page) == stopped
    page.click(".film button")
    assert page.run(label) == "Pause the best clip"
    page.wait_for(f"document.querySelector('.film input').value != {stopped}")
    page.press("End")  # the button has the focus, the slider has not
    page.run("document.querySelector('.film input').focus()")
    page.press("End")
    assert time_of(page) == FRAMES - 1 and page.run(label) == "Play the best clip"  # who moves it, stops it


@pytest.mark.parametrize("width", [320, 390, 820, 1280])
def test_nothing_is_wider_than_the_window(page, width):
    page.look(width, calm=True)
    assert page.run("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    texts = page.run(
        "[...document.querySelectorAll('svg text')].filter(t => t.closest('details') === null)"
        ".map(t => t.getBoundingClientRect().height)"
    )
    assert len(texts) > 20 and min(texts) > 10  # as high as letters of 9 pixels are
    outside = page.run(
        "[...document.querySelectorAll('svg text')].filter(text => { const a = text.getBoundingClientRect(),"
        " b = text.closest('svg').getBoundingClientRect();"
        " return a.left < b.left - 1 || a.right > b.right + 1 }).map(text => text.textContent)"
    )
    assert outside == []


def luminance(colour: str) -> float:
    values = np.array([float(value) for value in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_text_can_be_read_by_day_and_in_the_dark(page):
    """Contrast of at least 4.5 to 1 for text, 3 to 1 for lines (WCAG 2.1)."""
    brightness = []
    for dark in (False, True):
        page.look(1280, dark=dark, calm=True)
        style = "getComputedStyle(document.querySelector({!r})).{}"
        background = luminance(page.run(style.format("main > section:last-of-type", "backgroundColor")))
        brightness.append(background)
        texts = ("h2", ".note", "dt", "td .interval")
        found = [(page.run(style.format(name, "color")), 4.5) for name in texts]
        found += [(page.run(style.format(".tick", "fill")), 4.5)]
        found += [(page.run(style.format(f".line.{row}", "stroke")), 3)
                  for row in ("model", "best", "floor0", "floor1", "floor2", "ceiling")]  # fmt: skip
        for colour, least in found:
            high, low = sorted((luminance(colour), background), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= least, (colour, dark)
    assert brightness[0] > 0.8 and brightness[1] < 0.05


def test_a_hostile_name_is_text(page):
    assert HOSTILE in page.run("[...document.querySelectorAll('.name')].map(e => e.textContent)")
    assert page.run("document.querySelectorAll('script').length") == 1


def test_the_console_would_tell(browser, tmp_path):
    """The browser complains of a page that fails or asks for something, so its silence says something."""
    remote = "<img src='https://example.org/a.png'>"
    for body in ("<script>missing()</script>", remote, "<svg><path d='M'/></svg>"):
        browser.complaints.clear()
        (tmp_path / "bad.html").write_text(f"<!doctype html><link rel=icon href='data:,'>{body}")
        browser.open(tmp_path / "bad.html")
        deadline = time.monotonic() + 20
        while not browser.complaints and time.monotonic() < deadline:
            browser.run("1")  # what the browser tells comes with the answers
        assert browser.complaints, body
    browser.complaints.clear()
