"""The trained part of the conditions: one embedder for each kind, chosen by its name in EMBEDDERS.

All of them make vectors of one width W: of a class or of an action they are added up, frame by frame, to what the
network makes of the noise level; a text is tokens to look at, and their mean is added too. A null condition has an
embedding of its own, which is learned. Every parameter is used in every call, whatever is null.
"""

import abc
from typing import Callable, Optional

import torch
from torch import Tensor, nn

from vidpred.conditioning.condition_config import ConditionConfig
from vidpred.conditioning.text import TextEncoder, with_first
from vidpred.conditions import Condition, ConditionEmbedding, ConditionShape


class Embedder(nn.Module, abc.ABC):
    """One kind of condition."""

    @abc.abstractmethod
    def forward(self, condition: Condition) -> ConditionEmbedding:
        """per_frame is (B, T, W), or (B, 1, W) where it is the same for all frames."""


class ClassEmbedder(Embedder):
    """A table with one row more than there are classes: the last one is the null condition."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, condition: Condition) -> ConditionEmbedding:
        null = self.table.num_embeddings - 1
        rows = torch.where(condition.classes < 0, null, condition.classes)
        return ConditionEmbedding(self.table(rows)[:, None])


class ActionEmbedder(Embedder):
    """Two layers for each frame's action, in units of `scale` (A,)."""

    def __init__(self, scale: tuple[float, ...], width: int):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale), persistent=False)  # it is part of the configuration
        self.mlp = nn.Sequential(nn.Linear(len(scale), width), nn.SiLU(), nn.Linear(width, width))
        self.null = nn.Parameter(torch.randn(width))

    def forward(self, condition: Condition) -> ConditionEmbedding:
        embedded = self.mlp(condition.actions / self.scale)  # (B, T, W)
        return ConditionEmbedding(torch.where(condition.actions_known[:, None, None], embedded, self.null))


class TextEmbedder(Embedder):
    """Tokens of a text, by its encoder's trained part, and their mean."""

    def __init__(self, tokens: nn.Module, width: int):
        super().__init__()
        self.tokens = tokens
        self.norm = nn.LayerNorm(width)  # the mean of many tokens is small

    def forward(self, condition: Condition) -> ConditionEmbedding:
        mask = with_first(condition.text_mask)
        tokens = self.tokens(condition.text, condition.text_mask)
        seen = mask[..., None].to(tokens.dtype)
        mean = (tokens * seen).sum(dim=1, keepdim=True) / seen.sum(dim=1, keepdim=True)
        return ConditionEmbedding(self.norm(mean), tokens, mask)


EMBEDDERS: dict[str, Callable[[ConditionConfig, Optional[TextEncoder]], Embedder]] = {
    "class": lambda config, encoder: ClassEmbedder(len(config.class_names), config.width),
    "text": lambda config, encoder: TextEmbedder(encoder.build_embedder(config.width), config.width),
    "actions": lambda config, encoder: ActionEmbedder(config.action_scale, config.width),
}


class ConditionedNetwork(nn.Module):
    """A network and the embedders of its conditions as one network, which is what is trained, averaged and saved."""

    def __init__(self, network: nn.Module, embedders: dict[str, Embedder]):
        super().__init__()
        self.network = network
        self.embedders = nn.ModuleDict(embedders)

    def forward(
        self, x: Tensor, noise_code: Tensor, given: Tensor, frame_times: Tensor, condition: Condition
    ) -> Tensor:
        """As any network, see `vidpred.networks`; `condition` is not embedded yet."""
        if condition is None:
            raise ValueError("a conditioned network needs a condition; where there is none, a null one")
        parts = [embed(condition) for embed in self.embedders.values()]
        per_frame = sum(part.per_frame for part in parts).expand(-1, x.shape[1], -1)
        text = next((part for part in parts if part.tokens is not None), ConditionEmbedding(per_frame))
        embedding = ConditionEmbedding(per_frame, text.tokens, text.token_mask)
        return self.network(x, noise_code, given, frame_times, embedding)


def condition_shape(config: ConditionConfig) -> Optional[ConditionShape]:
    """What a network must be built for; None without conditions."""
    return ConditionShape(config.width, "text" in config.kinds) if config.kinds else None
