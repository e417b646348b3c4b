"""Denoising networks: chosen by `network.kind`, built by `build_network`.

Every network is called as `network(x, noise_code, given, frame_times, condition)`; see `SpatioTemporalUNet`.
"""

from dataclasses import dataclass
from typing import Any, Optional

from torch import nn

from vidpred.conditions import ConditionShape
from vidpred.errors import UserError
from vidpred.networks.unet import SpatioTemporalUNet
from vidpred.networks.unet2d import DiffusersUNet2D, UNet2DConfig
from vidpred.registry import Registry

NETWORKS = Registry("network")


@dataclass
class UNetConfig:
    """The spatiotemporal UNet."""

    kind: str = "unet"
    """Kind of network."""
    channels: tuple[int, ...] = (128, 256, 384, 512)
    """Width of each level, finest first; each further level halves height and width."""
    blocks_per_level: int = 2
    """Spatiotemporal blocks of each level, on the way down and on the way up."""
    spatial_attention_levels: tuple[int, ...] = (2, 3)
    """Levels (0 is the finest) at which a position looks at its whole frame."""
    temporal_attention_levels: tuple[int, ...] = (1, 2, 3)
    """Levels at which a position looks at itself in the other frames."""
    joint_attention_levels: tuple[int, ...] = ()
    """Levels at which a position looks at all positions of all frames; for coarse levels, the cost is quadratic."""
    cross_attention_levels: Optional[tuple[int, ...]] = None
    """Levels at which a position looks at the text, in a model with condition.kinds text. Not set: those of
    spatial_attention_levels."""
    references: int = 2
    """Nearest given frames that lie beside each unknown one on the network's input."""
    patch_size: int = 1
    """The network works on patches of this side: 2 is about four times faster, and coarser."""
    head_dim: int = 32
    """Width of one attention head; every attended level's width must be a multiple of it."""
    activation_checkpointing: bool = False
    """Recompute blocks in the backward pass: about a third slower, far less memory."""

    def __post_init__(self):
        if min(self.blocks_per_level, self.patch_size, len(self.channels), *self.channels) < 1:
            raise UserError("network.channels, network.blocks_per_level and network.patch_size must be positive")
        if self.references < 0:
            raise UserError(f"network.references: {self.references} must be 0 or more (2 is usual)")
        if self.head_dim < 6 or self.head_dim % 2:  # row, column and time each turn a pair of channels
            raise UserError(f"network.head_dim: {self.head_dim} is not possible; give an even number from 6 on")
        for kind in ("spatial", "temporal", "joint", "cross"):
            for level in getattr(self, f"{kind}_attention_levels") or ():
                self._check_attention(f"{kind}_attention_levels", level)

    def _check_attention(self, key: str, level: int) -> None:
        levels = range(len(self.channels))
        if level not in levels:
            raise UserError(f"network.{key}: level {level} does not exist; use 0 to {len(levels) - 1}")
        if self.channels[level] % self.head_dim:
            raise UserError(
                f"network.head_dim: {self.head_dim} does not divide the {self.channels[level]} channels "
                f"of level {level}; change network.channels or network.head_dim"
            )


@NETWORKS.register("unet", UNetConfig)
def build_unet(
    config: UNetConfig, in_channels: int, out_channels: int, condition: Optional[ConditionShape] = None
) -> SpatioTemporalUNet:
    wanted = config.cross_attention_levels
    cross_levels = config.spatial_attention_levels if wanted is None else wanted
    return SpatioTemporalUNet(
        in_channels=in_channels,
        out_channels=out_channels,
        channels=tuple(config.channels),
        blocks_per_level=config.blocks_per_level,
        spatial_attention_levels=tuple(config.spatial_attention_levels),
        temporal_attention_levels=tuple(config.temporal_attention_levels),
        joint_attention_levels=tuple(config.joint_attention_levels),
        references=config.references,
        patch_size=config.patch_size,
        head_dim=config.head_dim,
        activation_checkpointing=config.activation_checkpointing,
        condition_width=condition.width if condition else 0,
        cross_attention_levels=tuple(cross_levels) if condition and condition.has_tokens else (),
    )


@NETWORKS.register("diffusers_unet2d", UNet2DConfig)
def build_unet2d(
    config: UNet2DConfig, in_channels: int, out_channels: int, condition: Optional[ConditionShape] = None
) -> DiffusersUNet2D:
    if condition and condition.has_tokens:
        raise UserError(
            "network.kind: diffusers_unet2d takes classes, but no text; use unet, or leave text out of kinds"
        )
    return DiffusersUNet2D(
        in_channels=in_channels,
        out_channels=out_channels,
        channels=tuple(config.channels),
        blocks_per_level=config.blocks_per_level,
        attention_levels=tuple(config.attention_levels),
        norm_groups=config.norm_groups,
        head_dim=config.head_dim,
        condition_width=condition.width if condition else 0,
    )


def build_network(
    config: Any, in_channels: int, out_channels: int, condition: Optional[ConditionShape] = None
) -> nn.Module:
    """The network of `config.kind` for latents of `in_channels` channels.

    `condition` is what it receives besides; without it the network is called with None in its place. UserError where
    the kind takes none: its builder has no such parameter.
    """
    sizes = {"in_channels": in_channels, "out_channels": out_channels}
    if condition is None:
        return NETWORKS.build(config, **sizes)
    if not NETWORKS.takes(config.kind, "condition"):
        raise UserError(f"network.kind: {config.kind} takes no conditions; use unet, or set condition.kinds to []")
    return NETWORKS.build(config, **sizes, condition=condition)
