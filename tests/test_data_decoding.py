"""Probing and reading videos: which reader is chosen, which files are refused, frames by index in any
order."""

import dataclasses
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from data_fixtures import (
    cut_by_edit_list,
    frame_numbers,
    numbered_frames,
    rotate,
    two_sizes,
    write_audio,
    write_video,
)

from vidpred.data import ClipError, decoding, probing
from vidpred.data.probing import probe_video

REQUESTS = [[0, 1, 2], [30, 31, 35], [39], [5, 20, 21], [0, 39], [3, 3, 4]]


def probe(path: Path, quick: bool = False, changes: bool = False):
    return probe_video(path, path.name, quick, changes, lambda: None)


def read_numbers(path: Path, source, indices) -> list[int]:
    return frame_numbers(decoding.read_video(path, source, np.array(indices)))


def sequential_numbers(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return frame_numbers(np.stack(frames))


@pytest.fixture(scope="module")
def long_video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "long.mp4", numbered_frames(120), gop=60)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm", ".avi"])
def test_a_good_file_goes_to_decord(tmp_path, suffix, quick):
    path = write_video(tmp_path / f"good{suffix}", numbered_frames(40))
    source = probe(path, quick)
    assert (source.reader, source.frames, source.height, source.width) == ("decord", 40, 48, 64)
    assert source.fps == pytest.approx(10, rel=1e-3) and source.times is None
    for request in REQUESTS:
        assert read_numbers(path, source, request) == request


def test_gif_and_its_own_timing(tmp_path):
    path = write_video(tmp_path / "moving.gif", numbered_frames(20))
    source = probe(path)
    assert source.frames == 20 and source.reader == "pyav" and "decord" in source.note
    for request in ([0, 1], [19], [7, 8, 9]):
        assert read_numbers(path, source, request) == request


@pytest.mark.parametrize("quick", [False, True])
def test_a_cut_with_an_edit_list_goes_to_pyav(tmp_path, long_video, quick):
    path = cut_by_edit_list(tmp_path / "cut.mp4", long_video, seconds=2.7)
    truth = sequential_numbers(path)
    source = probe(path, quick)
    assert source.reader == "pyav" and source.note
    assert source.frames == len(truth) < 120
    for request in ([0, 1], [60, 61], [len(truth) - 1], [10, 50, 80], [40]):
        assert read_numbers(path, source, request) == [truth[index] for index in request]


def test_pyav_seeks_to_anchors_and_finds_the_same_frames(tmp_path, long_video):
    path = cut_by_edit_list(tmp_path / "cut.mp4", long_video, seconds=2.7)
    source = probe(path)
    assert source.anchors and all(
        later[0] - earlier[0] >= 12 for earlier, later in zip(source.anchors, source.anchors[1:])
    )
    with decoding.open_video(path) as (container, stream):
        index, frame = next(decoding.decode_from(container, stream, source.anchors[-1]))
    assert frame_numbers(frame.to_ndarray(format="rgb24")[None]) == [sequential_numbers(path)[index]]


