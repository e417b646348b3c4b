"""The checkpoints of a run: what is written, which are kept, and where a run goes on."""

import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

from torch import Tensor, nn

from vidpred import distributed
from vidpred.checkpoint_store import Checkpoint, CheckpointStore, read_checkpoint
from vidpred.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """The lowest value of the chosen validation metric at a checkpoint so far."""

    metric: str
    value: float
    step: int


def latest_checkpoint(store: CheckpointStore) -> Optional[Checkpoint]:
    """The newest complete checkpoint of the run, or None: the same on every rank, because rank 0 chooses."""
    path = distributed.broadcast_object(store.latest() if distributed.is_main() else None)
    # The checksums were just verified by `latest`.
    return read_checkpoint(path, verify=False) if path is not None else None


def load_weights(network: nn.Module, checkpoint: Checkpoint, ema: bool = True) -> None:
    """`--init_from`: takes the averaged (or the raw) weights of a checkpoint into the bare network, no more.

    Raises UserError when the network of the checkpoint is another one.
    """
    _load(network, checkpoint.tensors["ema" if ema else "model"], checkpoint.path)
    logger.info("weights taken from %s (%s)", checkpoint.path, "EMA" if ema else "raw")


def load_network(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Takes the trained weights of a checkpoint that is resumed."""
    _load(network, checkpoint.tensors["model"], checkpoint.path)


def load_discriminator(discriminator: nn.Module, checkpoint: Checkpoint) -> None:
    """Takes the weights of the discriminator of a checkpoint that is resumed."""
    _load(discriminator, checkpoint.tensors["discriminator"], checkpoint.path)


def _load(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise UserError(
            f"{path}: its network is not the one configured ({first}); use the configuration that it was "
            "trained with, or another run name"
        ) from error


class Snapshots:
    """Writes checkpoints (rank 0), remembers the best one and deletes what is not to be kept."""

    def __init__(self, store: CheckpointStore, config: dict[str, Any], keep_last: int, keep_every: int):
        self._store = store
        self._config = config
        self._keep_last, self._keep_every = keep_last, keep_every
        self.best: Optional[Best] = None
        self._noted: Optional[Best] = None

    def note(self, metric: str, value: float, step: int) -> None:
        """Tells what the weights of `step` reached; it counts if a checkpoint of that step is written."""
        self._noted = Best(metric, value, step)

    def save(
        self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], info: dict[str, Any]
    ) -> None:
        """Writes the checkpoint of `step` and prunes. Every rank must call it; returns when it is written."""
        if self._noted and self._noted.step == step and self._is_better(self._noted):
            self.best = self._noted
        best = asdict(self.best) if self.best else None
        if distributed.is_main():
            path = self._store.save(
                step, tensors, state | {"best": best}, self._config, info | {"best": best}
            )
            keep = {self._store.path(self.best.step)} if self.best else set()
            self._store.prune(self._keep_last, self._keep_every, keep)
            logger.info("checkpoint saved: %s", path)
        distributed.barrier()

    def _is_better(self, noted: Best) -> bool:
        if not math.isfinite(noted.value):
            return False
        return self.best is None or self.best.metric != noted.metric or noted.value < self.best.value

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over the best of a saved state."""
        self.best = Best(**state["best"]) if state.get("best") else None
