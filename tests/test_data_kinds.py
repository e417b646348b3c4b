"""The kinds of data: shapes, video folders, folders of frames, arrays."""

import json

import av
import h5py
import numpy as np
import pytest
import torch
from data_fixtures import frame_numbers, numbered_frames, write_video
from PIL import Image

from vidpred.data import (
    ArraysConfig,
    FrameFolderConfig,
    ShapesConfig,
    VideoFolderConfig,
    build_dataset,
    shapes,
)
from vidpred.errors import UserError
from vidpred.random_streams import host_generator

NO_SPLIT = dict(val_fraction=0.0, test_fraction=0.0, num_workers=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDPRED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def small_shapes(**changes):
    options = dict(
        num_clips=6, num_val_clips=2, num_test_clips=1, num_workers=1, num_frames=8, clip_frames=10
    )
    return ShapesConfig(**{**options, **changes})


def numbers(clip) -> list[int]:
    return frame_numbers(clip.frames.permute(0, 2, 3, 1).numpy())


def test_a_shape_is_where_the_formula_says_and_covers_its_area():
    for outline, area in (("disc", np.pi), ("square", 2.0), ("triangle", 3 * np.sqrt(3) / 4)):
        shape = shapes.Shape(outline, 7.3, 0.4, np.ones(3), np.array([20.0, 30.0]), np.array([3.1, -4.2]))
        pixels = np.zeros((12, 64, 48, 3), dtype=np.float32)
        shape.draw(pixels)
        cover = pixels[..., 0]
        assert cover.sum(axis=(1, 2)) == pytest.approx(area * 7.3**2, rel=0.02)
        rows, columns = np.arange(64) + 0.5, np.arange(48) + 0.5
        centroid = np.stack([(cover.sum(2) * rows).sum(1), (cover.sum(1) * columns).sum(1)], axis=1)
        centroid /= cover.sum(axis=(1, 2))[:, None]
        assert np.abs(centroid - shape.centres(12, 64, 48)).max() < 0.1


def test_shapes_move_straight_and_bounce_inside_the_picture():
    shape = shapes.Shape("disc", 5.0, 0.0, np.ones(3), np.array([10.0, 12.0]), np.array([3.0, -4.0]))
    centres = shape.centres(200, 64, 48)
    assert centres[:3].tolist() == [[10, 12], [13, 8], [16, 6]]  # 12 - 8 = 4 lies 1 beyond the wall at 5.
    assert (centres >= 5).all() and (centres[:, 0] <= 59).all() and (centres[:, 1] <= 43).all()
    steps = np.abs(np.diff(centres, axis=0))
    assert steps.max(axis=0) == pytest.approx([3, 4]) and np.median(steps, axis=0) == pytest.approx([3, 4])


def test_random_shapes_obey_the_configuration():
    config = small_shapes(num_shapes=2, speed=(1.0, 2.0), radius=(0.1, 0.15))
    seen = set()
    for index in range(40):
        background, drawn = shapes.random_shapes(config, host_generator(0, "test", index))
        assert len(drawn) == 2
        for shape in drawn:
            assert 6.4 <= shape.radius <= 9.6 and 1.0 <= np.linalg.norm(shape.velocity) <= 2.0
            assert shape.colour.min() >= 0.5 and background.max() <= 0.3
            seen.add(shape.outline)
    assert seen == set(shapes.OUTLINES)


def test_shapes_are_rendered_once_and_read_back(cache):
    train = build_dataset(small_shapes(), "train", 0)
    files = sorted(cache.rglob("*.mp4"))
    dates = [file.stat().st_mtime_ns for file in files]
    val = build_dataset(small_shapes(), "val", 1)
    assert (len(train), len(val), len(files)) == (6, 2, 9)
    assert [file.stat().st_mtime_ns for file in files] == dates and not list(cache.rglob(".*"))
    clip = val.clip(1, None)
    assert clip.frames.shape == (8, 3, 64, 64) and clip.name == "val/000001.mp4"
    truth = shapes.render(small_shapes(), "val", 1)[:8]
    error = np.abs(clip.frames.permute(0, 2, 3, 1).numpy().astype(int) - truth)
    assert error.mean() < 4  # The colours have half the resolution.
    windows = {tuple(train.clip(0, host_generator(0, "clip", n)).frames[0, 0, 0].tolist()) for n in range(9)}
    assert len(windows) >= 1 and train.clip(0, host_generator(0, "clip", 1)).frames.equal(
        train.clip(0, host_generator(0, "clip", 1)).frames
    )


def test_other_shapes_go_to_another_folder_and_differ_by_seed_split_and_index():
    assert shapes.shapes_folder(small_shapes()) == shapes.shapes_folder(small_shapes(num_frames=4, flip=True))
    for changes in ({"render_seed": 1}, {"height": 32}, {"speed": (2.0, 4.0)}, {"num_clips": 7}):
        assert shapes.shapes_folder(small_shapes()) != shapes.shapes_folder(small_shapes(**changes))
    pictures = [
        shapes.render(small_shapes(render_seed=s), split, i)
        for s in (0, 1)
        for split in ("train", "val")
        for i in (0, 1)
    ]
    assert len({picture.tobytes() for picture in pictures}) == 8
    assert np.array_equal(pictures[0], shapes.render(small_shapes(), "train", 0))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_frames": 11}, "data.num_frames: 11 frames need 11 of the 10"),
        ({"frame_stride": 2}, "data.num_frames: 8 frames need 15 of the 10"),
        ({"fps": 9.0}, "data.fps"),
        ({"fps": 4.0}, "data.num_frames: 8 frames need 15"),
        ({"height": 33}, "data.height"),
        ({"speed": (5.0, 2.0)}, "data.speed"),
        ({"radius": (0.1, 0.6)}, "data.radius"),
        ({"num_clips": 0}, "data.num_clips"),
    ],
)
def test_impossible_shapes_are_refused_by_key(changes, message):
    with pytest.raises(UserError, match=message):
        small_shapes(**changes)


