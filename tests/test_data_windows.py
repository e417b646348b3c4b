"""Choosing the frames of a clip, the selection of windows, crops and flips."""

import numpy as np
import pytest
import torch

from vidpred.data import ClipConfig, ClipError
from vidpred.data.selection import ClipRejected, allowed_starts, disjoint_starts, starts_by_stride
from vidpred.data.sources import Source, window, window_starts
from vidpred.data.transforms import crop_window, decoding_size, transform
from vidpred.errors import UserError


def source(frames=20, fps=10.0, **changes):
    return Source(name="x", frames=frames, height=8, width=8, fps=fps, **changes)


def test_windows_by_stride():
    config = ClipConfig(num_frames=4, frame_stride=3)
    assert window_starts(source(), config).tolist() == list(range(11))
    indices, times = window(source(), config, 10)
    assert indices.tolist() == [10, 13, 16, 19] and times.tolist() == [0, 1, 2, 3]
    with pytest.raises(ClipError, match="too short: 9 frames, a clip of 4 at stride 3 needs 10"):
        window_starts(source(9), config)


def test_windows_by_rate_take_the_nearest_frames_and_say_their_times():
    config = ClipConfig(num_frames=4, fps=4.0)
    indices, times = window(source(fps=10.0), config, 2)
    assert (
        indices.tolist() == [2, 4, 7, 9]
        or indices.tolist() == [2, 5, 7, 10]
        or indices.tolist() == [2, 4, 7, 10]
    )
    assert times == pytest.approx((indices - 2) / 10 * 4)
    assert np.abs(times - np.arange(4)).max() <= 0.2 + 1e-6
    assert window_starts(source(fps=10.0), config).tolist() == list(range(13))


def test_windows_by_rate_of_irregular_sources_go_by_time():
    irregular = source(6, fps=5 / 2.0, times=(0.0, 0.1, 0.2, 1.0, 1.1, 2.0))
    config = ClipConfig(num_frames=3, fps=1.0)
    indices, times = window(irregular, config, 0)
    assert indices.tolist() == [0, 3, 5] and times == pytest.approx([0.0, 1.0, 2.0])
    assert window_starts(irregular, config).tolist() == [0, 1, 2]


def test_repeated_frames_have_the_times_at_which_they_were_wanted():
    pausing = source(5, fps=1.0, times=(0.0, 1.0, 4.0, 5.0, 6.1))
    indices, times = window(pausing, ClipConfig(num_frames=7, fps=1.0), 0)
    assert indices.tolist() == [0, 1, 1, 2, 2, 3, 4]
    assert times == pytest.approx([0, 1, 2, 3, 4, 5, 6.1])


def test_disjoint_windows_have_no_frame_in_common():
    assert disjoint_starts(source(20), ClipConfig(num_frames=4)).tolist() == [0, 4, 8, 12, 16]
    assert disjoint_starts(source(20), ClipConfig(num_frames=4, frame_stride=3)).tolist() == [0, 10]
    assert disjoint_starts(source(20, fps=10.0), ClipConfig(num_frames=4, fps=5.0)).tolist() == [0, 7]
    cut = source(20, changes=tuple([1.0] * 5 + [90.0] + [1.0] * 13))
    assert disjoint_starts(cut, ClipConfig(num_frames=4, max_cut=30)).tolist() == [0, 6, 10, 14]


def test_a_rate_above_the_sources_is_refused():
    with pytest.raises(ClipError, match="10 frames per second are fewer than data.fps 24"):
        window_starts(source(fps=10.0), ClipConfig(num_frames=2, fps=24.0))


def test_windows_of_another_stride_say_so_by_their_times():
    config = ClipConfig(num_frames=4, frame_stride=2, max_frame_stride=5)
    indices, times = window(source(), config, 1, stride=5)
    assert indices.tolist() == [1, 6, 11, 16] and times.tolist() == [0, 2.5, 5, 7.5]
    assert times.dtype == np.float32 and window_starts(source(), config, 5).tolist() == list(range(5))
    indices, times = window(source(), config, 1)
    assert indices.tolist() == [1, 3, 5, 7] and times.tolist() == [0, 1, 2, 3] and times.dtype == np.float32
    assert disjoint_starts(source(), config).tolist() == [0, 7]  # fixed clips keep frame_stride


