"""diffusers' `UNet2DModel` behind this library's network call: each frame is a picture of its own."""

from dataclasses import dataclass
from typing import ClassVar, Optional

import torch.nn.functional as F
from torch import Tensor, nn

from vidpred.conditions import ConditionEmbedding
from vidpred.errors import require
from vidpred.tensor_ops import check_clip, fold_frames, unfold_frames

TIMESTEPS = 1000.0  # diffusers' time embedding is made for timesteps of 0 to 999


@dataclass
class UNet2DConfig:
    """diffusers' UNet2DModel, for images: it looks at each frame alone, at none that is given, and at no text."""

    kind: str = "diffusers_unet2d"
    """Kind of network."""
    channels: tuple[int, ...] = (64, 128, 128, 256)
    """Width of each level, finest first; each further level halves height and width."""
    blocks_per_level: int = 2
    """Residual blocks of each level on the way down; on the way up there is one more."""
    attention_levels: tuple[int, ...] = (2, 3)
    """Levels (0 is the finest) whose blocks also attend; between down and up there is attention in any case."""
    norm_groups: int = 32
    """Groups of the group norms; every width must be a multiple of it."""
    head_dim: int = 8
    """Width of one attention head; every attended level's width, and the last one, must be a multiple of it."""

    each_frame_alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        smallest = min(self.blocks_per_level, self.norm_groups, self.head_dim, len(self.channels), *self.channels)
        require(smallest >= 1, "network.channels, blocks_per_level, norm_groups and head_dim must be positive")
        levels = range(len(self.channels))
        for width in self.channels:
            divides = width % self.norm_groups == 0
            require(divides, f"network.norm_groups: {self.norm_groups} does not divide the width {width}; change one")
        for level in (*self.attention_levels, levels[-1]):
            at = f"network.attention_levels: level {level} does not exist; use 0 to {levels[-1]}"
            require(level in levels, at)
            width = self.channels[level]
            divides = width % self.head_dim == 0
            require(divides, f"network.head_dim: {self.head_dim} does not divide the width {width}; change one")


class DiffusersUNet2D(nn.Module):
    """`UNet2DModel` over frames that are folded into the batch; it is told of their noise, and of a condition.

    Args:
        in_channels, out_channels: latent channels of the input and of the output.
        channels, blocks_per_level, attention_levels, norm_groups, head_dim: see `UNet2DConfig`.
        condition_width: of the embeddings of conditions; 0: the network takes none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: tuple[int, ...],
        blocks_per_level: int,
        attention_levels: tuple[int, ...],
        norm_groups: int,
        head_dim: int,
        condition_width: int = 0,
    ):
        from diffusers import UNet2DModel  # takes seconds to import

        super().__init__()
        levels = range(len(channels))
        down = ["AttnDownBlock2D" if level in attention_levels else "DownBlock2D" for level in levels]
        up = ["AttnUpBlock2D" if level in attention_levels else "UpBlock2D" for level in reversed(levels)]
        self.model = UNet2DModel(
            in_channels=in_channels, out_channels=out_channels, block_out_channels=tuple(channels),
            layers_per_block=blocks_per_level, down_block_types=tuple(down), up_block_types=tuple(up),
            norm_num_groups=norm_groups, attention_head_dim=head_dim,
            class_embed_type="identity" if condition_width else None,
        )  # fmt: skip
        self.condition_in = nn.Linear(condition_width, 4 * channels[0]) if condition_width else None
        self._down_factor = 2 ** levels[-1]

    def forward(
        self,
        x: Tensor,
        noise_code: Tensor,
        given: Tensor,
        frame_times: Tensor,
        condition: Optional[ConditionEmbedding] = None,
    ) -> Tensor:
        """x (B, T, C, H, W) of any size, noise_code (B, T) in [0, 1] -> (B, T, C_out, H, W).

        `given` and `frame_times` (B, T) are not looked at: configurations that give frames are refused.
        """
        check_clip("x", x)
        if (condition is None) != (self.condition_in is None):
            raise ValueError(f"this network takes {'no condition' if condition is not None else 'a condition'}")
        height, width = x.shape[-2:]
        h = F.pad(fold_frames(x), (0, -width % self._down_factor, 0, -height % self._down_factor), mode="replicate")
        labels = None if condition is None else self.condition_in(fold_frames(condition.per_frame).to(x.dtype))
        h = self.model(h, TIMESTEPS * noise_code.flatten().float(), class_labels=labels).sample
        return unfold_frames(h[..., :height, :width], len(x))
