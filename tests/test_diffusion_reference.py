"""Whole trajectories against diffusers' schedulers, in float64.

diffusers computes its per-step factors in float32. As they are, its trajectories agree to 1e-5; with the same
factors computed in float64 (`promote`) to 1e-9, also where nothing is clipped and values grow to a hundred.

Both sides see the same timesteps (trailing), the same starting noise, the same fresh noise, and a
deterministic nonlinear function in place of a network. Ours is asked for x0, theirs for their own prediction
type.
"""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from vidpred.diffusion import (
    ClipBoundConfig,
    NoiseSchedule,
    ScheduleConfig,
    build_clip,
    build_parameterization,
    sample_ddim,
    sample_ddpm,
)

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
