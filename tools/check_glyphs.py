"""Asks a text-to-glyph model for every glyph, and says how many of the pictures show it.

    python tools/check_glyphs.py                                   the newest run under runs/
    python tools/check_glyphs.py --checkpoint runs/text_to_glyph --guidance 1 3 7.5 --samples 4

A picture shows the glyph whose rendering is nearest to it in pixels, among all glyphs of the model's data: once in the
fonts that were trained on, once in those that were held out (data.root/val), which is half of the check. A picture may
be moved by one pixel to each side for that. Table and confusions are printed; figures and one sheet of pictures for
each guidance scale are saved beside the run. Exit code: 0 where at the best of the scales 90 % show the glyph that was
asked for, over both sets of fonts; 1 else; 2 when it could not be tried.
"""

import argparse
import dataclasses
import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # works where vidpred is cloned but not installed

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

from vidpred.assembly import open_subject  # noqa: E402
from vidpred.data.clips import ClipError  # noqa: E402
from vidpred.data.item_conditions import METADATA, read_metadata  # noqa: E402
from vidpred.data.picture_files import read_picture  # noqa: E402
from vidpred.diagnosis import Subject  # noqa: E402
from vidpred.errors import UserError, door, require  # noqa: E402
from vidpred.files import write_json  # noqa: E402
from vidpred.video_io import save_grid  # noqa: E402

FONTS = {"train": "fonts trained on", "val": "held-out fonts"}
SHOWN_CONFUSIONS = 8
TARGET = 0.9


@dataclass(frozen=True)
class References:
    """Renderings that pictures are compared with. ink: (N, H, W) in [0, 1]. glyphs: N names."""

    ink: Tensor
    glyphs: list[str]


@dataclass(frozen=True)
class Verdicts:
    """Of the pictures at one guidance scale, by split of the references: what is shown, beside what was asked for."""

    guidance: float
    asked: list[str]
    shown: dict[str, list[str]]

    def share(self, split: str) -> float:
        return float(np.mean([one == other for one, other in zip(self.asked, self.shown[split])]))

    @property
    def both(self) -> float:
        return float(np.mean([self.share(split) for split in FONTS]))


@door
def main() -> int:
    options = _options()
    subject = open_subject(options.checkpoint, REPOSITORY / "configs" / "quickstart.yaml", options.device)
    print(f"model: {subject.title}", flush=True)
    root = options.data or Path(str(getattr(subject.data, "root", None) or "data"))
    references, prompts = read_references(root, subject)
    counts = {split: len(found.glyphs) for split, found in references.items()}
    print(f"{len(prompts)} glyphs, {options.samples} pictures of each; renderings in {root}: {counts}", flush=True)
    folder = options.out or subject.folder / "glyphs" / subject.name
    results = []
    for guidance in options.guidance:
        pictures, asked = draw_pictures(subject, prompts, guidance, options)
        ink = 1 - pictures.float().mean(dim=1) / 255
        shown = {split: nearest(ink, found) for split, found in references.items()}
        results.append(Verdicts(guidance, asked, shown))
        save_grid(folder / f"guidance_{guidance:g}.png", pictures[: len(prompts)])
    print(table(results))
    print(f"pictures: {folder}/guidance_*.png, one of each glyph in the order of {METADATA}")
    write_json(folder / "figures.json", figures(results))
    best = max(results, key=lambda one: one.both)
    met = best.both >= TARGET
    said = f"{best.both:.1%} at guidance {best.guidance:g}, the best of {len(results)}"
    print(f"verdict: {'met' if met else 'missed'}: {said}; the target is {TARGET:.0%}")
    return 0 if met else 1


def read_references(root: Path, subject: Subject) -> tuple[dict[str, References], dict[str, str]]:
    """The good renderings by split, and glyph name -> prompt: its first template, as evaluation uses it."""
    height, width = subject.data.height, subject.data.width
    template = (getattr(subject.data, "prompt_templates", None) or ("{}",))[0]
    rows = {file: row for file, row in read_metadata(root).items() if _is_good(root, file, row, subject)}
    if not all(isinstance(row.get("text"), str) for row in rows.values()):
        raise UserError(f"{root / METADATA}: a line has no text; render the folder with tools/render_glyphs.py")
    found = {}
    for split in FONTS:
        files = [file for file in rows if file.startswith(f"{split}/")]
        require(bool(files), f"{root}: has no pictures in {split}/; render it with tools/render_glyphs.py")
        ink = [_read_ink(root / file, height, width) for file in tqdm(files, desc=FONTS[split], leave=False)]
        found[split] = References(torch.stack(ink), [rows[file]["text"] for file in files])
    names = dict.fromkeys(found["train"].glyphs)
    return found, {name: template.replace("{}", name) for name in names}


