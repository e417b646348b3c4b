"""Trains the quickstart for equal steps with each objective, loss weight and seed, and compares what they draw.

    python tools/compare_objectives.py                                      13 combinations, three seeds
    python tools/compare_objectives.py --objectives x0 v --weights uniform min_snr --seeds 0
    python tools/compare_objectives.py --training.batch_size 8          any key of the configuration, for all of them

All have the quickstart's settings but for what an objective cannot have: eps neither a zero terminal SNR nor motion
compensation, flow and edm a noise schedule of their own. Each combination is an ordinary training run below --out, with
everything that a run leaves behind. Interrupted, the same command goes on where it stopped. All runs of one seed begin
with the same weights and see the same clips in the same order.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works where vidpred is cloned but not installed

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from tqdm import tqdm  # noqa: E402

from vidpred.assembly import train  # noqa: E402
from vidpred.configuration import Config, load_config  # noqa: E402
from vidpred.errors import UserError, door, require  # noqa: E402
from vidpred.evaluation.statistics import half_width  # noqa: E402
from vidpred.files import write_json  # noqa: E402

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
# flow and edm are objectives of noise schedules of their own; the others have the quickstart's. eps has no estimate
# where there is no signal, and in it the reference cancels, moved or not.
NOT_RESCALED = {"diffusion.schedule.zero_terminal_snr": "false"}
OBJECTIVES: dict[str, dict[str, str]] = {
    "eps": {"diffusion.motion_radius": "0", **NOT_RESCALED},
    "v": {},
    "x0": {},
    "flow": {"diffusion.schedule.kind": "flow", **NOT_RESCALED},
    "edm": {"diffusion.schedule.kind": "edm", "sampling.spacing": "karras", **NOT_RESCALED},
}
WEIGHTS = ("uniform", "min_snr", "sigmoid")
REFERENCE = "x0, uniform"  # the quickstart


@dataclass(frozen=True)
class Drawn:
    """What one run's model draws: PSNR of each validation clip (N,) in dB, motion energy over the truth's, and the
    share of values that the sampler had to bound."""

    psnr: np.ndarray
    motion: float
    clip_rate: float


@door
def main() -> Optional[int]:
    options = parse()
    runs = [(objective, weight, seed) for seed in options.seeds for objective, weight in combinations(options)]
    # Bad settings of all of them are told before the first training; what cannot be combined is told at the end.
    configs, failed = configurations(runs, options)
    rows: dict[str, dict[int, Drawn]] = {}
    for objective, weight, seed in tqdm(list(configs), desc="runs", unit="run"):
        try:
            drawn = run(configs[objective, weight, seed])
        except UserError as error:  # it diverged: no reason to lose the others
            failed[f"{objective}, {weight}, seed {seed}"] = str(error)
        else:
            if drawn is None:
                print(f"interrupted; the same command goes on ({options.out})", file=sys.stderr)
                return 1
            rows.setdefault(f"{objective}, {weight}", {})[seed] = drawn
        save(options, rows, failed)  # after each: a series of runs takes long
    print(table(summarize(rows)))
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}")
    return 1 if failed else None


def save(options: argparse.Namespace, rows: dict[str, dict[int, Drawn]], failed: dict[str, str]) -> None:
    """Writes what is known, whole or not at all."""
    report = {"steps": options.steps, "combinations": summarize(rows), "failed": failed}
    write_json(options.out / "compare_objectives.json", report)


def combinations(options: argparse.Namespace) -> list[tuple[str, str]]:
    """(objective, weight); of edm only the plain loss, which is its own weight."""
    pairs = [(objective, weight) for objective in options.objectives for weight in options.weights]
    return [pair for pair in pairs if pair[0] != "edm" or pair[1] == "uniform"]


def configurations(
    runs: list[tuple[str, str, int]], options: argparse.Namespace
) -> tuple[dict[tuple[str, str, int], Config], dict[str, str]]:
    """The configuration of each run, and why others have none. Raises UserError where a run in --out has another."""
    configs, refused = {}, {}
    for objective, weight, seed in runs:
        own = {
            "runs_dir": options.out, "name": f"{objective}_{weight}_{seed}", "seed": seed, "device": options.device,
            "training.num_steps": options.steps, "training.warmup_steps": options.steps // 8,
            "training.visualize_every_step": options.steps, "evaluation.lpips_net": "none",
            "diffusion.parameterization": objective, "diffusion.weight.kind": weight, **OBJECTIVES[objective],
        }  # fmt: skip
        taken = [key for key in own if any(o.split("=")[0] == f"--{key}" for o in options.overrides)]
        require(not taken, f"--{taken and taken[0]}: is what this comparison sets itself; leave it out")
        try:
            config = load_config([*(f"--{key}={value}" for key, value in own.items()), *options.overrides], QUICKSTART)
        except UserError as error:
            refused[f"{objective}, {weight}, seed {seed}"] = str(error)
            continue
        saved = options.out / config.name / "config.yaml"
        same = not saved.exists() or yaml.safe_load(saved.read_text(encoding="utf-8")) == config.resolved()
        require(same, f"--out: {saved.parent} is a run with other settings; give another folder")
        configs[objective, weight, seed] = config
    if not configs:
        raise UserError(next(iter(refused.values())))
    return configs, refused


def run(config: Config) -> Optional[Drawn]:
    """Trains, or goes on with, one run; None where a signal has stopped it."""
    if train(config).status == "interrupted":
        return None
    folder, step = Path(config.runs_dir) / config.name, config.training.num_steps
    evaluation = json.loads((folder / "evaluation" / f"step_{step:08d}.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    clip_rates = [line["sampling/clip_rate"] for line in lines if "sampling/clip_rate" in line]
    psnr = np.array([clip["model"]["psnr"] for clip in evaluation["clips"]])
    return Drawn(psnr, evaluation["motion_energy_ratio"], clip_rates[-1])


def summarize(rows: dict[str, dict[int, Drawn]]) -> dict[str, dict[str, Any]]:
    """Means over clips and seeds, of {name: {seed: Drawn}}. `gain` is the PSNR above that of REFERENCE, paired by
    seed and clip, with half of its 95 % interval over clips (of the mean over seeds) and over seeds (of the mean over
    clips)."""
    summary, reference = {}, rows.get(REFERENCE, {})
    for name, drawn in rows.items():
        summary[name] = {
            "psnr": float(np.mean([one.psnr for one in drawn.values()])),
            "psnr_by_seed": {seed: float(one.psnr.mean()) for seed, one in drawn.items()},
            "motion_energy_ratio": float(np.mean([one.motion for one in drawn.values()])),
            "clip_rate": float(np.mean([one.clip_rate for one in drawn.values()])),
        }
        shared = [seed for seed in drawn if seed in reference]
        if name == REFERENCE or not shared:
            continue
        gain = np.stack([drawn[seed].psnr - reference[seed].psnr for seed in shared])  # (seeds, clips)
        over_clips, over_seeds = half_width(gain.mean(axis=0)), half_width(gain.mean(axis=1))
        known = over_clips is not None and over_seeds is not None
        summary[name]["gain"] = {
            "mean": float(gain.mean()), "ci95_over_clips": over_clips, "ci95_over_seeds": over_seeds,
            "separate": known and abs(float(gain.mean())) > max(over_clips, over_seeds),
        }  # fmt: skip
    return summary


def table(summary: dict[str, dict[str, Any]]) -> str:
    """For people, and for a README: Markdown."""
    lines = [
        f"| objective, weight | PSNR (dB) | over {REFERENCE} (± clips, ± seeds) | motion energy | clip rate |",
        "|---|---|---|---|---|",
    ]
    for name, row in sorted(summary.items(), key=lambda item: -item[1]["psnr"]):
        gain = "" if "gain" not in row else _gain(row["gain"])
        lines.append(
            f"| {name} | {row['psnr']:.2f} | {gain} | {row['motion_energy_ratio']:.2f} | {row['clip_rate']:.2%} |"
        )
    return "\n".join(lines)


def _gain(gain: dict[str, Any]) -> str:
    widths = [gain["ci95_over_clips"], gain["ci95_over_seeds"]]
    intervals = ", ".join("n/a" if width is None else f"± {width:.2f}" for width in widths)
    return f"{gain['mean']:+.2f} ({intervals}){'' if gain['separate'] else ' not separate'}"


def parse(arguments: Optional[list[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--objectives", nargs="+", choices=tuple(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300, help="of each run")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs_objectives"), help="of the runs and the result")
    options, options.overrides = parser.parse_known_args(arguments)
    require(options.steps >= 8, f"--steps: {options.steps} is too few to train; give at least 8")
    require(bool(combinations(options)), "--weights: edm has uniform only; add it, or another objective")
    require(len(set(options.seeds)) == len(options.seeds), "--seeds: each may be given once")
    return options


if __name__ == "__main__":
    main()
