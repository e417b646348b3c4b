"""Samplers against closed forms: the Gaussian oracle, given frames, frames at levels of their own.

For data N(mu, s^2) the best clean estimate is D(x) = (alpha s^2 x + sigma^2 mu) / (alpha^2 s^2 + sigma^2),
and the probability-flow ODE carries x at (alpha, sigma) to
mu + s (x - alpha mu) / sqrt(alpha^2 s^2 + sigma^2).
"""

import math

import pytest
import torch

from vidpred.diffusion import (
    SAMPLERS,
    ClipBoundConfig,
    DiffusionConfig,
    LossWeightConfig,
    NoiseLevel,
    NoiseSchedule,
    SamplingConfig,
    ScheduleConfig,
    add_noise,
    build_clip,
    build_sampler,
    implied_noise,
    require_possible,
    sample_ddim,
    sample_ddpm,
    sample_dpmpp_2m,
    sample_euler,
    sample_heun,
)
from vidpred.errors import UserError
from vidpred.tensor_ops import append_dims

MU, S = 0.7, 0.4


def oracle(x, level):
    alpha, sigma = append_dims(level.alpha, x.ndim), append_dims(level.sigma, x.ndim)
    return (alpha * S**2 * x + sigma**2 * MU) / (alpha**2 * S**2 + sigma**2)


def exact_end(x, level):
    alpha, sigma = append_dims(level.alpha, x.ndim), append_dims(level.sigma, x.ndim)
    return MU + S * (x - alpha * MU) / torch.sqrt(alpha**2 * S**2 + sigma**2)


def continuous_levels(family: str, steps: int) -> NoiseLevel:
    """(steps+1, 1, 1) float64, evenly spaced in the family's own time, the last one clean."""
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:, None, None]
    if family == "vp":
        alpha, sigma = torch.cos(u * 1.5), torch.sin(u * 1.5)
    elif family == "flow":
        alpha, sigma = 1 - u * 0.99, u * 0.99
    else:  # edm: evenly spaced in sigma^(1/7)
        alpha, sigma = torch.ones_like(u), (u * 80 ** (1 / 7)) ** 7
    return NoiseLevel.from_alpha_sigma(alpha, sigma)


def way_down(family: str, steps: int) -> NoiseLevel:
    """(steps+1, 1, 1) float64 from much noise to a small positive sigma, evenly spaced in sigma^(1/4)."""
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:, None, None]
    top = {"vp": 1.5, "flow": 0.95, "edm": 20.0}[family]
    value = (0.01**0.25 + u * (top**0.25 - 0.01**0.25)) ** 4
    alpha = {"vp": value.cos(), "flow": 1 - value, "edm": torch.ones_like(value)}[family]
    return NoiseLevel.from_alpha_sigma(alpha, value.sin() if family == "vp" else value)


def carried(x, start, end):
    """Where the probability-flow ODE carries x from one level to another."""
    here, there = (torch.sqrt(level.alpha**2 * S**2 + level.sigma**2) for level in (start, end))
    return end.alpha * MU + there * (x - start.alpha * MU) / here


@pytest.mark.parametrize("family", ["vp", "flow", "edm"])
@pytest.mark.parametrize(
    "sample, order", [(sample_ddim, 1), (sample_euler, 1), (sample_heun, 2), (sample_dpmpp_2m, 2)]
)
def test_error_on_the_gaussian_oracle_falls_at_the_order(family, sample, order):
    errors = []
    for steps in (200, 400, 800):
        levels = way_down(family, steps)
        x = torch.full((1, 1, 1, 1, 1), 1.3, dtype=torch.float64) * levels.sigma[0]
        end = sample(oracle, x, levels)
        assert end.dtype == torch.float64
        errors.append((end - carried(x, levels[0], levels[-1])).abs().item())
    ratios = [coarse / fine for coarse, fine in zip(errors, errors[1:])]
    assert all(0.9 < ratio / 2**order < 1.1 for ratio in ratios), ratios
    assert errors[-1] < (0.02 if order == 1 else 1e-4)


