"""The clips that a task trains on, from step to step and from start to start of a run."""

from typing import Any, Callable, Generator

from vidpred import distributed
from vidpred.data import ClipBatch, ClipDataset, ClipLoader
from vidpred.errors import UserError


class ClipStream:
    """This rank's training batches, and what a resumed run must know of them.

    Args:
        open_loader: first step -> this rank's training batches from that step on.
        dataset: any split of the data, which says what took their place if they are not there.
    """

    def __init__(self, open_loader: Callable[[int], ClipLoader], dataset: ClipDataset):
        self._open_loader, self._dataset = open_loader, dataset
        self._quarantined: dict[str, str] = {}
        self._loader: ClipLoader | None = None

    def batches(self, first_step: int) -> Generator[ClipBatch, None, None]:
        """For ever; closing it ends the workers."""
        self._loader = self._open_loader(first_step)
        self._loader.quarantine(self._quarantined)
        try:
            yield from self._loader
        finally:
            self._quarantined = dict(self._loader.quarantined)
            self._loader.close()
            self._loader = None

    def state(self) -> dict[str, Any]:
        """`quarantined`: clips that could not be used, by name, with the reason; of all ranks. `substitute`: what is
        trained on instead of data that are not there."""
        mine = dict(self._loader.quarantined) if self._loader else self._quarantined
        merged: dict[str, str] = {}
        for share in distributed.gather_objects(mine):
            merged |= share
        return {"quarantined": merged, "substitute": self._dataset.substitute}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over a saved `state`, before `batches` is called."""
        now = self._dataset.substitute
        before = state.get("substitute", now)
        if before != now:
            raise UserError(
                f"data.root: the run was trained on {before or 'the real data'}, and there are {now or 'real data'} "
                "now; give the old folder to go on, or another --name for a new run"
            )
        self._quarantined = dict(state["quarantined"])
