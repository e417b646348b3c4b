"""LPIPS: real weights or none; never a random one, a silently wrong file, or a wait without network."""

import importlib.util
import os
import urllib.error
import warnings
from pathlib import Path

import pytest
import torch

from vidpred.errors import UserError
from vidpred.metrics import BACKBONES, Lpips, LpipsUnavailable
from vidpred.metrics import lpips as room

ASSETS = os.environ.get("VIDPRED_ASSETS")
needs_assets = pytest.mark.skipif(not ASSETS, reason="VIDPRED_ASSETS is not set")
SQUEEZE = Path(BACKBONES["squeeze"]).name


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty TORCH_HOME; the folder of its backbones."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def offline(monkeypatch):
    """No server answers, and a download is a failure of the test."""
    monkeypatch.setattr(room, "reachable", lambda url: False)

    def forbidden(*args, **options):
        raise AssertionError("a download was tried without a network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", forbidden)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """A file in torchvision's layout; its values are known, not trained."""
    from torchvision.models import squeezenet1_1

    path = tmp_path_factory.mktemp("backbone") / SQUEEZE
    torch.manual_seed(5)
    torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return path


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def package_lpips(net: str, backbone_file: Path):
    """The package's own model with this backbone, put in by way of torchvision's own loading."""
    import lpips
    import torchvision

    model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    features = torchvision.models.squeezenet1_1(weights=None)
    features.load_state_dict(torch.load(backbone_file, weights_only=True))
    for k in range(1, 8):
        for name, module in getattr(model.net, f"slice{k}").named_children():
            module.load_state_dict(features.features[int(name)].state_dict())
    return model.eval()


def test_equals_the_package_with_the_same_backbone(backbone):
    left, right = frames(2, 2, 3, 40, 48), frames(2, 2, 3, 40, 48, seed=1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = package_lpips("squeeze", backbone)
        scaled = [x.flatten(0, 1) / 127.5 - 1 for x in (left, right)]
        expected = model(*scaled).reshape(2, 2).double()
        wrong_range = model(*[(x + 1) / 2 for x in scaled]).reshape(2, 2).double()
    values = Lpips("squeeze", weights=str(backbone))(left, right)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    assert (values - wrong_range).abs().min() > 1e-3, "the test would not notice [0, 1] input"


def test_no_random_value_is_left(backbone):
    left, right = frames(1, 1, 3, 32, 32), frames(1, 1, 3, 32, 32, seed=1)
    values = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        values.append(Lpips("squeeze", weights=str(backbone))(left, right))
    assert torch.equal(*values) and values[0].item() > 0


def test_equal_frames_have_distance_zero_and_chunks_change_nothing(backbone):
    metric = Lpips("squeeze", weights=str(backbone))
    left, right = frames(5, 8, 3, 32, 32), frames(5, 8, 3, 32, 32, seed=1)
    assert torch.equal(metric(left[:1], left[:1]), torch.zeros(1, 8).double())
    torch.testing.assert_close(metric(left, right)[4:], metric(left[4:], right[4:]), rtol=1e-5, atol=1e-7)


def test_frames_too_small_for_the_backbone_are_refused(backbone):
    with pytest.raises(ValueError, match="32 pixels"):
        Lpips("squeeze", weights=str(backbone))(frames(1, 1, 3, 16, 64), frames(1, 1, 3, 16, 64))


def test_the_protocol_names_the_file_and_its_checksum(backbone):
    import hashlib

    protocol = Lpips("squeeze", weights=str(backbone)).protocol
    assert protocol["backbone_sha256"] == hashlib.sha256(backbone.read_bytes()).hexdigest()
    assert (protocol["net"], protocol["backbone"], protocol["input_range"]) == ("squeeze", SQUEEZE, [-1, 1])


def test_without_file_and_network_there_is_a_reason_and_no_attempt(hub, offline):
    with pytest.raises(LpipsUnavailable, match=f"no backbone at {hub}.*no network"):
        Lpips("squeeze")


def test_the_file_in_torch_home_is_used(hub, offline, backbone):
    hub.mkdir(parents=True)
    (hub / SQUEEZE).write_bytes(backbone.read_bytes())
    pair = frames(1, 1, 3, 32, 32), frames(1, 1, 3, 32, 32, seed=1)
    assert torch.equal(Lpips("squeeze")(*pair), Lpips("squeeze", weights=str(backbone))(*pair))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"half"])
