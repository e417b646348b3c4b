"""Rank helpers and range checks, in a plain process and under a real torchrun."""

import json
import math
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from distributed_helper import run_command, run_torchrun

from vidpred import distributed, range_checks
from vidpred.errors import UserError

WORLD = 3

SCRIPT = """
import json, sys
import torch
from vidpred import distributed as d, range_checks
from vidpred.errors import UserError

# Before the group exists only the main process is told apart.
assert d.is_main() == (d.local_rank() == 0) and d.rank() == 0 and d.world_size() == 1
with d.process_group("cpu", timeout_minutes=1) as device:
    assert device.type == "cpu"
    rank, mine = d.rank(), torch.tensor([1.0, d.rank()])
    out = {"rank": rank, "world": d.world_size(), "main": d.is_main(), "local": d.local_rank()}
    out["sum"] = d.all_reduce_sum(mine).tolist()
    out["max"] = d.all_reduce_max(mine).tolist()
    out["min"] = d.all_reduce_min(mine).tolist()
    assert mine.tolist() == [1.0, rank]
    out["any"] = [d.any_rank(rank == 2), d.any_rank(False)]
    out["gathered"] = d.gather_objects({"rank": rank, "row": list(range(rank))})
    out["broadcast"] = d.broadcast_object(f"from {rank}")
    out["shard"] = list(d.shard(7))
    with d.main_first():
        with open(sys.argv[1] + "/order", "a") as file:
            file.write(str(min(rank, 1)))
    d.barrier()

    # Ranks report different names, and one of them nothing.
    for number in range(rank):
        range_checks.report("shared", torch.tensor([rank, 10.0 * rank]))
    if rank == 2:
        range_checks.report("only 2", torch.tensor([1.0, float("nan"), 3.0]))
    out["ranges"] = {name: str(stats) for name, stats in range_checks.collect().items()}
    range_checks.expect("only 1", -3, 3)
    range_checks.report("only 1" if rank == 1 else "other", torch.tensor([5.0]))
    try:
        range_checks.collect(step=12)
    except range_checks.RangeError as error:
        out["error"] = str(error)
    with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
        json.dump(out, file)
assert not torch.distributed.is_initialized()
"""


def test_under_torchrun(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    run_torchrun(script, [tmp_path], nproc=WORLD, timeout=120)
    outs = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORLD)]
    for rank, out in enumerate(outs):
        assert (out["rank"], out["local"], out["world"], out["main"]) == (rank, rank, WORLD, rank == 0)
        assert out["shard"] == list(range(rank, 7, WORLD))
        assert (out["sum"], out["max"], out["min"]) == ([3, 3], [1, 2], [1, 0])
        assert out["any"] == [True, False]
        assert out["gathered"] == [{"rank": r, "row": list(range(r))} for r in range(WORLD)]
        assert out["broadcast"] == "from 0"
        values = torch.tensor([1.0, 10.0, 2.0, 20.0, 2.0, 20.0])
        assert out["ranges"] == {
            "only 2": "[1.0000, 3.0000] mean 2.0000 std 1.0000 (1 of 3 values not finite)",
            "shared": f"[1.0000, 20.0000] mean {values.mean():.4f} std {values.std(correction=0):.4f}",
        }
        assert "only 1" in out["error"] and "step 12" in out["error"] and "[-3, 3]" in out["error"]
    assert (tmp_path / "order").read_text() == "011"


HANG = """
import os, subprocess, sys, time
print("about to hang", flush=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(300)
"""


def test_helper_ends_a_hanging_run_and_shows_its_output(tmp_path):
    with pytest.raises(AssertionError, match="(?s)still running after 4 s.*about to hang"):
        run_command([sys.executable, "-c", HANG, str(tmp_path / "pid")], timeout=4)
    child = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    deadline = time.monotonic() + 10
    while runs(child):
        assert time.monotonic() < deadline, "the grandchild survived"


