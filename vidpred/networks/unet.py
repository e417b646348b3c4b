"""The spatiotemporal UNet: factorised spatial and temporal residual blocks and attention.

    x, nearest given frames, given
        -> stem -> [level: blocks, halve] ... middle ... [double, concatenate skip, blocks] -> head

The two nearest given frames lie beside every unknown one on the stem's channels: what was there, and how it
moved, need not be carried there through time. Every block is modulated per frame by an embedding of the frame's
noise code, of whether it is given, of how far away in time these two are, and of the frame's condition, where the
network is built for conditions; at some levels every position looks at the tokens of the clip's text. The network knows
nothing of alphas, sigmas, losses or samplers.
"""

from functools import partial
from typing import Optional

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidpred.conditions import ConditionEmbedding
from vidpred.networks.layers import (
    CrossAttention,
    FourierFeatures,
    JointAttention,
    ResidualBlock,
    SpatialAttention,
    TemporalAttention,
    as_frames,
    as_rows,
    group_norm,
    zero_init,
)
from vidpred.tensor_ops import append_dims, check_clip, fold_frames, reference_frames, unfold_frames


class SpatioTemporalBlock(nn.Module):
    """A spatial and a temporal residual block, then attention (modules called with x and the frame times), then, where
    there is one, attention to the tokens of a text."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        attention: list[nn.Module],
        cross_attention: Optional[CrossAttention] = None,
    ):
        super().__init__()
        self.space = ResidualBlock(in_channels, out_channels, embedding, kernel=(3, 3))
        self.time = ResidualBlock(out_channels, out_channels, embedding, kernel=(3, 1))
        self.attention = nn.ModuleList(attention)
        self.cross_attention = cross_attention

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        frame_times: Tensor,
        tokens: Optional[Tensor] = None,
        token_mask: Optional[Tensor] = None,
    ) -> Tensor:
        """x (B*T, C, H, W), embedding (B, T, E), frame_times (B, T), tokens (B, L, W), token_mask (B, L)."""
        x = self.space(x, fold_frames(embedding))
        x = as_frames(self.time(as_rows(x, len(embedding)), embedding), x.shape[-2])
        for attend in self.attention:
            x = attend(x, frame_times)
        return x if self.cross_attention is None else self.cross_attention(x, tokens, token_mask)


class SpatioTemporalUNet(ModelMixin, ConfigMixin):
    """Denoising network over clips of any number of frames and any size.

    Args:
        in_channels, out_channels: latent channels of the input and of the output.
        channels: width of each level, finest first; each level halves height and width.
        blocks_per_level: blocks on the way down, and on the way up, at each level.
        spatial_attention_levels, temporal_attention_levels, joint_attention_levels: indices into `channels`.
        references: nearest given frames that lie beside each unknown one on the input.
        patch_size: the network works on patches of this side: space to depth before it, depth to space after.
        head_dim: width of an attention head.
        condition_width: of the embeddings of conditions; 0: the network takes none.
        cross_attention_levels: levels at which positions look at tokens of condition_width; a network that has them
            must be given some.
        activation_checkpointing: recompute each block in the backward pass, to save memory.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        channels: tuple[int, ...] = (64, 128, 256),
        blocks_per_level: int = 1,
        spatial_attention_levels: tuple[int, ...] = (1, 2),
        temporal_attention_levels: tuple[int, ...] = (1, 2),
        joint_attention_levels: tuple[int, ...] = (),
        references: int = 2,
        patch_size: int = 1,
        head_dim: int = 32,
        activation_checkpointing: bool = False,
        condition_width: int = 0,
        cross_attention_levels: tuple[int, ...] = (),
    ):
        super().__init__()
        channels = tuple(channels)  # a saved configuration holds a list
        embedding = 4 * channels[0]
        deepest = len(channels) - 1
        self.down_factor = patch_size * 2**deepest
        self.code_features = FourierFeatures(2 * channels[0])
        self.embed = nn.Sequential(
            nn.Linear(2 * channels[0] + 1 + references, embedding),
            nn.SiLU(),
            nn.Linear(embedding, embedding),
            nn.SiLU(),
        )
        patch_area = patch_size**2
        stem_channels = (1 + references) * in_channels + 1  # the latents, their references, the given mask
        self.stem = nn.Conv2d(stem_channels * patch_area, channels[0], 3, padding=1)

        attention_levels = [  # (kind of attention, the levels that have it), in the order of their use
            (SpatialAttention, spatial_attention_levels),
            (TemporalAttention, temporal_attention_levels),
            (JointAttention, joint_attention_levels),
        ]

        def block(in_width: int, level: int) -> SpatioTemporalBlock:
            width = channels[level]
            attention = [kind(width, head_dim) for kind, levels in attention_levels if level in levels]
            cross = CrossAttention(width, condition_width, head_dim) if level in cross_attention_levels else None
            return SpatioTemporalBlock(in_width, width, embedding, attention, cross)

        widths_in = (channels[0],) + channels[:-1]
        self.down = nn.ModuleList(
            nn.ModuleList(block(channels[i] if j else widths_in[i], i) for j in range(blocks_per_level))
            for i in range(len(channels))
        )
        self.middle = block(channels[-1], deepest)
        widths_up = channels[1:] + (channels[-1],)  # what arrives at each level from the one below it
        self.up = nn.ModuleList(
            nn.ModuleList(
                block((channels[i] if j else widths_up[i]) + channels[i], i) for j in range(blocks_per_level)
            )
            for i in range(len(channels))
        )
        self.condition_in = nn.Linear(condition_width, embedding) if condition_width else None
        self.norm_out = group_norm(channels[0])
        self.head = zero_init(nn.Conv2d(channels[0], out_channels * patch_area, 3, padding=1))
        self.to(memory_format=torch.channels_last)  # as the activations are: gradients come out in it too

    def forward(
        self,
        x: Tensor,
        noise_code: Tensor,
        given: Tensor,
        frame_times: Tensor,
        condition: Optional[ConditionEmbedding] = None,
    ) -> Tensor:
        """The network's call.

        Args:
            x: (B, T, C, H, W) latents, of any T, H, W.
            noise_code: (B, T) in [0, 1], 0 for a clean frame.
            given: (B, T) bool.
            frame_times: (B, T) in units of the clip's frame interval.
            condition: of the width that the network was built for; None where it was built for none.

        Returns:
            (B, T, C_out, H, W).
        """
        check_clip("x", x)
        if (condition is None) != (self.condition_in is None):
            takes = "no condition" if self.condition_in is None else "a condition, and none is there"
            raise ValueError(f"this SpatioTemporalUNet takes {takes}")
        batch, (height, width) = len(x), x.shape[-2:]
        embedding = self._embedding(noise_code, given, frame_times, condition, x.dtype)  # (B, T, E)
        mask = append_dims(given, 5).to(x.dtype).expand(-1, -1, 1, height, width)
        references = reference_frames(x, given, frame_times, self.config.references)
        h = fold_frames(torch.cat([x, references, mask], dim=2))  # (B*T, (1 + references) C + 1, H, W)
        h = F.pad(h, (0, -width % self.down_factor, 0, -height % self.down_factor), mode="replicate")
        h = F.pixel_unshuffle(h, self.config.patch_size).contiguous(memory_format=torch.channels_last)
        text = (None, None) if condition is None else (condition.tokens, condition.token_mask)
        h = self._body(self.stem(h), embedding, frame_times, *text)
        h = F.pixel_shuffle(self.head(F.silu(self.norm_out(h))), self.config.patch_size)
        return unfold_frames(h[..., :height, :width], batch)

    def _embedding(
        self,
        noise_code: Tensor,
        given: Tensor,
        frame_times: Tensor,
        condition: Optional[ConditionEmbedding],
        dtype: torch.dtype,
    ) -> Tensor:
        """(B, T, E)."""
        embedding = self._frame_features(noise_code, given, frame_times).to(dtype)
        if condition is None:
            return self.embed(embedding)
        *layers, activation = self.embed
        for layer in layers:
            embedding = layer(embedding)
        return activation(embedding + self.condition_in(condition.per_frame.to(dtype)))

    def _frame_features(self, noise_code: Tensor, given: Tensor, frame_times: Tensor) -> Tensor:
        times = frame_times.float()[..., None]  # (B, T, 1)
        nearest = partial(reference_frames, given=given, frame_times=frame_times, count=self.config.references)
        # Where there is no reference both are 0. asinh: a logarithm with a sign.
        distances = (nearest(torch.ones_like(times)) * times - nearest(times)).asinh()
        return torch.cat([self.code_features(noise_code), given.float()[..., None], distances], dim=-1)

    def _body(self, h: Tensor, *per_block: Optional[Tensor]) -> Tensor:
        """`per_block` is what every block receives besides h."""
        skips = []
        for level, blocks in enumerate(self.down):
            if level:
                h = F.avg_pool2d(h, 2)
            for block in blocks:
                h = self._run(block, h, *per_block)
                skips.append(h)
        h = self._run(self.middle, h, *per_block)
        for level in reversed(range(len(self.up))):
            for block in self.up[level]:
                h = self._run(block, torch.cat([h, skips.pop()], dim=1), *per_block)
            if level:
                h = F.interpolate(h, scale_factor=2, mode="nearest")
        return h

    def _run(self, block: nn.Module, h: Tensor, *per_block: Optional[Tensor]) -> Tensor:
        if self.config.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, h, *per_block, use_reentrant=False)
        return block(h, *per_block)
