"""Predicts with a model, checks that the result is finite and in range, shows it and times it.

    python tools/test_model_inference.py                    the newest run under runs/, or an untrained model
    python tools/test_model_inference.py --checkpoint DIR   a run folder or one of its checkpoints/step_*
    python tools/test_model_inference.py --video FILE       continues this video, not validation clips

The last line is the verdict. Exit code: 0 healthy, 1 the model is broken, 2 it could not be tried.
"""

import argparse
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # works where vidpred is cloned but not installed

from vidpred.assembly import open_subject  # noqa: E402
from vidpred.diagnosis import (  # noqa: E402
    check_inference,
    results_folder,
    validation_clips,
    verdict,
    video_clip,
)
from vidpred.errors import UserError, door  # noqa: E402

VALIDATION_FPS = 8.0  # of the moving pictures, as those that training makes


@door
def main() -> int:
    options = _options()
    subject = open_subject(options.checkpoint, REPOSITORY / "configs" / "quickstart.yaml", options.device)
    folder = results_folder(options.out, subject.folder / "inference" / subject.name)
    print(f"model: {subject.title}", flush=True)
    if options.video:
        clips, fps = video_clip(subject, options.video)
    else:
        clips, fps = validation_clips(subject, options.clips), VALIDATION_FPS
    check = check_inference(subject, clips, fps, folder)
    for line in check.lines():
        print(line)
    print(verdict(check.findings, "the prediction is finite and in range"))
    return 1 if check.findings else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="run folder or checkpoint")
    parser.add_argument("--video", type=Path, metavar="FILE", help="a video file to continue")
    parser.add_argument("--clips", type=int, default=4, metavar="N", help="validation clips to predict (4)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the pictures (the run's inference/)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    options = parser.parse_args()
    if options.clips < 1:
        raise UserError(f"--clips: {options.clips} must be 1 or more")
    return options


if __name__ == "__main__":
    main()
