"""diffusers' schedulers as samplers: PNDM/PLMS, UniPC and the SDE form of DPM-Solver++ 2M.

They walk tensors whose entries are all at one level and take what a network predicts. Here the same guarded
x0 as everywhere is asked for, converted to the prediction type that a scheduler accepts, and still frames are
put back by `where` after its step. All of them compute with the schedule's own table, so what the network is
told is what they assume.

    pndm        eps   PNDMScheduler, skip_prk_steps (Liu et al. 2022, arXiv:2202.09778); it takes the second
                      step twice, so it calls the network S + 1 times
    unipc       x0    UniPCMultistepScheduler, order 2, bh2 (Zhao et al. 2023, arXiv:2302.04867)
    dpmpp_sde   x0    DPMSolverMultistepScheduler, sde-dpmsolver++, order 2 (Lu et al. 2022, arXiv:2211.01095)

PNDM never gets v: it would average velocities of different levels. What the three cannot do is refused by
`require_adaptable`, `require_steps` and `_require_shared_path`.
"""

from typing import Any, Callable, Optional

import torch
from torch import Tensor

from vidpred.diffusion.clipping import ClipBound
from vidpred.diffusion.estimates import Callback, Denoise, Estimate, Estimator
from vidpred.diffusion.levels import NoiseLevel
from vidpred.diffusion.schedules import NoiseSchedule
from vidpred.errors import UserError, require
from vidpred.tensor_ops import append_dims

ADAPTED = ("pndm", "unipc", "dpmpp_sde")

# UniPC and DPM-Solver++ work with log(alpha / sigma), and diffusers gives them this alpha_bar in place of 0
# at a zero terminal SNR: alpha = 0.00024. The network is still told pure noise, which is what it gets.
INSTEAD_OF_0 = 2.0**-24
LARGEST_RATIO = 1000.0  # for pndm; linear ends at 158, cosine at 20000, a zero terminal SNR at infinity


def require_adaptable(sampler: str, schedule: NoiseSchedule) -> None:
    """Raises UserError where a scheduler cannot walk the schedule."""
    require(
        schedule.family == "vp",
        f"sampling.sampler: {sampler} of diffusers walks variance-preserving levels only, and "
        f"diffusion.schedule.kind is {schedule.config.kind}; use ddim, euler, heun or dpmpp_2m",
    )
    ratio = schedule.ratio_range[1]
    require(
        sampler != "pndm" or ratio <= LARGEST_RATIO,
        f"sampling.sampler: pndm averages eps over its first step, from sigma / alpha = {ratio:.0f} at the "
        "end of diffusion.schedule, which magnifies every error beyond use; take unipc, ddim or dpmpp_2m",
    )


def require_steps(sampler: str, num_steps: int, schedule: NoiseSchedule) -> None:
    """Raises UserError where a scheduler cannot take so many steps."""
    total = schedule.num_train_timesteps
    if sampler == "pndm" and total % num_steps:
        nearest = min((s for s in range(1, total + 1) if total % s == 0), key=lambda s: abs(s - num_steps))
        raise UserError(
            f"sampling.num_inference_steps: pndm takes steps of one size, and {num_steps} do not divide the "
            f"{total} timesteps; use {nearest}, or another sampler"
        )


@torch.no_grad()
def sample_with_scheduler(
    sampler: str,
    schedule: NoiseSchedule,
    denoise: Denoise,
    x: Tensor,
    levels: NoiseLevel,
    *,
    clip: Optional[ClipBound] = None,
    noise: Optional[Callable[[int], Tensor]] = None,
    callback: Optional[Callback] = None,
) -> Tensor:
    """Walks x down the schedule with the scheduler `sampler` of diffusers.

    Args:
        sampler: pndm, unipc or dpmpp_sde.
        denoise, x, clip, callback: as in `samplers.sample_ddim`.
        levels: (S+1, B, T) of `schedule.sampling_levels` with trailing spacing: all frames that move share
            one level.
        noise: step -> standard normal tensor like x; needed by dpmpp_sde.
    Returns:
        x at the clean level; frames that do not move are those of x, bit for bit.
    """
    require_adaptable(sampler, schedule)
    require_steps(sampler, len(levels) - 1, schedule)
    moving = _require_shared_path(sampler, levels, schedule)
    scheduler = _build_scheduler(sampler, schedule)
    scheduler.set_timesteps(len(levels) - 1)
    estimate = Estimator(denoise, clip, callback)
    for call, t in enumerate(scheduler.timesteps.tolist()):
        shared = schedule.level(torch.full_like(moving, t, dtype=torch.int64), levels.alpha.dtype)
        level = NoiseLevel.where(moving, shared, levels[0])
        fresh = {"variance_noise": noise(call)} if sampler == "dpmpp_sde" else {}
        found = estimate(call, x, level, moving)
        proposal = scheduler.step(_prediction(sampler, found), t, x, **fresh).prev_sample
        x = torch.where(append_dims(moving, x.ndim), proposal, x)
    return x


def _prediction(sampler: str, found: Estimate) -> Tensor:
    """The estimate in the type that the scheduler accepts."""
    return found.eps if sampler == "pndm" else found.x0


def _build_scheduler(sampler: str, schedule: NoiseSchedule) -> Any:
    """The scheduler over our table. diffusers is imported here because nothing else needs it."""
    from diffusers import DPMSolverMultistepScheduler, PNDMScheduler, UniPCMultistepScheduler

    shared = dict(
        num_train_timesteps=schedule.num_train_timesteps,
        trained_betas=schedule.betas.numpy(),
        timestep_spacing="trailing",
    )
    if sampler == "pndm":
        scheduler = PNDMScheduler(**shared, skip_prk_steps=True, set_alpha_to_one=True)
        scheduler.alphas_cumprod = schedule.alphas**2
        return scheduler
    if sampler == "unipc":
        scheduler = UniPCMultistepScheduler(**shared, prediction_type="sample")
    else:
        scheduler = DPMSolverMultistepScheduler(
            **shared, prediction_type="sample", algorithm_type="sde-dpmsolver++"
        )
    alpha_bar = schedule.alphas**2
    scheduler.alphas_cumprod = torch.where(alpha_bar > 0, alpha_bar, INSTEAD_OF_0)
    return scheduler


def _require_shared_path(sampler: str, levels: NoiseLevel, schedule: NoiseSchedule) -> Tensor:
    """(B, T) bool, the frames that move. UserError unless these share the schedule's own trailing path."""
    moving = levels[0].differs(levels[-1])
    path = schedule.sampling_levels(len(levels) - 1, ~moving, levels.alpha.dtype)
    expected = NoiseLevel.where(moving, path, levels[:1])
    require(
        not bool(levels.differs(expected).any()),
        f"sampling.sampler: {sampler} of diffusers takes one level for all unknown frames, on the trailing "
        "path of the schedule; use ddim, euler, heun or dpmpp_2m for frames at levels of their own",
    )
    return moving