def test_video_folder_gives_the_window_that_the_generator_chose(tmp_path):
    for number in range(3):
        write_video(tmp_path / "videos" / f"{number}.mp4", numbered_frames(30))
    config = VideoFolderConfig(root=str(tmp_path / "videos"), num_frames=5, height=48, width=64, **NO_SPLIT)
    dataset = build_dataset(config, "train", 0)
    assert numbers(dataset.clip(0, None)) == [0, 1, 2, 3, 4]
    starts = {numbers(dataset.clip(1, host_generator(0, "clip", draw)))[0] for draw in range(40)}
    assert len(starts) > 15 and starts <= set(range(26))
    assert dataset.num_windows(0) == 6
    assert [numbers(dataset.fixed_clip(0, window))[0] for window in range(6)] == [0, 5, 10, 15, 20, 25]


def test_the_draws_of_a_clip_without_varying_strides(tmp_path):
    """In this order, and no others: training goes on where an earlier version of the code stopped."""
    write_video(tmp_path / "videos" / "one.mp4", numbered_frames(30))
    options = dict(root=str(tmp_path / "videos"), num_frames=5, height=40, width=40, crop="random", flip=True)
    for strides in ({}, {"max_frame_stride": 1}):
        dataset = build_dataset(VideoFolderConfig(**options, **strides, **NO_SPLIT), "train", 0)
        for draw in range(5):
            used, expected = (host_generator(0, "clip", draw) for _ in range(2))
            dataset.clip(0, used)
            for room in (26, 1, 17):  # places of the window in time, down and across (48 of 64 pixels)
                expected.integers(room)
            expected.random()  # mirrored or not
            assert used.random() == expected.random()


VARYING = dict(num_frames=3, frame_stride=2, max_frame_stride=5)


def make_videos(root):
    write_video(root / "long.mp4", numbered_frames(24))
    write_video(root / "short.mp4", numbered_frames(8))
    return VideoFolderConfig(root=str(root), height=48, width=64, **VARYING, **NO_SPLIT)


def make_folders(root):
    write_pictures(root / "long", numbered_frames(24))
    write_pictures(root / "short", numbered_frames(8))
    return frame_config(root, **VARYING)


def make_arrays(root):
    root.mkdir()
    save_array(root / "long.npy", numbered_frames(24))
    save_array(root / "short.npy", numbered_frames(8))
    return array_config(root, **VARYING)


@pytest.mark.parametrize("make", [make_videos, make_folders, make_arrays])
def test_training_clips_vary_in_stride_and_tell_it_by_their_times(tmp_path, make):
    """24 frames hold all strides from 2 to 5, 8 frames hold 2 and 3."""
    dataset = build_dataset(make(tmp_path / "root"), "train", 0)
    for item, possible in ((0, {2, 3, 4, 5}), (1, {2, 3})):
        seen, starts = [], set()
        for draw in range(60):
            clip = dataset.clip(item, host_generator(0, "clip", draw))
            first, second, third = numbers(clip)
            assert second - first == third - second
            assert clip.frame_times.tolist() == [0, (second - first) / 2, second - first]
            seen.append(second - first)
            starts.add((first, second - first))
        assert set(seen) == possible
        share = 1 / len(possible)
        counts = [seen.count(stride) / 60 for stride in possible]
        assert np.abs(np.array(counts) - share).max() < 4 * np.sqrt(share * (1 - share) / 60)
        assert len(starts) > (20 if item == 0 else 4)
        fixed = dataset.clip(item, None)
        assert numbers(fixed) == [0, 2, 4] and fixed.frame_times.tolist() == [0, 1, 2]
        assert [numbers(dataset.fixed_clip(item, n))[0] for n in range(dataset.num_windows(item))] == (
            [0, 5, 10, 15] if item == 0 else [0]
        )
    one, other = (dataset.clip(0, host_generator(0, "clip", 7)) for _ in range(2))
    assert one.frames.equal(other.frames) and one.frame_times.equal(other.frame_times)


