"""Videos and pictures: write mp4, gif and png, of frames and of the panels made of them, and read frames.

Frames are uint8 (T, C, H, W) with C = 1 (grey) or 3 (RGB). Every file is written under another name first and
then renamed, so a reader never meets half of one.
"""

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence, Union

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vidpred import panels
from vidpred.errors import UserError
from vidpred.files import written_aside

PathLike = Union[str, Path]


def _check_frames(frames: Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] not in (1, 3) or not frames.numel():
        raise ValueError(f"frames must be uint8 (T, 1 or 3, H, W), got {frames.dtype} {tuple(frames.shape)}")


def write_video(path: PathLike, frames: Tensor, fps: float, crf: int = 18) -> None:
    """Writes an mp4 (H.264, yuv420p, which every player reads).

    `frames` uint8 (T, C, H, W); an odd height or width grows by one repeated line; `fps` frames per second;
    `crf` 0 (lossless but for the colour space) to 51.
    """
    _check_frames(frames)
    with open_video(path, fps, crf) as write:
        for picture in panels.to_pictures(frames):
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
    whole = map(Image.fromarray, panels.to_pictures(frames))
    pictures = [picture.quantize(256, dither=Image.Dither.NONE) for picture in whole]
    milliseconds = max(20, 10 * round(100 / fps))  # the format counts hundredths; players slow down below two
    with written_aside(path) as aside:
        pictures[0].save(
            aside, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, optimize=False
        )


def write_png(path: PathLike, image: Tensor) -> None:
    """Writes one picture, uint8 (C, H, W)."""
    _check_frames(image[None])
    with written_aside(path) as aside:
        Image.fromarray(panels.to_pictures(image)).save(aside)


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
    rows = panels.clip_rows(context, truth, prediction, given)
    paths = [Path(folder) / f"{name}.{ending}" for ending in ("png", "gif", "mp4")]
    write_png(paths[0], _as_tensor(panels.strip(rows, given)))
    moving = _as_tensor(np.stack([panels.side_by_side(rows, t, given) for t in range(total)]))
    write_gif(paths[1], moving, fps)
    write_video(paths[2], moving, fps)
    return paths


def save_grid(path: PathLike, pictures: Tensor, columns: Optional[int] = None) -> list[Path]:
    """Writes all `pictures`, uint8 (N, C, H, W), into one PNG, row by row, in a square where `columns` is None; [its
    path]."""
    _check_frames(pictures)
    write_png(path, _as_tensor(panels.in_rows(pictures, columns)))
    return [Path(path)]


def save_clip_grid(
    folder: PathLike, name: str, clips: Tensor, fps: float, columns: Optional[int] = None
) -> list[Path]:
    """Clips uint8 (N, T, C, H, W) side by side, as `save_grid` lays them out: `<name>.png` of single frames, else
    `<name>.gif` and `<name>.mp4`; their paths."""
    if clips.shape[1] == 1:
        return save_grid(Path(folder) / f"{name}.png", clips[:, 0], columns)
    moving = _as_tensor(np.stack([panels.in_rows(pictures, columns) for pictures in clips.unbind(1)]))
    paths = [Path(folder) / f"{name}.{ending}" for ending in ("gif", "mp4")]
    write_gif(paths[0], moving, fps)
    write_video(paths[1], moving, fps)
    return paths


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
            above = [[None if truth is None else panels.to_tiles(truth[None].cpu())[0]]] if has_truth[0] else []
            del has_truth[1:]
            colour = panels.CONTEXT_COLOUR if given else panels.UNKNOWN_COLOUR
            write_picture(panels.grid([*above, panels.to_tiles(frames.cpu())], colour))

        yield write


def _as_tensor(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).movedim(-1, -3)
