"""Classes, texts and actions of clips: which rows a window has, where they come from, and what is missing."""

import json
import pickle

import numpy as np
import pytest
import torch
from data_fixtures import numbered_frames, write_video
from PIL import Image

from vidpred.conditions import ClipConditions, ConditionBatch, actions_at
from vidpred.data import ArraysConfig, Clip, FrameFolderConfig, VideoFolderConfig, build_dataset, training_loader
from vidpred.data.clips import collate
from vidpred.data.item_conditions import read_metadata
from vidpred.errors import UserError

NO_SPLIT = dict(val_fraction=0.0, test_fraction=0.0, num_workers=1, height=16, width=16)
FRAMES = 12


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDPRED_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    """Two cats and a dog, with actions i, -i/2 in three kinds of files, and captions of both sorts."""
    folder = tmp_path / "videos"
    rows = np.stack([np.arange(FRAMES), -np.arange(FRAMES) / 2], axis=1)
    lines = []
    for name, text in (("cat/a", "a cat"), ("cat/b", "猫"), ("dog/c", "")):
        write_video(folder / f"{name}.mp4", numbered_frames(FRAMES))
        (folder / f"{name}.txt").write_text(f"{text}\n", encoding="utf-8")
        lines.append(json.dumps({"file_name": f"{name}.mp4", "text": f"{text}!", "score": 0.5}, ensure_ascii=False))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    np.save(folder / "cat/a.npy", rows)
    np.savez(folder / "cat/b.npz", actions=rows.astype(np.float32))
    np.savetxt(folder / "dog/c.csv", rows, delimiter=",", header="dx, dy")
    return folder


def videos(root, **changes):
    config = VideoFolderConfig(root=str(root), **{**NO_SPLIT, "num_frames": 4, **changes})
    return build_dataset(config, "train", 0)


def by_name(dataset, **of_clip):
    return {dataset.item_name(i): dataset.clip(i, None).conditions for i in range(len(dataset))}


# The arithmetic of actions ---------------------------------------------------------------------------------


def test_actions_of_skipped_frames_are_added_up():
    actions = torch.tensor([[1.0, 10], [2, 20], [3, 30], [4, 40], [5, 50], [6, 60]])
    at = lambda frames: actions_at(actions, torch.tensor(frames)).tolist()
    assert at([2, 3, 4]) == actions[2:5].tolist()
    assert at([1, 3, 5]) == [[1 + 2, 30], [3 + 4, 70], [5 + 6, 110]]
    assert at([0, 2, 4]) == [[1, 10], [2 + 3, 50], [4 + 5, 90]]  # before the first frame there is none to add
    assert at([1, 2, 2, 3]) == [[2, 20], [3, 30], [0, 0], [4, 40]]  # shown again: nothing is done between
    assert at([3]) == [[4, 40]]


def test_actions_are_taken_to_the_last_bit_however_long_the_clip():
    actions = torch.randn(2, 5000, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(actions_at(actions, torch.arange(4000, 4010)), actions[:, 4000:4010])


# Batches ---------------------------------------------------------------------------------------------------


def test_a_batch_holds_what_its_clips_have():
    clips = [ClipConditions("cat", None), None, ClipConditions("dog", "a dog")]
    batch = ConditionBatch.stack(clips)
    assert batch.class_names == ["cat", None, "dog"] and batch.text == [None, None, "a dog"] and batch.actions is None
    assert batch.parts() == ["class", "text"]
    assert batch.rows([2, 2, 0]).class_names == ["dog", "dog", "cat"]
    assert ConditionBatch.stack([None, ClipConditions()]) is None
    with pytest.raises(ValueError, match="differ in shape"):
        ConditionBatch.stack([ClipConditions(actions=torch.ones(4, 2)), ClipConditions()])


def test_conditions_travel_with_a_batch():
    frames, times = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2.0)
    conditions = [ClipConditions(name, None, torch.full((2, 1), i)) for i, name in enumerate("abc")]
    batch = collate([Clip(frames, times, "x", each) for each in conditions], np.zeros((3, 2)), [0, 1, 2])
    for same in (batch, pickle.loads(pickle.dumps(batch)), batch.to("cpu")):
        assert same.conditions.class_names == ["a", "b", "c"] and same.conditions.text is None
        assert same.conditions.actions[:, 0, 0].tolist() == [0, 1, 2]
    first = batch.first(2)
    assert len(first) == 2 and first.conditions.class_names == ["a", "b"] and first.frames.shape[0] == 2
    plain = collate([Clip(frames, times, "x")], np.zeros((1, 2)), [0])
    assert plain.conditions is None and plain.first(1).to("cpu").conditions is None
    assert pickle.loads(pickle.dumps(plain)).conditions is None


