"""Small clips and predictors for the tests of the evaluation; as a script, an evaluation under torchrun.

    evaluation_helper.py FOLDER BACKBONE I3D   writes what each rank got to FOLDER/rank_<r>.json; goes on with
                                               FOLDER/begun.json and FOLDER/begun_fvd.json, and stops in the
                                               middle of FOLDER/stopped.json
"""

import hashlib
import itertools
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vidpred.autoencoders import PixelUnshuffleConfig, build_autoencoder
from vidpred.conditioning import evaluation_roles
from vidpred.data.clips import Clip, ClipDataset
from vidpred.diffusion import ClipBoundConfig, NoiseSchedule, SamplingConfig, ScheduleConfig
from vidpred.distributed import process_group, rank
from vidpred.errors import UserError
from vidpred.evaluation import Evaluation, EvaluationConfig, EvaluationStopped, evaluate
from vidpred.frame_roles import GIVEN, UNKNOWN
from vidpred.metrics import video_features
from vidpred.prediction import LatentCalibration, Predictor

CONTEXT, FRAMES, SIZE = 2, 5, 32
LONG = 12  # frames, enough for FVD
BROKEN = "clip 4"


class Squares(ClipDataset):
    """One bright square per clip, moving by two pixels a frame; `still` clips do not move."""

    name = "squares"

    def __init__(self, count: int = 7, still: bool = False, num_frames: int = FRAMES):
        self.count, self.still, self.num_frames = count, still, num_frames

    def __len__(self) -> int:
        return self.count

    def item_name(self, index: int) -> str:
        return f"clip {index}"

    def clip(self, index: int, generator=None) -> Clip:
        frames = torch.full((self.num_frames, 3, SIZE, SIZE), 40 + index, dtype=torch.uint8)
        for t in range(self.num_frames):
            left = 3 if self.still else 3 + 2 * t
            frames[t, :, 5 + index : 15 + index, left : left + 9] = 200
        return Clip(frames, torch.arange(self.num_frames, dtype=torch.float32), self.item_name(index))


class StandIn(nn.Module):
    """In the place of StyleGAN-V's I3D, with its arguments: the size of its frames, their mean, and coarse
    means over time and place."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert not rescale and not resize and return_features
        size = torch.full((len(x), 1), float(x.shape[-1]))
        coarse = nn.functional.adaptive_avg_pool3d(x, (3, 4, 4)).flatten(1)
        return torch.cat([size, x.flatten(1).mean(dim=1, keepdim=True), coarse, coarse.square()], dim=1)


def save_stand_in(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(StandIn()).save(str(path))
    return path


def first_frames(generator: np.random.Generator, num_frames: int) -> np.ndarray:
    return np.where(np.arange(num_frames) < CONTEXT, GIVEN, UNKNOWN)


class NoiseDependent(nn.Module):
    """A denoiser whose x0 depends on everything: the noise, the level, the given frames."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(12, 12, 3, 3, 3, generator=generator) * 0.03)

    def forward(self, x: Tensor, level, given: Tensor, frame_times: Tensor) -> Tensor:
        moved = nn.functional.conv3d(x.movedim(1, 2), self.weight, padding=1).movedim(1, 2)
        return torch.tanh(0.3 * x + moved) + x[:, CONTEXT - 1 : CONTEXT] * 0.7 + 0.01 * frame_times.mean()


class CopyLast(nn.Module):
    def forward(self, x: Tensor, level, given: Tensor, frame_times: Tensor) -> Tensor:
        return x[:, CONTEXT - 1 : CONTEXT].expand_as(x)


class BreaksOn(NoiseDependent):
    """Not a number for the one clip whose background is that of `BROKEN` (44 of 255)."""

    def forward(self, x: Tensor, level, given: Tensor, frame_times: Tensor) -> Tensor:
        background = (x[:, 0, 0, 0, 0] + 1) * 127.5
        broken = (background - 44).abs() < 0.5
        x0 = super().forward(x, level, given, frame_times)
        x0[:, 3] = torch.where(broken[:, None, None, None], torch.nan, x0[:, 3])
        return x0


