"""x0 -> target -> x0 for every parameterization and every family of levels."""

import math

import pytest
import torch

from vidpred.diffusion import NoiseLevel, NoiseSchedule, ScheduleConfig, add_noise, build_parameterization
from vidpred.diffusion.parameterizations import PARAMETERIZATIONS
from vidpred.errors import UserError
from vidpred.tensor_ops import append_dims

SCHEDULE = NoiseSchedule(ScheduleConfig())


def families() -> dict[str, NoiseLevel]:
    """(5, 4) float64 levels of each family; alpha = 0 is included where v and x0 can take it."""
    levels = {}
    for kind in ("linear", "scaled_linear", "cosine"):
        for zero in (False, True):
            schedule = NoiseSchedule(ScheduleConfig(kind, zero_terminal_snr=zero))
            t = torch.linspace(-1, 999, 20).double().reshape(5, 4)
            levels[f"{kind}-{zero}"] = schedule.level(t, torch.float64)
    sigma = torch.linspace(0, 1, 20).double().reshape(5, 4)
    levels["flow"] = NoiseLevel.from_alpha_sigma(1 - sigma, sigma)
    sigma = torch.cat([torch.zeros(1), torch.logspace(-3, 2, 19)]).double().reshape(5, 4)
    levels["edm"] = NoiseLevel.from_alpha_sigma(torch.ones(()).double(), sigma)
    return levels


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("family", families())
def test_round_trip(name, family):
    level = families()[family]
    if name == "eps":  # eps says nothing about x0 at alpha = 0
        alpha = level.alpha.clamp(min=0.005)
        level = NoiseLevel.from_alpha_sigma(alpha, level.sigma)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(5, 4, 3, 6, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(5, 4, 3, 6, 6, generator=generator, dtype=torch.float64)
    parameterization = build_parameterization(name, SCHEDULE)
    target = parameterization.target(x0, noise, level)
    back = parameterization.to_x0(add_noise(x0, noise, level), target, level)
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_factors_have_the_levels_shape_and_output_moves_x0_by_c_out(name):
    level = NoiseLevel.from_alpha_sigma(torch.tensor([[0.8, 0.5, 1.0]]), torch.tensor([[0.6, 0.5, 7.0]]))
    parameterization = build_parameterization(name, SCHEDULE)
    for factor in (parameterization.c_in, parameterization.c_skip, parameterization.c_out):
        assert factor(level).shape == (1, 3)
    x, output = torch.randn(1, 3, 2, 4, 4), torch.randn(1, 3, 2, 4, 4)
    moved = parameterization.to_x0(x, output + 1, level) - parameterization.to_x0(x, output, level)
    expected = append_dims(parameterization.c_out(level), 5).expand_as(x)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


def test_v_is_salimans_and_ho_on_the_circle_and_edm_off_it():
    v = build_parameterization("v", SCHEDULE)
    x0, noise = torch.randn(1, 1, 2, 3, 3).double(), torch.randn(1, 1, 2, 3, 3).double()
    vp = NoiseLevel.from_alpha_sigma(torch.tensor([[0.6]]).double(), torch.tensor([[0.8]]).double())
    torch.testing.assert_close(v.target(x0, noise, vp), 0.6 * noise - 0.8 * x0)
    sigma = 3.0
    edm = NoiseLevel.from_alpha_sigma(torch.ones(1, 1), torch.full((1, 1), sigma))
    assert v.c_skip(edm).item() == pytest.approx(1 / (sigma**2 + 1))  # Karras et al. 2022, sigma_data = 1
    assert v.c_out(edm).item() == pytest.approx(-sigma / math.sqrt(sigma**2 + 1))
    assert v.c_in(edm).item() == pytest.approx(1 / math.sqrt(sigma**2 + 1))


def test_input_and_target_have_unit_variance_for_unit_variance_data():
    x0, noise = torch.randn(1, 3, 1, 200, 200), torch.randn(1, 3, 1, 200, 200)
    level = NoiseLevel.from_alpha_sigma(torch.tensor([[0.6, 0.3, 1.0]]), torch.tensor([[0.8, 0.7, 20.0]]))
    v = build_parameterization("v", SCHEDULE)
    for values in (v.target(x0, noise, level), append_dims(v.c_in(level), 5) * add_noise(x0, noise, level)):
        torch.testing.assert_close(values.std(dim=(2, 3, 4)), torch.ones(1, 3), rtol=0, atol=0.02)


def test_refusals():
    pure = NoiseSchedule(ScheduleConfig(zero_terminal_snr=True))
    with pytest.raises(UserError, match="zero_terminal_snr"):
        build_parameterization("eps", pure)
    assert build_parameterization("v", pure).name == "v" and build_parameterization("x0", pure).name == "x0"
    with pytest.raises(UserError, match="flow"):
        build_parameterization("flow", SCHEDULE)
