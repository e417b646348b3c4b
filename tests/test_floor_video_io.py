"""Files read back equal, or as near as their format allows; panels show what they claim, and where."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vidpred import panels
from vidpred.errors import UserError
from vidpred.video_io import read_frames, save_clip_panels, write_gif, write_png, write_video


def moving_disc(frames=12, height=64, width=64, step=(4, 2), channels=3):
    """A bright disc on a slow gradient, moving `step` = (x, y) pixels a frame: uint8 (T, C, H, W)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    background = torch.stack([40 + y, 80 + 0 * y, 60 + x])[:channels]
    clip = background.repeat(frames, 1, 1, 1)
    for t in range(frames):
        disc = (x - 10 - step[0] * t) ** 2 + (y - 20 - step[1] * t) ** 2 < 81
        clip[t][:, disc] = torch.tensor([250, 220, 30])[:channels, None]
    return clip.to(torch.uint8)


def mean_error(a, b):
    return (a.float() - b.float()).abs().mean().item()


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (1, 1)])
@pytest.mark.parametrize("fps", [8, 30000 / 1001, 0.5])
def test_mp4_comes_back(tmp_path, size, fps):
    frames = moving_disc(6, *size)
    write_video(tmp_path / "deep" / "clip.mp4", frames, fps, crf=8)
    back, back_fps = read_frames(tmp_path / "deep" / "clip.mp4")
    assert back_fps == pytest.approx(fps, rel=1e-4)
    height, width = size
    assert back.dtype == torch.uint8 and back.shape == (6, 3, height + height % 2, width + width % 2)
    assert mean_error(back[..., :height, :width], frames) < 6  # halved chroma blurs the disc's edge
    if height % 2:
        assert mean_error(back[..., -1, :], back[..., -2, :]) < 6
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["clip.mp4"]


def test_mp4_is_what_players_read(tmp_path):
    write_video(tmp_path / "clip.mp4", moving_disc(3), 8)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")


def test_grey_frames_become_rgb(tmp_path):
    grey = moving_disc(4, channels=1)
    write_video(tmp_path / "grey.mp4", grey, 8)
    assert mean_error(read_frames(tmp_path / "grey.mp4")[0], grey.expand(-1, 3, -1, -1)) < 4


def test_gif_and_png_come_back(tmp_path):
    frames = moving_disc(5)
    write_gif(tmp_path / "clip.gif", frames, 8)
    with Image.open(tmp_path / "clip.gif") as gif:
        assert gif.n_frames == 5 and gif.info["duration"] == 120 and gif.info["loop"] == 0
        for index in range(5):
            gif.seek(index)
            shown = torch.from_numpy(np.array(gif.convert("RGB"))).movedim(-1, 0)
            assert mean_error(shown, frames[index]) < 6
    write_png(tmp_path / "frame.png", frames[0])
    exact = torch.from_numpy(np.array(Image.open(tmp_path / "frame.png"))).movedim(-1, 0)
    assert torch.equal(exact, frames[0])


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(2, 3, 4, 4),
        torch.zeros(3, 4, 4).byte(),
        torch.zeros(2, 4, 4, 4).byte(),
        torch.zeros(0, 3, 4, 4).byte(),
    ],
)
def test_frames_of_another_kind_are_refused(tmp_path, frames):
    for write in (write_video, write_gif):
        with pytest.raises(ValueError, match="uint8"):
            write(tmp_path / "x.mp4", frames, 8)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    write_video(path, moving_disc(3), 8)
    old = path.read_bytes()

    def fail(*arguments, **keywords):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_video(path, moving_disc(9), 8)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_reading_a_part(tmp_path):
    write_video(tmp_path / "clip.mp4", moving_disc(12), 8)
    every, _ = read_frames(tmp_path / "clip.mp4")
    for start, stride, count in ((0, 1, 12), (3, 1, 4), (2, 3, 4), (11, 5, 1), (1, 4, None)):
        part, fps = read_frames(tmp_path / "clip.mp4", count, start, stride)
        assert torch.equal(part, every[start::stride][:count]) and fps == 8


