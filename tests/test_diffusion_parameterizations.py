"""x0 -> target -> x0 for every objective and every schedule; what cannot be combined is refused."""

import math

import pytest
import torch

from vidpred.diffusion import NoiseLevel, NoiseSchedule, ScheduleConfig, add_noise, build_parameterization
from vidpred.diffusion.parameterizations import PARAMETERIZATIONS
from vidpred.errors import UserError
from vidpred.tensor_ops import append_dims

SCHEDULE = NoiseSchedule(ScheduleConfig())
SCHEDULES = {
    "linear": ScheduleConfig(),
    "scaled_linear": ScheduleConfig("scaled_linear"),
    "cosine": ScheduleConfig("cosine"),
    "linear zero SNR": ScheduleConfig(zero_terminal_snr=True),
    "scaled_linear zero SNR": ScheduleConfig("scaled_linear", zero_terminal_snr=True),
    "cosine zero SNR": ScheduleConfig("cosine", zero_terminal_snr=True),
    "linear shifted": ScheduleConfig(shift=3.0),
    "flow": ScheduleConfig("flow"),
    "flow shifted": ScheduleConfig("flow", shift=3.0),
    "edm": ScheduleConfig("edm"),
}
PURE = ("linear zero SNR", "scaled_linear zero SNR", "cosine zero SNR", "flow", "flow shifted")


def problem(shape=(5, 4, 3, 6, 6)):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_round_trip(name, schedule, sigma_data):
    refused = name == "eps" and schedule in PURE
    schedule = NoiseSchedule(SCHEDULES[schedule])
    if refused:
        with pytest.raises(UserError, match="eps cannot be used with diffusion.schedule"):
            build_parameterization(name, schedule, sigma_data)
        return
    parameterization = build_parameterization(name, schedule, sigma_data)
    # Clean, the whole table's ends, timesteps between integers.
    level = schedule.level(torch.linspace(-1, 999, 20).double().reshape(5, 4), torch.float64)
    assert level.sigma[0, 0] == 0 and level.sigma[-1, -1] == schedule.sigmas[-1]
    x0, noise = problem()
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


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_edm_is_karras_table_1(sigma):
    data = 0.5
    edm = build_parameterization("edm", NoiseSchedule(ScheduleConfig("edm")), data)
    level = NoiseLevel.from_alpha_sigma(torch.ones(1, 1).double(), torch.full((1, 1), sigma).double())
    assert edm.c_skip(level).item() == pytest.approx(data**2 / (sigma**2 + data**2))
    assert edm.c_out(level).item() == pytest.approx(sigma * data / math.sqrt(sigma**2 + data**2))
    assert edm.c_in(level).item() == pytest.approx(1 / math.sqrt(sigma**2 + 1)), "of calibrated latents"
    # In the network's own terms: for any alpha it is Karras' preconditioning of x / alpha.
    alpha = 0.3
    scaled = NoiseLevel.from_alpha_sigma(level.alpha * alpha, level.sigma * alpha)
    assert edm.c_skip(scaled).item() * alpha == pytest.approx(edm.c_skip(level).item())
    assert edm.c_out(scaled).item() == pytest.approx(edm.c_out(level).item())


def test_edm_of_unit_data_is_minus_v():
    v, edm = (build_parameterization(name, SCHEDULE) for name in ("v", "edm"))
    x0, noise = problem((2, 3, 1, 2, 2))
    level = SCHEDULE.level(torch.tensor([[0.0, 10.0, 300.0], [500.0, 900.0, 999.0]]), torch.float64)
    torch.testing.assert_close(edm.target(x0, noise, level), -v.target(x0, noise, level), rtol=0, atol=1e-12)


def test_flow_is_the_velocity_of_the_straight_path():
    schedule = NoiseSchedule(ScheduleConfig("flow"))
    flow = build_parameterization("flow", schedule)
    x0, noise = problem((1, 2, 1, 3, 3))
    here, there = (schedule.level(torch.full((1, 2), t), torch.float64) for t in (400.0, 600.0))
    step = append_dims(there.sigma - here.sigma, 5)
    difference = (add_noise(x0, noise, there) - add_noise(x0, noise, here)) / step
    torch.testing.assert_close(flow.target(x0, noise, here), difference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name, data", [("v", 1.0), ("edm", 1.0), ("edm", 0.4)])
def test_input_and_target_have_unit_variance(name, data):
    x0, noise = torch.randn(1, 3, 1, 200, 200) * data, torch.randn(1, 3, 1, 200, 200)
    level = NoiseLevel.from_alpha_sigma(torch.tensor([[0.6, 0.3, 1.0]]), torch.tensor([[0.8, 0.7, 20.0]]))
    objective = build_parameterization(name, SCHEDULE, data)
    network_input = append_dims(objective.c_in(level), 5) * add_noise(x0 / data, noise, level)  # calibrated ones
    for values in (objective.target(x0, noise, level), network_input):
        torch.testing.assert_close(values.std(dim=(2, 3, 4)), torch.ones(1, 3), rtol=0, atol=0.02)


def test_refusals():
    pure = NoiseSchedule(ScheduleConfig(zero_terminal_snr=True))
    with pytest.raises(UserError, match="zero_terminal_snr.*use v"):
        build_parameterization("eps", pure)
    with pytest.raises(UserError, match="schedule.kind flow"):
        build_parameterization("eps", NoiseSchedule(ScheduleConfig("flow")))
    assert build_parameterization("v", pure).name == "v" and build_parameterization("x0", pure).name == "x0"
    with pytest.raises(UserError, match="diffusion.parameterization: 'score'"):
        build_parameterization("score", SCHEDULE)
    with pytest.raises(UserError, match="diffusion.sigma_data"):
        build_parameterization("edm", SCHEDULE, 0.0)
