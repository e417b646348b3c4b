"""Videos and pictures: write mp4, gif and png, lay out a prediction beside the truth, read frames.

Frames are uint8 (T, C, H, W) with C = 1 (grey) or 3 (RGB). Every file is written under another name first and
then renamed, so a reader never meets half of one.
"""

import contextlib
import math
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence, Union

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vidpred.errors import UserError
from vidpred.files import written_aside

PathLike = Union[str, Path]

MIN_SIDE = 128  # panels enlarge smaller frames to this shorter side
MAX_COLUMNS = 12  # a longer clip is thinned out in the PNG strip
BORDER = 3
GAP = 4
ERROR_GAIN = 2
BACKGROUND, TEXT = (24, 24, 24), (235, 235, 235)
CONTEXT_COLOUR, UNKNOWN_COLOUR, NO_COLOUR = (60, 200, 90), (240, 150, 40), (70, 70, 70)


def _check_frames(frames: Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] not in (1, 3) or not frames.numel():
        raise ValueError(f"frames must be uint8 (T, 1 or 3, H, W), got {frames.dtype} {tuple(frames.shape)}")


def _rgb(frames: Tensor) -> np.ndarray:
    """uint8 (..., C, H, W) -> contiguous (..., H, W, 3) on the host."""
    shape = (*frames.shape[:-3], 3, *frames.shape[-2:])
    return np.ascontiguousarray(frames.detach().cpu().expand(shape).movedim(-3, -1).numpy())


def write_video(path: PathLike, frames: Tensor, fps: float, crf: int = 18) -> None:
    """Writes an mp4 (H.264, yuv420p, which every player reads).

    `frames` uint8 (T, C, H, W); an odd height or width grows by one repeated line; `fps` frames per second;
    `crf` 0 (lossless but for the colour space) to 51.
    """
    _check_frames(frames)
    with open_video(path, fps, crf) as write:
        for picture in _rgb(frames):
            write(picture)


@contextlib.contextmanager
def open_video(path: PathLike, fps: float, crf: int = 18) -> Iterator[Callable[[np.ndarray], None]]:
    """As `write_video`, picture by picture: yields a function of one (H, W, 3) uint8 array.

    The file appears, whole, when the block succeeds with at least one picture.
    """
    import av

    with written_aside(path) as aside:
        with av.open(str(aside), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": str(crf)}

            def write(picture: np.ndarray) -> None:
                height, width = picture.shape[:2]
                picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                if not stream.codec_context.is_open:
                    stream.height, stream.width = picture.shape[:2]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))

            yield write
            container.mux(stream.encode())


def write_gif(path: PathLike, frames: Tensor, fps: float) -> None:
    """Writes a repeating gif of frames uint8 (T, C, H, W); 256 colours a frame, at most 50 frames/s."""
    _check_frames(frames)
    pictures = [Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE) for picture in _rgb(frames)]
    milliseconds = max(20, 10 * round(100 / fps))  # the format counts hundredths; players slow down below two
    with written_aside(path) as aside:
        pictures[0].save(
            aside, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, optimize=False
        )


def write_png(path: PathLike, image: Tensor) -> None:
    """Writes one picture, uint8 (C, H, W)."""
    _check_frames(image[None])
    with written_aside(path) as aside:
        Image.fromarray(_rgb(image)).save(aside)


