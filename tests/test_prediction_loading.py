"""A checkpoint alone rebuilds the predictor."""

import copy
import dataclasses

import pytest
import torch

from vidpred.autoencoders import AUTOENCODERS, build_autoencoder
from vidpred.checkpoint_store import CheckpointStore, read_checkpoint
from vidpred.denoiser import Denoiser
from vidpred.diffusion import DiffusionConfig, NoiseSchedule, SamplingConfig, build_parameterization
from vidpred.errors import UserError
from vidpred.networks import NETWORKS, build_network
from vidpred.prediction import LatentCalibration, Predictor, load_predictor, predictor_from_checkpoint

CONFIG = {
    "network": {
        "kind": "unet",
        "channels": [16, 32],
        "blocks_per_level": 1,
        "spatial_attention_levels": [1],
        "temporal_attention_levels": [1],
        "head_dim": 16,
    },
    "autoencoder": {"kind": "mock"},
    "diffusion": {"parameterization": "v", "residual": True, "schedule": {"zero_terminal_snr": True}},
    "sampling": {"num_inference_steps": 3, "clip": {"kind": "auto", "margin": 0.2}},
    "conditioning": {"context_frames": 2},
    "data": {"kind": "shapes", "num_frames": 5},
}


def random_network(seed):
    network = build_network(NETWORKS.from_mapping(CONFIG["network"]), 3, 3)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():  # outputs begin at zero: an untouched network would test nothing
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def make_calibration():
    calibration = LatentCalibration(3)
    calibration.shift.copy_(torch.tensor([-0.9, 0.1, 0.3]))
    calibration.scale.copy_(torch.tensor([0.3, 0.5, 0.7]))
    calibration.low.copy_(torch.tensor([-1.0, -2.0, -3.0]))
    calibration.high.copy_(torch.tensor([3.0, 2.0, 1.0]))
    return calibration


def save(folder, config=CONFIG, step=100):
    tensors = {
        "model": random_network(0).state_dict(),
        "ema": random_network(1).state_dict(),
        "calibration": make_calibration().state_dict(),
    }
    return CheckpointStore(folder / "checkpoints").save(step, tensors, {"step": step}, config, {})


def made_by_hand(seed):
    diffusion = DiffusionConfig()
    diffusion.schedule = dataclasses.replace(diffusion.schedule, zero_terminal_snr=True)
    schedule = NoiseSchedule(diffusion.schedule)
    denoiser = Denoiser(random_network(seed), build_parameterization("v", schedule), residual=True)
    sampling = SamplingConfig(num_inference_steps=3)
    sampling.clip = dataclasses.replace(sampling.clip, kind="auto", margin=0.2)
    autoencoder = build_autoencoder(AUTOENCODERS.from_mapping({"kind": "mock"}))
    return Predictor(denoiser, autoencoder, make_calibration(), schedule, sampling, 2, 5)


FRAMES = torch.arange(2 * 3 * 3 * 16 * 16).mul(37).remainder(251).to(torch.uint8).reshape(2, 3, 3, 16, 16)


@pytest.mark.parametrize("ema", [True, False])
def test_it_predicts_what_the_trained_parts_predict(tmp_path, ema):
    checkpoint = save(tmp_path)
    expected = made_by_hand(seed=1 if ema else 0).predict(FRAMES, 4, seed=5)
    for path in (checkpoint, checkpoint.parent, tmp_path):
        loaded = load_predictor(path, "cpu", ema=ema)
        assert torch.equal(loaded.predict(FRAMES, 4, seed=5), expected)
    other = load_predictor(checkpoint, "cpu", ema=not ema)
    assert not torch.equal(other.predict(FRAMES, 4, seed=5), expected)
    assert not any(parameter.requires_grad for parameter in loaded.denoiser.parameters())
    assert not loaded.denoiser.training and loaded.device == torch.device("cpu")


def test_log_and_automatic_device(tmp_path):
    lines = []
    predictor = load_predictor(save(tmp_path), log=lines.append)
    assert predictor.predict(FRAMES, 1).device == FRAMES.device and len(lines) == 5


@pytest.mark.parametrize("section", sorted(CONFIG))
def test_a_missing_section_is_named(tmp_path, section):
    config = {name: content for name, content in CONFIG.items() if name != section}
    with pytest.raises(UserError, match=f"config.yaml: .*'{section}'"):
        load_predictor(save(tmp_path, config), "cpu")


@pytest.mark.parametrize(
    "section, change, message",
    [
        ("network", {"kind": "transformer"}, "network.kind: 'transformer'"),
        ("network", {"channels": [16, 48]}, "does not fit its config.yaml"),
        ("diffusion", {"parameterization": "eps"}, "zero_terminal_snr"),
        ("sampling", {"steps": 3}, "sampling.steps: unknown key"),
        ("data", {"num_frames": 2}, "context_frames"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(tmp_path, section, change, message):
    config = copy.deepcopy(CONFIG)
    config[section].update(change)
    with pytest.raises(UserError, match=message):
        load_predictor(save(tmp_path, config), "cpu")


def test_a_missing_group_or_checkpoint_is_named(tmp_path):
    checkpoint = read_checkpoint(save(tmp_path))
    del checkpoint.tensors["ema"]
    with pytest.raises(UserError, match="ema.safetensors"):
        predictor_from_checkpoint(checkpoint, "cpu")
    assert predictor_from_checkpoint(checkpoint, "cpu", ema=False).num_frames == 5
    with pytest.raises(UserError, match="nowhere"):
        load_predictor(tmp_path / "nowhere")
