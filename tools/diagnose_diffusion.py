"""Says whether a model is healthy: every sampling step, the one-step error at every noise level, a verdict.

    python tools/diagnose_diffusion.py                    the newest run under runs/, or an untrained model
    python tools/diagnose_diffusion.py --checkpoint DIR   a run folder or one of its checkpoints/step_*

The last line is the verdict. Exit code: 0 healthy, 1 something was found, 2 it could not be examined.
"""

import argparse
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # works where vidpred is cloned but not installed

from vidpred.assembly import open_subject  # noqa: E402
from vidpred.diagnosis import (  # noqa: E402
    examination_lines,
    examine,
    results_folder,
    save_plot,
    validation_clips,
    verdict,
)
from vidpred.errors import UserError, door  # noqa: E402


@door
def main() -> int:
    options = _options()
    subject = open_subject(options.checkpoint, REPOSITORY / "configs" / "quickstart.yaml", options.device)
    folder = results_folder(options.out, subject.folder / "diagnosis")
    print(f"model: {subject.title}", flush=True)
    examination = examine(subject, validation_clips(subject, options.clips))
    for line in examination_lines(examination):
        print(line)
    plot = folder / f"{subject.name}.png"
    save_plot(plot, subject.title, examination)
    print(f"\nplot: {plot}")
    findings = examination.findings()
    for finding in findings:
        print(f"finding ({finding.severity}): {finding}")
    print(verdict(findings, examination.summary()))
    return 1 if findings else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="run folder or checkpoint")
    parser.add_argument("--clips", type=int, default=8, metavar="N", help="validation clips to look at (8)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the plot (the run's diagnosis/)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    options = parser.parse_args()
    if options.clips < 1:
        raise UserError(f"--clips: {options.clips} must be 1 or more")
    return options


if __name__ == "__main__":
    main()
