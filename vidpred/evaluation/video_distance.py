"""The Fréchet video distance (FVD) of every row to the truth, gathered clip by clip.

It is taken of two views of a clip: its generated frames alone, and, labelled as such, the whole clip, whose
given frames are everybody's and make the distance smaller. Beside it stands what the truth's two halves have.
"""

from dataclasses import dataclass, field
from typing import Optional, Sequence

import numpy as np
import torch
from torch import Tensor

from vidpred.distributed import gather_objects
from vidpred.errors import UserError
from vidpred.evaluation.records import ClipScores
from vidpred.metrics import FeatureStatistics, VideoFeatures, frechet_distance
from vidpred.metrics.i3d import SHORTEST_CLIP
from vidpred.tensor_ops import take_frames

VIEWS = {"generated": "generated frames only", "whole_clip": "given and generated frames"}
ENOUGH_CLIPS = 2048
TRUTH = "truth"
_HALVES = ("truth, even places", "truth, odd places")

FVD_PROTOCOL = (
    "squared Frechet distance |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of a row's clips and the truths, "
    "unbiased covariances, statistics in float64; truth_halves: the distance of the clips at even places to "
    "those at odd places, so of half as many clips, which makes it larger"
)


@dataclass
class VideoDistances:
    """`figures[view][row]` is the distance of a row to the truth, None where there are too few clips for one;
    a view is missing where its clips are too short. `truth_halves[view]`: of the truth's halves."""

    clips: int
    figures: dict[str, dict[str, Optional[float]]]
    truth_halves: dict[str, Optional[float]] = field(default_factory=dict)

    @property
    def warning(self) -> Optional[str]:
        if self.clips >= ENOUGH_CLIPS:
            return None
        return (
            f"FVD of {self.clips} clips, fewer than {ENOUGH_CLIPS}: other clips of the same kind give "
            "another figure; compare only what has as many clips, and look at the truth's halves"
        )


def possible_views(given_frames: int, predicted_frames: int) -> list[str]:
    """The views of a clip that are long enough for the network. UserError where none is."""
    frames = {"generated": predicted_frames, "whole_clip": given_frames + predicted_frames}
    views = [view for view, count in frames.items() if count >= SHORTEST_CLIP]
    if not views:
        raise UserError(
            f"evaluation.fvd_weights: clips of {frames['whole_clip']} frames are shorter than the "
            f"{SHORTEST_CLIP} that an I3D looks at; evaluate longer clips (data.num_frames), or leave it out"
        )
    return views if given_frames else ["generated"]  # of one view only where both are the same


def clip_features(
    extract: VideoFeatures, frames: Tensor, unknown: Tensor, rows: dict[str, Tensor], count: int
) -> list[dict[str, dict[str, np.ndarray]]]:
    """Features of the first `count` clips: of each one view -> row -> (D,) float32, the truth among the rows.

    frames (B, T, C, h, w) uint8, unknown (B, T) bool, rows of (B, H, C, h, w) uint8 each.
    """
    predicted = int(unknown[0].sum())
    views = possible_views(unknown.shape[1] - predicted, predicted)
    features: list[dict] = [{view: {} for view in views} for _ in range(count)]
    for row, generated in {**rows, TRUTH: take_frames(frames, unknown)}.items():
        whole = frames.clone()
        whole[unknown] = generated.flatten(0, 1)
        for view in views:
            clips = generated if view == "generated" else whole
            for clip, values in zip(features, extract(clips[:count])):
                clip[view][row] = values.numpy()
    return features


class VideoDistance:
    """Statistics of this rank's clips; their memory does not grow with the number of clips.

    `numbers` are those of all clips of the evaluation, on all ranks: a clip's half of the truth is a function
    of its place among them.
    """

    def __init__(self, numbers: Sequence[int]):
        self._places = {number: place for place, number in enumerate(numbers)}
        self._statistics: dict[tuple[str, str], FeatureStatistics] = {}

    def absorb(self, records: Sequence[ClipScores]) -> None:
        """Takes the features out of the records."""
        together: dict[tuple[str, str], list[Tensor]] = {}
        for record in records:
            half = _HALVES[self._places[record.index] % 2]
            for view, rows in (record.features or {}).items():
                for row, values in rows.items():
                    key = (view, half if row == TRUTH else row)
                    together.setdefault(key, []).append(torch.from_numpy(values))
            record.features = None
        for key, features in together.items():
            statistics = self._statistics.setdefault(key, FeatureStatistics(len(features[0])))
            statistics.add(torch.stack(features))

    def result(self) -> Optional[VideoDistances]:
        """Of the clips of all ranks, on every rank; every rank must call it. None without any features."""
        sizes = {key: len(own.mean) for key, own in self._statistics.items()}
        sizes = {key: size for share in gather_objects(sizes) for key, size in share.items()}
        whole = {
            key: self._statistics.get(key, FeatureStatistics(size)).reduced()
            for key, size in sorted(sizes.items())
        }
        if not whole:
            return None
        result = VideoDistances(0, {})
        for view in (view for view in VIEWS if any(key[0] == view for key in whole)):
            halves = [whole.get((view, half)) for half in _HALVES]
            halves = [half for half in halves if half is not None]
            truth = halves[0] if len(halves) == 1 else halves[0].merged(halves[1])
            rows = {row: own for (of, row), own in whole.items() if of == view and row not in _HALVES}
            result.figures[view] = {row: frechet_distance(own, truth) for row, own in rows.items()}
            result.truth_halves[view] = frechet_distance(*halves) if len(halves) == 2 else None
            result.clips = truth.count
        return result