class Watched(NoiseDependent):
    """The same network; `seen` has the numbers of the clips that it was asked for, by their background."""

    def __init__(self):
        super().__init__()
        self.seen: set[int] = set()

    def forward(self, x: Tensor, level, given: Tensor, frame_times: Tensor) -> Tensor:
        self.seen |= set(((x[:, 0, 0, 0, 0] + 1) * 127.5 - 40).round().int().tolist())
        return super().forward(x, level, given, frame_times)


def make_predictor(denoiser: nn.Module, steps: int = 3, clip: str = "static") -> Predictor:
    return Predictor(
        denoiser.eval(),
        build_autoencoder(PixelUnshuffleConfig()),
        LatentCalibration(12),
        NoiseSchedule(ScheduleConfig()),
        SamplingConfig(num_inference_steps=steps, clip=ClipBoundConfig(kind=clip)),
        context_frames=CONTEXT,
        num_frames=FRAMES,
    )


def run(
    denoiser: nn.Module,
    backbone: str | None,
    steps: int = 3,
    trajectories: int = 1,
    *,
    result: Path | None = None,
    stop_after: int | None = None,
    seed: int = 3,
    dataset: ClipDataset | None = None,
    clip: str = "static",
    **options,
) -> Evaluation:
    """`options` of EvaluationConfig; `stop_after` batches the evaluation is asked to stop."""
    config = EvaluationConfig(**{"batch_size": 2, "lpips_net": "none", **options})
    if backbone:
        config.lpips_net, config.lpips_weights = "squeeze", str(backbone)
    roles = evaluation_roles(config.task, CONTEXT)
    predictor = make_predictor(denoiser, steps, clip)
    batches = itertools.count(1)
    return evaluate(
        predictor, dataset or Squares(), config, roles, seed=seed, trajectories=trajectories, num_workers=0,
        result=result, stop_requested=lambda: next(batches) == stop_after,
    )  # fmt: skip


def begin(result: Path, batches: int = 1, **options) -> None:
    """An evaluation that is stopped after some batches."""
    try:
        run(NoiseDependent(), None, result=result, stop_after=batches, **options)
    except EvaluationStopped:
        return
    raise AssertionError("it did not stop")


def plain(evaluation: Evaluation) -> dict:
    """Everything in it, unrounded."""
    rows = {
        f"{clip.index} {row} {metric}": values.tolist()
        for clip in evaluation.clips
        for row, metrics in clip.scores.items()
        for metric, values in metrics.items()
    }
    samples = {
        s.name: [s.given.tolist(), *(int(x.sum()) for x in (s.context, s.truth, s.prediction))]
        for s in evaluation.samples
    }
    return {"json": evaluation.to_json(), "rows": rows, "samples": samples, "table": evaluation.table()}


def with_video_distance(weights: Path, **options) -> Evaluation:
    """Of longer clips, with a stand-in for the I3D."""
    video_features.TORCHSCRIPT_SHA256 = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    fixed = {"dataset": Squares(num_frames=LONG), "fvd_weights": str(weights)}
    return run(NoiseDependent(), None, **fixed, **{"num_clips": 5, **options})


def main(folder: str, backbone: str, i3d: str) -> None:
    with process_group("cpu"):
        results = {
            "all": plain(run(NoiseDependent(), backbone)),
            "infilling": plain(run(NoiseDependent(), None, task="infilling", trajectories=2)),
            "fvd": plain(with_video_distance(Path(i3d))),
            "begun fvd": plain(with_video_distance(Path(i3d), result=Path(folder, "begun_fvd.json"))),
            "fewer clips than ranks": plain(run(NoiseDependent(), None, num_clips=2)),
            "begun": plain(run(NoiseDependent(), None, result=Path(folder, "begun.json"))),
        }
        begin(Path(folder, "stopped.json"), batches=1 if rank() == 1 else 100)
        try:
            run(BreaksOn(), None)
        except UserError as error:
            results["error"] = str(error)
        Path(folder, f"rank_{rank()}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
