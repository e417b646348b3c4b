"""Training a VAE: the run, its resume, its processes, and the folder that it hands out."""

import json
import re

import pytest
import torch
from distributed_helper import REPOSITORY, run_torchrun
from end_to_end_helper import TINY, assert_same, cache, losses, metrics  # noqa: F401
from torchvision.models import squeezenet1_1
from vae_helper import ADVERSARIAL, TINY_VAE, arguments_of, train_here, train_vae, vae_arguments, vae_config

from vidpred import range_checks
from vidpred.assembly.vae_parts import build_vae_network, build_vae_task
from vidpred.autoencoders import KLConfig, build_autoencoder
from vidpred.checkpoint_store import read_checkpoint
from vidpred.data import build_dataset
from vidpred.errors import UserError
from vidpred.training import RunOutcome
from vidpred.vae_training import VAES
from vidpred.vae_training.config import PretrainedVaeConfig
from vidpred.vae_training.reconstruction import reconstruct, to_images

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):  # noqa: F811
    """A run of six steps with a discriminator from the third on and pictures; tests only look at it."""
    folder = tmp_path_factory.mktemp("finished")
    outcome = train_vae(folder, *ADVERSARIAL, "--training.visualize_every_step=6")
    assert outcome == RunOutcome("finished", 6)
    return folder / "tiny_vae"


