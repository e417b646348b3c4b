"""The denoiser: the algebra of residuals and parameterizations with stand-in networks, and the loss."""

import math

import pytest
import torch
from torch import nn

from vidpred.denoiser import Denoiser
from vidpred.diffusion import NoiseSchedule, ScheduleConfig, build_parameterization
from vidpred.diffusion.levels import NoiseLevel, add_noise
from vidpred.networks import SpatioTemporalUNet
from vidpred.tensor_ops import append_dims, reference_frames

B, T, C, H, W = 2, 5, 3, 4, 6
MASKS = {
    "prediction": [1, 1, 0, 0, 0],
    "middle": [0, 0, 1, 0, 0],
    "both ends": [1, 0, 0, 0, 1],
    "nothing": [0, 0, 0, 0, 0],
    "everything": [1, 1, 1, 1, 1],
}
FAMILIES = {
    "variance preserving": lambda u: (torch.cos(u * math.pi / 2), torch.sin(u * math.pi / 2)),
    "flow": lambda u: (1 - u, u),
    "edm": lambda u: (torch.ones_like(u), 80 * u),
}


class Returns(nn.Module):
    """A network that answers with a given tensor and remembers what it was asked."""

    def __init__(self, answer=None):
        super().__init__()
        self.answer, self.asked = answer, None

    def forward(self, x, noise_code, given, frame_times, condition=None):
        names = ("x", "noise_code", "given", "frame_times", "condition")
        self.asked = dict(zip(names, (x, noise_code, given, frame_times, condition)))
        return torch.zeros_like(x) if self.answer is None else self.answer


def parameterization(name):
    return build_parameterization(name, NoiseSchedule(ScheduleConfig()))


def problem(mask="prediction", family="variance preserving", dtype=torch.float64):
    """(x0, noise, level, given, frame times): clean at given frames, much noise elsewhere."""
    generator = torch.Generator().manual_seed(3)
    x0, noise = torch.randn(2, B, T, C, H, W, generator=generator, dtype=dtype)
    given = torch.tensor(MASKS[mask]).bool().expand(B, T)
    u = 0.1 + 0.8 * torch.rand(B, T, generator=generator, dtype=dtype)
    level = NoiseLevel.from_alpha_sigma(*FAMILIES[family](u))
    level = NoiseLevel.where(given, NoiseLevel.clean((B, T), dtype=dtype), level)
    return x0, noise, level, given, torch.arange(T, dtype=dtype).expand(B, T)


# The reference frame ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, times, nearest",
    [
        ([1, 1, 0, 0, 0], [0, 1, 2, 3, 4], [None, None, 1, 1, 1]),  # prediction: the last given frame
        ([0, 0, 1, 0, 0], [0, 1, 2, 3, 4], [2, 2, None, 2, 2]),  # one in the middle
        ([1, 0, 0, 0, 1], [0, 1, 2, 3, 4], [None, 0, 0, 4, None]),  # a tie goes to the earlier one
        ([1, 0, 0, 0, 1], [0, 1, 3, 3.5, 4], [None, 0, 4, 4, None]),  # near in time, not in index
        ([0, 0, 0, 0, 0], [0, 1, 2, 3, 4], [None] * 5),
        ([1, 1, 1, 1, 1], [0, 1, 2, 3, 4], [None] * 5),
    ],
)
def test_the_reference_is_the_nearest_given_frame(given, times, nearest):
    x = torch.randn(1, T, C, H, W)
    reference = reference_frames(x, torch.tensor([given]).bool(), torch.tensor([times]).float())
    for t, source in enumerate(nearest):
        expected = torch.zeros(C, H, W) if source is None else x[0, source]
        assert torch.equal(reference[0, t], expected), t


def test_references_come_nearest_first():
    x = torch.randn(1, T, C, H, W)
    given, times = torch.tensor([[True, False, False, True, True]]), torch.tensor([[0.0, 1.0, 2.0, 3.0, 5.0]])
    all_of_them = {1: [0, 3, 4, None], 2: [3, 0, 4, None]}
    for count, expected in ((0, {}), (2, {1: [0, 3], 2: [3, 0]}), (4, all_of_them), (7, all_of_them)):
        references = reference_frames(x, given, times, count)
        assert references.shape == (1, T, count * C, H, W)
        for t, sources in expected.items():
            rows = [torch.zeros(C, H, W) if source is None else x[0, source] for source in sources]
            assert torch.equal(references[0, t, : len(sources) * C], torch.cat(rows))
        assert not references[0, [0, 3, 4]].any() and not references[:, :, 3 * C :].any()


