"""A network and data of one's own, as the README shows them: scripts that register a kind and train."""

import importlib
import re
import runpy
import sys

import pytest
import torch
from distributed_helper import run_command
from end_to_end_helper import (
    cache,  # noqa: F401  (a fixture)
    losses,
    metrics,
    tiny_arguments,
)

from vidpred import range_checks
from vidpred.configuration import load_config
from vidpred.data import DATASETS
from vidpred.errors import UserError
from vidpred.networks import NETWORKS
from vidpred.prediction import load_predictor

pytestmark = [pytest.mark.usefixtures("cache"), pytest.mark.timeout(600)]

OWN_NETWORK = '''\
"""python my_network.py --network.kind plain --network.width 48"""

from dataclasses import dataclass

import torch
from torch import nn

from vidpred.build import train
from vidpred.configuration import load_config
from vidpred.errors import door
from vidpred.networks import NETWORKS


@dataclass
class PlainConfig:
    """Two convolutions over space and time."""

    kind: str = "plain"
    width: int = 32
    """Channels between them."""


class PlainNetwork(nn.Module):
    def __init__(self, in_channels, width, out_channels):
        super().__init__()
        self.enter = nn.Conv3d(in_channels + 2, width, 3, padding=1)
        self.leave = nn.Conv3d(width, out_channels, 3, padding=1)

    def forward(self, x, noise_code, given, frame_times, condition=None):
        """x (B, T, C, H, W); noise_code, given and frame_times (B, T) -> (B, T, C_out, H, W)."""
        per_frame = torch.stack([noise_code, given.to(x)], dim=2)  # (B, T, 2)
        h = torch.cat([x, per_frame[..., None, None].expand(-1, -1, -1, *x.shape[-2:])], dim=2)
        h = torch.relu(self.enter(h.movedim(2, 1)))
        return self.leave(h).movedim(1, 2)


@NETWORKS.register("plain", PlainConfig)
def build_plain(config, in_channels, out_channels):
    return PlainNetwork(in_channels, config.width, out_channels)


@door
def main():
    train(load_config())


if __name__ == "__main__":
    main()
'''

OWN_DATA = '''\
"""python my_data.py --data.kind bars --data.height 64 --data.width 64"""

from dataclasses import dataclass

import torch

from vidpred.build import train
from vidpred.configuration import load_config
from vidpred.data import DATASETS, Clip, ClipConfig, ClipDataset
from vidpred.errors import door


@dataclass
class BarsConfig(ClipConfig):
    """White bars that move to the right; nothing is read from the disk."""

    kind: str = "bars"
    count: int = 500
    """Clips in each split."""


class Bars(ClipDataset):
    name = "bars"

    def __init__(self, config, first):
        self.config, self.first = config, first

    def __len__(self):
        return self.config.count

    def item_name(self, index):
        return f"bar {self.first + index}"

    def clip(self, index, generator):
        """Random cuts would be drawn from `generator`, which is None in evaluation; a bar has none."""
        times = torch.arange(self.config.num_frames)
        start, speed = 7 * (self.first + index), 1 + index % 4  # pixels, pixels per frame
        columns = (torch.arange(self.config.width) - start - speed * times[:, None]) % self.config.width
        row = 255 * (columns < self.config.width // 4).to(torch.uint8)  # (T, W)
        frames = row[:, None, None].expand(-1, 3, self.config.height, -1)  # (T, 3, H, W)
        return Clip(frames, times.float(), self.item_name(index))


@DATASETS.register("bars", BarsConfig)
def build_bars(config, split, seed):
    return Bars(config, first={"train": 0, "val": 10_000, "test": 20_000}[split])


@door
def main():
    train(load_config())


if __name__ == "__main__":
    main()
'''


def write_script(folder, monkeypatch, name, text, section, replacement):
    """The script, its command line, and a tiny configuration in which one section is of its own kind."""
    script, arguments, file = folder / name, tiny_arguments(folder), folder / "tiny.yaml"
    script.write_text(text)
    file.write_text(re.sub(section + r": \{.*?\}\n", replacement + "\n", file.read_text(), flags=re.DOTALL))
    for registry in (NETWORKS, DATASETS):  # what the script registers in this process is gone after the test
        monkeypatch.setattr(registry, "_kinds", dict(registry._kinds))
    return script, arguments


def test_a_network_of_ones_own_with_wandb_offline(tmp_path, monkeypatch, capsys):
    plain = "network: {kind: plain, width: 12}"
    script, arguments = write_script(tmp_path, monkeypatch, "my_network.py", OWN_NETWORK, "network", plain)
    offline = ["--wandb.enabled", "--wandb.mode=offline", "--training.visualize_every_step=6"]
    output = run_command([sys.executable, script, *arguments, *offline], timeout=400).stderr
    run = tmp_path / "tiny"
    assert "run finished: 6 of 6 steps done" in output and len(losses(run)) == 6

    # wandb kept its record in the run folder, under an id that a resume will use again.
    assert (run / "wandb_id.txt").read_text().strip() in next((run / "wandb").glob("offline-run-*")).name
    assert next((run / "wandb").glob("offline-run-*/*.wandb")).stat().st_size > 1000
    assert list((run / "wandb").glob("offline-run-*/files/media/images/train/visualization*.png"))

    # Elsewhere the checkpoint needs the module that registers the kind, and says so.
    with pytest.raises(UserError, match="network.kind: 'plain' is not known.*import the module that"):
        load_predictor(run, device="cpu")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "my_network", importlib.import_module("my_network"))
    given = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    assert load_predictor(run, device="cpu").predict(given, num_frames=2).shape == (2, 3, 16, 16)
    with pytest.raises(SystemExit):
        load_config(["--network.kind=plain", "--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    assert "--network.width" in help_text and "Channels between them." in help_text


def test_data_of_ones_own(tmp_path, monkeypatch):
    bars = "data: {kind: bars, num_frames: 4, height: 16, width: 16, num_workers: 1, count: 5}"
    script, arguments = write_script(tmp_path, monkeypatch, "my_data.py", OWN_DATA, "data", bars)
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    range_checks.reset()
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    range_checks.reset()
    assert ended.value.code == 0
    run = tmp_path / "tiny"
    assert len(losses(run)) == 6 and any("eval/psnr" in row for row in metrics(run))
