"""Student's quantile, intervals and baselines: closed forms, then SciPy."""

import math

import numpy as np
import pytest
import torch

from vidpred.evaluation import copy_last, extrapolate, student_t, summarize


def test_quantile_closed_forms():
    assert student_t(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-12)
    p = 0.95  # two degrees of freedom: P = t / sqrt(2 + t^2)
    assert student_t(2) == pytest.approx(p * math.sqrt(2 / (1 - p * p)), rel=1e-12)


def test_quantile_equals_scipy():
    from scipy.stats import t

    for degrees in [*range(1, 40), 63, 100, 999, 10000]:
        assert student_t(degrees) == pytest.approx(t.ppf(0.975, degrees), rel=1e-9)
    assert student_t(7, 0.5) == pytest.approx(t.ppf(0.75, 7), rel=1e-9)


def test_summary_by_hand():
    summary = summarize(np.array([[1.0, 3.0], [3.0, 5.0], [5.0, 7.0]]))  # means 2, 4, 6; s = 2
    assert summary.mean == 4 and summary.per_horizon == [3, 5]
    assert summary.ci95 == pytest.approx(4.302652729911275 * 2 / math.sqrt(3))


def test_interval_equals_scipy():
    from scipy.stats import sem, t

    values = np.random.default_rng(0).normal(20, 3, (12, 4))
    per_clip = values.mean(axis=1)
    low, high = t.interval(0.95, 11, loc=per_clip.mean(), scale=sem(per_clip))
    summary = summarize(values)
    assert (summary.mean - summary.ci95, summary.mean + summary.ci95) == pytest.approx((low, high))


def test_one_clip_has_no_interval():
    assert summarize(np.array([[1.0, 2.0]])).ci95 is None


def test_copy_last():
    frames = torch.arange(5, dtype=torch.uint8)[None, :, None, None, None].expand(2, 5, 3, 4, 4)
    assert torch.equal(copy_last(frames, 2), torch.ones(2, 3, 3, 4, 4, dtype=torch.uint8))


def ramp(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)[None, :, None, None, None].expand(1, -1, 3, 2, 2)


def test_extrapolation_is_the_line_clamped():
    times = torch.arange(5.0)[None]
    line = extrapolate(ramp(10, 90, 0, 0, 0), times, 2)
    assert line.dtype == torch.uint8 and line[0, :, 0, 0, 0].tolist() == [170, 250, 255]
    assert extrapolate(ramp(90, 10, 0, 0, 0), times, 2)[0, :, 0, 0, 0].tolist() == [0, 0, 0]
    assert extrapolate(ramp(0, 10, 20, 99, 99), times, 3)[0, :, 0, 0, 0].tolist() == [30, 40]


def test_extrapolation_follows_the_frame_times():
    line = extrapolate(ramp(10, 20, 0, 0), torch.tensor([[0.0, 2.0, 3.0, 6.0]]), 2)
    assert line[0, :, 0, 0, 0].tolist() == [25, 40]


def test_extrapolation_of_a_single_frame_is_its_copy():
    frames = ramp(7, 0, 0)
    assert torch.equal(extrapolate(frames, torch.arange(3.0)[None], 1), copy_last(frames, 1))


def test_extrapolation_between_equal_times_is_a_copy():
    times = torch.tensor([[0.0, 0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]])
    line = extrapolate(ramp(10, 20, 0, 0).expand(2, -1, -1, -1, -1), times, 2)
    assert line[:, :, 0, 0, 0].tolist() == [[20, 20], [30, 40]]
