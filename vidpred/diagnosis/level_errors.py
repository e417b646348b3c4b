"""The error by noise level on clips of an evaluation, for its report."""

import dataclasses
import math
from typing import Sequence

from vidpred.diagnosis.measurement import one_step_errors
from vidpred.diagnosis.records import LevelRow
from vidpred.evaluation import Evaluation, LevelErrors, Retake

CLIPS = 8


def level_errors(retake: Retake, evaluation: Evaluation, count: int = CLIPS) -> list[LevelErrors]:
    """Over the first `count` evaluated clips, which are spread over the split; one at a time is in memory."""
    predictor = retake.predictor
    numbers = [clip.index for clip in evaluation.clips[:count]]
    by_clip = [
        one_step_errors(predictor, predictor.encode(clip.frames), clip, retake.seed)
        for clip in retake.clips(numbers)
    ]
    rows = [_pooled(of_level) for of_level in zip(*by_clip)]
    return [LevelErrors(row.timestep, row.error, row.zero, row.copy_last, row.unlearned) for row in rows]


def _pooled(rows: Sequence[LevelRow]) -> LevelRow:
    """Clips of one size, at one level."""

    def rms(name: str) -> float:
        return math.sqrt(sum(getattr(row, name) ** 2 for row in rows) / len(rows))

    return dataclasses.replace(rows[0], **{name: rms(name) for name in ("error", "zero", "copy_last")})
