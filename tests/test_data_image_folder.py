"""A folder of pictures: what is read, what is refused and why, splits, scores, captions, augmentation."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vidpred.data import ClipError, ImageFolderConfig, build_dataset
from vidpred.data.picture_files import read_picture
from vidpred.data.transforms import crop_window, jitter_colors
from vidpred.errors import UserError
from vidpred.random_streams import host_generator

NO_SPLIT = dict(val_fraction=0.0, test_fraction=0.0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDPRED_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


def small(root, **changes) -> ImageFolderConfig:
    return ImageFolderConfig(root=str(root), height=16, width=16, num_workers=1, **changes)


def gradient(height=20, width=30) -> np.ndarray:
    """(H, W, 3) uint8: red grows downwards, green to the right."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 12, columns * 8, np.full_like(rows, 77)], axis=-1).astype(np.uint8)


def save(folder, name, pixels=None, **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(gradient() if pixels is None else pixels)
    image.save(path, **options)
    return path


# Files -----------------------------------------------------------------------------------------------------


def test_pictures_of_every_type_become_upright_rgb(root):
    picture = gradient()
    grey = picture[..., 0]
    assert np.array_equal(read_picture(save(root, "rgb.png")), picture)
    assert np.array_equal(read_picture(save(root, "grey.png", grey)), np.repeat(grey[..., None], 3, axis=2))
    assert np.array_equal(read_picture(save(root, "one.tif", Image.fromarray(grey > 100)))[..., 1], 255 * (grey > 100))

    sixteen = np.array([[0, 128, 129, 257 * 100 + 128, 257 * 100 + 129, 65535]], dtype=np.uint16)
    for name in ("deep.png", "deep.tif"):
        assert read_picture(save(root, name, sixteen))[0, :, 2].tolist() == [0, 0, 1, 100, 101, 255]

    alpha = np.dstack([picture, np.full(picture.shape[:2], 51, np.uint8)])  # a fifth of the colour, the rest is white
    over_white = np.rint(0.2 * picture + 0.8 * 255)
    assert np.abs(read_picture(save(root, "alpha.png", alpha)) - over_white).max() <= 1
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    pixels = read_picture(save(root, "palette.png", palette, transparency=0))
    assert pixels.tolist() == [[[255, 255, 255], [40, 50, 60]]]

    ink = Image.fromarray(np.full((2, 2, 4), (255, 0, 0, 0), dtype=np.uint8), "CMYK")  # all cyan: no red
    assert read_picture(save(root, "ink.tif", ink))[0, 0].tolist() == [0, 255, 255]

    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows are columns
    turned = read_picture(save(root, "turned.png", exif=exif))
    assert np.array_equal(turned, np.rot90(picture, -1))


def test_a_jpeg_shrinks_while_it_is_decoded_but_not_below_what_is_asked_for(root):
    path = save(root, "large.jpg", gradient(400, 640))
    assert read_picture(path).shape == (400, 640, 3) and read_picture(path, (60, 90)).shape == (100, 160, 3)


def broken_pictures(root):
    """name -> what the reason says."""
    whole = save(root, "whole.png").read_bytes()
    jpeg = save(root, "whole.jpg", gradient(200, 200)).read_bytes()
    (root / "empty.png").write_bytes(b"")
    (root / "text.jpg").write_text("no picture at all")
    (root / "half.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (root / "half.png").write_bytes(whole[: len(whole) // 2])
    (root / "flipped.png").write_bytes(whole[:60] + bytes([whole[60] ^ 255]) + whole[61:])
    save(root, "tiny.png", gradient(6, 30))
    save(root, "float.tif", np.ones((20, 20), dtype=np.float32))
    frames = [Image.fromarray(gradient() + shade) for shade in (0, 9)]
    save(root, "moving.webp", frames[0], save_all=True, append_images=frames[1:])
    (root / "folder.png").mkdir()
    (root / "gone.png").symlink_to(root / "nowhere.png")
    (root / "notes.md").write_text("ignored, and counted")
    return {
        "empty.png": "is empty", "text.jpg": "is not a picture", "half.jpg": "truncated", "half.png": "truncated",
        "flipped.png": "damaged", "tiny.png": "too small: 30x6 would be enlarged 2.67 times",
        "float.tif": "pixels of type F", "moving.webp": "holds 2 pictures", "gone.png": "cannot be reached",
    }  # fmt: skip


def test_nothing_is_skipped_silently(root, tmp_path):
    reasons = broken_pictures(root)
    with pytest.raises(UserError, match=r"data.max_bad_fraction: 9 of 11 items cannot be used"):
        build_dataset(small(root), "train", 0, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["unusable"].keys() == reasons.keys() and report["ignored_extensions"] == {".md": 1}
    for name, reason in reasons.items():
        assert reason in report["unusable"][name], name
    dataset = build_dataset(small(root, max_bad_fraction=0.9, **NO_SPLIT), "train", 0)
    assert [dataset.item_name(i) for i in range(len(dataset))] == ["whole.jpg", "whole.png"]
    clip = dataset.clip(1, None)
    assert clip.frames.shape == (1, 3, 16, 16) and clip.frame_times.tolist() == [0] and clip.conditions is None


def test_a_tiff_whose_directory_is_damaged_is_refused_with_a_reason(root):
    """Any of its numbers may say that it is text: Pillow then stumbles over types and not over values."""
    whole = save(root, "whole.tif").read_bytes()
    start = int.from_bytes(whole[4:8], "little") + 2
    reasons = []
    for entry in range(int.from_bytes(whole[start - 2 : start], "little")):
        place = start + 12 * entry + 2  # of its type, after the two bytes of its tag
        (root / "damaged.tif").write_bytes(whole[:place] + (2).to_bytes(2, "little") + whole[place + 2 :])
        try:
            read_picture(root / "damaged.tif")
        except ClipError as error:
            reasons.append(str(error))
    assert any(reason.startswith("damaged: ") for reason in reasons)


@pytest.mark.parametrize("error", [TypeError, OverflowError, ZeroDivisionError])
def test_what_pillow_lets_out_is_a_reason(root, error, monkeypatch):
    def transpose(image):
        raise error("of its arithmetic")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", transpose)
    with pytest.raises(ClipError, match="^damaged: of its arithmetic"):
        read_picture(save(root, "a.png"))


def test_a_picture_that_is_gone_later_is_named(root):
    save(root, "a.png")
    dataset = build_dataset(small(root, **NO_SPLIT), "train", 0)
    (root / "a.png").unlink()
    with pytest.raises(ClipError, match="does not exist"):
        dataset.clip(0, None)


# Splits, classes, captions, scores -------------------------------------------------------------------------


def names(config, split):
    dataset = build_dataset(config, split, 0)
    return {dataset.item_name(i) for i in range(len(dataset))}


def test_splits_by_hash_folders_and_lists(root):
    for number in range(40):
        save(root, f"{number}.png")
    by_hash = [names(small(root), split) for split in ("train", "val", "test")]
    assert sum(map(len, by_hash)) == len(set.union(*by_hash)) == 40 and min(map(len, by_hash)) >= 1
    save(root, "new.png")
    assert all(before <= names(small(root), split) for before, split in zip(by_hash, ("train", "val", "test")))
    (root / "val.txt").write_text("3.png\n5.png\n")
    (root / "train.txt").write_text("1.png\n2.png\n4.png\n")
    lists = dict(train_list=str(root / "train.txt"), val_list=str(root / "val.txt"), test_fraction=0.0)
    assert names(small(root, **lists), "val") == {"3.png", "5.png"}


def test_class_folders_and_captions(root):
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            save(root, f"{split}/{name}/{split}.png").with_suffix(".txt").write_text(f"a {name}, 一只\n", "utf-8")
    config = small(root, classes="folders", captions="text_files")
    dataset = build_dataset(config, "val", 0)
    assert dataset.class_names == ("cat", "dog") and dataset.has_text
    found = [dataset.clip(i, None).conditions for i in range(2)]
    assert [(each.class_name, each.text) for each in found] == [("cat", "a cat, 一只"), ("dog", "a dog, 一只")]


def write_metadata(root, rows):
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_scores_filter_the_training_set_alone(root, tmp_path):
    rows = []
    for split in ("train", "val", "test"):
        for score in range(4):
            save(root, f"{split}/{score}.png")
            rows.append({"file_name": f"{split}/{score}.png", "aesthetic": score + 0.5, "text": f"{split} {score}"})
    write_metadata(root, rows)
    config = small(root, min_score=2.0, score_column="aesthetic", captions="metadata")
    train = build_dataset(config, "train", 0, tmp_path / "report.json")
    assert [train.item_name(i) for i in range(len(train))] == ["train/2.png", "train/3.png"]
    assert train.clip(0, None).conditions.text == "train 2" and len(names(config, "val")) == 4
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rejected"]["train/1.png"] == "aesthetic 1.5 is below data.min_score 2"
    assert len(report["rejected"]) == 2 and not report["unusable"]

    write_metadata(root, [*rows[1:], {"file_name": "train/away.png", "text": ""}])
    with pytest.raises(UserError, match="2 of 13 items .* no number 'aesthetic' in metadata.jsonl") as refused:
        build_dataset(small(root, min_score=2.0, score_column="aesthetic"), "train", 0)
    assert "train/away.png: named in metadata.jsonl, but not there" in str(refused.value)
    (root / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match="metadata.jsonl: cannot be read"):
        build_dataset(config, "train", 0)


# Augmentation ----------------------------------------------------------------------------------------------


def test_crop_flip_zoom_and_colours_are_functions_of_the_draw(root):
    save(root, "a.png", gradient(40, 60))
    config = small(root, crop="random", flip=True, min_crop=0.5, color_jitter=0.3, **NO_SPLIT)
    dataset = build_dataset(config, "train", 0)
    draws = [dataset.clip(0, host_generator(3, "clip", n)).frames for n in range(12)]
    again = [dataset.clip(0, host_generator(3, "clip", n)).frames for n in range(12)]
    assert all(map(torch.equal, draws, again)) and len({frames.numpy().tobytes() for frames in draws}) == 12
    fixed = dataset.clip(0, None).frames
    assert torch.equal(fixed, build_dataset(small(root, **NO_SPLIT), "train", 0).clip(0, None).frames)


def test_pictures_are_enlarged_to_the_smallest_window(root):
    """The slope of a gradient tells how large a window was cut: 16 pixels show 20 to 40 of the picture's rows."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[..., 0] = 3 * np.arange(40)[:, None]
    save(root, "a.png", pixels)
    dataset = build_dataset(small(root, crop="random", min_crop=0.5, **NO_SPLIT), "train", 0)
    pictures = torch.stack([dataset.clip(0, host_generator(3, "clip", n)).frames[0] for n in range(60)]).double()
    rows = (pictures[:, 0, 13] - pictures[:, 0, 2]).mean(dim=1) / 3 / 11 * 16  # red grows by 3 a row
    assert 18.5 < rows.min() < 24 and 36 < rows.max() < 41.5 and 27 < rows.mean() < 33
    whole = build_dataset(small(root, **NO_SPLIT), "train", 0)
    assert torch.equal(dataset.clip(0, None).frames, whole.clip(0, None).frames)


def test_windows_have_all_sizes_from_the_smallest_to_the_largest():
    windows = [crop_window(40, 60, 16, 16, "random", np.random.default_rng(n), 0.5) for n in range(300)]
    sides = [rows for _, _, rows, columns in windows if rows == columns]
    assert len(sides) == 300 and (min(sides), max(sides)) == (20, 40) and 28.5 < np.mean(sides) < 31.5
    assert all(0 <= top <= 40 - side and 0 <= left <= 60 - side for top, left, side, _ in windows)
    assert crop_window(40, 60, 16, 16, "random", None, 0.5) == (0, 10, 40, 40)


def test_colours_vary_by_the_amount():
    frames = torch.randint(60, 180, (1, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(jitter_colors(frames, 0.0, np.random.default_rng(0)), frames)
    grey = frames[:, :1].expand(-1, 3, -1, -1)
    means = [jitter_colors(grey, 0.2, np.random.default_rng(n)).float().mean().item() for n in range(200)]
    mean = grey.float().mean().item()
    assert 0.79 * mean < min(means) < 0.85 * mean and 1.15 * mean < max(means) < 1.21 * mean
    changed = jitter_colors(grey, 0.2, np.random.default_rng(1))
    assert torch.equal(changed[:, 0], changed[:, 1]) and torch.equal(changed[:, 1], changed[:, 2])


@pytest.mark.parametrize(
    "changes, message",
    [(dict(num_frames=2), "data.num_frames: 2: a picture is one frame"), (dict(fps=5.0), "data.fps"),
     (dict(frame_stride=2), "data.frame_stride"), (dict(max_cut=30.0), "data.max_cut"),
     (dict(min_crop=0.5), "data.min_crop: 0.5 cuts windows of several sizes with crop random alone"),
     (dict(min_crop=0.0), "data.min_crop: 0.0 is not a part"), (dict(color_jitter=1.0), "data.color_jitter"),
     (dict(max_enlargement=0.0), "data.max_enlargement"), (dict(actions=True), "data.actions")],
)  # fmt: skip
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        ImageFolderConfig(root=".", **changes)
