"""Rollouts: which windows are asked for, in closed form; constant memory; every scheme to any length."""

import pytest
import torch

from vidpred.errors import UserError
from vidpred.prediction.rollout import RolloutOptions, Window, keyframes_first, pyramid, slide

K, T, STEPS = 3, 8, 10


def clock(frames):
    """Context whose frame t holds the number t - (K - 1): the last one is 0."""
    return torch.arange(1.0 - frames, 1.0).reshape(1, frames, 1, 1, 1).expand(2, -1, 1, 2, 2)


class Clockwork:
    """A sampler that knows the law: a frame holds its time. Keeps the windows that it was asked for."""

    def __init__(self):
        self.windows: list[Window] = []

    def __call__(self, window):
        self.windows.append(window)
        known = window.latents[0, :, 0, 0, 0]
        origins = (known - window.frame_times)[window.given]
        assert (origins == origins[0]).all()  # what is given lies where its times say
        values = (origins[0] + window.frame_times).reshape(1, -1, 1, 1, 1).expand_as(window.latents)
        return torch.where(window.given.reshape(1, -1, 1, 1, 1), window.latents, values)


def values(pieces):
    return torch.cat(list(pieces), dim=1)[0, :, 0, 0, 0].tolist()


@pytest.mark.parametrize("num_frames", [1, 5, 6, 23])
@pytest.mark.parametrize("options", [{}, {"overlap": 1}, {"overlap": 6}, {"stride": 2}, {"stride": 5, "overlap": 2}])
@pytest.mark.parametrize("scheme", [slide, keyframes_first])
def test_every_frame_comes_once_and_in_order(scheme, options, num_frames):
    sample = Clockwork()
    assert values(scheme(sample, clock(K), num_frames, T, RolloutOptions(**options))) == list(
        range(1, num_frames + 1)
    )
    assert [window.number for window in sample.windows] == list(range(len(sample.windows)))
    overlap = options.get("overlap", K)
    for window in sample.windows[1:]:
        assert window.given[: min(K, overlap)].all() and window.frame_times[0] == 0
        assert (window.frame_times.diff() > 0).all()


def test_sliding_windows_are_as_long_as_training_clips():
    sample = Clockwork()
    list(slide(sample, clock(K), 11, T, RolloutOptions(overlap=5)))
    assert [(len(w.given), int(w.given.sum())) for w in sample.windows] == [(T, K), (T, 5), (T, 5)]


@pytest.mark.parametrize("scheme", [slide, keyframes_first])
def test_a_short_rollout_asks_for_the_windows_that_a_long_one_begins_with(scheme):
    short, long = Clockwork(), Clockwork()
    list(scheme(short, clock(K), 6, T, RolloutOptions()))
    list(scheme(long, clock(K), 60, T, RolloutOptions()))
    for one, other in zip(short.windows, long.windows):
        assert one.frame_times.tolist() == other.frame_times.tolist() and one.given.tolist() == other.given.tolist()


def test_keyframes_come_before_what_lies_between_them():
    sample = Clockwork()
    list(keyframes_first(sample, clock(K), 20, T, RolloutOptions(stride=4)))
    first, *gaps = sample.windows
    assert first.frame_times.tolist() == [0, 1, 2, 6, 10, 14, 18, 22]
    assert first.given.tolist() == [True] * 3 + [False] * 5
    assert all(gap.given.tolist() == [True] * 3 + [False] * 3 + [True] for gap in gaps) and len(gaps) == 5


def test_only_predicted_frames_are_given_with_noise():
    sample = Clockwork()
    list(slide(sample, clock(K), 12, 6, RolloutOptions(stabilization=0.1, overlap=4)))
    noise = [[round(float(value), 3) for value in w.context_noise[w.given]] for w in sample.windows]
    assert noise == [[0, 0, 0], [0, 0.1, 0.1, 0.1]] + [[0.1] * 4] * (len(noise) - 2)
    sample = Clockwork()
    list(keyframes_first(sample, clock(K), 4, T, RolloutOptions(stabilization=0.1, stride=2)))
    gap = sample.windows[1]
    assert gap.context_noise[gap.given].tolist() == pytest.approx([0, 0, 0, 0.1])