def test_strides_are_those_that_the_source_is_long_enough_for():
    config = ClipConfig(num_frames=4, frame_stride=2, max_frame_stride=6)

    def counts(frames):
        return {stride: len(starts) for stride, starts in starts_by_stride(source(frames), config).items()}

    assert counts(20) == {2: 14, 3: 11, 4: 8, 5: 5, 6: 2}
    assert counts(14) == {2: 8, 3: 5, 4: 2} and counts(7) == {2: 1}
    with pytest.raises(ClipError, match="too short: 6 frames, a clip of 4 at stride 2 needs 7"):
        counts(6)
    assert list(starts_by_stride(source(), ClipConfig(num_frames=4, frame_stride=2))) == [2]
    assert list(starts_by_stride(source(), ClipConfig(num_frames=4, fps=5.0))) == [1]


def test_selection_is_of_the_frames_that_a_stride_takes():
    cut = source(20, changes=tuple([5.0] * 6 + [90.0] + [5.0] * 12))  # between frames 6 and 7
    found = starts_by_stride(cut, ClipConfig(num_frames=4, max_frame_stride=6, max_cut=30))
    assert {stride: starts.tolist() for stride, starts in found.items()} == {
        1: [*range(4), *range(7, 17)],
        2: [0, *range(7, 14)],
        3: [*range(7, 11)],
        4: [7],
    }
    late = source(20, changes=tuple([0.0] * 9 + [8.0] * 10))  # still until frame 9
    found = starts_by_stride(late, ClipConfig(num_frames=4, max_frame_stride=6, min_motion=4))
    firsts = {stride: int(starts[0]) for stride, starts in found.items()}
    assert firsts == {1: 8, 2: 6, 3: 5, 4: 3, 5: 2, 6: 0}
    with pytest.raises(ClipRejected, match="no window moves"):
        starts_by_stride(late, ClipConfig(num_frames=4, max_frame_stride=6, min_motion=9))


def test_random_changes_are_selected_as_their_definition_says():
    changes = np.random.default_rng(0).exponential(4, 29)
    config = ClipConfig(num_frames=3, max_frame_stride=9, min_motion=3.5, max_cut=13)
    expected = {}
    for stride in range(1, 10):
        spans = {start: changes[start : start + 2 * stride] for start in range(30 - 2 * stride)}
        kept = [start for start, span in spans.items() if span.max() <= 13 and span.mean() >= 3.5]
        expected |= {stride: kept} if kept else {}
    found = starts_by_stride(source(30, changes=tuple(changes)), config)
    assert {stride: starts.tolist() for stride, starts in found.items()} == expected and len(expected) > 3


def test_one_frame_clips():
    assert window_starts(source(1), ClipConfig(num_frames=1)).tolist() == [0]
    assert window(source(1), ClipConfig(num_frames=1, fps=5.0), 0)[0].tolist() == [0]


def test_selection_rejects_cuts_and_stillness():
    changes = tuple([5.0] * 6 + [90.0] + [0.1] * 12)
    moving = source(20, changes=changes)
    assert allowed_starts(moving, ClipConfig(num_frames=4)).tolist() == list(range(17))
    assert allowed_starts(moving, ClipConfig(num_frames=4, max_cut=30)).tolist() == [
        0,
        1,
        2,
        3,
        *range(7, 17),
    ]
    assert allowed_starts(moving, ClipConfig(num_frames=4, max_cut=30, min_motion=1.0)).tolist() == [
        0,
        1,
        2,
        3,
    ]
    with pytest.raises(ClipRejected, match="a cut"):
        allowed_starts(moving, ClipConfig(num_frames=18, max_cut=30))
    with pytest.raises(ClipRejected, match="no window moves"):
        allowed_starts(source(20, changes=(0.0,) * 19), ClipConfig(num_frames=4, min_motion=1.0))
    by_rate = allowed_starts(moving, ClipConfig(num_frames=2, fps=5.0, max_cut=30))
    assert by_rate.tolist() == [0, 1, 2, 3, 4, *range(7, 18)]


