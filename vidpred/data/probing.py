"""Looking at a video file once: is it usable, how many frames has it, and which reader gets them right?

PyAV's sequential decoding is the reference for what frame i is. decord is chosen where it agrees with it: the
same number of frames, timestamps that are finite, not negative and ascending (files cut by an edit list and
AVI files with B-frames fail here), and the same pixels at the start, in the middle and at the end, asked for
out of order. Runs in a process of its own (see `scan`), because a decoder may hang or crash on a damaged
file.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from vidpred.data import decoding
from vidpred.data.clips import ClipError
from vidpred.data.sources import Source

PIXEL_TOLERANCE = 0.5  # mean absolute difference; decord and PyAV agree exactly but for a few pixel formats
TIME_TOLERANCE = 1e-4  # seconds
ANCHOR_SPACING = 12  # frames; decoding fewer than this is cheaper than a seek is worth
THUMBNAIL = 32  # pixels


@dataclass
class Survey:
    """What one pass over a file saw, frame by frame in presentation order; keys are (index, timestamp)."""

    stamps: list[Optional[int]] = field(default_factory=list)
    keys: list[tuple[int, int]] = field(default_factory=list)
    checksums: Optional[list[int]] = None
    """None where the pass did not decode."""
    references: dict[int, np.ndarray] = field(default_factory=dict)
    """Upright RGB pixels of a few frames, to compare a reader with: the first, a middle and the last one."""
    changes: Optional[list[float]] = None
    rotation: int = 0
    size: tuple[int, int] = (0, 0)
    """(height, width) as coded, before the rotation."""
    seconds_per_tick: float = 0.0
    rate: Optional[float] = None
    """What the container says; only used where the timestamps say nothing."""


def probe_video(path: Path, name: str, quick: bool, with_changes: bool, alive: Callable[[], None]) -> Source:
    """Everything that reading the file needs. Raises ClipError with the reason why it is unusable.

    `alive` is called with every frame decoded, so that a long file is told from a decoder that hangs.
    """
    path = decoding.check_file(path)
    if quick and not with_changes:
        try:
            return _conclude(path, name, _survey_packets(path, alive), alive)
        except ClipError:
            pass  # Only the full pass may call a file unusable.
    return _conclude(path, name, _survey_frames(path, with_changes, alive), alive)


def _survey_frames(path: Path, with_changes: bool, alive: Callable[[], None]) -> Survey:
    """Decodes the whole file in order."""
    survey = Survey(checksums=[])
    thumbnails = Thumbnails() if with_changes else None
    kept: dict[str, tuple[int, Any]] = {}
    with decoding.open_video(path) as (container, stream):
        _describe(survey, stream)
        frames = iter(container.decode(stream))
        while True:
            alive()
            index = len(survey.stamps)
            with decoding.av_errors(f"damaged: frame {index} cannot be decoded"):
                frame = next(frames, None)
            if frame is None:
                break
            _add_frame(survey, frame, index)
            kept["last"] = (index, frame)
            # 0 and the powers of two, of which the greatest lies in the second half.
            if index & (index - 1) == 0:
                kept["first" if index == 0 else "middle"] = (index, frame)
            if thumbnails:
                thumbnails.add_frame(frame)
    if not survey.stamps:
        raise ClipError("has no frame that can be decoded")
    convert = decoding.FrameConverter(survey.rotation)
    survey.references = {index: convert(frame) for index, frame in kept.values()}
    survey.changes = thumbnails.changes if thumbnails else None
    return survey


def _describe(survey: Survey, stream: Any) -> None:
    survey.seconds_per_tick = float(stream.time_base) if stream.time_base else 0.0
    rate = stream.average_rate or stream.guessed_rate
    survey.rate = float(rate) if rate else None


def _add_frame(survey: Survey, frame: Any, index: int) -> None:
    size = (frame.height, frame.width)
    if index == 0:
        survey.size, survey.rotation = size, int(frame.rotation)
    if size != survey.size:
        was = f"{survey.size[1]}x{survey.size[0]}"
        raise ClipError(f"changes its frame size from {was} to {size[1]}x{size[0]} at frame {index}")
    if frame.is_corrupt:
        raise ClipError(f"damaged: frame {index} is marked corrupt by the decoder")
    if frame.key_frame and frame.pts is not None:
        survey.keys.append((index, frame.pts))
    survey.stamps.append(frame.pts)
    survey.checksums.append(checksum(frame))


def checksum(frame: Any) -> int:
    """Of every fourth row of the first plane: enough to tell one frame from another, and cheap."""
    plane = frame.planes[0]
    rows = np.frombuffer(plane, dtype=np.uint8)[: plane.height * plane.line_size].reshape(plane.height, -1)
    # The padding at the end of a row is not part of the picture; the pixel takes at least a byte.
    return zlib.crc32(np.ascontiguousarray(rows[::4, : min(plane.line_size, frame.width)]).tobytes())


def _survey_packets(path: Path, alive: Callable[[], None]) -> Survey:
    """Reads the file's packets without decoding them; only trusted where the checks afterwards agree."""
    survey = Survey()
    keys = []
    with decoding.open_video(path) as (container, stream):
        _describe(survey, stream)
        with decoding.av_errors("damaged"):
            for packet in container.demux(stream):
                alive()
                if packet.size == 0 or packet.is_discard:
                    continue
                if packet.pts is None:
                    raise ClipError("has packets without a timestamp")
                survey.stamps.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
    survey.stamps.sort()
    places = {stamp: index for index, stamp in enumerate(survey.stamps)}
    if not survey.stamps or len(places) != len(survey.stamps):
        raise ClipError("has no or repeated timestamps")
    survey.keys = sorted((places[stamp], stamp) for stamp in keys)
    return survey


