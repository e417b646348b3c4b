"""Videos of any length, window by window: which frames are asked for next, and what is given for them.

K is the number of given frames of a training clip, T its length. Everything is latents (B, T, C, h, w); frames
that were predicted go on as context as they are, without a way through pixels. Only the last few frames are
kept, so the memory that a rollout takes does not grow with its length.

    sliding      T frames: the last K known, T - K new ones after them
    keyframes    first T - K frames that are `stride` apart, then the frames between them, gap by gap: errors
                 add up over fewer steps (Harvey et al. 2022, "Flexible diffusion modeling of long videos",
                 arXiv:2205.11495)
    pyramid      all unknown frames of a window at once, each noisier than the one before it; the first is clean
                 first, leaves, and a new one of pure noise comes in at the end (Ruhe et al. 2024, "Rolling
                 diffusion models", arXiv:2402.09470; for models trained with diffusion forcing)
"""

from dataclasses import dataclass
from typing import Callable, Iterator, Literal, Optional

import torch
from torch import Tensor

from vidpred.errors import require


@dataclass(frozen=True)
class RolloutOptions:
    """How a long prediction is put together of windows."""

    scheme: Literal["sliding", "keyframes", "pyramid"] = "sliding"
    overlap: Optional[int] = None
    """Known frames at the beginning of every window but the first; the model's context frames where None."""
    stabilization: float = 0.0
    """Predicted frames are given with this much noise, as a fraction of the schedule, so that small errors of
    theirs drown in noise that the network knows of; for models trained with conditioning.context_noise."""
    stride: int = 4
    """keyframes: frames from one keyframe to the next."""

    def __post_init__(self) -> None:
        schemes = ("sliding", "keyframes", "pyramid")
        require(self.scheme in schemes, f"rollout: '{self.scheme}' is not known; choose {', '.join(schemes)}")
        require(self.overlap is None or self.overlap >= 1, f"rollout overlap: {self.overlap} must be 1 or more")
        require(0 <= self.stabilization < 1, f"rollout stabilization: {self.stabilization} must be in [0, 1)")
        require(self.stride >= 2, f"rollout stride: {self.stride} must be 2 or more; use sliding windows instead")

    def known_frames(self, context: Tensor, window_frames: int) -> int:
        """Known frames of every window but the first, after `context` (B, K, ...). Raises UserError."""
        known = self.overlap or context.shape[1]
        require(
            known < window_frames,
            f"rollout overlap: {known} leaves no frame to predict in windows of {window_frames}; lower it",
        )
        return known


@dataclass(frozen=True)
class Window:
    """Frames that are sampled together.

    latents: (B, T, C, h, w), 0 at unknown frames. given: (T,) bool. frame_times: (T,) float32.
    context_noise: (T,), how noisy given frames are, as a fraction of the schedule. number: 0, 1, 2, ... in a
    rollout; noise is drawn by it. frames: (T,) int64, ascending, which frames of the whole video they are, the first
    context frame being number 0.
    """

    latents: Tensor
    given: Tensor
    frame_times: Tensor
    context_noise: Tensor
    number: int
    frames: Tensor


SampleWindow = Callable[[Window], Tensor]
"""Fills the unknown frames: -> (B, T, C, h, w)."""


class History:
    """The last known frames, and how noisy each is to be given: predicted ones are not to be trusted fully."""

    def __init__(self, context: Tensor, kept: int, stabilization: float, last: Optional[int] = None):
        """`last`: the number of the last context frame, where frames before `context` are counted too."""
        self._kept, self._stabilization = kept, stabilization
        self.latents = context  # (B, K, C, h, w)
        self.noise = context.new_zeros(context.shape[1])  # (K,)
        self._last = context.shape[1] - 1 if last is None else last

    def __len__(self) -> int:
        return self.latents.shape[1]

    def append(self, latents: Tensor) -> None:
        """Predicted frames (B, n, C, h, w), each next to the one before it."""
        noise = latents.new_full((latents.shape[1],), self._stabilization)
        self.latents = torch.cat([self.latents, latents], dim=1)[:, -self._kept :]
        self.noise = torch.cat([self.noise, noise])[-self._kept :]
        self._last += latents.shape[1]

    def window(
        self, new_times: Tensor, number: int, given_after: Optional[Tensor] = None, most: Optional[int] = None
    ) -> Window:
        """The known frames, or the last `most` of them, at times -(K-1) .. 0, then unknown ones at `new_times` (n,)
        > 0; `given_after` (B, 1, C, h, w) is a predicted frame that is given at the last of these times."""
        known, new = min(len(self), most or len(self)), len(new_times)
        latents = self.latents[:, -known:]
        unknown = latents.new_zeros(len(latents), new, *latents.shape[2:])
        noise = new_times.new_full((new,), self._stabilization)
        given = torch.zeros(known + new, dtype=torch.bool, device=latents.device)
        given[:known] = True
        if given_after is not None:
            unknown[:, -1:], given[-1] = given_after, True
        times = torch.cat([torch.arange(1.0 - known, 1.0, device=new_times.device), new_times])
        noises = torch.cat([self.noise[-known:], noise])
        frames = (self._last + times).long()
        return Window(torch.cat([latents, unknown], dim=1), given, times - times[0], noises, number, frames)


