"""PSNR, SSIM and motion energy: closed forms, then scikit-image and torchmetrics."""

import math

import numpy as np
import pytest
import torch

from vidpred.errors import UserError
from vidpred.metrics import PSNR_CAP, SSIM_PROTOCOL, motion_energy, psnr, ssim


def clips(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def noisy_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth colour frames of 40x48 and the same with noise: (2, 3, 3, 40, 48) each."""
    y, x = torch.meshgrid(torch.linspace(0, 6, 40), torch.linspace(0, 6, 48), indexing="ij")
    waves = torch.stack([127 + 100 * torch.sin(x * (k + 1) / 3 + y) for k in range(18)])
    truth = waves.reshape(2, 3, 3, 40, 48)
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1)) * 15
    return (truth + noise).clamp(0, 255).to(torch.uint8), truth.to(torch.uint8)


def test_psnr_closed_form_per_frame():
    truth = torch.full((2, 3, 3, 8, 8), 100, dtype=torch.uint8)
    prediction = truth.clone()
    prediction[0, 1] += 51  # a fifth of the range
    prediction[1, 2] -= 1
    expected = torch.full((2, 3), PSNR_CAP, dtype=torch.float64)
    expected[0, 1] = 20 * math.log10(5)
    expected[1, 2] = 20 * math.log10(255)
    torch.testing.assert_close(psnr(prediction, truth), expected, rtol=1e-12, atol=0)


def test_psnr_does_not_wrap_around_uint8():
    black, white = torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8), torch.full((1, 1, 3, 8, 8), 255).byte()
    assert psnr(black, white).item() == 0 == psnr(white, black).item()


def test_psnr_is_the_mean_over_frames_not_pooled():
    truth = torch.full((1, 2, 3, 8, 8), 100, dtype=torch.uint8)
    prediction = truth.clone()
    prediction[:, 0] += 1
    prediction[:, 1] += 25
    per_frame = psnr(prediction, truth)
    pooled = -10 * math.log10((1 + 25**2) / 2 / 255**2)
    assert per_frame.mean().item() > pooled + 10


def test_psnr_equals_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio

    prediction, truth = noisy_pair()
    for b in range(2):
        for t in range(3):
            expected = peak_signal_noise_ratio(truth[b, t].numpy(), prediction[b, t].numpy(), data_range=255)
            assert psnr(prediction, truth)[b, t].item() == pytest.approx(expected, abs=1e-9)


def test_psnr_equals_torchmetrics():
    from torchmetrics.functional.image import peak_signal_noise_ratio

    prediction, truth = noisy_pair()
    for b in range(2):
        for t in range(3):
            images = (prediction[b, t].double() / 255, truth[b, t].double() / 255)
            expected = peak_signal_noise_ratio(*images, data_range=1.0).item()
            assert psnr(prediction, truth)[b, t].item() == pytest.approx(expected, abs=1e-5)


def test_ssim_equals_scikit_image_with_matching_settings():
    from skimage.metrics import structural_similarity

    prediction, truth = noisy_pair()
    values = ssim(prediction, truth)
    assert values.shape == (2, 3) and 0.2 < values.mean() < 0.95
    for b in range(2):
        for t in range(3):
            # scikit-image leaves out a border of half a window: its input gets the reflected one of 5 pixels.
            border = ((0, 0), (5, 5), (5, 5))
            images = [np.pad(x[b, t].numpy() / 255, border, "reflect") for x in (prediction, truth)]
            expected = structural_similarity(
                *images, data_range=1, channel_axis=0, gaussian_weights=True, sigma=1.5,
                use_sample_covariance=False,
            )  # fmt: skip
            assert values[b, t].item() == pytest.approx(expected, abs=1e-5)


def test_ssim_is_the_named_torchmetrics_function():
    from torchmetrics.functional.image import structural_similarity_index_measure

    prediction, truth = noisy_pair()
    images = [x.flatten(0, 1).double() / 255 for x in (prediction, truth)]
    expected = structural_similarity_index_measure(*images, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(prediction, truth).flatten(), expected, rtol=0, atol=2e-6)
    assert "structural_similarity_index_measure" in SSIM_PROTOCOL


@pytest.mark.parametrize("size", [(11, 11), (12, 150), (64, 65), (129, 70)])
def test_ssim_of_any_size_equals_torchmetrics(size):
    """Sizes on both sides of a block's: borders and seams are in the value of frames that small."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    frames = clips(1, 2, 3, *size)
    other = (frames.int() + clips(1, 2, 3, *size, seed=1) // 8).clamp(0, 255).to(torch.uint8)
    images = [x[0].double() / 255 for x in (frames, other)]
    expected = structural_similarity_index_measure(*images, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(frames, other)[0], expected, rtol=0, atol=2e-6)


def test_ssim_of_equal_frames_is_one_and_chunks_change_nothing():
    frames = clips(5, 8, 3, 12, 16)  # 40 frames: more than are filtered at once
    other = clips(5, 8, 3, 12, 16, seed=1)
    torch.testing.assert_close(ssim(frames, frames), torch.ones(5, 8).double())
    torch.testing.assert_close(ssim(frames, other)[4:], ssim(frames[4:], other[4:]), rtol=0, atol=1e-6)
    assert ssim(frames[:1, :1], other[:1, :1]).shape == (1, 1)


def test_ssim_of_frames_smaller_than_its_window_is_one_line():
    with pytest.raises(UserError, match="10x16.*11x11"):
        ssim(clips(1, 1, 3, 10, 16), clips(1, 1, 3, 10, 16))


def test_motion_energy_closed_form():
    frames = torch.zeros(2, 3, 3, 4, 4, dtype=torch.uint8)
    frames[0, 1:] = 51  # one step of a fifth, one of nothing
    frames[1, 1] = 255  # up and down again: unsigned arithmetic would lose the way down
    torch.testing.assert_close(motion_energy(frames), torch.tensor([0.1, 1.0]).double())


def test_motion_energy_over_the_steps_that_count():
    """Levels 0, 51, 51, 255, 0: steps of 0.2, 0, 0.8 and 1."""
    frames = torch.tensor([0, 51, 51, 255, 0]).byte()[None, :, None, None, None].expand(2, 5, 3, 4, 4)
    counted = torch.tensor([[True, False, False, False], [False, True, True, False]])
    torch.testing.assert_close(motion_energy(frames, counted), torch.tensor([0.2, 0.4]).double())
    noise = clips(3, 6, 3, 8, 8)
    later = (torch.arange(5) >= 2).expand(3, 5)
    assert torch.equal(motion_energy(noise, later), motion_energy(noise[:, 2:]))
    assert torch.equal(motion_energy(noise, later | True), motion_energy(noise))


def test_motion_energy_of_a_frozen_clip_is_zero_and_one_frame_is_refused():
    assert motion_energy(clips(1, 1, 3, 4, 4).expand(1, 5, 3, 4, 4)).item() == 0
    with pytest.raises(ValueError, match="two frames"):
        motion_energy(clips(1, 1, 3, 4, 4))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_unrounded_or_misshapen_input_is_refused(metric):
    frames = clips(1, 2, 3, 16, 16)
    with pytest.raises(ValueError, match="uint8"):
        metric(frames.float(), frames)
    with pytest.raises(ValueError, match="differ in shape"):
        metric(frames[:, :1], frames)
    with pytest.raises(ValueError, match="B, T, C, H, W"):
        metric(frames[0], frames[0])
