"""Films as data inside a page: all frames of a panel in one picture, for a canvas to draw from."""

import base64
import io
import json
import math
from typing import Any, Sequence

import numpy as np
from PIL import Image

from vidpred.evaluation.films import ClipFilm
from vidpred.evaluation.results import Evaluation

LOSSLESS_PIXELS = 4_000_000  # of all pictures of a page; more of them are compressed with loss
QUALITY = 90
MOST_ABREAST, SMALL = 6, 96  # panels in a row, of frames up to so many pixels wide; two fewer of larger ones
LEAST_LIMIT = 16  # of 255: below it errors are too small to be stretched over all colours


def film_views(
    films: Sequence[ClipFilm], evaluation: Evaluation
) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, Any]]:
    """What the template shows of the films: a view of each, the pictures by name as data addresses, and what
    the colours of the errors mean.

    The frames of a panel lie in reading order in a picture of ceil(sqrt(T)) columns. A panel's `order` says
    which of them it shows at each time.
    """
    errors = [_errors(film) for film in films]
    limit = _limit(errors)
    sheets: dict[str, np.ndarray] = {}
    views = []
    for place, (film, error) in enumerate(zip(films, errors)):
        copy = evaluation.titles["floor"]
        panels = list(_panels(film, error, limit, f"film{place}", sheets, copy))
        views.append({**_facts(film, evaluation), "panels": panels, "abreast": _abreast(len(panels), film)})
    lossless = sum(sheet[..., 0].size for sheet in sheets.values()) <= LOSSLESS_PIXELS
    images = {name: _data_address(sheet, lossless) for name, sheet in sheets.items()}
    return views, images, {"limit": limit, "colours": _colour_stops(), "lossless": lossless}


def _panels(film: ClipFilm, error: np.ndarray, limit: int, name: str, sheets: dict, copy: str) -> Any:
    """The panels of a film; their pictures go into `sheets`."""
    everything = list(range(len(film.given)))
    if film.given.any():
        sheets[f"{name}-truth"] = _sheet(film.frames)
        yield {"label": f"context, then {copy}", "image": f"{name}-truth", "order": film.nearest.tolist()}
        yield {"label": "truth", "image": f"{name}-truth", "order": everything}
    for number, prediction in enumerate(film.predictions):
        label = "prediction" if len(film.predictions) == 1 else f"trajectory {number + 1}"
        if film.given.any():
            label += f" · {film.psnr[number].mean():.2f} dB"
        sheets[f"{name}-{number}"] = _sheet(_whole(film, prediction))
        yield {"label": label, "image": f"{name}-{number}", "order": everything}
    if film.given.any():
        of = "" if len(film.predictions) == 1 else " of trajectory 1"
        coloured = _coloured(error, limit)
        black = np.broadcast_to(coloured.dtype.type(0), film.frames.shape).copy()
        black[~film.given] = coloured
        sheets[f"{name}-error"] = _sheet(black)
        yield {"label": f"|error|{of}", "image": f"{name}-error", "order": everything}


def _abreast(panels: int, film: ClipFilm) -> int:
    """Panels in one row of a wide window: rows as equally long as they can be."""
    rows = -(-panels // (MOST_ABREAST if film.frames.shape[-1] <= SMALL else MOST_ABREAST - 2))
    return -(-panels // rows)


def _facts(film: ClipFilm, evaluation: Evaluation) -> dict[str, Any]:
    height, width = film.frames.shape[-2:]
    return {
        "rank": film.rank,
        "nearest_known": film.nearest is not None,
        "name": film.scores.name,
        "figures": [
            (evaluation.titles[row], f"{film.scores.scores[row]['psnr'].mean():.2f} dB")
            for row in ("model", "best_of_n", "floor", "ceiling")
            if row in film.scores.scores
        ],
        "as_scored": film.as_scored,
        "again": f"{film.psnr[0].mean():.2f}",
        "height": height,
        "width": width,
        "given": film.given.tolist(),
        "captions": json.dumps(list(_captions(film, evaluation))),
        "columns": _columns(len(film.given)),
    }


def _captions(film: ClipFilm, evaluation: Evaluation) -> Any:
    """For every frame what is seen, in words."""
    total, horizon = len(film.given), 0
    for time, given in enumerate(film.given):
        if given:
            yield f"frame {time + 1} of {total}: given"
            continue
        figures = [
            f"{evaluation.titles[row]} {film.scores.scores[row]['psnr'][horizon]:.1f}"
            for row in ("model", "floor", "ceiling")
            if row in film.scores.scores and film.given.any()
        ]
        horizon += 1
        psnr = f"; PSNR in dB: {', '.join(figures)}" if figures else ""
        yield f"frame {time + 1} of {total}: predicted {horizon}{psnr}"


def _whole(film: ClipFilm, prediction: np.ndarray) -> np.ndarray:
    """(T, C, h, w): given frames as they are, the others as predicted."""
    frames = film.frames.copy()
    frames[~film.given] = prediction
    return frames


def _errors(film: ClipFilm) -> np.ndarray:
    """|prediction - truth| of the scored trajectory, mean over colours: (H, h, w) in [0, 255]."""
    truth = film.frames[~film.given].astype(np.int16)
    return np.abs(film.predictions[0].astype(np.int16) - truth).mean(axis=1)


def _limit(errors: Sequence[np.ndarray]) -> int:
    """The error that has the brightest colour: one for all films, so that they can be compared."""
    large = [np.percentile(error, 99.5) for error in errors]
    return max(LEAST_LIMIT, math.ceil(max(large, default=0)))


def _coloured(error: np.ndarray, limit: int) -> np.ndarray:
    """(H, h, w) -> uint8 (H, 3, h, w)."""
    shade = np.clip(error * 255 / limit, 0, 255).round().astype(np.uint8)
    return np.moveaxis(_colours()[shade], -1, 1)


def _colours() -> np.ndarray:
    """uint8 (256, 3), evenly brighter from black to yellow."""
    import matplotlib

    return matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3]


def _colour_stops() -> str:
    """The colours as a list for CSS."""
    return ", ".join("#" + bytes(colour).hex() for colour in _colours()[:: 255 // 5])


def _columns(total: int) -> int:
    return math.ceil(math.sqrt(total))


def _sheet(frames: np.ndarray) -> np.ndarray:
    """Frames (T, C, h, w) in reading order: (rows * h, columns * w, 3)."""
    total, _, height, width = frames.shape
    columns = _columns(total)
    rows = -(-total // columns)
    sheet = np.zeros((rows * columns, height, width, 3), np.uint8)
    sheet[:total] = np.moveaxis(frames, 1, -1)
    return sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, -1, 3)


def _data_address(sheet: np.ndarray, lossless: bool) -> str:
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "WEBP", lossless=lossless, quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
