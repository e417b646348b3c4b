"""The layers of the spatiotemporal UNet.

Inside the network a clip batch is folded once to (B*T, C, H, W) and kept in channels-last memory, that is,
its values lie in the order (B, T, H, W, C). A spatial layer reads that memory as B*T images; a temporal layer
reads the *same* memory as B images of T rows and H*W columns, so neither ever copies.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


def zero_init(module: nn.Module) -> nn.Module:
    """Sets the weights to zero: a residual branch that ends in it begins as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def as_rows(x: Tensor, batch: int) -> Tensor:
    """(B*T, C, H, W) -> (B, C, T, H*W): frames as rows; a view of channels-last memory."""
    return rearrange(x, "(b t) c h w -> b c t (h w)", b=batch)


def as_frames(x: Tensor, height: int) -> Tensor:
    """(B, C, T, H*W) -> (B*T, C, H, W): the inverse of `as_rows`."""
    return rearrange(x, "b c t (h w) -> (b t) c h w", h=height)


class PreciseGroupNorm(nn.GroupNorm):
    """GroupNorm in the precision of its weights, also where autocast hands it bfloat16.

    For speed: on a CPU torch's kernel for bfloat16 in channels-last memory takes several times as long.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def group_norm(channels: int) -> PreciseGroupNorm:
    """At most 32 groups with at least 4 channels each."""
    groups = max(g for g in range(1, 33) if channels % g == 0 and (channels // g >= 4 or g == 1))
    return PreciseGroupNorm(groups, channels, eps=1e-5)


class FourierFeatures(nn.Module):
    """Sines and cosines of a scalar at geometrically spaced frequencies: (...) -> (..., dim)."""

    def __init__(self, dim: int, max_period: float = 10_000.0, scale: float = 1000.0):
        super().__init__()
        frequencies = scale * torch.exp(-math.log(max_period) * torch.arange(dim // 2) / (dim // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        angle = value.float()[..., None] * self.frequencies
        return torch.cat([angle.cos(), angle.sin()], dim=-1)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, with scale and shift by the frame's embedding in between.

    `kernel` (3, 3) works in space; (3, 1) on `as_rows` input works in time. The second convolution begins at 0.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding: int, kernel: tuple[int, int]):
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.norm_in = group_norm(in_channels)
        self.conv_in = nn.Conv2d(in_channels, out_channels, kernel, padding=padding)
        self.modulation = nn.Linear(embedding, 2 * out_channels)
        self.norm_out = group_norm(out_channels)
        self.conv_out = zero_init(nn.Conv2d(out_channels, out_channels, kernel, padding=padding))
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (N, C, ., .), embedding broadcastable to it after the projection: (N, E) or, in time, (N, T, E)."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        modulation = self.modulation(embedding)  # (N, 2C) or (N, T, 2C)
        modulation = modulation.unflatten(0, (-1, 1)) if modulation.ndim == 2 else modulation
        scale, shift = rearrange(modulation, "n t c -> n c t 1").chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm_out(h), 1 + scale)
        skip = self.skip(x.movedim(1, -1)).movedim(-1, 1)  # channels-last memory: no copy
        return skip + self.conv_out(F.silu(h))


def rotate_by_position(x: Tensor, positions: Tensor, max_period: float = 100.0) -> Tensor:
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864) of real-valued positions along several axes.

    Attention then depends on differences of position only: any stride, frame count and size is the same network.
    Each axis rotates its own share of the pairs of channels; what is left over is not rotated.

    x (N, heads, L, D), positions (N or 1, L, axes).
    """
    pairs, axes = x.shape[-1] // 2, positions.shape[-1]
    share = pairs // axes
    frequencies = max_period ** (-torch.arange(share, device=x.device, dtype=torch.float32) / share)
    angle = (positions.float()[..., None] * frequencies).flatten(-2)  # (N, L, axes * share)
    angle = F.pad(angle, (0, pairs - axes * share))[:, None]  # (N, 1, L, D/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """`scaled_dot_product_attention` of (N, heads, L, D), with its options."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # Torch's CPU kernel is two to four times slower in bfloat16, most of all backwards.
        with torch.autocast("cpu", enabled=False):
            return scaled_dot_product_attention(query.float(), key.float(), value.float(), **options).to(query.dtype)
    return scaled_dot_product_attention(query, key, value, **options)


