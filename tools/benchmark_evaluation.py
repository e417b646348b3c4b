"""How much longer an evaluation takes than the sampling in it: the quickstart's model and clips, untrained.

    python tools/benchmark_evaluation.py                 256 clips, three rounds: a few minutes on two cores
    python tools/benchmark_evaluation.py --trajectories 4 --lpips-net squeeze

Rounds alternate, so that a machine that slows down slows both. Prints medians and their ratio as JSON.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Callable, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works where vidpred is cloned but not installed

import torch  # noqa: E402

from vidpred.assembly import build_predictor, calibrate  # noqa: E402
from vidpred.autoencoders import build_autoencoder  # noqa: E402
from vidpred.conditioning import evaluation_roles  # noqa: E402
from vidpred.configuration import load_config  # noqa: E402
from vidpred.data import build_dataset, evaluation_batches, evenly_spaced_clips  # noqa: E402
from vidpred.distributed import choose_device  # noqa: E402
from vidpred.errors import UserError, door  # noqa: E402
from vidpred.evaluation import evaluate  # noqa: E402
from vidpred.prediction import Predictor  # noqa: E402


def timed(work: Callable[[], object]) -> float:
    """Seconds of a call, with what it left in a GPU's queue."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def sample(predictor: Predictor, batches: list, trajectories: int) -> None:
    """What `evaluate` asks of the sampler, and nothing else."""
    for latents, given, times, draws in batches:
        for _ in range(trajectories):
            predictor.sample_latents(latents, given, times, draws, 0)


def measure(options: argparse.Namespace, changes: Sequence[str] = ()) -> dict:
    """Medians of the rounds, in seconds, and their ratio; `changes` override keys of the quickstart."""
    overrides = [f"--data.num_val_clips={options.clips}", "--data.num_clips=64", "--data.num_test_clips=1"]
    overrides += [f"--evaluation.num_clips={options.clips}", f"--evaluation.lpips_net={options.lpips_net}"]
    overrides += ["--evaluation.num_panels=0", *changes]
    config = load_config(overrides, ROOT / "configs" / "quickstart.yaml")
    device = choose_device(options.device)
    autoencoder = build_autoencoder(config.autoencoder).to(device)
    calibration = calibrate(config, build_dataset(config.data, "train", 0), autoencoder, device)
    predictor = build_predictor(config, autoencoder, calibration, device)
    predictor.denoiser.eval().requires_grad_(False)
    clips = build_dataset(config.data, "val", 0)
    roles = evaluation_roles("prediction", config.conditioning.context_frames)
    numbers, size = evenly_spaced_clips(clips, options.clips), config.evaluation.batch_size
    batches = [
        (predictor.encode(batch.frames), batch.given, batch.frame_times, batch.draws)
        for batch, _ in evaluation_batches(clips, numbers, size, roles, num_workers=config.data.num_workers)
    ]

    def run() -> None:
        evaluate(
            predictor, clips, config.evaluation, roles, seed=0, trajectories=options.trajectories,
            num_workers=config.data.num_workers,
        )  # fmt: skip

    sample(predictor, batches[:1], 1)  # the first call is slower
    rounds = [
        (timed(lambda: sample(predictor, batches, options.trajectories)), timed(run))
        for _ in range(options.rounds)
    ]
    sampling, evaluation = (statistics.median(seconds) for seconds in zip(*rounds))
    return {
        "clips": len(numbers), "trajectories": options.trajectories, "lpips": options.lpips_net,
        "device": str(device), "threads": torch.get_num_threads(), "rounds": options.rounds,
        "sampling_seconds": sampling, "evaluation_seconds": evaluation, "ratio": evaluation / sampling,
    }  # fmt: skip


@door
def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--clips", type=int, default=256, help="(256)")
    parser.add_argument("--rounds", type=int, default=3, help="of sampling and evaluation (3)")
    parser.add_argument("--trajectories", type=int, default=1, help="samples of each clip (1)")
    nets = ("squeeze", "alex", "vgg", "none")
    parser.add_argument("--lpips-net", choices=nets, default="none", help="(none)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    options = parser.parse_args()
    if min(options.clips, options.rounds, options.trajectories) < 1:
        raise UserError("--clips, --rounds and --trajectories must be 1 or more")
    print(json.dumps(measure(options), indent=1))


if __name__ == "__main__":
    main()
