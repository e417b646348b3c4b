"""What must not change within a run, and the refusal where it did."""

from typing import Any, Iterator

from vidpred.checkpoint_store import Checkpoint
from vidpred.configuration import RunConfig
from vidpred.errors import UserError

# Changed between two starts of one run, these make another model or other data of it, so a resume refuses them.
FIXED_KEYS = (
    "task", "vae", "data", "autoencoder", "network", "conditioning", "condition", "diffusion", "seed", "init_from",
    "overfit_one_batch",
    "training.batch_size",  # running draw numbers are counted in batches
)
FREE_KEYS = (
    "data.root", "data.num_workers", "data.decode_timeout", "data.cache", "data.max_bad_fraction",
    *(f"data.{source}.{key}" for source in ("videos", "images") for key in ("root", "num_workers", "cache")),
    "autoencoder.frames_per_chunk", "autoencoder.half", "autoencoder.min_psnr", "network.activation_checkpointing",
    "condition.class_names", "condition.action_scale",  # compared with the data, where they are known
    "condition.text.weights", "condition.text.revision",  # compared where the encoder is loaded
)


def require_same_run(config: RunConfig, checkpoint: Checkpoint) -> None:
    """A resume must be of the same model and data; the length, the rates and the rhythms may change."""
    before, now = (_identity(values) for values in (checkpoint.config, config.resolved()))
    for key in sorted(before.keys() & now.keys()):  # a key that one of them lacks is of another version
        if before[key] != now[key]:
            raise UserError(
                f"{key}: is {now[key]}, but the run in {checkpoint.path.parents[1]} was started with "
                f"{before[key]}; give the old value to go on, or another --name for a new run"
            )


def _identity(resolved: dict[str, Any]) -> dict[str, Any]:
    """What must not change within a run, by dotted key."""
    fixed = {key: value for key, value in _flat(resolved) if key.startswith(FIXED_KEYS)}
    return {key: value for key, value in fixed.items() if key not in FREE_KEYS}


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
