"""A rollout in latents: the windows of a scheme, each sampled with its own part of the condition."""

from typing import Iterator, Optional

from torch import Tensor

from vidpred.conditions import Condition
from vidpred.prediction.latent_sampling import LatentSampler
from vidpred.prediction.rollout import RolloutOptions, Window, keyframes_first, pyramid, slide


def roll_out(
    sampler: LatentSampler,
    context: Tensor,
    num_frames: int,
    window_frames: int,
    options: RolloutOptions,
    condition: Optional[Condition],
) -> Iterator[Tensor]:
    """The latents (B, n, C, h, w) of each piece of a rollout of `num_frames` frames after `context` (B, K, C, h, w).

    `condition` has an action for each of the K + num_frames frames; a window sees those of its frames, and the rest of
    the condition as it is.
    """

    def expanded(window: Window) -> tuple[Tensor, Tensor, str, float | Tensor, Optional[Condition]]:
        rows = (len(window.latents), -1)
        name = f"window {window.number}/" if window.number else ""
        noise: float | Tensor = sampler.sampling.context_noise
        if options.stabilization > 0:
            noise = window.context_noise.clamp(min=noise)
        told = condition and condition.at_frames(window.frames)
        return window.given.expand(rows), window.frame_times.expand(rows), name, noise, told

    def sample(window: Window) -> Tensor:
        return sampler.sample(window.latents, *expanded(window))

    def advance(window: Window, steps: Tensor) -> Tensor:
        given, times, *others = expanded(window)
        return sampler.walk(window.latents, given, times, steps, *others)

    arguments = (context, num_frames, window_frames)
    if options.scheme == "pyramid":
        yield from pyramid(
            advance, lambda frame: sampler.pure_noise(f"frame {frame}", context[:, :1]),
            *arguments, sampler.num_steps, options,
        )  # fmt: skip
    else:
        scheme = {"sliding": slide, "keyframes": keyframes_first}[options.scheme]
        yield from scheme(sample, *arguments, options)
