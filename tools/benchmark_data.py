"""Clips per second of the data path beside bare decord calls for the same clips; prints JSON.

    python tools/benchmark_data.py                      # the shapes of the quickstart
    python tools/benchmark_data.py --root /my/videos --workers 4

Both sides run in DataLoader workers that open, read and close one file per clip, in turn within one process.
The bare side makes the two decord calls and stacks the result, once at the file's own size and once with
decord scaling to a frame that covers the clip; the ratio is taken to the faster of the two. The data path
also crops, resizes to the clip's size, draws the frames' roles and guards against decoders that hang.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Callable, Iterator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vidpred.data import ShapesConfig, VideoFolderConfig, build_dataset, training_loader
from vidpred.data.draws import DrawOrder
from vidpred.data.selection import allowed_starts
from vidpred.data.sources import window
from vidpred.data.video_folder import VideoFolder
from vidpred.errors import UserError, door
from vidpred.frame_roles import GIVEN, UNKNOWN
from vidpred.random_streams import host_generator

SEED = 0


class BareDecord(Dataset):
    """The same draws as the data path's, by nothing but decord."""

    def __init__(self, dataset: VideoFolder, scaled: bool):
        self._dataset = dataset
        self._order = DrawOrder(SEED, len(dataset))
        self._scaled = scaled

    def __getitem__(self, draws: list[int]) -> torch.Tensor | list[torch.Tensor]:
        clips = [self._clip(draw) for draw in draws]
        return torch.stack(clips) if len({clip.shape for clip in clips}) == 1 else clips

    def _clip(self, draw: int) -> torch.Tensor:
        import decord

        source = self._dataset.sources[next(self._order.candidates(draw))]
        config, generator = self._dataset.config, host_generator(SEED, "clip", draw)
        starts = allowed_starts(source, config)
        indices, _ = window(source, config, int(starts[int(generator.integers(len(starts)))]))
        size = {}
        if self._scaled:
            scale = max(config.height / source.height, config.width / source.width)
            size = {"width": round(source.width * scale), "height": round(source.height * scale)}
        reader = decord.VideoReader(
            str(self._dataset.root / source.name), ctx=decord.cpu(0), num_threads=1, **size
        )
        return torch.from_numpy(reader.get_batch(indices.tolist()).asnumpy())


def first_quarter(generator: np.random.Generator, frames: int) -> np.ndarray:
    return np.where(np.arange(frames) < max(1, frames // 4), GIVEN, UNKNOWN)


def bare_batches(dataset: VideoFolder, batch: int, workers: int, scaled: bool) -> Iterator:
    draws = (list(range(start, start + batch)) for start in range(0, 10**9, batch))
    return iter(
        DataLoader(
            BareDecord(dataset, scaled), batch_size=None, sampler=draws, num_workers=workers, collate_fn=_same
        )
    )


def _same(batch: object) -> object:
    return batch


def own_batches(dataset: VideoFolder, batch: int, workers: int) -> Iterator:
    return training_loader(
        dataset,
        seed=SEED,
        global_batch=batch,
        accumulation=1,
        first_step=0,
        frame_roles=first_quarter,
        num_workers=workers,
        timeout=60.0,
        device_type="cpu",
    )


def clips_per_second(
    make: Callable[[], Iterator], batch: int, count: int, warm_up: int
) -> tuple[float, float]:
    """(clips/s of `count` batches, CPU ms per clip of the workers).

    The rate is taken after `warm_up` batches, which cover the start of the workers and their queue; the CPU
    time is that of whole workers, and does not feel what else the machine does.
    """
    before = _children_seconds()
    batches = make()
    for _ in range(warm_up):
        next(batches)
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    rate = count * batch / (time.perf_counter() - began)
    if hasattr(batches, "close"):
        batches.close()
    del batches
    for worker in multiprocessing.active_children():
        worker.join()
    return rate, 1e3 * (_children_seconds() - before) / ((warm_up + count) * batch)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(dataset: VideoFolder, batch: int, workers: int, count: int, rounds: int) -> dict:
    """Medians over interleaved rounds; the ratio is the median of the rounds' ratios."""
    sides = {
        "vidpred": lambda: own_batches(dataset, batch, workers),
        "bare_decord": lambda: bare_batches(dataset, batch, workers, False),
    }
    size = (dataset.config.height, dataset.config.width)
    if any((source.height, source.width) != size for source in dataset.sources):
        sides["bare_decord_scaled"] = lambda: bare_batches(dataset, batch, workers, True)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    costs: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(rounds):
        order = list(sides) if round_number % 2 == 0 else list(reversed(sides))
        for name in order:
            rate, cost = clips_per_second(sides[name], batch, count, warm_up=2 * workers + 1)
            rates[name].append(rate)
            costs[name].append(cost)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max((name for name in sides if name != "vidpred"), key=medians.get)
    ratios = [own / bare for own, bare in zip(rates["vidpred"], rates[best])]
    cpu = {name: statistics.median(values) for name, values in costs.items()}
    return {
        "clips_per_second": {name: round(value, 2) for name, value in medians.items()},
        "cpu_ms_per_clip": {name: round(value, 2) for name, value in cpu.items()},
        "rounds": {name: [round(value, 2) for value in values] for name, values in rates.items()},
        "compared_with": best,
        "cpu_ratio": round(cpu[best] / cpu["vidpred"], 3),
        "ratio": round(statistics.median(ratios), 3),
    }


def build(arguments: argparse.Namespace) -> VideoFolder:
    """The training split, of files that decord reads: others have no bare decord to compare with."""
    common = dict(num_frames=arguments.num_frames, num_workers=arguments.workers)
    if arguments.root is None:
        return build_dataset(ShapesConfig(**common), "train", SEED)
    config = VideoFolderConfig(
        root=arguments.root, height=arguments.size, width=arguments.size, max_bad_fraction=1.0, **common
    )
    dataset = build_dataset(config, "train", SEED)
    dataset.sources = [source for source in dataset.sources if source.reader == "decord"]
    if not dataset.sources:
        raise UserError(
            f"--root {arguments.root}: decord reads none of the usable videos rightly; nothing to compare"
        )
    return dataset


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", help="a folder of videos (default: the quickstart's shapes)")
    parser.add_argument("--size", type=int, default=256, help="height and width of clips from --root")
    parser.add_argument("--num_frames", type=int, default=16, help="frames in a clip")
    parser.add_argument("--workers", type=int, default=2, help="DataLoader workers")
    parser.add_argument("--batch", type=int, default=8, help="clips in a batch")
    parser.add_argument("--count", type=int, default=100, help="batches in a round")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each side")
    return parser.parse_args()


@door
def main() -> int:
    arguments = parse()
    dataset = build(arguments)
    result = {
        "files": len(dataset),
        "clip": f"{arguments.num_frames} frames, {dataset.config.height}x{dataset.config.width}",
        "workers": arguments.workers,
        "cpus": os.cpu_count(),
        **measure(dataset, arguments.batch, arguments.workers, arguments.count, arguments.rounds),
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    main()
