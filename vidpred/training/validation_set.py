"""The clips that a run validates on, whatever its task."""

from dataclasses import dataclass
from typing import Iterable

from vidpred import distributed
from vidpred.data import ClipBatch, ClipDataset, evaluation_batches, evenly_spaced_clips, require_half
from vidpred.data.evaluation_batches import EvaluationBatches
from vidpred.frame_roles import FrameRoles


@dataclass(frozen=True)
class ValidationSet:
    """Clips that are not trained on, and how they are read. Their frames have roles as in training.

    count: clips of the validation loss. pictured: clips of each set of pictures. batch_size: per process.
    num_workers: processes that decode on each rank. timeout: seconds after which a decoder counts as hung.
    """

    dataset: ClipDataset
    frame_roles: FrameRoles
    count: int
    pictured: int
    batch_size: int
    num_workers: int = 1
    timeout: float = 60.0

    def batches(self, count: int) -> EvaluationBatches:
        """This rank's share of `count` clips, evenly spaced over the data set; see `evaluation_batches`."""
        numbers = evenly_spaced_clips(self.dataset, count)
        mine = [numbers[i] for i in distributed.shard(len(numbers))]
        # No larger than the largest share, and the same on all ranks: figures do not depend on the padding.
        size = min(self.batch_size, -(-len(numbers) // distributed.world_size()))
        return evaluation_batches(
            self.dataset,
            mine,
            size,
            self.frame_roles,
            num_workers=self.num_workers,
            timeout=self.timeout,
        )

    def fixed_clips(self, count: int, frame_roles: FrameRoles) -> ClipBatch | None:
        """As many of `count` clips as can be read, on this rank alone; None where there is none."""
        numbers = evenly_spaced_clips(self.dataset, count)
        batches = evaluation_batches(
            self.dataset, numbers, len(numbers), frame_roles, num_workers=self.num_workers, timeout=self.timeout
        )
        for batch, valid in batches:
            return batch.first(int(valid.sum()))
        return None

    def require_half(self, kept: int, dropped: Iterable[dict[int, str]]) -> None:
        """Raises UserError where fewer than half of the clips could be read; `dropped` of every rank."""
        merged = {number: line for share in dropped for number, line in share.items()}
        require_half(kept, merged, self.dataset)
