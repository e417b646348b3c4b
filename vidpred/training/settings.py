"""What a user chooses about the loop. Values only; the parts built from them live in the other files."""

from dataclasses import dataclass
from typing import Literal, Union

from vidpred.errors import UserError


@dataclass
class TrainingConfig:
    """Length, batch, optimizer, precision, EMA and the rhythm of everything that repeats."""

    num_steps: int = 100_000
    """Optimizer steps of the whole run. A run that has reached them says so and stops; raise it to go on."""
    batch_size: int = 8
    """Clips per optimizer step over all processes and accumulation rounds together."""
    double_resolution_at: tuple[int, ...] = ()
    """Steps at which the height and width of training clips double: before the first of n such steps clips are
    averaged down to data.height / 2^n by data.width / 2^n, from the last one on they have their full size. Early
    steps so cost a quarter or less. Validation, pictures and evaluation are always of full size, and the noise levels
    are the same at every size."""
    accumulation: int = 1
    """Micro batches per optimizer step. Raise it when the GPU memory does not hold the batch."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, or cosine annealing down to lr_floor at the last step."""
    lr_floor: float = 0.0
    """Learning rate at the last step of the cosine schedule, as a fraction of learning_rate."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from 0."""
    weight_decay: float = 0.01
    """Decoupled weight decay; applied to matrices and kernels, not to biases and normalisation scales."""
    beta1: float = 0.9
    """AdamW's decay of the gradient's mean."""
    beta2: float = 0.999
    """AdamW's decay of the gradient's mean square."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 switches clipping off (the norm is still logged)."""
    max_bad_steps: int = 20
    """So many steps in a row without a finite loss and gradient stop the run."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network in training: auto is bf16 on a GPU that has it, fp32 elsewhere."""
    tf32: bool = True
    """Let float32 matrix products and convolutions use TF32 on the GPU."""
    compile: bool = False
    """Compile the network with torch.compile: minutes at the start, faster steps afterwards."""
    ema_decay: float = 0.9999
    """Decay of the averaged weights that sampling uses; 0 makes them equal to the trained weights."""
    ema_warmup: bool = True
    """Begin with a short average, decay = min(ema_decay, (1 + updates) / (10 + updates))."""
    log_every_step: int = 50
    """Steps between log lines. Values are read from the device only then."""
    validate_every_step: int = 500
    """Steps between validation losses (raw and EMA weights, fixed levels and noise); 0: never."""
    validation_clips: int = 32
    """Validation clips of the validation loss."""
    visualize_every_step: Union[int, Literal["epoch"]] = 1000
    """Steps between pictures (context, truth, prediction, error); 0: never. epoch: as many as it takes to see every
    training item once."""
    visualize_clips: int = 4
    """Validation clips in each set of pictures."""
    visualize_prompts: tuple[str, ...] = ()
    """Texts, or class names in a model of classes alone, of which a grid is generated with each set of pictures, from
    no given frame (conditioning.scheme unconditional)."""
    evaluate_every_step: int = 5000
    """Steps between evaluations (PSNR, SSIM, LPIPS beside floor and ceiling); 0: only at the end."""
    checkpoint_every_step: int = 5000
    """Steps between checkpoints; the last step always has one."""
    keep_last: int = 3
    """Newest checkpoints that are kept."""
    keep_every: int = 0
    """Checkpoints at multiples of this step are kept for good; 0: none."""
    best_metric: Literal["validation/loss_ema", "validation/loss"] = "validation/loss_ema"
    """The checkpoint with the lowest value of this metric is kept too."""

    def __post_init__(self) -> None:
        for name in (
            "num_steps",
            "batch_size",
            "accumulation",
            "log_every_step",
            "checkpoint_every_step",
            "keep_last",
            "max_bad_steps",
            "validation_clips",
            "visualize_clips",
        ):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "give 1 or more")
        for name in (
            "warmup_steps",
            "validate_every_step",
            "evaluate_every_step",
            "keep_every",
            "weight_decay",
            "max_grad_norm",
        ):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "give 0 or more")
        rhythm = self.visualize_every_step
        _require(rhythm == "epoch" or rhythm >= 0, "visualize_every_step", rhythm, "give 0 or more")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "give a positive number")
        _require(0 <= self.lr_floor <= 1, "lr_floor", self.lr_floor, "give a fraction between 0 and 1")
        for name in ("ema_decay", "beta1", "beta2"):
            _require(
                0 <= getattr(self, name) < 1, name, getattr(self, name), "give 0 or more and less than 1"
            )

        doubled = self.double_resolution_at
        ascending = all(0 < one < other for one, other in zip(doubled, (*doubled[1:], self.num_steps)))
        _require(ascending, "double_resolution_at", list(doubled), "give ascending steps, from 1 to below num_steps")

    def settle_epoch(self, steps: int) -> None:
        """Replaces the word epoch by its number of steps."""
        if self.visualize_every_step == "epoch":
            self.visualize_every_step = steps

    def shrinkage(self, step: int) -> int:
        """By how much height and width are divided in the step with the 0-based number `step`: 1, 2, 4, ..."""
        return 2 ** sum(step < doubled for doubled in self.double_resolution_at)

    def micro_batch_size(self, world_size: int) -> int:
        """Clips per process and accumulation round; UserError when the batch cannot be cut into equal parts.

        The parts must be equal because the loss of a step is the mean over the clips of the global batch.
        """
        parts = world_size * self.accumulation
        if self.batch_size % parts:
            raise UserError(
                f"training.batch_size {self.batch_size} cannot be shared equally by {world_size} processes x "
                f"{self.accumulation} accumulation rounds: choose a multiple of {parts}"
            )
        return self.batch_size // parts


def _require(holds: bool, name: str, value: object, cure: str) -> None:
    if not holds:
        raise UserError(f"training.{name} is {value}: {cure}")
