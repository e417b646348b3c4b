"""The scan of a folder: hanging and crashing probes, memory by size and date, the report, the limit of bad
files."""

import json
import os
import shutil
import time
from functools import partial

import pytest
from data_fixtures import numbered_frames, write_video

from vidpred.data import ClipError, VideoFolderConfig, build_dataset
from vidpred.data.scan import scan
from vidpred.data.sources import Source
from vidpred.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("VIDPRED_CACHE", str(folder))
    return folder


def probe_by_name(log, name, alive):
    """What happens is in the name; every call leaves a line in the log."""
    with open(log, "a") as file:
        file.write(name + "\n")
    if "hang" in name:
        time.sleep(1000)
    if "crash" in name:
        os._exit(7)
    if "slow" in name:
        for _ in range(8):
            time.sleep(0.25)
            alive()
    if "bad" in name:
        raise ClipError("is bad")
    return [Source(name=name, frames=10, height=4, width=4, fps=5.0)]


def touch(root, *names):
    root.mkdir(exist_ok=True)
    for name in names:
        (root / name).write_text(name)
    return list(names)


def run_scan(tmp_path, names, variant="v", timeout=1.0, workers=2):
    log = tmp_path / "log"
    log.unlink(missing_ok=True)
    result = scan(tmp_path / "root", names, partial(probe_by_name, log), variant, workers, timeout)
    probed = sorted(log.read_text().split()) if log.exists() else []
    return result, probed


def test_hanging_and_crashing_probes_cost_their_file_only(tmp_path):
    names = touch(tmp_path / "root", "a", "hang1", "b", "crash1", "bad1", "hang2", "crash2", "slow", "c")
    result, probed = run_scan(tmp_path, names)
    assert sorted(result.sources) == ["a", "b", "c", "slow"] and probed == sorted(names)
    assert result.sources["a"] == [Source(name="a", frames=10, height=4, width=4, fps=5.0)]
    assert result.problems == {
        "hang1": "hung the decoder: no frame in 1 s",
        "hang2": "hung the decoder: no frame in 1 s",
        "crash1": "crashed the decoder (exit code 7)",
        "crash2": "crashed the decoder (exit code 7)",
        "bad1": "is bad",
    }


def test_files_are_probed_again_only_when_they_change(tmp_path):
    names = touch(tmp_path / "root", "a", "bad", "c")
    first, _ = run_scan(tmp_path, names)
    again, probed = run_scan(tmp_path, names)
    assert probed == [] and again == first
    (tmp_path / "root" / "c").write_text("another size")
    os.utime(tmp_path / "root" / "a", ns=(0, 12345))
    names += touch(tmp_path / "root", "d")
    assert run_scan(tmp_path, names)[1] == ["a", "c", "d"]
    assert run_scan(tmp_path, names, variant="other")[1] == ["a", "bad", "c", "d"]


def test_a_scan_that_was_stopped_goes_on_where_it_was(tmp_path, cache):
    names = touch(tmp_path / "root", "a", "b", "c")
    run_scan(tmp_path, names)
    (whole,) = (cache / "scans").glob("*.jsonl")
    lines = whole.read_text().splitlines(keepends=True)
    part = whole.with_name(f"{whole.stem}.0.99.jsonl")
    part.write_text(lines[0] + lines[1][:20])
    whole.unlink()
    assert run_scan(tmp_path, names)[1] == sorted(set(names) - {json.loads(lines[0])["name"]})


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, cache, caplog):
    cache.write_text("a file where the folder should be")
    result, _ = run_scan(tmp_path, touch(tmp_path / "root", "a", "b"))
    assert sorted(result.sources) == ["a", "b"] and "cannot be remembered" in caplog.text


def test_files_that_vanished(tmp_path):
    touch(tmp_path / "root", "a")
    result, _ = run_scan(tmp_path, ["a", "gone"])
    assert list(result.sources) == ["a"] and "No such file" in result.problems["gone"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for number in range(8):
        write_video(root / f"sub{number % 2}" / f"{number}.mp4", numbered_frames(20))
    write_video(root / "short.mp4", numbered_frames(5))
    (root / "broken.mp4").write_text("nothing")
    (root / "notes.txt").write_text("not a video")
    (root / ".hidden.mp4").write_text("passed over")
    return root


def folder_config(root, **changes):
    options = dict(root=str(root), num_frames=8, height=16, width=16, num_workers=1, max_bad_fraction=0.5)
    return VideoFolderConfig(**{**options, **changes})


def test_the_report_names_every_unusable_file(videos, tmp_path):
    path = tmp_path / "run" / "data_report.json"
    datasets = {
        split: build_dataset(folder_config(videos), split, 0, path) for split in ("train", "val", "test")
    }
    report = json.loads(path.read_text())
    assert report["files"] == 10 and report["unusable_fraction"] == 0.2
    assert "cannot be opened" in report["unusable"]["broken.mp4"]
    assert "5 frames, a clip of 8 needs 8" in report["unusable"]["short.mp4"]
    assert report["ignored_extensions"] == {".txt": 1} and report["readers"] == {"decord": 8}
    assert sum(split["items"] for split in report["splits"].values()) == 8
    names = [dataset.item_name(i) for dataset in datasets.values() for i in range(len(dataset))]
    assert sorted(names) == sorted(f"sub{number % 2}/{number}.mp4" for number in range(8))


def test_too_many_unusable_files_stop_the_run(videos, tmp_path):
    path = tmp_path / "data_report.json"
    with pytest.raises(
        UserError, match="data.max_bad_fraction: 2 of 10 items .*broken.mp4: cannot be opened"
    ):
        build_dataset(folder_config(videos, max_bad_fraction=0.05), "train", 0, path)
    assert "broken.mp4" in json.loads(path.read_text())["unusable"]


def test_links_to_folders_are_followed_once(videos, tmp_path):
    root = tmp_path / "linked"
    root.mkdir()
    (root / "there").symlink_to(videos / "sub0")
    (root / "loop").symlink_to(root)
    dataset = build_dataset(folder_config(root), "train", 0)
    assert all(dataset.item_name(i).startswith("there/") for i in range(len(dataset)))


def test_an_empty_or_missing_folder(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="data.root: .* holds no file that ends in"):
        build_dataset(folder_config(tmp_path / "none"), "train", 0)
    with pytest.raises(UserError, match="data.root: .* is not a folder"):
        build_dataset(folder_config(tmp_path / "missing"), "train", 0)
    with pytest.raises(UserError, match="data.root: not set"):
        build_dataset(VideoFolderConfig(), "train", 0)


def test_a_file_name_that_is_not_utf8(tmp_path):
    root = tmp_path / "names"
    write_video(root / "plain.mp4", numbered_frames(20))
    shutil.copy(root / "plain.mp4", os.fsencode(root) + b"/caf\xe9.mp4")
    config = folder_config(root, val_fraction=0.0, test_fraction=0.0)
    dataset = build_dataset(config, "train", 0, tmp_path / "report.json")
    assert len(dataset) == 2 and dataset.clip(0, None).frames.shape == (8, 3, 16, 16)
