"""The benchmarks, on tiny networks and few steps: that they run, and that their figures are what they say."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import benchmark  # noqa: E402
import benchmark_evaluation  # noqa: E402
import peers  # noqa: E402
import quality  # noqa: E402
from peers import SVDNetwork, UNet3DNetwork, float32_attention_on_cpu  # noqa: E402

from vidpred.errors import UserError  # noqa: E402
from vidpred.networks import UNetConfig, build_network, layers  # noqa: E402

TINY = UNetConfig(
    channels=(8, 16), blocks_per_level=1, spatial_attention_levels=(), temporal_attention_levels=(1,), head_dim=8
)
FEW_CLIPS = ["--data.num_clips=8", "--data.num_val_clips=4", "--data.num_test_clips=1", "--data.num_workers=0",
             "--training.batch_size=4", "--data.height=32", "--data.width=32"]  # fmt: skip


def tiny(channels, out_channels):
    return build_network(TINY, channels, out_channels)


def test_speed_of_all_networks_and_the_ratio_of_their_medians(monkeypatch):
    names = ("vidpred", "svd", "unet3d")
    monkeypatch.setattr(benchmark, "build_networks", lambda c: {name: tiny(c, c) for name in names})
    options = benchmark.parse(["--rounds", "2", "--warmup", "0", "--size", "4", "--frames", "3"])
    report = benchmark.measure_speed(options, torch.device("cpu"))
    for step in ("training_step", "sampling_step"):
        rows = {name: report[name][step] for name in ("vidpred", "svd", "unet3d")}
        assert all(row["ms"] == min(row["ms_by_precision"].values()) for row in rows.values())
        expected = min(rows["svd"]["ms"], rows["unet3d"]["ms"]) / rows["vidpred"]["ms"]
        assert report["speedup_over_fastest_peer"][step] == pytest.approx(expected)
    training, sampling = (report["vidpred"][step]["gflops"] for step in ("training_step", "sampling_step"))
    assert training == pytest.approx(3 * sampling, rel=0.2)  # backward costs twice the forward pass


def test_the_measured_network_moves_given_frames(monkeypatch):
    monkeypatch.setattr(benchmark, "UNET_30M", TINY)
    x, given, times = torch.randn(1, 3, 4, 8, 8), torch.tensor([[True, True, False]]), torch.arange(3.0)[None]
    network = benchmark.build_networks(4)["vidpred"]
    moved = network(x, torch.where(given, 0.0, 0.7), given, times)
    kernels = torch.zeros(1, 3, benchmark.MOTION.channels, 8, 8)
    assert torch.equal(moved, benchmark.MOTION(kernels, x, given, times)) and moved[:, 2].any()


def test_quality_of_two_networks_from_the_same_data(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDPRED_CACHE", str(tmp_path))
    reports = []
    result = quality.compare_quality(
        {"vidpred": tiny, "svd": tiny}, torch.device("cpu"), 0.005, [1e-3, 1e9], reports.append, FEW_CLIPS
    )
    names = list(result["runs"])
    assert names[:2] == ["zero, residual", "zero"] and len(names) == 9 and len(reports) == 7
    assert json.dumps(result)
    assert "failed" not in result["runs"]["vidpred, rate 0.001"]  # and one that diverges is not the end of all
    runs, steps = result["runs"], result["comparisons"]["equal steps"]
    assert runs["zero, residual"]["psnr"] > runs["zero"]["psnr"]
    assert runs[steps["vidpred"]]["steps"] == runs[steps["peer"]]["steps"] >= 1
    for pair in result["comparisons"].values():
        gain = runs[pair["vidpred"]]["psnr"] - runs[pair["peer"]]["psnr"]
        assert pair["psnr_gain"]["mean"] == pytest.approx(gain) and pair["psnr_gain"]["ci95"] >= 0
    residual = result["comparisons"]["equal time, residual"]["peer"]
    assert residual.startswith("svd, residual")


def test_the_peers_are_called_as_our_network_is():
    x, given = torch.randn(1, 4, 4, 8, 8), torch.tensor([[True, True, False, False]])
    times, code = torch.arange(4.0)[None], torch.where(given, 0.0, 0.7)
    for peer in (SVDNetwork, UNet3DNetwork):
        torch.manual_seed(0)
        network = peer(4, 4).eval()
        with torch.no_grad():
            output = network(x, code, given, times)
            other = network(torch.where(given[:, :, None, None, None], x + 1, x), code, given, times)
        assert output.shape == x.shape and not torch.equal(output[:, 2:], other[:, 2:])


def test_attention_of_the_peers_is_float32_while_they_run_and_no_longer():
    original, q = F.scaled_dot_product_attention, torch.randn(1, 2, 5, 8).bfloat16()
    with float32_attention_on_cpu(), torch.autocast("cpu", torch.bfloat16):
        attended = F.scaled_dot_product_attention(q, q, q)
    assert F.scaled_dot_product_attention is original
    expected = original(q.float(), q.float(), q.float()).bfloat16()
    assert attended.dtype == torch.bfloat16 and torch.equal(attended, expected)


@pytest.mark.parametrize("peer", [SVDNetwork, UNet3DNetwork])
def test_all_attention_of_a_peer_goes_that_way(peer, monkeypatch):
    types = []

    def attend(query, key, value, **options):
        types.append(query.dtype)
        return layers.attend(query, key, value, **options)

    monkeypatch.setattr(peers, "attend", attend)
    x, given = torch.randn(1, 2, 4, 8, 8), torch.tensor([[True, False]])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        network = peer(4, 4)
        network(x, torch.where(given, 0.0, 0.7), given, torch.arange(2.0)[None])
    from diffusers.models.attention_processor import Attention

    # A processor may call it more than once, but no attention of the network may do without.
    assert len(types) >= sum(isinstance(module, Attention) for module in network.modules()) > 0
    assert set(types) == {torch.bfloat16}


@pytest.mark.parametrize(
    "arguments, message",
    [(["--minutes", "0"], "--minutes and --rates must be above 0"),
     (["--rates", "1e-3", "0"], "--minutes and --rates must be above 0"),
     (["--rounds", "0"], "--rounds"),
     (["--quality", "--compile"], "--compile: is for timing only")],
)  # fmt: skip
def test_impossible_options_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        benchmark.parse(arguments)


def test_an_evaluation_beside_its_sampling(tmp_path, run_file, monkeypatch):
    monkeypatch.setenv("VIDPRED_CACHE", str(tmp_path))
    seconds = iter([2.0, 5.0])  # sampling, then evaluation
    monkeypatch.setattr(benchmark_evaluation, "timed", lambda work: (work(), next(seconds))[1])
    calls = []
    monkeypatch.setattr(benchmark_evaluation, "sample", lambda *arguments: calls.append(arguments))
    options = argparse.Namespace(clips=2, rounds=1, trajectories=1, lpips_net="none", device="cpu")
    report = benchmark_evaluation.measure(
        options, ["--network.channels=[8, 16]", "--network.head_dim=8", "--sampling.num_inference_steps=1",
                  "--data.num_workers=0", "--data.height=32", "--data.width=32"],
    )  # fmt: skip
    assert (report["sampling_seconds"], report["evaluation_seconds"], report["ratio"]) == (2, 5, 2.5)
    assert report["clips"] == 2 and len(calls) == 2
    tool = Path(benchmark_evaluation.__file__)
    code, _, errors = run_file(tool, "--clips", 0)
    assert code == 2 and errors[-1:] == ["error: --clips, --rounds and --trajectories must be 1 or more"]