def _conclude(path: Path, name: str, survey: Survey, alive: Callable[[], None]) -> Source:
    """Chooses the reader and makes the record."""
    anchors = _spaced(survey.keys)
    proved = False
    if survey.checksums is None:
        _read_references(path, survey, anchors, alive)
        proved = True
    note = _decord_fault(path, survey, alive)
    if note and not proved and not _anchors_hold(path, survey, anchors, alive):
        anchors = ()
    fps, times = _timing(survey)
    height, width = survey.references[0].shape[:2]
    return Source(
        name=name,
        frames=len(survey.stamps),
        height=height,
        width=width,
        fps=fps,
        reader="pyav" if note else "decord",
        times=times,
        anchors=anchors if note else (),
        rotation=survey.rotation,
        note=note,
        changes=None if survey.changes is None else tuple(survey.changes),
    )


def _spaced(keys: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Key frames at least ANCHOR_SPACING apart; the file's beginning needs none."""
    spaced, last = [], 0
    for index, stamp in keys:
        if index >= last + ANCHOR_SPACING:
            spaced.append((index, stamp))
            last = index
    return tuple(spaced)


def _read_references(
    path: Path, survey: Survey, anchors: tuple[tuple[int, int], ...], alive: Callable[[], None]
) -> None:
    """For a survey of packets: decodes three frames. Raises ClipError where the packets were wrong."""
    count = len(survey.stamps)
    for index in sorted({0, count // 2, count - 1}):
        frame = _frame_at(path, index, anchors, alive)
        if frame.pts != survey.stamps[index]:
            raise ClipError(f"frame {index} is not where its packet says")
        survey.rotation = int(frame.rotation)
        survey.references[index] = decoding.FrameConverter(survey.rotation)(frame)
    if len({pixels.shape for pixels in survey.references.values()}) > 1:
        raise ClipError("changes its frame size")


def _anchors_hold(
    path: Path, survey: Survey, anchors: tuple[tuple[int, int], ...], alive: Callable[[], None]
) -> bool:
    """Whether seeking to the anchors finds the frames that decoding in order saw."""
    checked = {anchors[0], anchors[len(anchors) // 2], anchors[-1]} if anchors else set()
    for anchor in checked:
        following = [other[0] for other in anchors if other[0] > anchor[0]]
        last = min(following, default=len(survey.stamps)) - 1
        try:
            if any(
                checksum(_frame_at(path, index, (anchor,), alive)) != survey.checksums[index]
                for index in {anchor[0], last}
            ):
                return False
        except ClipError:
            return False
    return True


def _frame_at(path: Path, index: int, anchors: tuple[tuple[int, int], ...], alive: Callable[[], None]) -> Any:
    """Frame `index`, decoded from the last anchor before it or from the beginning."""
    before = [anchor for anchor in anchors if anchor[0] <= index]
    with decoding.open_video(path) as (container, stream), decoding.av_errors("damaged"):
        if before:
            frames = decoding.decode_from(container, stream, before[-1])
        else:
            frames = enumerate(container.decode(stream))
        for position, frame in frames:
            alive()
            if position == index:
                return frame
    raise ClipError(f"damaged: ends before frame {index}")


def _timing(survey: Survey) -> tuple[float, Optional[tuple[float, ...]]]:
    """(frames per second, seconds of each frame or None where the rate is regular)."""
    stamps = survey.stamps
    known = all(stamp is not None for stamp in stamps) and survey.seconds_per_tick > 0
    times = np.array(stamps, dtype=np.float64) * survey.seconds_per_tick if known else np.zeros(len(stamps))
    if len(stamps) < 2 or not (np.diff(times) > 0).all():
        return survey.rate or 25.0, None
    times -= times[0]
    fps = (len(stamps) - 1) / times[-1]
    if np.abs(times * fps - np.arange(len(stamps))).max() < 0.25:
        return float(fps), None
    return float(fps), tuple(round(float(time), 6) for time in times)


def _decord_fault(path: Path, survey: Survey, alive: Callable[[], None]) -> str:
    """Why decord must not read this file; empty where it agrees with the references."""
    try:
        alive()
        reader = decoding.open_decord(path)
        count = len(reader)
        if count != len(survey.stamps):
            return f"decord counts {count} frames, there are {len(survey.stamps)}"
        # Asking for frames before this check can hang for ever.
        times = np.asarray(reader.get_frame_timestamp(range(count)))[:, 0]
        if not np.isfinite(times).all() or (times < -TIME_TOLERANCE).any() or (np.diff(times) <= 0).any():
            return "decord's timestamps are negative or not in order"
        for index, reference in sorted(survey.references.items(), reverse=True):
            alive()
            with decoding.decord_errors():
                pixels = reader.get_batch([index]).asnumpy()[0]
            if pixels.shape != reference.shape:
                return f"decord returns frames of shape {pixels.shape}"
            error = np.abs(pixels.astype(np.int16) - reference).mean()
            if error > PIXEL_TOLERANCE:
                return f"decord's frame {index} differs by {error:.1f} of 255"
    except ClipError as error:
        return str(error)
    return ""


class Thumbnails:
    """Mean absolute change between successive 32x32 grey thumbnails, in [0, 255]."""

    def __init__(self) -> None:
        self.changes: list[float] = []
        self._last: Optional[np.ndarray] = None
        self._reformatter: Any = None

    def add(self, thumbnail: np.ndarray) -> None:
        """(32, 32) of any number type."""
        thumbnail = thumbnail.astype(np.float32)
        if self._last is not None:
            self.changes.append(round(float(np.abs(thumbnail - self._last).mean()), 2))
        self._last = thumbnail

    def add_pixels(self, pixels: np.ndarray) -> None:
        """(H, W, 3) uint8. By Pillow: torch's threads must not be used in a forked process."""
        from PIL import Image

        grey = Image.fromarray(pixels).convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        self.add(np.asarray(grey))

    def add_frame(self, frame: Any) -> None:
        """A frame of PyAV."""
        if self._reformatter is None:
            from av.video.reformatter import VideoReformatter

            self._reformatter = VideoReformatter()
        small = self._reformatter.reformat(frame, THUMBNAIL, THUMBNAIL, "gray", interpolation="AREA")
        self.add(small.to_ndarray())
