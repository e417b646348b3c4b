"""Pictures made of frames, in memory: clips beside each other with their labels, and grids.

Frames are uint8 (..., C, H, W) with C = 1 (grey) or 3 (RGB), pictures uint8 (H, W, 3) on the host.
"""

import math
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MIN_SIDE = 128  # panels enlarge smaller frames to this shorter side
MAX_COLUMNS = 12  # a longer clip is thinned out in the PNG strip
BORDER = 3
GAP = 4
ERROR_GAIN = 2
BACKGROUND, TEXT = (24, 24, 24), (235, 235, 235)
CONTEXT_COLOUR, UNKNOWN_COLOUR, NO_COLOUR = (60, 200, 90), (240, 150, 40), (70, 70, 70)


def to_pictures(frames: Tensor) -> np.ndarray:
    """uint8 (..., C, H, W) -> contiguous (..., H, W, 3) on the host."""
    shape = (*frames.shape[:-3], 3, *frames.shape[-2:])
    return np.ascontiguousarray(frames.detach().cpu().expand(shape).movedim(-3, -1).numpy())


@dataclass(frozen=True)
class Row:
    """One labelled row of a panel: a tile for each time, None where there is nothing to show."""

    label: str
    tiles: list[Optional[np.ndarray]]  # (h, w, 3), enlarged


def clip_rows(context: Tensor, truth: Optional[Tensor], prediction: Tensor, given: list[bool]) -> list[Row]:
    """Truth, prediction and |truth - prediction|, brightened; without `truth` the prediction alone. `given` says which
    frames of the clip are those of `context`."""
    known, prediction = to_tiles(context.cpu()), prediction.cpu()
    rows = [Row("prediction", _merged(known, to_tiles(prediction), given))]
    if truth is not None:
        difference = (truth.cpu().int() - prediction.int()).abs()
        error = (ERROR_GAIN * difference).clamp(max=255).to(torch.uint8)
        rows.insert(0, Row("truth", _merged(known, to_tiles(truth.cpu()), given)))
        rows.append(Row(f"|error| x{ERROR_GAIN}", _merged([None] * len(context), to_tiles(error), given)))
    return rows


def _merged(known: list, unknown: list, given: list[bool]) -> list:
    """The tiles of a clip in the order of time."""
    sources = (iter(unknown), iter(known))
    return [next(sources[value]) for value in given]