def runs(stat):
    """Whether a process is alive: neither gone nor waiting to be reaped."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_helper_shows_why_a_run_failed():
    with pytest.raises(AssertionError, match="(?s)exit code 3.*the reason"):
        run_command([sys.executable, "-c", "import sys; print('the reason'); sys.exit(3)"], timeout=60)


def test_a_plain_process_is_a_world_of_one():
    with distributed.process_group("cpu") as device:
        assert device == torch.device("cpu") and not distributed.has_group()
        assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
        tensor = torch.tensor([1.0, 2.0])
        for reduce in ("sum", "max", "min"):
            assert torch.equal(getattr(distributed, f"all_reduce_{reduce}")(tensor), tensor)
        assert distributed.gather_objects("a") == ["a"] and distributed.broadcast_object("a") == "a"
        assert list(distributed.shard(3)) == [0, 1, 2]
        assert distributed.any_rank(True) and not distributed.any_rank(False)
        distributed.barrier()
        with distributed.main_first():
            pass


@pytest.mark.parametrize(
    "device, gpus, environment, expected",
    [
        ("auto", 0, {}, "cpu"),
        ("auto", 2, {}, "cuda:0"),
        ("cpu", 2, {}, "cpu"),
        ("cpu", 2, {"LOCAL_WORLD_SIZE": "8"}, "cpu"),
        ("auto", 0, {"LOCAL_WORLD_SIZE": "8"}, "cpu"),
        ("cuda", 4, {"LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "3"}, "cuda:3"),
        ("cuda:1", 2, {}, "cuda:1"),
        ("cuda", 2, {"LOCAL_WORLD_SIZE": "4"}, "--nproc_per_node 4 but 2 GPUs: lower it or use --device cpu"),
        ("auto", 1, {"LOCAL_WORLD_SIZE": "4"}, "--nproc_per_node 4 but 1 GPUs"),
        ("cuda", 0, {}, "no GPU"),
        ("cuda:5", 2, {}, "GPU 5 of 2"),
        ("gpu", 2, {}, "not known"),
        ("gpu", 0, {}, "not known"),
        ("cuda:x", 2, {}, "not known"),
        (
            "cuda:1",
            2,
            {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
            "under torchrun",
        ),
    ],
)
def test_choose_device(monkeypatch, device, gpus, environment, expected):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if expected == "cpu" or expected.startswith("cuda:"):
        assert distributed.choose_device(device) == torch.device(expected)
    else:
        with pytest.raises(UserError, match=expected):
            distributed.choose_device(device)


@pytest.fixture(autouse=True)
def fresh_ranges():
    range_checks.reset()
    yield
    range_checks.reset()


def test_figures_are_those_of_all_reported_values():
    parts = [torch.randn(3, 5) * 2 + 100, torch.randn(1, 1, 7), torch.randn(4).double() * 1e6]
    for part in parts:
        range_checks.report("x", part)
    range_checks.report("x", torch.empty(0, 3))
    stats = range_checks.collect()["x"]
    values = torch.cat([part.flatten().double() for part in parts])
    assert (stats.count, stats.non_finite) == (26, 0)
    assert (stats.minimum, stats.maximum) == (values.min(), values.max())
    assert stats.mean == pytest.approx(float(values.mean()), rel=1e-12)
    assert stats.std == pytest.approx(float(values.std(correction=0)), rel=1e-12)
    assert range_checks.collect() == {}  # collecting starts afresh


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.bfloat16, torch.float16])
def test_every_real_dtype(dtype):
    range_checks.report("x", torch.tensor([0, 1, 1, 0]).to(dtype))
    assert str(range_checks.collect()["x"]) == "[0.0000, 1.0000] mean 0.5000 std 0.5000"


def test_large_float32_does_not_overflow():
    stats = range_checks.measure(torch.tensor([3e38, -3e38]))
    assert stats.mean == 0 and stats.std == pytest.approx(3e38)


def test_non_finite_values_are_counted_and_never_hide():
    range_checks.report("x", torch.tensor([1.0, math.nan, math.inf, -math.inf, 3.0]))
    stats = range_checks.collect()["x"]
    assert (stats.count, stats.non_finite, stats.minimum, stats.maximum, stats.mean) == (5, 3, 1, 3, 2)
    everything = range_checks.measure(torch.full((4,), math.nan))
    assert everything.non_finite == 4 and math.isnan(everything.mean) and math.isnan(everything.minimum)
    assert range_checks.measure(torch.empty(0)).count == 0


@pytest.mark.parametrize(
    "low, high, finite, values, broken",
    [
        (-3, 3, True, [-3.0, 3.0], False),
        (-3, 3, True, [-3.01, 0.0], True),
        (-3, 3, True, [0.0, 3.01], True),
        (None, None, True, [math.nan], True),
        (-3, 3, True, [0.0, math.inf], True),
        (-3, 3, False, [0.0, math.nan], False),
        (None, 3, True, [-1e9], False),
        (0, None, True, [-1.0], True),
    ],
)
def test_expectations(low, high, finite, values, broken):
    range_checks.expect("x", low, high, finite)
    assert range_checks.collect() == {}  # nothing reported: nothing to enforce
    range_checks.report("x", torch.tensor(values))
    if not broken:
        assert range_checks.collect(3)["x"].count == len(values)
        return
    with pytest.raises(range_checks.RangeError, match="^x left its range at step 3") as caught:
        range_checks.collect(3)
    assert (caught.value.name, caught.value.step, caught.value.stats.count) == ("x", 3, len(values))
    assert range_checks.collect(4) == {}


def test_an_expectation_can_bring_its_own_cure():
    for cure, shown in ((None, "expected .*; lower the learning rate"), ("look at the videos", "; look at")):
        range_checks.expect("x", -1, 1, cure=cure)
        range_checks.report("x", torch.tensor([5.0]))
        with pytest.raises(range_checks.RangeError, match=shown):
            range_checks.collect()


def test_gather_or_fail_without_a_group():
    assert distributed.gather_or_fail(lambda: 3) == [3] and distributed.all_or_fail(lambda: 3) == 3
    with pytest.raises(UserError, match="^one line$"):
        distributed.all_or_fail(_fail)


def _fail():
    raise UserError("one line")
