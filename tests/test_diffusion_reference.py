"""Whole trajectories against diffusers' schedulers, in float64.

diffusers computes its per-step factors in float32. As they are, its trajectories agree to 1e-5; with the same
factors computed in float64 (`promote`) to 1e-9, also where nothing is clipped and values grow to a hundred.

Both sides see the same timesteps (trailing), the same starting noise, the same fresh noise, and a
deterministic nonlinear function in place of a network. Ours is asked for x0, theirs for their own prediction
type.
"""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from vidpred.diffusion import (
    ClipBoundConfig,
    NoiseLevel,
    NoiseSchedule,
    SamplingConfig,
    ScheduleConfig,
    build_clip,
    build_parameterization,
    build_sampler,
    sample_ddim,
    sample_ddpm,
    sample_dpmpp_2m,
    sample_euler,
    sample_heun,
    sample_with_scheduler,
)
from vidpred.errors import UserError

KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
SHAPE = (2, 3, 4, 5, 5)
BOUND = 1.5


def network(x, code):
    """Deterministic, nonlinear, mixes positions and frames, depends on the level; |output| up to about 2."""
    mixed = x + 0.5 * x.roll(1, dims=-1) - 0.3 * x.roll(1, dims=1)
    return 1.2 * torch.tanh(mixed) + 0.7 * torch.cos(mixed + 3 * code)


def settings(kind, zero_terminal_snr):
    schedule = NoiseSchedule(ScheduleConfig(kind, zero_terminal_snr=zero_terminal_snr))
    shared = dict(
        beta_start=0.0001,
        beta_end=0.02,
        beta_schedule=KINDS[kind],
        rescale_betas_zero_snr=zero_terminal_snr,
        timestep_spacing="trailing",
        clip_sample_range=BOUND,
    )
    return schedule, shared


def noises(steps):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(steps + 1)]


def our_denoise(schedule, name):
    parameterization = build_parameterization(name, schedule)

    def denoise(x, level):
        return parameterization.to_x0(x, network(x, level.code[0, 0]), level)

    return denoise


def our_levels(schedule, steps):
    return schedule.sampling_levels(steps, torch.zeros(SHAPE[:2], dtype=torch.bool), torch.float64)


def their_trajectory(scheduler, schedule, x, steps, step):
    """States before each step and at the end; `step(output, t, x, i)` calls the scheduler."""
    scheduler.set_timesteps(steps)
    states = [x]
    for i, t in enumerate(scheduler.timesteps):
        code = schedule.level(t, torch.float64).code
        states.append(step(network(states[-1], code), t, states[-1], i))
    return states


