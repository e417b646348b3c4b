"""Speed, and with --quality also quality, of this project's UNet beside diffusers' video UNets of its size.

    python tools/benchmark.py                     one training step and one sampling step, as JSON
    python tools/benchmark.py --quality           trained for the same time on the quickstart's clips

Timing: all networks in one process take turns, round by round, in fp32 and in bf16, so that a machine that slows
down slows all of them. Medians are printed; ratios are what to compare. --quality trains one network after another,
about 5 minutes for each of 7 runs and 2 for each of 3, and writes what it knows to --out after each.
"""

import argparse
import gc
import json
import platform
import resource
import statistics
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from peers import SVDNetwork, UNet3DNetwork  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from vidpred.diffusion import MotionCompensation  # noqa: E402
from vidpred.errors import UserError, door  # noqa: E402
from vidpred.networks import UNetConfig, build_network  # noqa: E402
from vidpred.training.preparation import allow_tf32  # noqa: E402

UNET_30M = UNetConfig(
    channels=(96, 128, 256, 256),
    blocks_per_level=2,
    spatial_attention_levels=(),
    temporal_attention_levels=(1,),
    joint_attention_levels=(2, 3),
)


MOTION = MotionCompensation(4)  # as in the recipes


class WithMotion(nn.Module):
    """The UNet as the recipes use it: what it predicts is added to the given frames that its kernels move."""

    def __init__(self, channels: int):
        super().__init__()
        self.network = build_network(UNET_30M, channels, channels + MOTION.channels)

    def forward(self, x: torch.Tensor, code: torch.Tensor, given: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        prediction, kernels = self.network(x, code, given, times).tensor_split([x.shape[2]], dim=2)
        return prediction + MOTION(kernels.to(x.dtype), x, given, times)


def build_networks(channels: int) -> dict[str, nn.Module]:
    """This project's network with and without motion compensation, then the peers, for latents of `channels`."""
    return {
        "vidpred": WithMotion(channels),
        "vidpred_without_motion": build_network(UNET_30M, channels, channels),
        "svd": SVDNetwork(channels, channels),
        "unet3d": UNet3DNetwork(channels, channels),
    }


class Subject:
    """One network in one precision, with an optimizer, on fixed random latents."""

    def __init__(self, network: nn.Module, precision: str, device: torch.device, latents: torch.Tensor, compiled: bool):
        self.network = torch.compile(network) if compiled else network
        self.precision, self.device = precision, device
        batch, frames = latents.shape[:2]
        given = torch.arange(frames, device=device).expand(batch, -1) < frames // 3
        times = torch.arange(float(frames), device=device).expand(batch, -1)
        code = torch.where(given, 0.0, torch.rand(batch, 1, device=device))
        self.inputs = (latents, code, given, times)
        self.target = torch.randn_like(latents)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=device.type == "cuda")

    def forward(self) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.network(*self.inputs)

    def training_step(self) -> None:
        loss = (self.forward().float() - self.target).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def sampling_step(self) -> None:
        self.forward()

    def milliseconds(self, step: str) -> float:
        call = getattr(self, step)
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        return 1000 * (time.perf_counter() - start)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure_speed(options: argparse.Namespace, device: torch.device) -> dict:
    """The report of all networks: interleaved rounds, medians."""
    shape = (options.batch_size, options.frames, options.channels, options.size, options.size)
    latents = torch.randn(shape, device=device)
    networks = {name: network.to(device) for name, network in build_networks(options.channels).items()}
    subjects = {
        (name, precision): Subject(network, precision, device, latents, options.compile)
        for name, network in networks.items()
        for precision in ("fp32", "bf16")
    }
    times = {(*key, step): [] for key in subjects for step in ("training_step", "sampling_step")}
    for round_number in range(-options.warmup, options.rounds):
        for (*key, step), measured in times.items():
            milliseconds = subjects[tuple(key)].milliseconds(step)
            if round_number >= 0:
                measured.append(milliseconds)
        print(f"round {round_number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    report = {
        name: {
            "parameters": sum(p.numel() for p in network.parameters()),
            **{step: _describe(name, step, subjects, times, shape) for step in ("training_step", "sampling_step")},
        }
        for name, network in networks.items()
    }
    report["speedup_over_fastest_peer"] = {
        step: min(report[peer][step]["ms"] for peer in ("svd", "unet3d")) / report["vidpred"][step]["ms"]
        for step in ("training_step", "sampling_step")
    }
    return report


