"""Splits: stable under added files, whole groups, folders, lists."""

import pytest

from vidpred.data import VideoFolderConfig
from vidpred.data.splits import assign_splits, group_key, split_by_hash
from vidpred.errors import UserError

NAMES = [f"clips/{number:04d}.mp4" for number in range(2000)]


def of_split(splits, wanted):
    return sorted(name for name, split in splits.items() if split == wanted)


def test_hash_gives_the_fractions_and_moves_nothing_when_files_are_added():
    config = VideoFolderConfig(val_fraction=0.2, test_fraction=0.1)
    splits = split_by_hash(NAMES, config)
    assert len(of_split(splits, "val")) == pytest.approx(400, abs=60)
    assert len(of_split(splits, "test")) == pytest.approx(200, abs=45)
    fewer = split_by_hash(NAMES[::2], config)
    assert all(splits[name] == fewer[name] for name in fewer)


def test_hash_is_the_same_on_every_machine():
    splits = split_by_hash(NAMES, VideoFolderConfig())
    assert of_split(splits, "val")[:4] == PINNED_VAL


PINNED_VAL = ["clips/0005.mp4", "clips/0010.mp4", "clips/0023.mp4", "clips/0026.mp4"]


@pytest.mark.parametrize("count", [3, 4, 10])
def test_a_small_collection_has_something_in_every_split(count):
    assert set(split_by_hash(NAMES[:count], VideoFolderConfig()).values()) == {"train", "val", "test"}


def test_no_validation_when_none_is_asked_for():
    config = VideoFolderConfig(val_fraction=0.0, test_fraction=0.0)
    assert set(split_by_hash(NAMES, config).values()) == {"train"}


def test_groups_stay_together():
    names = [f"Juggling/v_Juggling_g{group:02d}_c{clip:02d}.avi" for group in range(50) for clip in range(4)]
    for pattern in (r"(v_[^/]*_g[0-9]+)_c[0-9]+", r"_g[0-9]+"):
        splits = split_by_hash(names, VideoFolderConfig(group=pattern, val_fraction=0.3))
        assert set(splits.values()) == {"train", "val", "test"}
        for start in range(0, len(names), 4):
            assert len({splits[name] for name in names[start : start + 4]}) == 1


def test_group_keys():
    assert group_key("a/v_X_g01_c02.avi", None) == "a/v_X_g01_c02.avi"
    assert group_key("a/v_X_g01_c02.avi", r"g\d+") == "g01"
    assert group_key("a/v_X_g01_c02.avi", r"(v_\w+?)_(g\d+)") == "v_X/g01"
    assert group_key("other.avi", r"g\d+") == "other.avi"


def test_sub_folders(tmp_path):
    names = ["train/a.mp4", "train/b.mp4", "validation/c.mp4", "test/d.mp4", "extra/e.mp4"]
    splits = assign_splits(names, tmp_path, VideoFolderConfig())
    assert splits == {
        "train/a.mp4": "train",
        "train/b.mp4": "train",
        "validation/c.mp4": "val",
        "test/d.mp4": "test",
    }


def test_a_missing_sub_folder_is_cut_out_of_train(tmp_path):
    names = [f"train/{number}.mp4" for number in range(20)] + ["test/x.mp4"]
    splits = assign_splits(names, tmp_path, VideoFolderConfig())
    assert of_split(splits, "test") == ["test/x.mp4"]
    assert of_split(splits, "val") and all(name.startswith("train/") for name in of_split(splits, "val"))
    with pytest.raises(UserError, match="data.split_by: folders, but"):
        assign_splits(["a.mp4"], tmp_path, VideoFolderConfig(split_by="folders"))


def write_list(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_list_files(tmp_path):
    train = write_list(tmp_path / "train.txt", "# comment", "./a b.mp4", "c.mp4 17", "", "d.mp4")
    config = VideoFolderConfig(
        train_list=train, val_list=write_list(tmp_path / "val.txt", "e.mp4"), test_fraction=0.4
    )
    splits = assign_splits(["a b.mp4", "c.mp4", "d.mp4", "e.mp4", "unlisted.mp4"], tmp_path, config)
    assert of_split(splits, "val") == ["e.mp4"] and "unlisted.mp4" not in splits
    assert sorted(of_split(splits, "train") + of_split(splits, "test")) == ["a b.mp4", "c.mp4", "d.mp4"]
    assert of_split(splits, "test")


def test_list_files_that_are_wrong(tmp_path):
    names = ["a.mp4", "b.mp4"]
    train = write_list(tmp_path / "train.txt", "a.mp4")
    for changes, message in (
        ({"train_list": str(tmp_path / "none.txt")}, "data.train_list: .* is not a file"),
        (
            {"train_list": write_list(tmp_path / "x.txt", "a.mp4", "../z.mp4")},
            "line 2 of .* '../z.mp4' is no item",
        ),
        ({"train_list": train, "val_list": train}, "data.val_list: 'a.mp4' is also in data.train_list"),
        ({"val_list": train}, "data.train_list: not set or empty"),
    ):
        with pytest.raises(UserError, match=message):
            assign_splits(names, tmp_path, VideoFolderConfig(**changes))
