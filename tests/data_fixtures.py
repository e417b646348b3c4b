"""Small video files for the data tests, made with PyAV; and data sets whose decoder misbehaves."""

import os
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from vidpred.data import DATASETS, Clip, ClipConfig, ClipDataset, ClipError


def numbered_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(count, H, W, 3) uint8: frame i shows i as eight bright or dark columns, over a moving gradient."""
    frames = np.empty((count, height, width, 3), dtype=np.uint8)
    ramp = np.linspace(0, 60, height)[:, None]
    for i in range(count):
        bits = np.array([(i >> bit) & 1 for bit in range(8)])
        columns = np.repeat(bits, width // 8)[None] * 150 + 40
        picture = np.roll(ramp, i, axis=0) + columns
        frames[i] = np.stack([picture, picture * 0.8, 255 - picture], axis=-1)
    return frames


def frame_numbers(frames: np.ndarray) -> list[int]:
    """The numbers that `numbered_frames` wrote, from decoded pictures."""
    width = frames.shape[2] // 8
    bright = frames[..., 0].astype(float).reshape(len(frames), frames.shape[1], 8, width).mean(axis=(1, 3))
    return [int(sum(1 << bit for bit in range(8) if row[bit] > 145)) for row in bright]


def write_video(path: Path, frames: np.ndarray, fps: int = 10, gop: int = 12) -> Path:
    """H.264 (mp4, mkv, mov), MPEG-4 (avi), VP9 (webm) or gif, by the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = {".webm": "libvpx-vp9", ".gif": "gif", ".avi": "mpeg4"}.get(path.suffix, "libx264")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        if codec == "libx264":
            stream.options = {"bf": "2", "g": str(gop), "crf": "10", "preset": "veryfast"}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_audio(path: Path) -> Path:
    """A file of that name with sound alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, 16000, 1024):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut_by_edit_list(path: Path, source: Path, seconds: float) -> Path:
    """Copies the stream from the key frame before `seconds`, and hides what is before it, as `ffmpeg -ss -c
    copy`."""
    with av.open(str(source)) as original, av.open(str(path), "w") as container:
        video = original.streams.video[0]
        stream = container.add_stream_from_template(video)
        start = int(seconds / video.time_base)
        original.seek(start, stream=video)
        for packet in original.demux(video):
            if packet.dts is None:
                continue
            # Times before the cut become negative; the muxer writes an edit list for them.
            packet.pts, packet.dts = packet.pts - start, packet.dts - start
            packet.stream = stream
            container.mux(packet)
    return path


def rotate(path: Path, degrees: int) -> Path:
    """Writes a clockwise display rotation into the track header of an mp4 or mov file."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4
    matrix = place + (40 if data[place] == 0 else 52)
    sine, cosine = {90: (1, 0), 180: (0, -1), 270: (-1, 0)}[degrees]
    rows = [cosine, sine, 0, -sine, cosine, 0]
    for number, value in enumerate(rows):
        data[matrix + 4 * number : matrix + 4 * number + 4] = (value << 16).to_bytes(4, "big", signed=True)
    path.write_bytes(bytes(data))
    return path


def two_sizes(path: Path) -> Path:
    """An H.264 elementary stream in mkv whose size changes half way."""
    with av.open(str(path), "w") as container:
        first = None
        pts = 0
        for size in ((48, 64), (32, 48)):
            encoder = av.CodecContext.create("libx264", "w")
            encoder.height, encoder.width, encoder.pix_fmt = *size, "yuv420p"
            encoder.time_base, encoder.framerate = Fraction(1, 10), Fraction(10)
            encoder.options = {"bf": "0", "g": "6", "x264-params": "annexb=1:repeat-headers=1"}
            frames = [av.VideoFrame.from_ndarray(p, format="rgb24") for p in numbered_frames(12, *size)]
            packets = [p for frame in [*frames, None] for p in encoder.encode(frame)]
            if first is None:
                first = container.add_stream("libx264", rate=10)
                first.height, first.width, first.pix_fmt = *size, "yuv420p"
                first.options = {"x264-params": "annexb=1:repeat-headers=1"}
            for packet in packets:
                packet.stream, packet.time_base = first, Fraction(1, 10)
                packet.pts = packet.dts = pts
                pts += 1
                container.mux(packet)
    return path


@dataclass
class TroubleConfig(ClipConfig):
    kind: str = "trouble"
    items: int = 12
    hangs: int = -1
    dies: int = -1
    fails: int = -1


class Trouble(ClipDataset):
    """Items 0 .. N - 1 as pictures of that brightness; some hang, die or fail."""

    name = "trouble"

    def __init__(self, config: TroubleConfig):
        self.config = config

    def __len__(self) -> int:
        return self.config.items

    def item_name(self, index: int) -> str:
        return f"item {index}"

    def clip(self, index: int, generator) -> Clip:
        if index == self.config.hangs:
            while True:
                time.sleep(1000)
        if index == self.config.dies:
            os._exit(3)
        if index == self.config.fails:
            raise ClipError("is damaged")
        offset = 0 if generator is None else int(generator.integers(100))
        frames = torch.full((4, 3, 8, 8), index, dtype=torch.uint8)
        return Clip(frames, torch.arange(4.0) + offset, self.item_name(index))


if "trouble" not in DATASETS.kinds():

    @DATASETS.register("trouble", TroubleConfig)
    def build_trouble(config, split, seed):
        return Trouble(config)