def read_frames(
    path: PathLike, count: Optional[int] = None, start: int = 0, stride: int = 1
) -> tuple[Tensor, float]:
    """Decodes a video from its beginning: frames start, start + stride, ... -> uint8 (T, 3, H, W), its fps.

    `count` frames, or all for None; in presentation order, from the best video stream, rotated as the file
    says. The fps are the file's, not divided by `stride`; 0 where the file does not tell. Raises UserError
    when it cannot be read or holds too few.
    """
    import av

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a video file")
    stop = None if count is None else start + (count - 1) * stride + 1
    try:
        # Absolute for the same reason as in `files.written_aside`.
        with av.open(os.path.abspath(path), metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise UserError(f"{path}: holds no video that can be decoded; choose another file")
            # Threads of decoders can wait for each other for ever, on damaged files above all.
            stream.codec_context.thread_count = 1
            pictures = list(_selected(container.decode(stream), start, stop, stride))
            fps = float(stream.average_rate or stream.guessed_rate or 0)
    except av.FFmpegError as error:
        raise UserError(f"{path}: cannot be decoded ({error.strerror}); choose another file") from error
    if len(pictures) < (count or 1):
        wanted = f"{count or 1} frames from {start} with stride {stride}"
        raise UserError(
            f"{path}: has only {len(pictures)} of the {wanted} that were asked for; choose a longer video"
        )
    if len({picture.shape for picture in pictures}) > 1:
        raise UserError(f"{path}: its frames change their size midway; choose another file")
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1).contiguous(), fps


def _selected(decoded: Iterator, start: int, stop: Optional[int], stride: int) -> Iterator[np.ndarray]:
    """The pictures (H, W, 3) of every `stride`-th frame in [start, stop), upright."""
    for index, frame in enumerate(decoded):
        if stop is not None and index >= stop:
            return
        if index >= start and (index - start) % stride == 0:
            yield np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))


# ---- panels ----


@dataclass(frozen=True)
class _Row:
    """One labelled row of a panel: a tile for each time, None where there is nothing to show."""

    label: str
    tiles: list[Optional[np.ndarray]]  # (h, w, 3), enlarged


def save_clip_panels(
    folder: PathLike,
    name: str,
    context: Tensor,
    truth: Optional[Tensor],
    prediction: Tensor,
    fps: float,
    given: Optional[Sequence[bool]] = None,
) -> list[Path]:
    """Writes `<name>.png`, `.gif` and `.mp4` into `folder` and returns their paths.

    Rows (side by side in the moving ones): context and truth, context and prediction, |truth - prediction|,
    brightened and labelled so. Context frames have a green border, unknown ones an orange one. `context`
    uint8 (T1, C, H, W), `truth` and `prediction` (T2, C, H, W); without `truth` (None) only the prediction.
    `given` (T1 + T2,) says which frames of the clip are the context ones, T1 of them; None: the first.
    """
    for frames in (context, prediction) if truth is None else (context, prediction, truth):
        if frames is not context or len(context):
            _check_frames(frames)
    if truth is not None and truth.shape != prediction.shape:
        raise ValueError(f"truth {tuple(truth.shape)} and prediction {tuple(prediction.shape)} must be alike")
    total = len(context) + len(prediction)
    given = [bool(value) for value in (torch.arange(total) < len(context) if given is None else given)]
    if (len(given), sum(given)) != (total, len(context)):
        raise ValueError(f"given must be {len(context)} of {total} frames, not {sum(given)} of {len(given)}")
    rows = _rows(context, truth, prediction, given)
    paths = [Path(folder) / f"{name}.{ending}" for ending in ("png", "gif", "mp4")]
    write_png(paths[0], _as_tensor(_strip(rows, given)))
    moving = _as_tensor(np.stack([_side_by_side(rows, t, given) for t in range(total)]))
    write_gif(paths[1], moving, fps)
    write_video(paths[2], moving, fps)
    return paths


def save_grid(path: PathLike, pictures: Tensor, columns: Optional[int] = None) -> list[Path]:
    """Writes all `pictures`, uint8 (N, C, H, W), into one PNG, row by row, in a square where `columns` is None; [its
    path]."""
    _check_frames(pictures)
    write_png(path, _as_tensor(_in_rows(pictures, columns)))
    return [Path(path)]


def save_clip_grid(
    folder: PathLike, name: str, clips: Tensor, fps: float, columns: Optional[int] = None
) -> list[Path]:
    """Clips uint8 (N, T, C, H, W) side by side, as `save_grid` lays them out: `<name>.png` of single frames, else
    `<name>.gif` and `<name>.mp4`; their paths."""
    if clips.shape[1] == 1:
        return save_grid(Path(folder) / f"{name}.png", clips[:, 0], columns)
    moving = _as_tensor(np.stack([_in_rows(pictures, columns) for pictures in clips.unbind(1)]))
    paths = [Path(folder) / f"{name}.{ending}" for ending in ("gif", "mp4")]
    write_gif(paths[0], moving, fps)
    write_video(paths[1], moving, fps)
    return paths