@pytest.mark.parametrize("family", ["vp", "flow", "edm"])
def test_ddim_error_halves_down_to_the_clean_level_too(family):
    errors = []
    for steps in (40, 80, 160, 320):
        levels = continuous_levels(family, steps)
        x = torch.full((1, 1, 1, 1, 1), 1.3, dtype=torch.float64) * levels.sigma[0]
        errors.append((sample_ddim(oracle, x, levels) - exact_end(x, levels[0])).abs().item())
    ratios = [coarse / fine for coarse, fine in zip(errors, errors[1:])]
    assert all(1.85 < ratio < 2.15 for ratio in ratios), ratios


@pytest.mark.parametrize("kind", ["linear", "cosine", "flow", "edm"])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_solvers_find_the_data_on_every_schedule(kind, sampler):
    # From the noisiest level, alpha = 0 included, to clean: the ends of the second-order steps are exercised.
    schedule = NoiseSchedule(ScheduleConfig(kind))
    levels = schedule.sampling_levels(100, torch.zeros(1, 1, dtype=torch.bool), torch.float64)
    x = torch.full((1, 1, 1, 1, 1), 1.3, dtype=torch.float64) * levels.sigma[0]
    end = build_sampler(SamplingConfig(sampler), None, schedule)(oracle, x, levels)
    tolerance = 0.03 if sampler == "euler" else 0.01
    assert end.item() == pytest.approx(exact_end(x, levels[0]).item(), abs=tolerance)


def test_euler_is_ddim_without_fresh_noise_bit_for_bit():
    levels = continuous_levels("flow", 7)
    x, clip = torch.randn(2, 3, 2, 4, 4).double(), build_clip(ClipBoundConfig(bound=0.5))
    euler = sample_euler(oracle, x, levels, clip=clip)
    assert torch.equal(euler, sample_ddim(oracle, x, levels, clip=clip, eta=0.0))


def test_one_second_order_step_closed_form():
    # Levels with ratios 4, 2, 1 and alpha 1; the denoiser answers 0.1, 0.4 for its first two calls.
    sigma = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)[:, None, None]
    levels = NoiseLevel.from_alpha_sigma(torch.ones_like(sigma), sigma)
    x = torch.full((1, 1, 1, 1, 1), 3.0, dtype=torch.float64)

    def answers(values):
        values = iter(values)
        return lambda x, level: torch.full_like(x, next(values))

    euler = 0.1 + 2 * (3 - 0.1) / 4
    heun = 3 + (2 - 4) * ((3 - 0.1) / 4 + (euler - 0.4) / 2) / 2
    assert sample_heun(answers([0.1, 0.4]), x, levels[:2]).item() == pytest.approx(heun)
    # h = h_before = log 2: the estimate is extrapolated by half of its last change.
    extrapolated = 0.4 + (0.4 - 0.1) / 2
    expected = extrapolated + 1 * (euler - extrapolated) / 2
    assert sample_dpmpp_2m(answers([0.1, 0.4]), x, levels).item() == pytest.approx(expected)


def test_heun_asks_twice_between_the_ends_and_once_at_them():
    schedule = NoiseSchedule(ScheduleConfig("flow"))
    levels = schedule.sampling_levels(4, torch.tensor([[True, False]]))
    reports = []
    x = torch.randn(1, 2, 1, 3, 3)
    sample_heun(lambda x, level: 0.3 * x, x, levels, callback=reports.append)
    assert [report.step for report in reports] == [0, 1, 1, 2, 2, 3]
    sigmas = [round(report.level.sigma[0, 1].item(), 3) for report in reports]
    assert sigmas == [1.0, 0.75, 0.5, 0.5, 0.25, 0.25]
    assert all(torch.equal(report.moving, torch.tensor([[False, True]])) for report in reports)
    assert all(torch.equal(report.x[:, 0], x[:, 0]) for report in reports)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_ddpm_draws_the_datas_moments(zero_terminal_snr):
    schedule = NoiseSchedule(ScheduleConfig(zero_terminal_snr=zero_terminal_snr))
    levels = schedule.sampling_levels(200, torch.zeros(1, 1, dtype=torch.bool), torch.float64)
    generator = torch.Generator().manual_seed(0)
    shape = (1, 1, 1, 100, 100)

    def noise(step):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    end = sample_ddpm(oracle, noise(-1), levels, noise=noise)
    assert end.mean().item() == pytest.approx(MU, abs=4 * S / 100 + 0.01)
    assert end.std().item() == pytest.approx(S, rel=0.04)
    # Deterministic DDIM from the same kind of noise has the same moments.
    end = sample_ddim(oracle, noise(-1), levels)
    assert end.mean().item() == pytest.approx(MU, abs=4 * S / 100 + 0.01)
    assert end.std().item() == pytest.approx(S, rel=0.04)


