"""The text-to-image recipe: its full size is built without memory, a small one goes from pictures to a grid."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed_helper import REPOSITORY
from PIL import Image
from vae_helper import train_here

from vidpred.conditioning import Conditioner, condition_shape
from vidpred.configuration import load_config
from vidpred.networks import build_network
from vidpred.vae_training import VAES

CONFIGS, TOOLS = REPOSITORY / "configs", REPOSITORY / "tools"
TEXTS = ("a red square", "一个蓝色的方块", "", "a green square", "红色", "a blue square", "", "绿色的方块")
COLOURS = ((200, 30, 30), (30, 30, 200), (90, 90, 90), (30, 180, 30), (210, 20, 20), (20, 20, 220), (50, 50, 50),
           (40, 170, 40))  # fmt: skip
COMMON = ["--device=cpu", "--data.height=32", "--data.width=32", "--data.num_workers=0", "--evaluation.lpips_net=none",
          "--evaluation.num_clips=2", "--training.batch_size=4", "--training.accumulation=1",
          "--training.warmup_steps=1", "--training.learning_rate=1e-3", "--training.validation_clips=2",
          "--training.visualize_clips=2"]  # fmt: skip
SMALL_VAE = ["--vae.block_out_channels=[8,8,8,8]", "--vae.norm_num_groups=4", "--vae.layers_per_block=1",
             "--vae.crop=32", "--vae.lpips_weight=0", "--training.num_steps=2"]  # fmt: skip
SMALL_MODEL = ["--network.channels=[8,16]", "--network.blocks_per_level=1", "--network.head_dim=8",
               "--condition.width=16", "--network.spatial_attention_levels=[1]", "--condition.text.layers=1",
               "--autoencoder.half=false", "--autoencoder.min_psnr=1", "--sampling.num_inference_steps=2",
               "--training.num_steps=4",
               "--training.double_resolution_at=[2]"]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDPRED_CACHE", str(tmp_path / "cache"))


def pictures(folder: Path) -> Path:
    """Eight squares with captions; the folder has a split of its own."""
    rows = []
    for number, (text, colour) in enumerate(zip(TEXTS, COLOURS)):
        split = "val" if number >= 6 else "train"
        pixels = np.full((48, 40, 3), 240, dtype=np.uint8)
        pixels[12:36, 8:32] = colour
        (folder / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / split / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{split}/{number}.png", "text": text}, ensure_ascii=False))
        (folder / split / f"{number}.txt").write_text(text, encoding="utf-8")
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def test_the_full_size_is_that_of_stable_diffusion_2():
    config = load_config(["--config", str(CONFIGS / "text_to_image.yaml"), "--data.root", "x"])
    vae_config = load_config(["--config", str(CONFIGS / "text_to_image_vae.yaml"), "--data.root", "x"])
    conditioner = Conditioner(config.condition)
    with torch.device("meta"):
        vae = VAES.build(vae_config.vae)
        network = conditioner.around(build_network(config.network, 4, 4, condition_shape(config.condition)))
        latents = vae.encode(torch.zeros(1, 3, 512, 512)).latent_dist.parameters
    assert latents.shape == (1, 2 * 4, 64, 64)  # mean and deviation
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (vae, network)]
    assert 80 < millions[0] < 90 and 650 < millions[1] < 900  # 83.7 and 866 there
    condition = conditioner(None, 2, 1, torch.device("meta"))
    with torch.device("meta"):
        x, frame = torch.zeros(2, 1, 4, 64, 64), torch.zeros(2, 1)
        found = network(x, frame, frame.bool(), frame, condition)
    assert found.shape == x.shape


def test_from_a_folder_of_pictures_to_a_grid(tmp_path, monkeypatch, run_file):
    """Image folder -> VAE -> text to image with both optional losses -> pictures of fixed prompts -> samples."""
    root = pictures(tmp_path / "images")
    monkeypatch.chdir(tmp_path)  # the recipe looks for its VAE under runs/
    train_here(["--config", str(CONFIGS / "text_to_image_vae.yaml"), "--data.root", str(root), *COMMON, *SMALL_VAE])
    assert (tmp_path / "runs" / "text_to_image_vae" / "vae" / "config.json").is_file()
    more = ["--data.captions=text_files", "--diffusion.consistency_weight=0.1", "--diffusion.diversity_weight=0.01"]
    arguments = ["--config", str(CONFIGS / "text_to_image.yaml"), "--data.root", str(root)]
    train_here([*arguments, *COMMON, *SMALL_MODEL, *more])
    run = tmp_path / "runs" / "text_to_image"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {key for row in rows for key in row}
    assert {"train/loss_denoising", "train/loss_consistency", "train/loss_diversity"} <= logged
    # Six training pictures in batches of four: an epoch is two steps.
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step_00000002", "step_00000004"]
    grids = list((run / "samples" / "step_00000004").glob("*.png"))
    assert any("prompt" in path.name for path in grids)
    code, lines, _ = run_file(
        TOOLS / "sample.py", "--checkpoint", run, "--prompts", "一只猫", "a red square", "", "--count", "2",
        "--device", "cpu", cwd=tmp_path,
    )  # fmt: skip
    assert code == 0 and any("6 samples" in line for line in lines)
