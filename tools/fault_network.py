"""A network of the fault bench's own, no UNet: blocks of one level, convolution and attention to all frames."""

from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidpred.conditions import ConditionEmbedding, ConditionShape
from vidpred.networks import NETWORKS
from vidpred.networks.layers import FourierFeatures, JointAttention, group_norm, zero_init
from vidpred.tensor_ops import append_dims, fold_frames, reference_frames, unfold_frames


@dataclass
class OneLevelConfig:
    """Blocks of one resolution."""

    kind: str = "one_level"
    width: int = 64
    """Channels."""
    depth: int = 3
    """Blocks; the dilation of their convolutions is 1, 2, 1, 2, ..."""
    patch_size: int = 2
    """Side of the patch of latents that becomes one position."""


class OneLevel(nn.Module):
    """The two nearest given frames lie beside each unknown one on the input, which also goes straight to the output,
    so that noise need not be carried through the blocks."""

    def __init__(self, in_channels: int, out_channels: int, width: int, depth: int, patch_size: int, condition: int):
        super().__init__()
        self.patch_size = patch_size
        self.code = nn.Sequential(FourierFeatures(32), nn.Linear(32, width))
        self.known = nn.Linear(1, width)
        self.condition_in = nn.Linear(condition, width) if condition else None
        inputs, outputs = (3 * in_channels + 1) * patch_size**2, out_channels * patch_size**2
        self.stem = nn.Conv2d(inputs, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width, 1 + i % 2) for i in range(depth))
        self.norm_out = group_norm(width)
        self.head = zero_init(nn.Conv2d(width, outputs, 3, padding=1))
        self.head_direct, self.head_gain = nn.Conv2d(inputs, outputs, 1), zero_init(nn.Linear(width, outputs))

    def forward(
        self, x: Tensor, noise_code: Tensor, given: Tensor, frame_times: Tensor,
        condition: Optional[ConditionEmbedding] = None,
    ) -> Tensor:  # fmt: skip
        """As vidpred.networks.SpatioTemporalUNet's."""
        height, width = x.shape[-2:]
        embedding = self.code(noise_code) + self.known(given.to(x)[..., None])  # (B, T, W)
        if condition is not None:
            embedding = embedding + self.condition_in(condition.per_frame.to(x.dtype))
        mask = append_dims(given, 5).to(x).expand(-1, -1, 1, height, width)
        h = fold_frames(torch.cat([x, reference_frames(x, given, frame_times, 2), mask], dim=2))
        h = F.pad(h, (0, -width % self.patch_size, 0, -height % self.patch_size), mode="replicate")
        embedding, patches = fold_frames(F.silu(embedding)), F.pixel_unshuffle(h, self.patch_size)
        h = self.stem(patches)
        for block in self.blocks:
            h = block(h, embedding, frame_times)
        direct = self.head_gain(embedding)[..., None, None] * self.head_direct(patches)
        h = F.pixel_shuffle(self.head(F.silu(self.norm_out(h))) + direct, self.patch_size)
        return unfold_frames(h[..., :height, :width], len(x))


class Block(nn.Module):
    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.norm = group_norm(width)
        self.modulation = nn.Linear(width, 2 * width)
        self.enter = nn.Conv2d(width, 2 * width, 3, padding=dilation, dilation=dilation)
        self.leave = zero_init(nn.Conv2d(2 * width, width, 1))
        self.attention = JointAttention(width, 16 if width % 16 == 0 else width)

    def forward(self, h: Tensor, embedding: Tensor, frame_times: Tensor) -> Tensor:
        """h (B*T, W, H, W'), embedding (B*T, W), frame_times (B, T)."""
        scale, shift = self.modulation(embedding)[..., None, None].chunk(2, dim=1)
        change = self.leave(F.silu(self.enter(F.silu(self.norm(h) * (1 + scale) + shift))))
        return self.attention(h + change, frame_times)


@NETWORKS.register("one_level", OneLevelConfig)
def build_one_level(
    config: OneLevelConfig, in_channels: int, out_channels: int, condition: Optional[ConditionShape] = None
) -> OneLevel:
    sizes = config.width, config.depth, config.patch_size
    return OneLevel(in_channels, out_channels, *sizes, condition.width if condition else 0)