# Folders ---------------------------------------------------------------------------------------------------


def test_without_a_wish_clips_have_no_conditions(root):
    dataset = videos(root)
    assert set(by_name(dataset).values()) == {None}
    assert (dataset.class_names, dataset.has_text, dataset.action_scale) == ((), False, ())


def test_classes_are_folders(root):
    dataset = videos(root, classes="folders")
    assert dataset.class_names == ("cat", "dog") and dataset.action_scale == ()
    assert {name: found.class_name for name, found in by_name(dataset).items()} == {
        "cat/a.mp4": "cat", "cat/b.mp4": "cat", "dog/c.mp4": "dog",
    }  # fmt: skip
    write_video(root / "stray.mp4", numbered_frames(FRAMES))
    with pytest.raises(UserError, match="data.classes: folders, but stray.mp4 lies in no folder"):
        videos(root, classes="folders")


def test_the_folder_of_a_split_is_no_class(root):
    for split in ("train", "val"):
        write_video(root / split / "cow" / "d.mp4", numbered_frames(FRAMES))
    dataset = videos(root, classes="folders")
    assert dataset.class_names == ("cow",) and dataset.clip(0, None).conditions.class_name == "cow"


def test_texts_come_from_files_beside_or_from_one_list(root):
    texts = {name: found.text for name, found in by_name(videos(root, captions="text_files")).items()}
    assert texts == {"cat/a.mp4": "a cat", "cat/b.mp4": "猫", "dog/c.mp4": ""}
    dataset = videos(root, captions="metadata")
    assert {name: found.text for name, found in by_name(dataset).items()} == {k: f"{v}!" for k, v in texts.items()}
    assert dataset.has_text and read_metadata(root)["dog/c.mp4"]["score"] == 0.5


def test_a_text_stands_in_a_sentence_drawn_for_each_clip(root):
    plain = videos(root, captions="text_files", crop="random")
    templates = ("a picture of {}", "{}", "here {braces} are: {}")
    dataset = videos(root, captions="text_files", crop="random", prompt_templates=templates)
    texts = {name: conditions.text for name, conditions in by_name(dataset).items()}
    assert texts == {"cat/a.mp4": "a picture of a cat", "cat/b.mp4": "a picture of 猫", "dog/c.mp4": ""}
    drawn = [dataset.clip(0, np.random.default_rng(seed)) for seed in range(30)]
    assert {clip.conditions.text for clip in drawn} == {"a picture of a cat", "a cat", "here {braces} are: a cat"}
    assert dataset.clip(0, np.random.default_rng(3)).conditions == drawn[3].conditions
    # Frames are those without templates, and an empty text takes as many numbers of the generator.
    assert torch.equal(drawn[3].frames, plain.clip(0, np.random.default_rng(3)).frames)
    generators = [np.random.default_rng(3) for _ in range(2)]
    for item, generator in zip((0, 2), generators):
        dataset.clip(item, generator)
    assert generators[0].random() == generators[1].random()


@pytest.mark.parametrize(
    "changes, line",
    [
        (
            dict(prompt_templates=("a {}",)),
            "data.prompt_templates: there is no text to put into them; set data.captions",
        ),
        (dict(captions="metadata", prompt_templates=("{}", "a cat")), "'a cat' must hold {} once"),
        (dict(captions="metadata", prompt_templates=("{} and {}",)), "must hold {} once"),
    ],
)
def test_templates_that_are_not_possible(root, changes, line):
    with pytest.raises(UserError, match=line):
        videos(root, **changes)