def promote(scheduler):
    """Hands the scheduler its own table in float64, so that its scalar arithmetic is exact."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if isinstance(scheduler, DDIMScheduler):
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    return scheduler


def assert_trajectories_equal(reports, end, theirs, tolerance):
    ours = [report.x for report in reports] + [end]
    assert len(ours) == len(theirs)
    for step, (a, b) in enumerate(zip(ours, theirs)):
        assert a.dtype == b.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance, msg=lambda text: f"state {step}: {text}")


PROCESSES = [("linear", False), ("scaled_linear", False), ("scaled_linear", True), ("cosine", True)]
CASES = [
    (kind, zero, name)
    for kind, zero in PROCESSES
    for name in PREDICTIONS
    if not (zero and name == "eps")  # refused
]
EXACTNESS = [(True, True, 1e-9), (True, False, 1e-5), (False, True, 1e-9)]  # clipped, promoted, tolerance


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("kind, zero, name", CASES)
@pytest.mark.parametrize("rederive_eps", [True, False])
@pytest.mark.parametrize("clipped, promoted, tolerance", EXACTNESS)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim(steps, kind, zero, name, rederive_eps, clipped, promoted, tolerance, eta):
    schedule, shared = settings(kind, zero)
    z = noises(steps)
    scheduler = DDIMScheduler(
        **shared, clip_sample=clipped, prediction_type=PREDICTIONS[name], set_alpha_to_one=True
    )
    scheduler = promote(scheduler) if promoted else scheduler
    theirs = their_trajectory(
        scheduler,
        schedule,
        z[-1],
        steps,
        lambda output, t, x, i: scheduler.step(
            output, t, x, eta=eta, use_clipped_model_output=rederive_eps, variance_noise=z[i] if eta else None
        ).prev_sample,
    )
    reports = []
    end = sample_ddim(
        our_denoise(schedule, name),
        z[-1],
        our_levels(schedule, steps),
        clip=build_clip(ClipBoundConfig(kind="static" if clipped else "none", bound=BOUND)),
        eta=eta,
        rederive_eps=rederive_eps,
        noise=lambda step: z[step],
        callback=reports.append,
    )
    if clipped and name == "eps":
        assert any(report.clip_rate > 0.1 for report in reports)  # the conventions are really exercised
    assert_trajectories_equal(reports, end, theirs, tolerance)


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("kind, zero, name", CASES)
@pytest.mark.parametrize("clipped, promoted, tolerance", EXACTNESS)
def test_ddpm(steps, kind, zero, name, clipped, promoted, tolerance):
    schedule, shared = settings(kind, zero)
    start = noises(0)[0]
    scheduler = DDPMScheduler(
        **shared, clip_sample=clipped, prediction_type=PREDICTIONS[name], variance_type="fixed_small"
    )
    generator = torch.Generator().manual_seed(2)
    scheduler = promote(scheduler) if promoted else scheduler
    theirs = their_trajectory(
        scheduler,
        schedule,
        start,
        steps,
        lambda output, t, x, i: scheduler.step(output, t, x, generator=generator).prev_sample,
    )
    replayed = torch.Generator().manual_seed(2)
    reports = []
    end = sample_ddpm(
        our_denoise(schedule, name),
        start,
        our_levels(schedule, steps),
        clip=build_clip(ClipBoundConfig(kind="static" if clipped else "none", bound=BOUND)),
        noise=lambda step: torch.randn(SHAPE, generator=replayed, dtype=torch.float64),
        callback=reports.append,
    )
    assert_trajectories_equal(reports, end, theirs, tolerance)


def in_ratio_space(scheduler, schedule, x, steps):
    """The end of an Euler or Heun scheduler of diffusers, which walk y = x / alpha, (x, network calls)."""
    scheduler.set_timesteps(steps)
    first = schedule.level(scheduler.timesteps[0].double(), torch.float64)
    y = x / first.alpha
    for t in scheduler.timesteps:
        code = schedule.level(t.double(), torch.float64).code
        output = network(scheduler.scale_model_input(y, t), code)
        y = scheduler.step(output, t, y).prev_sample
    return y, len(scheduler.timesteps)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])  # cosine's y is too large for float32
@pytest.mark.parametrize("name", ["eps", "v"])
@pytest.mark.parametrize("steps", [7, 20])
@pytest.mark.parametrize("solver", [sample_euler, sample_heun])
def test_euler_and_heun(kind, name, steps, solver):
    schedule, shared = settings(kind, False)
    for key in ("rescale_betas_zero_snr", "clip_sample_range"):
        shared.pop(key)
    reference = EulerDiscreteScheduler if solver is sample_euler else HeunDiscreteScheduler
    start = noises(0)[0]
    scheduler = reference(**shared, prediction_type=PREDICTIONS[name])
    theirs, calls = in_ratio_space(scheduler, schedule, start, steps)
    reports = []
    ours = solver(our_denoise(schedule, name), start, our_levels(schedule, steps), callback=reports.append)
    assert len(reports) == calls == (2 * steps - 1 if solver is sample_heun else steps)
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-5)


def test_heun_with_a_bound():
    schedule, shared = settings("scaled_linear", False)
    shared.pop("rescale_betas_zero_snr")
    start = noises(0)[0]
    theirs, _ = in_ratio_space(
        HeunDiscreteScheduler(**shared, clip_sample=True, prediction_type="sample"), schedule, start, 10
    )
    reports, clip = [], build_clip(ClipBoundConfig(bound=BOUND))
    denoise, levels = our_denoise(schedule, "x0"), our_levels(schedule, 10)
    ours = sample_heun(denoise, start, levels, clip=clip, callback=reports.append)
    assert any(report.clip_rate > 0.01 for report in reports)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("name", ["v", "x0"])
@pytest.mark.parametrize("steps", [7, 20])
def test_dpmpp_2m(kind, name, steps):
    schedule, shared = settings(kind, False)
    shared.pop("clip_sample_range")
    scheduler = DPMSolverMultistepScheduler(**shared, prediction_type=PREDICTIONS[name])
    start = noises(0)[0]
    theirs = their_trajectory(
        scheduler, schedule, start, steps, lambda output, t, x, i: scheduler.step(output, t, x).prev_sample
    )
    reports = []
    denoise, levels = our_denoise(schedule, name), our_levels(schedule, steps)
    end = sample_dpmpp_2m(denoise, start, levels, callback=reports.append)
    assert_trajectories_equal(reports, end, theirs, 1e-5)


ADAPTED = {
    "pndm": (lambda **k: PNDMScheduler(**k, skip_prk_steps=True, set_alpha_to_one=True), ("eps",)),
    "unipc": (UniPCMultistepScheduler, ("eps", "v", "x0")),
    "dpmpp_sde": (
        lambda **k: DPMSolverMultistepScheduler(**k, algorithm_type="sde-dpmsolver++"),
        ("eps", "v", "x0"),
    ),
}
CASES_ADAPTED = [
    (sampler, kind, zero, name)
    for sampler, (_, names) in ADAPTED.items()
    for kind, zero in [("linear", False), ("scaled_linear", False), ("cosine", False), ("cosine", True)]
    for name in names
    if not (zero and name == "eps") and not (sampler == "pndm" and kind == "cosine")  # refused
    if not (zero and name == "v")  # they take alpha = 0.00024 for 0, so their x0 is not the network's
    if not (kind == "cosine" and not zero and name == "eps")  # 1/alpha is 20000: float32 has no digits left
]


@pytest.mark.parametrize("sampler, kind, zero, name", CASES_ADAPTED)
@pytest.mark.parametrize("steps", [10, 25])
def test_the_adaptor_is_the_bare_scheduler(sampler, kind, zero, name, steps):
    schedule, shared = settings(kind, zero)
    shared.pop("clip_sample_range")
    if sampler == "pndm":
        shared.pop("rescale_betas_zero_snr")
    z = noises(steps)
    scheduler = ADAPTED[sampler][0](**shared, prediction_type=PREDICTIONS[name])

    def step(output, t, x, i):
        fresh = {"variance_noise": z[i]} if sampler == "dpmpp_sde" else {}
        return scheduler.step(output, t, x, **fresh).prev_sample

    theirs = their_trajectory(scheduler, schedule, z[-1], steps, step)
    reports = []
    sample = build_sampler(SamplingConfig(sampler, steps), None, schedule)
    end = sample(
        our_denoise(schedule, name), z[-1], our_levels(schedule, steps), lambda i: z[i], reports.append
    )
    assert len(reports) == (steps + 1 if sampler == "pndm" else steps)
    scale = max(state.abs().max().item() for state in theirs)
    assert_trajectories_equal(reports, end, theirs, 1e-5 * max(scale, 1))


def test_the_adaptor_follows_a_shifted_schedule():
    # UniPC on the Gaussian oracle of a point: the estimate is exact, so every state is alpha x0 + sigma eps.
    schedule = NoiseSchedule(ScheduleConfig("scaled_linear", shift=3.0))
    levels, x0, eps = our_levels(schedule, 10), torch.full(SHAPE, 0.4).double(), noises(0)[0]
    x = levels.alpha[0, 0, 0] * x0 + levels.sigma[0, 0, 0] * eps
    for sampler in ("unipc", "pndm"):
        reports = []
        sample_with_scheduler(sampler, schedule, lambda x, level: x0, x, levels, callback=reports.append)
        for report in reports:
            level = report.level[0, 0]
            torch.testing.assert_close(report.x, level.alpha * x0 + level.sigma * eps, rtol=0, atol=1e-5)


def test_what_the_adaptor_refuses():
    def walk(sampler, config, levels=None, steps=10):
        schedule = NoiseSchedule(config)
        levels = our_levels(schedule, steps) if levels is None else levels
        sample_with_scheduler(sampler, schedule, lambda x, level: x, noises(0)[0], levels)

    for kind in ("flow", "edm"):
        with pytest.raises(UserError, match=f"variance-preserving.*schedule.kind is {kind}"):
            walk("unipc", ScheduleConfig(kind))
    for config, ratio in ((ScheduleConfig(zero_terminal_snr=True), "inf"), (ScheduleConfig("cosine"), "20")):
        with pytest.raises(UserError, match=f"pndm averages eps.*sigma / alpha = {ratio}.*take unipc"):
            walk("pndm", config)
    with pytest.raises(UserError, match="num_inference_steps: pndm.*30 do not divide the 1000.*use 25"):
        walk("pndm", ScheduleConfig(), steps=30)
    schedule = NoiseSchedule(ScheduleConfig())
    levels = our_levels(schedule, 10)
    pyramid = NoiseLevel.where(torch.tensor([True, False, False]), levels, levels[[0, 0, *range(1, 10)]])
    nothing = torch.zeros(SHAPE[:2], dtype=torch.bool)
    other_spacing = schedule.sampling_levels(10, nothing, torch.float64, "linspace")
    for broken in (pyramid, other_spacing):
        with pytest.raises(UserError, match="one level for all unknown frames"):
            walk("unipc", ScheduleConfig(), broken)
