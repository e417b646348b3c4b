"""The table of the red ring, with trainings of four steps."""

from pathlib import Path

import pytest
import torch
from test_end_to_end_images import TOOLS

from vidpred import range_checks
from vidpred.checkpoint_store import read_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDPRED_CACHE", str(tmp_path / "cache"))
    yield
    range_checks.reset()


def test_the_table(tmp_path, run_file):
    keys = {"data.height": 16, "data.width": 16, "network.channels": "[16,32]", "network.head_dim": 8,
            "training.num_steps": 4, "training.batch_size": 2, "training.log_every_step": 2,
            "evaluation.lpips_net": "none",
            "sampling.num_inference_steps": 2, "autoencoder.min_psnr": 5, "device": "cpu"}  # fmt: skip
    arguments = [f"--{key}={value}" for key, value in keys.items()]
    code, printed, errors = run_file(TOOLS / "red_circle_table.py", *arguments, cwd=tmp_path)
    assert code == 0, errors
    half, full = (read_checkpoint(Path(tmp_path) / "runs" / f"red_circle_{name}").config for name in ("half", "full"))
    assert (half["network"]["channels"], half["training"]["lr_schedule"]) == ([8, 16], "constant")
    assert (full["network"]["channels"], full["training"]["lr_schedule"]) == ([16, 32], "cosine")
    table = [line for line in printed if line.startswith("|")]
    assert len(table) == 6 and (tmp_path / "runs" / "red_circle_table.md").read_text() == "\n".join(table) + "\n"
    unbounded, bounded = (row.split("|")[3].strip(" []").split(", ") for row in table[2:4])
    assert float(unbounded[1]) > 2.0 >= float(bounded[1]) and torch.tensor(float(table[5].split("|")[2])).isfinite()
    assert len(list((tmp_path / "runs").glob("red_circle_table_*.png"))) == 4
    code, _, errors = run_file(TOOLS / "red_circle_table.py", "--training.num_stops=4", cwd=tmp_path)
    assert code == 2 and "training.num_stops: unknown key" in errors[-1]