@pytest.mark.parametrize("line, error", [
    ('{"file_name": "cat/a.mp4"', "line 4 is not JSON"),
    ('["cat/a.mp4"]', 'line 4 has no text "file_name"'),
    ('{"text": "x"}', 'line 4 has no text "file_name"'),
    ('{"file_name": "cat/a.mp4", "text": "again"}', "line 4 is the second one of cat/a.mp4"),
    ('{"file_name": "./cat/a.mp4", "text": "again"}', "line 4 is the second one of cat/a.mp4"),
])  # fmt: skip
def test_a_list_of_texts_that_cannot_be_read(root, line, error):
    path = root / "metadata.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + line, encoding="utf-8")
    with pytest.raises(UserError, match=error) as raised:
        videos(root, captions="metadata")
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_half_of_a_character_is_refused_with_its_file(root):
    path = root / "metadata.jsonl"
    lines = path.read_text(encoding="utf-8")
    path.write_text(lines.replace("a cat!", "\\ud83d\\udc31 a cat \\ud83d"), encoding="utf-8")
    with pytest.raises(UserError, match="cat/a.mp4 has half of a character in its line of .*metadata.jsonl"):
        videos(root, captions="metadata")
    path.write_text(lines.replace("a cat!", "\\ud83d\\udc31 a cat"), encoding="utf-8")
    assert by_name(videos(root, captions="metadata"))["cat/a.mp4"].text == "🐱 a cat"