def _is_good(root: Path, file: str, row: dict[str, Any], subject: Subject) -> bool:
    """Whether training would use the rendering: by its score, where the model's data are filtered by one."""
    least = getattr(subject.data, "min_score", None)
    if least is None:
        return True
    column = subject.data.score_column
    score = row.get(column)
    number = isinstance(score, (int, float)) and not isinstance(score, bool) and math.isfinite(score)
    require(number, f"{root / METADATA}: {file} has no number '{column}'; render it with tools/render_glyphs.py")
    return score >= least


def _read_ink(path: Path, height: int, width: int) -> Tensor:
    try:
        picture = read_picture(path)
    except ClipError as error:
        raise UserError(f"{path}: {error}; render the folder again") from error
    size = picture.shape[:2]
    require(size == (height, width), f"{path}: is {size[1]}x{size[0]}, and the model's pictures {width}x{height}")
    return 1 - torch.from_numpy(picture).float().mean(dim=2) / 255


def draw_pictures(
    subject: Subject, prompts: dict[str, str], guidance: float, options: argparse.Namespace
) -> tuple[Tensor, list[str]]:
    """uint8 (N, 3, H, W) in batches, and the glyphs asked for: all of them once, then all again; equal draws, so equal
    noise, at every guidance scale."""
    predictor = subject.predictor
    steps = options.steps or predictor.sampling.num_inference_steps
    predictor.sampling = dataclasses.replace(predictor.guided(guidance), num_inference_steps=steps)
    asked = list(prompts) * options.samples
    pictures = []
    with tqdm(total=len(asked), desc=f"guidance {guidance:g}", unit="picture", leave=False) as bar:
        for start in range(0, len(asked), options.batch):
            names = asked[start : start + options.batch]
            condition = predictor.prompts([prompts[name] for name in names])
            draws = torch.arange(start, start + len(names))
            height, width = subject.data.height, subject.data.width
            pictures.append(predictor.generate(height, width, draws, options.seed, condition=condition)[:, 0])
            bar.update(len(names))
    return torch.cat(pictures), asked


def nearest(ink: Tensor, references: References, most: int = 1) -> list[str]:
    """The glyph of the nearest rendering of each picture, in squared difference, moved by up to `most` pixels.

    ink: (N, H, W) in [0, 1]. What is moved in from outside is paper.
    """
    flat = references.ink.flatten(1)  # (M, H W)
    height, width = ink.shape[1:]
    padded = torch.nn.functional.pad(ink, (most,) * 4)
    best = torch.full((len(ink),), torch.inf)
    found = torch.zeros(len(ink), dtype=torch.int64)
    for top in range(2 * most + 1):
        for left in range(2 * most + 1):
            moved = padded[:, top : top + height, left : left + width].flatten(1)
            distance, index = (flat.square().sum(1) - 2 * moved @ flat.T).min(dim=1)
            distance = distance + moved.square().sum(1)
            found = torch.where(distance < best, index, found)
            best = torch.minimum(distance, best)
    return [references.glyphs[index] for index in found.tolist()]


def table(results: list[Verdicts]) -> str:
    lines = [f"guidance  {'  '.join(FONTS.values())}     both"]
    for one in results:
        shares = "  ".join(f"{one.share(split):>{len(name)}.1%}" for split, name in FONTS.items())
        lines.append(f"{one.guidance:>8g}  {shares}  {one.both:>7.1%}")
    last = results[-1]
    confused = Counter(
        (asked, shown)
        for split in FONTS
        for asked, shown in zip(last.asked, last.shown[split])
        if asked != shown
    )
    if confused:
        most = "; ".join(f"{a} as {b} ({n})" for (a, b), n in confused.most_common(SHOWN_CONFUSIONS))
        lines.append(f"taken at guidance {last.guidance:g}: {most}")
    return "\n".join(lines)


def figures(results: list[Verdicts]) -> list[dict[str, object]]:
    """For the file: the shares, and every picture's verdict."""
    return [
        {
            "guidance": one.guidance,
            "right": {"both": one.both, **{split: one.share(split) for split in FONTS}},
            "asked": one.asked,
            "shown": one.shown,
        }
        for one in results
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint or a run folder (default: the newest run)")
    parser.add_argument("--data", type=Path, help="folder of tools/render_glyphs.py (default: the model's data.root)")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0, 7.5], help="scales (default: 1 3 7.5)")
    parser.add_argument("--samples", type=int, default=4, help="pictures of each glyph (default: 4)")
    parser.add_argument("--steps", type=int, help="inference steps (default: the model's)")
    parser.add_argument("--batch", type=int, default=44, help="pictures drawn at once (default: 44)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of the pictures (default: in the run's folder)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options = parser.parse_args()
    require(min(options.samples, options.batch) >= 1, "--samples, --batch: give 1 or more")
    return options


if __name__ == "__main__":
    main()
