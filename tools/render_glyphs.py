"""Renders digits, letters and signs in the fonts of this machine into an image folder with captions.

    python tools/render_glyphs.py data/glyphs                       what configs/text_to_glyph.yaml trains on
    python tools/render_glyphs.py data/glyphs --fonts my_fonts/ one.ttf --held-out "Liberation Serif"
    python tools/render_glyphs.py data/greek --glyphs "αβγδεζηθ"    other characters, by their Unicode names

The folder holds train/ and val/ (the held-out fonts), pictures of black ink on white, and metadata.jsonl: file_name,
text (the glyph's name), score (quality in [0, 1]), font, glyph. Some training pictures are spoilt on purpose, cut or
faint, and their score says so: there is something to filter. Everything is a function of the fonts and the seed.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Iterator

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # works where vidpred is cloned but not installed

import numpy as np  # noqa: E402
from glyph_fonts import GLYPHS, INSTALL, Font, Rendering, draw, find_fonts, glyph_name, lacking, quality  # noqa: E402
from PIL import Image  # noqa: E402

from vidpred.errors import UserError, door, require  # noqa: E402
from vidpred.files import written_aside  # noqa: E402
from vidpred.random_streams import host_generator  # noqa: E402

USUAL_HELD_OUT = "Liberation"
ZOOM, SHIFT = 0.06, 0.03  # how far sizes, and places as shares of the frame, vary


@door
def main() -> int:
    options = _options()
    require(not _is_full(options.folder), f"{options.folder}: is not empty; give a new folder, or remove it first")
    glyphs = list(dict.fromkeys(options.glyphs))
    names = {glyph: glyph_name(glyph) for glyph in glyphs}
    fonts = usable_fonts(options.fonts, glyphs, options.slanted)
    held_out = held_out_families(fonts, options.held_out)
    rows = []
    for split in ("train", "val"):
        chosen = [font for font in fonts if (font.family in held_out) == (split == "val")]
        rows += render_split(options, split, chosen, names)
        print(f"{split}: {len(glyphs)} glyphs in {len(chosen)} fonts: {', '.join(font.name for font in chosen)}")
    with written_aside(options.folder / "metadata.jsonl") as aside:
        aside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} pictures of {options.size}x{options.size} pixels in {options.folder}")
    return 0


def usable_fonts(places: list[Path] | None, glyphs: list[str], slanted: bool) -> list[Font]:
    """The upright fonts (all, where `slanted`) that have all glyphs; others that lack some are named. Raises UserError
    where fewer than two families remain."""
    fonts, problems = find_fonts(places)
    for problem in problems:
        print(f"skipped {problem}")
    usable = []
    for font in fonts:
        if font.slanted and not slanted:
            continue
        missing = lacking(font, glyphs)
        if missing:
            more = "" if len(missing) <= 5 else f" and {len(missing) - 5} more"
            print(f"skipped {font.name}: it lacks {' '.join(missing[:5])}{more}")
        else:
            usable.append(font)
    families = {font.family for font in usable}
    require(
        len(families) >= 2,
        f"--fonts: {len(families)} font families have all glyphs, and 2 are needed, one to train on and one to hold "
        f"out; install some ({INSTALL}), or give --fonts FILES_OR_FOLDERS",
    )
    return usable


def held_out_families(fonts: list[Font], asked: list[str] | None) -> set[str]:
    """The families that are not trained on: those asked for, else all whose names begin with the usual word, else,
    where these are none or all, the last by name."""
    families = sorted({font.family for font in fonts})
    if asked is None:
        usual = {family for family in families if family.startswith(USUAL_HELD_OUT)}
        return usual if 0 < len(usual) < len(families) else {families[-1]}
    unknown = sorted(set(asked) - set(families))
    if unknown:
        raise UserError(f"--held-out: there is no usable font family '{unknown[0]}'; there are {', '.join(families)}")
    require(set(asked) != set(families), "--held-out: no font is left to train on; hold out fewer")
    return set(asked)


def render_split(
    options: argparse.Namespace, split: str, fonts: list[Font], names: dict[str, str]
) -> Iterator[dict[str, object]]:
    """Saves the pictures of one split; yields their rows of metadata.jsonl."""
    number = 0
    for font in fonts:
        folder = f"{split}/{_file_name(font.name)}"
        (options.folder / folder).mkdir(parents=True, exist_ok=True)
        for glyph, name in names.items():
            for variant in range(options.variants if split == "train" else 1):
                spoilt = options.spoilt if split == "train" else 0.0
                generator = host_generator(options.seed, f"{split} rendering", number)
                ink, inside = draw(font, glyph, random_rendering(options.size, variant, spoilt, generator))
                file = f"{folder}/{_file_name(name)}_{variant}.png"
                Image.fromarray(np.rint(255 * (1 - ink)).astype(np.uint8)).save(options.folder / file)
                score = round(quality(ink, inside), 4)
                yield {"file_name": file, "text": name, "score": score, "font": font.name, "glyph": glyph}
                number += 1


def random_rendering(size: int, variant: int, spoilt: float, generator: np.random.Generator) -> Rendering:
    """Variant 0 is exact, others vary a little in size and place; the share `spoilt` of all is faint or cut."""
    zoom, down, right = generator.uniform(-1, 1, 3) if variant else np.zeros(3)
    rendering = Rendering(size, 1 + ZOOM * zoom, (SHIFT * size * down, SHIFT * size * right))
    if generator.random() >= spoilt:
        return rendering
    if generator.random() < 0.5:
        return Rendering(size, rendering.zoom, rendering.shift, strength=generator.uniform(0.05, 0.3))
    away = size * generator.uniform(0.4, 0.6) * generator.choice((-1, 1))  # over the edge
    return rendering.moved(away, 0) if generator.random() < 0.5 else rendering.moved(0, away)


def _file_name(words: str) -> str:
    return re.sub(r"[^\w-]+", "_", words)


def _is_full(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="receives the pictures; must be empty")
    parser.add_argument("--size", type=int, default=32, help="pixels of a side (default: 32)")
    parser.add_argument("--glyphs", default="".join(GLYPHS), help="the characters (default: 44 digits, letters, signs)")
    parser.add_argument("--fonts", type=Path, nargs="+", help="font files or folders (default: those of this machine)")
    parser.add_argument("--held-out", nargs="+", metavar="FAMILY", help=f"for val (default: all of {USUAL_HELD_OUT})")
    parser.add_argument("--slanted", action="store_true", help="italic and oblique fonts too")
    parser.add_argument("--variants", type=int, default=6, help="training pictures of each glyph and font (default: 6)")
    parser.add_argument("--spoilt", type=float, default=0.1, help="share of training pictures to spoil (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    require(options.size >= 8, f"--size: {options.size} pixels show no glyph; give 8 or more")
    require(options.variants >= 1, f"--variants: {options.variants} is not possible; give 1 or more")
    require(0 <= options.spoilt < 1, f"--spoilt: {options.spoilt} is not possible; give 0 to below 1")
    require(len(options.glyphs) >= 1, "--glyphs: is empty; give characters")
    return options


if __name__ == "__main__":
    main()
