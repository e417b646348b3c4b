"""Reading frames of a video file by index, in presentation order: decord, or PyAV where decord is not right.

decord 0.6.0 counts the packets that an edit list discards, may then return other frames or never return, and
misreads AVI files with B-frames; `probing` finds out once per file which reader is right, and this module
obeys. Readers are opened per call, with one thread: one that was opened before a fork hangs in the child.

Both readers convert to RGB by FFmpeg's scaler with the same filter, so the pixels do not depend on which is used.
"""

import bisect
import contextlib
import os
import stat
from pathlib import Path
from typing import Any, Iterator, Optional

import numpy as np
from torch.utils.dlpack import from_dlpack

from vidpred.data.clips import ClipError
from vidpred.data.sources import Source


def check_file(path: Path, root: Optional[Path] = None) -> Path:
    """The absolute path of a non-empty regular file (under `root`), which is all that FFmpeg may be given.

    Absolute, so that no name is taken for a protocol (`concat:`, `http:`) or an option. Raises ClipError.
    """
    absolute = os.path.abspath(path)
    if root is not None and not Path(absolute).is_relative_to(os.path.abspath(root)):
        raise ClipError(f"lies outside the data root {root}")
    try:
        status = os.stat(absolute)
    except FileNotFoundError as error:
        raise ClipError("does not exist") from error
    except OSError as error:
        raise ClipError(f"cannot be reached: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ClipError("is not a regular file")
    if status.st_size == 0:
        raise ClipError("is empty (0 bytes)")
    return Path(absolute)


@contextlib.contextmanager
def av_errors(doing: str) -> Iterator[None]:
    """PyAV's errors as a ClipError that says what was being done."""
    import av

    try:
        yield
    except (av.FFmpegError, ValueError, OSError, IndexError) as error:
        # FFmpegError's classes derive from many built-in ones; the text is what helps.
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ClipError(f"{doing}: {text}") from error


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """PyAV's (container, best video stream), decoding with one thread. Raises ClipError."""
    import av

    av.logging.set_level(av.logging.PANIC)
    with av_errors("cannot be opened"):
        # Names of other encodings than UTF-8 in the metadata must not stop us; only local files may be
        # followed.
        container = av.open(str(path), metadata_errors="ignore", options={"protocol_whitelist": "file"})
    with container:
        stream = container.streams.best("video")
        if stream is None:
            raise ClipError("has no video stream")
        if stream.codec_context is None:
            raise ClipError("is in a format without a decoder")
        stream.codec_context.thread_count = 1
        yield container, stream


class FrameConverter:
    """PyAV frames -> upright RGB arrays. One object per file: making a new scaler per frame is slow."""

    def __init__(self, rotation: int, size: Optional[tuple[int, int]] = None):
        """`size` is the (height, width) of the upright picture; None keeps the file's."""
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()
        self._turns = rotation // 90 % 4
        self._scaling: dict[str, Any] = {}
        if size is not None:
            height, width = size if self._turns % 2 == 0 else size[::-1]
            self._scaling = {"width": width, "height": height, "interpolation": "BILINEAR"}

    def __call__(self, frame: Any) -> np.ndarray:
        """(H, W, 3) uint8."""
        pixels = self._reformatter.reformat(frame, format="rgb24", **self._scaling).to_ndarray()
        return np.rot90(pixels, self._turns)


def read_video(
    path: Path, source: Source, indices: np.ndarray, size: Optional[tuple[int, int]] = None
) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 RGB at `indices` (T,), by the reader that the scan found right.

    `size` (H, W) makes the decoder shrink them; None gives the file's own size.

    Raises ClipError. Where decord fails on a file that it once read, PyAV is asked before giving up.
    """
    path = check_file(path)
    if source.reader == "decord":
        try:
            # Rotated files stay as they are: decord scales before it turns.
            return read_decord(path, indices, None if source.rotation else size)
        except ClipError:
            return read_pyav(path, indices, source, size)
    return read_pyav(path, indices, source, size)


def open_decord(path: Path, size: Optional[tuple[int, int]] = None) -> Any:
    """A decord reader with one thread; duplicated frames are an error. Raises ClipError."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    with decord_errors():
        height, width = size or (-1, -1)
        return decord.VideoReader(
            str(path), ctx=decord.cpu(0), width=width, height=height, num_threads=1, fault_tol=1
        )


@contextlib.contextmanager
def decord_errors() -> Iterator[None]:
    from decord._ffi.base import DECORDError, DECORDLimitReachedError

    try:
        yield
    except (
        DECORDError,
        DECORDLimitReachedError,
        RuntimeError,
        AssertionError,
        IndexError,
        UnicodeError,
    ) as error:
        # An unreadable file is a RuntimeError, one without frames an AssertionError, a name in another
        # encoding than UTF-8 a UnicodeError.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ClipError(f"decord: {lines[0][:200]}") from error


def read_decord(path: Path, indices: np.ndarray, size: Optional[tuple[int, int]] = None) -> np.ndarray:
    """Frames (T, H, W, 3) at `indices`, in one sorted request."""
    asked = np.asarray(indices).tolist()
    wanted = sorted(set(asked))
    reader = open_decord(path, size)
    with decord_errors():
        # Without a copy, and without decord's bridge to torch, which is a setting of the thread.
        frames = from_dlpack(reader.get_batch(wanted).to_dlpack()).numpy()
    del reader
    if frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) != len(wanted):
        raise ClipError(f"decord returned frames of shape {frames.shape}")
    return frames if asked == wanted else frames[np.searchsorted(wanted, asked)]


