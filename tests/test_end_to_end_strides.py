"""A run whose training clips vary in stride: what the network is told, and how it goes on."""

import pytest
import torch
from end_to_end_helper import cache, train_tiny  # noqa: F401  (a fixture)

from vidpred.denoiser import Denoiser
from vidpred.diagnosis import subject_from_checkpoint, validation_clips, video_clip
from vidpred.errors import UserError
from vidpred.training import RunOutcome
from vidpred.video_io import write_video

pytestmark = pytest.mark.usefixtures("cache")
LONG = "--data.clip_frames=10"  # four frames at stride 3


def test_the_network_is_told_the_strides_of_training_clips_alone(tmp_path, monkeypatch):
    told: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    original = Denoiser.loss

    def loss(self, x0, noise, level, given, frame_times, *condition, **options):
        told[torch.is_grad_enabled()].append(frame_times)
        return original(self, x0, noise, level, given, frame_times, *condition, **options)

    monkeypatch.setattr(Denoiser, "loss", loss)
    assert train_tiny(tmp_path, LONG, "--data.max_frame_stride=3") == RunOutcome("finished", 6)
    training, validation = (torch.cat(told[grad]) for grad in (True, False))
    steps = torch.arange(4.0)
    assert len(training) == 6 * 8 and set(training[:, 1].tolist()) == {1, 2, 3}
    assert training.equal(training[:, 1:2] * steps) and validation.equal(steps.expand_as(validation))

    subject = subject_from_checkpoint(tmp_path / "tiny", "cpu")
    assert validation_clips(subject, 2).frame_times.tolist() == [[0, 1, 2, 3]] * 2
    ramp = torch.arange(0, 200, 20, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16)
    write_video(tmp_path / "video.mp4", ramp, 10)
    clip, fps = video_clip(subject, tmp_path / "video.mp4")
    assert fps == 10 and clip.frame_times.tolist() == [[0, 1, 2, 3]]

    with pytest.raises(UserError, match="data.max_frame_stride: is 2, but the run .* was started with 3"):
        train_tiny(tmp_path, LONG, "--data.max_frame_stride=2")