def test_one_step_of_each_convention_closed_form():
    level = NoiseLevel.from_alpha_sigma(
        torch.tensor([0.6, 0.8], dtype=torch.float64)[:, None, None],
        torch.tensor([0.8, 0.6], dtype=torch.float64)[:, None, None],
    )
    x = torch.full((1, 1, 1, 1, 1), 2.0, dtype=torch.float64)
    clip = build_clip(ClipBoundConfig(bound=1.0))

    def denoise(x, level):
        return torch.full_like(x, 5.0)

    derived = sample_ddim(denoise, x, level, clip=clip)
    assert derived.item() == pytest.approx(0.8 * 1 + 0.6 * (2 - 0.6 * 1) / 0.8)
    kept = sample_ddim(denoise, x, level, clip=clip, rederive_eps=False)
    assert kept.item() == pytest.approx(0.8 * 1 + 0.6 * (2 - 0.6 * 5) / 0.8)
    # The posterior of Ho et al. 2020, eq. 7: alpha_bar' = 0.64, alpha_bar = 0.36.
    step_alpha = 0.36 / 0.64
    mean = 0.8 * (1 - step_alpha) / 0.64 * 1 + math.sqrt(step_alpha) * 0.36 / 0.64 * 2
    variance = 0.36 / 0.64 * (1 - step_alpha)
    drawn = sample_ddpm(denoise, x, level, clip=clip, noise=lambda step: torch.full_like(x, 1.7))
    assert drawn.item() == pytest.approx(mean + 1.7 * math.sqrt(variance))


@pytest.mark.parametrize("family", ["vp", "flow", "edm"])
def test_ancestral_steps_keep_the_marginal(family):
    # One step from x = alpha x0 + sigma eps, x0 known, must give the next level's marginal.
    levels = continuous_levels(family, 4)[1:3]
    generator = torch.Generator().manual_seed(0)

    def noise(step=0):
        return torch.randn(1, 1, 1, 300, 300, generator=generator, dtype=torch.float64)

    x0 = torch.full((1, 1, 1, 300, 300), 0.9, dtype=torch.float64)
    for eta in (0.0, 0.5, 1.0):
        x = add_noise(x0, noise(), levels[0])
        end = sample_ddim(lambda x, level: x0, x, levels, eta=eta, noise=noise)
        alpha, sigma = levels.alpha[1].item(), levels.sigma[1].item()
        assert end.mean().item() == pytest.approx(alpha * 0.9, abs=0.02 * sigma)
        assert end.std().item() == pytest.approx(sigma, rel=0.01)


def built(name, config=None):
    """A sampler over a schedule that all of them can walk, (sample, schedule)."""
    schedule = NoiseSchedule(ScheduleConfig("scaled_linear"))
    extra = {"eta": 0.7} if name == "ddim" else {}
    return build_sampler(SamplingConfig(name, **extra), build_clip(ClipBoundConfig()), schedule), schedule


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("context", [0.0, 0.1])
def test_given_frames_pass_bit_for_bit_whatever_the_network_says_about_them(name, context):
    sample, schedule = built(name)
    given = torch.tensor([[True, True, False, False], [True, False, True, False]])
    levels = schedule.sampling_levels(8, given, context=context)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 3, 5, 5, generator=generator)
    x[0, 0, 0, 0, 0], x[0, 0, 0, 0, 1] = -0.0, 1e30
    seen = []

    def denoise(x, level):
        assert x.isfinite().all()
        assert torch.equal(level.sigma[given], levels.sigma[0][given])
        return torch.where(append_dims(given, 5), torch.nan, x * 0.3)

    end = sample(denoise, x, levels, lambda step: torch.randn(x.shape, generator=generator), seen.append)
    assert torch.equal(end[given].view(torch.int32), x[given].view(torch.int32))
    assert end[~given].isfinite().all() and not torch.equal(end[~given], x[~given])
    assert len(seen) == {"heun": 15, "pndm": 9}.get(name, 8)
    for report in seen:  # the statistics look at unknown frames only
        assert report.clip_rate.isfinite() and report.eps_norm.isfinite()
        low, high = report.value_range(report.x0)
        assert -3 <= low <= high <= 3


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_guards_x0_keeps_the_type_and_shows_nan(name):
    sample, schedule = built(name)
    levels = schedule.sampling_levels(4, torch.zeros(1, 1, dtype=torch.bool), torch.float64)
    x = torch.randn(1, 1, 1, 3, 3).double()
    end = sample(lambda x, level: x * 1e6, x, levels, lambda step: torch.zeros_like(x))
    assert end.dtype == torch.float64 and end.abs().max() <= 3.0001
    assert sample(lambda x, level: x * torch.nan, x, levels, lambda step: torch.zeros_like(x)).isnan().all()


