"""Plants every fault that the diagnosis names into small trained models, adds healthy ones, and counts what is named.

    python tools/fault_bench.py --set tuning                    bounds are set on this set
    python tools/fault_bench.py --set rehearsal                 and on this one, once the judgement
    python tools/fault_bench.py --set judgement --jobs 2        other scenes, seeds, sizes and another network
    python tools/fault_bench.py --set tuning --only frozen_output "static camera"
    python tools/fault_bench.py --set tuning --rejudge          the rules alone, on what was measured before

A case is a function of (set, fault or healthy kind, number). A fault is one only where it costs a decibel of PSNR
against its healthy twin; where it does not, a stronger one or another base is tried. A healthy model is one only where
a criterion apart from the diagnosis says so; where it does not, it is trained longer, and then left out and told. What
the watch finds while it trains accuses it as well. What is done is kept in --out: the same command goes on where it
stopped, a changed plant only plants again, changed rules train the healthy models again (for their watch) and diagnose
all. Exit code 0 where 95 % of the faults are named first and at most one of 20 healthy models is accused, 1 otherwise.
"""

import argparse
import dataclasses
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Optional

TOOLS = Path(__file__).resolve().parent
sys.path[:0] = [str(TOOLS.parent), str(TOOLS)]  # works where vidpred is cloned but not installed

from fault_cases import Name, Result, names_of, quiet, read, rejudged, run_alone  # noqa: E402
from fault_models import HEALTHY, SETS  # noqa: E402
from fault_plants import FAULTS  # noqa: E402
from fault_tables import faults_table, healthy_table, never_healthy, reached, split, unseen  # noqa: E402
from tqdm import tqdm  # noqa: E402

from vidpred.errors import UserError, door  # noqa: E402
from vidpred.files import write_json, written_aside  # noqa: E402


@door
def main() -> Optional[int]:
    options = parse()
    out = options.out / options.set
    names = names_of(options.set, options.only)
    if options.rejudge:
        results = [rejudged(result) for name in names if (result := read(out / "done" / f"{name}.json"))]
    else:
        try:
            results = run_all(names, out, options.jobs)
        except KeyboardInterrupt:
            print(f"interrupted; the same command goes on ({out})", file=sys.stderr)
            return 1
    if not results:
        raise UserError(f"--out {out}: nothing was measured there yet; run without --rejudge first")
    print(save(results, options.out / "results", options.set))
    return None if reached(results) and not unseen(results) else 1


def run_all(names: list[Name], out: Path, jobs: int) -> list[Result]:
    """In `jobs` processes of one thread each; in the order of `names`."""
    os.environ |= {"OMP_NUM_THREADS": "1", "VIDPRED_CACHE": str(out / "cache"), "WANDB_MODE": "disabled"}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: workers must not outlive this process
    context = multiprocessing.get_context("spawn")
    results: dict[Name, Result] = {}
    with ProcessPoolExecutor(jobs, context, quiet, (out / "logs",)) as pool:
        waiting = {pool.submit(run_alone, name, out): name for name in names}
        try:
            for future in tqdm(as_completed(waiting), total=len(names), desc=out.name, unit="case"):
                results[waiting[future]] = future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
    return [results[name] for name in names]


def save(results: list[Result], folder: Path, set_name: str) -> str:
    """Writes SET.json and SET.md below `folder`; returns the tables."""
    faults, sound = split(results)
    parts = [faults_table(faults)] if faults else []
    parts += [healthy_table(sound)] if sound else []
    if unseen(results):
        parts.append("Not visible, so no faults:\n" + "\n".join(unseen(results)))
    if never_healthy(results):
        parts.append("Not healthy after all trainings, so not counted:\n" + "\n".join(never_healthy(results)))
    text = "\n\n".join(parts)
    write_json(folder / f"{set_name}.json", [dataclasses.asdict(result) for result in results])
    with written_aside(folder / f"{set_name}.md") as aside:
        aside.write_text(text + "\n", encoding="utf-8")
    return text


def parse(arguments: Optional[list[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, default="tuning")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/fault_bench"))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="faults, or kinds of healthy models")
    parser.add_argument("--rejudge", action="store_true", help="only the rules, over saved measures")
    options = parser.parse_args(arguments)
    unknown = set(options.only) - {*FAULTS, *HEALTHY[options.set], "healthy"}
    if unknown:
        raise UserError(f"--only: {sorted(unknown)[0]} is neither a fault nor a healthy kind of {options.set}")
    if options.jobs < 1:
        raise UserError(f"--jobs: {options.jobs} is less than 1; give 1 or more")
    return options


if __name__ == "__main__":
    main()
