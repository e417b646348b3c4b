"""Texts: what is frozen reads them on the host, what is trained makes tokens for the network of them.

An encoder is both: `read` is called before the training step, and needs no gradient; the module of `build_embedder` is
part of the network that is trained. L tokens of a text, W the width of the embeddings. The empty text is the null
condition, so a prompt that says nothing asks for nothing.
"""

import abc
import logging
import math
from typing import Callable, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidpred.conditioning.condition_config import TextConfig

logger = logging.getLogger(__name__)


class TextEncoder(abc.ABC):
    """One way from texts to tokens.

    weights: SHA-256 of what is frozen of it and so not saved in checkpoints; None where nothing is.
    """

    weights: Optional[str] = None
    _told = False

    @abc.abstractmethod
    def read(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """(B, L) int64 or (B, L, F) float32 on the device, and (B, L) bool: which there are, none of an empty text.

        A row depends on its text alone, to the last bit, not on the texts around it.
        """

    @abc.abstractmethod
    def build_embedder(self, width: int) -> nn.Module:
        """The trained part: what `read` returns -> tokens (B, L + 1, W); the first one is there in every row."""

    def tell_cut(self, key: str, text: str, whole: int, kept: int, unit: str) -> None:
        """The first text that is longer than what is kept of it is named in the log; `key` of the configuration."""
        if whole > kept and not self._told:
            self._told = True
            logger.warning(
                "%s: only the first %d of %d %s are read of '%s', and of other long texts",
                key, kept, whole, unit, text[:60],
            )  # fmt: skip


class ByteTextEncoder(TextEncoder):
    """UTF-8 bytes, so any language and script, and a small transformer that is trained with the network."""

    def __init__(self, length: int, layers: int):
        self._length, self._layers = length, layers

    def read(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        rows = torch.zeros(len(texts), self._length, dtype=torch.int64)
        for row, text in zip(rows, texts):
            values = text.encode("utf-8", "surrogateescape")
            self.tell_cut("condition.text.length", text, len(values), self._length, "bytes")
            kept = values[: self._length]
            row[: len(kept)] = torch.tensor(list(kept), dtype=torch.int64) + 1
        rows = to_device(rows, device)
        return rows, rows > 0

    def build_embedder(self, width: int) -> nn.Module:
        return ByteEmbedder(self._length, self._layers, width)


class ByteEmbedder(nn.Module):
    """A transformer over bytes and one token before them, which is all that a null text has."""

    def __init__(self, length: int, layers: int, width: int):
        super().__init__()
        self.bytes = nn.Embedding(257, width)  # 0: the token before the text, and what follows its end
        self.positions = nn.Parameter(torch.randn(length + 1, width))
        self.blocks = nn.ModuleList(TokenBlock(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, L) int64, (B, L) bool -> (B, L + 1, W)."""
        x = self.bytes(F.pad(tokens, (1, 0))) + self.positions
        seen = with_first(mask)
        for block in self.blocks:
            x = block(x, seen)
        return self.norm(x)


class FeatureEmbedder(nn.Module):
    """Frozen features, projected; before them a learned token, which is all that a null text has."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.first = nn.Parameter(torch.randn(width))
        self.norm = nn.LayerNorm(features)
        self.project = nn.Linear(features, width)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """(B, L, F), (B, L) bool -> (B, L + 1, W)."""
        first = self.first.expand(len(features), 1, -1)
        return torch.cat([first, self.project(self.norm(features))], dim=1)


class TokenBlock(nn.Module):
    """Attention among the tokens that there are, then two layers for each; both added to what they read."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = math.gcd(width, 4)
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, W), mask (B, L) bool."""
        parts = self.qkv(self.norm_attention(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)  # (B, heads, L, D)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_mlp(x))


def with_first(mask: Tensor) -> Tensor:
    """(B, L) bool -> (B, L + 1): the token before a text is always there."""
    return F.pad(mask, (1, 0), value=True)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Without waiting for the device."""
    pinned = values.pin_memory() if device.type == "cuda" else values
    return pinned.to(device, non_blocking=True)


def _clip(config: TextConfig) -> TextEncoder:
    from vidpred.conditioning.clip_text import ClipTextEncoder

    return ClipTextEncoder(config.model, config.revision, config.weights)


TEXT_ENCODERS: dict[str, Callable[[TextConfig], TextEncoder]] = {
    "bytes": lambda config: ByteTextEncoder(config.length, config.layers),
    "clip": _clip,
}