def test_a_missing_text_is_an_error_that_names_the_file(root):
    (root / "cat/b.txt").unlink()
    with pytest.raises(UserError, match="data.captions: cat/b.mp4 has no .*b.txt"):
        videos(root, captions="text_files")
    lines = (root / "metadata.jsonl").read_text(encoding="utf-8").split("\n")
    (root / "metadata.jsonl").write_text("\n".join(lines[1:]), encoding="utf-8")
    with pytest.raises(UserError, match="data.captions: cat/a.mp4 has no line in .*metadata.jsonl"):
        videos(root, captions="metadata")
    (root / "metadata.jsonl").write_text('{"file_name": "cat/a.mp4", "text": 3}', encoding="utf-8")
    with pytest.raises(UserError, match='cat/a.mp4 has no text "text" in its line'):
        videos(root, captions="metadata")
    (root / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match="metadata.jsonl: cannot be read"):
        videos(root, captions="metadata")
    (root / "cat/b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="b.txt: cannot be read as UTF-8"):
        videos(root, captions="text_files")


def test_actions_are_those_of_the_window_and_its_stride(root):
    dataset = videos(root, actions=True)
    rms = np.sqrt(np.mean(np.arange(FRAMES) ** 2))
    assert dataset.action_scale == pytest.approx((rms, rms / 2), rel=1e-5)
    for name, conditions in by_name(dataset).items():
        assert conditions.actions.tolist() == [[0, 0], [1, -0.5], [2, -1], [3, -1.5]], name
    later = dataset.fixed_clip(0, 2)  # frames 8 to 11
    assert later.conditions.actions[:, 0].tolist() == [8, 9, 10, 11]
    strided = videos(root, actions=True, frame_stride=3).fixed_clip(1, 0)  # frames 0, 3, 6, 9
    assert strided.conditions.actions[:, 0].tolist() == [0, 1 + 2 + 3, 4 + 5 + 6, 7 + 8 + 9]
    slower = videos(root, actions=True, fps=5.0).fixed_clip(1, 0)  # of 10 a second: frames 0, 2, 4, 6
    assert slower.conditions.actions[:, 0].tolist() == [0, 1 + 2, 3 + 4, 5 + 6]


@pytest.mark.parametrize("change, sums", [
    ({"frame_stride": 3}, [0, 1 + 2 + 3, 4 + 5 + 6, 7 + 8 + 9]),
    ({"fps": 5.0}, [0, 1 + 2, 3 + 4, 5 + 6, 7 + 8, 9 + 10]),  # of 10 a second
])  # fmt: skip
def test_the_scale_of_actions_is_that_of_what_clips_show(root, change, sums):
    dataset = videos(root, actions=True, **change)
    rms = np.sqrt(np.mean(np.square(sums)))
    assert dataset.action_scale == pytest.approx((rms, rms / 2), rel=1e-5)


def break_file(path, rows):
    np.savetxt(path, rows, delimiter=",")


def flip_bytes(path, rows, place):
    """A compressed archive of `rows`, damaged from the byte `place` on."""
    np.savez_compressed(path, actions=rows)
    data = bytearray(path.read_bytes())
    data[place : place + 40] = bytes(value ^ 0xFF for value in data[place : place + 40])
    path.write_bytes(data)


@pytest.mark.parametrize("damage, error", [
    (lambda root: (root / "dog/c.csv").unlink(), "dog/c.mp4 has no dog/c.npy, .npz or .csv beside it"),
    (lambda root: np.save(root / "dog/c.npy", np.ones((FRAMES, 2))), "dog/c.mp4 has both dog/c.npy and dog/c.csv"),
    (lambda root: break_file(root / "dog/c.csv", np.ones((5, 2))), "c.csv: has 5 rows, and its clip 12 frames"),
    (lambda root: break_file(root / "dog/c.csv", np.ones((FRAMES, 3))),
     "dog/c.csv has rows of 3 numbers, cat/a.npy of 2"),
    (lambda root: break_file(root / "dog/c.csv", np.full((FRAMES, 2), np.nan)),
     "c.csv: has values that are not finite"),
    (lambda root: (root / "dog/c.csv").write_text("left,right\n"), "c.csv: cannot be read"),
    (lambda root: np.save(root / "cat/a.npy", np.ones(FRAMES)), r"a.npy: holds float64 \(12,\), not one row"),
    (lambda root: np.save(root / "cat/a.npy", np.array([{}] * FRAMES)), "a.npy: cannot be read"),
    (lambda root: np.save(root / "cat/a.npy", np.full((FRAMES, 2), 1j)), r"a.npy: holds complex128 \(12, 2\), not one"),
    (lambda root: np.save(root / "cat/a.npy", np.full((FRAMES, 2), 1e39)), "a.npy: has values that are not finite"),
    (lambda root: flip_bytes(root / "cat/b.npz", np.random.rand(FRAMES, 2), 60), "b.npz: cannot be read"),
    (lambda root: (root / "cat/b.npz").write_bytes(b"PK\x03\x04" + bytes(60)), "b.npz: cannot be read"),
    (lambda root: np.savez(root / "cat/b.npz", a=np.ones(2), b=np.ones(2)), "b.npz: cannot be read: holds 2 arrays"),
])  # fmt: skip
def test_actions_that_are_not_there_or_not_possible(root, damage, error):
    damage(root)
    with pytest.raises(UserError, match=f"^data.actions: .*{error}") as raised:
        videos(root, actions=True)
    assert "\n" not in str(raised.value)


def test_mirrored_clips_and_arrays_have_no_actions(root):
    with pytest.raises(UserError, match="data.flip"):
        VideoFolderConfig(root=str(root), actions=True, flip=True)
    with pytest.raises(UserError, match="data.actions"):
        ArraysConfig(root=str(root), actions=True)


def test_folders_of_frames_and_arrays_have_conditions_too(tmp_path):
    for number in range(3):
        path = tmp_path / "cat" / "walk.v1" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(path)
    (tmp_path / "cat" / "walk.v1.txt").write_text("it walks")
    np.save(tmp_path / "cat" / "walk.v1.npy", np.arange(3.0)[:, None])
    options = {**NO_SPLIT, "num_frames": 2, "root": str(tmp_path), "classes": "folders", "captions": "text_files"}
    found = build_dataset(FrameFolderConfig(**options, actions=True), "train", 0).clip(0, None).conditions
    assert (found.class_name, found.text, found.actions.tolist()) == ("cat", "it walks", [[0], [1]])

    np.save(tmp_path / "cat" / "walk.v1.npy", np.zeros((2, 3, 16, 16, 1), dtype=np.uint8))  # two grey clips
    dataset = build_dataset(ArraysConfig(**options), "train", 0)
    assert [dataset.item_name(i) for i in range(2)] == ["cat/walk.v1.npy#0", "cat/walk.v1.npy#1"]
    assert [dataset.clip(i, None).conditions.text for i in range(2)] == ["it walks"] * 2


def test_the_loader_hands_conditions_on_from_its_workers(root):
    dataset = videos(root, classes="folders", captions="metadata", actions=True)
    loader = training_loader(
        dataset, seed=0, global_batch=3, accumulation=1, first_step=0, num_workers=1, timeout=60, device_type="cpu",
        frame_roles=lambda generator, frames: np.zeros(frames),
    )  # fmt: skip
    batch = next(loader)
    loader.close()
    texts = dict(zip(batch.names, batch.conditions.text))
    assert texts == {"cat/a.mp4": "a cat!", "cat/b.mp4": "猫!", "dog/c.mp4": "!"}
    assert batch.conditions.class_names == [name.split("/")[0] for name in batch.names]
    starts = batch.conditions.actions[:, :1, :1]
    torch.testing.assert_close(batch.conditions.actions[..., :1], starts + torch.arange(4.0)[:, None])
