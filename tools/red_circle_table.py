"""What it takes to learn one picture: the red ring with and without bounds, width and annealing, as a table.

    python tools/red_circle_table.py                           trains configs/red_circle.yaml twice
    python tools/red_circle_table.py --training.num_steps 400  any key of the configuration may follow

Each training is a run of its own under runs/, and the same command goes on where it was interrupted. Printed, and
written to runs/red_circle_table.md: the mean training loss over the last 200 steps, the range of the latents that
sampling ends with, and the PSNR of 8 samples to the autoencoder's reconstruction of the picture. Beside it a picture of
each row.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # works where vidpred is cloned but not installed

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from vidpred import range_checks  # noqa: E402
from vidpred.assembly import train  # noqa: E402
from vidpred.configuration import load_config  # noqa: E402
from vidpred.data import build_dataset  # noqa: E402
from vidpred.diffusion import ClipBoundConfig  # noqa: E402
from vidpred.errors import door  # noqa: E402
from vidpred.metrics import psnr  # noqa: E402
from vidpred.prediction import Predictor, load_predictor  # noqa: E402
from vidpred.tensor_ops import to_uint8  # noqa: E402
from vidpred.training import RunOutcome  # noqa: E402
from vidpred.video_io import save_grid  # noqa: E402

PRESET = REPOSITORY / "configs" / "red_circle.yaml"
SAMPLES, LAST_STEPS = 8, 200


@dataclass(frozen=True)
class Row:
    """One line of the table: `run` names a training; `clip` and `sampler`: how it is sampled, None as the preset says;
    `ema`: with the averaged weights."""

    title: str
    run: str
    clip: str | None = None
    sampler: str | None = None
    ema: bool = True


# The first three sample without fresh noise, and without averaged weights: what helps there is the bound, and the rate.
ROWS = (
    Row("half the width, constant rate, no clipping", "half", "none", "ddim", ema=False),
    Row("half the width, constant rate, static clipping", "half", sampler="ddim", ema=False),
    Row("full width, annealing, static clipping", "full", sampler="ddim", ema=False),
    Row("the preset: averaged weights and DDPM besides", "full"),
)


@door
def main() -> int:
    arguments = sys.argv[1:]
    runs = {}
    for name in ("half", "full"):
        outcome, runs[name] = _train(name, arguments)
        if outcome.status == "interrupted":
            return 1
    lines = ["| training and sampling | loss | final latents | PSNR to the reconstruction (dB) |", "|---|---|---|---|"]
    folder = runs["full"].parent
    for number, row in enumerate(ROWS):
        predictor = _sampled_as(load_predictor(runs[row.run], ema=row.ema), row)
        samples, low, high = _draw(predictor, runs[row.run])
        save_grid(folder / f"red_circle_table_{number}.png", samples[:, 0])
        figures = psnr(samples, _reconstruction(predictor, runs[row.run]).expand_as(samples)).flatten()
        loss = _last_loss(runs[row.run])
        lines.append(
            f"| {row.title} | {loss:.4f} | [{low:.2f}, {high:.2f}] | {figures.mean():.1f} "
            f"({figures.min():.1f} to {figures.max():.1f}) |"
        )
    print(*lines, sep="\n")
    (folder / "red_circle_table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def _train(name: str, arguments: list[str]) -> tuple[RunOutcome, Path]:
    """How it ended, and the run folder."""
    config = load_config([*arguments, "--name", f"red_circle_{name}"], PRESET)
    if name == "half":
        halved = tuple(width // 2 for width in config.network.channels)
        config.network = dataclasses.replace(config.network, channels=halved)
        config.training = dataclasses.replace(config.training, lr_schedule="constant")
    range_checks.reset()
    return train(config), Path(config.runs_dir) / config.name


def _sampled_as(predictor: Predictor, row: Row) -> Predictor:
    sampling = predictor.sampling
    if row.sampler is not None:
        sampling = sampling.with_sampler(row.sampler)
    if row.clip is not None:
        sampling = dataclasses.replace(sampling, clip=ClipBoundConfig(kind=row.clip))
    predictor.sampling = sampling
    return predictor


def _picture(run: Path) -> Tensor:
    """(1, 1, 3, H, W) uint8."""
    config = load_config(["--config", str(run / "config.yaml")])
    return build_dataset(config.data, "val", config.seed).clip(0, None).frames[None]


def _draw(predictor: Predictor, run: Path) -> tuple[Tensor, float, float]:
    """Samples (N, 1, 3, H, W) uint8, and the range of their latents in calibrated units."""
    latents = predictor.encode(_picture(run)).expand(SAMPLES, -1, -1, -1, -1)
    given, times = torch.zeros(SAMPLES, 1, dtype=torch.bool), torch.zeros(SAMPLES, 1)
    drawn = predictor.sample_latents(torch.zeros_like(latents), given, times, torch.arange(SAMPLES), 0)
    # What is not finite is shown black; the range says so.
    return to_uint8(predictor.decode(drawn).nan_to_num()).cpu(), float(drawn.min()), float(drawn.max())


def _reconstruction(predictor: Predictor, run: Path) -> Tensor:
    return to_uint8(predictor.decode(predictor.encode(_picture(run)))).cpu()


def _last_loss(run: Path) -> float:
    """Mean over the last 200 steps, of which the log holds the means of equal parts."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    logged = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    last = max(logged)
    chosen = [loss for step, loss in logged.items() if step > last - LAST_STEPS]
    return sum(chosen) / len(chosen)


if __name__ == "__main__":
    main()