def test_a_damaged_file_in_torch_home_is_a_reason(hub, offline, backbone, content):
    hub.mkdir(parents=True)
    (hub / SQUEEZE).write_bytes(backbone.read_bytes()[:100000] if content == b"half" else content)
    with pytest.raises(LpipsUnavailable, match="cannot be read"):
        Lpips("squeeze")


def test_a_given_path_that_is_not_there_is_an_error():
    with pytest.raises(UserError, match="evaluation.lpips_weights: no file /no/such.pth"):
        Lpips("squeeze", weights="/no/such.pth")


def test_other_weights_are_an_error_not_a_wrong_score(backbone, tmp_path):
    """The package would load any of these with strict=False and go on with random values."""
    with pytest.raises(UserError, match="lpips_weights: .*is not a alex backbone"):
        Lpips("alex", weights=str(backbone))
    heads = Path(importlib.util.find_spec("lpips").origin).parent / "weights" / "v0.1" / "squeeze.pth"
    with pytest.raises(UserError, match="is not a squeeze backbone"):
        Lpips("squeeze", weights=str(heads))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="list"):
        Lpips("squeeze", weights=str(tmp_path / "list.pth"))


NETS = [("alex", "alexnet"), ("squeeze", "squeezenet1_1"), ("vgg", "vgg16")]


@pytest.mark.parametrize("net, builder", NETS)
def test_every_slice_finds_its_tensor_in_the_backbone(monkeypatch, net, builder):
    import lpips
    import torchvision

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = getattr(torchvision.models, builder)(weights=None).state_dict()
        slices = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False).net
    monkeypatch.setattr(room, "_load", lambda path: saved)
    found = room._backbone_tensors(slices, Path("file"))
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in slices.state_dict().items()
    }


def test_a_missing_tensor_is_an_error(backbone, tmp_path):
    saved = torch.load(backbone, weights_only=True)
    del saved["features.9.expand3x3.weight"]
    torch.save(saved, tmp_path / "cut.pth")
    with pytest.raises(UserError, match="features.9.expand3x3.weight"):
        Lpips("squeeze", weights=str(tmp_path / "cut.pth"))


def test_an_unknown_net_is_named():
    with pytest.raises(UserError, match="evaluation.lpips_net: 'resnet'.*alex, squeeze, vgg"):
        Lpips("resnet")


@pytest.mark.parametrize("net", ["alex", "squeeze", "vgg"])
def test_the_download_is_the_checked_file_of_torchvision(hub, monkeypatch, net):
    asked = {}

    def download(url, path, hash_prefix, progress):
        asked.update(url=url, path=path, prefix=hash_prefix)
        raise urllib.error.URLError("connection lost")

    monkeypatch.setattr(room, "reachable", lambda url: True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(LpipsUnavailable, match="download of .* failed.*connection lost"):
        Lpips(net)
    assert asked["url"] == BACKBONES[net] and Path(asked["path"]).parent == hub
    assert asked["prefix"] in asked["url"] and len(asked["prefix"]) == 8


def test_backbone_addresses_are_those_of_torchvision():
    from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights

    expected = {"alex": AlexNet_Weights, "squeeze": SqueezeNet1_1_Weights, "vgg": VGG16_Weights}
    assert BACKBONES == {net: weights.IMAGENET1K_V1.url for net, weights in expected.items()}


@needs_assets
def test_real_weights_order_a_blur_and_noise(monkeypatch):
    monkeypatch.setenv("TORCH_HOME", f"{ASSETS}/torch_home")
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    metric = Lpips("squeeze")
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    board = (((x // 8 + y // 8) % 2) * 200 + 20).to(torch.uint8).expand(1, 1, 3, 64, 64)
    brighter = board + 3
    noise = frames(1, 1, 3, 64, 64)
    assert 0 < metric(brighter, board).item() < 0.05 < 0.5 < metric(noise, board).item()
