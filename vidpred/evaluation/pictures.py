"""Pictures of evaluated clips: what was given, the truth, the prediction."""

from pathlib import Path

import numpy as np
import torch

from vidpred.evaluation.records import ClipSample
from vidpred.video_io import save_clip_panels, save_grid


def save_pictures(folder: Path, samples: list[ClipSample], fps: float = 8.0) -> list[Path]:
    """A strip, a GIF and a video of each sample into `folder`; their paths. Call it on one rank.

    What was generated from nothing has no truth beside it: it is another clip, and no error. Single pictures are
    one grid.
    """
    if samples and all(len(sample.context) + len(sample.prediction) == 1 for sample in samples):
        return save_grid(folder / "grid.png", torch.from_numpy(np.concatenate([each.prediction for each in samples])))
    paths: list[Path] = []
    for sample in samples:
        context, truth, prediction = map(torch.from_numpy, (sample.context, sample.truth, sample.prediction))
        name = f"{sample.index:05d}_{Path(sample.name).stem}"
        beside = truth if len(context) else None
        paths += save_clip_panels(folder, name, context, beside, prediction, fps, sample.given)
    return paths