class Attention(nn.Module):
    """Multi-head self-attention over sequences (N, L, C) through `scaled_dot_product_attention`; no norm, no skip."""

    def __init__(self, channels: int, head_dim: int):
        super().__init__()
        if channels % head_dim:
            raise ValueError(f"channels {channels} must be a multiple of head_dim {head_dim}")
        self.heads = channels // head_dim
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "n l (three h d) -> three n h l d", three=3, h=self.heads)
        q, k = rotate_by_position(q, positions), rotate_by_position(k, positions)
        return self.out(rearrange(attend(q, k, v), "n h l d -> n l (h d)"))


def grid_positions(height: int, width: int, device: torch.device) -> Tensor:
    """(1, H*W, 2): row and column of each position of a frame."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return torch.cartesian_prod(rows, columns)[None].float()


class SpatialAttention(nn.Module):
    """Each position looks at all positions of its own frame."""

    def __init__(self, channels: int, head_dim: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.attention = Attention(channels, head_dim)

    def forward(self, x: Tensor, frame_times: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = rearrange(self.norm(x), "n c h w -> n (h w) c")
        tokens = self.attention(tokens, grid_positions(height, width, x.device))
        return x + rearrange(tokens, "n (h w) c -> n c h w", h=height)


class TemporalAttention(nn.Module):
    """Each position looks at itself in all frames of the clip."""

    def __init__(self, channels: int, head_dim: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.attention = Attention(channels, head_dim)

    def forward(self, x: Tensor, frame_times: Tensor) -> Tensor:
        batch, (height, width) = len(frame_times), x.shape[-2:]
        tokens = rearrange(self.norm(x), "(b t) c h w -> (b h w) t c", b=batch)
        times = frame_times.repeat_interleave(height * width, dim=0)[..., None]
        tokens = self.attention(tokens, times)
        return x + rearrange(tokens, "(b h w) t c -> (b t) c h w", b=batch, h=height)


class JointAttention(nn.Module):
    """Each position looks at all positions of all frames: at a coarse level this finds where an object was."""

    def __init__(self, channels: int, head_dim: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.attention = Attention(channels, head_dim)

    def forward(self, x: Tensor, frame_times: Tensor) -> Tensor:
        (batch, frames), (height, width) = frame_times.shape, x.shape[-2:]
        tokens = rearrange(self.norm(x), "(b t) c h w -> b (t h w) c", b=batch)
        times = frame_times.repeat_interleave(height * width, dim=1)[..., None]
        grid = grid_positions(height, width, x.device).expand(batch, -1, -1).repeat(1, frames, 1)
        tokens = self.attention(tokens, torch.cat([times, grid], dim=-1))
        return x + rearrange(tokens, "b (t h w) c -> (b t) c h w", t=frames, h=height)


class CrossAttention(nn.Module):
    """Each position of each frame looks at the tokens (B, L, W) of its clip's text."""

    def __init__(self, channels: int, token_width: int, head_dim: int):
        super().__init__()
        if channels % head_dim:
            raise ValueError(f"channels {channels} must be a multiple of head_dim {head_dim}")
        self.heads = channels // head_dim
        self.norm = group_norm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(token_width, 2 * channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """x (B*T, C, H, W), mask (B, L) bool: the tokens that there are, one at least."""
        batch, height = len(tokens), x.shape[-2]
        positions = rearrange(self.norm(x), "(b t) c h w -> b (t h w) c", b=batch)
        q = rearrange(self.query(positions), "b l (h d) -> b h l d", h=self.heads)
        k, v = rearrange(self.key_value(tokens), "b l (two h d) -> two b h l d", two=2, h=self.heads)
        found = self.out(rearrange(attend(q, k, v, attn_mask=mask[:, None, None]), "b h l d -> b l (h d)"))
        return x + rearrange(found, "b (t h w) c -> (b t) c h w", t=len(x) // batch, h=height)
