"""The UNet: any size, what reaches the output, gradients everywhere, saving, and the registry of networks."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from vidpred.conditions import ConditionShape
from vidpred.errors import UserError
from vidpred.networks import NETWORKS, SpatioTemporalUNet, UNetConfig, build_network

SMALL = dict(
    in_channels=3,
    out_channels=3,
    channels=(8, 16),
    blocks_per_level=1,
    spatial_attention_levels=(1,),
    temporal_attention_levels=(1,),
    joint_attention_levels=(1,),
    head_dim=8,
)


def make(randomize=True, seed=0, **changes):
    """A small network; `randomize` also fills the layers that begin at zero, so that nothing is hidden."""
    torch.manual_seed(seed)
    network = SpatioTemporalUNet(**(SMALL | changes))
    for parameter in network.parameters():
        if randomize and not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return network


def inputs(batch=2, frames=4, height=6, width=8, channels=3):
    torch.manual_seed(1)
    x = torch.randn(batch, frames, channels, height, width)
    given = torch.arange(frames).expand(batch, -1) < frames // 2
    code = torch.where(given, 0.0, torch.rand(batch, frames))
    return [x, code, given, torch.arange(frames).float().expand(batch, -1)]


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize(
    "batch, frames, height, width", [(1, 1, 1, 1), (2, 1, 8, 8), (1, 5, 7, 3), (2, 3, 1, 9), (1, 2, 16, 4)]
)
def test_any_number_of_frames_and_any_size(batch, frames, height, width, patch_size):
    network = make(patch_size=patch_size, channels=(8, 16, 16), out_channels=5)
    x, *others = inputs(batch, frames, height, width)
    output = network(x, *others)
    assert output.shape == (batch, frames, 5, height, width)
    assert output.isfinite().all() and output.std(correction=0) > 0


def test_a_new_network_returns_exactly_zero():
    assert not make(randomize=False)(*inputs()).any()


@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_every_parameter_receives_a_gradient(frames, activation_checkpointing):
    """DDP waits for all of them; a clip of one frame must use the temporal layers too."""
    network = make(patch_size=2, activation_checkpointing=activation_checkpointing)
    network(*inputs(frames=frames)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name} is not used"
        # The weights of a softmax over one frame do not depend on queries and keys; all else must matter.
        assert parameter.grad.any(), f"{name} has no influence"


def test_a_new_network_leaves_no_parameter_unused():
    network = make(randomize=False)
    network(*inputs(frames=1)).sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_everything_that_is_handed_in_reaches_the_output():
    network, (x, code, given, times) = make(), inputs()
    before = network(x, code, given, times)

    def unlike(*arguments):
        return not torch.allclose(network(*arguments), before, atol=1e-4)

    assert unlike(x, code.where(given, 0.5), given, times), "noise code"
    assert unlike(x, code, ~given, times), "given mask"
    assert unlike(x, code, given, 2 * times), "frame times"
    for frame in range(x.shape[1]):  # each frame, also the others' outputs: frame 0 looks at the last one
        changed = x.clone()
        changed[:, frame] += 1
        after = network(changed, code, given, times)
        for seen in range(x.shape[1]):
            assert not torch.allclose(after[:, seen], before[:, seen], atol=1e-5), (frame, seen)


def test_the_noise_code_of_one_frame_is_that_frames_own():
    """Without layers over time, one frame's code reaches that frame alone: codes are not mixed up."""
    network, (x, code, given, times) = make(temporal_attention_levels=(), joint_attention_levels=()), inputs()
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 1):
            nn.init.zeros_(module.weight)
    changed = code.clone()
    changed[1, 2] += 0.2
    differs = (network(x, changed, given, times) != network(x, code, given, times)).flatten(2).any(2)
    # The norms inside temporal blocks span the clip, but what they feed is switched off.
    assert differs.tolist() == [[False] * 4, [False, False, True, False]]


def test_an_unknown_frame_sees_two_given_ones_before_any_layer_mixes_frames():
    """Blocks begin as the identity, so with a head that is not zero the stem alone is measured."""
    network = make(randomize=False)
    nn.init.normal_(network.head.weight)
    x, code, given, times = inputs(frames=6)  # frames 0, 1 and 2 are given
    for unknown, nearest in ((3, [0, 1, 1, 1, 0, 0]), (5, [0, 1, 1, 0, 0, 1])):
        x = x.detach().requires_grad_()
        network(x, code, given, times)[:, unknown].square().sum().backward()
        assert x.grad[0].abs().amax(dim=(1, 2, 3)).gt(0).tolist() == nearest


def test_a_frame_knows_how_far_away_its_references_are():
    """Without layers over time, which know the times of all frames."""
    network, (x, code, given, times) = make(temporal_attention_levels=(), joint_attention_levels=()), inputs()
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 1):
            nn.init.zeros_(module.weight)
    later = times + torch.tensor([0.0, 0.0, 0.0, 2.0])  # frames 0 and 1 are given
    differs = (network(x, code, given, later) != network(x, code, given, times)).flatten(2).any(2)
    assert differs.tolist() == [[False, False, False, True]] * 2