def test_shapes_vary_in_stride_as_far_as_their_files_go():
    """8 of 24 frames: strides 1, 2 and 3."""
    config = small_shapes(clip_frames=24, max_frame_stride=4)
    train, val = (build_dataset(config, split, 0) for split in ("train", "val"))
    clips = [train.clip(draw % 6, host_generator(0, "clip", draw)) for draw in range(30)]
    assert {clip.frame_times[1].item() for clip in clips} == {1, 2, 3}
    assert all(torch.equal(clip.frame_times, clip.frame_times[1] * torch.arange(8)) for clip in clips)
    assert val.clip(0, None).frame_times.tolist() == list(range(8))
    assert shapes.shapes_folder(config) == shapes.shapes_folder(small_shapes(clip_frames=24))


def test_selection_works_from_the_files(tmp_path):
    frames = np.concatenate([numbered_frames(20), np.full((20, 48, 64, 3), 128, dtype=np.uint8)])
    write_video(tmp_path / "videos" / "half.mp4", frames)
    write_video(tmp_path / "videos" / "still.mp4", frames[25:])
    options = dict(
        root=str(tmp_path / "videos"), num_frames=5, height=48, width=64, min_motion=1.0, max_cut=60.0
    )
    dataset = build_dataset(VideoFolderConfig(**options, **NO_SPLIT), "train", 0, tmp_path / "report.json")
    assert [dataset.item_name(i) for i in range(len(dataset))] == ["half.mp4"]
    starts = {numbers(dataset.clip(0, host_generator(0, "clip", draw)))[0] for draw in range(40)}
    assert max(starts) <= 19
    assert "no window moves" in json.loads((tmp_path / "report.json").read_text())["rejected"]["still.mp4"]


def write_pictures(folder, frames, name="frame_{}.png", order=None):
    folder.mkdir(parents=True)
    for number, frame in zip(order or range(len(frames)), frames):
        Image.fromarray(frame).save(folder / name.format(number))


def frame_config(root, **changes):
    return FrameFolderConfig(
        **{**dict(root=str(root), num_frames=4, height=48, width=64), **NO_SPLIT, **changes}
    )


@pytest.mark.parametrize("scan", ["full", "quick"])
def test_folders_of_numbered_frames(tmp_path, scan):
    write_pictures(
        tmp_path / "root" / "a" / "one", numbered_frames(12)
    )  # Not in alphabetical order: 10 before 2.
    write_pictures(tmp_path / "root" / "two", numbered_frames(6), "x_{}_.bmp", [5, 10, 15, 20, 100, 200])
    dataset = build_dataset(frame_config(tmp_path / "root", scan=scan), "train", 0)
    assert [dataset.item_name(i) for i in range(2)] == ["a/one", "two"]
    assert [source.frames for source in dataset.sources] == [12, 6]
    assert numbers(dataset.clip(0, None)) == [0, 1, 2, 3]
    starts = {numbers(dataset.clip(1, host_generator(0, "clip", draw)))[0] for draw in range(20)}
    assert starts == {0, 1, 2}


def test_folders_of_frames_that_cannot_be_used(tmp_path):
    root = tmp_path / "root"
    write_pictures(root / "good", numbered_frames(4))
    write_pictures(root / "sizes", numbered_frames(4))
    Image.new("RGB", (10, 10)).save(root / "sizes" / "frame_9.png")
    write_pictures(root / "names", numbered_frames(4))
    (root / "names" / "cover.png").write_bytes((root / "names" / "frame_0.png").read_bytes())
    write_pictures(root / "twice", numbered_frames(4))
    (root / "twice" / "frame_0002.png").write_bytes((root / "names" / "frame_2.png").read_bytes())
    write_pictures(root / "damaged", numbered_frames(4))
    (root / "damaged" / "frame_2.png").write_bytes(b"no picture")
    dataset = build_dataset(frame_config(root, max_bad_fraction=1.0), "train", 0)
    assert [dataset.item_name(i) for i in range(len(dataset))] == ["good"]
    problems = dataset.report.unusable
    assert (
        "frame_9.png is 10x10, others 64x48" in problems["sizes"]
        and "'cover.png' has no number" in problems["names"]
    )
    assert "same number" in problems["twice"] and "frame_2.png is not a picture" in problems["damaged"]


