"""The I3D of FVD: its shapes and names; which files are accepted, and that nothing else is ever run."""

import hashlib
import pickle
import urllib.error
from pathlib import Path

import pytest
import torch
from evaluation_helper import save_stand_in
from safetensors.torch import save_file

from vidpred.errors import UserError
from vidpred.metrics import VideoFeatures, video_features
from vidpred.metrics.i3d import I3D, SHORTEST_CLIP


@pytest.fixture(scope="module")
def random_i3d() -> I3D:
    torch.manual_seed(0)
    network = I3D().eval()
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
    return network


@pytest.fixture(scope="module")
def weights(random_i3d, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("i3d") / "i3d.safetensors"
    save_file(random_i3d.state_dict(), path)
    return path


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Path:
    """A TorchScript file that counts as the known one."""
    path = save_stand_in(tmp_path / "i3d_torchscript.pt")
    monkeypatch.setattr(video_features, "TORCHSCRIPT_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def clips(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_the_network_is_the_published_one_by_its_shapes():
    with torch.device("meta"):
        network = I3D()
        logits = network(torch.zeros(2, 3, 16, 224, 224))
    assert logits.shape == (2, 400)
    assert sum(parameter.numel() for parameter in network.parameters()) == 12_697_264
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert shapes["Conv3d_2c_3x3.bn.running_var"] == (192,)
    assert shapes["Mixed_4f.b1b.conv3d.weight"] == (320, 160, 3, 3, 3)
    assert shapes["Mixed_5c.b3b.conv3d.weight"] == (128, 832, 1, 1, 1)
    assert (shapes["logits.conv3d.weight"], shapes["logits.conv3d.bias"]) == ((400, 1024, 1, 1, 1), (400,))


@pytest.mark.parametrize("frames", [SHORTEST_CLIP, 10, 16, 33])
def test_any_length_from_the_shortest_on(frames):
    with torch.device("meta"):
        assert I3D()(torch.zeros(1, 3, frames, 224, 224)).shape == (1, 400)


def test_shorter_clips_have_nothing_left_to_average():
    with torch.device("meta"), pytest.raises(RuntimeError):
        I3D()(torch.zeros(1, 3, SHORTEST_CLIP - 1, 224, 224))


def test_safetensors_are_the_networks_features_of_resized_frames(random_i3d, weights):
    extract, videos = VideoFeatures(str(weights)), clips(1, SHORTEST_CLIP, 3, 20, 24)
    frames = videos[0].float() / 127.5 - 1
    resized = torch.nn.functional.interpolate(frames, (224, 224), mode="bilinear", align_corners=False)
    with torch.no_grad():
        expected = random_i3d(resized.movedim(0, 1)[None])
    features = extract(videos)
    assert features.shape == (1, 400) and features.std() > 1e-4
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    assert extract.protocol["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert "224x224" in extract.protocol["frames"]


def test_torchscript_gets_prepared_frames_and_each_clip_stands_alone(stand_in):
    extract, videos = VideoFeatures(str(stand_in)), clips(3, 12, 3, 16, 16)
    features = extract(videos)
    torch.testing.assert_close(features[:, 0], torch.full((3,), 224.0), rtol=0, atol=0)
    expected = videos.double().mean(dim=(1, 2, 3, 4)) / 127.5 - 1
    torch.testing.assert_close(features[:, 1].double(), expected, rtol=0, atol=1e-3)
    assert torch.equal(extract(videos[2:]), features[2:])


def test_too_short_clips_are_refused(stand_in):
    with pytest.raises(ValueError, match="9 frames or more, got 8"):
        VideoFeatures(str(stand_in))(clips(1, 8, 3, 16, 16))


def test_other_programs_are_never_run(tmp_path):
    script = save_stand_in(tmp_path / "other.pt")
    with pytest.raises(UserError, match="evaluation.fvd_weights: .*other.pt has the checksum .*safetensors"):
        VideoFeatures(str(script))

    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('a pickle was run')",))

    pickled = tmp_path / "i3d.pt"
    pickled.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="checksum"):
        VideoFeatures(str(pickled))
    renamed = tmp_path / "i3d.safetensors"
    renamed.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="does not hold the tensors of an I3D"):
        VideoFeatures(str(renamed))


def test_tensors_of_something_else_are_one_line(weights, tmp_path):
    from safetensors.torch import load_file

    saved = load_file(weights)
    without = {name: value for name, value in saved.items() if name != "Mixed_3b.b0.conv3d.weight"}
    broken = {**saved, "logits.conv3d.bias": torch.full((400,), torch.nan)}
    for tensors, message in ((without, "Mixed_3b.b0.conv3d.weight"), (broken, "not finite")):
        save_file(tensors, tmp_path / "bad.safetensors")
        with pytest.raises(UserError, match=message) as caught:
            VideoFeatures(str(tmp_path / "bad.safetensors"))
        assert "\n" not in str(caught.value)


def test_counts_of_training_steps_may_be_missing(random_i3d, tmp_path):
    tensors = {name: v for name, v in random_i3d.state_dict().items() if "num_batches" not in name}
    save_file(tensors, tmp_path / "i3d.safetensors")
    assert VideoFeatures(str(tmp_path / "i3d.safetensors"))


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_what_is_not_there_is_one_line(hub, monkeypatch):
    monkeypatch.setattr(video_features, "reachable", lambda url: False)
    with pytest.raises(UserError, match="evaluation.fvd_weights: no file /no/such.pt; give the path"):
        VideoFeatures("/no/such.pt")
    with pytest.raises(UserError, match=f"no file {hub}/i3d_torchscript.pt and no network"):
        VideoFeatures("download")


def test_the_download_is_checked_and_a_file_in_torch_home_is_used(hub, stand_in, monkeypatch):
    asked = {}

    def download(url, path, hash_prefix, progress):
        asked.update(path=path, prefix=hash_prefix)
        raise urllib.error.URLError("connection lost")

    monkeypatch.setattr(video_features, "reachable", lambda url: True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(UserError, match="download of https.*failed: .*connection lost"):
        VideoFeatures("download")
    assert Path(asked["path"]) == hub / "i3d_torchscript.pt"
    assert asked["prefix"] == video_features.TORCHSCRIPT_SHA256 and len(asked["prefix"]) == 64
    (hub / "i3d_torchscript.pt").write_bytes(stand_in.read_bytes())
    assert VideoFeatures("download").protocol["weights"] == "i3d_torchscript.pt"