def read_pyav(
    path: Path, indices: np.ndarray, source: Source, size: Optional[tuple[int, int]] = None
) -> np.ndarray:
    """Frames (T, H, W, 3) at `indices`: seeks to the source's anchors, decodes onwards from there."""
    wanted, places = np.unique(np.asarray(indices), return_inverse=True)
    convert = FrameConverter(source.rotation, size)
    with open_video(path) as (container, stream), av_errors("cannot be decoded"):
        found = dict(
            _decode_wanted(container, stream, [int(index) for index in wanted], source.anchors, convert)
        )
    missing = [index for index in wanted if index not in found]
    if missing:
        raise ClipError(f"ends before frame {missing[0]} of the {source.frames} that the scan counted")
    if len({frame.shape for frame in found.values()}) > 1:
        raise ClipError("changes its frame size")
    return np.stack([found[index] for index in wanted])[places]


def _decode_wanted(
    container: Any,
    stream: Any,
    wanted: list[int],
    anchors: tuple[tuple[int, int], ...],
    convert: FrameConverter,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index, pixels) for ascending `wanted`; jumps over gaps where an anchor lies inside."""
    frames = enumerate(container.decode(stream))
    position = -1
    for index in wanted:
        place = bisect.bisect_right(anchors, index, key=lambda anchor: anchor[0]) - 1
        if place >= 0 and anchors[place][0] > position + 1:
            frames = decode_from(container, stream, anchors[place])
        for position, frame in frames:
            if position == index:
                yield index, convert(frame)
                break


def decode_from(container: Any, stream: Any, anchor: tuple[int, int]) -> Iterator[tuple[int, Any]]:
    """(frame index, frame) from the anchor on. Frames before it, which lack their references, are dropped.

    Raises ClipError where the anchor's frame does not appear: then the file is not the one that was scanned.
    """
    index, stamp = anchor
    container.seek(stamp, stream=stream, backward=True)
    frames = container.decode(stream)
    for frame in frames:
        if frame.key_frame and frame.pts == stamp:
            yield index, frame
            break
    else:
        raise ClipError("has no key frame where the scan saw one; the file has changed")
    yield from enumerate(frames, start=index + 1)
