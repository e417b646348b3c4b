"""Pushed shapes: every step is the push, walls turn it round, and the picture shows the shape where it is."""

import numpy as np
import pytest
import torch

from vidpred.data import PushedShapesConfig, build_dataset, pushed_scene
from vidpred.errors import UserError


def config(**changes):
    options = dict(num_frames=8, num_clips=6, num_val_clips=3, num_test_clips=2)
    return PushedShapesConfig(**{**options, **changes})


def test_every_step_is_the_push_and_stays_inside():
    turned = 0
    for index in range(40):
        scene = pushed_scene(config(num_frames=60), "train", index)
        steps = np.diff(scene.centres, axis=0)[:, ::-1]  # (dx, dy)
        np.testing.assert_allclose(scene.pushes[1:], steps, atol=1e-5)
        assert (scene.pushes[0] == 0).all() and np.abs(scene.pushes).max() <= 3
        radius = scene.shape.radius
        assert scene.centres.min() >= radius and scene.centres.max() <= 32 - radius
        turned += (np.abs(scene.centres - 16) > 16 - radius - 3).sum()
    assert turned > 100  # it was at the walls


def test_pushes_cannot_be_guessed_from_those_before():
    pushes = np.concatenate([pushed_scene(config(num_frames=30), "train", i).pushes[1:] for i in range(100)])
    assert np.abs(np.corrcoef(pushes[:-1, 0], pushes[1:, 0])[0, 1]) < 0.3
    assert np.abs(pushes.mean(0)).max() < 0.15 and pushes.std(0) == pytest.approx(3 / np.sqrt(3), rel=0.05)


def test_the_shape_is_drawn_at_its_centre():
    for index in range(6):
        scene = pushed_scene(config(), "val", index)
        pixels = scene.pixels(32, 32, np.arange(8)).astype(float) / 255
        weight = (pixels - np.rint(scene.background * 255) / 255).sum(-1)
        places = np.arange(32) + 0.5
        mass = weight.sum((1, 2))
        centroid = np.stack([(weight.sum(2) * places).sum(1), (weight.sum(1) * places).sum(1)], 1) / mass[:, None]
        assert np.abs(centroid - scene.centres).max() < 0.3, scene.shape.outline


def test_clips_come_with_their_conditions():
    dataset = build_dataset(config(), "val", seed=5)
    clip = dataset.clip(1, None)
    assert len(dataset) == 3 and clip.frames.shape == (8, 3, 32, 32) and clip.frames.dtype == torch.uint8
    scene = pushed_scene(dataset.config, "val", 1)
    assert torch.equal(clip.conditions.actions, torch.from_numpy(scene.pushes.copy()))
    assert clip.conditions.class_name == scene.shape.outline and clip.conditions.text == f"a {scene.shape.outline}"
    assert dataset.class_names == ("disc", "square", "triangle") and dataset.has_text
    assert dataset.action_scale == pytest.approx((3 / 3**0.5,) * 2, rel=1e-5)
    again = build_dataset(config(), "val", seed=6).clip(1, np.random.default_rng(0))
    assert torch.equal(again.frames, clip.frames)
    others = [build_dataset(config(**own), split, 0).clip(1, None).frames for own, split in (
        ({}, "train"), ({}, "test"), ({"render_seed": 1}, "val"),
    )]  # fmt: skip
    assert not any(torch.equal(other, clip.frames) for other in others)


def test_pushes_of_skipped_frames_are_added_up_and_long_clips_begin_like_short_ones():
    strided = build_dataset(config(num_frames=3, frame_stride=3), "val", 0).clip(0, None)
    long = build_dataset(config(num_frames=7), "val", 0).clip(0, None)
    assert torch.equal(strided.frames, long.frames[::3])
    pushes = long.conditions.actions
    summed = torch.stack([pushes[0], pushes[1:4].sum(0), pushes[4:7].sum(0)])
    torch.testing.assert_close(strided.conditions.actions, summed)
    assert torch.equal(build_dataset(config(num_frames=4), "val", 0).clip(0, None).frames, long.frames[:4])


@pytest.mark.parametrize("changes, key", [
    (dict(flip=True), "flip"), (dict(fps=5.0), "fps"), (dict(max_frame_stride=2), "max_frame_stride"),
    (dict(max_push=0.0), "max_push"), (dict(max_push=9.5), "max_push"), (dict(radius=(0.3, 0.2)), "radius"),
    (dict(num_val_clips=0), "num_val_clips"), (dict(crop="random"), "crop"),
])  # fmt: skip
def test_impossible_settings_are_named(changes, key):
    with pytest.raises(UserError, match=f"^data.{key}: "):
        config(**changes)
