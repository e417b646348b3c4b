"""Whole runs over schemes, objectives, samplers and guidance: each trains, saves, and is rebuilt to the same video."""

import pytest
import torch
from end_to_end_helper import CONTEXT, SIZE, cache, losses, train_tiny  # noqa: F401  (cache is a fixture)

from vidpred.prediction import RolloutOptions, load_predictor
from vidpred.training import RunOutcome

pytestmark = pytest.mark.usefixtures("cache")
SHORT = ["--training.num_steps=2", "--training.checkpoint_every_step=2", "--training.validate_every_step=2"]

SETTINGS = {
    "random, moved": ["--conditioning.scheme=random", "--diffusion.motion_radius=2"],
    "mixture with dropped history": [
        '--conditioning.scheme={"prediction": 0.5, "unconditional": 0.25, "random": 0.25}',
        "--diffusion.motion_radius=1", "--conditioning.history_dropout=0.5", "--conditioning.min_context_frames=0",
        "--sampling.guidance.kind=vanilla", "--sampling.guidance.scale=2", "--sampling.guidance.rescale=0.5",
    ],
    "diffusion forcing": [
        "--conditioning.scheme=diffusion_forcing", "--sampling.sampler=euler", "--diffusion.motion_radius=2",
    ],
    "context noise": [
        "--diffusion.motion_radius=2", "--conditioning.context_noise=0.2", "--sampling.context_noise=0.1",
        "--conditioning.history_dropout=0.2",
        "--sampling.guidance.kind=fractional", "--sampling.guidance.scale=1.5", "--sampling.sampler=dpmpp_2m",
    ],
    "rectified flow": [
        "--diffusion.schedule.kind=flow", "--diffusion.parameterization=flow", "--diffusion.schedule.shift=2",
        "--diffusion.levels.kind=logit_normal", "--sampling.sampler=heun",
    ],
    "edm": [
        "--diffusion.schedule.kind=edm", "--diffusion.parameterization=edm", "--diffusion.weight.kind=edm",
        "--diffusion.levels.kind=log_normal", "--sampling.spacing=karras", "--diffusion.sigma_data=0.5",
        "--diffusion.motion_radius=2",
    ],
    "v, min-SNR, UniPC": [
        "--diffusion.parameterization=v", "--diffusion.weight.kind=min_snr", "--sampling.sampler=unipc",
    ],
    "eps, sigmoid, DPM++ SDE": [
        "--diffusion.parameterization=eps", "--diffusion.weight.kind=sigmoid", "--sampling.sampler=dpmpp_sde",
        "--sampling.guidance.kind=temporal", "--sampling.guidance.scale=1.2", "--diffusion.residual=false",
        "--conditioning.history_dropout=0.2",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_of_two_steps_and_its_predictor(name, tmp_path):
    assert train_tiny(tmp_path, *SHORT, *SETTINGS[name]) == RunOutcome("finished", 2)
    assert len(losses(tmp_path / "tiny")) == 2
    frames = torch.randint(0, 256, (CONTEXT, 3, SIZE, SIZE), dtype=torch.uint8)
    first, second = (load_predictor(tmp_path / "tiny", "cpu").predict(frames, 5) for _ in range(2))
    assert first.shape == (5, 3, SIZE, SIZE) and torch.equal(first, second)


def test_a_pyramid_rolls_out_with_a_model_of_diffusion_forcing(tmp_path):
    train_tiny(tmp_path, *SHORT, *SETTINGS["diffusion forcing"])
    predictor = load_predictor(tmp_path / "tiny", "cpu")
    frames = torch.randint(0, 256, (CONTEXT, 3, SIZE, SIZE), dtype=torch.uint8)
    pieces = list(predictor.rollout(frames, 4, options=RolloutOptions("pyramid"), trajectories=2))
    assert [tuple(piece.shape) for piece in pieces] == [(2, 1, 3, SIZE, SIZE)] * 4
