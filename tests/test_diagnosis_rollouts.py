"""What of a rollout counts as drift."""

import math

import pytest
import torch

from vidpred.diagnosis.rollout_measures import count_of_videos, sure_part

NONE = torch.zeros(12, 3)


def changes(mean, spread=0.1, seed=0):
    """Of 12 clips and 3 channels; the last channel has exactly this mean and deviation."""
    values = torch.randn(12, 3, generator=torch.Generator().manual_seed(seed)).double()
    values = (values - values.mean(0)) / values.std(0) * spread
    return values + torch.tensor([0.0, 0.0, mean])


def test_three_standard_errors_are_taken_off_whichever_channel_it_is():
    assert sure_part(changes(-1.0), NONE, videos=12) == pytest.approx(1 - 0.3 / math.sqrt(12))
    assert sure_part(changes(0.08), NONE, videos=12) == 0
    # A small drift that is surer than a large one does not hide it.
    both = changes(1.0, 0.5)
    both[:, 0] = 0.1 + 1e-4 * torch.arange(12)
    assert sure_part(both, NONE, videos=12) == pytest.approx(1 - 1.5 / math.sqrt(12))


def test_windows_of_one_video_are_not_independent():
    names = [f"{number % 2}.mp4 (window {number} of 12)" for number in range(12)]
    assert count_of_videos(names) == 2
    assert sure_part(changes(0.5, 0.3), NONE, videos=2) == 0 < sure_part(changes(0.5, 0.3), NONE, videos=12)


def test_what_true_clips_do_is_no_drift():
    darkening = changes(-0.8)
    assert sure_part(darkening, changes(-0.8, 0.2, seed=1), videos=12) == 0
    assert sure_part(darkening, changes(-0.8, 5.0, seed=1), videos=12) > 0.6  # which is not sure


def test_one_clip_is_sure_of_nothing():
    assert sure_part(torch.ones(1, 3), torch.zeros(1, 3), videos=1) == 0
