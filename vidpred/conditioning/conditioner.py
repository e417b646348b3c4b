"""From names, texts and numbers to the tensors that a model takes as its condition."""

import dataclasses
from typing import Optional, Sequence

import torch
from torch import Tensor, nn

from vidpred.conditioning.condition_config import ConditionConfig
from vidpred.conditioning.embedders import EMBEDDERS, ConditionedNetwork
from vidpred.conditioning.text import TEXT_ENCODERS, to_device
from vidpred.conditions import Condition, ConditionBatch
from vidpred.errors import UserError, require

SHOWN_CLASSES = 20


class Conditioner:
    """What is frozen of a model's conditions: the order of its classes, its way of reading texts.

    config: as given, and with it the SHA-256 of a frozen encoder's weights.
    """

    def __init__(self, config: ConditionConfig):
        self._numbers = {name: number for number, name in enumerate(config.class_names)}
        self._encoder = TEXT_ENCODERS[config.text.encoder](config.text) if "text" in config.kinds else None
        weights = self._encoder.weights if self._encoder else config.text.weights
        self.config = dataclasses.replace(config, text=dataclasses.replace(config.text, weights=weights))

    def around(self, network: nn.Module) -> ConditionedNetwork:
        """The network with new embedders."""
        config = self.config
        return ConditionedNetwork(network, {kind: EMBEDDERS[kind](config, self._encoder) for kind in config.kinds})

    def __call__(self, asked: Optional[ConditionBatch], rows: int, frames: int, device: torch.device) -> Condition:
        """The condition of `rows` clips of `frames` frames. What is not asked for is null, and kinds that the model
        does not take are passed over. Raises UserError: a class that it does not know, actions of another shape."""
        asked = ConditionBatch() if asked is None else asked
        kinds, condition = self.config.kinds, {}
        if "class" in kinds:
            numbers = [self._number(name) for name in _for_each("class", asked.class_names, rows)]
            condition["classes"] = to_device(torch.tensor(numbers), device)
        if "text" in kinds:
            texts = [text or "" for text in _for_each("text", asked.text, rows)]
            condition["text"], condition["text_mask"] = self._encoder.read(texts, device)
        if "actions" in kinds:
            condition["actions"] = self._actions(asked.actions, rows, frames, device)
            known = asked.actions is not None
            condition["actions_known"] = torch.full((rows,), known, dtype=torch.bool, device=device)
        return Condition(**condition)

    def parts_of(self, conditions: ConditionBatch) -> Optional[ConditionBatch]:
        """Those that the model takes; None where there are none."""
        parts = {"class": conditions.class_names, "text": conditions.text, "actions": conditions.actions}
        taken = ConditionBatch(*(value if kind in self.config.kinds else None for kind, value in parts.items()))
        return taken if taken.parts() else None

    def prompts(self, words: Sequence[str]) -> ConditionBatch:
        """A row for each word: a text, or a class where no text is taken. UserError: neither is, or no such class."""
        if "text" in self.config.kinds:
            return ConditionBatch(text=list(words))
        require("class" in self.config.kinds, "prompts: the model takes actions alone (condition.kinds); ask for none")
        for word in words:
            self._number(word)
        return ConditionBatch(class_names=list(words))

    def require_kinds(self, asked: ConditionBatch) -> None:
        """UserError where something is asked for that the model does not take."""
        for kind in asked.parts():
            require(
                kind in self.config.kinds,
                f"{kind}: the model takes {' and '.join(self.config.kinds)}, and no {kind}; ask for nothing else",
            )

    def _number(self, name: Optional[str]) -> int:
        if name is None:
            return -1
        if name not in self._numbers:
            names = self.config.class_names
            more = f", and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
            raise UserError(
                f"class: '{name}' is not known to the model; choose one of {', '.join(names[:SHOWN_CLASSES])}{more}"
            )
        return self._numbers[name]

    def _actions(self, actions: Optional[Tensor], rows: int, frames: int, device: torch.device) -> Tensor:
        shape = (rows, frames, len(self.config.action_scale))
        if actions is None:
            return torch.zeros(shape, device=device)
        require(
            tuple(actions.shape) == shape,
            f"actions: expected {shape} numbers (clips, frames, size of an action), got {tuple(actions.shape)}",
        )
        return actions.to(device, torch.float32, non_blocking=True)


def _for_each(kind: str, values: Optional[Sequence[Optional[str]]], rows: int) -> Sequence[Optional[str]]:
    if values is None:
        return [None] * rows
    require(len(values) == rows, f"{kind}: {len(values)} are given for {rows} clips; give one for each, or None")
    return values
