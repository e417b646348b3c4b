"""What stands between a bare network and its call: compilation, DDP, autocast, and the mode.

The order is fixed: compile the bare network, then wrap it in DDP, then autocast around both. The bare network
stays usable (its own weights, no prefix in its state), which is what validation, EMA and checkpoints use.
"""

import contextlib
import inspect
from typing import Any, ContextManager, Iterator, Optional

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vidpred import distributed
from vidpred.errors import UserError
from vidpred.training.settings import TrainingConfig


def autocast_dtype(precision: str, device: torch.device) -> Optional[torch.dtype]:
    """The type that `training.precision` means on this device: bfloat16, or None for float32."""
    if precision == "auto":
        able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if able else None
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("training.precision bf16: this GPU has no bfloat16; use fp32 or auto")
    return torch.bfloat16 if precision == "bf16" else None


class Autocast(nn.Module):
    """Calls `network` under autocast to `dtype` (None: as it is) and hands its output on as float32."""

    def __init__(self, network: nn.Module, device: torch.device, dtype: Optional[torch.dtype]):
        super().__init__()
        self.network = network
        self._device_type = device.type
        self._dtype = dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self._device_type, dtype=self._dtype, enabled=self._dtype is not None):
            output = self.network(*args, **kwargs)
        return output.float() if isinstance(output, Tensor) else output


class TrainedNetwork(nn.Module):
    """The network as the training step calls it. Its weights are those of the bare network that it was given.

    Building it under DDP gives every rank the weights of rank 0.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        dtype: Optional[torch.dtype],
        config: TrainingConfig,
    ):
        super().__init__()
        allow_tf32(config.tf32)
        called = torch.compile(network) if config.compile else network
        self._parallel = _wrap_in_ddp(called, device) if distributed.world_size() > 1 else None
        self._autocast = Autocast(called if self._parallel is None else self._parallel, device, dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._autocast(*args, **kwargs)

    def gradients_stay_local(self) -> ContextManager:
        """Inside, a backward pass adds to this rank's gradients without averaging them over ranks."""
        return self._parallel.no_sync() if self._parallel else contextlib.nullcontext()


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) inside, the mode of before afterwards."""
    before = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(before)


def _wrap_in_ddp(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    arguments = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in arguments else "broadcast_buffers"
    return DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        **{buffers: False},  # newer torch renames it; without it each forward pass would broadcast them
        gradient_as_bucket_view=True,
        static_graph=False,  # a static graph crashes together with no_sync()
    )


def allow_tf32(allowed: bool) -> None:
    """TF32 for float32 products and convolutions on the GPU."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
