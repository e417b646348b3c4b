"""Glyphs rendered in fonts, into an image folder; with the fonts that matplotlib brings, so on any machine."""

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

TOOLS = Path(__file__).resolve().parents[1] / "tools"
sys.path.insert(0, str(TOOLS))

from glyph_fonts import (  # noqa: E402
    CAP_HEIGHT,
    GLYPHS,
    Font,
    Rendering,
    draw,
    find_fonts,
    glyph_name,
    lacking,
    quality,
)
from render_glyphs import held_out_families, random_rendering  # noqa: E402

from vidpred.errors import UserError  # noqa: E402
from vidpred.random_streams import host_generator  # noqa: E402

FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SANS, SERIF, MATHS = (FOLDER / f"{name}.ttf" for name in ("DejaVuSans", "DejaVuSerif", "STIXSizOneSymReg"))


@pytest.fixture(scope="module")
def sans():
    return find_fonts([SANS])[0][0]


# One glyph in one font ------------------------------------------------------------------------------------


def test_a_capital_h_stands_where_it_is_asked_to(sans):
    ink, inside = draw(sans, "H", Rendering(50))
    rows, columns = (np.flatnonzero(ink.max(axis=axis) > 0.5) for axis in (1, 0))
    assert inside == 1 and ink.max() == 1 and ink.dtype == np.float32
    assert len(rows) == round(CAP_HEIGHT * 50) and rows[0] == 50 - 1 - rows[-1]  # 28 of 50, 11 above, 11 below
    assert abs(columns[0] - (50 - 1 - columns[-1])) <= 1
    larger = draw(sans, "H", Rendering(50, zoom=1.25))[0]
    assert larger.max(axis=1).sum() == pytest.approx(35, abs=0.3)


def test_moved_by_whole_pixels_it_is_the_same_picture_and_ink_outside_is_counted(sans):
    still = draw(sans, "R", Rendering(40))[0]
    moved, inside = draw(sans, "R", Rendering(40).moved(3, -2))
    assert inside == 1 and np.array_equal(moved, np.roll(still, (3, -2), axis=(0, 1)))
    cut, inside = draw(sans, "R", Rendering(40).moved(0, 20))
    assert np.array_equal(cut[:, 20:], still[:, :20]) and not cut[:, :10].any()
    assert inside == pytest.approx(still[:, :20].sum() / still.sum()) and 0.2 < inside < 0.8
    faint = draw(sans, "R", Rendering(40, strength=0.25))[0]
    assert np.array_equal(faint, still / 4)
    assert quality(still, 1.0) == 1 and quality(faint, 1.0) == 0.25 and quality(cut, 0.5) == 0.5 * cut.max()


def test_variant_0_is_exact_and_the_share_that_is_asked_for_is_spoilt():
    def renderings(variant, spoilt):
        return [random_rendering(32, variant, spoilt, host_generator(0, "x", n)) for n in range(400)]

    assert set(renderings(0, 0.0)) == {Rendering(32)}
    varied = renderings(1, 0.0)
    assert all(0.94 <= r.zoom <= 1.06 and max(map(abs, r.shift)) <= 0.96 and r.strength == 1 for r in varied)
    assert len(set(varied)) == 400
    spoilt = renderings(0, 0.25)
    faint = sum(r.strength <= 0.3 for r in spoilt)
    cut = sum(max(map(abs, r.shift)) >= 0.4 * 32 for r in spoilt)
    assert 30 < faint < 70 and 30 < cut < 70 and faint + cut == sum(r != Rendering(32) for r in spoilt)


def test_names():
    assert len(GLYPHS) >= 40 and len(set(GLYPHS.values())) == len(GLYPHS)
    assert [glyph_name(glyph) for glyph in "7B?a中"] == [
        "digit seven", "letter b", "question mark", "latin small letter a", "cjk unified ideograph-4e2d"
    ]  # fmt: skip
    for nothing in (" ", "\x07"):
        with pytest.raises(UserError, match="--glyphs: .*no character that can be drawn"):
            glyph_name(nothing)


def test_what_a_font_lacks(sans):
    assert lacking(sans, "A1?中") == ["中"] and lacking(sans, " ") == [" "]  # a space is there, and draws nothing


# The folder -----------------------------------------------------------------------------------------------


def render(run_file, folder, *more):
    return run_file(TOOLS / "render_glyphs.py", folder, "--size", "16", "--glyphs", "A7?", *more)


