"""diffusers' VAEs through this package: the same arithmetic as diffusers, and errors in one line."""

import json
import os
from pathlib import Path

import pytest
import torch

from vidpred.autoencoders import (
    KLConfig,
    TinyConfig,
    build_autoencoder,
    check_reconstruction,
    pretrained,
    reconstruction_psnr,
)
from vidpred.errors import UserError

ASSETS = os.environ.get("VIDPRED_ASSETS")


def random_kl(**options):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, layers_per_block=1, **options,
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def kl_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kl") / "vae"
    random_kl(scaling_factor=0.18215).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> Path:
    from diffusers import AutoencoderTiny

    folder = tmp_path_factory.mktemp("tiny") / "vae"
    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def smooth_frames() -> torch.Tensor:
    ramp = torch.linspace(0, 255, 32).round().to(torch.uint8)
    rgb = [ramp.expand(32, 32), ramp[:, None].expand(32, 32), ramp.flip(0).expand(32, 32)]
    return torch.stack(rgb).expand(2, 3, 3, 32, 32)


def test_kl_equals_diffusers_posterior_mean_times_scaling_factor(kl_folder):
    autoencoder, frames = build_autoencoder(KLConfig(pretrained=str(kl_folder))), smooth_frames()
    latents = autoencoder.encode(frames)
    vae, images = random_kl(), frames.flatten(0, 1) / 127.5 - 1
    with torch.no_grad():
        expected = vae.encode(images).latent_dist.mean * 0.18215
        decoded = vae.decode(expected / 0.18215).sample / 2 + 0.5
    assert latents.shape == (2, 3, 4, 16, 16)
    assert (autoencoder.latent_channels, autoencoder.down_factor) == (4, 2)
    torch.testing.assert_close(latents.flatten(0, 1), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(autoencoder.decode(latents).flatten(0, 1), decoded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options, shift, scale",
    [
        (dict(scaling_factor=0.36, shift_factor=0.12), 0.12, 0.36),
        (
            dict(scaling_factor=0.5, latents_mean=[1.0, 2, 3, 4], latents_std=[1.0, 2, 4, 8]),
            torch.tensor([1.0, 2, 3, 4])[:, None, None],
            torch.tensor([0.5, 0.25, 0.125, 0.0625])[:, None, None],
        ),
    ],
)
def test_every_latent_constant_of_the_vae_is_applied_and_undone(tmp_path, options, shift, scale):
    vae = random_kl(**options)
    vae.save_pretrained(tmp_path)
    autoencoder, frames = build_autoencoder(KLConfig(pretrained=str(tmp_path))), smooth_frames()[:1]
    latents = autoencoder.encode(frames)
    with torch.no_grad():
        z = vae.encode(frames[0] / 127.5 - 1).latent_dist.mean
        decoded = vae.decode(z).sample / 2 + 0.5
    torch.testing.assert_close(latents[0], (z - shift) * scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(autoencoder.decode(latents)[0], decoded, rtol=1e-4, atol=1e-4)


def test_tiny_equals_diffusers(tiny_folder):
    from diffusers import AutoencoderTiny

    autoencoder, frames = build_autoencoder(TinyConfig(pretrained=str(tiny_folder))), smooth_frames()
    vae = AutoencoderTiny.from_pretrained(tiny_folder, low_cpu_mem_usage=False)
    with torch.no_grad():
        expected = vae.encode(frames.flatten(0, 1) / 127.5 - 1).latents
        decoded = vae.decode(expected).sample / 2 + 0.5
    latents = autoencoder.encode(frames)
    assert autoencoder.down_factor == 4 and latents.shape == (2, 3, 4, 8, 8)
    torch.testing.assert_close(latents.flatten(0, 1), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(autoencoder.decode(latents).flatten(0, 1), decoded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_half_runs_in_bfloat16_and_speaks_float32(kl_folder, tiny_folder, kind):
    config_class, folder = {"kl": (KLConfig, kl_folder), "tiny": (TinyConfig, tiny_folder)}[kind]
    half = build_autoencoder(config_class(pretrained=str(folder), half=True))
    full = build_autoencoder(config_class(pretrained=str(folder)))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    latents = half.encode(smooth_frames())
    assert latents.dtype == half.decode(latents).dtype == torch.float32
    difference = (latents - full.encode(smooth_frames())).abs().max()
    assert 0 < difference < 0.05 * latents.abs().max()


def test_frozen(kl_folder):
    autoencoder = build_autoencoder(KLConfig(pretrained=str(kl_folder)))
    assert not any(p.requires_grad for p in autoencoder.parameters())
    assert not any(module.training for module in autoencoder.train().modules())
    assert not autoencoder.decode(torch.zeros(1, 1, 4, 4, 4, requires_grad=True)).requires_grad


def test_a_pipeline_folder_is_opened_by_subfolder(kl_folder):
    autoencoder = build_autoencoder(KLConfig(pretrained=str(kl_folder.parent), subfolder="vae"))
    assert autoencoder.latent_channels == 4
    with pytest.raises(UserError, match="no config.json.*autoencoder.subfolder"):
        build_autoencoder(KLConfig(pretrained=str(kl_folder.parent)))


def test_an_untrained_vae_is_named(kl_folder):
    autoencoder = build_autoencoder(KLConfig(pretrained=str(kl_folder)))
    with pytest.raises(UserError, match=f"{kl_folder}.*dB PSNR, less than 20"):
        check_reconstruction(autoencoder, smooth_frames(), min_psnr=20)


def test_the_wrong_kind_names_the_right_one(tiny_folder, kl_folder):
    with pytest.raises(UserError, match="AutoencoderTiny, not AutoencoderKL; set autoencoder.kind to tiny"):
        build_autoencoder(KLConfig(pretrained=str(tiny_folder)))
    with pytest.raises(UserError, match="set autoencoder.kind to kl"):
        build_autoencoder(TinyConfig(pretrained=str(kl_folder)))


def test_a_path_that_is_not_there():
    with pytest.raises(UserError, match="'/no/such/vae' is neither a folder nor a hub name"):
        build_autoencoder(KLConfig(pretrained="/no/such/vae"))


def copy_vae(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target / "diffusion_pytorch_model.safetensors"


def test_missing_weights_are_an_error_not_random_values(kl_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = copy_vae(kl_folder, tmp_path / "vae")
    tensors = load_file(weights)
    del tensors["decoder.conv_out.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="not a complete AutoencoderKL: 1 tensors .*decoder.conv_out.weight"):
        build_autoencoder(KLConfig(pretrained=str(tmp_path / "vae")))


def test_weights_of_another_size_are_an_error(kl_folder, tmp_path):
    copy_vae(kl_folder, tmp_path / "vae")
    config = tmp_path / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "latent_channels": 8}))
    with pytest.raises(UserError, match="autoencoder.pretrained"):
        build_autoencoder(KLConfig(pretrained=str(tmp_path / "vae")))


@pytest.mark.parametrize("damage", ["truncated", "absent", "config"])
def test_damaged_folders_are_one_line(kl_folder, tmp_path, damage):
    weights = copy_vae(kl_folder, tmp_path / "vae")
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "absent":
        weights.unlink()
    else:
        (tmp_path / "vae" / "config.json").write_text("{")
    with pytest.raises(UserError, match="autoencoder.pretrained: .*cannot be loaded .*complete") as caught:
        build_autoencoder(KLConfig(pretrained=str(tmp_path / "vae")))
    assert "\n" not in str(caught.value)


def test_a_hub_name_without_network_is_one_line_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained, "reachable", lambda url: False)
    with pytest.raises(UserError, match="vidpred-tests/no-such-vae.*cannot be reached.*local folder"):
        build_autoencoder(KLConfig(pretrained="vidpred-tests/no-such-vae"))


def test_a_hub_name_is_downloaded_only_when_the_hub_answers(monkeypatch, kl_folder):
    calls = []

    class FakeVAE:
        @staticmethod
        def from_pretrained(source, *, local_files_only, **options):
            calls.append((source, local_files_only))
            if local_files_only:
                raise OSError("not in the cache")
            info = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
            return random_kl(), info

    monkeypatch.setattr(pretrained, "reachable", lambda url: True)
    pretrained.load_vae(FakeVAE, KLConfig(pretrained="owner/name"))
    assert calls == [("owner/name", True), ("owner/name", False)]


@pytest.mark.skipif(not ASSETS, reason="VIDPRED_ASSETS is not set")
@pytest.mark.parametrize("name", ["taesd", "taesdxl"])
def test_real_taesd_on_real_frames(name):
    import av

    video = sorted(Path(ASSETS, "videos", "asl_gestures").glob("*"))[0]
    with av.open(str(video)) as container:
        image = torch.from_numpy(next(container.decode(video=0)).to_ndarray(format="rgb24"))
    frame = image.permute(2, 0, 1)[None, None, :, 100:292, 200:392].contiguous()
    autoencoder = build_autoencoder(TinyConfig(pretrained=f"{ASSETS}/vae/{name}"))
    assert 0.5 < float(autoencoder.encode(frame).std()) < 1.2
    assert reconstruction_psnr(autoencoder, frame).mean() > 28
    wrong = build_autoencoder(TinyConfig(pretrained=f"{ASSETS}/vae/{name}", pixel_norm="imagenet"))
    assert reconstruction_psnr(wrong, frame).mean() < 26, "the pixel norm of this VAE is the centered one"
