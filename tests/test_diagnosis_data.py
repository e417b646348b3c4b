"""What clips show by themselves, on clips that are made for it."""

import pytest
import torch
from diagnosis_helper import CLIPS, FRAMES, SIZE, moving

from vidpred.diagnosis.data_measures import data_measures

def measured(clips, names=None):
    return data_measures(clips, names or [f"{number}.mp4" for number in range(len(clips))])


def test_sound_clips():
    found = measured(moving())
    assert found["data/still"] == found["data/twins"] == found["data/repetition"] == 0
    assert found["data/disorder"] < 0.1 and found["data/order_contrast"] > 0.2 and found["data/motion"] > 3


def test_constant_clips():
    assert measured(moving()[:, :1].expand(-1, FRAMES, -1, -1, -1))["data/still"] == 1


@pytest.mark.parametrize("held", [2, 3])
def test_frames_that_are_shown_several_times(held):
    clips = moving().repeat_interleave(held, 1)[:, 1 : FRAMES + 1]
    found = measured(clips)
    assert (found["data/repetition_period"], found["data/repetition"]) == (held, 1)


def test_repetition_is_seen_in_short_windows_of_any_phase():
    long = moving().repeat_interleave(3, 1)
    clips = torch.stack([clip[number % 4 : number % 4 + 5] for number, clip in enumerate(long)])
    found = measured(clips)
    assert (found["data/repetition_period"], found["data/repetition"]) == (3, 1)


def test_sparse_motion_repeats_nothing():
    """One new frame in most clips, a few in some, and a hard cut in slow motion."""
    clips = moving()
    for number, clip in enumerate(clips):
        clip[1 + number % 6 :] = clip[-1]
        clip[: 1 + number % 6] = clip[0]
    assert measured(clips)["data/repetition"] == 0
    slow = moving(speed=0.4)
    slow[:, 4:] = 255 - slow[:, 4:]
    assert measured(slow)["data/repetition"] == 0


def test_few_clips_say_nothing_of_repetition():
    assert measured(moving(clips=4).repeat_interleave(3, 1)[:, :FRAMES])["data/repetition"] == 0


def test_clips_that_stop_now_and_then_repeat_nothing():
    generator = torch.Generator().manual_seed(1)
    clips = moving()
    for clip in clips:
        place = int(torch.randint(1, FRAMES, (), generator=generator))
        clip[place] = clip[place - 1]
    assert measured(clips)["data/repetition"] < 0.5


def test_one_clip_under_many_names():
    one = moving(clips=1).expand(CLIPS, -1, -1, -1, -1)
    assert measured(one)["data/twins"] == 1
    assert measured(one, ["same.mp4"] * CLIPS)["data/twins"] == 0
    windows = [f"same.mp4 (window {number} of {CLIPS})" for number in range(CLIPS)]
    assert measured(one, windows)["data/twins"] == 0


def test_shuffled_frames():
    generator = torch.Generator().manual_seed(2)
    clips = torch.stack([clip[torch.randperm(FRAMES, generator=generator)] for clip in moving()])
    found = measured(clips)
    assert found["data/disorder"] > 0.8 and found["data/order_contrast"] > 0.2


def test_noise_has_no_order_to_lose():
    clips = torch.randint(0, 256, (CLIPS, FRAMES, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(3))
    assert measured(clips.to(torch.uint8))["data/order_contrast"] < 0.1


def test_there_and_back_is_in_order():
    clips = moving(speed=3.0)
    back = torch.cat([clips[:, :5], clips[:, 1:4].flip(1)], dim=1)
    assert measured(back)["data/disorder"] < 0.5


@pytest.mark.parametrize("frames", [1, 2])
def test_clips_of_few_frames(frames):
    found = measured(moving()[:, :frames])
    assert found["data/twins"] == 0 and ("data/still" in found) == (frames > 1)
    assert found.get("data/disorder", 0) == found.get("data/repetition", 0) == 0
