"""Clip bounds: closed form, and Imagen's thresholding as diffusers has it."""

import pytest
import torch
from diffusers import DDIMScheduler

from vidpred.diffusion import ClipBoundConfig, build_clip
from vidpred.errors import UserError


def ramp() -> torch.Tensor:
    """(1, 2, 3, 1, 4): values -12 .. 11."""
    return torch.arange(-12.0, 12.0).reshape(1, 2, 3, 1, 4)


def test_none_and_static():
    assert build_clip(ClipBoundConfig(kind="none")) is None
    clipped = build_clip(ClipBoundConfig(kind="static", bound=3.0))(ramp())
    assert torch.equal(clipped, ramp().clamp(-3, 3))


def test_auto_is_per_channel_with_a_margin():
    low, high = torch.tensor([-1.0, 0.0, -20.0]), torch.tensor([1.0, 5.0, 20.0])
    x0 = ramp()
    clipped = build_clip(ClipBoundConfig(kind="auto", margin=0.1), low, high)(x0)
    assert torch.equal(clipped[:, :, 0], x0[:, :, 0].clamp(-1.2, 1.2))  # range 2, margin 0.2
    assert torch.equal(clipped[:, :, 1], x0[:, :, 1].clamp(-0.5, 5.5))
    assert torch.equal(clipped[:, :, 2], x0[:, :, 2])
    assert build_clip(ClipBoundConfig(kind="auto"), low, high)(x0.double()).dtype == torch.float64


def test_auto_needs_the_range():
    with pytest.raises(UserError, match="sampling.clip"):
        build_clip(ClipBoundConfig(kind="auto"))


def test_dynamic_closed_form():
    # |values| of one frame are 0 .. 100: the 0.9 quantile is exactly 90.
    x0 = (torch.arange(0, 101).double() * torch.tensor([1.0, -1.0] * 50 + [1.0])).reshape(1, 1, 1, 1, 101)
    clipped = build_clip(ClipBoundConfig(kind="dynamic", bound=3.0, quantile=0.9))(x0)
    torch.testing.assert_close(clipped, x0.clamp(-90, 90) * (3 / 90))
    small = build_clip(ClipBoundConfig(kind="dynamic", bound=200.0, quantile=0.9))(x0)
    assert torch.equal(small, x0)  # below the bound it does nothing
    whole = build_clip(ClipBoundConfig(kind="dynamic", bound=3.0, quantile=1.0))(x0)
    torch.testing.assert_close(whole, x0 * 0.03)


def test_dynamic_equals_diffusers_and_frames_do_not_touch_each_other():
    x0 = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double() * 2
    theirs = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=100.0)
    expected = theirs._threshold_sample(x0.flatten(0, 1)).unflatten(0, (2, 3))
    clip = build_clip(ClipBoundConfig(kind="dynamic", bound=1.0, quantile=0.95))
    torch.testing.assert_close(clip(x0), expected, rtol=0, atol=1e-12)
    louder = torch.cat([x0[:, :1] * 50, x0[:, 1:]], dim=1)
    assert torch.equal(clip(louder)[:, 1:], clip(x0)[:, 1:])


@pytest.mark.parametrize("kind", ["static", "auto", "dynamic"])
def test_nan_is_never_hidden(kind):
    x0 = ramp()
    x0[0, 1, 2, 0, 3] = torch.nan
    clip = build_clip(ClipBoundConfig(kind=kind), torch.full((3,), -1.0), torch.full((3,), 1.0))
    assert clip(x0)[0, 1, 2, 0, 3].isnan()


@pytest.mark.parametrize(
    "broken", [{"kind": "soft"}, {"bound": 0.0}, {"quantile": 0.0}, {"quantile": 1.1}, {"margin": -0.1}]
)
def test_broken_bounds_are_refused(broken):
    with pytest.raises(UserError, match="sampling.clip"):
        ClipBoundConfig(**broken)
