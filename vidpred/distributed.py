"""Processes under torchrun: one group, rank helpers and reductions that also work in a plain process.

World: all processes of the run. Rank: this process, 0 .. world - 1. Local rank: its number on its machine.
Every function here works without a group (world 1, reductions are the identity), so the same script runs
under `torchrun` and under plain `python`.

The group on GPUs has two backends: nccl for tensors on the GPU, gloo for tensors on the CPU. Flags, names and
barriers therefore travel over gloo and never make the host wait for the GPU's queue.
"""

import contextlib
import datetime
import os
from typing import Any, Callable, Iterator, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vidpred.errors import UserError

T = TypeVar("T")


def _environment(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def launched_by_torchrun() -> bool:
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def choose_device(device: str = "auto") -> torch.device:
    """The device of this process; touches no GPU, so it can be asked before anything else is built.

    `device` is "auto" (the GPU where there is one), "cpu", "cuda", or, without torchrun, "cuda:N". Under
    torchrun a process takes the GPU of its local rank. Raises UserError where there are too few GPUs.
    """
    gpus = torch.cuda.device_count()
    processes = _environment("LOCAL_WORLD_SIZE", 1)
    if device == "cpu" or (device == "auto" and gpus == 0):
        return torch.device("cpu")
    kind, _, index = device.partition(":")
    if device != "auto" and (kind != "cuda" or (index and not index.isdigit())):
        raise UserError(f"device: '{device}' is not known; choose auto, cpu or cuda")
    if gpus == 0:
        raise UserError(f"device: '{device}' but this machine shows no GPU to PyTorch; use --device cpu")
    if processes > gpus:
        raise UserError(f"--nproc_per_node {processes} but {gpus} GPUs: lower it or use --device cpu")
    if index and launched_by_torchrun():
        raise UserError(f"device: '{device}' under torchrun: use cuda, each process takes its own GPU")
    chosen = int(index) if index else _environment("LOCAL_RANK", 0)
    if chosen >= gpus:
        raise UserError(f"device: GPU {chosen} of {gpus} was asked for; choose cuda:0 .. cuda:{gpus - 1}")
    return torch.device("cuda", chosen)


@contextlib.contextmanager
def process_group(device: str = "auto", timeout_minutes: float = 30.0) -> Iterator[torch.device]:
    """Joins the group that torchrun started, yields this process's device and leaves the group at the end.

    Without torchrun there is no group. A collective that waits longer than `timeout_minutes` fails.
    """
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if not launched_by_torchrun():
        yield chosen
        return
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo",
        timeout=datetime.timedelta(minutes=timeout_minutes),
    )
    barrier()  # a rank that is refused at once and leaves would break connections that others still make
    try:
        yield chosen
    except BaseException:
        # Leaving an nccl group waits for collectives that the other ranks may never join; torchrun ends them.
        if chosen.type == "cpu":
            dist.destroy_process_group()
        raise
    barrier()
    dist.destroy_process_group()


def has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's rank in the group; 0 without one."""
    return dist.get_rank() if has_group() else 0


def world_size() -> int:
    """The number of processes in the group; 1 without one."""
    return dist.get_world_size() if has_group() else 1


def local_rank() -> int:
    """This process's number on its machine."""
    return _environment("LOCAL_RANK", 0)


def is_main() -> bool:
    """Whether this process speaks (prints, saves). Right under torchrun even before the group exists."""
    return (dist.get_rank() if has_group() else _environment("RANK", 0)) == 0


def barrier() -> None:
    """Waits until every rank is here. It does not wait for work queued on a GPU."""
    any_rank(False)


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp) -> Tensor:
    result = tensor.detach().clone().contiguous()
    if has_group():
        dist.all_reduce(result, operation)
    return result


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """A new tensor like `tensor`: the sum over ranks. Every rank must call it with the same shape."""
    return _all_reduce(tensor, dist.ReduceOp.SUM)


def all_reduce_max(tensor: Tensor) -> Tensor:
    """A new tensor like `tensor`: the elementwise maximum over ranks."""
    return _all_reduce(tensor, dist.ReduceOp.MAX)


def all_reduce_min(tensor: Tensor) -> Tensor:
    """A new tensor like `tensor`: the elementwise minimum over ranks."""
    return _all_reduce(tensor, dist.ReduceOp.MIN)


def any_rank(flag: bool) -> bool:
    """True on every rank when `flag` is true on at least one."""
    return bool(all_reduce_max(torch.tensor(int(flag), dtype=torch.int32)).item())


def gather_objects(value: Any) -> list:
    """Every rank's `value`, in rank order, on every rank. Only between the processes of one run."""
    if not has_group():
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def all_or_fail(work: Callable[[], T]) -> T:
    """This rank's result of `work`; a UserError of any rank is raised on all of them.

    A rank that failed alone would leave the others waiting, and only rank 0 prints the error. `work` must
    not use collective operations.
    """
    result, failure = None, None
    try:
        result = work()
    except UserError as error:
        failure = str(error)
    failures = [failure for failure in gather_objects(failure) if failure is not None]
    if failures:
        raise UserError(failures[0])
    return result


def gather_or_fail(work: Callable[[], T]) -> list[T]:
    """The result of `work` on every rank, in rank order; see `all_or_fail`."""
    return gather_objects(all_or_fail(work))


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value`, on every rank."""
    if not has_group():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def shard(count: int) -> range:
    """This rank's share of the indices 0 .. count - 1: every `world_size()`-th, beginning at the rank."""
    return range(rank(), count, world_size())


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 runs the block alone; the others run it after that (a download, a file that all then find)."""
    if rank() != 0:
        barrier()
    try:
        yield
    finally:
        # Also after an error on rank 0, so that the others are not left waiting for the timeout.
        if rank() == 0:
            barrier()
