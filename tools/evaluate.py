"""Evaluates a checkpoint on clips of any split, for any task: model beside floors and ceiling.

    python tools/evaluate.py                                      the newest run under runs/, as in training
    python tools/evaluate.py --checkpoint DIR --split test --clips 256
    python tools/evaluate.py --task prediction interpolation infilling unconditional
    python tools/evaluate.py --trajectories 10                    also the best of ten samples of each clip
    torchrun --nproc_per_node 4 tools/evaluate.py                 the same figures, sooner

Writes evaluation.json (of several tasks evaluation_<task>.json each) and pictures beside it.
"""

import argparse
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # works where vidpred is cloned but not installed

from vidpred.checkpoint_store import newest_run, read_checkpoint  # noqa: E402
from vidpred.conditioning import TASKS  # noqa: E402
from vidpred.diagnosis import results_folder  # noqa: E402
from vidpred.distributed import all_or_fail, is_main, process_group  # noqa: E402
from vidpred.errors import UserError, door  # noqa: E402
from vidpred.evaluation import evaluate_checkpoint, save_pictures  # noqa: E402


@door
def main() -> int:
    options = _options()
    tasks = list(dict.fromkeys(options.task))
    with process_group(options.device):
        checkpoint = read_checkpoint(options.checkpoint or _newest_run(), with_state=False)
        folder = options.out or (
            checkpoint.run_folder / "evaluation" / f"{options.split}_step_{checkpoint.step:08d}"
        )
        keys = {"num_clips": options.clips, "batch_size": options.batch_size, "lpips_net": options.lpips_net,
                "fvd_weights": options.fvd_weights}
        results = evaluate_checkpoint(
            checkpoint, tasks, split=options.split, device=options.device,
            changes={key: value for key, value in keys.items() if value is not None},
            trajectories=options.trajectories, seed=options.seed, num_inference_steps=options.steps,
            untrained_tasks=options.anyway,
        )  # fmt: skip
        # A folder that cannot be written is told before the work, and not after it.
        all_or_fail(lambda: results_folder(folder, folder) if is_main() else None)
        if is_main():
            print(f"model: {checkpoint.path} (step {checkpoint.step}); {options.split} split", flush=True)
        for task, result in zip(tasks, results):
            if is_main():
                name = "evaluation" if len(tasks) == 1 else f"evaluation_{task}"
                path = result.save(folder / f"{name}.json")
                save_pictures(folder / name, result.samples)
                print(f"\n{result.table()}\nevaluation: {path}", flush=True)
    return 0


def _newest_run() -> Path:
    run = newest_run("runs")
    if run is None:
        raise UserError(
            f"--checkpoint: no run under {Path('runs').absolute()}, and an untrained model is not evaluated; "
            "train one with train_video_pred.py, or give a run folder"
        )
    return run


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="run or checkpoint (the newest run)")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=["prediction"], help="one or several")
    parser.add_argument("--anyway", action="store_true", help="also tasks that it was never trained for")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="(val)")
    parser.add_argument("--clips", type=int, metavar="N", help="clips to evaluate (the run's)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="clips at once per process (the run's)")
    parser.add_argument("--trajectories", type=int, default=1, metavar="N", help="samples of each clip (1)")
    parser.add_argument("--seed", type=int, help="of the noise and of the given frames (the run's)")
    parser.add_argument("--steps", type=int, help="sampling steps (the model's)")
    parser.add_argument("--lpips-net", choices=("squeeze", "alex", "vgg", "none"), help="(the run's)")
    parser.add_argument("--fvd-weights", metavar="FILE", help="an I3D for the FVD, or download (the run's)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="(the run's evaluation/SPLIT_step_XXXXXXXX)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