def test_the_folder_holds_what_its_captions_say(tmp_path, run_file, sans):
    arguments = ("--fonts", SANS, SERIF, MATHS, "--variants", "20", "--spoilt", "0.3")
    code, lines, _ = render(run_file, tmp_path / "a", *arguments)
    assert code == 0
    assert any(line.startswith("skipped STIX") and "it lacks A 7 ?" in line for line in lines)
    rows = [json.loads(line) for line in (tmp_path / "a" / "metadata.jsonl").read_text().splitlines()]
    files = sorted(str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*.png"))
    assert sorted(row["file_name"] for row in rows) == files and len(files) == 3 * 20 + 3
    # Without Liberation the last family by name is held out.
    assert {row["font"] for row in rows if row["file_name"].startswith("val/")} == {"DejaVu Serif Book"}
    assert {row["font"] for row in rows if row["file_name"].startswith("train/")} == {"DejaVu Sans Book"}
    assert {(row["glyph"], row["text"]) for row in rows} == {(g, GLYPHS[g]) for g in "A7?"}
    good = [row for row in rows if row["score"] > 0.9]
    assert 0.5 < len(good) / len(rows) < 0.85
    pictures = {row["file_name"]: np.asarray(Image.open(tmp_path / "a" / row["file_name"])) for row in rows}
    first = [row for row in good if row["file_name"].endswith("_0.png") and row["font"] == sans.name]
    assert first
    for row in first:
        ink, inside = draw(sans, row["glyph"], Rendering(16))
        assert np.array_equal(pictures[row["file_name"]], np.rint(255 * (1 - ink)))
        assert row["score"] == round(quality(ink, inside), 4)
    for row in rows:  # the score follows from the picture: a faint one has no dark pixel
        assert row["score"] <= 1.005 * (1 - pictures[row["file_name"]].min() / 255) + 0.002
    render(run_file, tmp_path / "b", *arguments)
    assert (tmp_path / "b" / "metadata.jsonl").read_text() == (tmp_path / "a" / "metadata.jsonl").read_text()
    render(run_file, tmp_path / "c", *arguments, "--seed", "1")
    assert (tmp_path / "c" / "metadata.jsonl").read_text() != (tmp_path / "a" / "metadata.jsonl").read_text()


@pytest.mark.parametrize("families, held_out", [
    (["Liberation Mono", "Liberation Sans", "Liberation Serif"], {"Liberation Serif"}),  # one is left to train on
    (["DejaVu Sans", "Liberation Mono", "Liberation Sans"], {"Liberation Mono", "Liberation Sans"}),
    (["DejaVu Sans", "DejaVu Serif"], {"DejaVu Serif"}),
])  # fmt: skip
def test_what_is_held_out_leaves_fonts_to_train_on(families, held_out):
    fonts = [Font(Path(f"{family}.ttf"), family, style) for family in families for style in ("Regular", "Bold")]
    assert held_out_families(fonts, None) == held_out


def test_slanted_fonts_and_other_files_of_a_font_folder(tmp_path, run_file):
    (tmp_path / "fonts").mkdir()
    for name in ("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSansMono"):
        (tmp_path / "fonts" / f"{name}.ttf").symlink_to(FOLDER / f"{name}.ttf")
    (tmp_path / "fonts" / "again.ttf").symlink_to(SANS)
    (tmp_path / "fonts" / "broken.ttf").write_text("no font")
    arguments = ("--fonts", tmp_path / "fonts", "--held-out", "DejaVu Sans Mono", "--variants", "1")
    _, lines, _ = render(run_file, tmp_path / "a", *arguments)
    assert any(line.startswith(f"skipped {tmp_path / 'fonts' / 'broken.ttf'}") for line in lines)
    assert "train: 3 glyphs in 2 fonts: DejaVu Sans Book, DejaVu Serif Book" in lines
    assert "val: 3 glyphs in 1 fonts: DejaVu Sans Mono Book" in lines
    _, lines, _ = render(run_file, tmp_path / "b", *arguments, "--slanted")
    assert "train: 3 glyphs in 3 fonts: DejaVu Sans Book, DejaVu Sans Oblique, DejaVu Serif Book" in lines


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--fonts", SANS], "--fonts: 1 font families have all glyphs, and 2 are needed.*apt install"),
        (["--fonts", "nowhere.ttf"], "--fonts: nowhere.ttf is neither a font file nor a folder"),
        (["--fonts", SANS, SERIF, "--held-out", "Arial"], "--held-out: .*'Arial'; there are DejaVu Sans, DejaVu Serif"),
        (["--fonts", SANS, SERIF, "--held-out", "DejaVu Sans", "DejaVu Serif"], "--held-out: no font is left"),
        (["--size", "4"], "--size: 4"),
        (["--variants", "0"], "--variants: 0"),
        (["--spoilt", "1"], "--spoilt: 1"),
        (["--glyphs", ""], "--glyphs: is empty"),
    ],
)
def test_bad_input_is_one_line(tmp_path, run_file, arguments, line):
    code, _, errors = render(run_file, tmp_path / "a", *arguments)
    assert code == 2 and len(errors) == 1
    with pytest.raises(UserError, match=line):
        raise UserError(errors[0])


def test_a_folder_that_holds_something_is_left_alone(tmp_path, run_file):
    (tmp_path / "mine.txt").write_text("mine")
    code, _, errors = render(run_file, tmp_path, "--fonts", SANS, SERIF)
    assert code == 2 and "is not empty" in errors[0] and (tmp_path / "mine.txt").read_text() == "mine"