def test_each_clip_has_its_own_reference():
    x = torch.randn(2, T, C, H, W)
    given = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]).bool()
    reference = reference_frames(x, given, torch.arange(T).float().expand(2, T))
    assert torch.equal(reference[0, 4], x[0, 0]) and torch.equal(reference[1, 0], x[1, 4])


# A perfect network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", ["eps", "v", "x0"])
def test_a_perfect_network_has_loss_zero_and_finds_x0(name, residual, mask, family):
    x0, noise, level, given, times = problem(mask, family)
    x = add_noise(x0, noise, level)
    reference = reference_frames(x, given, times) if residual else torch.zeros_like(x)
    network = Returns(parameterization(name).target(x0 - reference, noise, level))
    denoiser = Denoiser(network, parameterization(name), residual)
    torch.testing.assert_close(denoiser(x, level, given, times), x0, rtol=0, atol=1e-9)
    loss = denoiser.loss(x0, noise, level, given, times)
    assert loss.per_frame.shape == (B, T) and loss.per_clip.shape == (B,)
    assert not loss.per_frame.any() and not loss.per_clip.any()


@pytest.mark.parametrize("residual", [False, True])
def test_a_network_of_zeros_that_predicts_x0(residual):
    """Closed form: D(x) = c, the nearest given frame, and the loss is the mean square of x0 - c."""
    x0, noise, level, given, times = problem()
    denoiser = Denoiser(Returns(), parameterization("x0"), residual)
    last = x0[:, 1:2] if residual else torch.zeros_like(x0[:, 1:2])
    estimate = denoiser(add_noise(x0, noise, level), level, given, times)
    torch.testing.assert_close(estimate[:, 2:], last.expand(-1, 3, -1, -1, -1))
    loss = denoiser.loss(x0, noise, level, given, times)
    expected = (x0[:, 2:] - last).square().mean(dim=(2, 3, 4))
    torch.testing.assert_close(loss.per_frame[:, 2:], expected)
    torch.testing.assert_close(loss.per_clip, expected.mean(1))


def test_a_new_network_copies_the_last_frame():
    """What the residual is for: an untrained network of the library is the copy-last floor."""
    network = SpatioTemporalUNet(in_channels=C, out_channels=C, channels=(8, 16), head_dim=8,
                                 spatial_attention_levels=(1,), temporal_attention_levels=(1,))  # fmt: skip
    x0, noise, level, given, times = problem(dtype=torch.float32)
    estimate = Denoiser(network, parameterization("x0"))(add_noise(x0, noise, level), level, given, times)
    assert torch.equal(estimate[:, 2:], x0[:, 1:2].expand(-1, 3, -1, -1, -1))


# What the network is asked ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_sees_x_at_unit_scale_and_the_code_alone(family):
    x0, noise, level, given, times = problem(family=family)
    x = add_noise(x0, noise, level)
    network = Returns()
    Denoiser(network, parameterization("v"))(x, level, given, times, condition=torch.ones(B))
    alpha, sigma = append_dims(level.alpha, 5), append_dims(level.sigma, 5)
    torch.testing.assert_close(network.asked["x"], x / torch.hypot(alpha, sigma))
    assert torch.equal(network.asked["noise_code"], level.code)
    assert network.asked["given"] is given and network.asked["frame_times"] is times
    assert torch.equal(network.asked["condition"], torch.ones(B))


def test_of_given_frames_that_are_slightly_noised_the_best_linear_estimate_is_the_reference():
    """Context noise: of unit data E[x0 | x] is alpha x on the circle; x0 is still exact."""
    x0, noise, level, given, times = problem()
    slight = NoiseLevel.from_alpha_sigma(*FAMILIES["variance preserving"](torch.full((B, T), 0.05).double()))
    level = NoiseLevel.where(given, slight, level)
    x = add_noise(x0, noise, level)
    alpha = append_dims(level.alpha, 5)
    reference = reference_frames(alpha * x, given, times)
    assert alpha[0, 1].item() < 1 and not torch.allclose(x[:, 1], x0[:, 1])
    network = Returns(parameterization("v").target(x0 - reference, noise, level))
    torch.testing.assert_close(Denoiser(network, parameterization("v"))(x, level, given, times), x0)


# The loss at given frames ----------------------------------------------------------------------------------


