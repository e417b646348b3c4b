"""Autoencoders: exact round trips, shapes, freezing, and one line for what does not fit."""

import math

import pytest
import torch

from vidpred.autoencoders import (
    AUTOENCODERS,
    Autoencoder,
    MockConfig,
    PixelUnshuffleConfig,
    build_autoencoder,
    check_reconstruction,
    reconstruction_psnr,
)
from vidpred.errors import UserError
from vidpred.tensor_ops import to_uint8


def random_frames(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pixel_norm", ["centered", "imagenet"])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_pixel_unshuffle_is_lossless(pixel_norm, factor):
    frames = random_frames(2, 3, 3, 8, 12)
    autoencoder = build_autoencoder(PixelUnshuffleConfig(down_factor=factor, pixel_norm=pixel_norm))
    latents = autoencoder.encode(frames)
    assert latents.shape == (2, 3, 3 * factor**2, 8 // factor, 12 // factor)
    assert latents.dtype == torch.float32
    assert autoencoder.latent_channels == latents.shape[2] and autoencoder.down_factor == factor
    assert torch.equal(to_uint8(autoencoder.decode(latents)), frames)


def test_mock_is_area_down_and_bilinear_up_in_minus_one_to_one():
    frames = torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8)
    frames[..., :4] = 255
    autoencoder = build_autoencoder(MockConfig())
    latents = autoencoder.encode(frames)
    assert torch.equal(latents, torch.tensor([1.0, -1.0]).expand(1, 2, 3, 2, 2))
    # Bilinear with half-pixel centres: the two cells' centres are at pixels 1.5 and 5.5.
    expected = torch.tensor([1, 1, 7 / 8, 5 / 8, 3 / 8, 1 / 8, 0, 0])
    torch.testing.assert_close(autoencoder.decode(latents), expected.expand(1, 2, 3, 8, 8))


def test_imagenet_norm_is_its_mean_and_deviation():
    frames = random_frames(1, 1, 3, 4, 4)
    latents = build_autoencoder(PixelUnshuffleConfig(down_factor=1, pixel_norm="imagenet")).encode(frames)
    red = (frames[:, :, 0] / 255 - 0.485) / 0.229
    torch.testing.assert_close(latents[:, :, 0], red)


def test_decode_does_not_clamp():
    autoencoder = build_autoencoder(MockConfig())
    assert torch.equal(autoencoder.decode(torch.full((1, 1, 3, 2, 2), 3.0)), torch.full((1, 1, 3, 8, 8), 2.0))


def test_chunks_change_nothing():
    frames = random_frames(3, 5, 3, 16, 16)
    whole, parts = (build_autoencoder(MockConfig(frames_per_chunk=n)) for n in (100, 4))
    assert torch.equal(whole.encode(frames), parts.encode(frames))
    assert torch.equal(whole.decode(whole.encode(frames)), parts.decode(whole.encode(frames)))


@pytest.mark.parametrize("config", [MockConfig(), PixelUnshuffleConfig()], ids=lambda config: config.kind)
def test_no_frames_are_no_latents(config):
    """What a model generates from nothing continues a clip of no frame."""
    autoencoder = build_autoencoder(config)
    some, none = (autoencoder.encode(random_frames(2, count, 3, 8, 12)) for count in (1, 0))
    assert none.shape == (2, 0, *some.shape[2:]) and none.dtype == some.dtype


def test_chunks_bound_what_is_decoded_at_once():
    class Counting(Autoencoder):
        sizes: list = []

        def encode_images(self, images):
            self.sizes.append(len(images))
            return images

    autoencoder = Counting(MockConfig(frames_per_chunk=4), name="counting", latent_channels=3, down_factor=1)
    autoencoder.encode(random_frames(2, 5, 3, 4, 4))
    assert autoencoder.sizes == [4, 4, 2]


def test_stays_in_evaluation_mode_inside_a_training_parent():
    parent = torch.nn.Sequential(build_autoencoder(MockConfig()))
    parent.train()
    assert parent.training and not parent[0].training
    assert not parent[0].state_dict(), "pixel constants belong to the configuration, not to checkpoints"


@pytest.mark.parametrize(
    "frames, error, words",
    [
        (torch.zeros(1, 1, 3, 10, 8, dtype=torch.uint8), UserError, "multiples of 4"),
        (torch.zeros(1, 1, 1, 8, 8, dtype=torch.uint8), UserError, "3 channels"),
        (torch.zeros(1, 1, 3, 8, 8), ValueError, "uint8"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ValueError, "B, T, C, H, W"),
    ],
)
def test_frames_that_do_not_fit_are_named(frames, error, words):
    with pytest.raises(error, match=words):
        build_autoencoder(MockConfig()).encode(frames)


@pytest.mark.parametrize(
    "config, key",
    [
        (lambda: MockConfig(down_factor=0), "down_factor"),
        (lambda: PixelUnshuffleConfig(down_factor=-1), "down_factor"),
        (lambda: MockConfig(frames_per_chunk=0), "frames_per_chunk"),
        (lambda: MockConfig(pixel_norm="none"), "pixel_norm"),
    ],
)
def test_wrong_values_name_the_key(config, key):
    with pytest.raises(UserError, match=f"autoencoder.{key}"):
        config()


def test_reconstruction_psnr_closed_form():
    class Brighter(Autoencoder):
        def encode_images(self, images):
            return images

        def decode_images(self, latents):
            return latents + 2 * 10 / 255  # ten levels brighter in every pixel

    autoencoder = Brighter(MockConfig(), name="brighter", latent_channels=3, down_factor=1)
    frames = torch.full((1, 2, 3, 4, 4), 100, dtype=torch.uint8)
    assert reconstruction_psnr(autoencoder, frames).mean().item() == pytest.approx(20 * math.log10(25.5), abs=1e-9)


def test_check_names_the_autoencoder_that_loses_the_frames():
    noise = random_frames(1, 2, 3, 32, 32)
    with pytest.raises(UserError, match="mock autoencoder.*autoencoder.min_psnr"):
        check_reconstruction(build_autoencoder(MockConfig()), noise, min_psnr=12)
    lossless = build_autoencoder(PixelUnshuffleConfig())
    assert check_reconstruction(lossless, noise, PixelUnshuffleConfig().min_psnr) == pytest.approx(100)


def test_check_refuses_a_reconstruction_that_is_not_finite():
    class Broken(Autoencoder):
        def encode_images(self, images):
            return images / 0

        decode_images = encode_images

    broken = Broken(MockConfig(), name="broken", latent_channels=3, down_factor=1)
    with pytest.raises(UserError, match="broken gives training frames back at nan dB"):
        check_reconstruction(broken, random_frames(1, 1, 3, 4, 4), min_psnr=1)


def test_a_saved_configuration_rebuilds_the_autoencoder():
    config = AUTOENCODERS.from_mapping({"kind": "pixel_unshuffle", "down_factor": 4})
    assert build_autoencoder(config).latent_channels == 48
    assert AUTOENCODERS.kinds() == ["identity", "kl", "mock", "pixel_unshuffle", "tiny"]
