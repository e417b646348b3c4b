"""Checkpoints: what is written comes back, and whatever a crash or a disk does to one is noticed."""

import json
import logging
import os
import pickle
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed_helper import run_command

from vidpred.checkpoint_store import CheckpointStore, find_checkpoint, newest_run, read_checkpoint
from vidpred.errors import UserError

FILES = ("model.safetensors", "training.pt", "config.yaml", "info.json")


def save(store, step, value=None):
    model = {
        "weight": torch.full((3, 4), float(step if value is None else value)),
        "count": torch.tensor(step),
    }
    return store.save(step, {"model": model}, {"step": step}, {"lr": 1e-4}, {"name": "run"})


@pytest.fixture
def store(tmp_path):
    store = CheckpointStore(tmp_path / "runs" / "one" / "checkpoints")
    for step in (100, 200, 300):
        save(store, step)
    return store


def steps(paths):
    return [int(path.name.removeprefix("step_")) for path in paths]


def flip_byte(path, position=-1):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_everything_comes_back(tmp_path):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-4, betas=(0.9, 0.99))
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    shared = torch.arange(6.0)
    ema = {
        "a": shared[:3],
        "b": shared[3:],
        "transposed": torch.arange(6).reshape(2, 3).T,
        "half": shared.bfloat16(),
    }
    state = {"optimizer": optimizer.state_dict(), "draws": [1, 2.5, None, True, "x"], "pair": (1, 2)}
    config = {"network": {"kind": "unet", "levels": [1, 2]}, "learning_rate": 1e-5, "name": "Straße"}
    store = CheckpointStore(tmp_path)
    path = store.save(7, {"model": layer.state_dict(), "ema": ema}, state, config, {"best": {"psnr": 20.5}})
    assert path.name == "step_00000007"
    assert {file.name for file in path.iterdir()} == {*FILES, "ema.safetensors", "manifest.json"}

    back = read_checkpoint(path)
    assert (back.path, back.step, back.config) == (path, 7, config)
    assert back.info == {"best": {"psnr": 20.5}, "step": 7}
    for group, expected in (("model", layer.state_dict()), ("ema", ema)):
        assert back.tensors[group].keys() == expected.keys()
        for name, tensor in expected.items():
            assert back.tensors[group][name].dtype == tensor.dtype and torch.equal(
                back.tensors[group][name], tensor
            )
    assert back.state["draws"] == state["draws"] and back.state["pair"] == (1, 2)
    again = torch.optim.AdamW(layer.parameters())
    again.load_state_dict(back.state["optimizer"])
    assert torch.equal(again.state_dict()["state"][0]["exp_avg"], state["optimizer"]["state"][0]["exp_avg"])
    assert read_checkpoint(path, with_state=False).state == {}


@pytest.mark.parametrize(
    "bad", [np.float64(1), np.zeros(2), object(), {1, 2}, Path("x"), {"deep": [np.int64(1)]}]
)
def test_state_that_weights_only_would_refuse_is_named_before_anything_is_written(tmp_path, bad):
    store = CheckpointStore(tmp_path / "checkpoints")
    with pytest.raises(TypeError, match="state.optimizer"):
        store.save(1, {}, {"optimizer": bad}, {}, {})
    assert not store.folder.exists() and store.latest() is None and store.complete() == []


