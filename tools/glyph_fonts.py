"""Glyphs, their names, the fonts of this machine, and one drawn in the other.

A rendering is ink (H, W) in [0, 1]: 0 paper, 1 full ink. Every font is scaled so that its capital H is CAP_HEIGHT of
the frame high and stands on the same line; the ink is centred sideways. It is drawn enlarged and averaged down, so
that sizes and places between pixels exist and no font's own pixel hints show.
"""

import dataclasses
import functools
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vidpred.errors import UserError

CAP_HEIGHT = 0.56  # of the frame: then the widest letters of bold fonts still fit
ENLARGED = 4
DRAWN_SIZE = 100  # pixels, to measure a font
FONT_FILES = (".ttf", ".otf", ".ttc")
INSTALL = "apt install fonts-dejavu fonts-liberation fonts-freefont-ttf"

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SIGNS = {
    "+": "plus sign",
    "#": "hash sign",
    "%": "percent sign",
    "&": "ampersand",
    "@": "at sign",
    "?": "question mark",
    "!": "exclamation mark",
    "$": "dollar sign",
    "£": "pound sign",
    "€": "euro sign",
    "*": "asterisk",
    "/": "slash",
}
GLYPHS: dict[str, str] = {
    **{str(digit): f"digit {word}" for digit, word in enumerate(_DIGITS)},
    **{letter: f"letter {letter.lower()}" for letter in "ABCDEFGHKLMNPRSTUVWXYZ"},
    **_SIGNS,
}
"""Character -> its name in a caption. 44 of them: digits, signs, and capitals but for I, J, O and Q, which between
fonts are not told apart from 1 and 0: another font's true 1 is often nearest to an I."""


def glyph_name(glyph: str) -> str:
    """Of GLYPHS, else Unicode's own in small letters ("latin small letter a")."""
    if glyph in GLYPHS:
        return GLYPHS[glyph]
    name = unicodedata.name(glyph, "")
    if not name or glyph.isspace():
        raise UserError(f"--glyphs: {glyph!r} is no character that can be drawn; leave it out")
    return name.lower()


@dataclass(frozen=True)
class Font:
    """A font file. family and style as the file says ("DejaVu Sans", "Bold")."""

    path: Path
    family: str
    style: str

    @property
    def name(self) -> str:
        return f"{self.family} {self.style}"

    @property
    def slanted(self) -> bool:
        return "italic" in self.style.lower() or "oblique" in self.style.lower()

    def at(self, size: float) -> ImageFont.FreeTypeFont:
        return _opened(self.path, size)


@functools.lru_cache(maxsize=4)  # one font after the other is drawn with, mostly at one size
def _opened(path: Path, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


def find_fonts(places: Optional[Sequence[Path]] = None) -> tuple[list[Font], list[str]]:
    """(fonts in the order of their names, why others cannot be used) of files and folders, or of this machine.

    A font that is there twice (two files of one name) is taken once. Raises UserError where a place is not there.
    """
    fonts: dict[str, Font] = {}
    problems = []
    for path in _font_files(places):
        try:
            family, style = ImageFont.truetype(str(path), DRAWN_SIZE).getname()
        except OSError as error:
            problems.append(f"{path}: {error}")
            continue
        font = Font(path, family or path.stem, style or "Regular")
        fonts.setdefault(font.name, font)
    return [fonts[name] for name in sorted(fonts)], problems


def _font_files(places: Optional[Sequence[Path]]) -> list[Path]:
    if places is None:
        from matplotlib.font_manager import findSystemFonts

        return sorted(map(Path, findSystemFonts()))
    files = []
    for place in places:
        if place.is_dir():
            files += [file for file in place.rglob("*") if file.suffix.lower() in FONT_FILES]
        elif place.is_file():
            files.append(place)
        else:
            raise UserError(f"--fonts: {place} is neither a font file nor a folder of them")
    return sorted(files)


def lacking(font: Font, glyphs: Sequence[str]) -> list[str]:
    """The glyphs that the font has not, or draws nothing for."""
    from matplotlib.ft2font import FT2Font

    known = FT2Font(str(font.path)).get_charmap()
    drawn = font.at(DRAWN_SIZE)
    return [glyph for glyph in glyphs if ord(glyph) not in known or drawn.getmask(glyph).getbbox() is None]


@dataclass(frozen=True)
class Rendering:
    """How a glyph is drawn in a frame of size x size pixels.

    zoom: of the usual size. shift: (down, right) in pixels. strength: 1 full ink.
    """

    size: int
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    strength: float = 1.0

    def moved(self, down: float, right: float) -> "Rendering":
        return dataclasses.replace(self, shift=(self.shift[0] + down, self.shift[1] + right))


def draw(font: Font, glyph: str, rendering: Rendering) -> tuple[np.ndarray, float]:
    """(ink (size, size) float32 in [0, 1], the share of the glyph's ink that lies inside the frame)."""
    size = rendering.size
    side = 3 * size * ENLARGED  # a frame's width of room on every side
    drawn = font.at(_font_size(font, size * ENLARGED * rendering.zoom))
    left, _, right, _ = drawn.getbbox(glyph, anchor="ls")
    centre = (size + rendering.shift[1] + size / 2) * ENLARGED
    line = (size + rendering.shift[0] + size * (1 + CAP_HEIGHT * rendering.zoom) / 2) * ENLARGED
    canvas = Image.new("L", (side, side))
    place = (round(centre - (left + right) / 2), round(line))
    ImageDraw.Draw(canvas).text(place, glyph, fill=255, font=drawn, anchor="ls")
    blocks = np.asarray(canvas, dtype=np.float32).reshape(3 * size, ENLARGED, 3 * size, ENLARGED) / 255
    whole = blocks.mean(axis=(1, 3))  # (3 size, 3 size)
    frame = whole[size : 2 * size, size : 2 * size]
    return rendering.strength * frame, float(frame.sum() / whole.sum())


def _font_size(font: Font, frame: float) -> float:
    """The size at which a capital H is CAP_HEIGHT of `frame` high."""
    _, top, _, bottom = font.at(DRAWN_SIZE).getbbox("H", anchor="ls")
    return DRAWN_SIZE * CAP_HEIGHT * frame / (bottom - top)


def quality(ink: np.ndarray, inside: float) -> float:
    """Score of a rendering in [0, 1]: its darkest ink times the share of its ink inside the frame.

    Near 1 for a clear, whole glyph; near 0 for a faint or a cut one.
    """
    return float(ink.max() * inside)
