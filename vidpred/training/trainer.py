"""The training loop. What a step means is the task's business; here it is only repeated, watched and saved.

Steps are counted by how many are done: after the first step `step` is 1. The step that is being done has the
0-based number `step - 1`; batches, learning rates and draws are functions of that number.
"""

import contextlib
import logging
from pathlib import Path
from typing import Any, Iterator, Literal, Optional

import torch
from torch import Tensor

from vidpred import distributed, random_streams, range_checks
from vidpred.checkpoint_store import Checkpoint, CheckpointStore
from vidpred.errors import UserError
from vidpred.training.adversary import Adversary
from vidpred.training.averages import RunningAverages
from vidpred.training.chronicle import Chronicle
from vidpred.training.ema import Ema, parameter_norm
from vidpred.training.interruption import StopRequest
from vidpred.training.loggers import Loggers
from vidpred.training.optimization import Optimization
from vidpred.training.outcome import RunOutcome, mark_interrupted, remove_mark
from vidpred.training.preparation import TrainedNetwork, autocast_dtype
from vidpred.training.progress import Pace, ProgressBar, memory_gib
from vidpred.training.range_log import RangeLines, range_values
from vidpred.training.review import Review
from vidpred.training.run_state import RunState
from vidpred.training.settings import TrainingConfig
from vidpred.training.snapshots import Snapshots
from vidpred.training.task import Batch, Task
from vidpred.training.verdicts import Journal, Verdict, VerdictMail
from vidpred.training.watch import EVERY

logger = logging.getLogger(__name__)


