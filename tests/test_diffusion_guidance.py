"""History guidance by closed forms: a denoiser that answers with what it was told about the history."""

import pytest
import torch

from vidpred.conditions import Condition
from vidpred.diffusion import GuidanceConfig, NoiseLevel, NoiseSchedule, ScheduleConfig, guided, sample_heun
from vidpred.diffusion.guidance import Branch, branches, rescale
from vidpred.errors import UserError
from vidpred.tensor_ops import append_dims

B, T, SHAPE = 2, 4, (2, 4, 3, 5, 5)
SCHEDULE = NoiseSchedule(ScheduleConfig(zero_terminal_snr=True))
GIVEN = torch.tensor([[True, True, False, False], [True, False, True, False]])
TIMES = torch.arange(4.0).expand(2, 4)


def randoms(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Records:
    """Answers with the sum of (time + 1) (1 - code) over the frames that are told to be given."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, level, given, frame_times):
        self.calls.append((x, level, given, frame_times))
        told = torch.where(given, (frame_times + 1) * (1 - level.code), 0.0).sum(dim=1)
        return append_dims(told[:, None], x.ndim).expand_as(x) + 0 * x


def setup(config, x=None, code_level=500):
    denoiser, noise = Records(), randoms(1)
    x = randoms(0) if x is None else x
    shared = SCHEDULE.level(torch.full((B, T), code_level), torch.float64)
    level = NoiseLevel.where(GIVEN, NoiseLevel.clean((B, T), dtype=torch.float64), shared)
    denoise = guided(denoiser, GIVEN, TIMES, SCHEDULE, lambda: noise, config)
    return denoiser, denoise, x, level, noise


def answer(config, **settings):
    """(B,) what the guided denoiser says of the unknown frames."""
    _, denoise, x, level, _ = setup(config, **settings)
    return denoise(x, level)[:, 3, 0, 0, 0]


FULL = torch.tensor([3.0, 4.0], dtype=torch.float64)  # times 0 and 1: 1 + 2; times 0 and 2: 1 + 3


@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0])
def test_vanilla(scale):
    torch.testing.assert_close(answer(GuidanceConfig("vanilla", scale)), 0 + scale * (FULL - 0))


@pytest.mark.parametrize("noise", [0.2, 0.7])
def test_fractional(noise):
    partial = FULL * (1 - SCHEDULE.at(torch.tensor(noise).double(), torch.float64).code)
    config = GuidanceConfig("fractional", 2.5, history_noise=noise)
    torch.testing.assert_close(answer(config), FULL + 1.5 * (partial - 0), rtol=0, atol=1e-6)


def test_temporal():
    latest, earliest = torch.tensor([2.0, 3.0]).double(), torch.tensor([1.0, 1.0]).double()
    torch.testing.assert_close(answer(GuidanceConfig("temporal", 3.0, subsets=(1,))), FULL + 2 * latest)
    both = answer(GuidanceConfig("temporal", 3.0, subsets=(1, -1)))
    torch.testing.assert_close(both, FULL + 2 * (latest + earliest) / 2)
    whole = answer(GuidanceConfig("temporal", 3.0, subsets=(9,)))  # more than there are: vanilla
    torch.testing.assert_close(whole, 3 * FULL)


@pytest.mark.parametrize("kind", ["none", "vanilla", "fractional", "temporal"])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_scale_1_is_the_bare_denoiser_and_takes_one_call_of_its_own_size(kind, rescale):
    denoiser, denoise, x, level, _ = setup(GuidanceConfig(kind, rescale=rescale, low=0.1))
    out = denoise(x, level)
    ((asked, asked_level, given, times),) = denoiser.calls
    assert asked is x and asked_level is level and given is GIVEN and times is TIMES
    assert torch.equal(out, Records()(x, level, GIVEN, TIMES))


@pytest.mark.parametrize("config, count", [
    (GuidanceConfig("vanilla", 3.0), 2),
    (GuidanceConfig("vanilla", 0.0), 1),
    (GuidanceConfig("vanilla", 0.0, rescale=0.5), 2),
    (GuidanceConfig("fractional", 3.0), 3),
    (GuidanceConfig("temporal", 3.0, subsets=(1, 2, -1)), 5),
])  # fmt: skip
def test_all_branches_are_one_call(config, count):
    denoiser, denoise, x, level, _ = setup(config)
    denoise(x, level)
    assert [len(call[0]) for call in denoiser.calls] == [count * B]
    weights = [branch.weight for branch in branches(config)]
    assert len(weights) == count and sum(weights) == pytest.approx(1)


def test_hidden_frames_are_pure_noise_that_is_not_told_to_be_given():
    denoiser, denoise, x, level, noise = setup(GuidanceConfig("vanilla", 2.0))
    denoise(x, level)
    states, levels, given, times = denoiser.calls[0]
    assert torch.equal(states[:B], x) and torch.equal(given[:B], GIVEN) and torch.equal(times[B:], TIMES)
    assert not given[B:].any()
    assert torch.equal(states[B:][GIVEN], noise[GIVEN])  # alpha is 0 at the noisiest level of this schedule
    assert torch.equal(states[B:][~GIVEN], x[~GIVEN])
    assert (levels.code[B:][GIVEN] == 1).all() and torch.equal(levels.code[B:][~GIVEN], level.code[~GIVEN])


def test_fractional_history_is_noised_given_and_the_same_at_every_step():
    denoiser, denoise, x, level, noise = setup(GuidanceConfig("fractional", 2.0, history_noise=0.3))
    denoise(x, level)
    denoise(x, level)
    states, levels, given, _ = denoiser.calls[0]
    there = SCHEDULE.at(torch.tensor(0.3).double(), torch.float64)
    part = slice(B, 2 * B)
    expected = there.alpha * x[GIVEN] + there.sigma * noise[GIVEN]
    torch.testing.assert_close(states[part][GIVEN], expected, rtol=0, atol=1e-6)
    assert torch.equal(given[part], GIVEN)
    torch.testing.assert_close(levels.sigma[part][GIVEN], there.sigma.expand(4), rtol=0, atol=1e-7)
    assert torch.equal(states, denoiser.calls[1][0])


def test_history_under_context_noise_is_noised_on_and_never_made_cleaner():
    config = GuidanceConfig("fractional", 2.0, history_noise=0.3)
    for fraction, stays in ((0.1, False), (0.6, True)):
        denoiser, denoise, x, level, _ = setup(config)
        context = SCHEDULE.at(torch.full((B, T), fraction, dtype=torch.float64), torch.float64)
        denoise(x, NoiseLevel.where(GIVEN, context, level))
        states, levels, _, _ = denoiser.calls[0]
        part = slice(B, 2 * B)
        assert torch.equal(states[part][GIVEN], x[GIVEN]) == stays
        expected = SCHEDULE.at(torch.tensor(max(fraction, 0.3)).double(), torch.float64).sigma
        torch.testing.assert_close(levels.sigma[part][GIVEN], expected.expand(4), rtol=0, atol=1e-7)
        assert torch.equal(states[:B], x)


def test_guidance_acts_between_low_and_high_alone():
    config = GuidanceConfig("vanilla", 3.0, low=0.3, high=0.9)
    denoiser, denoise, x, _, _ = setup(config)
    # One frame of each row inside of the interval, one outside of it.
    t = torch.tensor([[0, 0, 500, 990], [0, 500, 0, 5]])
    level = SCHEDULE.level(t, torch.float64)
    level = NoiseLevel.where(GIVEN, NoiseLevel.clean((B, T), dtype=torch.float64), level)
    code = level.code[~GIVEN]
    assert ((code > 0.3) & (code < 0.9)).tolist() == [True, False, True, False]
    out = denoise(x, level)[..., 0, 0, 0]
    assert out[~GIVEN].tolist() == [9.0, 3.0, 12.0, 4.0] and len(denoiser.calls[0][0]) == 2 * B
    for outside in (5, 998):  # nothing to guide: the call is not enlarged
        denoiser, denoise, x, level, _ = setup(config, code_level=outside)
        assert torch.equal(denoise(x, level)[:, 3, 0, 0, 0], FULL) and len(denoiser.calls[0][0]) == B
    pure = GuidanceConfig("vanilla", 3.0, low=0.5)  # up to and with pure noise
    assert torch.equal(answer(pure, code_level=999), 3 * FULL)


def test_rescale_restores_the_deviation_of_unknown_frames():
    guided_x0, unguided, unknown = 5 * randoms(2) + 1, randoms(3), ~GIVEN
    full = rescale(guided_x0, unguided, unknown, 1.0)
    for row in range(B):
        of_full, of_unguided = (x0[row][unknown[row]].std() for x0 in (full, unguided))
        assert of_full.item() == pytest.approx(of_unguided.item())
        ratio = of_unguided / guided_x0[row][unknown[row]].std()
        part = rescale(guided_x0, unguided, unknown, 0.7)[row]
        torch.testing.assert_close(part, guided_x0[row] * (0.7 * ratio + 0.3))
    assert torch.equal(rescale(guided_x0, unguided, unknown, 0.0), guided_x0)
    louder = torch.where(append_dims(GIVEN, 5), 100 * guided_x0, guided_x0)  # given frames do not count
    torch.testing.assert_close(
        rescale(louder, unguided, unknown, 0.7)[unknown], rescale(guided_x0, unguided, unknown, 0.7)[unknown]
    )
    assert rescale(torch.zeros(SHAPE), unguided, unknown, 1.0).isfinite().all()


def test_rescaled_guidance_is_the_formula():
    config = GuidanceConfig("vanilla", 4.0, rescale=0.6)

    def denoiser(x, level, given, frame_times):
        return x * (0.5 + append_dims(given.any(dim=1)[:, None], x.ndim))

    x, (_, _, _, level, noise) = randoms(0), setup(config)
    denoise = guided(denoiser, GIVEN, TIMES, SCHEDULE, lambda: noise, config)
    full, null = 1.5 * x, 0.5 * x
    expected = rescale(null + 4 * (full - null), full, ~GIVEN, 0.6)
    torch.testing.assert_close(denoise(x, level)[~GIVEN], expected[~GIVEN])


def test_given_frames_stay_through_a_guided_sampling():
    config = GuidanceConfig("temporal", 2.0, rescale=0.5, low=0.2, subsets=(1, -1))
    levels, x = SCHEDULE.sampling_levels(5, GIVEN, torch.float64), randoms(0)
    denoise = guided(Records(), GIVEN, TIMES, SCHEDULE, lambda: randoms(1), config)
    end = sample_heun(denoise, x, levels)
    assert torch.equal(end[GIVEN], x[GIVEN]) and end.isfinite().all()
    plain = sample_heun(lambda x, level: Records()(x, level, GIVEN, TIMES), x, levels)
    assert (end - plain)[~GIVEN].abs().min() > 0.1


def test_no_noise_is_drawn_without_guidance():
    def noise():
        raise AssertionError("drawn")

    guided(Records(), GIVEN, TIMES, SCHEDULE, noise, GuidanceConfig("fractional"))
    assert branches(GuidanceConfig("fractional")) == [Branch(1.0)]


@pytest.mark.parametrize(
    "broken, message",
    [
        ({"kind": "cfg"}, "kind: 'cfg'"),
        ({"scale": 3.0}, "scale: 3.0 has no effect with kind none"),
        ({"kind": "vanilla", "scale": -1.0}, "scale: -1.0"),
        ({"kind": "vanilla", "rescale": 1.5}, "rescale"),
        ({"low": 0.6, "high": 0.4}, "low, high"),
        ({"high": 1.1}, "low, high"),
        ({"history_noise": 1.0}, "history_noise.*vanilla"),
        ({"subsets": ()}, "subsets"),
        ({"subsets": (1, 0)}, "subsets"),
    ],
)
def test_broken_guidance_is_refused(broken, message):
    with pytest.raises(UserError, match=f"sampling.guidance.{message}"):
        GuidanceConfig(**broken)


# Guidance over conditions -----------------------------------------------------------------------------------

CONDITION = Condition(classes=torch.tensor([2, 5]))


class Classes(Records):
    """As Records, and 10 (class + 1) more where there is a class."""

    def __call__(self, x, level, given, frame_times, condition):
        answer = super().__call__(x, level, given, frame_times)
        self.calls[-1] += (condition,)
        return answer + append_dims(10.0 * (condition.classes + 1), x.ndim)


def under_condition(config, condition=CONDITION, code_level=500):
    """The denoiser, and (B,) what it says, guided, of the unknown frames."""
    denoiser, (_, _, x, level, noise) = Classes(), setup(config, code_level=code_level)
    denoise = guided(denoiser, GIVEN, TIMES, SCHEDULE, lambda: noise, config, condition)
    return denoiser, denoise(x, level)[:, 3, 0, 0, 0]


TOLD = torch.tensor([30.0, 60.0], dtype=torch.float64)  # what the condition adds


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5])
def test_condition_guidance_is_null_plus_scale_times_the_difference(scale):
    denoiser, said = under_condition(GuidanceConfig(condition_scale=scale))
    torch.testing.assert_close(said, FULL + scale * (FULL + TOLD - FULL))
    (call,) = denoiser.calls
    assert len(call[0]) == (B if scale == 0 else 2 * B)  # of weight 0 nothing is asked
    assert call[2].equal(GIVEN.repeat(len(call[0]) // B, 1))  # the given frames stay in both
    assert call[4].classes.tolist() == [2, 5, -1, -1][-len(call[0]) :]


@pytest.mark.parametrize("kind, parts", [("none", 1), ("vanilla", 1)])
def test_condition_scale_1_takes_one_call_that_is_told_the_condition(kind, parts):
    denoiser, said = under_condition(GuidanceConfig(kind, rescale=0.5, low=0.2))
    assert torch.equal(said, FULL + TOLD) and len(denoiser.calls[0][0]) == parts * B
    assert denoiser.calls[0][4] is CONDITION


def test_without_a_condition_its_scale_does_nothing():
    config = GuidanceConfig(condition_scale=3.0)
    assert branches(config) == [Branch(1.0)]
    denoiser, denoise, x, level, _ = setup(config)
    assert torch.equal(denoise(x, level)[:, 3, 0, 0, 0], FULL) and len(denoiser.calls[0]) == 4


def test_both_guidances_add_up():
    config = GuidanceConfig("vanilla", 2.0, condition_scale=3.0)
    denoiser, said = under_condition(config)
    # D(0, c) + 2 (D(H, c) - D(0, c)) + (3 - 1) (D(H, c) - D(H, 0)), with D(H, c) = H + c
    torch.testing.assert_close(said, TOLD + 2 * FULL + 2 * TOLD)
    assert len(denoiser.calls[0][0]) == 3 * B
    assert sum(branch.weight for branch in branches(config, True)) == pytest.approx(1)
    temporal = GuidanceConfig("temporal", 3.0, subsets=(1, -1), condition_scale=2.5)
    assert [branch.conditioned for branch in branches(temporal, True)] == [True] * 4 + [False]
    assert sum(branch.weight for branch in branches(temporal, True)) == pytest.approx(1)


def test_condition_guidance_acts_between_low_and_high_alone():
    config = GuidanceConfig(condition_scale=4.0, low=0.3, high=0.9)
    torch.testing.assert_close(under_condition(config)[1], FULL + 4 * TOLD)
    denoiser, said = under_condition(config, code_level=998)
    assert torch.equal(said, FULL + TOLD) and len(denoiser.calls[0][0]) == B
    assert denoiser.calls[0][4] is CONDITION


def test_condition_guidance_is_rescaled_to_the_deviation_with_the_condition():
    config = GuidanceConfig(condition_scale=4.0, rescale=0.6)

    def denoiser(x, level, given, frame_times, condition):
        return x * append_dims(0.5 + (condition.classes >= 0), x.ndim)

    x, (_, _, _, level, noise) = randoms(0), setup(config)
    denoise = guided(denoiser, GIVEN, TIMES, SCHEDULE, lambda: noise, config, CONDITION)
    expected = rescale(0.5 * x + 4 * x, 1.5 * x, ~GIVEN, 0.6)
    torch.testing.assert_close(denoise(x, level)[~GIVEN], expected[~GIVEN])


def test_a_condition_scale_that_is_none():
    with pytest.raises(UserError, match="sampling.guidance.condition_scale: -1.0 must be 0 or more"):
        GuidanceConfig(condition_scale=-1.0)
