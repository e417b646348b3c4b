"""The layers: memory layout of temporal layers, rotary positions, and each attention beside a naive one."""

import math

import pytest
import torch
import torch.nn.functional as F

from vidpred.networks.layers import (
    Attention,
    FourierFeatures,
    JointAttention,
    ResidualBlock,
    SpatialAttention,
    TemporalAttention,
    as_frames,
    as_rows,
    attend,
    grid_positions,
    group_norm,
    rotate_by_position,
)

B, T, C, H, W = 2, 3, 8, 4, 5


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randomized(module):
    """Replaces every parameter, also those that begin at zero, by noise: nothing is hidden by an identity."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def frames(batch=B, frames=T, channels=C):
    return torch.randn(batch * frames, channels, H, W).contiguous(memory_format=torch.channels_last)


# Frames as rows --------------------------------------------------------------------------------------------


def test_as_rows_puts_frame_t_into_row_t():
    x = frames()
    rows = as_rows(x, B)
    assert rows.shape == (B, C, T, H * W)
    for b in range(B):
        for t in range(T):
            torch.testing.assert_close(rows[b, :, t], x[b * T + t].flatten(1), rtol=0, atol=0)


def test_as_rows_and_as_frames_are_inverse_views_of_channels_last_memory():
    x = frames()
    rows = as_rows(x, B)
    back = as_frames(rows, H)
    assert rows.data_ptr() == x.data_ptr() == back.data_ptr()  # nothing was copied
    assert rows.is_contiguous(memory_format=torch.channels_last)
    assert back.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(back, x)


def test_a_temporal_convolution_mixes_frames_and_nothing_else():
    """Closed form: a kernel that takes the frame before moves a clip on by one frame; first comes 0."""
    shift = torch.zeros(C, C, 3, 1)
    shift[range(C), range(C), 0] = 1
    x = frames()
    shifted = as_frames(F.conv2d(as_rows(x, B), shift, padding=(1, 0)), H).unflatten(0, (B, T))
    clips = x.unflatten(0, (B, T))
    assert torch.equal(shifted[:, 1:], clips[:, :-1]) and not shifted[:, 0].any()


# Residual blocks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [(3, 3), (3, 1)])
def test_residual_block_beside_its_formula(kernel):
    block = randomized(ResidualBlock(C, 12, 6, kernel))
    if kernel == (3, 3):
        x, embedding = frames(), torch.randn(B * T, 6)
        scale, shift = block.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
    else:
        x, embedding = as_rows(frames(), B), torch.randn(B, T, 6)
        scale, shift = block.modulation(embedding).movedim(2, 1)[..., None].chunk(2, dim=1)  # (B, C, T, 1)
    h = F.conv2d(F.silu(block.norm_in(x)), block.conv_in.weight, block.conv_in.bias, padding="same")
    h = F.silu(block.norm_out(h) * (1 + scale) + shift)
    skip = torch.einsum("oc, n c h w -> n o h w", block.skip.weight, x) + block.skip.bias[:, None, None]
    expected = skip + F.conv2d(h, block.conv_out.weight, block.conv_out.bias, padding="same")
    torch.testing.assert_close(block(x, embedding), expected)


def test_residual_block_and_attention_begin_as_the_identity():
    x, times = frames(), torch.arange(T).float().expand(B, T)
    assert torch.equal(ResidualBlock(C, C, 6, (3, 3))(x, torch.randn(B * T, 6)), x)
    for kind in (SpatialAttention, TemporalAttention, JointAttention):
        assert torch.equal(kind(C, 4)(x, times), x)


@pytest.mark.parametrize("channels, groups", [(3, 1), (8, 2), (64, 16), (96, 24), (512, 32), (7, 1)])
def test_group_norm_has_at_most_32_groups_of_at_least_4_channels(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_norm_and_attention_under_autocast_are_those_of_float32_rounded_once():
    norm, x = randomized(group_norm(C)), frames().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = norm(x)
        attended = attend(*(x.reshape(B, T, 4, -1) for _ in range(3)))
    assert rounded.dtype == attended.dtype == torch.bfloat16
    assert torch.equal(rounded, norm(x.float()).bfloat16())
    q = x.reshape(B, T, 4, -1).float()
    assert torch.equal(attended, F.scaled_dot_product_attention(q, q, q).bfloat16())


def test_fourier_features_closed_form():
    value = torch.tensor([[0.0, 0.25]])
    features = FourierFeatures(4, max_period=100.0, scale=10.0)(value)
    angles = 0.25 * 10 * torch.tensor([1.0, 0.1])
    torch.testing.assert_close(features[0, 0], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(features[0, 1], torch.cat([angles.cos(), angles.sin()]))


# Attention -------------------------------------------------------------------------------------------------


def test_rotation_closed_form():
    """Two axes share two pairs of channels: pair 0 turns by position 0, pair 1 by position 1."""
    x = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4)  # pairs are (0, 2) and (1, 3)
    turned = rotate_by_position(x, torch.tensor([[[0.5, 2.0]]]))
    expected = [math.cos(0.5), math.cos(2.0), math.sin(0.5), math.sin(2.0)]
    torch.testing.assert_close(turned.flatten(), torch.tensor(expected))


def test_channels_that_no_axis_claims_are_not_rotated():
    x = torch.randn(1, 1, 2, 8)  # 4 pairs, 3 axes: the last pair is left over
    turned = rotate_by_position(x, torch.randn(1, 2, 3))
    assert torch.equal(turned[..., 3::4], x[..., 3::4])
    assert not torch.equal(turned, x)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_rotation_makes_products_depend_on_differences_of_position_only(axes):
    q, k = torch.randn(2, 1, 2, 5, 12, dtype=torch.float64)
    positions = torch.randn(1, 5, axes) * 3

    def products(offset):
        return rotate_by_position(q, positions + offset) @ rotate_by_position(k, positions + offset).mT

    torch.testing.assert_close(products(torch.tensor(7.0)), products(torch.tensor(0.0)), rtol=0, atol=1e-5)
    stretched = rotate_by_position(q, 2 * positions) @ rotate_by_position(k, 2 * positions).mT
    assert not torch.allclose(stretched, products(torch.tensor(0.0)), atol=1e-2)


def naive_attention(attention, tokens, positions):
    """(L, C), (L, axes) -> (L, C): one query, one head at a time."""
    length, channels = tokens.shape
    q, k, v = attention.qkv(tokens).chunk(3, dim=-1)
    width = channels // attention.heads
    out = torch.empty_like(tokens)
    for head in range(attention.heads):
        part = slice(head * width, (head + 1) * width)
        turned = [rotate_by_position(x[None, None, :, part], positions[None])[0, 0] for x in (q, k)]
        for query in range(length):
            weights = torch.softmax(turned[1] @ turned[0][query] / math.sqrt(width), dim=0)
            out[query, part] = weights @ v[:, part]
    return attention.out(out)


def test_attention_beside_a_naive_one():
    attention = randomized(Attention(C, 4))
    tokens, positions = torch.randn(2, 6, C), torch.randn(2, 6, 2)
    expected = torch.stack([naive_attention(attention, *pair) for pair in zip(tokens, positions)])
    torch.testing.assert_close(attention(tokens, positions), expected)


def test_attention_refuses_heads_that_do_not_fit():
    with pytest.raises(ValueError, match="channels 8 must be a multiple of head_dim 3"):
        Attention(8, 3)


def test_spatial_attention_looks_at_one_frame():
    layer, x, times = randomized(SpatialAttention(C, 4)), frames(), torch.randn(B, T)
    normed, expected = layer.norm(x), x.clone()
    for n in range(B * T):
        tokens = normed[n].flatten(1).T  # (H*W, C), row by row
        new = naive_attention(layer.attention, tokens, grid_positions(H, W, x.device)[0])
        expected[n] += new.T.reshape(C, H, W)
    torch.testing.assert_close(layer(x, times), expected)
    assert grid_positions(H, W, x.device)[0, W + 2].tolist() == [1, 2]


def test_temporal_attention_looks_at_one_position():
    layer, x, times = randomized(TemporalAttention(C, 4)), frames(), torch.rand(B, T).cumsum(1)
    normed, expected = layer.norm(x).unflatten(0, (B, T)), x.clone().unflatten(0, (B, T))
    for b in range(B):
        for row in range(H):
            for column in range(W):
                tokens = normed[b, :, :, row, column]
                expected[b, :, :, row, column] += naive_attention(layer.attention, tokens, times[b, :, None])
    torch.testing.assert_close(layer(x, times), expected.flatten(0, 1))


def test_joint_attention_looks_at_the_whole_clip():
    layer, x, times = randomized(JointAttention(C, 4)), frames(), torch.rand(B, T).cumsum(1)
    normed, expected = layer.norm(x).unflatten(0, (B, T)), x.clone().unflatten(0, (B, T))
    for b in range(B):
        tokens = normed[b].movedim(1, -1).reshape(-1, C)  # (T*H*W, C)
        positions = [[times[b, t], row, column] for t in range(T) for row in range(H) for column in range(W)]
        new = naive_attention(layer.attention, tokens, torch.tensor(positions))
        expected[b] += new.reshape(T, H, W, C).movedim(-1, 1)
    torch.testing.assert_close(layer(x, times), expected.flatten(0, 1))


@pytest.mark.parametrize("kind", [SpatialAttention, TemporalAttention, JointAttention])
def test_attention_is_the_same_in_contiguous_memory(kind):
    layer, x, times = randomized(kind(C, 4)), frames(), torch.rand(B, T)
    torch.testing.assert_close(layer(x.contiguous(), times), layer(x, times))
