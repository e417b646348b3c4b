"""The second network of the loop: its start, its own optimizer, resume, accumulation, and steps that are skipped."""

import pytest
import torch
from test_training_trainer import assert_same, settings
from torch import nn
from training_tiny import TinyTask, train_tiny

from vidpred import range_checks
from vidpred.checkpoint_store import read_checkpoint
from vidpred.training.averages import Averages
from vidpred.training.task import TaskLoss


@pytest.fixture(autouse=True)
def fresh_ranges():
    range_checks.reset()
    yield
    range_checks.reset()


class Rivalry(TinyTask):
    """The discriminator learns the target from the network's output, from step `start` (0-based) on."""

    def __init__(self, accumulation=1, start=4, nan_at=None):
        super().__init__(8, accumulation)
        self.discriminator = nn.Linear(3, 3)
        self.start, self.nan_at = start, nan_at

    def loss(self, network, batch, step):
        part = super().loss(network, batch, step)
        if step < self.start:
            return part
        made = self.network(batch.x).detach()

        def loss(discriminator):
            per_sample = (discriminator(made) - batch.y).square().mean(1)
            averages = Averages(("train/rival",), per_sample.detach().sum()[None], torch.tensor([float(len(made))]))
            return TaskLoss(per_sample.mean() * (torch.nan if step == self.nan_at else 1), averages)

        return TaskLoss(part.loss, part.averages, loss)


def weights(folder, group="discriminator"):
    return read_checkpoint(folder).tensors[group]


def test_the_discriminator_is_updated_from_its_start_on(tmp_path):
    """By AdamW with the schedule's rate, as a plain loop would."""
    task = Rivalry()
    before = {name: value.clone() for name, value in task.discriminator.state_dict().items()}
    trainer, _ = train_tiny(tmp_path, settings(num_steps=4, checkpoint_every_step=4), task)
    assert_same(weights(tmp_path), before)
    assert read_checkpoint(tmp_path).state["discriminator_optimizer"]["state"] == {}
    train_tiny(tmp_path, settings(num_steps=20), Rivalry())
    state = read_checkpoint(tmp_path).state["discriminator_optimizer"]["state"]
    assert {entry["step"].item() for entry in state.values()} == {16.0}
    assert not torch.equal(weights(tmp_path)["weight"], before["weight"])


def test_it_does_not_touch_the_network(tmp_path):
    train_tiny(tmp_path / "with", settings(), Rivalry())
    train_tiny(tmp_path / "without", settings(), TinyTask(8))
    for group in ("model", "ema"):
        assert_same(weights(tmp_path / "with", group), weights(tmp_path / "without", group))


def test_resume_is_bit_exact(tmp_path):
    config = {"accumulation": 2, "lr_schedule": "constant"}
    train_tiny(tmp_path / "whole", settings(**config), Rivalry(2))
    train_tiny(tmp_path / "parts", settings(num_steps=10, **config), Rivalry(2))
    train_tiny(tmp_path / "parts", settings(**config), Rivalry(2))
    whole, parts = read_checkpoint(tmp_path / "whole"), read_checkpoint(tmp_path / "parts")
    assert_same(whole.tensors, parts.tensors)
    assert_same(whole.state, parts.state)


def test_accumulation_does_not_change_the_step(tmp_path):
    train_tiny(tmp_path / "one", settings(checkpoint_every_step=20), Rivalry())
    train_tiny(tmp_path / "four", settings(checkpoint_every_step=20, accumulation=4), Rivalry(4))
    torch.testing.assert_close(weights(tmp_path / "one"), weights(tmp_path / "four"), rtol=1e-4, atol=1e-5)


def test_where_it_is_not_finite_neither_is_updated(tmp_path, caplog):
    train_tiny(tmp_path, settings(), Rivalry(nan_at=6))
    assert "step 7: loss" in caplog.text and "gradient norm nan: not finite, update skipped" in caplog.text
    state = read_checkpoint(tmp_path).state
    assert {entry["step"].item() for entry in state["optimizer"]["state"].values()} == {19.0}
    assert {entry["step"].item() for entry in state["discriminator_optimizer"]["state"].values()} == {15.0}


def test_the_export_comes_with_every_checkpoint(tmp_path):
    task = TinyTask(8)
    train_tiny(tmp_path, settings(), task)
    assert task.exported == [80, 160]