def test_the_run_folder_holds_what_was_promised(finished):
    assert {path.name for path in finished.iterdir()} == {
        "config.yaml", "data_report.json", "metrics.jsonl", "samples", "evaluation", "checkpoints", "vae",
    }  # fmt: skip
    assert {path.name for path in (finished / "vae").iterdir()} == {
        "config.json", "diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert set(read_checkpoint(finished).tensors) == {"model", "record", "ema", "discriminator"}
    assert [path.name for path in (finished / "samples").rglob("*.png")] == ["reconstructions.png"]


def test_the_log_says_what_each_term_came_to(finished):
    rows = [row for row in metrics(finished) if "train/loss" in row]
    assert ["train/discriminator" in row for row in rows] == [False, False, True, True, True, True]
    assert ["train/generator" in row for row in rows] == [False, False, True, True, True, True]
    for row in rows:
        terms = row["train/l1"] + 1e-4 * row["train/kl"] + 0.1 * row.get("train/generator", 0)
        assert row["train/loss"] == pytest.approx(terms, rel=1e-5)
    validated = [row for row in metrics(finished) if "validation/loss" in row]
    assert [row["step"] for row in validated] == [3, 6]
    for row in validated:
        expected = row["validation/l1_ema"] + 1e-4 * row["validation/kl_ema"]
        assert row["validation/loss_ema"] == pytest.approx(expected, rel=1e-6) and row["validation/psnr_ema"] > 5


def test_the_evaluation_stands_beside_the_floor(finished):
    result = json.loads((finished / "evaluation" / "step_00000006.json").read_text())
    assert len(result["clips"]) == 3 and result["protocol"]["components"] == 2
    for row in ("model", "floor"):
        assert len(result[row]["psnr"]["per_frame"]) == 2 and result[row]["lpips"]["unavailable"]
        means = [clip[row]["psnr"] for clip in result["clips"]]
        assert result[row]["psnr"]["mean"] == pytest.approx(sum(means) / 3)
    gain = result["model"]["psnr"]["mean"] - result["floor"]["psnr"]["mean"]
    assert result["psnr_over_floor"]["mean"] == pytest.approx(gain)
    assert result["floor"]["psnr"]["mean"] > result["model"]["psnr"]["mean"]  # six steps
    logged = [row for row in metrics(finished) if "eval/psnr" in row]
    assert [row["eval/psnr_over_patch_pca"] for row in logged] == [pytest.approx(gain)]


def averaged_network(run):
    """The VAE with the averaged weights of a checkpoint, built as training builds it."""
    network = build_vae_network(vae_config(run.parent, *ADVERSARIAL))
    network.load_state_dict(read_checkpoint(run).tensors["ema"])
    return network.eval()


def test_the_export_is_the_averaged_vae_of_a_video_recipe(finished):
    autoencoder = build_autoencoder(KLConfig(pretrained=str(finished / "vae"), min_psnr=0))
    assert (autoencoder.latent_channels, autoencoder.down_factor) == (2, 2)
    dataset = build_dataset(vae_config(finished.parent).data, "val", 0)
    frames = dataset.fixed_clip(0, dataset.num_windows(0) // 2).frames
    made = reconstruct(averaged_network(finished), frames)
    latents = autoencoder.encode(frames[None])
    torch.testing.assert_close(latents[0], made.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(autoencoder.decode(latents)[0] * 2 - 1, made.images, rtol=1e-5, atol=1e-5)
    clip = json.loads((finished / "evaluation" / "step_00000006.json").read_text())["clips"][0]
    error = (autoencoder.decode(latents)[0].clamp(0, 1) * 255).round().double() - frames.double()
    psnr = (-10 * torch.log10((error / 255).square().mean((1, 2, 3)))).tolist()
    assert clip["psnr_per_frame"]["model"] == pytest.approx(psnr, abs=1e-3)


def test_resume_is_exact_with_a_discriminator(tmp_path, finished):
    """3 steps, a fresh start, 3 more are 6: losses, weights, both optimizers, the folder handed out."""
    train_vae(tmp_path, *ADVERSARIAL, "--training.num_steps=3")
    assert train_vae(tmp_path, *ADVERSARIAL) == RunOutcome("finished", 6)
    parts = tmp_path / "tiny_vae"
    assert losses(parts) == losses(finished)
    one, two = read_checkpoint(finished), read_checkpoint(parts)
    assert_same(one.tensors, two.tensors)
    assert_same(one.state, two.state)
    assert len(one.state["discriminator_optimizer"]["state"]) == len(one.tensors["discriminator"])
    weights = "vae/diffusion_pytorch_model.safetensors"
    assert (finished / weights).read_bytes() == (parts / weights).read_bytes()


def test_the_discriminator_learns_and_moves_the_vae(tmp_path, finished):
    train_vae(tmp_path, "--training.num_steps=3")
    plain, adversarial = losses(tmp_path / "tiny_vae"), losses(finished)
    assert plain[:2] == adversarial[:2]  # equal before its start
    checkpoint, before = read_checkpoint(finished), read_checkpoint(finished / "checkpoints" / "step_00000003")
    moved = [not torch.equal(tensor, before.tensors["discriminator"][name])
             for name, tensor in checkpoint.tensors["discriminator"].items()
             if name != "layers.5.bias"]  # which moves all scores alike, until one reaches its margin  # fmt: skip
    assert all(moved)
    assert not torch.equal(
        read_checkpoint(tmp_path / "tiny_vae").tensors["model"]["vae.decoder.conv_out.weight"],
        before.tensors["model"]["vae.decoder.conv_out.weight"],
    )


def test_two_processes_with_accumulation_are_one(tmp_path, finished):
    arguments = vae_arguments(tmp_path, *ADVERSARIAL, "--training.accumulation=2")
    run_torchrun(REPOSITORY / "train_video_pred.py", arguments)
    two = tmp_path / "tiny_vae"
    assert losses(two) == pytest.approx(losses(finished), rel=1e-4)
    for name in ("train/discriminator", "train/generator", "train/kl"):
        one, other = ([row[name] for row in metrics(run) if name in row] for run in (finished, two))
        assert other == pytest.approx(one, rel=2e-3, abs=1e-5)
    results = [json.loads((run / "evaluation" / "step_00000006.json").read_text()) for run in (finished, two)]
    assert results[0]["floor"] == results[1]["floor"] and results[0]["protocol"] == results[1]["protocol"]
    assert results[1]["model"]["psnr"]["mean"] == pytest.approx(results[0]["model"]["psnr"]["mean"], abs=0.02)


def test_the_decoder_alone_keeps_every_bit_of_the_encoder(tmp_path, finished):
    vae = f"vae: {{kind: pretrained, pretrained: {finished / 'vae'}, lpips_weight: 0}}"
    text = re.sub(r"vae: \{.*?\}", vae, TINY_VAE, flags=re.DOTALL)
    train_here(arguments_of(tmp_path, "decoder", text, "--training.weight_decay=0.1", "--training.ema_decay=0"))
    before = build_autoencoder(KLConfig(pretrained=str(finished / "vae"))).vae.state_dict()
    after = build_autoencoder(KLConfig(pretrained=str(tmp_path / "decoder" / "vae"))).vae.state_dict()
    for name in before:
        frozen = name.startswith(("encoder.", "quant_conv."))
        assert torch.equal(before[name], after[name]) == frozen, name


# A video run upon it, and what is refused ------------------------------------------------------------------


def test_a_video_run_uses_it_and_calibrates_its_latents(tmp_path, finished):
    kind = f"autoencoder: {{kind: kl, pretrained: {finished / 'vae'}, min_psnr: 1}}"
    arguments = arguments_of(tmp_path, "video", TINY.replace("autoencoder: {down_factor: 2}", kind))
    assert train_here(arguments) == RunOutcome("finished", 6)
    calibration = read_checkpoint(tmp_path / "video").tensors["calibration"]
    assert all(tensor.isfinite().all() for tensor in calibration.values())


def test_images_are_clips_of_one_frame_and_one_batch_can_be_overfitted(tmp_path):
    arguments = ["--data.num_frames=1", "--overfit_one_batch", "--training.num_steps=60", "--vae.kl_weight=0",
                 "--training.learning_rate=5e-3", "--training.checkpoint_every_step=60"]  # fmt: skip
    train_vae(tmp_path, *arguments)
    curve = losses(tmp_path / "tiny_vae_overfit")
    assert curve[-1] < 0.5 * curve[0]


def test_crops_are_squares_of_the_frames_and_repeat_with_them(tmp_path):
    range_checks.reset()
    task = build_vae_task(vae_config(tmp_path, "--overfit_one_batch"), tmp_path, torch.device("cpu"), None)
    whole = build_vae_task(vae_config(tmp_path, "--overfit_one_batch", "--vae.crop=16"), tmp_path,
                           torch.device("cpu"), None)  # fmt: skip
    range_checks.reset()
    source, uncut = task.batches(0), whole.batches(0)
    first, second, full = next(source), next(source), next(uncut)
    source.close()
    uncut.close()
    assert first.frames.shape == (4, 2, 3, 8, 8) and torch.equal(first.frames, second.frames)
    places = set()
    for clip, frames in zip(first.frames, full.frames):
        for cut, frame in zip(clip, frames):
            found = [(y, x) for y in range(9) for x in range(9) if torch.equal(frame[:, y : y + 8, x : x + 8], cut)]
            assert found
            places.add(found[0])
    assert len(places) > 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--vae.crop=9"], "vae.crop: 9 is not a multiple of the autoencoder's down factor 2; choose 8"),
        (["--data.height=18", "--vae.block_out_channels=[8, 8, 8]"], "data.height: 18 is not a multiple"),
        (["--vae.crop=32"], "vae.crop: 32 does not fit into frames of 16 pixels"),
        ([*ADVERSARIAL, "--vae.adversarial.layers=3"], "vae.adversarial.layers: 3 layers leave nothing"),
        (["--vae.crop=null", "--vae.lpips_weight=0.1"], "vae.lpips_weight: 0.1, and LPIPS is unavailable: switched"),
        (["--training.double_resolution_at=[2]"], "training.double_resolution_at: is of video prediction"),
        (["--training.visualize_prompts=[a]"], "training.visualize_prompts: a VAE knows no prompts"),
        (["--sampling.num_inference_steps=3"], "belongs to task video_prediction, and this is task autoencoder"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(tmp_path, arguments, message):
    with pytest.raises(UserError) as caught:
        train_vae(tmp_path, *arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "tiny_vae" / "checkpoints").exists()


def test_a_folder_that_is_no_vae_is_named_by_its_key(tmp_path):
    with pytest.raises(UserError, match="^vae.pretrained: .* holds no config.json"):
        VAES.build(PretrainedVaeConfig(pretrained=str(tmp_path)))


def test_another_loss_is_another_run(finished):
    with pytest.raises(UserError, match="vae.kl_weight: is 0.1, but the run in .* was started with 0.0001"):
        train_vae(finished.parent, *ADVERSARIAL, "--vae.kl_weight=0.1", "--training.num_steps=9")


def test_to_images_reaches_both_ends():
    assert to_images(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_lpips_is_a_term_of_the_loss_and_a_figure(tmp_path):
    backbone = tmp_path / "backbone.pth"
    torch.save(squeezenet1_1(weights=None).state_dict(), backbone)
    size = ["--data.height=32", "--data.width=32", "--vae.crop=null"]
    more = ["--vae.lpips_weight=0.5", "--evaluation.lpips_net=squeeze", f"--evaluation.lpips_weights={backbone}"]
    train_vae(tmp_path, *size, *more, "--training.num_steps=3")
    run = tmp_path / "tiny_vae"
    for row in (row for row in metrics(run) if "train/lpips" in row):
        expected = row["train/l1"] + 0.5 * row["train/lpips"] + 1e-4 * row["train/kl"]
        assert row["train/loss"] == pytest.approx(expected, rel=1e-5) and row["train/lpips"] > 0
    assert json.loads((run / "evaluation" / "step_00000003.json").read_text())["model"]["lpips"]["mean"] > 0
    plain = tmp_path / "plain"
    plain.mkdir()
    train_vae(plain, *size, "--training.num_steps=3")
    name = "vae.encoder.conv_in.weight"  # so its gradient has come all the way
    assert not torch.equal(*(read_checkpoint(folder).tensors["model"][name] for folder in (run, plain / "tiny_vae")))


def test_a_whole_given_vae_goes_on_and_so_does_an_old_run(tmp_path, finished):
    text = re.sub(r"vae: \{.*?\}", f"vae: {{kind: pretrained, pretrained: {finished / 'vae'}, part: all, "
                  "lpips_weight: 0}", TINY_VAE, flags=re.DOTALL)  # fmt: skip
    few = ["--training.num_steps=1", "--training.warmup_steps=0", "--training.learning_rate=1e-9"]
    train_here(arguments_of(tmp_path, "whole", text, *few))
    train_vae(tmp_path, *ADVERSARIAL, f"--init_from={finished}", *few)
    before = read_checkpoint(finished).tensors["ema"]
    for name in ("whole", "tiny_vae"):
        after = read_checkpoint(tmp_path / name).tensors["model"]
        torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
        assert not torch.equal(after["vae.encoder.conv_out.weight"], before["vae.encoder.conv_out.weight"]), name