def _describe(name: str, step: str, subjects: dict, times: dict, shape: tuple) -> dict:
    """Figures of one kind of step in the faster precision of the two."""
    medians = {precision: statistics.median(times[name, precision, step]) for precision in ("fp32", "bf16")}
    precision = min(medians, key=medians.get)
    subject = subjects[name, precision]
    flops = _flops(subject, step)
    return {
        "ms": medians[precision],
        "precision": precision,
        "ms_by_precision": medians,
        "frames_per_second": 1000 * shape[0] * shape[1] / medians[precision],
        "gflops": flops / 1e9,
        "achieved_gflops_per_second": flops / 1e6 / medians[precision],
        "peak_memory_gib": _peak_memory_gib(subject, step),
    }


def _flops(subject: Subject, step: str) -> float:
    bare = subject.network
    subject.network = getattr(bare, "_orig_mod", bare)  # a compiled graph hides its operations from the counter
    with FlopCounterMode(display=False) as counter:
        getattr(subject, step)()
    subject.network = bare
    return counter.get_total_flops()


def _peak_memory_gib(subject: Subject, step: str) -> float | None:
    """On a GPU: weights and optimizer state of this network, and what the step adds to what is there before it.

    On a CPU there is one peak for the process only, see `process_peak_memory_gib`.
    """
    if subject.device.type != "cuda":
        return None
    subject.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    getattr(subject, step)()
    state = [value for entries in subject.optimizer.state.values() for value in entries.values()]
    own = sum(tensor.nbytes for tensor in [*subject.network.parameters(), *state])
    return (own + torch.cuda.max_memory_allocated() - before) / 2**30


def describe_machine(device: torch.device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"device": name, "threads": torch.get_num_threads(), **versions}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds (default 7)")
    parser.add_argument("--warmup", type=int, default=1, help="rounds that are not counted (default 1)")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--channels", type=int, default=4, help="latent channels")
    parser.add_argument("--size", type=int, default=16, help="latent height and width")
    parser.add_argument("--compile", action="store_true", help="torch.compile all networks")
    parser.add_argument("--quality", action="store_true", help="train and compare instead of timing")
    parser.add_argument("--minutes", type=float, default=4.0, help="with --quality: training time of each run")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3],
                        help="with --quality: learning rates tried for every network, a whole run each")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.batch_size, options.frames, options.channels, options.size) < 1:
        raise UserError("--rounds, --batch-size, --frames, --channels and --size must be 1 or more")
    if min(options.minutes, *options.rates) <= 0:
        raise UserError("--minutes and --rates must be above 0")
    if options.quality and options.compile:
        raise UserError("--compile: is for timing only; --quality trains uncompiled networks")
    return options


@door
def main() -> None:
    from vidpred.distributed import choose_device

    options = parse()
    device = choose_device(options.device)
    allow_tf32(True)

    def write(report: dict) -> str:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        report = {"machine": describe_machine(device), "compiled": options.compile, **report}
        text = json.dumps({**report, "process_peak_memory_gib": memory}, indent=1)
        if options.out:
            options.out.write_text(text + "\n", encoding="utf-8")
        return text

    if options.quality:
        from quality import compare_quality

        builders = {"vidpred": partial(build_network, UNET_30M), "svd": SVDNetwork}
        report = compare_quality(builders, device, options.minutes, options.rates, write)
    else:
        report = measure_speed(options, device)
    print(write(report))


if __name__ == "__main__":
    main()