def test_crop_windows_have_the_clips_shape():
    assert crop_window(480, 640, 256, 256, "center", None) == (0, 80, 480, 480)
    assert crop_window(480, 640, 256, 256, "none", None) == (0, 0, 480, 640)
    assert crop_window(64, 64, 64, 64, "center", None) == (0, 0, 64, 64)
    assert crop_window(100, 30, 10, 20, "center", None) == (42, 0, 15, 30)
    places = {crop_window(8, 12, 8, 8, "random", np.random.default_rng(seed))[1] for seed in range(60)}
    assert places == {0, 1, 2, 3, 4}


def test_large_sources_are_shrunk_by_the_decoder_to_what_covers_the_clip():
    assert decoding_size(480, 640, 256, 256, "center") == (256, 341)
    assert decoding_size(480, 640, 256, 256, "none") == (256, 256)
    assert decoding_size(1920, 1080, 256, 256, "random") == (455, 256)
    assert (
        decoding_size(360, 640, 256, 256, "center") is None and decoding_size(64, 64, 64, 64, "none") is None
    )
    for height, width in ((480, 640), (719, 1281), (1920, 1080), (400, 3000)):
        size = decoding_size(height, width, 250, 200, "center")
        assert crop_window(*size, 250, 200, "center", None)[2:] == (250, 200)


def test_transform_is_deterministic_and_without_generator_fixed():
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)

    def run(seed):
        generator = None if seed is None else np.random.default_rng(seed)
        return transform(frames, 20, 20, "random", True, generator)

    assert torch.equal(run(4), run(4)) and torch.equal(
        run(None), torch.from_numpy(frames[:, :, 5:25]).permute(0, 3, 1, 2)
    )
    flipped = [
        seed for seed in range(20) if not any(torch.equal(run(seed), plain) for plain in plain_crops(frames))
    ]
    assert 3 < len(flipped) < 17


def plain_crops(frames):
    return [torch.from_numpy(frames[:, :, left : left + 20]).permute(0, 3, 1, 2) for left in range(11)]


def test_resizing_keeps_a_ramp_a_ramp_and_does_not_alias():
    ramp = np.broadcast_to(np.linspace(0, 255, 128)[None, None, :, None], (1, 128, 128, 3)).astype(np.uint8)
    small = transform(np.ascontiguousarray(ramp), 32, 32, "center", False, None)
    expected = torch.from_numpy(ramp[0, 0, :, 0].reshape(32, 4).mean(axis=1))
    assert (small[0, 0, 5].double() - expected)[2:-2].abs().max() <= 1.5
    stripes = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    stripes[:, :, ::2] = 255
    assert transform(stripes, 16, 16, "center", False, None)[..., 1:-1].float().std() < 1
    assert transform(ramp[:, :50].copy(), 48, 48, "none", False, None).shape == (1, 3, 48, 48)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_frames": 0}, "data.num_frames"),
        ({"fps": 8.0, "frame_stride": 2}, "data.fps: set either fps or frame_stride"),
        ({"fps": -1.0}, "data.fps"),
        ({"fps": 8.0, "max_frame_stride": 2}, "data.max_frame_stride: set either fps or max_frame_stride"),
        ({"max_frame_stride": 0}, "data.max_frame_stride: 0 is below frame_stride 1; set"),
        ({"frame_stride": 3, "max_frame_stride": 2}, "data.max_frame_stride: 2 is below frame_stride 3"),
        ({"crop": "left"}, "data.crop: 'left' is not known"),
        ({"num_workers": -1}, "data.num_workers"),
        ({"max_bad_fraction": 2.0}, "data.max_bad_fraction"),
        ({"width": 0}, "data.height"),
    ],
)
def test_impossible_settings_are_refused_by_key(changes, message):
    with pytest.raises(UserError, match=message):
        ClipConfig(**changes)