def test_the_loss_is_zero_at_given_frames_and_the_mean_over_the_others():
    x0, noise, level, given, times = problem()
    denoiser = Denoiser(Returns(torch.full_like(x0, 100.0)), parameterization("v"))
    loss = denoiser.loss(x0, noise, level, given, times)
    assert not loss.per_frame[given].any() and (loss.per_frame[~given] > 1000).all()
    torch.testing.assert_close(loss.per_clip, loss.per_frame[:, 2:].mean(1))
    assert torch.equal(loss.output, torch.full_like(x0, 100.0))


def test_the_noise_of_given_frames_changes_nothing():
    x0, noise, level, given, times = problem(dtype=torch.float32)
    torch.manual_seed(0)
    network = SpatioTemporalUNet(in_channels=C, out_channels=C, channels=(8,), head_dim=8,
                                 spatial_attention_levels=(), temporal_attention_levels=(0,))  # fmt: skip
    nn.init.normal_(network.head.weight)
    denoiser = Denoiser(network, parameterization("v"))
    other = torch.where(append_dims(given, 5), 5 * torch.randn_like(noise), noise)
    before, after = (denoiser.loss(x0, n, level, given, times) for n in (noise, other))
    assert torch.equal(before.per_frame, after.per_frame) and before.per_clip.all()


def test_a_clip_that_is_given_whole_has_loss_zero_and_not_nan():
    x0, noise, level, given, times = problem("everything")
    denoiser = Denoiser(Returns(torch.ones_like(x0)), parameterization("eps"))
    loss = denoiser.loss(x0, noise, level, given, times)
    assert loss.per_clip.tolist() == [0.0, 0.0]


# Parts -----------------------------------------------------------------------------------------------------


def test_with_network_keeps_the_rest():
    one, other = Returns(), Returns()
    denoiser = Denoiser(one, parameterization("x0"), residual=False)
    changed = denoiser.with_network(other)
    assert changed.network is other and denoiser.network is one
    assert changed.parameterization is denoiser.parameterization and changed.residual is False


@pytest.mark.parametrize("channels", [1, C - 1, C + 1])
def test_a_network_with_other_channels_than_it_was_asked_for_is_refused(channels):
    x0, noise, level, given, times = problem()
    denoiser = Denoiser(Returns(x0[:, :, :1].expand(-1, -1, channels, -1, -1)), parameterization("v"))
    with pytest.raises(ValueError, match=f"returned {channels} channels; it was asked for {C} of the latents and 0"):
        denoiser(x0, level, given, times)


def test_a_network_in_half_precision_gives_an_estimate_in_the_type_of_x():
    class Half(Returns):
        def forward(self, x, *others):
            return super().forward(x, *others).bfloat16()

    x0, noise, level, given, times = problem(dtype=torch.float32)
    estimate = Denoiser(Half(), parameterization("v"))(add_noise(x0, noise, level), level, given, times)
    assert estimate.dtype == torch.float32


def test_a_level_in_float32_keeps_float64_clips():
    x0, noise, level, given, times = problem()
    denoiser = Denoiser(Returns(), parameterization("v"))
    assert denoiser(add_noise(x0, noise, level), level.to(torch.float32), given, times).dtype == torch.float64


def test_a_clip_without_its_batch_axis_is_refused():
    x0, _, level, given, times = problem()
    with pytest.raises(ValueError, match=r"x must be \(B, T, C, H, W\)"):
        Denoiser(Returns(), parameterization("v"))(x0[0], level, given, times)


def test_the_objective_weighs_each_frame_by_its_level():
    x0, noise, level, given, times = problem()
    weigh = lambda level: 3 + level.code  # noqa: E731
    plain, weighted = (Denoiser(Returns(), parameterization("x0"), True, *w) for w in ((), (weigh,)))
    reference, result = (d.loss(x0, noise, level, given, times) for d in (plain, weighted))
    assert torch.equal(result.per_frame, reference.per_frame) and torch.equal(result.per_clip, reference.per_clip)
    torch.testing.assert_close(reference.objective, reference.per_clip)
    expected = ((3 + level.code) * reference.per_frame).sum(1) / (~given).sum(1)
    torch.testing.assert_close(result.objective, expected)
    assert weighted.with_network(Returns()).weight is weigh


def test_only_scored_frames_count():
    x0, noise, level, given, times = problem()
    denoiser = Denoiser(Returns(), parameterization("x0"))
    scored = torch.tensor([[False, False, True, False, True]]).expand(B, T)
    all_unknown = denoiser.loss(x0, noise, level, given, times)
    some = denoiser.loss(x0, noise, level, given, times, scored=scored)
    assert torch.equal(some.per_frame, all_unknown.per_frame * scored)
    torch.testing.assert_close(some.per_clip, some.per_frame[:, [2, 4]].mean(1))
