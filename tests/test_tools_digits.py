"""The classifier and the detector of digits that the tool for long rollouts counts with."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vidpred.data import MovingDigitsConfig, build_dataset, digit_tracks

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import digit_classifier  # noqa: E402
from digit_classifier import NOTHING, SQUARE, DigitNetwork  # noqa: E402
from digit_detector import NO_DIGIT, DigitDetector, apart, chance, matches, strongest  # noqa: E402
from rollout_figures import Digits  # noqa: E402

ASSETS = os.environ.get("VIDPRED_ASSETS", "")


# The classifier --------------------------------------------------------------------------------------------


def test_squares_are_seen_alike_one_by_one_and_in_the_whole_frame():
    torch.manual_seed(0)
    network = DigitNetwork((4, 5, 6))
    for norm in network.norms:
        norm.running_mean.normal_()
    network.eval()
    frames = torch.rand(2, 1, SQUARE + 7, SQUARE + 10)
    with torch.no_grad():
        whole = network(frames)
        assert whole.shape == (2, NOTHING + 1, 8, 11)
        for top, left in ((0, 0), (7, 10), (3, 4), (4, 5)):
            alone = network(frames[:, :, top : top + SQUARE, left : left + SQUARE])
            assert torch.allclose(whole[:, :, top, left], alone[..., 0, 0], atol=1e-5)


def test_what_a_square_shows():
    corners, labels = np.array([[[10.0, 10.0], [10.0, 20.0]]]), np.array([[3, 7]])
    places = np.array([[[10, 10], [12, 8], [10, 20], [9, 21], [10, 15], [13, 10], [20, 15], [0, 0]]])
    shown = digit_classifier._labels(places, corners, labels)
    assert shown.tolist() == [[3, 3, 7, 7, NOTHING, -100, NOTHING, NOTHING]]
    near = np.array([[[10.0, 10.0], [10.0, 11.0]]])  # one upon the other: nobody can say which is meant
    assert digit_classifier._labels(np.array([[[10, 10]]]), near, labels).tolist() == [[-100]]


def test_training_squares_show_the_digits_that_their_labels_name(tmp_path, monkeypatch):
    """Digits that are evenly bright, each label by its own amount, at the classifier's own scale."""
    monkeypatch.setattr(digit_classifier, "_disturbed", lambda pictures, generator: pictures)
    pictures = np.broadcast_to(20 * (1 + np.arange(10, dtype=np.uint8))[:, None, None], (10, SQUARE, SQUARE))
    digits = digit_classifier.Digits(pictures, np.arange(10, dtype=np.uint8))
    config = MovingDigitsConfig(root="x", height=60, width=50, digit_size=SQUARE, num_digits=1)
    squares = digit_classifier.training_squares(digits, config, 200, np.random.default_rng(0))
    assert squares.pictures.shape == (200 * 2 + 50 + 50, 1, SQUARE, SQUARE)
    assert len(squares.labels) == 500 and set(squares.labels.tolist()) == {-100, *range(NOTHING + 1)}
    brightest = (squares.pictures.amax(dim=(1, 2, 3)) * 255 / 20).round().long() - 1
    covered = (squares.pictures > 0).double().mean(dim=(1, 2, 3))
    digit = (squares.labels >= 0) & (squares.labels < NOTHING)
    assert torch.equal(brightest[digit], squares.labels[digit])
    assert covered[digit].min() >= (1 - 2 / SQUARE) ** 2 - 1e-9  # of the square, at most 2 pixels are missing
    assert (squares.labels[400:] == NOTHING).all()


def test_a_frame_is_scaled_as_its_digits_are():
    assert digit_classifier.to_scale(torch.rand(1, 1, 64, 96), 32).shape == (1, 1, 40, 60)
    frames = torch.rand(1, 1, 40, 40)
    assert digit_classifier.to_scale(frames, SQUARE) is frames


# The detector ----------------------------------------------------------------------------------------------


def scores_of(*answers, size=30):
    scores = torch.zeros(1, 10, size, size)
    for label, y, x, score in answers:
        scores[0, label, y, x] = score
    return scores


@pytest.mark.parametrize(
    "answers, labels",
    [([(3, 5, 5, 0.9), (7, 20, 20, 0.8)], [3, 7]),
     ([(3, 5, 5, 0.7), (7, 20, 20, 0.8)], [7, 3]),  # strongest first
     ([(3, 5, 5, 0.9), (3, 13, 5, 0.8)], [3, NO_DIGIT]),  # 8 apart: the same digit, seen from another square
     ([(3, 5, 5, 0.9), (3, 14, 5, 0.8)], [3, 3]),  # 9 apart: two digits with one label
     ([(3, 5, 5, 0.9), (8, 8, 2, 0.8)], [3, NO_DIGIT]),  # 3 apart: a second opinion about one digit
     ([(3, 5, 5, 0.9), (8, 9, 5, 0.8)], [3, 8]),
     ([(3, 5, 5, 0.9), (8, 8, 5, 0.8), (1, 20, 0, 0.5)], [3, 1]),
     ([(3, 5, 5, 0.39), (7, 20, 20, 0.8)], [7, NO_DIGIT]),
     ([], [NO_DIGIT, NO_DIGIT])],
)  # fmt: skip
def test_the_strongest_answers_and_none_beside_them(answers, labels):
    scores = scores_of(*answers)
    before = scores.clone()
    assert strongest(scores, 2).tolist() == [labels]
    assert torch.equal(scores, before)


