"""Says what is wrong with a model: measures it, compares it with the record that its training left, names causes.

    python tools/diagnose_diffusion.py                    the newest run under runs/, or an untrained model
    python tools/diagnose_diffusion.py --checkpoint DIR   a run folder or one of its checkpoints/step_*

Writes the plot page (PNG) and diagnosis.json. The last line is the verdict. Exit code: 0 healthy, 1 something
was found, 2 it could not be examined.
"""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Iterator

import torch
from tqdm import tqdm

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # works where vidpred is cloned but not installed

from vidpred.assembly import open_subject  # noqa: E402
from vidpred.diagnosis import (  # noqa: E402
    diagnose_subject,
    diagnosis_lines,
    results_folder,
    save_plot,
    summary,
    verdict,
)
from vidpred.diagnosis.diagnose import CLIPS, PARTS, Progress  # noqa: E402
from vidpred.errors import UserError, door  # noqa: E402


@door
def main() -> int:
    options = _options()
    subject = open_subject(options.checkpoint, REPOSITORY / "configs" / "quickstart.yaml", options.device)
    folder = results_folder(options.out, subject.folder / "diagnosis")
    print(f"model: {subject.title}", flush=True)
    try:
        with progress() as starts:
            diagnosis = diagnose_subject(subject, options.clips, starts)
    except torch.OutOfMemoryError as error:
        raise UserError(f"out of GPU memory with {options.clips} clips; look at fewer of them (--clips)") from error
    for line in diagnosis_lines(diagnosis):
        print(line)
    plot, results = folder / f"{subject.name}.png", folder / "diagnosis.json"
    save_plot(plot, diagnosis)
    diagnosis.save(results)
    print(f"\nplot: {plot}\nmeasures and findings: {results}")
    print(verdict(diagnosis.findings, "" if diagnosis.findings else summary(diagnosis)))
    return 1 if diagnosis.findings else 0


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """A bar over the parts of a diagnosis, with an ETA; of a terminal alone."""
    layout = "{desc}: {percentage:3.0f}% |{bar}| [{elapsed}<{remaining}]"
    with tqdm(total=sum(PARTS.values()), bar_format=layout, leave=False, disable=None) as bar:
        order = list(PARTS)

        def starts(part: str) -> None:
            bar.set_description(part)
            bar.update(sum(PARTS[done] for done in order[: order.index(part)]) - bar.n)

        yield starts


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="run folder or checkpoint")
    parser.add_argument("--clips", type=int, default=CLIPS, metavar="N", help=f"validation clips to look at ({CLIPS})")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the results (the run's diagnosis/)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    options = parser.parse_args()
    if options.clips < 1:
        raise UserError(f"--clips: {options.clips} must be 1 or more")
    return options


if __name__ == "__main__":
    main()
