"""Every file of the real assets: read correctly by index in any order, or reported with a reason.

The reference for frame i is PyAV's sequential decoding of the best video stream, turned upright.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from vidpred.data import decoding
from vidpred.data.scan import scan
from vidpred.data.video_folder import probe_one

ASSETS = os.environ.get("VIDPRED_ASSETS", "")
pytestmark = pytest.mark.skipif(not ASSETS, reason="VIDPRED_ASSETS is not set")

# What must not be usable, with a part of the reason; every other file must be.
UNUSABLE = {
    "decord_corrupted.mp4": "frame 28 cannot be decoded",
    "made_audio_only.mp4": "no video stream",
    "made_lfs_pointer.mp4": "cannot be opened",
    "made_truncated_no_moov.mp4": "cannot be opened",
    "made_zero_bytes.mp4": "empty",
    "made_zeros.mp4": "cannot be opened",
    "moviepy_result.webm": "empty",
    "mp4parse_bipbop_480wp_1001kbps-cenc-video-key1-init.mp4": "no frame",
    "mp4parse_bipbop_nonfragment_header.mp4": "no frame",
    "mp4parse_invalid_userdata.mp4": "no frame",
    "mp4parse_no_timescale.mp4": "damaged: frame 0 is marked corrupt",
    "mp4parse_sine-3s-xhe-aac-44khz-mono.mp4": "no video stream",
    "torchcodec_nasa_13013.mp4.audio.mp3": "no video stream",
}
NOT_DECORD = {"cut_hang.mp4", "cut_wrong_frames.mp4", "-video-with-dash-.mp4", "newtonscradle.gif"}
XVID = ("hmdb51_", "RATRACE", "SchoolRules", "TrumanShow")


def reference_frames(path: Path, indices: list[int]) -> tuple[int, dict[int, np.ndarray]]:
    """(number of frames, upright pixels at `indices`) by decoding the whole file in order."""
    wanted, kept, count = set(indices), {}, 0
    with decoding.open_video(path) as (container, stream):
        for count, frame in enumerate(container.decode(stream), start=1):
            if count - 1 in wanted:
                kept[count - 1] = decoding.FrameConverter(int(frame.rotation))(frame)
    return count, kept


def check_against_reference(path: Path, source) -> None:
    random = np.random.default_rng(0)
    size = min(8, source.frames)
    windows = [np.sort(random.choice(source.frames, size, replace=False)) for _ in range(2)]
    start = int(random.integers(max(1, source.frames - size)))
    windows.append(np.arange(start, start + size))
    windows.append(np.array([source.frames - 1]))
    count, truth = reference_frames(path, sorted({int(index) for window in windows for index in window}))
    assert source.frames == count
    for window in windows:
        frames = decoding.read_video(path, source, window)
        assert frames.shape == (len(window), source.height, source.width, 3) and frames.dtype == np.uint8
        for index, frame in zip(window, frames):
            error = np.abs(frame.astype(np.int16) - truth[int(index)]).mean()
            assert error < 0.5, f"{path.name} frame {index} read by {source.reader}: off by {error:.2f}"


def scan_assets(folder: str, names: list[str], tmp_path: Path, monkeypatch, scan_mode: str):
    monkeypatch.setenv("VIDPRED_CACHE", str(tmp_path))
    root = Path(ASSETS) / folder
    result = scan(
        root, names, partial(probe_one, root, scan_mode == "quick", False), scan_mode, 2, timeout=30
    )
    assert set(result.sources) | set(result.problems) == set(names)
    return root, result


def all_names(folder: str) -> list[str]:
    root = Path(ASSETS) / folder
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def check_folder(folder: str, names: list[str], tmp_path: Path, monkeypatch, scan_mode: str = "full") -> None:
    root, result = scan_assets(folder, names, tmp_path, monkeypatch, scan_mode)
    for name in names:
        if name in UNUSABLE and (scan_mode == "full" or name in result.problems):
            assert UNUSABLE[name] in result.problems[name]
            continue
        assert name in result.sources, f"{name}: {result.problems.get(name)}"
        (source,) = result.sources[name]
        if name in NOT_DECORD or name.startswith(XVID):
            assert source.reader == "pyav"
        check_against_reference(root / name, source)


QUICK_ODD = [
    *(NOT_DECORD | set(UNUSABLE)),
    "decord_rot90.mov",
    "decord_rot180.mov",
    "torchcodec_av1_video.mkv",
]
QUICK_VIDEOS = [
    "TrumanShow_wave_f_nm_np1_fr_med_26.avi",
    "openstl_examples/val_example1.avi",
    "nasa_13013.mp4",
]


def test_some_odd_files(tmp_path, monkeypatch):
    check_folder("videos_odd", sorted(QUICK_ODD), tmp_path, monkeypatch)


def test_some_videos(tmp_path, monkeypatch):
    check_folder("videos", QUICK_VIDEOS, tmp_path, monkeypatch)


@pytest.mark.slow
def test_every_odd_file(tmp_path, monkeypatch):
    check_folder("videos_odd", all_names("videos_odd"), tmp_path, monkeypatch)


@pytest.mark.slow
def test_every_video(tmp_path, monkeypatch):
    check_folder("videos", all_names("videos"), tmp_path, monkeypatch)


@pytest.mark.slow
def test_every_video_scanned_quickly(tmp_path, monkeypatch):
    check_folder("videos", all_names("videos"), tmp_path, monkeypatch, "quick")