@pytest.mark.parametrize("overlap, num_steps", [(3, 10), (3, 5), (3, 3), (6, 7), (1, 20)])
def test_a_pyramid_takes_each_frame_through_all_steps_once(overlap, num_steps):
    walked: dict[int, list[int]] = {}  # absolute frame -> the steps that it took

    def advance(window, steps):
        known = int(window.given.sum())
        assert steps.shape == (len(steps), len(window.given)) and (steps[:, :known] == num_steps).all()
        assert (steps.diff(dim=0) >= 0).all() and (steps.diff(dim=1)[:, known:] <= 0).all()
        x = window.latents.clone()
        for place in range(known, len(window.given)):
            frame = int(x[0, place, 0, 0, 0])
            walked.setdefault(frame, [0])
            assert walked[frame][-1] == int(steps[0, place])  # where it was left
            taken = steps[:, place].tolist()
            walked[frame] += [step for before, step in zip(taken, taken[1:]) if step != before]
        return x

    def noise(number):
        return torch.full((2, 1, 1, 2, 2), float(number + 1))

    options = RolloutOptions("pyramid", overlap=overlap)
    assert values(pyramid(advance, noise, clock(K), 12, T, num_steps, options)) == list(range(1, 13))
    assert all(walked[frame] == list(range(num_steps + 1)) for frame in range(1, 13))


def test_what_a_rollout_keeps_does_not_grow():
    sample = Clockwork()
    for number, _ in enumerate(slide(sample, clock(K), 200, T, RolloutOptions())):
        pass
    assert number == 39 and {w.latents.shape[1] for w in sample.windows} == {T}
    shared = sample.windows[-1].latents.untyped_storage().nbytes()
    assert shared == sample.windows[1].latents.untyped_storage().nbytes()


@pytest.mark.parametrize(
    "changes, message",
    [(dict(scheme="jump"), "rollout: 'jump' is not known; choose sliding, keyframes, pyramid"),
     (dict(overlap=0), "overlap: 0 must be 1 or more"),
     (dict(stabilization=1.0), "stabilization: 1.0 must be in"),
     (dict(stride=1), "stride: 1 must be 2 or more")],
)  # fmt: skip
def test_impossible_rollouts_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        RolloutOptions(**changes)


def start(scheme, options):
    """The first piece of a rollout; an impossible one must be refused before it."""
    arguments = (clock(K), 4, T)
    if scheme is pyramid:
        return next(pyramid(lambda window, steps: window.latents, lambda n: clock(1), *arguments, STEPS, options))
    return next(scheme(Clockwork(), *arguments, options))


@pytest.mark.parametrize("scheme", [slide, keyframes_first, pyramid])
@pytest.mark.parametrize("overlap", [T, T + 3])
def test_an_overlap_that_leaves_nothing_to_predict_is_refused(scheme, overlap):
    with pytest.raises(UserError, match=f"overlap: {overlap} leaves no frame to predict in windows of 8; lower it"):
        start(scheme, RolloutOptions(overlap=overlap))


def test_keyframes_too_far_apart_for_a_window_are_refused():
    with pytest.raises(UserError, match="stride: 8 frames from one keyframe to the next do not fit windows of 8"):
        start(keyframes_first, RolloutOptions(stride=T))


@pytest.mark.parametrize("scheme", [slide, keyframes_first])
@pytest.mark.parametrize("overlap, stride", [(1, 2), (6, 5), (K, 7)])
def test_no_window_is_longer_than_a_training_clip(scheme, overlap, stride):
    sample = Clockwork()
    list(scheme(sample, clock(K), 40, T, RolloutOptions(overlap=overlap, stride=stride)))
    assert max(len(window.given) for window in sample.windows) <= T


@pytest.mark.parametrize("overlap", [1, K, 6])
def test_no_window_of_a_pyramid_is_longer_than_a_training_clip(overlap):
    lengths = []

    def advance(window, steps):
        lengths.append(len(window.given))
        return window.latents

    list(pyramid(advance, lambda n: clock(1), clock(K), 20, T, STEPS, RolloutOptions("pyramid", overlap=overlap)))
    assert max(lengths) <= T
