"""The conditions of a run: what the data have is written into the configuration, and compared with the checkpoint."""

import dataclasses
import logging
from typing import Optional

from vidpred.checkpoint_store import Checkpoint
from vidpred.conditioning import ConditionConfig
from vidpred.configuration import Config
from vidpred.data import ClipDataset
from vidpred.errors import UserError, require
from vidpred.registry import from_mapping

logger = logging.getLogger(__name__)


def settle_conditions(config: Config, clips: ClipDataset, before: Optional[Checkpoint]) -> None:
    """Fills in `config.condition`: the class names, the scale of actions and the text encoder of the model.

    clips: of the training data. before: the checkpoint that the run goes on from, or whose weights begin it. Raises
    UserError where the data lack a kind, or the classes are not those of the configuration or of the checkpoint.
    """
    condition, had = config.condition, _condition_of(before)
    _require_kinds(condition, clips)
    if "class" in condition.kinds:
        names = condition.class_names or clips.class_names
        strange = sorted(set(clips.class_names) - set(names))
        require(
            not strange,
            f"condition.class_names: the data have the class {(strange or [''])[0]} too; add it, or leave it unset",
        )
        if "class" in had.kinds:
            _require_equal_classes(list(had.class_names), list(names), before)
        condition = dataclasses.replace(condition, class_names=tuple(names))
    if "actions" in condition.kinds:
        scale = condition.action_scale or had.action_scale or clips.action_scale
        sizes = (len(clips.action_scale), len(scale))
        require(
            sizes[0] == sizes[1],
            f"condition.action_scale: {sizes[1]} numbers, and the actions of the data have {sizes[0]}; leave the key "
            "unset, or give the data that belong to the checkpoint",
        )
        condition = dataclasses.replace(condition, action_scale=tuple(scale))
    if "text" in condition.kinds and not condition.text.weights and _same_encoder(condition, had):
        text = dataclasses.replace(condition.text, weights=had.text.weights)
        condition = dataclasses.replace(condition, text=text)
    config.condition = condition


def _condition_of(checkpoint: Optional[Checkpoint]) -> ConditionConfig:
    """Of the run that a checkpoint belongs to."""
    values = (checkpoint.config if checkpoint else {}).get("condition", {})
    return from_mapping(ConditionConfig, values, f"{checkpoint.path}: condition" if checkpoint else "condition")


def _same_encoder(now: ConditionConfig, before: ConditionConfig) -> bool:
    """Its weights must then be the same too, wherever they are found."""
    return (now.text.encoder, now.text.model) == (before.text.encoder, before.text.model)


def _require_kinds(condition: ConditionConfig, clips: ClipDataset) -> None:
    there = {"class": clips.class_names, "text": clips.has_text, "actions": clips.action_scale}
    cures = {"class": "data.classes folders", "text": "data.captions", "actions": "data.actions true"}
    for kind in condition.kinds:
        require(
            bool(there[kind]),
            f"condition.kinds: {kind}, and the clips of {clips.name} come without; set {cures[kind]}, or leave it out",
        )
        if kind in clips.lacking:
            logger.warning("condition.kinds: %s, and the clips of %s all come without", kind, clips.lacking[kind])


def _require_equal_classes(before: list[str], now: list[str], checkpoint: Checkpoint) -> None:
    if before == now:
        return
    lost, new = (sorted(set(one) - set(other)) for one, other in ((before, now), (now, before)))
    changes = [f"{what} {', '.join(names[:5])}" for what, names in (("lost", lost), ("new", new)) if names]
    raise UserError(
        f"condition.class_names: the classes are not those of {checkpoint.path} "
        f"({' and '.join(changes) or 'another order'}); give the old data or names to go on, or another --name"
    )
