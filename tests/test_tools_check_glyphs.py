"""Which glyph a picture shows, and the tool that asks a model for all of them."""

import json
import shutil
import sys
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image

from vidpred import range_checks
from vidpred.assembly import train
from vidpred.configuration import load_config

TOOLS = Path(__file__).resolve().parents[1] / "tools"
sys.path.insert(0, str(TOOLS))

from check_glyphs import References, Verdicts, nearest, table  # noqa: E402
from glyph_fonts import Rendering, draw, find_fonts  # noqa: E402

FONTS = [Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf" for name in ("DejaVuSans", "DejaVuSerif")]
SMALL = ["--data.height=16", "--data.width=16", "--data.num_workers=0", "--data.min_score=0.5", "--condition.width=8",
         "--condition.text.layers=1", "--network.channels=[8,16]", "--network.head_dim=8",
         "--sampling.num_inference_steps=4",
         "--training.num_steps=2", "--training.double_resolution_at=[1]", "--training.batch_size=4",
         "--training.warmup_steps=1", "--training.validation_clips=1", "--training.visualize_clips=1",
         "--evaluation.num_clips=1", "--evaluation.lpips_net=none", "--device=cpu"]  # fmt: skip


def test_a_glyph_is_its_own_nearest_and_one_pixel_aside_too():
    font = find_fonts(FONTS[:1])[0][0]
    glyphs = list("A7?BX")
    ink = torch.stack([torch.from_numpy(draw(font, glyph, Rendering(16))[0]) for glyph in glyphs])
    references = References(ink, glyphs)
    assert nearest(ink, references, most=0) == glyphs
    for down, right in ((1, 0), (0, -1), (-1, 1)):
        moved = torch.roll(ink, (down, right), (1, 2))
        assert nearest(moved, references) == glyphs
    # Distances by brute force, over all moves.
    noisy = (ink + 0.5 * torch.rand(ink.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    padded = torch.nn.functional.pad(noisy, (1, 1, 1, 1))
    expected = []
    for picture in padded:
        moves = torch.stack([picture[y : y + 16, x : x + 16] for y in range(3) for x in range(3)])
        distances = (moves[:, None] - ink[None]).square().sum(dim=(2, 3))
        expected.append(glyphs[int(distances.amin(dim=0).argmin())])
    assert nearest(noisy, references) == expected


def test_half_of_the_check_is_on_other_fonts():
    verdicts = Verdicts(7.5, list("ABCD"), {"train": list("ABCD"), "val": list("ABDD")})
    assert verdicts.share("train") == 1 and verdicts.share("val") == 0.75 and verdicts.both == 0.875
    lines = table([verdicts]).splitlines()
    assert lines[1].split() == ["7.5", "100.0%", "75.0%", "87.5%"] and "C as D (1)" in lines[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(its data, its run folder): the recipe, made small, after two steps on three glyphs in two fonts."""
    folder = tmp_path_factory.mktemp("glyphs")
    import render_glyphs

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        more = ["--size", "16", "--glyphs", "A7?", "--variants", "2", "--fonts", *map(str, FONTS)]
        patch.setattr(sys, "argv", ["render_glyphs.py", str(folder / "data"), *more])
        render_glyphs.main()
    arguments = ["--config", str(TOOLS.parent / "configs" / "text_to_glyph.yaml"), "--runs_dir", str(folder), *SMALL]
    range_checks.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDPRED_CACHE", str(folder / "cache"))
        train(load_config([*arguments, "--data.root", str(folder / "data")]))
    range_checks.reset()
    return folder / "data", folder / "text_to_glyph"


def check(run_file, model, out, *more):
    return run_file(TOOLS / "check_glyphs.py", "--checkpoint", model[1], "--out", out, "--samples", "2", *more)


def test_the_tool_asks_for_every_glyph_at_every_scale(model, tmp_path, run_file):
    code, lines, _ = check(run_file, model, tmp_path / "a", "--guidance", "1", "3", "--batch", "4")
    assert lines[-1].startswith(("verdict: missed: ", "verdict: met: ")) and code == ("missed" in lines[-1])
    assert any(line.startswith("3 glyphs, 2 pictures of each") for line in lines)
    figures = json.loads((tmp_path / "a" / "figures.json").read_text())
    assert [row["guidance"] for row in figures] == [1, 3]
    names = ["letter a", "digit seven", "question mark"]
    for row in figures:
        assert row["asked"] == names * 2 and set(row["shown"]) == {"train", "val"}
        assert {name for shown in row["shown"].values() for name in shown} <= set(names)
        for split in ("train", "val"):
            right = sum(a == b for a, b in zip(row["asked"], row["shown"][split])) / 6
            assert row["right"][split] == pytest.approx(right)
    for scale in (1, 3):
        assert Image.open(tmp_path / "a" / f"guidance_{scale}.png").width > 3 * 16
    check(run_file, model, tmp_path / "b", "--guidance", "3", "--batch", "6")
    again = json.loads((tmp_path / "b" / "figures.json").read_text())
    assert again[0] == figures[1]  # whatever the batch and the scales before it


def list_alone(data, line):
    (data / "metadata.jsonl").write_text(line)


@pytest.mark.parametrize(
    "damage, line",
    [
        (lambda data: (data / "metadata.jsonl").unlink(), "metadata.jsonl: cannot be read"),
        (lambda data: list_alone(data, '{"file_name": "train/a.png", "text": "a", "score": 1}'), "no pictures in val/"),
        (lambda data: list_alone(data, '{"file_name": "train/a.png", "score": 1}'), "a line has no text"),
        (
            lambda data: list_alone(data, '{"file_name": "train/a.png", "text": "a", "score": "high"}'),
            "train/a.png has no number 'score'",
        ),
        (lambda data: [path.write_bytes(b"x") for path in data.rglob("*.png")], "render the folder again"),
    ],
)
def test_bad_data_is_one_line(model, tmp_path, run_file, damage, line):
    shutil.copytree(model[0], tmp_path / "data")
    damage(tmp_path / "data")
    if line.startswith("no pictures"):
        first = next((model[0] / "train").rglob("*.png"))
        shutil.copy(first, tmp_path / "data" / "train" / "a.png")
    code, _, errors = check(run_file, model, tmp_path / "out", "--data", tmp_path / "data")
    assert code == 2 and any(line in error for error in errors)
    code, _, errors = check(run_file, model, tmp_path / "out", "--samples", "0")
    assert code == 2 and "--samples, --batch" in errors[0]