def test_clips_of_a_batch_do_not_touch():
    network, arguments = make(), inputs(batch=3)
    together = network(*arguments)
    alone = [network(*(value[b : b + 1] for value in arguments)) for b in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_only_differences_of_time_count():
    network, (x, code, given, times) = make(), inputs()
    moved = network(x, code, given, times + 37.0)
    torch.testing.assert_close(moved, network(x, code, given, times), rtol=1e-4, atol=1e-4)


def test_padding_is_cropped_again():
    """A frame padded by hand, by repeating its edge, gives the same inside."""
    network, (x, *others) = make(), inputs(height=5, width=7)
    padded = nn.functional.pad(x.flatten(0, 1), (0, 1, 0, 1), mode="replicate").unflatten(0, x.shape[:2])
    mask_is_constant = network(padded, *others)[..., :5, :7]
    torch.testing.assert_close(network(x, *others), mask_is_constant)


def test_activation_checkpointing_gives_equal_gradients():
    gradients = []
    for switch in (False, True):
        network = make(activation_checkpointing=switch)
        network(*inputs()).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-7)


def test_memory_layout_of_input_and_weights_changes_nothing():
    network, (x, *others) = make(), inputs()
    before = network(x, *others)
    strided = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(network(strided, *others), before)
    network.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(network(x, *others), before, rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast_is_close():
    network, arguments = make(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        half = network(*arguments)
    reference = network(*arguments)
    assert (half.float() - reference).square().mean() < 1e-3 * reference.square().mean()


def test_save_pretrained_and_from_pretrained(tmp_path):
    network = make(patch_size=2)
    network.save_pretrained(tmp_path)
    loaded = SpatioTemporalUNet.from_pretrained(tmp_path)
    assert dict(loaded.config).items() >= {"patch_size": 2, "in_channels": 3}.items()
    assert torch.equal(loaded(*inputs()), network.eval()(*inputs()))


def test_wrong_input_is_refused():
    network, (x, *others) = make(), inputs()
    with pytest.raises(ValueError, match=r"x must be \(B, T, C, H, W\)"):
        network(x[0], *others)
    with pytest.raises(ValueError, match="no condition"):
        network(x, *others, condition=torch.zeros(2, 8))


# The section `network` of a configuration ------------------------------------------------------------------


def test_the_configuration_reaches_the_network():
    config = UNetConfig(
        channels=(8, 16, 32), blocks_per_level=2, spatial_attention_levels=(2,), temporal_attention_levels=(),
        joint_attention_levels=(1,), patch_size=2, head_dim=16, activation_checkpointing=True,
    )  # fmt: skip
    network = build_network(config, 12, 6)
    built = dict(network.config)
    for key, value in vars(config).items():
        assert key in ("kind", "cross_attention_levels") or built[key] == value, key
    told = build_network(config, 12, 6, ConditionShape(24, True))
    assert told.config.condition_width == 24 and told.config.cross_attention_levels == (2,)  # as spatial
    assert built["condition_width"] == 0 and built["cross_attention_levels"] == ()
    assert network(*inputs(channels=12)).shape == (2, 4, 6, 6, 8)
    down = [block for blocks in network.down for block in blocks]
    attention = [type(layer).__name__ for block in down for layer in block.attention]
    assert attention == ["JointAttention"] * 2 + ["SpatialAttention"] * 2


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(spatial_attention_levels=(4,)), "spatial_attention_levels: level 4 does not exist; use 0 to 3"),
        (dict(joint_attention_levels=(-1,)), "network.joint_attention_levels: level -1 does not exist"),
        (dict(head_dim=48), "network.head_dim: 48 does not divide the 512 channels of level 3"),
        (dict(head_dim=4), "network.head_dim: 4 is not possible; give an even number from 6 on"),
        (dict(head_dim=9), "network.head_dim: 9 is not possible"),
        (dict(channels=()), "network.channels"),
        (dict(blocks_per_level=0), "network.blocks_per_level"),
        (dict(patch_size=0), "network.patch_size"),
    ],
)
def test_impossible_networks_are_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        UNetConfig(**changes)
    assert "\n" not in str(caught.value)


@pytest.fixture
def own_kind(monkeypatch):
    monkeypatch.setattr(NETWORKS, "_kinds", dict(NETWORKS._kinds))

    @dataclass
    class ScaleConfig:
        kind: str = "scale"
        factor: float = 3.0

    class Scale(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x, noise_code, given, frame_times, condition=None):
            return self.factor * x

    NETWORKS.register("scale", ScaleConfig)(lambda config, in_channels, out_channels: Scale(config.factor))
    return ScaleConfig


def test_a_network_of_ones_own(own_kind):
    arguments = inputs()
    assert torch.equal(build_network(own_kind(factor=2.0), 3, 3)(*arguments), 2 * arguments[0])
    assert NETWORKS.from_mapping({"kind": "scale", "factor": 4}) == own_kind(factor=4)


def test_what_the_registry_refuses(own_kind):
    with pytest.raises(UserError, match="network.kind 'scale' is registered twice"):
        NETWORKS.register("scale", own_kind)
    with pytest.raises(UserError, match="ScaleConfig must be a dataclass with the field: kind"):
        NETWORKS.register("other", own_kind)


    class Undecorated(own_kind):
        kind = "other"

    with pytest.raises(UserError, match="Undecorated must be a dataclass"):
        NETWORKS.register("other", Undecorated)
    with pytest.raises(UserError, match="network.kind: 'nope' is not known; choose one of .*scale, unet"):
        NETWORKS.config_class("nope")
    with pytest.raises(UserError, match="network.widht: unknown key; known keys: kind, factor"):
        NETWORKS.from_mapping({"kind": "scale", "widht": 4})
