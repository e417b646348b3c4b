"""What a checkpoint holds of a run that goes on from it, and how each part takes it back."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vidpred import distributed
from vidpred.checkpoint_store import Checkpoint
from vidpred.training.adversary import Adversary
from vidpred.training.chronicle import Chronicle
from vidpred.training.ema import Ema
from vidpred.training.optimization import Optimization
from vidpred.training.preparation import evaluating
from vidpred.training.snapshots import load_network
from vidpred.training.task import Task
from vidpred.training.verdicts import Journal


@dataclass(frozen=True)
class RunState:
    """The parts of a run that change while it trains."""

    task: Task
    ema: Ema
    optimization: Optimization
    adversary: Adversary
    journal: Journal
    chronicle: Chronicle

    def saved(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Tensors by file name, and the state; the history only on rank 0, which writes it."""
        tensors = {
            "model": self.task.network.state_dict(),
            "ema": self.ema.state_dict(),
            **self.adversary.tensors(),
            **self.task.tensors(),
        }
        history: dict[str, Any] = {}
        if distributed.is_main():
            with evaluating(self.task.network):
                recorded, history = self.chronicle.history()
            tensors |= recorded
        state = {
            "history": history,
            "optimizer": self.optimization.state_dict(),
            **self.adversary.state(),
            "ema_updates": self.ema.updates,
            "bad_steps": self.journal.state(),
            "task": self.task.state(),
        }
        return tensors, state

    def restore(self, checkpoint: Checkpoint) -> None:
        """Raises UserError where the checkpoint is of another network."""
        load_network(self.task.network, checkpoint)
        self.ema.load_state_dict(checkpoint.tensors["ema"], checkpoint.state["ema_updates"])
        self.optimization.load_state_dict(checkpoint.state["optimizer"])
        self.adversary.restore(checkpoint)
        self.journal.load_state(checkpoint.state["bad_steps"])
        self.task.load_state(checkpoint.state["task"])
        self.chronicle.restore(checkpoint)
