"""The levels that frames are trained at: clean where given, even over timesteps, a function of the draw alone."""

import pytest
import torch

from vidpred.conditioning import ConditioningConfig
from vidpred.diffusion import LevelConfig, NoiseSchedule, ScheduleConfig, build_levels
from vidpred.frame_roles import FREE, GIVEN, HIDDEN, UNKNOWN
from vidpred.training.clip_levels import VALIDATION_LEVELS, ClipLevels


@pytest.fixture
def schedule():
    return NoiseSchedule(ScheduleConfig(zero_terminal_snr=True))


def make_levels(schedule, *scheme, **conditioning):
    conditioning = ConditioningConfig(*scheme, context_frames=2, **conditioning)
    return ClipLevels(conditioning, build_levels(LevelConfig(), schedule), schedule, 3, torch.device("cpu"))


def test_levels_are_clean_at_given_frames_and_uniform_over_timesteps(schedule):
    levels, draws = make_levels(schedule), torch.arange(10_000)
    roles = torch.tensor([[GIVEN, UNKNOWN, UNKNOWN]]).expand(len(draws), -1)
    level = levels.training(draws, roles)
    assert torch.equal(level.alpha[:, 0], torch.ones(len(draws))) and not level.sigma[:, 0].any()
    assert torch.equal(level.code[:, 1], level.code[:, 2])
    table = schedule.sigmas.float()
    t = torch.searchsorted(table, level.sigma[:, 1].contiguous())
    assert torch.equal(table[t], level.sigma[:, 1])  # a training timestep, exactly
    counts = torch.bincount(t // 100, minlength=10)
    assert (counts - 1000).abs().max() <= 5  # far more even than random numbers would be (+- 30)
    for start in range(0, 400, 8):  # and so is every batch: no half of the levels is ever left out
        assert 3 <= (t[start : start + 8] < 500).sum() <= 5
    far = levels.training(draws + 10**12, roles).code[:, 1]
    assert 0.45 < (far > level.code[:, 1].median()).float().mean() < 0.55


def test_free_frames_have_levels_of_their_own_and_hidden_ones_are_pure_noise(schedule):
    levels, draws = make_levels(schedule, "diffusion_forcing"), torch.arange(4000)
    roles = torch.tensor([[GIVEN, HIDDEN, FREE, FREE, UNKNOWN]]).expand(len(draws), -1)
    level = levels.training(draws, roles)
    assert not level.sigma[:, 0].any() and (level.sigma[:, 1] == schedule.sigmas[-1].float()).all()
    noisy = level.code[:, 2:]
    assert torch.corrcoef(noisy.T).triu(1).abs().max() < 0.06  # three independent levels
    other = levels.training(draws[1:], roles[1:])
    torch.testing.assert_close(other.code, level.code[1:])  # a function of the draw alone


def test_context_noise_is_uniform_up_to_its_fraction_and_told_to_the_network(schedule):
    levels, draws = make_levels(schedule, context_noise=0.3), torch.arange(4000)
    level = levels.training(draws, torch.tensor([[GIVEN, GIVEN, UNKNOWN]]).expand(len(draws), -1))
    assert torch.equal(level.code[:, 0], level.code[:, 1])
    steps = schedule.num_train_timesteps
    fractions = torch.searchsorted(schedule.sigmas.float(), level.sigma[:, 0].contiguous()) / steps
    assert fractions.max() < 0.3 + 2 / steps and 0.14 < fractions.mean() < 0.16


def test_levels_of_validation_stay_in_their_stratum_and_leave_given_frames_clean(schedule):
    levels, draws = make_levels(schedule, context_noise=0.3), torch.arange(40)
    roles = torch.tensor([[GIVEN, UNKNOWN]]).expand(len(draws), -1)
    quarter = schedule.num_train_timesteps // VALIDATION_LEVELS
    for stratum in range(VALIDATION_LEVELS):
        level = levels.validation(draws, roles, stratum)
        assert not level.sigma[:, 0].any()  # noise on what is given is for training alone
        t = torch.searchsorted(schedule.sigmas.float(), level.sigma[:, 1].contiguous())
        assert t.unique().numel() == len(draws) and (t // quarter == stratum).all()
