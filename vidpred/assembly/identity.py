"""What must not change within a run, and the refusal where it did."""

import dataclasses
from typing import Any, Iterator

from vidpred.checkpoint_store import Checkpoint
from vidpred.conditioning import ConditioningConfig
from vidpred.configuration import RunConfig, VaeConfig
from vidpred.data import MixtureConfig
from vidpred.errors import UserError

# Changed between two starts of one run, these make another model or other data of it, so a resume refuses them.
FIXED_KEYS = (
    "task", "vae", "data", "autoencoder", "network", "conditioning", "condition", "diffusion", "seed", "init_from",
    "overfit_one_batch",
    "training.batch_size",  # running draw numbers are counted in batches
)
FREE_OF_DATA = ("root", "num_workers", "decode_timeout", "cache", "max_bad_fraction")
FREE_KEYS = (
    *(f"data.{source}{key}" for source in ("", "videos.", "images.") for key in FREE_OF_DATA),
    "autoencoder.frames_per_chunk", "autoencoder.half", "autoencoder.min_psnr", "network.activation_checkpointing",
    "condition.class_names", "condition.action_scale",  # compared with the data, where they are known
    "condition.text.weights", "condition.text.revision",  # compared where the encoder is loaded
)


def require_same_run(config: RunConfig, checkpoint: Checkpoint) -> None:
    """A resume must be of the same model and data; the length, the rates and the rhythms may change."""
    before, now = (_identity(values) for values in (checkpoint.config, config.resolved()))
    common = before.keys() & now.keys()  # a key that one of them lacks is of another version, or of another kind
    # A source of a mixture has the settings of data too: where these changed, they are what is named.
    for key in sorted(common, key=lambda key: (key.count("."), key)):
        if before[key] != now[key]:
            raise UserError(
                f"{key}: is {now[key]}, but the run in {checkpoint.path.parents[1]} was started with "
                f"{before[key]}; give the old value to go on, or another --name for a new run"
            )


def _identity(resolved: dict[str, Any]) -> dict[str, Any]:
    """What must not change within a run, by dotted key."""
    fixed_keys = FIXED_KEYS
    if resolved.get("task") == VaeConfig.task and resolved["vae"].get("lpips_weight", 0) > 0:
        fixed_keys += ("evaluation.lpips_net",)  # of the loss there, and not of the figures alone
    fixed = {key: value for key, value in _flat(_completed(resolved)) if key.startswith(fixed_keys)}
    return {key: value for key, value in fixed.items() if key not in FREE_KEYS}


def _completed(resolved: dict[str, Any]) -> dict[str, Any]:
    """With every value of what a user may write in part: what is left out is compared too. Raises UserError."""
    conditioning, data = resolved.get("conditioning"), resolved["data"]
    whole = dict(resolved)
    if conditioning:
        whole["conditioning"] = {**conditioning, "scheme": _scheme(conditioning["scheme"])}
    if data["kind"] == MixtureConfig.kind:
        known = [each.name for each in dataclasses.fields(MixtureConfig) if each.name in data]
        sources = MixtureConfig(**{key: data[key] for key in known}).sources()
        whole["data"] = {**data, **{name: dataclasses.asdict(source) for name, source in sources.items()}}
    return whole


def _scheme(scheme: str | dict[str, float]) -> str:
    """As it is written in a configuration, one way for each mixture."""
    mixture = ConditioningConfig(scheme=scheme).mixture()
    parts = [f"{name}: {float(probability)}" for name, probability in sorted(mixture.items())]
    return next(iter(mixture)) if len(mixture) == 1 else f"{{{', '.join(parts)}}}"


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