def test_code_in_a_checkpoint_is_not_run(store, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "run"),))

    path = store.latest()
    torch.save({"x": Evil()}, path / "training.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["training.pt"] = {"size": (path / "training.pt").stat().st_size, "sha256": "forged"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        read_checkpoint(path, verify=False)
    assert not (tmp_path / "run").exists()


def test_latest_and_order(store):
    assert steps(store.complete()) == [100, 200, 300]
    assert store.latest() == store.path(300)
    (store.folder / "step_00000400").mkdir()
    (store.folder / "notes").mkdir()
    save(store, 123456789)
    assert steps(store.complete()) == [100, 200, 300, 123456789]


def damages():
    for name in (*FILES, "manifest.json"):
        yield f"missing {name}", lambda path, name=name: (path / name).unlink()
        yield (
            f"truncated {name}",
            lambda path, name=name: os.truncate(path / name, (path / name).stat().st_size // 2),
        )
        yield f"empty {name}", lambda path, name=name: os.truncate(path / name, 0)
    for name in FILES:
        yield f"flipped byte in {name}", lambda path, name=name: flip_byte(path / name, 10)
    yield "not JSON", lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe{}")
    yield (
        "another shape",
        lambda path: (path / "manifest.json").write_text('{"schema_version": 1, "files": [1]}'),
    )


@pytest.mark.parametrize("damage", [pytest.param(damage, id=name) for name, damage in damages()])
def test_a_damaged_checkpoint_is_named_skipped_and_not_read(store, caplog, damage):
    damage(store.path(300))
    with caplog.at_level(logging.WARNING):
        assert store.latest() == store.path(200)
        assert store.latest() == store.path(200)
    assert [record.message.count("step_00000300") for record in caplog.records] == [1]
    with pytest.raises(UserError, match="step_00000300: .*(missing|damaged|bytes|checksum)"):
        read_checkpoint(store.path(300))
    assert read_checkpoint(store.folder.parent).step == 200
    assert save(store, 300) == store.path(300) and store.latest() == store.path(300)


def test_flipped_bytes_of_the_weights_and_the_manifest_are_noticed(tmp_path):
    """Only white space of the manifest may change: then the checkpoint is still what was written."""
    store = CheckpointStore(tmp_path)
    path = save(store, 1)
    for file in (path / "model.safetensors", path / "manifest.json"):
        content = file.read_bytes()
        for position in range(0, len(content), 3):
            flip_byte(file, position)
            try:
                checkpoint = read_checkpoint(path)
            except UserError:
                pass
            else:
                assert file.name == "manifest.json" and torch.equal(
                    checkpoint.tensors["model"]["weight"], torch.full((3, 4), 1.0)
                )
            file.write_bytes(content)


@pytest.mark.parametrize(
    "version, line", [(99, "99 is newer than this vidpred reads .*update"), (1, "1 is older .*train again")]
)
def test_another_schema_is_not_mistaken_for_a_torn_one(store, version, line):
    manifest = store.path(300) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema_version": version}))
    with pytest.raises(UserError, match=line):
        store.latest()


def test_saving_a_step_again_replaces_it(store):
    save(store, 300, value=-1)
    assert read_checkpoint(store.path(300)).tensors["model"]["weight"][0, 0] == -1
    assert [path for path in store.folder.iterdir() if path.name.startswith(".")] == []


def test_a_crash_between_the_two_renames_of_a_replacement(store, monkeypatch):
    real = os.replace

    def crash_at_the_second(source, target):
        if Path(source).name.endswith(".writing"):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", crash_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        save(store, 300, value=-1)
    monkeypatch.undo()
    assert not store.path(300).exists()
    assert CheckpointStore(store.folder).latest() == store.path(300)
    assert read_checkpoint(store.path(300)).tensors["model"]["weight"][0, 0] == 300
    save(store, 400)
    assert [path for path in store.folder.iterdir() if path.name.startswith(".")] == []


# For each moment at which a save waits for the disk, a process of its own that is killed at that moment.
KILLED_SAVES = """
import os, signal, sys, torch
from vidpred import checkpoint_store

def save(store, step):
    tensors = {name: {"w": torch.full((50_000,), float(step))} for name in ("model", "ema")}
    return store.save(step, tensors, {"step": step}, {}, {})

def sync_or_die(path):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(path)

sync, moment, status = checkpoint_store._sync, 0, 1
while status != 0:
    moment += 1
    pid = os.fork()
    if pid == 0:
        store = checkpoint_store.CheckpointStore(f"{sys.argv[1]}/{moment}")
        save(store, 1)
        left, checkpoint_store._sync = moment, sync_or_die
        save(store, 2)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
"""


def test_a_process_killed_while_saving_loses_only_that_save(tmp_path):
    """SIGKILL in the middle of a save: what is listed is whole, and nothing that was finished is lost."""
    run_command([sys.executable, "-c", KILLED_SAVES, str(tmp_path)], timeout=120)
    moments = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    assert len(moments) == len(FILES) + 1 + 3 + 1  # and ema; the manifest and two folders; the one that lived
    survivors = []
    for folder in moments:
        store = CheckpointStore(folder)
        torn = list(folder.glob(".*.writing"))
        assert len(store.complete()) == len(list(folder.glob("step_*")))
        latest = read_checkpoint(store.latest())
        assert torn or latest.step == 2
        for group in ("model", "ema"):
            assert (latest.tensors[group]["w"] == latest.step).all()
        assert latest.state["step"] == latest.step
        survivors.append(latest.step)
        save(store, 3)
        assert steps(store.complete())[-1] == 3 and not list(folder.glob(".*"))
    assert survivors == [1] * 7 + [2] * 2  # the rename comes between the two folders


@pytest.mark.parametrize(
    "keep_last, keep_every, keep, left",
    [
        (1, 0, [], [600]),
        (0, 0, [], [600]),
        (2, 0, [], [500, 600]),
        (1, 300, [], [300, 600]),
        (2, 0, [100, 300], [100, 300, 500, 600]),
        (9, 0, [], [100, 200, 300, 400, 500, 600]),
    ],
)
def test_prune(tmp_path, keep_last, keep_every, keep, left):
    store = CheckpointStore(tmp_path)
    for step in range(100, 700, 100):
        save(store, step)
    deleted = store.prune(keep_last, keep_every, {store.path(step) for step in keep})
    assert steps(store.complete()) == left
    assert sorted(steps(deleted) + left) == list(range(100, 700, 100))


def test_prune_counts_only_complete_ones(store):
    (store.path(300) / "manifest.json").unlink()
    store.prune(keep_last=1)
    assert store.latest() == store.path(200) and not store.path(100).exists()


def test_paths_that_mean_a_checkpoint(store, tmp_path):
    run = store.folder.parent
    for path in (store.path(300), store.folder, run, str(run)):
        assert find_checkpoint(path) == store.path(300)
    moved = tmp_path / "elsewhere"
    shutil.copytree(store.path(100), moved)
    assert read_checkpoint(moved).step == 100


def test_paths_that_mean_none(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for path in (tmp_path, tmp_path / "missing", tmp_path / "checkpoints"):
        with pytest.raises(UserError, match=str(path)):
            read_checkpoint(path)


def test_newest_run(tmp_path, store):
    runs = tmp_path / "runs"
    assert newest_run(tmp_path / "missing") is None
    assert newest_run(runs) == runs / "one"
    (runs / "empty" / "checkpoints").mkdir(parents=True)
    (runs / "file.txt").write_text("x")
    save(CheckpointStore(runs / "two" / "checkpoints"), 1)
    assert newest_run(runs) == runs / "two"
    time.sleep(0.01)
    save(store, 400)
    assert newest_run(runs) == runs / "one"