def test_selection_of_folders_of_frames(tmp_path):
    write_pictures(tmp_path / "root" / "moving", numbered_frames(8))
    write_pictures(tmp_path / "root" / "still", numbered_frames(1).repeat(8, axis=0))
    dataset = build_dataset(frame_config(tmp_path / "root", min_motion=1.0), "train", 0)
    assert [dataset.item_name(i) for i in range(len(dataset))] == ["moving"]


def array_config(root, **changes):
    return ArraysConfig(**{**dict(root=str(root), num_frames=4, height=48, width=64), **NO_SPLIT, **changes})


CLIPS = np.stack([numbered_frames(40)[start : start + 10] for start in (0, 10, 20)])  # (N, T, H, W, C)


@pytest.mark.parametrize("suffix", ["npy", "npz", "h5"])
@pytest.mark.parametrize(
    "layout, order", [("auto", "NTHWC"), ("auto", "NTCHW"), ("TNHWC", "TNHWC"), ("NCTHW", "NCTHW")]
)
def test_arrays_in_any_layout(tmp_path, suffix, layout, order):
    root = tmp_path / "root"
    root.mkdir()
    save_array(root / f"clips.{suffix}", CLIPS.transpose(["NTHWC".index(letter) for letter in order]))
    for stride, fps in ((1, None), (3, None), (1, 17.0)):
        dataset = build_dataset(array_config(root, layout=layout, frame_stride=stride, fps=fps), "train", 0)
        assert [dataset.item_name(i) for i in range(3)] == [f"clips.{suffix}#{row}" for row in range(3)]
        expected = {1: [10, 11, 12, 13], 3: [10, 13, 16, 19]}[stride] if fps is None else [10, 11, 13, 14]
        assert numbers(dataset.clip(1, None)) == expected


def save_array(path, array, **others):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, clips=array, **others)
    else:
        with h5py.File(path, "w") as file:
            for name, values in {"group/clips": array, **others}.items():
                file[name] = values


def test_grey_and_floating_point_arrays(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    grey = CLIPS[0, ..., 0]
    save_array(root / "a_grey.npy", grey)  # (T, H, W)
    save_array(root / "b_float.npz", CLIPS[1].astype(np.float32) / 255, labels=np.arange(3))
    dataset = build_dataset(array_config(root), "train", 0)
    first, second = (dataset.clip(index, None).frames for index in range(2))
    assert torch.equal(first, torch.from_numpy(grey[:4, None]).expand(-1, 3, -1, -1))
    assert torch.equal(second, torch.from_numpy(CLIPS[1, :4]).permute(0, 3, 1, 2))


def test_arrays_of_one_file_are_split_by_clip(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    save_array(root / "all.h5", np.zeros((40, 4, 8, 8), dtype=np.uint8))
    config = array_config(root, val_fraction=0.2, test_fraction=0.2)
    datasets = [build_dataset(config, split, 0) for split in ("train", "val", "test")]
    names = [dataset.item_name(i) for dataset in datasets for i in range(len(dataset))]
    assert len(names) == len(set(names)) == 40 and all(len(dataset) > 2 for dataset in datasets)


def test_arrays_that_cannot_be_used(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    save_array(root / "good.npy", CLIPS[0])
    save_array(root / "range.npy", CLIPS[0].astype(np.float32))
    save_array(root / "nan.npy", np.full((5, 8, 8), np.nan))
    save_array(root / "integer.npy", CLIPS[0].astype(np.int64))
    save_array(root / "flat.npy", np.zeros((5, 5), dtype=np.uint8))
    save_array(root / "two.npz", CLIPS[0], more=CLIPS[0])
    np.save(root / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    (root / "text.h5").write_text("nothing")
    (root / "text.npz").write_text("nothing")
    dataset = build_dataset(array_config(root, max_bad_fraction=1.0), "train", 0)
    assert [dataset.item_name(i) for i in range(len(dataset))] == ["good.npy"]
    problems = dataset.report.unusable
    assert "outside [0, 1]" in problems["range.npy"] and "outside [0, 1]" in problems["nan.npy"]
    assert "int64" in problems["integer.npy"] and "set data.layout" in problems["flat.npy"]
    assert "set data.key" in problems["two.npz"] and "cannot be read" in problems["objects.npy"]
    assert "cannot be read" in problems["text.h5"] and "cannot be read" in problems["text.npz"]
    assert len(build_dataset(array_config(root, key="more", max_bad_fraction=1.0), "train", 0)) == 2


@pytest.mark.parametrize("layout", ["THWX", "TT", "NTH", "THWCN1"])
def test_layouts_that_are_none(layout):
    with pytest.raises(UserError, match="data.layout"):
        ArraysConfig(layout=layout)


def test_rendered_files_are_plain_h264():
    config = small_shapes()
    path = shapes.render_all(config) / "train" / "000000.mp4"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.frames, float(stream.average_rate)) == ("h264", 10, 8.0)