class Trainer:
    """Trains `task.network`: `Trainer(...).run()`.

    Args:
        task: what a step means; its network is on `device`.
        config: length, batch, optimizer and rhythms.
        store: where checkpoints go.
        loggers: where numbers go; closed at the end of `run`.
        device: of this process.
        run_folder: receives the marker file of an interrupted run.
        resolved: the resolved configuration as plain data; saved in every checkpoint.
        seed: of the dropout masks, if the network has any.
        resume_from: the checkpoint to go on from (`latest_checkpoint`), or None for a new run.
    Raises:
        UserError where the batch cannot be shared equally, or the checkpoint is of another network.
    """

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        store: CheckpointStore,
        loggers: Loggers,
        device: torch.device,
        *,
        run_folder: Path,
        resolved: dict[str, Any],
        seed: int,
        resume_from: Optional[Checkpoint] = None,
    ):
        config.micro_batch_size(distributed.world_size())
        self._task, self._config, self._device = task, config, device
        self._loggers, self._run_folder, self._seed = loggers, run_folder, seed
        self._dtype = autocast_dtype(config.precision, device)
        self._trained = TrainedNetwork(task.network, device, self._dtype, config)
        self._ema = Ema(task.network, config.ema_decay, config.ema_warmup)
        self._optimization = Optimization.of(task.network, config)
        self._adversary = Adversary(task.discriminator, device, self._dtype, config)
        self._snapshots = Snapshots(store, resolved, config.keep_last, config.keep_every)
        self._mail, self._averages, self._pace = VerdictMail(device), RunningAverages(), Pace()
        self._stop_request = StopRequest()
        self._stopping = False  # agreed by all ranks
        self._journal = Journal()
        self._chronicle = Chronicle(task, self._ema, config)
        self._state = RunState(task, self._ema, self._optimization, self._adversary, self._journal, self._chronicle)
        self._review = Review(task, self._ema, loggers, device, self._dtype)
        self._range_lines = RangeLines(config.visualize_every_step or config.num_steps)
        self._validated_step = self._saved_step = -1
        self.step = 0
        if resume_from is not None:
            self._restore(resume_from)

    # The loop ----------------------------------------------------------------------------------------------

    def run(self) -> RunOutcome:
        """Trains up to `num_steps`, or until SIGINT or SIGTERM; saves in both cases."""
        with contextlib.closing(self._loggers):
            if self._done:
                return self._conclude("already finished")
            self._announce()
            with self._stop_request.listening():
                self._train()
            return self._conclude("finished") if self._done else self._conclude_interrupted()

    @property
    def _done(self) -> bool:
        return self.step >= self._config.num_steps

    def _train(self) -> None:
        self._trained.train()
        progress = ProgressBar(self.step, self._config.num_steps, self._config.batch_size)
        with contextlib.closing(progress), contextlib.closing(self._batches()) as batches:
            while not self._done and not self._stopping:
                self._train_step(batches)
                progress.advance()
                if self._due(self._config.log_every_step):
                    self._log(progress)
                if self._done or not self._stopping:  # a run that is asked to stop saves and does no more
                    with self._pace.pause():
                        self._look_after_the_run()
        if self._saved_step != self.step:
            self._save()

    def _look_after_the_run(self) -> None:
        """What happens now and then between two steps. Saving comes before what takes long."""
        if self._due(EVERY):
            self._look_for_faults()
        if self._stopping and not self._done:
            return
        if self._due(self._config.validate_every_step):
            self._validate()
        if self._due(self._config.checkpoint_every_step):
            self._save()
        if self._due(self._config.visualize_every_step):
            self._review.visualize(self.step, self.step / self._config.num_steps)
        if not self._done and self._due(self._config.evaluate_every_step):
            self._review.evaluate(self.step)

    def _due(self, every: int) -> bool:
        """At multiples of `every` (0: never) and after the last step."""
        return every > 0 and (self._done or self.step % every == 0)

    def _batches(self) -> Iterator[Batch]:
        with contextlib.closing(self._task.batches(self.step)) as source:
            for batch in source:
                yield batch.to(self._device, non_blocking=True)

    # One step ----------------------------------------------------------------------------------------------

    def _train_step(self, batches: Iterator[Batch]) -> None:
        number = self.step
        self._seed_dropout(number)
        with _failures_of_one_rank(number + 1):
            loss = self._accumulate_gradients(batches, number)
        self._update(number, loss)
        self._pace.count(self._config.batch_size)

    def _accumulate_gradients(self, batches: Iterator[Batch], number: int) -> Tensor:
        """Gradients of the mean loss over the global batch; returns this rank's part of that mean."""
        rounds = self._config.accumulation
        losses = []
        for index in range(rounds):
            with self._pace.waiting_for_data():
                batch = next(batches)
            last = index == rounds - 1
            with contextlib.nullcontext() if last else self._trained.gradients_stay_local():
                part = self._task.loss(self._trained, batch, number)
                (part.loss / rounds).backward()
            self._adversary.learn(part.discriminator, rounds, last)
            self._averages.add(part.averages)
            losses.append(part.loss.detach())
        return torch.stack(losses).mean()

    def _update(self, number: int, loss: Tensor) -> None:
        grad_norm = self._optimization.gradient_norm()
        posted = self._adversary.non_finite_or(grad_norm)
        found_inf, previous = self._mail.post(number + 1, loss, posted, bool(self._stop_request))
        self._journal.learning_rate = self._optimization.update(number, grad_norm, found_inf)
        self._adversary.update(number, found_inf)
        self._ema.update(self._task.network)
        range_checks.report("loss", loss)
        range_checks.report("gradient norm", grad_norm)
        self.step = number + 1
        self._heed(previous)

    def _heed(self, verdict: Optional[Verdict]) -> None:
        """Takes in what a step came to, as soon as the host knows it."""
        if verdict is None:
            return
        self._stopping = self._stopping or verdict.stop
        self._journal.enter(verdict)
        self._chronicle.enter(verdict)
        if self._journal.bad_in_a_row >= self._config.max_bad_steps:
            raise UserError(
                f"no finite loss and gradient in {self._journal.bad_in_a_row} steps in a row, up to step "
                f"{verdict.step}: lower training.learning_rate, lengthen training.warmup_steps or use "
                "training.precision fp32; the same command goes on from the last checkpoint"
            )

    def _seed_dropout(self, number: int) -> None:
        """Masks are a function of step and rank, so a resumed run needs no generator states."""
        draw = number * distributed.world_size() + distributed.rank()
        torch.manual_seed(int(random_streams.host_generator(self._seed, "dropout", draw).integers(2**63)))

    # Between steps -----------------------------------------------------------------------------------------

    def _log(self, progress: ProgressBar) -> None:
        """Reads the device: the one place where the host waits for it."""
        self._heed(self._mail.collect())
        values = {
            **self._journal.read(),
            **self._pace.read(),
            **self._averages.read(),
            **self._adversary.read(),
            "train/memory_gib": memory_gib(self._device),
        }
        ranges = self._collect_ranges()
        values |= range_values(ranges)
        progress.show(values)
        self._range_lines.show(self.step, ranges)
        self._loggers.log(self.step, values)

    def _collect_ranges(self) -> dict[str, range_checks.RangeStats]:
        """Of the steps since the last call, over all ranks."""
        ranges = range_checks.collect(self.step)
        self._chronicle.see_ranges(ranges)
        return ranges

    def _look_for_faults(self) -> None:
        """Rank 0 looks for all."""
        self._heed(self._mail.collect())
        values = range_values(self._collect_ranges())  # none where a log line has just taken them
        if distributed.is_main():
            values |= self._chronicle.look_for_faults(self.step)
        if values:
            self._loggers.log(self.step, values)

    def _validate(self) -> None:
        """Once a step."""
        if self._validated_step == self.step:
            return
        self._validated_step = self.step
        metric, values = self._config.best_metric, self._review.validate(self.step)
        self._snapshots.note(metric, values[metric], self.step)

    # Beginning, checkpoints and end ------------------------------------------------------------------------

    def _announce(self) -> None:
        if self.step == 0:
            self._ema.verify_start(self._task.network)
        else:
            logger.info(
                "resumed at step %d of %d; EMA after %d updates, parameter norm %.6g, EMA norm %.6g",
                self.step,
                self._config.num_steps,
                self._ema.updates,
                parameter_norm(self._task.network).item(),
                parameter_norm(self._ema.network).item(),
            )
        logger.info(
            "training to step %d: batch %d = %d process(es) x %d accumulation x %d, %s on %s",
            self._config.num_steps,
            self._config.batch_size,
            distributed.world_size(),
            self._config.accumulation,
            self._config.micro_batch_size(distributed.world_size()),
            "bf16 autocast" if self._dtype else "float32",
            self._device,
        )
        if distributed.is_main():
            remove_mark(self._run_folder)

    def _save(self) -> None:
        """A checkpoint, validated so that the best is known; a run that is asked to stop does not wait."""
        self._heed(self._mail.collect())
        self._require_finite_weights()
        if self._config.validate_every_step > 0 and not self._stopping:
            self._validate()
        tensors, state = self._state.saved()
        info = {"samples": self.step * self._config.batch_size, "world_size": distributed.world_size()}
        self._task.export(self._ema.network)  # first, so that a checkpoint means that it is there
        self._snapshots.save(self.step, tensors, state, info)
        self._saved_step = self.step

    def _require_finite_weights(self) -> None:
        """A broken model must not take the place of the last good checkpoint. Equal on all ranks."""
        if not parameter_norm(self._task.network).isfinite():
            raise UserError(
                f"step {self.step}: the weights are not finite, so no checkpoint is written; lower "
                "training.learning_rate; the same command goes on from the last checkpoint"
            )

    def _restore(self, checkpoint: Checkpoint) -> None:
        self._state.restore(checkpoint)
        self._snapshots.restore(checkpoint.state)
        self.step = checkpoint.step
        logger.info("resuming from %s", checkpoint.path)

    def _conclude(self, status: Literal["finished", "already finished"]) -> RunOutcome:
        """The evaluation of the last step, also when a finished run was stopped in the middle of it."""
        if status == "finished" or not self._task.is_evaluated(self.step):
            self._review.evaluate(self.step)
        logger.info(
            "run %s: %d of %d steps done%s",
            status,
            self.step,
            self._config.num_steps,
            "; raise training.num_steps to go on" if status == "already finished" else "",
        )
        return RunOutcome(status, self.step)

    def _conclude_interrupted(self) -> RunOutcome:
        line = (
            f"interrupted at step {self.step} of {self._config.num_steps}: checkpoint saved; "
            "run the same command again to go on"
        )
        if distributed.is_main():
            mark_interrupted(self._run_folder, line)
            logger.warning(line)
        return RunOutcome("interrupted", self.step)


@contextlib.contextmanager
def _failures_of_one_rank(step: int) -> Iterator[None]:
    """Errors that other ranks do not meet: each rank speaks of its own, the door only of rank 0's."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        cure = "raise training.accumulation, or switch on network.activation_checkpointing"
        logger.error("out of GPU memory at step %d", step)
        raise UserError(f"out of GPU memory at step {step}: {cure}") from error
    except UserError as error:
        if not distributed.is_main():
            logger.error("%s", error)
        raise