def test_no_garbage_arises_at_sigma_zero():
    # Given frames would be right behind the `where` even if 0/0 arose; none is formed in the first place.
    levels = NoiseSchedule(ScheduleConfig()).sampling_levels(3, torch.tensor([[True, False]]))
    reports = []
    sample_ddim(lambda x, level: x * 0.5, torch.randn(1, 2, 1, 4, 4), levels, callback=reports.append)
    assert len(reports) == 3
    for report in reports:
        assert implied_noise(report.x, report.x0, report.level).isfinite().all()


@pytest.mark.parametrize("sample", [sample_ddim, sample_heun, sample_dpmpp_2m])
def test_frames_fall_at_their_own_pace(sample):
    # Frame 0 moves in the first half of the grid, frame 1 in the second, frame 2 throughout.
    path = continuous_levels("vp", 40)
    steps = torch.arange(81)
    first, second, both = steps.clamp(max=40), (steps - 40).clamp(min=0), steps / 2
    columns = [path[index.long()] for index in (first, second, both)]
    levels = NoiseLevel.from_alpha_sigma(
        torch.cat([c.alpha for c in columns], dim=2), torch.cat([c.sigma for c in columns], dim=2)
    )
    assert levels.shape == (81, 1, 3)
    x = torch.full((1, 3, 2, 2, 2), 1.1, dtype=torch.float64)
    reports = []
    end = sample(oracle, x, levels, callback=reports.append)
    alone = sample(oracle, x[:, :1], path)
    for frame in range(3):
        assert torch.equal(end[:, frame], alone[:, 0])
    calls = {report.step: report for report in reversed(reports)}  # the first call of each step
    assert calls[1].moving.tolist() == [[True, False, True]]
    assert calls[41].moving.tolist() == [[False, True, True]]
    assert torch.equal(calls[39].x[:, 1], x[:, 1]) and torch.equal(calls[60].x[:, 0], end[:, 0])


def test_context_noise_a_given_frame_may_stay_slightly_noisy():
    levels = NoiseSchedule(ScheduleConfig()).sampling_levels(5, torch.tensor([[True, False]]))
    noisy = NoiseLevel.from_alpha_sigma(torch.tensor(0.99), torch.tensor(0.14)).expand(6, 1, 2)
    levels = NoiseLevel.where(torch.tensor([[True, False]]), noisy, levels)
    x = torch.randn(1, 2, 1, 3, 3)
    end = sample_ddim(lambda x, level: x * 0.1, x, levels)
    assert torch.equal(end[:, 0], x[:, 0])


def test_report_closed_form():
    alpha, sigma = torch.tensor([0.6, 1.0]), torch.tensor([0.8, 0.0])
    levels = NoiseLevel.from_alpha_sigma(alpha[:, None, None], sigma[:, None, None])
    x = torch.tensor([1.0, 2.0, -1.0, 0.5]).reshape(1, 1, 1, 2, 2)
    x0 = torch.tensor([0.5, 9.0, 0.0, -4.0]).reshape(1, 1, 1, 2, 2)
    reports = []
    end = sample_ddim(
        lambda x, level: x0, x, levels, clip=build_clip(ClipBoundConfig()), callback=reports.append
    )
    (report,) = reports
    assert torch.equal(end, x0.clamp(-3, 3)) and torch.equal(report.x0_raw, x0) and torch.equal(report.x, x)
    assert report.clip_rate.item() == 0.5 and report.step == 0
    eps = (x - 0.6 * x0.clamp(-3, 3)) / 0.8
    assert report.eps_norm.item() == pytest.approx(eps.square().mean().sqrt().item())
    assert [bound.item() for bound in report.value_range(report.x0_raw)] == [-4.0, 9.0]


