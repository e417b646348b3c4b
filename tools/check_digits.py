"""Judges digits that a model of MNIST draws, by a small classifier that was trained on real ones.

    python tools/check_digits.py                              the newest run under runs/
    python tools/check_digits.py --checkpoint DIR --samples 500 --guidance 2

The classifier knows 98 % of the official test digits at least, and calls what is none "nothing"; it is trained once,
in about two minutes on one core, and kept in the cache. Printed, beside the same figures of the real test digits: how
many samples it recognises with a confidence of 0.9 or more, and how they spread over the ten digits. A model that takes
classes (condition.kinds class) is asked for each digit in turn; how many samples are what was asked for is printed too.
Written: digits.json and samples.png. Exit code: 0 where 80 % are recognised, all ten digits are there, and, of a model
of classes, 90 % are what was asked for; 1 else; 2 when it could not be tried.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # works where vidpred is cloned but not installed

import torch  # noqa: E402
from digit_classifier import NOTHING, DigitClassifier, trained_classifier  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

from vidpred.checkpoint_store import newest_run  # noqa: E402
from vidpred.conditions import ConditionBatch  # noqa: E402
from vidpred.data import MnistConfig, MovingDigitsConfig, build_dataset, evenly_spaced_clips  # noqa: E402
from vidpred.data.mnist import NAMES  # noqa: E402
from vidpred.diagnosis import Subject, results_folder, subject_from_checkpoint  # noqa: E402
from vidpred.errors import UserError, door, require  # noqa: E402
from vidpred.files import write_json  # noqa: E402
from vidpred.prediction import Predictor  # noqa: E402
from vidpred.video_io import save_grid  # noqa: E402

CONFIDENT = 0.9
TARGETS = {"recognised": 0.8, "digits_present": NOTHING, "asked_class_hit_rate": 0.9}
FILE_SIDE = 28  # of MNIST's pictures: larger ones have a border
SHOWN = 100


@dataclass(frozen=True)
class Verdict:
    """recognised: share of N pictures that are a digit with a confidence of 0.9 or more. histogram: share of each of
    the ten digits among these, 0 .. 9. labels: (N,) the most likely one of ten digits, or 10 for nothing."""

    recognised: float
    histogram: list[float]
    labels: Tensor

    @classmethod
    def of(cls, probabilities: Tensor) -> "Verdict":
        """probabilities (N, 11)."""
        confidence, labels = probabilities.max(dim=1)
        sure = labels[(confidence >= CONFIDENT) & (labels != NOTHING)]
        counts = torch.bincount(sure, minlength=NOTHING).double()
        shares = (counts / max(len(sure), 1)).tolist()
        return cls(len(sure) / max(len(labels), 1), shares, labels)

    @property
    def present(self) -> int:
        """How many of the ten digits there are."""
        return sum(share > 0 for share in self.histogram)

    def row(self, title: str) -> str:
        shares = " ".join(f"{100 * share:5.1f}" for share in self.histogram)
        return f"{title:<18}{100 * self.recognised:9.1f} %   {shares}"


@door
def main() -> int:
    options = _options()
    run = options.checkpoint or newest_run("runs")
    require(run is not None, "--checkpoint: no run under runs/; train configs/mnist.yaml, or give a run folder")
    subject = subject_from_checkpoint(run, options.device)
    data = _digits_of(subject)
    _guide(subject.predictor, options.guidance)
    folder = results_folder(options.out, subject.folder / "digits" / subject.name)
    classifier = classifier_for(data, subject.predictor.device)
    print(f"model: {subject.title}\nclassifier: {100 * classifier.accuracy:.2f} % of the real test digits", flush=True)
    asked = torch.arange(options.samples) % NOTHING if _takes_classes(subject.predictor) else None
    samples = draw(subject.predictor, data.height, options.samples, options.seed, options.batch_size, asked)
    verdict, real = Verdict.of(judge(classifier, samples)), Verdict.of(judge(classifier, real_digits(data)))
    hits = None if asked is None else float((verdict.labels == asked).double().mean())
    for line in lines(verdict, real, len(samples), hits):
        print(line)
    result = _plain(options, subject, classifier, verdict, real, hits)
    write_json(folder / "digits.json", result)
    (picture,) = save_grid(folder / "samples.png", samples[:SHOWN])
    print(f"files: {picture}, {folder / 'digits.json'}")
    missed = missed_targets(result)
    print(f"verdict: {'missed: ' + ', '.join(missed) if missed else 'every target is met'}")
    return 1 if missed else 0


def missed_targets(result: dict) -> list[str]:
    """Those of `TARGETS` that the figures stay below; there is no hit rate of a model that takes no classes."""
    return [
        f"{name} {result[name]:.4g} is below {least:g}"
        for name, least in TARGETS.items()
        if result[name] is not None and result[name] < least
    ]


def _digits_of(subject: Subject) -> MnistConfig:
    data = subject.data
    if not isinstance(data, MnistConfig) or subject.predictor.context_frames:
        raise UserError(f"--checkpoint: {subject.title} is no model that generates digits (data.kind mnist); give one")
    return data


def _takes_classes(predictor: Predictor) -> bool:
    return predictor.conditioner is not None and "class" in predictor.conditioner.config.kinds


def _guide(predictor: Predictor, scale: Optional[float]) -> None:
    if scale is not None:
        require(_takes_classes(predictor), "--guidance: the model takes no class to be guided by; leave it out")
        predictor.sampling = predictor.guided(scale)


def classifier_for(data: MnistConfig, device: torch.device) -> DigitClassifier:
    """Of digits as large as those in the pictures of `data`."""
    side = min(data.height, FILE_SIDE)
    frames = MovingDigitsConfig(root=data.root, height=2 * side, width=2 * side, digit_size=side, num_digits=1)
    return trained_classifier(frames, device)


def draw(
    predictor: Predictor, side: int, count: int, seed: int, batch_size: int, asked: Optional[Tensor] = None
) -> Tensor:
    """(count, 3, side, side) uint8; picture n is a function of the seed, n and the digit asked[n], (count,) int64."""
    drawn = []
    numbers = torch.arange(count).split(batch_size)
    for draws in tqdm(numbers, desc="drawing digits", unit="batch", leave=False):
        condition = None if asked is None else ConditionBatch(class_names=[NAMES[n] for n in asked[draws].tolist()])
        drawn.append(predictor.generate(side, side, draws, seed, condition=condition)[:, 0])
    return torch.cat(drawn)


def real_digits(data: MnistConfig, count: int = 1000) -> Tensor:
    """(N, 3, side, side) uint8, evenly spaced over the test split."""
    dataset = build_dataset(data, "test", 0)
    return torch.cat([dataset.clip(number, None).frames for number in evenly_spaced_clips(dataset, count)])


def judge(classifier: DigitClassifier, pictures: Tensor) -> Tensor:
    """Probabilities (N, 11) of pictures (N, 3, side, side) uint8, whose border is cut off."""
    border = (pictures.shape[-1] - classifier.side) // 2
    inside = slice(border, border + classifier.side)
    parts = pictures[..., inside, inside].split(500)
    return torch.cat([classifier(part).flatten(1).cpu() for part in parts])


def lines(verdict: Verdict, real: Verdict, count: int, hits: Optional[float]) -> Iterator[str]:
    yield f"{'':<18}{'recognised':>11}   share of each digit among them (%)"
    yield f"{'':<18}{'':>11}   {' '.join(f'{digit:5d}' for digit in range(NOTHING))}"
    yield verdict.row(f"{count} samples")
    yield real.row("real test digits")
    yield f"{verdict.present} of 10 digits are present"
    if hits is not None:
        yield f"{100 * hits:.1f} % of the samples are the digit that was asked for"


def _plain(
    options: argparse.Namespace, subject: Subject, classifier: DigitClassifier, verdict: Verdict, real: Verdict,
    hits: Optional[float],
) -> dict:  # fmt: skip
    return {
        "model": subject.title,
        "samples": options.samples,
        "seed": options.seed,
        "confidence": CONFIDENT,
        "classifier_accuracy": classifier.accuracy,
        "recognised": verdict.recognised,
        "digits_present": verdict.present,
        "histogram": verdict.histogram,
        "asked_class_hit_rate": hits,
        "targets": TARGETS,
        "guidance": subject.predictor.sampling.guidance.condition_scale,
        "real": {"recognised": real.recognised, "histogram": real.histogram},
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="run folder or checkpoint (the newest run)")
    parser.add_argument("--samples", type=int, default=500, metavar="N", help="digits to draw (500)")
    parser.add_argument("--batch-size", type=int, default=100, metavar="N", help="drawn at once (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (0)")
    parser.add_argument("--guidance", type=float, metavar="SCALE", help="on the class; 1 is none (the model's)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the files (the run's digits/)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    options = parser.parse_args()
    for name in ("samples", "batch_size"):
        require(getattr(options, name) >= 1, f"--{name.replace('_', '-')}: {getattr(options, name)} must be 1 or more")
    return options


if __name__ == "__main__":
    main()