def test_avi_with_b_frames_is_read_in_presentation_order(tmp_path):
    path = tmp_path / "xvid.avi"
    frames = numbered_frames(40)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.max_b_frames = 2
        stream.options = {"qmin": "1", "qmax": "3"}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    truth = sequential_numbers(path)
    source = probe(path)
    assert source.frames == len(truth)
    for request in ([0, 1, 2], [20, 21, 22], [len(truth) - 1]):
        assert read_numbers(path, source, request) == [truth[index] for index in request]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_are_turned_upright(tmp_path, degrees):
    plain = write_video(tmp_path / "plain.mp4", numbered_frames(12))
    turned = rotate(shutil.copy(plain, tmp_path / "turned.mp4"), degrees)
    straight, source = probe(plain), probe(turned)
    assert source.rotation % 360 == -degrees % 360
    expected = np.rot90(decoding.read_video(plain, straight, np.arange(12)), -degrees // 90, axes=(1, 2))
    assert (source.height, source.width) == expected.shape[1:3]
    assert np.array_equal(decoding.read_video(turned, source, np.arange(12)), expected)
    assert np.array_equal(decoding.read_pyav(turned, np.arange(12), source), expected)


def test_variable_rate_keeps_its_times(tmp_path):
    path, times = tmp_path / "variable.mkv", [0, 40, 80, 300, 340, 380, 1000]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, pixels in zip(times, numbered_frames(len(times))):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    source = probe(path)
    assert source.times == pytest.approx([time / 1000 for time in times], abs=2e-3)
    assert source.fps == pytest.approx(6.0, rel=1e-2)


def test_files_that_cannot_be_used_say_why(tmp_path):
    good = write_video(tmp_path / "good.mp4", numbered_frames(40))
    data = good.read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("version https://git-lfs.github.com/spec/v1")
    (tmp_path / "no_index.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    write_audio(tmp_path / "sound.mp4")
    two_sizes(tmp_path / "sizes.mkv")
    reasons = {
        "empty.mp4": "empty",
        "text.mp4": "cannot be opened",
        "no_index.mp4": "cannot be opened",
        "folder.mp4": "not a regular file",
        "pipe.mp4": "not a regular file",
        "missing.mp4": "does not exist",
        "sound.mp4": "no video stream",
        "sizes.mkv": "changes its frame size from 64x48 to 48x32 at frame 12",
    }
    for name, reason in reasons.items():
        for quick in (False, True):
            with pytest.raises(ClipError, match=reason):
                probe(tmp_path / name, quick)


def test_damage_in_the_middle_is_found(tmp_path):
    path = write_video(tmp_path / "damaged.mkv", numbered_frames(60), gop=60)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(bytes(data))
    with pytest.raises(ClipError, match="damaged"):
        probe(path)


def test_a_truncated_file_is_refused_or_read_as_far_as_it_goes(tmp_path):
    path = write_video(tmp_path / "whole.mkv", numbered_frames(60))
    cut = tmp_path / "truncated.mkv"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    try:
        source = probe(cut)
    except ClipError as error:
        assert "damaged" in str(error)
        return
    assert 20 < source.frames < 60
    assert read_numbers(cut, source, [0, source.frames - 1]) == [0, source.frames - 1]


def test_names_are_never_protocols_and_stay_under_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "inside" / "one.mp4", numbered_frames(3))
    for name in ("concat:inside/one.mp4|inside/one.mp4", "http://127.0.0.1/one.mp4", "file:inside/one.mp4"):
        with pytest.raises(ClipError, match="does not exist"):
            decoding.check_file(Path(name))
    with pytest.raises(ClipError, match="outside"):
        decoding.check_file(Path("inside/../other.mp4"), Path("inside"))
    shutil.copy("inside/one.mp4", "-dash.mp4")
    assert probe(Path("-dash.mp4")).frames == 3


def test_decord_failing_later_falls_back_to_pyav(tmp_path, monkeypatch):
    path = write_video(tmp_path / "good.mp4", numbered_frames(40))
    source = probe(path)

    def fail(path, indices, size):
        raise ClipError("decord: failed")

    monkeypatch.setattr(decoding, "read_decord", fail)
    assert read_numbers(path, source, [30, 31]) == [30, 31]


def test_a_file_that_shrank_after_the_scan_is_an_error(tmp_path):
    path = write_video(tmp_path / "changed.mp4", numbered_frames(40))
    source = probe(path)
    write_video(path, numbered_frames(10))
    with pytest.raises(ClipError, match="ends before frame 30"):
        decoding.read_video(path, source, np.array([30]))


def test_changes_of_thumbnails(tmp_path):
    frames = np.full((12, 48, 64, 3), 60, dtype=np.uint8)
    frames[6:] = 200
    source = probe(write_video(tmp_path / "cut.mp4", frames), changes=True)
    assert len(source.changes) == 11
    assert (
        source.changes[5] == pytest.approx(140, abs=25) and max(source.changes[:5] + source.changes[6:]) < 2
    )


def test_anchors_that_do_not_hold_are_not_used(tmp_path, long_video):
    survey = probing._survey_frames(long_video, False, lambda: None)
    anchors = probing._spaced([key for key in survey.keys if key[0] >= 40])[:1]
    assert anchors
    assert probing._anchors_hold(long_video, survey, anchors, lambda: None)
    (index, stamp), ticks = anchors[0], survey.stamps[1] - survey.stamps[0]
    for wrong in ((index, stamp + ticks), (index - 1, stamp)):  # No key frame there; another frame's index.
        assert not probing._anchors_hold(long_video, survey, (wrong,), lambda: None)
    survey.checksums[119] += 1  # The last frame before the next anchor, or the end.
    assert not probing._anchors_hold(long_video, survey, anchors, lambda: None)


def test_without_anchors_pyav_decodes_from_the_beginning(tmp_path, long_video):
    source = dataclasses.replace(probe(long_video), reader="pyav", anchors=())
    for request in REQUESTS:
        assert read_numbers(long_video, source, request) == request


def smooth_video(path: Path) -> Path:
    y, x = np.mgrid[0:240, 0:320]
    waves = [127 + 100 * np.sin((x + 4 * t) / 23) * np.cos(y / 31) for t in range(8)]
    return write_video(path, np.stack([np.stack([w, w, 255 - w], axis=-1) for w in waves]).astype(np.uint8))


@pytest.mark.parametrize("turned", [False, True])
def test_both_readers_shrink_alike_and_as_resizing_does(tmp_path, turned):
    path = smooth_video(tmp_path / "large.mp4")
    if turned:
        rotate(path, 90)
    source, indices = probe(path), np.array([1, 2, 6])
    size = (80, 60) if turned else (60, 80)
    native = decoding.read_video(path, source, indices)
    assert source.reader == "decord" and native.shape[1:3] == (4 * size[0], 4 * size[1])
    expected = native.reshape(3, size[0], 4, size[1], 4, 3).mean(axis=(2, 4))
    by_pyav = decoding.read_pyav(path, indices, source, size)
    assert by_pyav.shape == expected.shape and np.abs(by_pyav - expected).mean() < 4  # Colours shift a little.
    read = decoding.read_video(path, source, indices, size)
    assert np.array_equal(read, native) if turned else np.abs(read - by_pyav.astype(int)).mean() < 1