def test_frames_of_one_batch_do_not_disturb_each_other():
    frames = [scores_of((3, 5, 5, 0.9)), scores_of((3, 9, 9, 0.8), (4, 0, 29, 0.7)), scores_of()]
    assert strongest(torch.cat(frames), 2).tolist() == [[3, NO_DIGIT], [3, 4], [NO_DIGIT, NO_DIGIT]]


@pytest.mark.parametrize(
    "found, labels, right",
    [([3, 7], [7, 3], [True, True]),
     ([3, 5], [3, 7], [True, False]),
     ([3, NO_DIGIT], [3, 3], [True, False]),  # one answer is for one digit
     ([3, 3], [3, 3], [True, True]),
     ([3, 3], [3, 7], [True, False]),
     ([NO_DIGIT, NO_DIGIT], [3, 7], [False, False]),
     ([1, 2, 1], [1, 1, 1], [True, True, False])],
)  # fmt: skip
def test_digits_that_are_among_the_answers(found, labels, right):
    assert matches(torch.tensor(found), torch.tensor(labels)).tolist() == right


def test_answers_over_clips_and_frames():
    found, labels = torch.tensor([[[3, 7], [3, 3]], [[1, 1], [1, 2]]]), torch.tensor([[3, 7], [1, 2]])
    expected = [[[True, True], [True, False]], [[True, False], [True, True]]]
    assert matches(found, labels[:, None]).tolist() == expected


def test_chance_is_what_other_clips_labels_find():
    found = torch.tensor([[[3, 7]], [[3, 8]], [[1, 1]]])
    labels = found[:, 0]
    # Of the six pairs, the first two share the 3.
    assert chance(found, labels) == pytest.approx(2 / 12)
    assert chance(found[:1], labels[:1]) is None


def test_digits_that_overlap_by_more_than_a_quarter():
    others = torch.tensor([[0, 24], [0, 23], [16, 16], [15, 16], [32, 0], [0, 0], [-24, 0], [-23, 0]])
    positions = torch.stack([torch.zeros_like(others), others], dim=1)
    assert apart(positions, 32).tolist() == [True, False, True, False, True, False, True, False]
    three = torch.tensor([[0, 0], [40, 0], [40, 4]])
    assert not apart(three, 32) and apart(three[:2], 32)
    assert apart(three[:1], 32)  # a digit alone


# The real digits -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not ASSETS, reason="VIDPRED_ASSETS is not set")
@pytest.mark.parametrize("size", [64, 32])
def test_true_digits_are_recognised_and_noise_is_not(tmp_path, monkeypatch, size):
    monkeypatch.setenv("VIDPRED_CACHE", str(tmp_path))
    config = MovingDigitsConfig(root=str(Path(ASSETS) / "mnist"), num_frames=10, height=size, width=size)
    classifier = digit_classifier.trained_classifier(config, torch.device("cpu"))
    assert classifier.accuracy >= 0.98
    dataset, count = build_dataset(config, "val", 0), 100
    frames = torch.stack([dataset.clip(index, None).frames for index in range(count)])
    tracks = [digit_tracks(config, "val", index) for index in range(count)]
    digits = Digits.of_tracks(DigitDetector(classifier, 2), tracks, 0, config.side)

    def found(pictures):
        return digits.detector(pictures)

    right = matches(found(frames), digits.labels[:, None]).double()
    assert right[apart(digits.positions, digits.side)].mean() >= 0.95
    assert right.mean() >= 0.85 and chance(found(frames), digits.labels) < 0.25
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, frames.shape, generator=generator, dtype=torch.uint8)
    kernel = config.side // 2 + 1
    smears = F.avg_pool2d(frames.flatten(0, 1).float(), kernel, 1, kernel // 2).to(torch.uint8)
    crowd = frames.float().mean(dim=0, keepdim=True).expand_as(frames).to(torch.uint8)
    for nothing in (noise, smears.view_as(frames), torch.zeros_like(frames), crowd):
        assert (found(nothing) != NO_DIGIT).double().mean() < 0.05
        assert matches(found(nothing), digits.labels[:, None]).double().mean() < 0.05