def _in_rows(pictures: Tensor, columns: Optional[int]) -> np.ndarray:
    """(N, C, H, W) -> (H', W', 3)."""
    tiles: list[Optional[np.ndarray]] = _tiles(pictures.cpu())
    columns = columns or math.ceil(math.sqrt(len(tiles)))
    tiles += [None] * (-len(tiles) % columns)
    return _grid([tiles[start : start + columns] for start in range(0, len(tiles), columns)], NO_COLOUR)


@contextlib.contextmanager
def trajectory_video(path: PathLike, fps: float) -> Iterator[Callable[[Tensor, bool, Optional[Tensor]], None]]:
    """An mp4 of several samples of one future, moment by moment, in constant memory.

    Yields write(frames, given, truth): frames uint8 (N, C, H, W), one per trajectory, side by side, with a green
    border where the moment is given and an orange one where it is predicted. `truth` (C, H, W) stands above them; a
    moment without it (None) leaves its place empty, and a video that begins without it has no such row.
    """
    with open_video(path, fps) as write_picture:
        has_truth: list[bool] = []

        def write(frames: Tensor, given: bool, truth: Optional[Tensor] = None) -> None:
            has_truth.append(truth is not None)
            above = [[None if truth is None else _tiles(truth[None].cpu())[0]]] if has_truth[0] else []
            del has_truth[1:]
            write_picture(_grid([*above, _tiles(frames.cpu())], CONTEXT_COLOUR if given else UNKNOWN_COLOUR))

        yield write


def _grid(rows: list[list[Optional[np.ndarray]]], colour: tuple[int, int, int]) -> np.ndarray:
    """Rows of bordered tiles, from the left: (H, W, 3)."""
    height, width = rows[-1][0].shape[:2]
    cell_h, cell_w = height + 2 * BORDER + GAP, width + 2 * BORDER + GAP
    canvas = Image.new("RGB", (cell_w * len(rows[-1]) + GAP, cell_h * len(rows) + GAP), BACKGROUND)
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            _paste(canvas, tile, GAP + x * cell_w, GAP + y * cell_h, colour, (height, width))
    return np.array(canvas)


def _as_tensor(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).movedim(-1, -3)


def _rows(context: Tensor, truth: Optional[Tensor], prediction: Tensor, given: list[bool]) -> list[_Row]:
    known, prediction = _tiles(context.cpu()), prediction.cpu()
    rows = [_Row("prediction", _merged(known, _tiles(prediction), given))]
    if truth is not None:
        difference = (truth.cpu().int() - prediction.int()).abs()
        error = (ERROR_GAIN * difference).clamp(max=255).to(torch.uint8)
        rows.insert(0, _Row("truth", _merged(known, _tiles(truth.cpu()), given)))
        rows.append(_Row(f"|error| x{ERROR_GAIN}", _merged([None] * len(context), _tiles(error), given)))
    return rows


def _merged(known: list, unknown: list, given: list[bool]) -> list:
    """The tiles of a clip in the order of time."""
    sources = (iter(unknown), iter(known))
    return [next(sources[value]) for value in given]


def _tiles(frames: Tensor) -> list[np.ndarray]:
    """Frames enlarged by a whole factor, by repetition, until the shorter side has MIN_SIDE pixels."""
    factor = -(-MIN_SIDE // min(frames.shape[-2:]))
    return list(_rgb(F.interpolate(frames, scale_factor=factor, mode="nearest"))) if len(frames) else []


def _strip(rows: list[_Row], given: list[bool]) -> np.ndarray:
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


def _side_by_side(rows: list[_Row], time: int, given: list[bool]) -> np.ndarray:
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


def _text_width(font: ImageFont.FreeTypeFont, rows: list[_Row]) -> int:
    return max(round(font.getlength(row.label)) for row in rows)
