"""Conditions through the predictor: each window sees its own actions, class and text stay, what guidance costs."""

import pytest
import torch
from test_prediction_predictor import CONTEXT, HORIZON, flat_clip

from vidpred.autoencoders import AUTOENCODERS, build_autoencoder
from vidpred.conditioning import ConditionConfig, Conditioner
from vidpred.conditions import ConditionBatch
from vidpred.diffusion import ClipBoundConfig, GuidanceConfig, NoiseSchedule, SamplingConfig, ScheduleConfig
from vidpred.errors import UserError
from vidpred.prediction import LatentCalibration, Predictor, RolloutOptions

CONFIG = ConditionConfig(kinds=("class", "actions"), class_names=("cat", "dog"), action_scale=(1.0,))


class Told:
    """Keeps what it was told; its estimate is the action of the frame, a hundredth of it."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, level, given, frame_times, condition):
        self.calls.append(condition)
        known = condition.actions_known[:, None, None] & (condition.classes >= 0)[:, None, None]
        return torch.where(known, condition.actions / 100, 0.0)[..., None, None].expand_as(x)


def make(denoiser=None, config=CONFIG, **guidance):
    autoencoder = build_autoencoder(AUTOENCODERS.from_mapping({"kind": "pixel_unshuffle", "down_factor": 1}))
    sampling = SamplingConfig(
        num_inference_steps=2, clip=ClipBoundConfig(kind="none"), guidance=GuidanceConfig(**guidance)
    )
    return Predictor(
        denoiser or Told(), autoencoder, LatentCalibration(autoencoder.latent_channels),
        NoiseSchedule(ScheduleConfig(zero_terminal_snr=True)), sampling, CONTEXT, HORIZON,
        conditioner=config and Conditioner(config),
    )  # fmt: skip


def asked(frames, rows=2, classes=True):
    """Actions that say which frame they belong to: 1, 2, 3, ... and 100 more in the second row."""
    actions = 1.0 + torch.arange(float(frames))[:, None] + 100 * torch.arange(rows)[:, None, None]
    return ConditionBatch(["dog", "cat"][:rows] if classes else None, None, actions)


def windows(predictor, num_frames, given=CONTEXT, **options):
    """Actions of the first row in each window, in the order of the windows."""
    condition = asked(given + num_frames)
    predictor.predict(flat_clip(frames=given), num_frames, condition=condition, options=RolloutOptions(**options))
    calls = predictor.denoiser.calls
    assert all(call.classes.tolist() == [1, 0] and call.actions_known.all() for call in calls)
    seen = [call.actions[0, :, 0].tolist() for call in calls]
    return [window for window, before in zip(seen, [None, *seen]) if window != before]


def test_sliding_windows_see_their_own_actions():
    assert windows(make(), 8) == [[1, 2, 3, 4, 5], [4, 5, 6, 7, 8], [7, 8, 9, 10, 10]]  # past the end the last goes on


def test_frames_before_the_context_are_passed_over_with_their_actions():
    assert windows(make(), 3, given=4) == [[3, 4, 5, 6, 7]]


def test_a_shorter_overlap_keeps_count():
    assert windows(make(), 7, overlap=1) == [[1, 2, 3, 4, 5], [5, 6, 7, 8, 9]]


def test_keyframes_have_the_actions_of_the_frames_that_they_skip():
    seen = windows(make(), 6, scheme="keyframes", stride=2)
    assert seen[0] == [1, 2, 3 + 4, 5 + 6, 7 + 8]
    # Before the keyframe at frame 3 and each after it: what is known, the frames between, the keyframe.
    assert seen[1] == [1, 2, 3, 4] and seen[2] == [3, 4, 5, 6] and seen[3] == [5, 6, 7, 8]


def test_a_pyramid_sees_the_actions_of_its_frames():
    assert windows(make(), 3, scheme="pyramid") == [[1, 2, 3, 4, 5], [2, 3, 4, 5, 5], [3, 4, 5, 5, 5]]
    assert windows(make(), 2, scheme="pyramid", overlap=1)[0] == [2, 3, 4, 4, 4]


def test_predictions_follow_the_actions():
    """The stand-in paints each frame with its action, and a decoded frame shows it."""
    frames = flat_clip(batch=1)[:, :CONTEXT]
    told = asked(CONTEXT + 6, rows=1)
    predicted = make().predict(frames, 6, condition=told)[0, :, 0, 0, 0].float()
    steps = predicted.diff()
    assert steps.min() > 0 and (steps - steps.mean()).abs().max() <= 1
    ways = [make().predict(frames, 6, condition=told, options=RolloutOptions(overlap=n))[0] for n in (1, 2)]
    assert torch.equal(*ways)


def test_trajectories_share_their_clips_condition():
    predictor = make()
    predictor.predict(flat_clip(frames=2), 3, condition=asked(5), trajectories=3)
    assert predictor.denoiser.calls[0].classes.tolist() == [1, 1, 1, 0, 0, 0]
    assert predictor.denoiser.calls[0].actions[:, 0, 0].tolist() == [1, 1, 1, 101, 101, 101]


def test_fill_and_generate_and_longer_latents_take_conditions():
    predictor = make()
    given = torch.tensor([True, False, True])
    predictor.fill(flat_clip(frames=3), given, condition=asked(3))
    assert predictor.denoiser.calls[0].actions[0, :, 0].tolist() == [1, 2, 3]
    clips = predictor.generate(8, 16, torch.tensor([4, 9]), condition=asked(HORIZON))
    assert clips.shape == (2, HORIZON, 3, 8, 16) and clips.dtype == torch.uint8
    assert predictor.denoiser.calls[-1].classes.tolist() == [1, 0]
    context = predictor.encode(flat_clip(frames=2))
    ahead = predictor.continue_latents(context, 4, torch.arange(2), 0, condition=asked(6))
    assert ahead.shape[1] == 4 and predictor.denoiser.calls[-1].actions[0, :, 0].tolist() == [4, 5, 6, 6, 6]


def test_generated_clips_depend_on_their_draw_alone():
    class Noise:
        def __call__(self, x, level, given, frame_times, condition):
            return 0.5 * torch.tanh(x)

    predictor = make(Noise())
    both = predictor.generate(8, 8, torch.tensor([4, 9]))
    assert torch.equal(predictor.generate(8, 8, torch.tensor([9]))[0], both[1])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(predictor.generate(8, 8, torch.tensor([9]), 1)[0], both[1])


@pytest.mark.parametrize("scale, factor", [(1.0, 1), (3.0, 2)])
def test_guidance_asks_twice_only_where_it_acts(scale, factor):
    predictor = make(condition_scale=scale)
    predictor.predict(flat_clip(frames=2), 3, condition=asked(5))
    assert {len(call.classes) for call in predictor.denoiser.calls} == {2 * factor}
    predictor = make(condition_scale=scale)
    predictor.predict(flat_clip(frames=2), 3)  # nothing is asked for: nothing to follow
    assert {len(call.classes) for call in predictor.denoiser.calls} == {2}
    assert all(call.classes.tolist() == [-1, -1] and not call.actions_known.any() for call in predictor.denoiser.calls)


def test_what_is_asked_must_fit_the_model():
    with pytest.raises(UserError, match="class: the model takes no condition"):
        make(config=None).predict(flat_clip(frames=2), 3, condition=asked(5))
    with pytest.raises(UserError, match="text: the model takes class and actions, and no text"):
        make().predict(flat_clip(frames=2), 3, condition=ConditionBatch(text=["a", "b"]))
    with pytest.raises(UserError, match=r"actions: expected \(2, 5, 1\)"):
        make().predict(flat_clip(frames=2), 3, condition=asked(4))


def test_guidance_needs_a_model_that_knows_its_null_condition():
    predictor = make(condition_scale=1.0)
    assert predictor.guided(3.0).guidance.condition_scale == 3 and predictor.sampling.guidance.condition_scale == 1
    never = make(config=ConditionConfig(kinds=("class",), class_names=("cat", "dog"), dropout=0.0))
    assert never.guided(1.0) == never.sampling
    with pytest.raises(UserError, match="^guidance 3: the model was trained with condition.dropout 0"):
        never.guided(3.0)
    with pytest.raises(UserError, match="^guidance 3: the model takes no condition"):
        make(config=None).guided(3.0)
