"""Moving digits: MNIST's files, motion, pictures, splits, and the shapes that take their place."""

import gzip
import logging
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vidpred.data import MovingDigitsConfig, build_dataset, digit_tracks, sample_clips
from vidpred.data.mnist_files import resize
from vidpred.data.moving_digits import MovingDigits, read_digits
from vidpred.errors import UserError
from vidpred.random_streams import host_generator

ASSETS = os.environ.get("VIDPRED_ASSETS", "")
COUNTS = {"train": 40, "t10k": 20}
STEP = 60  # from a digit's left half to its right half


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDPRED_CACHE", str(tmp_path / "cache"))


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def brightness(collection: str) -> np.ndarray:
    """(rows,) of the left halves of the digits below; no two digits share it."""
    return 5 + 3 * (np.arange(COUNTS[collection]) + (40 if collection == "t10k" else 0))


def write_mnist(folder: Path, dot: str = "-", packed: bool = True) -> Path:
    """Plain digits of 28x28 pixels. Rows 2 k and 2 k + 1 are digits k (mod 10), so that every label is there
    once in val and once in test."""
    folder.mkdir(parents=True, exist_ok=True)
    for collection, count in COUNTS.items():
        pictures = np.broadcast_to(brightness(collection)[:, None, None], (count, 28, 28)).astype(np.uint8)
        pictures[..., 14:] += STEP
        labels = (np.arange(count) // 2 % 10).astype(np.uint8)
        for content, array in (("images", pictures), ("labels", labels)):
            name = f"{collection}-{content}{dot}idx{array.ndim}-ubyte" + ".gz" * packed
            (folder / name).write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return folder


@pytest.fixture
def root(tmp_path) -> Path:
    return write_mnist(tmp_path / "mnist")


def small(root, **changes) -> MovingDigitsConfig:
    options = dict(num_frames=8, num_clips=30, num_val_clips=20, num_test_clips=20, num_workers=0)
    return MovingDigitsConfig(root=root and str(root), **{**options, **changes})


# Files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder, dot, packed", [("", "-", True), ("raw", "-", False), ("MNIST/raw", ".", True)]
)
def test_files_are_found_under_their_usual_names(tmp_path, folder, dot, packed):
    write_mnist(tmp_path / folder, dot, packed)
    digits = read_digits(small(tmp_path), "train")
    assert digits.pictures.shape == (40, 28, 28)
    assert digits.labels.tolist() == [row // 2 % 10 for row in range(40)]
    assert np.array_equal(digits.pictures[:, 5, 7], brightness("train"))


def _packed(array: np.ndarray) -> bytes:
    return gzip.compress(idx(array.astype(np.uint8)))


def _repacked(data: bytes, missing: int) -> bytes:
    return gzip.compress(gzip.decompress(data)[:-missing])


@pytest.mark.parametrize(
    "name, damage, reason",
    [
        ("train-images-idx3", lambda data: data[: len(data) // 2], "cannot be read"),
        ("train-images-idx3", lambda data: data[:40] + bytes([data[40] ^ 255]) + data[41:], "cannot be read"),
        ("t10k-labels-idx1", lambda data: b"", "is no idx file of bytes with 1 axes"),
        ("t10k-labels-idx1", lambda data: b"<html>", "cannot be read"),
        ("train-labels-idx1", lambda data: gzip.compress(b"<html>"), "is no idx file of bytes with 1 axes"),
        ("train-images-idx3", lambda data: _repacked(data, 9), "has 31351 bytes for 40"),
        ("t10k-images-idx3", lambda data: _packed(np.zeros((1, 9, 9))), "holds fewer than two"),
        ("t10k-images-idx3", lambda data: _packed(np.zeros((5, 9, 9))), "does not fit the 5 pictures"),
        ("t10k-labels-idx1", lambda data: _packed(np.full(20, 11)), "does not fit the 20 pictures"),
    ],
)
def test_a_damaged_file_is_named_in_one_line_before_training(root, name, damage, reason):
    file = root / f"{name}-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=f"^data.root: /.*ubyte.gz {reason}.*; put MNIST's") as caught:
        build_dataset(small(root), "train", 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz"])
def test_a_missing_file_is_named(root, name):
    (root / name).unlink()
    with pytest.raises(UserError, match=f"^data.root: {root} lacks {name}; add"):
        build_dataset(small(root), "train", 0)


# Shapes instead --------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_an_error_and_no_wish_for_shapes(tmp_path):
    with pytest.raises(UserError, match=f"^data.root: {tmp_path}/nowhere is not a folder; give the one that"):
        build_dataset(small(tmp_path / "nowhere"), "train", 0)


@pytest.mark.parametrize("given", [None, "empty"])
def test_without_files_shapes_take_the_place_and_the_log_says_so_once(tmp_path, caplog, given):
    (tmp_path / "empty").mkdir()
    folder = given and tmp_path / given
    config = small(folder, height=32, width=48, frame_stride=2, num_frames=13, num_clips=3, num_val_clips=2)
    with caplog.at_level(logging.WARNING, "vidpred.data.moving_digits"):
        train, val = (build_dataset(config, split, 0) for split in ("train", "val"))
    (message,) = [r.getMessage() for r in caplog.records if r.name == "vidpred.data.moving_digits"]
    assert message.endswith("moving shapes take the place of the moving digits")
    assert ("is not set" if given is None else str(folder)) in message
    assert train.clip(2, None).frames.shape == (13, 3, 32, 48)
    assert (len(train), len(val)) == (3, 2) and "shapes" in train.name and "val" in val.name
    assert train.substitute == "moving shapes"
    with pytest.raises(UserError, match="data.root"):
        digit_tracks(config, "val", 0)


def test_no_million_shapes_are_rendered(monkeypatch):
    asked = []

    def build_shapes(config, split, seed):
        asked.append(config)
        return MovingDigits(MovingDigitsConfig(), split, None)

    monkeypatch.setattr("vidpred.data.moving_digits.build_shapes", build_shapes)
    options = dict(num_frames=15, num_digits=3, render_seed=7, max_frame_stride=3)
    build_dataset(MovingDigitsConfig(**options), "train", 0)
    (config,) = asked
    assert (config.num_clips, config.num_val_clips, config.num_shapes) == (640, 64, 3)
    assert (config.height, config.width, config.num_frames, config.render_seed) == (64, 64, 15, 7)
    assert (config.max_frame_stride, config.clip_frames) == (3, 14 * 3 + 1)


# Motion ----------------------------------------------------------------------------------------------------


def long_tracks(root, clips: int, frames: int = 600, **changes) -> np.ndarray:
    """(clips * digits, frames, 2)."""
    config = small(root, num_frames=frames, **changes)
    tracks = [digit_tracks(config, "train", index).positions for index in range(clips)]
    return np.concatenate(tracks, axis=1).swapaxes(0, 1)


def assert_uniform(values: np.ndarray, possible: range) -> None:
    shares = np.array([(values == value).mean() for value in possible])
    share = 1 / len(possible)
    assert shares.sum() == pytest.approx(1), "a value that is not possible"
    assert np.abs(shares - share).max() < 4 * np.sqrt(share * (1 - share) / len(values))


def test_digits_stay_inside_and_reach_every_place(root):
    tracks = long_tracks(root, clips=12)
    assert tracks.dtype == np.int64 and set(np.unique(tracks)) == set(range(32))
    tall = long_tracks(root, clips=6, height=50, width=40, digit_size=9, max_speed=60).reshape(-1, 2)
    assert tall.min(axis=0).tolist() == [0, 0] and tall.max(axis=0).tolist() == [50 - 9 - 1, 40 - 9 - 1]


def test_a_digit_moves_straight_between_the_walls(root):
    tracks = long_tracks(root, clips=12)
    steps, inside = np.diff(tracks, axis=1), ((tracks > 0) & (tracks < 31)).all(axis=2)
    unbounced = inside[:, 1:-1] & inside[:, 2:]
    assert (steps[:, :-1][unbounced] == steps[:, 1:][unbounced]).all() and unbounced.mean() > 0.5
    assert np.abs(steps).max() == 4


@pytest.mark.parametrize("axis, wall", [(0, 0), (0, 31), (1, 0), (1, 31)])
def test_a_digit_leaves_a_wall_with_a_random_velocity(root, axis, wall):
    tracks = long_tracks(root, clips=40)
    now, other = tracks[:, 1:-1, axis], tracks[:, 1:-1, 1 - axis]
    before, after = np.diff(tracks, axis=1)[:, :-1], np.diff(tracks, axis=1)[:, 1:]
    # A digit that was just put back at this wall is at it and leaves it; and nothing cuts its step short.
    bounced = (now == wall) & (after[..., axis] != 0) & (other >= 4) & (other <= 27)
    across, along = after[bounced][:, axis], after[bounced][:, 1 - axis]
    assert len(across) > 200
    assert_uniform(across if wall == 0 else -across, range(1, 5))
    assert_uniform(along, range(-4, 5))
    # A mirror would leave the motion along the wall as it was.
    assert (before[bounced][:, 1 - axis] == along).mean() < 0.2


def test_digits_begin_anywhere_in_any_direction(root):
    config = small(root, num_frames=2)
    tracks = np.concatenate([digit_tracks(config, "train", index).positions for index in range(500)], axis=1)
    start, step = tracks[0], tracks[1] - tracks[0]
    assert_uniform(start[:, 0] // 4, range(8))
    assert_uniform(start[:, 1] // 4, range(8))
    uncut = ((start >= 4) & (start <= 27)).all(axis=1)
    assert_uniform(step[uncut][:, 0], range(-4, 5))
    assert_uniform(step[uncut][:, 1], range(-4, 5))
    assert abs(np.corrcoef(step[uncut].T)[0, 1]) < 0.15


def test_the_digits_of_a_clip_know_nothing_of_each_other(root):
    tracks = [digit_tracks(small(root, num_frames=2), "train", index) for index in range(500)]
    starts = np.stack([track.positions[0] for track in tracks])  # (clips, digits, 2)
    assert abs(np.corrcoef(starts[:, 0, 0], starts[:, 1, 0])[0, 1]) < 0.15
    labels = np.stack([track.labels for track in tracks])
    assert abs((labels[:, 0] == labels[:, 1]).mean() - 0.1) < 0.06


def test_longer_clips_go_on_as_shorter_ones_began_and_strides_skip(root):
    long = digit_tracks(small(root, num_frames=61), "val", 3)
    short = digit_tracks(small(root, num_frames=8), "val", 3)
    skipping = digit_tracks(small(root, num_frames=21, frame_stride=3), "val", 3)
    assert np.array_equal(long.positions[:8], short.positions) and np.array_equal(long.labels, short.labels)
    assert np.array_equal(long.positions[::3], skipping.positions)
    alone = digit_tracks(small(root, num_digits=1), "val", 3)
    assert np.array_equal(alone.positions[:, 0], short.positions[:, 0]) and alone.labels[0] == short.labels[0]


def test_training_clips_vary_in_stride_and_tell_it_by_their_times(root):
    """From 2 to 5: each clip is that of every so-manyth frame of the same track."""
    config = small(root, num_frames=3, frame_stride=2, max_frame_stride=5)
    dataset, plain = build_dataset(config, "train", 0), build_dataset(small(root, num_frames=11), "train", 0)
    seen = []
    for draw in range(60):
        clip = dataset.clip(draw % 4, host_generator(0, "clip", draw))
        stride = round(clip.frame_times[1].item() * 2)
        assert clip.frame_times.tolist() == [0, stride / 2, stride]
        assert clip.frame_times.dtype == torch.float32
        assert clip.frames.equal(plain.clip(draw % 4, None).frames[: 2 * stride + 1 : stride])
        tracks = digit_tracks(config, "train", draw % 4, stride).positions
        every = digit_tracks(small(root, num_frames=11), "train", draw % 4).positions
        assert np.array_equal(tracks, every[: 2 * stride + 1 : stride])
        seen.append(stride)
    assert set(seen) == {2, 3, 4, 5} and min(seen.count(stride) for stride in set(seen)) > 5
    one, other = (dataset.clip(1, host_generator(0, "clip", 7)) for _ in range(2))
    assert one.frames.equal(other.frames) and one.frame_times.equal(other.frame_times)
    fixed = dataset.clip(1, None)
    assert fixed.frame_times.tolist() == [0, 1, 2] and fixed.frames.equal(plain.clip(1, None).frames[:5:2])


@pytest.mark.parametrize("strides", [{}, {"frame_stride": 2, "max_frame_stride": 2}])
def test_without_varying_strides_nothing_is_drawn(root, strides):
    generator = host_generator(0, "clip", 0)
    dataset = build_dataset(small(root, **strides), "train", 0)
    clip = dataset.clip(3, generator)
    assert generator.random() == host_generator(0, "clip", 0).random()
    assert clip.frames.equal(dataset.clip(3, None).frames) and clip.frame_times.tolist() == list(range(8))


# Pictures --------------------------------------------------------------------------------------------------


def interpolated(picture: np.ndarray, side: int) -> np.ndarray:
    image = torch.from_numpy(np.array(picture, dtype=np.float64))[None, None]
    return F.interpolate(image, size=(side, side), mode="bilinear", antialias=True)[0, 0].numpy()


@pytest.mark.parametrize("shape, side", [((28, 28), 32), ((28, 28), 16), ((28, 28), 45), ((20, 31), 7)])
def test_resizing_is_bilinear_with_antialiasing(shape, side):
    picture = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    resized = resize(picture, side)
    assert resized.dtype == np.uint8 and np.abs(resized - interpolated(picture, side)).max() < 0.501
    assert np.array_equal(resize(picture[:20, :20], 20), picture[:20, :20])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"height": 32, "width": 32},
        {"height": 33, "width": 51, "digit_size": 20},
        {"num_digits": 9},
        {"height": 2, "width": 3},
    ],
)
def test_a_frame_is_the_sum_of_its_digits_no_brighter_than_white(root, changes):
    config = small(root, **changes)
    dataset, digits, side = build_dataset(config, "test", 0), read_digits(config, "test"), config.side
    overlaps = 0
    for index in range(4):
        clip, tracks = dataset.clip(index, None), digit_tracks(config, "test", index)
        assert tracks.labels.shape == (config.num_digits,)
        assert tracks.positions.shape == (8, config.num_digits, 2)
        expected = np.zeros((8, config.height, config.width))
        for label, corners in zip(tracks.labels, tracks.positions.swapaxes(0, 1)):
            picture = interpolated(digits.pictures[digits.labels.tolist().index(label)], side)
            for frame, (y, x) in zip(expected, corners):
                frame[y : y + side, x : x + side] += picture
        overlaps += (expected > 255).sum()
        assert clip.frames.shape == (8, 3, config.height, config.width) and clip.frames.dtype == torch.uint8
        error = np.abs(clip.frames.numpy() - expected.clip(0, 255)[:, None])
        assert error.max() <= 0.501 * config.num_digits
        assert clip.frame_times.tolist() == list(range(8)) and clip.frame_times.dtype == torch.float32
        assert clip.name == dataset.item_name(index) == f"test/{index:06d}"
    assert overlaps > 0 or changes.get("num_digits") != 9


def test_a_clip_is_a_function_of_render_seed_split_and_index_alone(root):
    def picture(render_seed, split, index, run_seed=0, generator=None):
        dataset = build_dataset(small(root, render_seed=render_seed), split, run_seed)
        return dataset.clip(index, generator).frames.numpy().tobytes()

    seen = {picture(s, split, i) for s in (0, 1) for split in ("train", "val", "test") for i in (0, 1)}
    assert len(seen) == 12
    assert picture(1, "val", 1) == picture(1, "val", 1, run_seed=5, generator=host_generator(3, "clip", 9))


def test_no_two_splits_share_a_digit(root):
    seen = {}
    for split in ("train", "val", "test"):
        config = small(root, num_digits=1, num_frames=1, num_clips=300, num_val_clips=300, num_test_clips=300)
        dataset, seen[split] = build_dataset(config, split, 0), set()
        for index in range(300):
            y, x = digit_tracks(config, split, index).positions[0, 0]
            seen[split].add(int(dataset.clip(index, None).frames[0, 0, y, x]))
    assert seen["train"] == set(brightness("train").tolist())
    assert seen["val"] == set(brightness("t10k")[::2].tolist())
    assert seen["test"] == set(brightness("t10k")[1::2].tolist())


def test_workers_deliver_the_same_clips(root):
    dataset = build_dataset(small(root), "train", 0)
    options = dict(seed=0, purpose="test", batch_size=3, timeout=60.0)
    here, there = (list(sample_clips(dataset, 6, num_workers=n, **options)) for n in (0, 1))
    assert all(one.frames.equal(other.frames) and one.names == other.names for one, other in zip(here, there))
    assert len(here) == len(there) == 2
    again = pickle.loads(pickle.dumps(dataset))
    assert again.clip(7, None).frames.equal(dataset.clip(7, None).frames)
    assert (dataset.num_windows(0), dataset.may_hang) == (1, False)
    assert dataset.fixed_clip(7, 0).frames.equal(dataset.clip(7, None).frames)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"fps": 8.0}, "data.fps"),
        ({"frame_stride": 2, "max_frame_stride": 1}, "data.max_frame_stride: 1 is below frame_stride 2"),
        ({"flip": True}, "data.flip"),
        ({"min_motion": 1.0}, "data.min_motion"),
        ({"max_cut": 30.0}, "data.max_cut"),
        ({"num_digits": 0}, "data.num_digits: 0 is not possible"),
        ({"num_digits": 101}, "data.num_digits"),
        ({"digit_size": 0}, "data.digit_size"),
        ({"digit_size": 64}, "data.digit_size: 64 does not fit; set 1 to 63 for 64x80"),
        ({"height": 1}, "data.height"),
        ({"max_speed": 0}, "data.max_speed"),
        ({"num_val_clips": 0}, "data.num_val_clips"),
    ],
)
def test_impossible_digits_are_refused_by_key(changes, message):
    with pytest.raises(UserError, match=message):
        MovingDigitsConfig(**{"width": 80, **changes})


@pytest.mark.skipif(not ASSETS, reason="VIDPRED_ASSETS is not set")
def test_the_digits_of_mnist_itself():
    config = MovingDigitsConfig(root=str(Path(ASSETS) / "mnist"), num_frames=15)
    train, val, test = (read_digits(config, split) for split in ("train", "val", "test"))
    assert train.pictures.shape == (60000, 28, 28) and len(val.labels) == len(test.labels) == 5000
    # Both as published: the first labels, and the mean and deviation that everybody normalises by.
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9] and [val.labels[0], test.labels[0]] == [7, 2]
    assert train.pictures.mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert train.pictures.std() / 255 == pytest.approx(0.3081, abs=1e-4)
    dataset = build_dataset(config, "test", 0)
    for index in range(20):
        labels, positions = digit_tracks(config, "test", index)
        assert set(labels.tolist()) <= set(range(10))
        frames = dataset.clip(index, None).frames[:, 0]
        near = torch.zeros_like(frames, dtype=torch.bool)
        for frame, corners in zip(near, positions.tolist()):
            for y, x in corners:
                frame[y : y + 32, x : x + 32] = True
        assert frames[~near].max() == 0 and frames[near].float().mean() > 20
