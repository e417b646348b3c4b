"""The configuration section `condition`: what clips are generated from besides given frames."""

from dataclasses import dataclass, field
from typing import Literal, Optional

from vidpred.errors import require

KINDS = ("class", "text", "actions")


@dataclass
class TextConfig:
    """How texts are read; used where `condition.kinds` has text."""

    encoder: Literal["bytes", "clip"] = "bytes"
    """bytes: a small encoder of UTF-8 bytes, trained with the network. clip: CLIP's text encoder, frozen, through
    transformers (pip install 'vidpred[text]'); it is not saved in checkpoints."""
    length: int = 64
    """bytes: longest text, in bytes of UTF-8; what is longer is cut there, and told."""
    layers: int = 2
    """bytes: transformer blocks."""
    model: str = "openai/clip-vit-large-patch14"
    """clip: a name on the Hugging Face hub, or a local folder; weights as safetensors."""
    revision: Optional[str] = None
    """clip: a branch, tag or commit on the hub. Not set: its main branch."""
    weights: Optional[str] = None
    """clip: SHA-256 of the encoder's weights; others are refused. Not set: those that are found; kept in the
    checkpoint."""

    def __post_init__(self) -> None:
        at = "condition.text"
        require(self.encoder in ("bytes", "clip"), f"{at}.encoder: '{self.encoder}' is not known; choose bytes or clip")
        require(self.length >= 1, f"{at}.length: {self.length} must be 1 or more")
        require(self.layers >= 0, f"{at}.layers: {self.layers} must be 0 or more")


@dataclass
class ConditionConfig:
    """What clips are conditioned on besides given frames."""

    kinds: tuple[str, ...] = ()
    """Any of class, text and actions; the data must have them (data.classes, data.captions, data.actions)."""
    dropout: float = 0.1
    """Probability that a training clip's condition is left out; above 0 it makes guidance possible. Of several kinds
    each is also left out by itself with this probability, so that the network learns to follow any of them alone."""
    width: int = 128
    """Width of the embeddings that the network receives."""
    text: TextConfig = field(default_factory=TextConfig)
    class_names: tuple[str, ...] = ()
    """The classes in the order of their numbers. Not set: those of the data, by name; kept in the checkpoint."""
    action_scale: tuple[float, ...] = ()
    """What each number of an action is divided by. Not set: its size in the training data; kept in the checkpoint."""

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        require(not unknown, f"condition.kinds: '{(unknown or [''])[0]}' is not known; choose {', '.join(KINDS)}")
        require(len(set(self.kinds)) == len(self.kinds), f"condition.kinds: {list(self.kinds)} names one twice")
        require(0 <= self.dropout < 1, f"condition.dropout: {self.dropout} must be 0 or more and below 1 (0.1: usual)")
        require(self.width >= 4, f"condition.width: {self.width} must be 4 or more")
        names = list(self.class_names)
        require(len(set(names)) == len(names), f"condition.class_names: {names} names one twice")
        scales = list(self.action_scale)
        require(all(scale > 0 for scale in scales), f"condition.action_scale: {scales} must be positive numbers")