def test_eps_norm_is_one_for_a_perfect_estimate():
    schedule = NoiseSchedule(ScheduleConfig())
    levels = schedule.sampling_levels(10, torch.zeros(1, 2, dtype=torch.bool), torch.float64)
    x0 = torch.randn(1, 2, 4, 40, 40).double()
    reports = []
    x = add_noise(x0, torch.randn_like(x0), levels[0])
    end = sample_ddim(lambda x, level: x0, x, levels, callback=reports.append)
    torch.testing.assert_close(end, x0)
    assert all(report.eps_norm.item() == pytest.approx(1, abs=0.05) for report in reports)


def test_nan_of_the_network_reaches_the_end():
    levels = NoiseSchedule(ScheduleConfig()).sampling_levels(3, torch.zeros(1, 1, dtype=torch.bool))
    end = sample_ddim(
        lambda x, level: x * torch.nan, torch.randn(1, 1, 1, 2, 2), levels, clip=build_clip(ClipBoundConfig())
    )
    assert end.isnan().all()


def test_half_precision_networks_do_not_change_the_samplers_type():
    levels = NoiseSchedule(ScheduleConfig()).sampling_levels(3, torch.zeros(1, 1, dtype=torch.bool))
    x = torch.randn(1, 1, 1, 2, 2)
    assert sample_ddim(lambda x, level: x.bfloat16(), x, levels).dtype == torch.float32


def test_another_sampler_takes_the_settings_that_are_not_ddims_alone():
    own = SamplingConfig(eta=0.5, rederive_eps=False, num_inference_steps=7)
    assert own.with_sampler("heun") == SamplingConfig("heun", num_inference_steps=7)
    assert own.with_sampler("ddim") == own
    with pytest.raises(UserError, match="sampling.sampler: 'x' is not known"):
        own.with_sampler("x")


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("rederive_eps", [True, False])
def test_build_sampler_ddim(eta, rederive_eps):
    config = SamplingConfig(eta=eta, rederive_eps=rederive_eps)
    clip, schedule = build_clip(ClipBoundConfig(bound=0.5)), NoiseSchedule(ScheduleConfig())
    levels = schedule.sampling_levels(6, torch.zeros(1, 2, dtype=torch.bool))
    x = torch.randn(1, 2, 1, 3, 3)
    draws = torch.randn(6, *x.shape)
    sample = build_sampler(config, clip, schedule)
    plain = sample_ddim(
        oracle, x, levels, clip=clip, eta=eta, rederive_eps=rederive_eps, noise=lambda step: draws[step]
    )
    assert torch.equal(sample(oracle, x, levels, lambda step: draws[step]), plain)


def test_build_sampler_others():
    clip, schedule = build_clip(ClipBoundConfig(bound=0.5)), NoiseSchedule(ScheduleConfig())
    levels = schedule.sampling_levels(6, torch.zeros(1, 2, dtype=torch.bool))
    x = torch.randn(1, 2, 1, 3, 3)
    draws = torch.randn(6, *x.shape)

    def sample(name):
        walk = build_sampler(SamplingConfig(name), clip, schedule)
        return walk(oracle, x, levels, lambda step: draws[step])

    expected = sample_ddpm(oracle, x, levels, clip=clip, noise=lambda step: draws[step])
    assert torch.equal(sample("ddpm"), expected)
    assert torch.equal(sample("euler"), sample_euler(oracle, x, levels, clip=clip))
    assert torch.equal(sample("heun"), sample_heun(oracle, x, levels, clip=clip))
    assert torch.equal(sample("dpmpp_2m"), sample_dpmpp_2m(oracle, x, levels, clip=clip))


def test_heun_steps_from_almost_pure_noise_are_eulers():
    schedule = NoiseSchedule(ScheduleConfig("cosine"))
    levels = schedule.sampling_levels(10, torch.zeros(1, 1, dtype=torch.bool), torch.float64)
    reports, x = [], torch.full((1, 1, 1, 1, 1), 1.3, dtype=torch.float64)
    end = sample_heun(oracle, x, levels, callback=reports.append)
    assert [report.step for report in reports][:4] == [0, 1, 1, 2]
    assert end.item() == pytest.approx(exact_end(x, levels[0]).item(), abs=0.05)


