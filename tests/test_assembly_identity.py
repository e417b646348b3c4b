"""What a resume compares: keys that a user wrote in part, and keys that are part of a loss."""

import json
from pathlib import Path

import pytest
from end_to_end_helper import tiny_config

from vidpred.assembly.identity import require_same_run
from vidpred.checkpoint_store import Checkpoint
from vidpred.configuration import load_config
from vidpred.errors import UserError

MIXTURE = ["--data.kind=mixture", "--data.num_frames=4", "--data.height=16", "--data.width=16",
           "--conditioning.context_frames=2"]  # fmt: skip
SHAPES = "--data.videos={kind: shapes, clip_frames: 6}"


def resume(before, now):
    saved = json.loads(json.dumps(before.resolved()))
    require_same_run(now, Checkpoint(Path("runs/tiny/checkpoints/step_00000001"), 1, {}, {}, saved, {}))


def mixture(*more, images=", min_score: 5", shapes=SHAPES):
    return load_config([*MIXTURE, shapes, f"--data.images={{kind: image_folder{images}}}", *more])


HALVES = '--conditioning.scheme={"prediction": 0.5, "random": 0.5}'


@pytest.mark.parametrize("before, now, line", [
    (HALVES, "--conditioning.scheme=random",
     "conditioning.scheme: is random, but the run in .* was started with {prediction: 0.5, random: 0.5}"),
    ("--conditioning.scheme=prediction", HALVES, "conditioning.scheme: is {prediction: 0.5, random: 0.5}"),
    ("--conditioning.scheme=random", '--conditioning.scheme={"random": 1}', None),
    (HALVES, '--conditioning.scheme={"random": 0.5, "prediction": 0.5}', None),
])  # fmt: skip
def test_a_scheme_is_compared_whole(tmp_path, before, now, line):
    before, now = (tiny_config(tmp_path, each) for each in (before, now))
    if line is None:
        return resume(before, now)
    with pytest.raises(UserError, match=f"^{line}"):
        resume(before, now)


@pytest.mark.parametrize("change, line", [
    (dict(images=", flip: true, crop: random"), "data.images.crop: is random, but the run in .* started with center"),
    (dict(images=", flip: true, min_score: 5"), "data.images.flip: is True, but"),
    (dict(shapes="--data.videos={kind: shapes}"), "data.videos.clip_frames: is"),
    (dict(shapes="--data.videos={kind: moving_digits}"), "data.videos"),
    (dict(more=["--data.flip=true"]), "data.flip: is True"),  # not the sources that have it
    (dict(more=["--data.width=32"]), "data.width: is 32"),
])  # fmt: skip
def test_the_sources_of_a_mixture_are_compared_with_what_was_left_out(change, line):
    change = dict(change)
    before, more = mixture(), change.pop("more", [])
    with pytest.raises(UserError, match=f"^{line}"):
        resume(before, mixture(*more, **change))


def test_places_and_means_of_a_mixture_may_change():
    moved = ", min_score: 5.0, root: /elsewhere, num_workers: 1, flip: false"
    means = ["--data.decode_timeout=7", "--data.num_workers=2", "--data.max_bad_fraction=0.5"]
    before, now = mixture(), mixture(*means, images=moved)
    assert before.resolved() != now.resolved(), "they are read"
    resume(before, now)


def test_the_net_of_a_loss_is_part_of_it():
    def vae(net, weight):
        return load_config(["--task=autoencoder", f"--evaluation.lpips_net={net}", f"--vae.lpips_weight={weight}"])

    with pytest.raises(UserError, match="^evaluation.lpips_net: is alex, but the run in .* was started with squeeze"):
        resume(vae("squeeze", 0.1), vae("alex", 0.1))
    resume(vae("squeeze", 0), vae("alex", 0))  # a figure, and no loss


def test_the_net_of_a_figure_may_change(tmp_path):
    before, now = tiny_config(tmp_path), tiny_config(tmp_path, "--evaluation.lpips_net=alex")
    assert before.evaluation.lpips_net != now.evaluation.lpips_net == "alex"
    resume(before, now)
