"""Loss weights and level distributions, by closed form."""

import math

import pytest
import torch

from vidpred.diffusion import (
    LevelConfig,
    LossWeightConfig,
    NoiseLevel,
    NoiseSchedule,
    ScheduleConfig,
    build_levels,
    build_parameterization,
    build_weight,
)
from vidpred.errors import UserError

SCHEDULE = NoiseSchedule(ScheduleConfig())
KINDS = ("uniform", "min_snr", "sigmoid", "edm")
OBJECTIVES = ("eps", "v", "x0", "flow", "edm")


def weigh(kind, objective, level, schedule=SCHEDULE, sigma_data=1.0, **settings):
    parameterization = build_parameterization(objective, schedule, sigma_data)
    return build_weight(LossWeightConfig(kind, **settings), parameterization, schedule)(level)


def table():
    """VP levels from SNR 10^4 to 10^-1, (1, 6) float64, and their SNR."""
    snr = 10.0 ** torch.arange(4.0, -2.0, -1.0, dtype=torch.float64)[None]
    return NoiseLevel.from_alpha_sigma((snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()), snr


def test_min_snr_is_the_published_factor_of_each_objective():
    level, snr = table()
    capped = snr.clamp(max=5.0)
    for objective, expected in (("x0", capped), ("eps", capped / snr), ("v", capped / (snr + 1))):
        torch.testing.assert_close(weigh("min_snr", objective, level, floor=0.0), expected)


def test_sigmoid_is_the_published_factor_on_the_error_of_eps():
    level, snr = table()
    torch.testing.assert_close(
        weigh("sigmoid", "eps", level, bias=1.5, floor=0.0), torch.sigmoid(1.5 - snr.log())
    )
    # And a smooth minimum on that of x0.
    far = weigh("sigmoid", "x0", level, bias=1.5, floor=0.0)
    assert far[0, 1] < far[0, 0] and far[0, 0].item() == pytest.approx(math.exp(1.5), rel=1e-2)
    assert far[0, -1].item() == pytest.approx(0.1, rel=0.03)


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_edm_weight_is_karras_and_1_for_the_edm_objective(sigma_data):
    sigma = torch.tensor([[0.002, 0.5, 80.0]]).double()
    level = NoiseLevel.from_alpha_sigma(torch.ones(()).double(), sigma)
    on_x0 = weigh("edm", "x0", level, sigma_data=sigma_data)
    torch.testing.assert_close(on_x0, (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2)
    torch.testing.assert_close(weigh("edm", "edm", level, sigma_data=sigma_data), torch.ones_like(sigma))
    vp, _ = table()
    torch.testing.assert_close(weigh("edm", "edm", vp, sigma_data=sigma_data), torch.ones(1, 6).double())


def test_uniform_is_exactly_1():
    level = SCHEDULE.level(torch.tensor([[-1, 0, 500, 999]]))
    for objective in OBJECTIVES:
        weight = weigh("uniform", objective, level)
        assert weight.dtype == torch.float32 and (weight == 1).all()


@pytest.mark.parametrize("kind", ["min_snr", "sigmoid", "edm"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_weights_of_x0_and_of_the_target_weigh_the_same_error(kind, objective):
    level, _ = table()
    parameterization = build_parameterization(objective, SCHEDULE)
    x, output, error = torch.randn(3, 1, 6, 1, 2, 2, dtype=torch.float64)
    of_x0 = parameterization.to_x0(x, output + error, level) - parameterization.to_x0(x, output, level)
    weighed = weigh(kind, objective, level) * error.square().mean(dim=(2, 3, 4))
    torch.testing.assert_close(weighed, weigh(kind, "x0", level) * of_x0.square().mean(dim=(2, 3, 4)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("schedule", ["linear", "cosine", "flow", "edm"])
def test_weights_are_finite_from_clean_to_the_noisiest_level(kind, objective, schedule):
    schedule = NoiseSchedule(ScheduleConfig(schedule))
    if objective == "eps" and schedule.reaches_pure_noise:
        return
    t = torch.arange(-1, 1000)[None]
    for dtype in (torch.float32, torch.float64):
        level = schedule.level(t, dtype)
        weight = weigh(kind, objective, level, schedule)
        assert weight.dtype == dtype and weight.isfinite().all() and (weight[:, 1:] > 0).all()
        assert kind == "uniform" or weight[0, 0] == 0  # a clean frame has nothing to learn


def test_the_floor_is_what_pure_noise_gets():
    pure = NoiseSchedule(ScheduleConfig(zero_terminal_snr=True))
    level = pure.level(torch.tensor([[999]]))
    for kind in ("min_snr", "sigmoid"):
        assert weigh(kind, "x0", level, pure, floor=0.25).item() == pytest.approx(0.25)
        with pytest.raises(UserError, match="diffusion.weight.floor: 0 leaves pure noise.*zero_terminal"):
            weigh(kind, "v", level, pure, floor=0.0)
    assert weigh("edm", "x0", level, pure, floor=0.0).item() == 1


@pytest.mark.parametrize("broken", [{"kind": "p2"}, {"gamma": 0.0}, {"floor": -1.0}, {"floor": 6.0}])
def test_broken_weights_are_refused(broken):
    with pytest.raises(UserError, match="diffusion.weight"):
        LossWeightConfig(**broken)


# Level distributions --------------------------------------------------------------------------------------

EVEN = (torch.arange(20000).double() + 0.5) / 20000


def test_uniform_levels_are_the_timesteps_below_u():
    levels = build_levels(LevelConfig(), SCHEDULE)
    u = torch.tensor([0.0, 0.0009, 0.5, 0.9999999, 1.0])
    expected = SCHEDULE.level(torch.tensor([0, 0, 500, 999, 999]))
    assert torch.equal(levels(u).sigma, expected.sigma) and levels(u).sigma.dtype == torch.float32


@pytest.mark.parametrize("kind", ["linear", "flow", "edm"])
@pytest.mark.parametrize("mean, std", [(None, None), (-0.5, 0.7)])
def test_logit_normal_levels_have_its_quantiles(kind, mean, std):
    schedule = NoiseSchedule(ScheduleConfig(kind))
    levels = build_levels(LevelConfig("logit_normal", mean, std), schedule)
    quantiles = torch.special.ndtri(torch.tensor([0.1, 0.5, 0.9]).double())
    fraction = torch.sigmoid((mean or 0.0) + (std or 1.0) * quantiles)
    torch.testing.assert_close(levels(torch.tensor([0.1, 0.5, 0.9])).sigma, schedule.at(fraction).sigma)
    if kind == "flow":  # there the fraction is sigma
        logits = torch.logit(levels(EVEN).sigma.double())
        assert logits.mean().item() == pytest.approx(mean or 0.0, abs=2e-3)
        assert logits.std().item() == pytest.approx(std or 1.0, rel=2e-3)


@pytest.mark.parametrize(
    "config", [ScheduleConfig("edm"), ScheduleConfig("flow"), ScheduleConfig("edm", shift=2.0)]
)
def test_log_normal_levels_have_its_moments_whatever_the_shift(config):
    schedule = NoiseSchedule(config)
    level = build_levels(LevelConfig("log_normal"), schedule)(EVEN)
    log = level.ratio.double().log()
    assert log.mean().item() == pytest.approx(-1.2, abs=5e-3)
    assert log.std().item() == pytest.approx(1.2, rel=5e-3)


@pytest.mark.parametrize("kind", ["uniform", "logit_normal", "log_normal"])
@pytest.mark.parametrize(
    "config",
    [ScheduleConfig(), ScheduleConfig(zero_terminal_snr=True), ScheduleConfig("flow"), ScheduleConfig("edm")],
)
def test_levels_rise_with_u_and_stay_within_the_schedule(kind, config):
    schedule = NoiseSchedule(config)
    levels = build_levels(LevelConfig(kind), schedule)
    u = torch.cat([torch.zeros(1), torch.linspace(0, 1, 4001)[1:-1], torch.tensor([1 - 2**-24])])
    level = levels(u)
    assert (level.code.diff() >= 0).all() and level.sigma.isfinite().all()
    first = schedule.level(torch.tensor(0))
    assert level.sigma[0].item() == pytest.approx(first.sigma.item(), rel=1e-6) and level.sigma[0] > 0
    assert level.sigma[-1] <= schedule.sigmas[-1].float()
    independent = levels(torch.rand(3, 5))
    assert independent.shape == (3, 5)


@pytest.mark.parametrize(
    "broken", [{"kind": "beta"}, {"kind": "log_normal", "std": 0.0}, {"mean": 1.0}, {"std": 1.0}]
)
def test_broken_distributions_are_refused(broken):
    with pytest.raises(UserError, match="diffusion.levels"):
        LevelConfig(**broken)