@pytest.mark.parametrize("start, stride, count", [(0, 1, 13), (10, 2, 2), (12, 1, None)])
def test_too_few_frames(tmp_path, start, stride, count):
    write_video(tmp_path / "clip.mp4", moving_disc(12), 8)
    with pytest.raises(UserError, match="clip.mp4: has only"):
        read_frames(tmp_path / "clip.mp4", count, start, stride)


def test_unreadable_files(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    for name in ("text.mp4", "empty.mp4", "folder.mp4", "missing.mp4", "concat:text.mp4|empty.mp4"):
        with pytest.raises(UserError, match=name.split(":")[0]):
            read_frames(tmp_path / name)


def test_a_name_that_begins_like_an_instruction(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("-concat:a.mp4", moving_disc(2), 8)
    assert read_frames("-concat:a.mp4")[0].shape[0] == 2


def picture(path):
    return np.array(Image.open(path).convert("RGB")).astype(int)


def tiles_of(strip, rows, columns, tile):
    """The tiles' pixels and the colour of their borders, found from the lower right corner of the strip."""
    height, width = tile
    cell = (height + 2 * panels.BORDER + panels.GAP, width + 2 * panels.BORDER + panels.GAP)
    top, left = strip.shape[0] - rows * cell[0], strip.shape[1] - columns * cell[1]
    for row in range(rows):
        for column in range(columns):
            y, x = top + row * cell[0], left + column * cell[1]
            inner = strip[y + panels.BORDER :, x + panels.BORDER :][:height, :width]
            yield row, column, inner, tuple(strip[y, x])


def test_panels(tmp_path):
    truth, prediction = moving_disc(8), moving_disc(8, step=(5, 2))
    paths = save_clip_panels(tmp_path / "samples", "clip_0", truth[:3], truth[3:], prediction[3:], fps=8)
    assert [path.name for path in paths] == ["clip_0.png", "clip_0.gif", "clip_0.mp4"]
    assert all(path.stat().st_size > 0 for path in paths)

    factor = 2  # 64 -> 128
    error = 2 * (truth.int() - prediction.int()).abs().clamp(max=127)
    for row, column, inner, border in tiles_of(picture(paths[0]), 3, 8, (128, 128)):
        shown = inner[::factor, ::factor].transpose(2, 0, 1)
        assert (inner == np.repeat(np.repeat(inner[::factor, ::factor], factor, 0), factor, 1)).all()
        if row == 2 and column < 3:
            assert (shown == shown[:, :1, :1]).all() and border == panels.NO_COLOUR
            continue
        expected = (truth, truth if column < 3 else prediction, error)[row][column].numpy()
        assert np.abs(shown - expected).max() <= (1 if row == 2 else 0), (row, column)
        assert border == (panels.CONTEXT_COLOUR if column < 3 else panels.UNKNOWN_COLOUR)

    moving, fps = read_frames(paths[2])
    assert len(moving) == 8 and fps == 8
    with Image.open(paths[1]) as gif:
        assert gif.n_frames == 8
        assert abs(gif.size[0] - moving.shape[3]) < 2 and gif.size[0] > 3 * 128


def test_panels_without_truth_and_with_grey_odd_frames(tmp_path):
    clip = moving_disc(5, 33, 150, channels=1)
    paths = save_clip_panels(tmp_path, "clip", clip[:2], None, clip[2:], fps=8)
    tiles = list(tiles_of(picture(paths[0]), 1, 5, (132, 600)))
    for _, column, inner, _ in tiles:
        assert (inner[::4, ::4, 0] == clip[column, 0].numpy()).all()
    assert len(read_frames(paths[2])[0]) == 5


def test_panels_show_which_frames_were_given(tmp_path):
    clip, prediction = moving_disc(5), moving_disc(5, step=(5, 2))
    given = torch.tensor([False, True, False, False, True])
    clips = clip[given], clip[~given], prediction[~given]
    paths = save_clip_panels(tmp_path, "clip", *clips, fps=8, given=given.tolist())
    for row, column, inner, border in tiles_of(picture(paths[0]), 3, 5, (128, 128)):
        if row == 2 and given[column]:
            assert border == panels.NO_COLOUR
            continue
        assert border == (panels.CONTEXT_COLOUR if given[column] else panels.UNKNOWN_COLOUR)
        if row < 2:
            expected = clip if row == 0 or given[column] else prediction
            assert (inner[::2, ::2].transpose(2, 0, 1) == expected[column].numpy()).all(), (row, column)
    labels = [panels._time_label(time, given.tolist()) for time in range(5)]
    assert labels == ["+1", "context 2", "+1", "+2", "context 5"]
    assert len(read_frames(paths[2])[0]) == 5
    with pytest.raises(ValueError, match="given must be 2 of 5 frames, not 3 of 5"):
        save_clip_panels(tmp_path, "clip", clip[given], None, prediction[~given], 8, (~given).tolist())


def test_panels_of_a_clip_of_which_nothing_is_given(tmp_path):
    clip = moving_disc(14)
    paths = save_clip_panels(tmp_path, "clip", clip[:0], None, clip, 8, [False] * 14)
    tiles = list(tiles_of(picture(paths[0]), 1, panels.MAX_COLUMNS - 1, (128, 128)))
    assert all(border == panels.UNKNOWN_COLOUR for *_, border in tiles)
    assert len(read_frames(paths[2])[0]) == 14


def test_labels_fit_beside_their_rows(tmp_path):
    """There is ink in the label column and above each column, and it does not touch the tiles."""
    clip = moving_disc(4)
    strip = picture(save_clip_panels(tmp_path, "clip", clip[:2], clip[2:], clip[2:], fps=8)[0])
    cell = 128 + 2 * panels.BORDER + panels.GAP
    top, left = strip.shape[0] - 3 * cell, strip.shape[1] - 4 * cell
    ink = (np.abs(strip - np.array(panels.BACKGROUND)) > 60).any(axis=2)
    for row in range(3):
        assert ink[top + row * cell : top + (row + 1) * cell, :left].sum() > 50
    for column in range(4):
        assert ink[:top, left + column * cell : left + (column + 1) * cell].sum() > 10
    assert not ink[:, left - 2 : left].any() and not ink[top - 2 : top, :left].any()


@pytest.mark.parametrize("total, given", [(5, 2), (12, 4), (13, 12), (40, 5), (100, 1)])
def test_columns_of_long_clips(total, given):
    columns = panels._columns(total, given)
    assert columns == sorted(set(columns)) and len(columns) <= panels.MAX_COLUMNS
    assert {0, given - 1, total - 1} <= set(columns)


def test_truth_and_prediction_must_be_alike(tmp_path):
    clip = moving_disc(6)
    with pytest.raises(ValueError, match="alike"):
        save_clip_panels(tmp_path, "clip", clip[:2], clip[2:], clip[3:], fps=8)


@pytest.mark.skipif("VIDPRED_ASSETS" not in os.environ, reason="needs VIDPRED_ASSETS")
def test_files_as_they_are_found():
    """Rotation by the file, the best of several streams, odd metadata, nothing that crashes."""
    assets = Path(os.environ["VIDPRED_ASSETS"])
    for degrees, size in ((0, (320, 568)), (90, (568, 320)), (180, (320, 568)), (270, (568, 320))):
        frames, _ = read_frames(assets / "videos_odd" / f"decord_rot{degrees}.mov", count=1)
        assert frames.shape[-2:] == size
    assert read_frames(assets / "videos" / "nasa_13013.mp4", count=1)[0].shape == (1, 3, 270, 480)
    for path in sorted([*(assets / "videos_odd").iterdir(), *(assets / "videos").glob("*.*")]):
        try:
            frames, _ = read_frames(path, count=2)
        except UserError as error:
            assert path.name in str(error)
        else:
            assert frames.shape[:2] == (2, 3)
