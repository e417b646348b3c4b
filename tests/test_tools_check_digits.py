"""The tool that judges generated digits: exact counts, and the whole command on a model as small as it can be."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from test_data_moving_digits import write_mnist
from test_end_to_end_images import TOOLS, train_images

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import check_digits  # noqa: E402
import digit_classifier  # noqa: E402
from check_digits import Verdict, classifier_for, judge, missed_targets, real_digits  # noqa: E402
from digit_classifier import NOTHING, DigitClassifier, DigitNetwork  # noqa: E402

from vidpred.data import MnistConfig  # noqa: E402

ASSETS = os.environ.get("VIDPRED_ASSETS", "")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDPRED_CACHE", str(tmp_path / "cache"))


def test_a_verdict_counts_what_is_recognised_with_confidence():
    def row(label, confidence):
        return torch.full((NOTHING + 1,), (1 - confidence) / NOTHING).index_fill(0, torch.tensor(label), confidence)

    rows = [row(3, 0.95), row(3, 0.9), row(7, 0.99), row(7, 0.89), row(NOTHING, 0.99), row(1, 0.3)]
    verdict = Verdict.of(torch.stack(rows))
    assert verdict.recognised == 0.5 and verdict.present == 2
    assert verdict.histogram == pytest.approx([0, 0, 0, 2 / 3, 0, 0, 0, 1 / 3, 0, 0])
    assert verdict.labels.tolist() == [3, 3, 7, 7, NOTHING, 1]
    assert "50.0 %" in verdict.row("6 samples") and " 66.7 " in verdict.row("6 samples")
    nothing = Verdict.of(torch.stack(rows[4:5]))
    assert (nothing.recognised, nothing.present) == (0, 0)


def test_the_border_is_cut_off_before_the_judgement():
    torch.manual_seed(0)
    classifier = DigitClassifier(DigitNetwork((4, 5, 6)).eval(), side=28, accuracy=1.0)
    inside = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8).expand(-1, 3, -1, -1)
    framed = torch.nn.functional.pad(inside, [2] * 4)
    probabilities = judge(classifier, framed)
    assert probabilities.shape == (3, NOTHING + 1) and torch.allclose(probabilities.sum(1), torch.ones(3))
    assert torch.equal(probabilities, judge(classifier, inside))
    assert not torch.allclose(probabilities[0], judge(classifier, 255 - framed)[0], atol=1e-4)


def test_the_command(tmp_path, monkeypatch, run_file):
    """With a classifier that nobody trained: what it says means nothing, but all of it is said."""
    write_mnist(tmp_path / "mnist")
    train_images(tmp_path, f"data: {{kind: mnist, root: {tmp_path / 'mnist'}, height: 16, width: 16}}\n")
    sides = []

    def untrained(config, device):
        sides.append((config.side, config.num_digits, config.height))
        return DigitClassifier(DigitNetwork((4, 5, 6)).eval(), config.side, 0.5)

    monkeypatch.setattr(digit_classifier, "trained_classifier", untrained)
    tool, run = TOOLS / "check_digits.py", tmp_path / "images"
    code, printed, errors = run_file(tool, "--checkpoint", run, "--samples", 5, "--batch-size", 2)
    folder = run / "digits" / "step_00000004"
    assert code == 1 and printed[-1].startswith("verdict: missed: recognised ")
    assert sides == [(16, 1, 32)] and (folder / "samples.png").is_file()
    result = json.loads((folder / "digits.json").read_text())
    assert result["samples"] == 5 and 0 <= result["recognised"] <= 1 and len(result["real"]["histogram"]) == 10
    assert printed[0].startswith("model: ") and any("real test digits" in line for line in printed)
    predictor = check_digits.subject_from_checkpoint(run, "cpu").predictor
    one, other = (check_digits.draw(predictor, 16, 5, 0, n) for n in (2, 5))
    assert torch.equal(one, other), "a picture does not depend on its batch"
    code, _, errors = run_file(tool, "--checkpoint", run, "--samples", 0)
    assert code == 2 and "--samples: 0 must be 1 or more" in errors[-1]


def test_a_model_of_classes_is_asked_for_each_digit(tmp_path, monkeypatch, run_file):
    write_mnist(tmp_path / "mnist")
    data = f"data: {{kind: mnist, root: {tmp_path / 'mnist'}, height: 16, width: 16}}\n"
    train_images(tmp_path, data, '--condition.kinds=["class"]', "--training.num_steps=1")

    monkeypatch.setattr(digit_classifier, "trained_classifier", lambda config, device: AlwaysThree())
    tool, run = TOOLS / "check_digits.py", tmp_path / "images"
    code, printed, errors = run_file(tool, "--checkpoint", run, "--samples", 20, "--guidance", 2)
    assert code == 1 and "10.0 % of the samples are the digit that was asked for" in printed, errors
    assert printed[-1] == "verdict: missed: digits_present 1 is below 10, asked_class_hit_rate 0.1 is below 0.9"
    result = json.loads((run / "digits" / "step_00000001" / "digits.json").read_text())
    assert (result["asked_class_hit_rate"], result["guidance"], result["recognised"]) == (0.1, 2, 1)

    predictor = check_digits.subject_from_checkpoint(run, "cpu").predictor
    asked = torch.tensor([1, 2, 1])
    one, other = (check_digits.draw(predictor, 16, 3, 0, size, asked) for size in (1, 3))
    assert torch.equal(one, other)


def test_targets():
    met = {"recognised": 0.8, "digits_present": 10, "asked_class_hit_rate": None}
    assert not missed_targets(met) and not missed_targets({**met, "asked_class_hit_rate": 0.9})
    assert missed_targets({**met, "recognised": 0.79}) == ["recognised 0.79 is below 0.8"]
    assert missed_targets({**met, "digits_present": 9}) == ["digits_present 9 is below 10"]


class AlwaysThree:
    side, accuracy = 16, 0.99

    def __call__(self, pictures):
        return torch.eye(NOTHING + 1)[3].expand(len(pictures), -1)[..., None, None]


def test_another_model_is_refused(tmp_path, run_file):
    train_images(tmp_path, "data: {kind: picture, height: 16, width: 16}\n", "--training.num_steps=1")
    code, _, errors = run_file(TOOLS / "check_digits.py", "--checkpoint", tmp_path / "images")
    assert code == 2 and "is no model that generates digits" in errors[-1]


@pytest.mark.slow
@pytest.mark.skipif(not ASSETS, reason="VIDPRED_ASSETS is not set")
def test_real_digits_are_recognised():
    data = MnistConfig(root=str(Path(ASSETS) / "mnist"), height=16, width=16)
    classifier = classifier_for(data, torch.device("cpu"))
    verdict = Verdict.of(judge(classifier, real_digits(data)))
    assert classifier.accuracy >= 0.98 and verdict.recognised > 0.9 and verdict.present == 10
