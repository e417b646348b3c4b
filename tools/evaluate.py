"""Evaluates a checkpoint on clips of any split, for any task: model beside floors and ceiling.

    python tools/evaluate.py                                      the newest run under runs/, as in training
    python tools/evaluate.py --checkpoint DIR --split test --clips 256
    python tools/evaluate.py --task prediction interpolation infilling unconditional
    python tools/evaluate.py --trajectories 10                    also the best of ten samples of each clip
    python tools/evaluate.py --report                             also report.html: curves, clips, protocol
    torchrun --nproc_per_node 4 tools/evaluate.py                 the same figures, sooner
    python tools/evaluate.py --compare a.json b.json              two results of one protocol, paired by clip

Writes evaluation.json and pictures beside it, and report.html, which opens in any browser and loads nothing (of
several tasks evaluation_<task>.json and report_<task>.html each). After an interruption the same command goes on
where it stopped, also on another number of processes.
"""

import argparse
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # works where vidpred is cloned but not installed

from vidpred.checkpoint_store import Checkpoint  # noqa: E402
from vidpred.conditioning import TASKS  # noqa: E402
from vidpred.diagnosis import level_errors, results_folder  # noqa: E402
from vidpred.distributed import all_or_fail, is_main, process_group  # noqa: E402
from vidpred.errors import door  # noqa: E402
from vidpred.evaluation import (  # noqa: E402
    Evaluation,
    EvaluationStopped,
    choose_checkpoint,
    compare,
    evaluate_checkpoint,
    forget_unfinished,
    retake_of_checkpoint,
    save_pictures,
    write_report,
)
from vidpred.evaluation.comparison import ProtocolsDiffer  # noqa: E402
from vidpred.training import setup_console  # noqa: E402
from vidpred.training.interruption import StopRequest  # noqa: E402


@door
def main() -> int:
    options = _options()
    if options.compare:
        return _compare(*options.compare, options.anyway)
    stop = StopRequest("stopping after this batch, the same command goes on from there")
    with process_group(options.device), stop.listening():
        setup_console()
        try:
            _evaluate(options, stop)
        except EvaluationStopped:
            return stop.exit_code or 1  # 1: another rank was asked to stop
    return 0


def _evaluate(options: argparse.Namespace, stop: StopRequest) -> None:
    checkpoint, chosen = choose_checkpoint(options.checkpoint, options.best)
    generates = checkpoint.config.get("conditioning", {}).get("context_frames") == 0
    tasks = list(dict.fromkeys(options.task or ["unconditional" if generates else "prediction"]))
    folder = options.out or (
        checkpoint.run_folder / "evaluation" / f"{options.split}_step_{checkpoint.step:08d}"
    )
    names = ["evaluation"] if len(tasks) == 1 else [f"evaluation_{task}" for task in tasks]
    files = [folder / f"{name}.json" for name in names]
    keys = {
        "num_clips": options.clips, "num_frames": options.frames, "batch_size": options.batch_size,
        "lpips_net": options.lpips_net,
        "fvd_weights": options.fvd_weights, "skip_bad": options.skip_bad or None,
    }  # fmt: skip
    results = evaluate_checkpoint(
        checkpoint, tasks, split=options.split, device=options.device,
        changes={key: value for key, value in keys.items() if value is not None},
        trajectories=options.trajectories, seed=options.seed, num_inference_steps=options.steps,
        untrained_tasks=options.anyway, chosen=chosen, results=files, stop_requested=lambda: bool(stop),
    )  # fmt: skip
    # A folder that cannot be written is told before the work, and not after it.
    all_or_fail(lambda: results_folder(folder, folder) if is_main() else None)
    if is_main():
        print(f"model: {checkpoint.path} (step {checkpoint.step}); {options.split} split", flush=True)
    for file, result in zip(files, results):
        if is_main():
            result.save(file)
            save_pictures(file.with_suffix(""), result.samples)
            print(f"\n{result.table()}\nevaluation: {file}", flush=True)
        if options.report:
            name = file.name.replace("evaluation", "report", 1)
            _report(file.with_name(name).with_suffix(".html"), checkpoint, result, options)
    if is_main():
        # At the end: whoever is interrupted in the last task need not begin with the first.
        for file in files:
            forget_unfinished(file)


def _report(path: Path, checkpoint: Checkpoint, result: Evaluation, options: argparse.Namespace) -> None:
    """Every rank must call it; rank 0 predicts the few clips that are shown, and writes."""
    retake = retake_of_checkpoint(checkpoint, result.protocol, options.device, options.batch_size)

    def write() -> None:
        write_report(path, result, retake.films(result), level_errors(retake, result))
        print(f"report: {path}", flush=True)

    all_or_fail(lambda: write() if is_main() else None)


def _compare(left: Path, right: Path, anyway: bool) -> int:
    if is_main():
        try:
            comparison = compare(left, right, anyway)
        except ProtocolsDiffer as error:
            print(*error.comparison.difference_lines(), sep="\n", file=sys.stderr)
            raise
        print(*comparison.difference_lines(), comparison.table(), sep="\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="run or checkpoint (the newest run)")
    parser.add_argument(
        "--best", action="store_true", help="of a run the best checkpoint by validation loss, not the newest"
    )
    parser.add_argument(
        "--task", nargs="+", choices=TASKS,
        help="one or several (prediction; unconditional of a model that is given no frame)",
    )  # fmt: skip
    parser.add_argument(
        "--anyway", action="store_true",
        help="also tasks that it was never trained for; with --compare, also results of different protocols",
    )  # fmt: skip
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A.json", "B.json"), help="compare two results, no more"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out clips that cannot be read or scored, and name them"
    )
    parser.add_argument("--split", choices=("val", "test"), default="val", help="(val)")
    parser.add_argument("--clips", type=int, metavar="N", help="clips to evaluate (the run's)")
    parser.add_argument(
        "--frames", type=int, metavar="N", help="of a clip, given ones too; long ones window after window (the run's)"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="clips at once per process (the run's)")
    parser.add_argument("--trajectories", type=int, default=1, metavar="N", help="samples of each clip (1)")
    parser.add_argument("--seed", type=int, help="of the noise and of the given frames (the run's)")
    parser.add_argument("--steps", type=int, help="sampling steps (the model's)")
    parser.add_argument("--lpips-net", choices=("squeeze", "alex", "vgg", "none"), help="(the run's)")
    parser.add_argument("--report", action="store_true", help="also a page to look at, report.html")
    parser.add_argument("--fvd-weights", metavar="FILE", help="an I3D for the FVD, or download (the run's)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="(the run's evaluation/SPLIT_step_XXXXXXXX)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
