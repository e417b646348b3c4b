"""What a video prediction run shows to the diagnosis: the record for its checkpoints, and clips to the watch."""

from typing import Any, Callable, Iterable, Iterator, Optional

from torch import Tensor, nn

from vidpred import distributed
from vidpred.conditioning import ConditioningConfig
from vidpred.data import ClipBatch
from vidpred.diagnosis.record import (
    CLIPS,
    RecordedClips,
    TrainingRecord,
    as_record,
    clips_of,
    record_clips,
    take_record,
)
from vidpred.diagnosis.subject import diagnosed_roles
from vidpred.frame_roles import FrameRoles
from vidpred.prediction import Predictor
from vidpred.training.watch import ClipWatch

WATCHED_CLIPS, WATCHED_FRAMES = 1, 2  # of the record: enough to know an autoencoder by


class Inspection:
    """Of one run.

    Args:
        predictor: with the network that is trained.
        read_clips: (count, roles) -> validation clips, on this rank alone; None where none can be read.
        seed: of the noise in recorded estimates.
        global_batch: clips of one step, over all processes.
        reference: the record of the checkpoint that is resumed; None in a new run.
    """

    def __init__(
        self,
        predictor: Predictor,
        conditioning: ConditioningConfig,
        read_clips: Callable[[int, FrameRoles], Optional[ClipBatch]],
        seed: int,
        global_batch: int,
        reference: Optional[TrainingRecord] = None,
    ):
        self._predictor, self._seed, self._global_batch = predictor, seed, global_batch
        self._read_clips = lambda: read_clips(CLIPS, diagnosed_roles(conditioning))
        self._clips: Optional[RecordedClips] = None
        self._reference, self._watch = reference, None

    def record(self, averaged: Optional[nn.Module]) -> Optional[tuple[dict[str, Tensor], dict[str, Any]]]:
        """See `Task.record`. Without `averaged` no network is called."""
        self._read()
        if self._clips is None:
            return None
        return take_record(self._predictor, averaged, self._clips, self._seed)

    def watched(self, batches: Iterable[ClipBatch]) -> Iterator[ClipBatch]:
        """The batches of this rank; rank 0 looks at them on their way, and first at what autoencoder, calibration and
        schedule are before the first step."""
        if not distributed.is_main():
            yield from batches
            return
        self._watch = ClipWatch(self._predictor, self._before(), self._global_batch)
        for batch in batches:
            self._watch.see(batch)
            yield batch

    def measures(self) -> dict[str, float]:
        """See `Task.measures`."""
        return self._watch.measures() if self._watch is not None else {}

    def _read(self) -> None:
        """The clips, once: what they are encoded to does not change, and a run that is asked to stop saves quickly. A
        run that is resumed goes on with those of its record, so that another autoencoder cannot replace them."""
        if self._clips is None and self._reference is not None:
            self._clips = clips_of(self._reference)
        elif self._clips is None:
            clips = self._read_clips()
            self._clips = None if clips is None else record_clips(self._predictor, clips)

    def _before(self) -> Optional[TrainingRecord]:
        self._read()
        if self._reference is None:
            taken = self.record(None)
            self._reference = None if taken is None else as_record(*taken)
        return None if self._reference is None else self._reference.first(WATCHED_CLIPS, WATCHED_FRAMES)
