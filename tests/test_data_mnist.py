"""Digits of MNIST as pictures with classes, and the one picture that is all of the data."""

import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from test_data_moving_digits import COUNTS, STEP, brightness, write_mnist

from vidpred.autoencoders import IdentityConfig, build_autoencoder
from vidpred.data import MnistConfig, PictureConfig, build_dataset
from vidpred.data.mnist import sized
from vidpred.data.mnist_files import resize
from vidpred.data.picture import render_ring
from vidpred.errors import UserError
from vidpred.tensor_ops import to_uint8


@pytest.fixture
def root(tmp_path):
    return write_mnist(tmp_path / "mnist")


# MNIST -----------------------------------------------------------------------------------------------------


def test_the_test_file_is_the_test_split_and_no_digit_is_in_two(root):
    numbers = {}
    for split in ("train", "val", "test"):
        dataset = build_dataset(MnistConfig(root=str(root)), split, 0)
        numbers[split] = [dataset.item_name(i) for i in range(len(dataset))]
        assert dataset.class_names == tuple("0123456789") and f"({split})" in dataset.name
    assert numbers["val"] == [f"train/{n:05d}" for n in (0, 12, 24, 36)]
    assert len(numbers["train"]) == COUNTS["train"] - 4 and not set(numbers["train"]) & set(numbers["val"])
    assert numbers["test"] == [f"t10k/{n:05d}" for n in range(COUNTS["t10k"])]


@pytest.mark.parametrize("side", [16, 28, 32])
def test_a_digit_is_a_picture_with_its_class(root, side):
    dataset = build_dataset(MnistConfig(root=str(root), height=side, width=side), "train", 0)
    clip = dataset.clip(20, None)
    number = int(dataset.item_name(20).split("/")[1])
    assert clip.frames.shape == (1, 3, side, side) and clip.frame_times.tolist() == [0]
    assert clip.conditions.class_name == str(number // 2 % 10)
    left, right = clip.frames[0, 0, side // 2, side // 2 - 3], clip.frames[0, 2, side // 2, side // 2 + 3]
    assert (left, right) == (brightness("train")[number], brightness("train")[number] + STEP)
    border = (side - 28) // 2 if side > 28 else 0
    assert clip.frames[0, :, :border].sum() == 0 and clip.frames[0, :, border:-border or None].min() >= 0


def test_sizes():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    assert np.array_equal(sized(pictures, 28).numpy(), pictures)
    assert np.array_equal(sized(pictures, 32)[:, 2:-2, 2:-2].numpy(), pictures)
    assert sized(pictures, 31).shape == (3, 31, 31) and np.array_equal(sized(pictures, 31)[:, 1:29, 1:29], pictures)
    assert np.array_equal(sized(pictures, 16)[1].numpy(), resize(pictures[1], 16))


def test_missing_and_damaged_files_are_named(root):
    with pytest.raises(UserError, match="data.root: not set; give the folder that holds MNIST's files"):
        build_dataset(MnistConfig(), "train", 0)
    path = root / "t10k-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(UserError, match=f"{re.escape(str(path))} cannot be read"):
        build_dataset(MnistConfig(root=str(root)), "train", 0)
    path.unlink()
    with pytest.raises(UserError, match="lacks t10k-labels-idx1-ubyte.gz; add this file of MNIST"):
        build_dataset(MnistConfig(root=str(root)), "train", 0)


@pytest.mark.parametrize(
    "changes, message",
    [(dict(num_frames=2), "data.num_frames: 2: a picture is one frame"), (dict(flip=True), "data.flip: a mirrored"),
     (dict(height=16), "data.width: 16x28: digits are square"), (dict(crop="random"), "data.crop: digits are not cut"),
     (dict(fps=5.0), "data.fps: a picture is one frame; leave it unset"), (dict(frame_stride=2), "data.frame_stride"),
     (dict(max_frame_stride=2), "data.max_frame_stride"), (dict(min_motion=1.0), "data.min_motion")],
)  # fmt: skip
def test_impossible_digits_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        MnistConfig(**changes)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_identity_autoencoder_gives_grey_pictures_back(channels):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 1, 1, 5, 6), dtype=torch.uint8, generator=generator).expand(-1, -1, 3, -1, -1)
    autoencoder = build_autoencoder(IdentityConfig(channels=channels))
    latents = autoencoder.encode(frames)
    assert latents.shape == (2, 1, channels, 5, 6) and latents.min() >= -1 and latents.max() <= 1
    assert torch.equal(to_uint8(autoencoder.decode(latents)), frames)
    if channels == 1:
        with pytest.raises(UserError, match="autoencoder.pixel_norm: imagenet"):
            IdentityConfig(channels=1, pixel_norm="imagenet")


# One picture -----------------------------------------------------------------------------------------------


def test_the_ring_covers_its_area_around_the_middle():
    ring = render_ring(40, 60, 8.0, 15.0).float() / 255
    assert torch.equal(ring[0], torch.ones(40, 60)) and torch.equal(ring[1], ring[2])
    cover = 1 - ring[1]
    assert cover.sum().item() == pytest.approx(math.pi * (15**2 - 8**2), rel=0.01)
    assert cover[20, 30] == 0 and cover[20, 30 + 11] == 1 and cover[0, 0] == 0
    assert torch.equal(cover, cover.flip(0)) and torch.equal(cover, cover.flip(1))


def test_one_picture_is_every_clip_of_every_split(tmp_path):
    train, val = (build_dataset(PictureConfig(height=32, width=32), split, 0) for split in ("train", "val"))
    assert (len(train), len(val)) == (1, 8) and val.one_clip and val.item_name(3) == "ring/3"
    expected = render_ring(32, 32, 0.22 * 32, 0.36 * 32)
    assert torch.equal(train.clip(0, np.random.default_rng(0)).frames[0], expected)
    assert torch.equal(val.clip(7, None).frames[0], expected)

    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    own = build_dataset(PictureConfig(file=str(tmp_path / "mine.png"), height=32, width=32, num_val_clips=2), "test", 0)
    assert own.name == "mine" and len(own) == 2
    assert np.array_equal(own.clip(0, None).frames[0].permute(1, 2, 0), pixels[:, 4:36])
    with pytest.raises(UserError, match="data.file: .*none.png does not exist; give another picture"):
        build_dataset(PictureConfig(file=str(tmp_path / "none.png")), "train", 0)


@pytest.mark.parametrize(
    "changes, message",
    [(dict(num_frames=2), "data.num_frames"), (dict(flip=True), "data.crop"), (dict(crop="random"), "data.crop"),
     (dict(max_cut=30.0), "data.max_cut"), (dict(frame_stride=2), "data.frame_stride"),
     (dict(num_val_clips=0), "data.num_val_clips"), (dict(ring=(0.4, 0.2)), "data.ring: .0.4, 0.2. must ascend")],
)  # fmt: skip
def test_impossible_pictures_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        PictureConfig(**changes)
