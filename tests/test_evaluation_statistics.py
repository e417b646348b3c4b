"""Student's quantile, intervals and baselines: closed forms, then SciPy."""

import math

import numpy as np
import pytest
import torch

from vidpred.evaluation import copy_nearest, linear, mean_of_given, student_t, summarize


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


def first(context: int, frames: torch.Tensor) -> torch.Tensor:
    """The mask of prediction, (B, T)."""
    return (torch.arange(frames.shape[1]) < context).expand(len(frames), -1)


def mask(*given: int, count: int) -> torch.Tensor:
    return torch.isin(torch.arange(count), torch.tensor(given))[None]


def levels(frames: torch.Tensor) -> list[list[int]]:
    return frames[:, :, 0, 0, 0].tolist()


def test_copy_last():
    frames = torch.arange(5, dtype=torch.uint8)[None, :, None, None, None].expand(2, 5, 3, 4, 4)
    for times in (torch.arange(5.0), torch.zeros(5)):  # whatever the times
        copy = copy_nearest(frames, first(2, frames), times.expand(2, 5))
        assert torch.equal(copy, torch.ones(2, 3, 3, 4, 4, dtype=torch.uint8))


def ramp(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)[None, :, None, None, None].expand(1, -1, 3, 2, 2)


def test_mean_of_what_is_given():
    frames = ramp(10, 20, 40, 99, 99).expand(2, -1, -1, -1, -1)
    mean = mean_of_given(frames, first(3, frames))
    assert mean.dtype == torch.uint8 and mean.shape == (2, 2, 3, 2, 2)
    assert levels(mean) == [[23, 23]] * 2  # of 23.3
    bright = ramp(250, 0, 255, 0)  # unsigned sums would wrap around
    assert levels(mean_of_given(bright, mask(0, 2, count=4))) == [[252, 252]]  # 252.5: to the even one


def test_extrapolation_is_the_line_clamped():
    times, mask = torch.arange(5.0)[None], first(2, ramp(0, 0, 0, 0, 0))
    line = linear(ramp(10, 90, 0, 0, 0), mask, times)
    assert line.dtype == torch.uint8 and levels(line) == [[170, 250, 255]]
    assert levels(linear(ramp(90, 10, 0, 0, 0), mask, times)) == [[0, 0, 0]]
    assert levels(linear(ramp(0, 10, 20, 99, 99), first(3, mask), times)) == [[30, 40]]


def test_extrapolation_follows_the_frame_times():
    frames = ramp(10, 20, 0, 0)
    assert levels(linear(frames, first(2, frames), torch.tensor([[0.0, 2.0, 3.0, 6.0]]))) == [[25, 40]]


def test_extrapolation_of_a_single_frame_is_its_copy():
    frames, times = ramp(7, 0, 0), torch.arange(3.0)[None]
    for given in (mask(0, count=3), mask(1, count=3), mask(2, count=3)):
        assert torch.equal(linear(frames, given, times), copy_nearest(frames, given, times))


def test_extrapolation_between_equal_times_is_a_copy():
    times = torch.tensor([[0.0, 0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]])
    frames = ramp(10, 20, 0, 0).expand(2, -1, -1, -1, -1)
    assert levels(linear(frames, first(2, frames), times)) == [[20, 20], [30, 40]]


def test_nearest_in_time_and_not_in_number():
    frames = ramp(10, 0, 0, 40, 0, 60)
    given = mask(0, 3, 5, count=6)
    # At 4 two are equally near.
    assert levels(copy_nearest(frames, given, torch.arange(6.0)[None])) == [[10, 40, 40]]
    times = torch.tensor([[0.0, 3.0, 4.0, 8.0, 8.6, 9.0]])  # at 4 the earlier of two, at 8.6 the later frame
    assert levels(copy_nearest(frames, given, times)) == [[10, 10, 60]]


def test_nearest_before_the_first_and_in_each_clip_its_own():
    frames = ramp(10, 20, 30, 40).expand(2, -1, -1, -1, -1)
    given = torch.tensor([[False, True, False, True], [True, False, False, True]])
    assert levels(copy_nearest(frames, given, torch.arange(4.0).expand(2, 4))) == [[20, 20], [10, 40]]


def test_blend_between_given_frames_follows_the_times():
    frames = ramp(10, 0, 0, 50)
    given, times = mask(0, 3, count=4), torch.tensor([[0.0, 1.0, 6.0, 8.0]])
    assert levels(linear(frames, given, times)) == [[15, 40]]
    assert levels(linear(frames, given, times * 0)) == [[10, 10]]  # of one time: the earlier, as it is


def test_line_before_the_first_between_and_beyond_the_last():
    """Given 20 at time 2, 40 at 4 and 100 at 7: the slope is 10 before 4, 20 after."""
    frames = ramp(0, 20, 0, 40, 0, 100, 0, 0)
    times = torch.tensor([[1.0, 2.0, 2.5, 4.0, 6.0, 7.0, 8.0, 14.0]])
    assert levels(linear(frames, mask(1, 3, 5, count=8), times)) == [[10, 25, 80, 120, 240]]


@pytest.mark.parametrize("seed", range(20))
def test_baselines_equal_their_definition(seed):
    """Irregular times and masks, frame by frame in plain Python."""
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 9))
    values = random.integers(0, 256, count)
    times = np.cumsum(random.integers(1, 4, count)).astype(np.float32)
    given = np.sort(random.permutation(count)[: random.integers(1, count)])
    nearest, line = [], []
    for u in np.setdiff1d(np.arange(count), given):
        nearest.append(values[min(given, key=lambda g: (abs(times[g] - times[u]), times[g]))])
        before, after = given[given < u], given[given > u]
        pair = [before[-1], after[0]] if len(before) and len(after) else [*before[-2:], *after[:2]]
        a, b = pair[0], pair[-1]
        slope = 0 if a == b else (values[b] - values[a]) / (times[b] - times[a])
        line.append(np.clip(values[a] + slope * (times[u] - times[a]), 0, 255))
    arguments = ramp(*values.tolist()), mask(*given.tolist(), count=count), torch.from_numpy(times)[None]
    assert levels(copy_nearest(*arguments)) == [nearest]
    assert np.abs(np.array(levels(linear(*arguments))[0]) - line).max() <= 0.5 + 1e-4
