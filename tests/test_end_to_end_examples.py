"""A network and data of one's own, as the README shows them: scripts that register a kind and train."""

import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from distributed_helper import run_command
from end_to_end_helper import (
    cache,  # noqa: F401  (a fixture)
    losses,
    metrics,
    tiny_arguments,
    train_tiny,
)

from vidpred import range_checks
from vidpred.configuration import load_config
from vidpred.data import DATASETS
from vidpred.errors import UserError
from vidpred.networks import NETWORKS
from vidpred.prediction import load_predictor

pytestmark = [pytest.mark.usefixtures("cache"), pytest.mark.timeout(600)]

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def readme_example(containing: str) -> str:
    """The README's block of Python that holds these words; there must be one."""
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if containing in block]
    return example


OWN_NETWORK, OWN_DATA = readme_example("PlainNetwork"), readme_example("class Bars")


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


def test_the_rollouts_of_the_readme(tmp_path):
    example = readme_example("RolloutOptions")
    train_tiny(tmp_path, "--data.num_frames=8", "--data.clip_frames=8", "--conditioning.context_frames=4",
               "--training.num_steps=1")  # fmt: skip
    shown, names = [], {"frames": torch.zeros(4, 3, 16, 16, dtype=torch.uint8), "show": lambda x: shown.append(x)}
    names["given"] = torch.tensor([True, False, False, True])
    example = example.replace('"runs/any_frames"', repr(str(tmp_path / "tiny")))
    example = example.replace("num_frames=1000", "num_frames=20")
    exec(example, names)
    assert names["future"].shape == (4, 40, 3, 16, 16) and torch.cat(shown).shape == (20, 3, 16, 16)
    assert names["between"].shape == (4, 3, 16, 16)
