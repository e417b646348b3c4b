"""Consistency and diversity in the training step: closed forms of a task, and a run that logs them apart."""

import pytest
import torch
from end_to_end_helper import cache, losses, metrics, tiny_config, train_tiny  # noqa: F401  (cache: a fixture)
from test_training_video_prediction import (  # noqa: F401
    CONTEXT,
    SEED,
    TinyNetwork,
    first_batch,
    fresh_ranges,
    make_task,
)

from vidpred.errors import UserError
from vidpred.training.clip_levels import LEVEL_BIN_NAMES
from vidpred.training.extra_losses import ExtraLosses

pytestmark = pytest.mark.usefixtures("cache")


def loss_of(tmp_path, batch=None, rows=None, **weights):
    weights = {"consistency_weight": 0, "diversity_weight": 0, **weights}
    task = make_task(tmp_path, extra_losses=ExtraLosses(**weights, seed=SEED))
    batch = batch or first_batch(task, step=3)
    found = task.loss(task.network, batch if rows is None else batch.first(rows), 3)
    terms = dict(zip(found.averages.names, (found.averages.sums / found.averages.weights).tolist()))
    return found.loss.item(), {name: value for name, value in terms.items() if name not in LEVEL_BIN_NAMES}


def test_off_is_the_denoising_loss_alone(tmp_path):
    task = make_task(tmp_path)
    batch = first_batch(task, step=3)
    loss, terms = loss_of(tmp_path)
    assert terms == {} and loss == task.loss(task.network, batch, 3).loss.item()


def test_the_loss_is_the_weighted_sum_of_terms_that_are_logged_apart(tmp_path):
    alone, _ = loss_of(tmp_path)
    loss, terms = loss_of(tmp_path, consistency_weight=0.5, diversity_weight=0.1)
    assert list(terms) == ["train/loss_denoising", "train/loss_consistency", "train/loss_diversity"]
    denoising, consistency, diversity = terms.values()
    assert denoising == pytest.approx(alone, rel=1e-6) and consistency > 0 and 0 <= diversity <= 1
    assert loss == pytest.approx(denoising + 0.5 * consistency + 0.1 * diversity, rel=1e-6)


def test_a_part_of_the_batch_has_the_same_terms(tmp_path):
    """So that they do not depend on the number of processes."""
    task = make_task(tmp_path)
    batch = first_batch(task, step=3)  # draws 12 to 15
    both = dict(consistency_weight=1.0, diversity_weight=1.0)
    _, whole = loss_of(tmp_path, batch, **both)
    _, first = loss_of(tmp_path, batch, rows=2, **both)
    rest = type(batch)(batch.frames[2:], batch.roles[2:], batch.frame_times[2:], batch.draws[2:], batch.names[2:])
    _, second = loss_of(tmp_path, rest, **both)
    for name in whole:
        assert whole[name] == pytest.approx((first[name] + second[name]) / 2, rel=1e-5)


def test_a_network_that_knows_the_answer_is_consistent_and_diverse(tmp_path):
    task = make_task(tmp_path, extra_losses=ExtraLosses(1.0, 1.0, SEED), parameterization="x0", residual=False)
    batch = first_batch(task, step=3)
    latents = task._encode(batch.frames)
    answer = torch.nn.Parameter(torch.ones(()))
    found = task.loss(lambda x, *_: answer * latents, batch, 3)
    assert found.loss.item() == pytest.approx(0, abs=1e-10)
    pairs = [(latents[k] != latents[k + 1]).any().item() for k in (0, 2)]
    assert any(pairs)  # a pair of equal clips asks for nothing
    collapsed = task.loss(lambda x, *_: answer * latents.mean(0, keepdim=True).expand_as(latents), batch, 3)
    names = collapsed.averages.names
    mean = dict(zip(names, (collapsed.averages.sums / collapsed.averages.weights).tolist()))
    assert mean["train/loss_consistency"] == 0  # it says the same at all levels
    assert mean["train/loss_diversity"] == sum(pairs) / 2


def test_a_run_logs_them_and_goes_on_as_without(tmp_path):
    more = ["--diffusion.consistency_weight=0.5", "--diffusion.diversity_weight=0.01"]
    (tmp_path / "on").mkdir()
    train_tiny(tmp_path / "on", *more)
    rows = [row for row in metrics(tmp_path / "on" / "tiny") if "train/loss" in row]
    assert len(rows) == 6
    for row in rows:
        whole = row["train/loss_denoising"] + 0.5 * row["train/loss_consistency"] + 0.01 * row["train/loss_diversity"]
        assert row["train/loss"] == pytest.approx(whole, rel=1e-5)
    (tmp_path / "off").mkdir()
    train_tiny(tmp_path / "off")
    assert losses(tmp_path / "off" / "tiny")[0] == pytest.approx(rows[0]["train/loss_denoising"], rel=1e-6)
    assert "train/loss_denoising" not in metrics(tmp_path / "off" / "tiny")[0]


@pytest.mark.parametrize("scheme", ["random", "diffusion_forcing"])
def test_other_roles_of_frames_too(tmp_path, scheme):
    train_tiny(
        tmp_path, f"--conditioning.scheme={scheme}", "--diffusion.consistency_weight=1",
        "--diffusion.diversity_weight=1", "--conditioning.history_dropout=0.3", "--conditioning.context_noise=0.2",
        "--training.num_steps=3",
    )  # fmt: skip
    assert all(value == value for value in losses(tmp_path / "tiny"))


def test_what_is_refused(tmp_path):
    for key in ("consistency_weight", "diversity_weight"):
        with pytest.raises(UserError, match=f"diffusion.{key}: -1"):
            tiny_config(tmp_path, f"--diffusion.{key}=-1")
    with pytest.raises(UserError, match="diffusion.diversity_weight: compares clips in pairs, and 1 go through"):
        train_tiny(tmp_path, "--diffusion.diversity_weight=0.1", "--training.accumulation=8")