def test_fresh_noise_needs_a_source():
    levels = NoiseSchedule(ScheduleConfig()).sampling_levels(2, torch.zeros(1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="noise"):
        sample_ddim(oracle, torch.zeros(1, 1, 1, 1, 1), levels, eta=0.5)


def test_steps_grow_during_training():
    growing = SamplingConfig(num_inference_steps=50, num_inference_steps_start=10)
    assert [growing.num_steps_at(p) for p in (0.0, 0.5, 1.0, 2.0)] == [10, 30, 50, 50]
    assert SamplingConfig(num_inference_steps=20).num_steps_at(0.0) == 20


@pytest.mark.parametrize(
    "broken, message",
    [
        ({"sampler": "leapfrog"}, "sampling.sampler: 'leapfrog' is not known"),
        ({"num_inference_steps": 0}, "sampling.num_inference_steps: 0"),
        ({"num_inference_steps_start": 0}, "sampling.num_inference_steps_start: 0"),
        ({"sampler": "pndm", "num_inference_steps_start": 10}, "num_inference_steps_start.*pndm"),
        ({"eta": 1.5}, "sampling.eta: 1.5"),
        ({"eta": 0.5, "sampler": "heun"}, "sampling.eta: 0.5 is ddim's alone.*heun"),
        ({"rederive_eps": False, "sampler": "dpmpp_2m"}, "sampling.rederive_eps: only ddim.*dpmpp_2m"),
        ({"spacing": "leading"}, "sampling.spacing: 'leading'"),
        ({"spacing": "karras", "sampler": "unipc"}, "sampling.spacing: unipc.*trailing only"),
        ({"context_noise": 1.0}, "sampling.context_noise"),
        ({"context_noise": -0.1}, "sampling.context_noise"),
    ],
)
def test_broken_sampling_is_refused(broken, message):
    with pytest.raises(UserError, match=message):
        SamplingConfig(**broken)


@pytest.mark.parametrize(
    "diffusion, sampling, message",
    [
        (dict(schedule=ScheduleConfig("flow"), parameterization="eps"), {}, "eps cannot be used.*kind flow"),
        (dict(schedule=ScheduleConfig("flow")), dict(spacing="karras"), "sampling.spacing: karras"),
        (dict(schedule=ScheduleConfig("flow")), dict(sampler="unipc"), "sampler: unipc.*kind is flow"),
        (dict(schedule=ScheduleConfig("edm")), dict(sampler="dpmpp_sde"), "dpmpp_sde.*kind is edm"),
        (
            dict(schedule=ScheduleConfig(zero_terminal_snr=True)),
            dict(sampler="pndm"),
            "sampling.sampler: pndm averages eps.*sigma / alpha = inf",
        ),
        ({}, dict(sampler="pndm", num_inference_steps=30), "num_inference_steps: pndm"),
        (
            dict(schedule=ScheduleConfig("flow"), weight=LossWeightConfig("min_snr", floor=0.0)),
            {},
            "diffusion.weight.floor",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused_where_a_configuration_is_read(diffusion, sampling, message):
    with pytest.raises(UserError, match=message):
        require_possible(DiffusionConfig(**diffusion), SamplingConfig(**sampling))


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine", "flow", "edm"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_not_refused_runs(kind, sampler):
    diffusion = DiffusionConfig(ScheduleConfig(kind), "flow" if kind == "flow" else "v")
    sampling = SamplingConfig(sampler, num_inference_steps=8)
    schedule = NoiseSchedule(diffusion.schedule)
    levels = schedule.sampling_levels(8, torch.tensor([[True, False]]))
    x = torch.randn(1, 2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    x = torch.where(torch.tensor([True, False])[:, None, None, None], x, x * levels.sigma[0, 0, 1])
    try:
        require_possible(diffusion, sampling)
    except UserError:
        refused = ("flow", "edm", "cosine") if sampler == "pndm" else ("flow", "edm")
        assert sampler in ("pndm", "unipc", "dpmpp_sde") and kind in refused
        return
    end = build_sampler(sampling, None, schedule)(oracle, x, levels, lambda step: torch.randn(x.shape))
    assert end.isfinite().all() and (end[:, 1] - MU).abs().max() < 4 * S
