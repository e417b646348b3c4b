"""diffusers' UNet2DModel as a network of this library: the same numbers, any size, conditions, refusals, a run."""

import pytest
import torch
from diffusers import UNet2DModel
from distributed_helper import REPOSITORY
from test_data_moving_digits import write_mnist
from test_end_to_end_images import RING, arguments, train_images, without

from vidpred.conditions import ConditionBatch, ConditionEmbedding, ConditionShape
from vidpred.configuration import load_config
from vidpred.errors import UserError
from vidpred.networks import build_network
from vidpred.networks.unet2d import UNet2DConfig
from vidpred.prediction import load_predictor

SMALL = dict(channels=(8, 16), blocks_per_level=1, attention_levels=(1,), norm_groups=4, head_dim=8)


def network(condition=None, **changes):
    torch.manual_seed(0)
    return build_network(UNet2DConfig(**{**SMALL, **changes}), 3, 3, condition).eval()


def call(net, x, code, condition=None):
    given, times = torch.zeros(x.shape[:2], dtype=torch.bool), torch.zeros(x.shape[:2])
    with torch.no_grad():
        return net(x, code, given, times, condition)


def test_it_is_diffusers_network_frame_by_frame():
    x, code = torch.randn(2, 3, 3, 8, 12), torch.rand(2, 3)
    net = network()
    assert isinstance(net.model, UNet2DModel) and net.model.config.block_out_channels == (8, 16)
    assert net.model.config.down_block_types == ("DownBlock2D", "AttnDownBlock2D")
    assert net.model.config.up_block_types == ("AttnUpBlock2D", "UpBlock2D")
    out = call(net, x, code)
    with torch.no_grad():
        for b in range(2):
            for t in range(3):
                frame = net.model(x[b, t][None], 1000 * code[b, t]).sample[0]
                torch.testing.assert_close(out[b, t], frame, rtol=1e-4, atol=1e-5)


def test_any_size_fits():
    net = network(channels=(8, 8, 16), attention_levels=())
    assert call(net, torch.randn(1, 1, 3, 7, 10), torch.rand(1, 1)).shape == (1, 1, 3, 7, 10)


def test_a_condition_goes_through_its_class_embedding():
    net = network(ConditionShape(6, False))
    x, code = torch.randn(1, 1, 3, 8, 8).expand(2, -1, -1, -1, -1), torch.full((2, 1), 0.5)
    embedding = torch.stack([torch.zeros(1, 6), torch.ones(1, 6)])
    out = call(net, x, code, ConditionEmbedding(embedding))
    assert not torch.allclose(out[0], out[1], atol=1e-4)
    assert torch.allclose(out[:1], call(net, x[:1], code[:1], ConditionEmbedding(embedding[:1])), atol=1e-5)
    with pytest.raises(ValueError, match="this network takes a condition"):
        call(net, x, code)
    with pytest.raises(UserError, match="diffusers_unet2d takes classes, but no text"):
        network(ConditionShape(6, True))


@pytest.mark.parametrize(
    "changes, message",
    [(dict(channels=()), "network.channels"),
     (dict(norm_groups=3), "network.norm_groups: 3 does not divide the width 8"),
     (dict(attention_levels=(2,)), "network.attention_levels: level 2 does not exist; use 0 to 1"),
     (dict(head_dim=5), "network.head_dim: 5 does not divide the width 16")],
)  # fmt: skip
def test_impossible_networks_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        UNet2DConfig(**{**SMALL, **changes})


KIND = ["--network.kind=diffusers_unet2d", "--network.channels=[8,16]", "--network.attention_levels=[1]",
        "--network.norm_groups=4", "--network.head_dim=8"]  # fmt: skip
REFUSED = "network.kind: diffusers_unet2d looks at each frame alone and cannot use given ones; set data.num_frames"


def test_given_frames_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match=REFUSED):
        load_config(["--network.kind=diffusers_unet2d"])
    command = arguments(tmp_path, RING, "--conditioning.scheme=random", *KIND, settings=without("network"))
    with pytest.raises(UserError, match=REFUSED):
        load_config(command)


def test_a_run_with_it_and_classes(tmp_path):
    write_mnist(tmp_path / "mnist")
    data = f"data: {{kind: mnist, root: {tmp_path / 'mnist'}, height: 16, width: 16}}\n"
    more = ['--condition.kinds=["class"]', "--training.num_steps=2"]
    assert train_images(tmp_path, data, *KIND, *more, settings=without("network")).step == 2
    predictor = load_predictor(tmp_path / "images", "cpu")
    asked = ConditionBatch(class_names=["3", "4"])
    assert predictor.generate(16, 16, torch.arange(2), condition=asked).shape == (2, 1, 3, 16, 16)


def test_the_full_size_builds():
    sizes = dict(in_channels=1, out_channels=1)
    net = build_network(load_config(["--config", str(REPOSITORY / "configs" / "mnist_unet2d.yaml")]).network, **sizes)
    assert sum(parameter.numel() for parameter in net.parameters()) > 10_000_000
    assert call(net.eval(), torch.randn(1, 1, 1, 32, 32), torch.rand(1, 1)).shape == (1, 1, 1, 32, 32)
