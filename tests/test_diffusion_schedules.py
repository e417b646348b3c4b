"""Levels and schedules: closed form, then diffusers' tables."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from vidpred.diffusion import NoiseLevel, NoiseSchedule, ScheduleConfig, add_noise, implied_noise
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


@pytest.mark.parametrize(
    "broken",
    [
        {"kind": "sigmoid"},
        {"num_train_timesteps": 1},
        {"beta_start": 0.0},
        {"beta_start": 0.03},
        {"beta_end": 1.0},
    ],
)
def test_broken_schedules_are_refused(broken):
    with pytest.raises(UserError, match="diffusion.schedule"):
        ScheduleConfig(**broken)


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_too_many_or_no_steps_are_refused(num_steps):
    with pytest.raises(UserError, match="num_inference_steps"):
        NoiseSchedule(ScheduleConfig()).timesteps(num_steps)
