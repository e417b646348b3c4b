"""Levels and schedules: closed form, then diffusers' tables."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from vidpred.diffusion import (
    NoiseLevel,
    NoiseSchedule,
    ScheduleConfig,
    add_more_noise,
    add_noise,
    implied_noise,
)
from vidpred.errors import UserError

KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("reference", [DDIMScheduler, DDPMScheduler])
@pytest.mark.parametrize("start, end", [(0.0001, 0.02), (0.00085, 0.012)])
def test_tables_equal_diffusers(kind, zero_terminal_snr, reference, start, end):
    config = ScheduleConfig(kind, 1000, start, end, zero_terminal_snr)
    schedule = NoiseSchedule(config)
    theirs = reference(
        num_train_timesteps=1000,
        beta_start=start,
        beta_end=end,
        beta_schedule=KINDS[kind],
        rescale_betas_zero_snr=zero_terminal_snr,
    )
    assert schedule.betas.dtype == schedule.alphas.dtype == schedule.sigmas.dtype == torch.float64
    assert torch.equal(schedule.betas, theirs.betas.double())
    assert torch.equal(schedule.alphas, theirs.alphas_cumprod.double().sqrt())
    assert schedule.reaches_pure_noise == zero_terminal_snr
    assert (schedule.alphas**2 + schedule.sigmas**2 - 1).abs().max() < 1e-14


def test_first_level_of_scaled_linear_is_not_clean():
    schedule = NoiseSchedule(ScheduleConfig("scaled_linear", 1000, 0.00085, 0.012))
    assert schedule.level(torch.tensor(0)).sigma.item() == pytest.approx(0.029, abs=5e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_level_at_integers_is_the_table_and_between_them_is_on_the_circle(kind, zero_terminal_snr):
    schedule = NoiseSchedule(ScheduleConfig(kind, zero_terminal_snr=zero_terminal_snr))
    t = torch.arange(1000)
    level = schedule.level(t, torch.float64)
    assert torch.equal(level.alpha, schedule.alphas) and torch.equal(level.sigma, schedule.sigmas)
    same = schedule.level(t.double(), torch.float64)
    assert torch.equal(same.alpha, level.alpha)

    between = schedule.level(t[:-1] + 0.3, torch.float64)
    assert (between.alpha**2 + between.sigma**2 - 1).abs().max() < 1e-14
    assert (between.code > level.code[:-1]).all() and (between.code < level.code[1:]).all()
    # On a circle the middle of a chord is at the mean angle.
    halfway = schedule.level(t[:-1] + 0.5, torch.float64)
    torch.testing.assert_close(halfway.code, (level.code[:-1] + level.code[1:]) / 2, rtol=0, atol=1e-12)


def test_level_minus_one_is_clean_and_level_is_float32_of_any_shape():
    schedule = NoiseSchedule(ScheduleConfig())
    level = schedule.level(torch.tensor([[-1.0, 0.0], [-0.5, 999.0]]))
    assert level.shape == (2, 2) and level.alpha.dtype == level.code.dtype == torch.float32
    assert (level.alpha[0, 0], level.sigma[0, 0], level.code[0, 0]) == (1, 0, 0)
    assert 0 < level.sigma[1, 0] < level.sigma[0, 1] < level.sigma[1, 1]


@pytest.mark.parametrize("num_steps", [1, 7, 20, 50, 1000])
def test_timesteps_are_trailing_like_diffusers(num_steps):
    theirs = DDIMScheduler(timestep_spacing="trailing")
    theirs.set_timesteps(num_steps)
    timesteps = NoiseSchedule(ScheduleConfig()).timesteps(num_steps)
    assert timesteps == theirs.timesteps.tolist()
    assert timesteps[0] == 999 and len(set(timesteps)) == num_steps


def test_sampling_levels():
    schedule = NoiseSchedule(ScheduleConfig(zero_terminal_snr=True))
    given = torch.tensor([[True, False, False], [False, True, False]])
    levels = schedule.sampling_levels(20, given)
    assert levels.shape == (21, 2, 3) and len(levels) == 21
    assert (levels.alpha[:, given] == 1).all() and (levels.sigma[:, given] == 0).all()
    assert (levels.alpha[0, ~given] == 0).all() and (levels.sigma[-1, ~given] == 0).all()
    assert (levels.sigma.diff(dim=0)[:, ~given] < 0).all()
    assert levels[3].shape == (2, 3)


def test_code_is_the_angle_of_any_family():
    angle = torch.linspace(0, math.pi / 2, 11, dtype=torch.float64)
    vp = NoiseLevel.from_alpha_sigma(angle.cos(), angle.sin())
    torch.testing.assert_close(vp.code, torch.linspace(0, 1, 11, dtype=torch.float64), rtol=0, atol=1e-15)
    edm = NoiseLevel.from_alpha_sigma(torch.ones(()), torch.tensor([0.0, 1.0, 80.0]))
    assert edm.code[:2].tolist() == [0.0, 0.5] and 0.99 < edm.code[2] < 1
    flow = NoiseLevel.from_alpha_sigma(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.0, 0.5, 1.0]))
    assert flow.code.tolist() == [0.0, 0.5, 1.0]


def test_level_record():
    clean = NoiseLevel.clean((2, 3))
    noisy = NoiseLevel.from_alpha_sigma(torch.tensor(0.6), torch.tensor(0.8)).expand(2, 3)
    mask = torch.tensor([[True, False, False], [True, True, False]])
    mixed = NoiseLevel.where(mask, clean, noisy)
    assert torch.equal(mixed.differs(noisy), mask) and torch.equal(mixed.differs(clean), ~mask)
    assert mixed.to(torch.float64).code.dtype == torch.float64


def test_noise_goes_in_and_comes_out():
    x0, noise = torch.randn(2, 3, 4, 5, 5).double(), torch.randn(2, 3, 4, 5, 5).double()
    sigma = torch.tensor([[0.0, 0.1, 1.0], [2.0, 0.0, 80.0]]).double()
    level = NoiseLevel.from_alpha_sigma(1 - sigma.clamp(max=1) / 2, sigma)
    x = add_noise(x0, noise, level)
    assert torch.equal(x[0, 0], x0[0, 0])
    eps = implied_noise(x, x0, level)
    torch.testing.assert_close(eps[sigma > 0], noise[sigma > 0], rtol=0, atol=1e-12)
    assert (eps[sigma == 0] == 0).all()  # not 0/0


def test_more_noise_has_the_moments_of_the_forward_process():
    # From (alpha, sigma) on to (alpha', sigma'): the same as noising x0 at once, whatever the way there.
    generator = torch.Generator().manual_seed(0)
    x0 = torch.full((1, 4, 1, 300, 300), 0.9, dtype=torch.float64)
    noises = torch.randn(2, *x0.shape, generator=generator, dtype=torch.float64)
    level = NoiseLevel.from_alpha_sigma(
        torch.tensor([[1.0, 0.9, 0.7, 1.0]]), torch.tensor([[0.0, 0.1, 0.3, 2.0]])
    )
    noisier = NoiseLevel.from_alpha_sigma(
        torch.tensor([[0.8, 0.5, 0.0, 1.0]]), torch.tensor([[0.6, 0.5, 1.0, 9.0]])
    )
    there = add_more_noise(add_noise(x0, noises[0], level.to(torch.float64)), level, noisier, noises[1])
    torch.testing.assert_close(there.mean(dim=(2, 3, 4)), 0.9 * noisier.alpha.double(), rtol=0, atol=0.05)
    torch.testing.assert_close(there.std(dim=(2, 3, 4)), noisier.sigma.double(), rtol=0.01, atol=0)
    from_clean = add_more_noise(x0, NoiseLevel.clean((1, 4)), noisier, noises[1])
    torch.testing.assert_close(from_clean, add_noise(x0, noises[1], noisier))


def test_flow_levels():
    schedule = NoiseSchedule(ScheduleConfig("flow"))
    torch.testing.assert_close(schedule.sigmas, torch.arange(1, 1001).double() / 1000, rtol=0, atol=1e-15)
    assert torch.equal(schedule.alphas, 1 - schedule.sigmas) and schedule.betas is None
    assert schedule.reaches_pure_noise and schedule.ratio_range[1] == math.inf
    between = schedule.level(torch.tensor([-0.75, 499.25, 998.5]), torch.float64)
    torch.testing.assert_close(between.sigma, torch.tensor([0.00025, 0.50025, 0.9995]).double())
    torch.testing.assert_close(between.alpha + between.sigma, torch.ones(3).double(), rtol=0, atol=1e-15)
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    torch.testing.assert_close(schedule.sigmas.flip(0).float(), theirs.sigmas.float())


def test_edm_levels_are_karras_equation_5_also_between_timesteps():
    schedule = NoiseSchedule(ScheduleConfig("edm", 18))
    theirs = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_schedule="karras", rho=7.0)
    theirs.set_timesteps(18)
    torch.testing.assert_close(schedule.sigmas.flip(0).float(), theirs.sigmas[:-1])
    assert (schedule.alphas == 1).all() and not schedule.reaches_pure_noise and schedule.betas is None
    finer = NoiseSchedule(ScheduleConfig("edm", 35))  # 34 intervals: every second level is one of the 18
    between = schedule.level(torch.arange(17) + 0.5, torch.float64)
    torch.testing.assert_close(between.sigma, finer.sigmas[1::2], rtol=1e-12, atol=0)
    assert schedule.level(torch.tensor(-1)).sigma == 0 < schedule.level(torch.tensor(-0.5)).sigma < 0.002


EVERY_KIND = [ScheduleConfig(kind) for kind in ("linear", "scaled_linear", "cosine", "flow", "edm")]
EVERY_KIND += [ScheduleConfig("cosine", zero_terminal_snr=True), ScheduleConfig("edm", 60, shift=0.5)]
EVERY_KIND += [ScheduleConfig("linear", shift=4.0), ScheduleConfig("flow", shift=4.0)]


@pytest.mark.parametrize("config", EVERY_KIND, ids=str)
def test_levels_lie_on_their_family_and_fall_strictly(config):
    schedule = NoiseSchedule(config)
    t = torch.linspace(-1, config.num_train_timesteps - 1, 4001, dtype=torch.float64)
    level = schedule.level(t, torch.float64)
    assert (level.alpha[0], level.sigma[0]) == (1, 0) and level.sigma[-1] == schedule.sigmas[-1]
    norms = {"flow": level.alpha + level.sigma, "edm": level.alpha}
    norm = norms.get(config.kind, level.alpha.hypot(level.sigma))
    assert (norm - 1).abs().max() < 1e-14
    assert (level.code.diff() > 0).all()
    integers = torch.arange(config.num_train_timesteps)
    assert torch.equal(schedule.level(integers, torch.float64).sigma, schedule.sigmas)


@pytest.mark.parametrize("config", EVERY_KIND, ids=str)
def test_at_a_fraction(config):
    schedule = NoiseSchedule(config)
    ends = schedule.at(torch.tensor([[0.0, 1.0]]), torch.float64)
    assert (ends.alpha[0, 0], ends.sigma[0, 0], ends.code[0, 0]) == (1, 0, 0)
    assert ends.sigma[0, 1] == schedule.sigmas[-1] and ends.alpha[0, 1] == schedule.alphas[-1]
    fraction = torch.tensor([0.25, 0.5])
    middle = schedule.at(fraction, torch.float64)
    expected = schedule.level(fraction.double() * config.num_train_timesteps - 1, torch.float64)
    assert torch.equal(middle.sigma, expected.sigma) and schedule.at(fraction).sigma.dtype == torch.float32


@pytest.mark.parametrize("kind", ["linear", "cosine", "flow", "edm"])
@pytest.mark.parametrize("shift", [0.3, 5.0])
def test_shift_multiplies_the_ratio_of_every_level(kind, shift):
    plain, shifted = NoiseSchedule(ScheduleConfig(kind)), NoiseSchedule(ScheduleConfig(kind, shift=shift))
    t = torch.tensor([-1.0, -0.3, 0.0, 17.0, 400.5, 800.25, 998.0])
    ratio = plain.level(t, torch.float64).ratio * shift
    torch.testing.assert_close(shifted.level(t, torch.float64).ratio, ratio, rtol=1e-10, atol=0)


def test_shift_is_stable_diffusion_3s_on_flow_levels():
    shifted = NoiseSchedule(ScheduleConfig("flow", shift=3.0))
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    torch.testing.assert_close(shifted.sigmas.flip(0).float(), theirs.sigmas.float())
    assert shifted.reaches_pure_noise


def test_shifted_betas_have_the_shifted_levels():
    schedule = NoiseSchedule(ScheduleConfig("scaled_linear", shift=2.0))
    alpha_bar = torch.cumprod(1 - schedule.betas, dim=0)
    torch.testing.assert_close(alpha_bar, schedule.alphas**2, rtol=1e-9, atol=0)


@pytest.mark.parametrize("config", EVERY_KIND, ids=str)
def test_at_ratio(config):
    schedule = NoiseSchedule(config)
    ratio = torch.tensor([0.0, 0.02, 1.0, 30.0]).double()
    level = schedule.at_ratio(ratio, torch.float64)
    torch.testing.assert_close(level.sigma / level.alpha, ratio)
    assert (level.alpha[0], level.sigma[0]) == (1, 0)
    t = torch.tensor([3, 20])
    table = schedule.level(t, torch.float64)
    torch.testing.assert_close(schedule.at_ratio(table.ratio, torch.float64).alpha, table.alpha)


@pytest.mark.parametrize("num_steps", [2, 7, 20, 50, 1000])
def test_linspace_timesteps_are_those_of_diffusers(num_steps):
    theirs = DDIMScheduler(timestep_spacing="linspace")
    theirs.set_timesteps(num_steps)
    timesteps = NoiseSchedule(ScheduleConfig()).timesteps(num_steps, "linspace")
    assert timesteps == theirs.timesteps.tolist()
    assert (timesteps[0], timesteps[-1]) == (999, 0)


def test_a_single_step_starts_at_the_top_with_every_spacing():
    schedule = NoiseSchedule(ScheduleConfig())
    for spacing in ("trailing", "linspace", "karras"):
        path = schedule.path(1, spacing, dtype=torch.float64)
        assert path.shape == (2,) and path.sigma[1] == 0 and path.alpha[1] == 1
        assert path.sigma[0].item() == pytest.approx(schedule.sigmas[-1].item(), rel=1e-12)


def test_karras_spacing_is_diffusers():
    whole = NoiseSchedule(ScheduleConfig()).path(1000, dtype=torch.float64).ratio[:-1]
    expected = DPMSolverMultistepScheduler()._convert_to_karras(whole, 12)
    path = NoiseSchedule(ScheduleConfig()).path(12, "karras", dtype=torch.float64)
    torch.testing.assert_close(path.ratio[:-1], torch.as_tensor(expected), rtol=1e-9, atol=0)
    edm = NoiseSchedule(ScheduleConfig("edm", 18))
    torch.testing.assert_close(edm.path(18, "karras", dtype=torch.float64).sigma[:-1], edm.sigmas.flip(0))


@pytest.mark.parametrize("config", [ScheduleConfig("flow"), ScheduleConfig("cosine", zero_terminal_snr=True)])
def test_karras_spacing_is_refused_where_the_ratio_is_infinite(config):
    with pytest.raises(UserError, match="sampling.spacing: karras.*diffusion.schedule.*use trailing"):
        NoiseSchedule(config).path(5, "karras")


def test_given_frames_may_keep_some_noise():
    schedule = NoiseSchedule(ScheduleConfig("flow"))
    given = torch.tensor([[True, False, False], [False, True, True]])
    levels = schedule.sampling_levels(4, given, torch.float64, "linspace", context=0.1)
    assert (levels.sigma[:, given] - 0.1).abs().max() < 1e-12
    path = schedule.path(4, "linspace", dtype=torch.float64)
    assert torch.equal(levels.sigma[:, ~given], path.sigma[:, None].expand(5, 3))
    clean = schedule.sampling_levels(4, given)
    assert (clean.alpha[:, given] == 1).all() and (clean.code[:, given] == 0).all()


@pytest.mark.parametrize(
    "broken, message",
    [
        ({"kind": "sigmoid"}, "kind: 'sigmoid' is not known"),
        ({"num_train_timesteps": 1}, "num_train_timesteps"),
        ({"beta_start": 0.0}, "beta_start"),
        ({"beta_start": 0.03}, "beta_start"),
        ({"beta_end": 1.0}, "beta_end"),
        ({"kind": "flow", "zero_terminal_snr": True}, "zero_terminal_snr: kind flow ends in pure noise"),
        ({"kind": "edm", "zero_terminal_snr": True}, "zero_terminal_snr: kind edm has alpha = 1"),
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"sigma_max": 0.001}, "sigma_max"),
        ({"rho": 0.5}, "rho"),
        ({"shift": 0.0}, "shift"),
        ({"shift": math.inf}, "shift"),
    ],
)
def test_broken_schedules_are_refused(broken, message):
    with pytest.raises(UserError, match=f"diffusion.schedule.*{message}"):
        ScheduleConfig(**broken)


@pytest.mark.parametrize("num_steps", [0, 1001])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_too_many_or_no_steps_are_refused(num_steps, spacing):
    with pytest.raises(UserError, match="num_inference_steps"):
        NoiseSchedule(ScheduleConfig()).timesteps(num_steps, spacing)


def test_an_unknown_spacing_is_refused():
    with pytest.raises(UserError, match="sampling.spacing: 'leading'"):
        NoiseSchedule(ScheduleConfig()).path(5, "leading")
