"""Quality and time of samplers over steps on one model: a table, a plot and a JSON file.

    python tools/compare_samplers.py                    the newest run under runs/, or an untrained model
    python tools/compare_samplers.py --checkpoint DIR   a run folder or one of its checkpoints/step_*
    python tools/compare_samplers.py --samplers ddim unipc --steps 4 8 16 --clips 64 --seeds 0 1 2

Each sampler predicts the same validation clips. The JSON file is written after every cell, so that what is
known at an interruption is kept. What cannot be combined with the model is listed with the reason.
"""

import argparse
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # works where vidpred is cloned but not installed

from vidpred.assembly import open_subject  # noqa: E402
from vidpred.diagnosis import (  # noqa: E402
    compare_samplers,
    results_folder,
    sampler_lines,
    save_sampler_plot,
)
from vidpred.diffusion import SAMPLERS  # noqa: E402
from vidpred.errors import UserError, door  # noqa: E402

STEPS = (5, 10, 20, 50)
INTERRUPTED = 130  # the usual exit code after Ctrl-C


@door
def main() -> int:
    options = _options()
    subject = open_subject(options.checkpoint, REPOSITORY / "configs" / "quickstart.yaml", options.device)
    folder = results_folder(options.out, subject.folder / "samplers" / subject.name)
    file, plot = folder / "compare_samplers.json", folder / "compare_samplers.png"
    print(f"model: {subject.title}", flush=True)
    cells = compare_samplers(
        subject, options.samplers, options.steps, clips=options.clips, seeds=options.seeds or [subject.seed]
    )
    known, code = None, 0
    try:
        for known in cells:
            known.save(file)
    except KeyboardInterrupt:
        code = INTERRUPTED
        print("interrupted: what was measured before is kept", file=sys.stderr)
    if known is not None:
        for line in sampler_lines(known):
            print(line)
        save_sampler_plot(plot, known)
        print(f"\nfigures: {file}\nplot: {plot}")
    return code


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="run folder or checkpoint")
    known = ", ".join(SAMPLERS)
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS, metavar="NAME", help=f"{known} (all)")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, metavar="S", help="(5 10 20 50)")
    parser.add_argument("--clips", type=int, default=32, metavar="N", help="validation clips to predict (32)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="of the noise (the run's own)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the results (the run's samplers/)")
    options = parser.parse_args()
    unknown = [name for name in options.samplers if name not in SAMPLERS]
    if unknown:
        raise UserError(f"--samplers: '{unknown[0]}' is not known; choose some of {known}")
    if min(options.steps) < 1:
        raise UserError(f"--steps: {min(options.steps)} must be 1 or more")
    if options.clips < 1:
        raise UserError(f"--clips: {options.clips} must be 1 or more")
    return options


if __name__ == "__main__":
    main()