def slide(
    sample: SampleWindow, context: Tensor, num_frames: int, window_frames: int, options: RolloutOptions
) -> Iterator[Tensor]:
    """Yields predicted latents (B, n, C, h, w), `num_frames` in all.

    The last window is sampled at full length too, because that is what the network knows, and then cut.
    """
    overlap = options.known_frames(context, window_frames)
    history, done, number = History(context, overlap, options.stabilization), 0, 0
    while done < num_frames:
        known = len(history)
        times = torch.arange(1.0, window_frames - known + 1, device=context.device)
        fresh = sample(history.window(times, number))[:, known:]
        history.append(fresh)
        yield fresh[:, : num_frames - done]
        done, number = done + len(times), number + 1


def keyframes_first(
    sample: SampleWindow, context: Tensor, num_frames: int, window_frames: int, options: RolloutOptions
) -> Iterator[Tensor]:
    """Yields predicted latents (B, n, C, h, w), `num_frames` in all; arguments as `slide`'s."""
    stride, overlap = options.stride, options.known_frames(context, window_frames)
    require(
        stride < window_frames,
        f"rollout stride: {stride} frames from one keyframe to the next do not fit windows of {window_frames}; "
        "lower it",
    )
    history, done, number = History(context, overlap, options.stabilization), 0, 0
    between = torch.arange(1.0, stride + 1, device=context.device)
    while done < num_frames:
        known = len(history)
        ahead = window_frames - known  # all of them, also of the last window: the beginning of a rollout is its own
        times = stride * torch.arange(1.0, ahead + 1, device=context.device)
        keyframes = sample(history.window(times, number))[:, known:]
        number += 1
        for place in range(ahead):
            keyframe = keyframes[:, place : place + 1]
            # As much history as a window of a training clip's length has room for.
            window = history.window(between, number, given_after=keyframe, most=window_frames - stride)
            gap = sample(window)[:, -stride:]
            history.append(gap)
            yield gap[:, : num_frames - done]
            done, number = done + stride, number + 1
            if done >= num_frames:
                return


Advance = Callable[[Window, Tensor], Tensor]
"""(window, steps (n+1, T) int64) -> (B, T, C, h, w): each frame goes from step steps[0] of the way to clean to
steps[n]; a window's unknown latents are at the levels of steps[0]."""


def pyramid(
    advance: Advance,
    noise: Callable[[int], Tensor],
    context: Tensor,
    num_frames: int,
    window_frames: int,
    num_steps: int,
    options: RolloutOptions,
) -> Iterator[Tensor]:
    """Yields predicted latents (B, 1, C, h, w), `num_frames` of them.

    Each of the U unknown frames of a window is ceil(S / U) of the S sampling steps behind the one before it.

    Args:
        noise: number of a predicted frame -> pure noise (B, 1, C, h, w).
        num_steps: S.
    """
    overlap = options.known_frames(context, window_frames)
    # Not one frame more than `overlap`, also in the first window: its unknown frames stay as many as later.
    history = History(context[:, -overlap:], overlap, options.stabilization, last=context.shape[1] - 1)
    unknown = window_frames - overlap
    lag = -(-num_steps // unknown)
    x = torch.cat([noise(frame) for frame in range(unknown)], dim=1)
    behind = lag * torch.arange(unknown, device=context.device)
    done = 0  # steps of the first unknown frame
    for frame in range(num_frames):
        known = len(history)
        window = history.window(torch.arange(1.0, unknown + 1, device=context.device), frame)
        window.latents[:, known:] = x
        first = torch.arange(done, num_steps + 1, device=context.device)
        steps = (first[:, None] - behind).clamp(0, num_steps)  # (n+1, U)
        steps = torch.cat([steps.new_full((len(steps), known), num_steps), steps], dim=1)
        x = advance(window, steps)[:, known:]
        yield x[:, :1]
        history.append(x[:, :1])
        x = torch.cat([x[:, 1:], noise(frame + unknown)], dim=1)
        done = num_steps - lag