def strip(rows: list[Row], given: list[bool]) -> np.ndarray:
    """All rows below each other, time from left to right, with labels: (H, W, 3)."""
    columns = _columns(len(given), [*given, False].index(False))
    height, width = rows[0].tiles[0].shape[:2]
    cell_h, cell_w = height + 2 * BORDER + GAP, width + 2 * BORDER + GAP
    font = _font(height)
    left, top = _text_width(font, rows) + 3 * GAP, round(font.size) + 2 * GAP
    canvas = Image.new("RGB", (left + cell_w * len(columns), top + cell_h * len(rows)), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        y = top + number * cell_h
        draw.text((GAP, y + cell_h // 2), row.label, TEXT, font=font, anchor="lm")
        for column, time in enumerate(columns):
            _paste(canvas, row.tiles[time], left + column * cell_w, y, _colour(time, given), (height, width))
    for column, time in enumerate(columns):
        x = left + column * cell_w + cell_w // 2
        draw.text((x, top // 2), _time_label(time, given), _colour(time, given), font=font, anchor="mm")
    return np.array(canvas)


def side_by_side(rows: list[Row], time: int, given: list[bool]) -> np.ndarray:
    """One moment of all rows, from left to right, each under its label: (H, W, 3)."""
    height, width = rows[0].tiles[0].shape[:2]
    font = _font(height)
    cell_w = max(width, _text_width(font, rows)) + 2 * BORDER + GAP
    top = bottom = round(font.size) + 2 * GAP
    size = (cell_w * len(rows) + GAP, top + height + 2 * BORDER + bottom)
    canvas = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        x = GAP + number * cell_w
        draw.text((x + cell_w // 2, top // 2), row.label, TEXT, font=font, anchor="mm")
        _paste(canvas, row.tiles[time], x, top, _colour(time, given), (height, width))
    label = _time_label(time, given)
    draw.text((size[0] // 2, size[1] - bottom // 2), label, _colour(time, given), font=font, anchor="mm")
    return np.array(canvas)


def in_rows(pictures: Tensor, columns: Optional[int]) -> np.ndarray:
    """(N, C, H, W) -> (H', W', 3): row by row, in a square where `columns` is None."""
    tiles: list[Optional[np.ndarray]] = to_tiles(pictures.cpu())
    columns = columns or math.ceil(math.sqrt(len(tiles)))
    tiles += [None] * (-len(tiles) % columns)
    return grid([tiles[start : start + columns] for start in range(0, len(tiles), columns)], NO_COLOUR)


def grid(rows: list[list[Optional[np.ndarray]]], colour: tuple[int, int, int]) -> np.ndarray:
    """Rows of bordered tiles, from the left: (H, W, 3)."""
    height, width = rows[-1][0].shape[:2]
    cell_h, cell_w = height + 2 * BORDER + GAP, width + 2 * BORDER + GAP
    canvas = Image.new("RGB", (cell_w * len(rows[-1]) + GAP, cell_h * len(rows) + GAP), BACKGROUND)
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            _paste(canvas, tile, GAP + x * cell_w, GAP + y * cell_h, colour, (height, width))
    return np.array(canvas)


def to_tiles(frames: Tensor) -> list[np.ndarray]:
    """Frames enlarged by a whole factor, by repetition, until the shorter side has MIN_SIDE pixels."""
    factor = -(-MIN_SIDE // min(frames.shape[-2:]))
    return list(to_pictures(F.interpolate(frames, scale_factor=factor, mode="nearest"))) if len(frames) else []


def _paste(
    canvas: Image.Image, tile: Optional[np.ndarray], x: int, y: int, colour: tuple, size: tuple[int, int]
) -> None:
    """A tile inside a coloured border whose corner is (x, y); an empty frame where there is no tile."""
    height, width = size
    box = (x, y, x + width + 2 * BORDER - 1, y + height + 2 * BORDER - 1)
    draw = ImageDraw.Draw(canvas)
    if tile is None:
        draw.rectangle(box, outline=NO_COLOUR)
    else:
        draw.rectangle(box, fill=colour)
        canvas.paste(Image.fromarray(tile), (x + BORDER, y + BORDER))


def _columns(total: int, given: int) -> list[int]:
    """At most MAX_COLUMNS of the times 0 .. total - 1: even, with both ends and the last of the `given`
    frames that the clip begins with."""
    if total <= MAX_COLUMNS:
        return list(range(total))
    chosen = {max(given - 1, 0), *np.linspace(0, total - 1, MAX_COLUMNS - 1).round().astype(int).tolist()}
    return sorted(chosen)


def _colour(time: int, given: list[bool]) -> tuple[int, int, int]:
    return CONTEXT_COLOUR if given[time] else UNKNOWN_COLOUR


def _time_label(time: int, given: list[bool]) -> str:
    """`context 2`, or how far an unknown frame is behind the last context frame, `+1` being the first one."""
    if given[time]:
        return f"context {time + 1}"
    return f"+{time - max((t for t in range(time) if given[t]), default=-1)}"


def _font(tile_height: int) -> ImageFont.FreeTypeFont:
    """The scalable font inside Pillow, larger on larger tiles: a wide strip is looked at from afar."""
    return ImageFont.load_default(max(14, tile_height // 10))


def _text_width(font: ImageFont.FreeTypeFont, rows: list[Row]) -> int:
    return max(round(font.getlength(row.label)) for row in rows)
