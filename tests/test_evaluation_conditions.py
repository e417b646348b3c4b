"""Evaluations under conditions: each clip is predicted under its own, and the protocol knows which they were."""

import pytest
import torch
from test_prediction_conditions import Told, make

from vidpred.conditions import ClipConditions
from vidpred.conditioning import prediction_roles
from vidpred.data.clips import Clip, ClipDataset
from vidpred.evaluation import EvaluationConfig, evaluate
from vidpred.evaluation.protocol import differences

CONTEXT, SIDE, GREY = 2, 16, 1 / 255  # of the decoded values, a level


class Painted(ClipDataset):
    """Clips whose frame t shows what `Told` paints under the action a(t) = 10 i + 5 t + `more`, in clip i."""

    name = "painted"
    class_names, action_scale = ("cat", "dog"), (1.0,)

    def __init__(self, num_frames: int, more: float = 0.0, told: bool = True):
        self.num_frames, self.more, self.told = num_frames, more, told

    def __len__(self) -> int:
        return 3

    def item_name(self, index: int) -> str:
        return f"clip {index}"

    def clip(self, index: int, generator=None) -> Clip:
        actions = 10.0 * index + 5 * torch.arange(float(self.num_frames))
        levels = ((actions / 100 + 1) * 127.5).round().to(torch.uint8)  # as the autoencoder shows values in [-1, 1]
        frames = levels[:, None, None, None].expand(-1, 3, SIDE, SIDE).contiguous()
        told = ClipConditions("dog" if self.told else None, None, actions[:, None] + self.more)
        return Clip(frames, torch.arange(float(self.num_frames)), self.item_name(index), told)


class Painter(torch.nn.Module):
    """`Told`, as an evaluation wants it: a module with a device."""

    def __init__(self):
        super().__init__()
        self._told = Told()

    def forward(self, x, level, given, frame_times, condition):
        return self._told(x, level, given, frame_times, condition)


def evaluated(dataset):
    config = EvaluationConfig(lpips_net="none", batch_size=2, num_panels=0, num_clips=3)
    predictor = make(Painter().eval())
    return evaluate(predictor, dataset, config, prediction_roles(CONTEXT), seed=3, split="val", ema=True, num_workers=0)


def psnr_of(evaluation) -> list[float]:
    return [float(clip.scores["model"]["psnr"].mean()) for clip in evaluation.clips]


@pytest.mark.parametrize("num_frames", [5, 8])  # a window, and more than one
def test_figures_are_those_of_each_clips_own_actions(num_frames):
    own, other = evaluated(Painted(num_frames)), evaluated(Painted(num_frames, more=20.0))
    assert min(psnr_of(own)) > 45, "each frame shows its own action, to a level"
    assert max(psnr_of(other)) < 25
    assert max(psnr_of(evaluated(Painted(num_frames, told=False)))) < 30, "the class counts too"


def test_the_protocol_knows_the_conditions():
    usual, again = evaluated(Painted(5)), evaluated(Painted(5))
    assert usual.protocol == again.protocol and usual.protocol["conditions"] == ["class", "actions"]
    for dataset in (Painted(5, more=1.0), Painted(5, told=False)):  # the frames are the same
        keys = [each.key for each in differences(usual.protocol, evaluated(dataset).protocol)]
        assert keys == ["clips_sha256"]
