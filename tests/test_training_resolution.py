"""Progressive resolution: early steps see smaller frames, as a function of the step alone."""

import shutil

import pytest
import torch
from end_to_end_helper import assert_same, cache, losses, tiny_config, train_tiny  # noqa: F401  (cache: a fixture)

from vidpred.checkpoint_store import read_checkpoint
from vidpred.errors import UserError
from vidpred.networks import SpatioTemporalUNet
from vidpred.tensor_ops import shrink_frames
from vidpred.training import RunOutcome, TrainingConfig

pytestmark = pytest.mark.usefixtures("cache")
DOUBLED = ["--training.double_resolution_at=[2,4]", "--training.visualize_every_step=3"]


def test_each_pixel_is_the_rounded_mean_of_its_square():
    frames = torch.randint(0, 256, (2, 3, 3, 8, 12), dtype=torch.uint8)
    small = shrink_frames(frames, 4)
    means = frames.double().unflatten(3, (2, 4)).unflatten(5, (3, 4)).mean(dim=(4, 6))
    assert small.dtype == torch.uint8 and small.shape == (2, 3, 3, 2, 3)
    assert (small.double() - means).abs().max() <= 0.5
    assert shrink_frames(frames, 1) is frames


def test_the_size_is_a_function_of_the_step():
    config = TrainingConfig(num_steps=20, double_resolution_at=(3, 10))
    assert [config.shrinkage(step) for step in (0, 2, 3, 9, 10, 19)] == [4, 4, 2, 2, 1, 1]
    assert {TrainingConfig().shrinkage(step) for step in (0, 10**6)} == {1}


@pytest.mark.parametrize("steps", [(0,), (4, 3), (3, 3), (20,), (5, 25)])
def test_steps_that_do_not_ascend_within_the_run_are_refused(steps):
    with pytest.raises(UserError, match="training.double_resolution_at.*ascending steps, from 1 to below num_steps"):
        TrainingConfig(num_steps=20, double_resolution_at=steps)


def test_training_sees_small_frames_first_and_everything_else_full_ones(tmp_path, monkeypatch):
    seen, forward = [], SpatioTemporalUNet.forward

    def watched(self, x, *args, **kwargs):
        seen.append((self.training, tuple(x.shape[3:])))
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(SpatioTemporalUNet, "forward", watched)
    assert train_tiny(tmp_path, *DOUBLED) == RunOutcome("finished", 6)
    assert [size for training, size in seen if training] == [(2, 2)] * 2 + [(4, 4)] * 2 + [(8, 8)] * 2
    assert {size for training, size in seen if not training} == {(8, 8)}


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    (tmp_path / "whole").mkdir()
    train_tiny(tmp_path / "whole", *DOUBLED)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "tiny" / "checkpoints" / "step_00000006")
    train_tiny(tmp_path / "parts", *DOUBLED)
    one, two = (read_checkpoint(tmp_path / name / "tiny") for name in ("whole", "parts"))
    assert one.step == two.step == 6
    assert_same({name: dict(values) for name, values in one.tensors.items()},
                {name: dict(values) for name, values in two.tensors.items()})  # fmt: skip
    assert losses(tmp_path / "parts" / "tiny") == losses(tmp_path / "whole" / "tiny")


def test_frames_too_small_for_the_autoencoder_are_refused(tmp_path):
    line = (
        "training.double_resolution_at: data.height 16, divided by 16 in the first steps, is not a multiple of the "
        "autoencoder's down factor 2; give fewer steps, or a multiple of 32"
    )
    with pytest.raises(UserError) as caught:
        train_tiny(tmp_path, "--training.double_resolution_at=[1,2,3,4]")
    assert str(caught.value) == line
    assert tiny_config(tmp_path, "--training.double_resolution_at", "[1,2,3]").training.shrinkage(0) == 8
