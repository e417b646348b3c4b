"""Motion compensation: closed forms, a slow reference, and the denoiser around it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vidpred.denoiser import Denoiser
from vidpred.diffusion import DiffusionConfig, MotionCompensation, NoiseSchedule, ScheduleConfig, build_parameterization
from vidpred.diffusion.levels import NoiseLevel, add_noise
from vidpred.errors import UserError

B, T, C, H, W = 2, 5, 3, 6, 7
MASKS = {"prediction": [1, 1, 0, 0, 0], "one": [0, 0, 1, 0, 0], "ends": [1, 0, 0, 0, 1], "nothing": [0] * 5}


def problem(mask="prediction", radius=2):
    """(motion, logits, x, given, frame times), all in float64."""
    torch.manual_seed(0)
    motion = MotionCompensation(radius)
    x = torch.randn(B, T, C, H, W, dtype=torch.float64)
    logits = 3 * torch.randn(B, T, motion.channels, H, W, dtype=torch.float64)
    given = torch.tensor(MASKS[mask]).bool().expand(B, T)
    return motion, logits, x, given, torch.arange(T, dtype=torch.float64).expand(B, T)


def tap(radius, frame, dy, dx):
    side = 2 * radius + 1
    return frame * side**2 + (dy + radius) * side + dx + radius


def shifted(image, dy, dx):
    """image(p + (dy, dx)), at the borders the nearest pixel: written with indices alone."""
    rows, columns = ((torch.arange(n) + d).clamp(0, n - 1) for n, d in zip(image.shape[-2:], (dy, dx)))
    return image[..., rows[:, None], columns]


@pytest.mark.parametrize("frame, source", [(0, 1), (1, 0)])
@pytest.mark.parametrize("dy, dx", [(0, 0), (2, -1), (-2, 2), (1, 0)])
def test_a_kernel_of_one_weight_shifts_one_given_frame(frame, source, dy, dx):
    motion, logits, x, given, times = problem()
    logits = torch.full_like(logits, -1e6)
    logits[:, :, tap(2, frame, dy, dx)] = 1e6
    moved = motion(logits, x, given, times)
    assert torch.equal(moved[:, 2:], shifted(x[:, source], dy, dx)[:, None].expand(-1, 3, -1, -1, -1))


@pytest.mark.parametrize(
    "mask, t, sources",
    [("prediction", 2, [1, 0]), ("prediction", 4, [1, 0]), ("one", 1, [2, None]),
     ("ends", 1, [0, 4]), ("ends", 3, [4, 0])],
)  # fmt: skip
def test_every_position_has_a_kernel_of_its_own(mask, t, sources):
    """Against the definition, one position at a time; the nearest frame in time comes first."""
    motion, logits, x, given, times = problem(mask)
    moved = motion(logits, x, given, times)
    weights = logits[:, t].exp()
    weights[:, tap(2, 0, 0, 0)] *= motion.channels - 1
    if sources[1] is None:
        weights[:, motion.channels // 2 :] = 0
    weights = weights / weights.sum(dim=1, keepdim=True)
    expected = torch.zeros_like(x[:, t])
    for frame, source in enumerate(sources):
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                if source is not None:
                    expected += weights[:, tap(2, frame, dy, dx), None] * shifted(x[:, source], dy, dx)
    torch.testing.assert_close(moved[:, t], expected, rtol=0, atol=1e-12)


def test_equals_a_product_with_unfolded_neighbourhoods():
    motion, logits, x, given, times = problem(radius=3)
    kernels = logits[:, 4].clone()
    kernels[:, tap(3, 0, 0, 0)] += math.log(motion.channels - 1)
    kernels = kernels.softmax(dim=1).unflatten(1, (2, 49))
    patches = [F.unfold(F.pad(x[:, t], [3] * 4, mode="replicate"), 7).view(B, C, 49, H, W) for t in (1, 0)]
    expected = sum(torch.einsum("nkhw,nckhw->nchw", kernels[:, i], patch) for i, patch in enumerate(patches))
    torch.testing.assert_close(motion(logits, x, given, times)[:, 4], expected)


@pytest.mark.parametrize("mask", MASKS)
def test_given_frames_have_no_reference_and_nothing_comes_from_nothing(mask):
    motion, logits, x, given, times = problem(mask)
    moved = motion(logits, x, given, times)
    assert not moved[given].any() and moved.isfinite().all()
    assert bool(moved.any()) == (mask != "nothing")
    moved = motion(logits, torch.where(given[..., None, None, None], x, math.nan), given, times)
    assert moved.isfinite().all(), "an unknown frame was looked at"


def test_kernels_of_zero_leave_half_of_the_weight_in_place():
    motion, logits, x, given, times = problem()
    x[:] = 0
    x[:, 1, :, 3, 3] = 1.0
    moved = motion(torch.zeros_like(logits), x, given, times)[:, 2]
    torch.testing.assert_close(moved[:, :, 3, 3], torch.full_like(moved[:, :, 3, 3], 0.5))
    torch.testing.assert_close(moved[:, :, 4, 3], torch.full_like(moved[:, :, 4, 3], 0.5 / (motion.channels - 1)))


def test_gradients_are_those_of_finite_differences():
    motion, logits, x, given, times = problem(radius=1)
    small = (logits[:1, :, :, :2, :2].requires_grad_(), x[:1, ..., :2, :2].requires_grad_())
    assert torch.autograd.gradcheck(lambda k, y: motion(k, y, given[:1], times[:1]), small)


# In the denoiser -------------------------------------------------------------------------------------------


class Answers(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, x, noise_code, given, frame_times, condition=None):
        return self.answer


def noised(given):
    u = 0.1 + 0.8 * torch.rand(B, T, dtype=torch.float64)
    level = NoiseLevel.from_alpha_sigma(torch.cos(u), torch.sin(u))
    return NoiseLevel.where(given, NoiseLevel.clean((B, T), dtype=torch.float64), level)


@pytest.mark.parametrize("name", ["v", "x0"])
@pytest.mark.parametrize("mask", MASKS)
def test_a_perfect_network_has_loss_zero_and_finds_x0(name, mask):
    motion, logits, x0, given, times = problem(mask)
    noise, level = torch.randn_like(x0), noised(given)
    x = add_noise(x0, noise, level)
    parameterization = build_parameterization(name, NoiseSchedule(ScheduleConfig()))
    target = parameterization.target(x0 - motion(logits, x, given, times), noise, level)
    denoiser = Denoiser(Answers(torch.cat([target, logits], dim=2)), parameterization, motion=motion)
    torch.testing.assert_close(denoiser(x, level, given, times), x0, rtol=0, atol=1e-9)
    loss = denoiser.loss(x0, noise, level, given, times)
    assert not loss.per_frame.any() and loss.output.shape[2] == C + motion.channels


def test_the_loss_alone_teaches_where_things_moved():
    """The truth is the last frame, one position further; the kernels find it, the prediction is held at 0."""
    motion, logits, x0, given, times = problem(radius=1)
    x0[:, 2:] = shifted(x0[:, 1], 0, -1)[:, None]
    network = Answers(torch.cat([torch.zeros_like(x0), torch.zeros_like(logits)], dim=2))
    network.answer.register_hook(lambda gradient: torch.cat([0 * gradient[:, :, :C], gradient[:, :, C:]], dim=2))
    denoiser = Denoiser(network, build_parameterization("x0", NoiseSchedule(ScheduleConfig())), motion=motion)
    optimizer, level = torch.optim.Adam(network.parameters(), lr=0.3), noised(given)
    losses = []
    for _ in range(100):
        losses.append(denoiser.loss(x0, torch.randn_like(x0), level, given, times).per_clip.sum())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.01 * losses[0]
    kernels = network.answer[:, 2:, C:, 1:-1, 1:-1]  # at the borders several motions show the same
    assert (kernels.argmax(dim=2) == tap(1, 0, 0, -1)).double().mean() > 0.9
    assert denoiser.with_network(nn.Identity()).motion is motion


def test_a_noised_context_is_moved_as_its_best_linear_estimate():
    motion, logits, x0, given, times = problem(radius=1)
    level = NoiseLevel.from_alpha_sigma(torch.full((B, T), 0.8).double(), torch.full((B, T), 0.6).double())
    denoiser = Denoiser(
        Answers(torch.cat([torch.zeros_like(x0), logits], dim=2)),
        build_parameterization("x0", NoiseSchedule(ScheduleConfig())), motion=motion,
    )  # fmt: skip
    torch.testing.assert_close(denoiser(x0, level, given, times), motion(logits, 0.8 * x0, given, times))


def test_other_channels_or_no_residual_are_refused():
    motion, logits, x0, given, times = problem(radius=1)
    x0_of = build_parameterization("x0", NoiseSchedule(ScheduleConfig()))
    for channels in (motion.channels - 1, motion.channels + 1):
        answer = torch.zeros(B, T, C + channels, H, W, dtype=torch.float64)
        with pytest.raises(ValueError, match=f"{C} of the latents and {motion.channels} of the motion"):
            Denoiser(Answers(answer), x0_of, motion=motion)(x0, noised(given), given, times)
    with pytest.raises(ValueError, match="without residual it must have radius 0"):
        Denoiser(nn.Identity(), x0_of, residual=False, motion=motion)


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"motion_radius": -1}, "diffusion.motion_radius: -1 is not possible"),
        ({"motion_radius": 2, "residual": False}, "set diffusion.residual to true"),
        ({"motion_radius": 2, "parameterization": "eps"}, "in eps the moved frame cancels"),
    ],
)
def test_what_cannot_be_moved_is_refused(changes, line):
    with pytest.raises(UserError, match=line):
        DiffusionConfig(**changes)
