"""The consistency and the diversity term, in closed form."""

import pytest
import torch

from vidpred.diffusion import NoiseLevel, NoiseSchedule, ScheduleConfig, add_noise, sample_ddpm
from vidpred.diffusion.extra_losses import cleaner_noise, consistency_loss, diversity_loss

SHAPE = (3, 2, 4, 5, 6)


def clips(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["scaled_linear", "flow", "edm"])
def test_the_cleaner_state_is_the_posteriors_draw(kind):
    """One ancestral step, with the true x0, from t to s."""
    schedule = NoiseSchedule(ScheduleConfig(kind=kind))
    level = schedule.level(torch.tensor([[900, 500], [999, 3], [20, 700]]), torch.float64)
    cleaner = schedule.level(torch.tensor([[300, 499], [10, 0], [20, 1]]), torch.float64)
    x0, noise, fresh = clips(0), clips(1), clips(2)
    grid = NoiseLevel(*(torch.stack(pair) for pair in zip(vars(level).values(), vars(cleaner).values())))
    expected = sample_ddpm(lambda x, _: x0, add_noise(x0, noise, level), grid, noise=lambda step: fresh)
    found = add_noise(x0, cleaner_noise(noise, fresh, level, cleaner), cleaner)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(cleaner_noise(noise, fresh, level, cleaner)[2, 0], noise[2, 0])  # the level is the same


def test_from_pure_noise_and_at_clean_frames_nothing_is_divided_by_zero():
    level = NoiseLevel.from_alpha_sigma(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, 1.0]]))
    cleaner = NoiseLevel.from_alpha_sigma(torch.tensor([[0.6, 1.0, 0.0]]), torch.tensor([[0.8, 0.0, 1.0]]))
    noise, fresh = torch.randn(1, 3, 1, 2, 2), torch.randn(1, 3, 1, 2, 2)
    found = cleaner_noise(noise, fresh, level, cleaner)
    assert torch.equal(found[:, 0], fresh[:, 0]) and torch.equal(found[:, 1:], noise[:, 1:])


def test_consistency_is_the_scaled_square_of_the_difference_at_scored_frames():
    scored = torch.tensor([[True, True], [False, True], [False, False]])
    scale = torch.tensor([[2.0, 0.5], [0.0, -4.0], [1.0, 1.0]])  # not looked at where nothing is scored
    estimates, wanted = torch.zeros(SHAPE, requires_grad=True), torch.full(SHAPE, 3.0, requires_grad=True)
    loss = consistency_loss(estimates, wanted, scale, scored)
    torch.testing.assert_close(loss, torch.tensor([(9 / 4 + 9 * 4) / 2, 9 / 16, 0.0]))
    loss.sum().backward()
    assert wanted.grad is None and estimates.grad.isfinite().all()
    assert estimates.grad[0].lt(0).all() and not estimates.grad[1, 0].any()  # towards what is wanted


def test_diversity_is_1_where_estimates_collapse_and_0_where_they_are_as_far_apart_as_the_clips():
    truth, scored = clips(0, (6, 2, 4, 5, 6)), torch.ones(6, 2, dtype=torch.bool)
    truth[5] = truth[4]  # a pair of equal clips asks for nothing
    same = torch.zeros_like(truth)
    assert diversity_loss(same, truth, scored).tolist() == [1, 1, 0]
    assert diversity_loss(truth, truth, scored).tolist() == [0, 0, 0]
    assert diversity_loss(2 * truth + 1, truth, scored).tolist() == [0, 0, 0]  # farther apart is no fault
    torch.testing.assert_close(
        diversity_loss(truth / 2 - 3, truth, scored), torch.tensor([0.75, 0.75, 0.0], dtype=torch.float64)
    )


def test_diversity_pushes_estimates_apart_and_looks_at_frames_scored_in_both():
    truth, scored = clips(0, (2, 2, 1, 3, 3)), torch.tensor([[True, True], [False, True]])
    estimates = (0.1 * truth).requires_grad_()
    loss = diversity_loss(estimates, truth, scored)
    torch.testing.assert_close(loss, torch.tensor([0.99], dtype=torch.float64))
    loss.sum().backward()
    assert not estimates.grad[:, 0].any()
    further = (estimates - 0.01 * estimates.grad).detach()
    assert diversity_loss(further, truth, scored) < loss
    assert diversity_loss(estimates, truth, torch.zeros_like(scored)).tolist() == [0]
