"""The report: which clips it shows and with what frames, what it says, that it is whole and safe."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from evaluation_helper import CONTEXT, FRAMES, CopyLast, NoiseDependent, Squares, make_predictor, run
from PIL import Image
from test_evaluation_charts import HOSTILE

from vidpred.diagnosis import level_errors
from vidpred.evaluation import ClipScores, Evaluation, LevelErrors, Retake, copy_nearest, write_report
from vidpred.evaluation.film_pictures import film_views
from vidpred.evaluation.films import MAX_TRAJECTORIES, chosen_clips

LEVELS = [LevelErrors(t, 0.1 + t / 2000, 0.9, 0.6, 0.5) for t in (1000, 500, 100)]


def made(psnr: list[list[float]], task: str = "prediction", **floors: float) -> Evaluation:
    """Clips whose model has these PSNR by horizon, and rows that are so many dB above it."""
    above = {"floor": -2.0, "decoded_floor": -1.0, "context_mean": -4.0, "linear": -3.0, "ceiling": 5.0}
    above |= floors
    clips = []
    for index, values in enumerate(psnr):
        model = np.array(values)
        rows = {"model": model, **{row: model + gain for row, gain in above.items()}}
        scores = {row: {"psnr": v, "ssim": v / 100} for row, v in rows.items()}
        motion = {"model": 0.1, "ceiling": 0.1, "truth": 0.2}
        clips.append(ClipScores(index, f"clip {index}", 2, len(values), (32, 32), scores, motion))
    shape = {"clips": len(clips), "context_frames": 2, "predicted_frames": 2, "height": 32, "width": 32}
    protocol = {"task": task, "dataset": "made", "step": 7, "trajectories_per_clip": 1, **shape}
    return Evaluation(protocol, clips, "switched off")


def retake(evaluation: Evaluation, denoiser=None) -> Retake:
    predictor = make_predictor(denoiser or NoiseDependent())
    return Retake(predictor, Squares(), evaluation.protocol, 2, num_workers=0)


@pytest.fixture(scope="module")
def evaluated():
    evaluation = run(NoiseDependent(), None, trajectories=2)
    return evaluation, retake(evaluation).films(evaluation)


# ---- the clips that are shown ----


def test_best_median_and_worst_by_the_mean_over_frames():
    evaluation = made([[20.0, 30.0], [24.0, 24.0], [40.0, 12.0], [10.0, 10.0], [24.5, 24.5]])
    assert {rank: clip.index for rank, clip in chosen_clips(evaluation).items()} == {
        "best": 2, "median": 4, "worst": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    "count, ranks", [(1, ["best"]), (2, ["best", "worst"]), (3, ["best", "median", "worst"])]
)
def test_of_few_clips_none_is_shown_twice(count, ranks):
    chosen = chosen_clips(made([[20.0], [25.0], [22.0]][:count]))
    assert list(chosen) == ranks and len({clip.index for clip in chosen.values()}) == count


@pytest.mark.parametrize("task, trajectories", [("prediction", 2), ("infilling", 1), ("interpolation", 1)])
def test_frames_are_those_that_were_scored(task, trajectories):
    evaluation = run(NoiseDependent(), None, task=task, trajectories=trajectories, num_panels=7)
    scored = {sample.index: sample for sample in evaluation.samples}
    films = retake(evaluation).films(evaluation)
    assert {film.rank for film in films} == {"best", "median", "worst"}
    for film in films:
        sample = scored[film.scores.index]
        assert np.array_equal(film.predictions[0], sample.prediction) and film.as_scored
        assert np.array_equal(film.psnr[0], film.scores.scores["model"]["psnr"])
        assert np.array_equal(film.given, sample.given)
        assert np.array_equal(film.frames[film.given], sample.context)
        assert len(film.predictions) == trajectories
        assert trajectories == 1 or not np.array_equal(*film.predictions[:2])
        clip = (film.frames[None], film.given[None], np.arange(FRAMES)[None])
        floor = copy_nearest(*map(torch.from_numpy, clip))
        assert np.array_equal(film.frames[film.nearest][~film.given], floor[0])


def test_a_prediction_that_is_not_repeated_is_told():
    evaluation = run(NoiseDependent(), None)
    other = retake(evaluation)
    other.seed += 1
    films = other.films(evaluation)
    assert not any(film.as_scored for film in films)


def test_not_more_trajectories_than_can_be_seen():
    evaluation = run(NoiseDependent(), None, num_clips=1)
    evaluation.protocol["trajectories_per_clip"] = 100
    (film,) = retake(evaluation).films(evaluation)
    assert len(film.predictions) == MAX_TRAJECTORIES


# ---- pictures ----


def pixels(address: str) -> np.ndarray:
    kind, _, data = address.partition(",")
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def frame(sheet: np.ndarray, time: int, columns: int, size: int = 32) -> np.ndarray:
    row, column = divmod(time, columns)
    return sheet[row * size : (row + 1) * size, column * size : (column + 1) * size]


def test_every_frame_is_in_the_pictures_as_it_is(evaluated):
    evaluation, films = evaluated
    views, images, scale = film_views(films, evaluation)
    assert scale["lossless"]
    for film, view in zip(films, views):
        context, truth, first, second, error = view["panels"]
        expected = film.frames.copy()
        expected[~film.given] = film.predictions[1]
        for panel, frames in ((context, film.frames[film.nearest]), (truth, film.frames), (second, expected)):
            sheet = pixels(images[panel["image"]])
            for time, wanted in enumerate(frames):
                shown = frame(sheet, panel["order"][time], view["columns"])
                assert np.array_equal(shown, wanted.transpose(1, 2, 0)), (panel["label"], time)
        assert first["label"] == f"trajectory 1 · {film.psnr[0].mean():.2f} dB"
        sheet = pixels(images[error["image"]])
        assert not frame(sheet, 0, view["columns"]).any()  # nothing is wrong with a given frame
        difference = np.abs(film.frames[CONTEXT].astype(int) - film.predictions[0, 0]).mean(axis=0)
        brightness = frame(sheet, CONTEXT, view["columns"]).sum(axis=-1, dtype=int)
        order = np.argsort(difference.ravel())
        assert (np.diff(brightness.ravel()[order]) >= -2).all() and brightness.max() > 100


def test_colours_of_errors_are_those_of_all_films(evaluated):
    evaluation, films = evaluated
    errors = [np.abs(f.frames[~f.given].astype(int) - f.predictions[0]).mean(axis=1) for f in films]
    limit = film_views(films, evaluation)[2]["limit"]
    assert limit == max(16, int(np.ceil(max(np.percentile(error, 99.5) for error in errors))))


def test_captions_name_each_frame(evaluated):
    evaluation, films = evaluated
    view = film_views(films, evaluation)[0][0]
    captions, scores = view["captions"], films[0].scores.scores
    assert captions.startswith(f'["frame 1 of {FRAMES}: given", "frame 2 of {FRAMES}: given", ')
    last = f"model {scores['model']['psnr'][-1]:.1f}, copy last {scores['floor']['psnr'][-1]:.1f}"
    assert f"frame {FRAMES} of {FRAMES}: predicted {FRAMES - CONTEXT}; PSNR in dB: {last}" in captions


# ---- error by noise level ----


def test_error_of_a_model_that_copies_is_that_of_the_copy():
    evaluation = run(CopyLast(), None)
    levels = level_errors(retake(evaluation, CopyLast()), evaluation, count=3)
    assert len(levels) == 10
    for level in levels:
        assert level.error == pytest.approx(level.copy) and level.copy > 0
    numbers = [clip.index for clip in evaluation.clips[:3]]
    values = torch.cat([clip.frames for clip in retake(evaluation).clips(numbers)]) / 127.5 - 1
    zero = values[:, CONTEXT:].double().square().mean().sqrt()
    assert levels[0].zero == pytest.approx(float(zero), rel=1e-4)


# ---- the page ----


class Elements(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text, self._open = [], "", []
        self.feed(page)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "input", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.text += data


def written(tmp_path, evaluation, films=(), levels=LEVELS) -> Elements:
    page = write_report(tmp_path / "report.html", evaluation, films, levels).read_text(encoding="utf-8")
    return Elements(page)


def test_page_holds_every_figure_and_asks_for_nothing(evaluated, tmp_path):
    evaluation, films = evaluated
    page = written(tmp_path, evaluation, films)
    for row, title in evaluation.titles.items():
        assert title in page.text
        assert f"{evaluation.summary(row, 'psnr').mean:.2f}" in page.text
    for name in ("sampling.sampler", "rounding", "motion_energy_ratio", "ssim.implementation"):
        assert name in page.text
    assert "LPIPS unavailable: switched off" in page.text
    assert [tag for tag, _ in page.tags].count("canvas") == 3 * 5
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"@import|url\(|https?://|fetch\(|XMLHttpRequest", text)


def test_everything_that_can_be_used_has_a_name(evaluated, tmp_path):
    page = written(tmp_path, *evaluated)
    for tag, attributes in page.tags:
        if tag in ("canvas", "input", "button") or attributes.get("role") in ("img", "region"):
            assert attributes.get("aria-label") or attributes.get("aria-labelledby"), (tag, attributes)
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and all(b - a <= 1 for a, b in zip(headings, headings[1:]))


def test_hostile_names_stay_text(evaluated, tmp_path):
    evaluation, films = evaluated
    harmless = [tag for tag, _ in written(tmp_path, evaluation, films).tags]
    names = [clip.name for clip in evaluation.clips]
    protocol = evaluation.protocol
    try:
        evaluation.protocol = {**protocol, "dataset": HOSTILE, HOSTILE: {HOSTILE: [HOSTILE]}}
        for clip in evaluation.clips:
            clip.name = HOSTILE
        page = written(tmp_path, evaluation, films)
    finally:
        evaluation.protocol = protocol
        for clip, name in zip(evaluation.clips, names):
            clip.name = name
    assert page.text.count(HOSTILE) >= 12  # the heading, the title, three films, seven clips
    extra = len(page.tags) - len(harmless)
    assert extra == 3 and page.tags.count(("script", {})) == 1  # the protocol's one line more


@pytest.mark.parametrize(
    "floors, expected",
    [
        ({}, "By PSNR better than every floor: +1.00 ± 0.00 dB over copy last, decoded, the best of them"),
        ({"floor": 2.5}, "By PSNR worse than a floor: -2.50 ± 0.00 dB over copy last;"),
        ({"floor": 0.0}, "By PSNR not told apart from its best floor: +0.00 ± 0.00 dB over copy last;"),
    ],
)
def test_verdict(floors, expected, tmp_path):
    page = written(tmp_path, made([[20.0, 22.0], [25.0, 25.0], [22.0, 23.0]], **floors))
    text = page.text.replace("\u00a0", " ")
    assert expected in text and "5.00 dB below the ceiling" in text
    assert ("By SSIM better than the model: copy last." in text) == (floors.get("floor", 0) > 0)
    assert "Too few clips for a distribution." in text


def test_clips_are_listed_the_worst_first_and_not_without_end(tmp_path):
    page = written(tmp_path, made([[20.0 + index / 100, 20.0] for index in range(250)]), levels=())
    assert "The 200 worst of 250 clips" in page.text and "Error by noise level" not in page.text
    assert "clip 0" in page.text and "clip 199" in page.text and "clip 200" not in page.text
    assert "Of 250 clips the model's PSNR is higher than the floor's on 250 (copy last)" in page.text


def test_long_lists_of_the_protocol_are_folded(tmp_path):
    evaluation = made([[20.0]])
    evaluation.protocol["hashes"] = {f"name {number}": f"{number:064x}" for number in range(300)}
    page = written(tmp_path, evaluation)
    assert "300 entries" in page.text and f"name 299: {299:064x}" in page.text


def test_what_a_result_holds_beside_its_rows_is_shown(tmp_path, monkeypatch):
    evaluation = made([[20.0]])
    fvd = {"model": 12.5, "warning": "few"}
    more = {"fvd": fvd, "left_out": [{"name": "a.mp4"}], "run": {"device": "abc"}}
    whole = {**evaluation.to_json(), **more}
    monkeypatch.setattr(Evaluation, "to_json", lambda self: whole)
    text = written(tmp_path, evaluation).text
    for figure in ("fvd.model12.5", "fvd.warningfew", "left_outname: a.mp4", "deviceabc"):
        assert figure in text


def test_of_generation_there_is_a_page_too(tmp_path):
    evaluation = run(NoiseDependent(), None, task="unconditional")
    films = retake(evaluation).films(evaluation)
    assert [film.rank for film in films] == ["sample 1", "sample 2", "sample 3"]
    page = written(tmp_path, evaluation, films)
    assert "Generated from nothing" in page.text
    assert [tag for tag, _ in page.tags].count("canvas") == 3  # no truth beside them, and no error
