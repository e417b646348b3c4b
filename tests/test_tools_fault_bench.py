"""The fault bench: its clips, edits and tables by themselves, and a few faults of one small model from end to end."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

TOOLS = Path(__file__).resolve().parents[1] / "tools"
sys.path.insert(0, str(TOOLS))

import fault_case  # noqa: E402
import fault_cases  # noqa: E402
import fault_edits as edits  # noqa: E402
import fault_health  # noqa: E402
import fault_plants  # noqa: E402
import fault_vaes  # noqa: E402
from fault_bench import parse  # noqa: E402
from fault_cases import Name, Result, names_of  # noqa: E402
from fault_data import Scene, clip, damaged_clip, glyph, write_scene  # noqa: E402
from fault_models import COMMON, FIRST_SEED, HEALTHY, trained  # noqa: E402
from fault_recipes import Recipe  # noqa: E402
from fault_scenes import SCENES  # noqa: E402
from fault_tables import faults_table, healthy_table, never_healthy, reached, split, unseen  # noqa: E402

from vidpred.checkpoint_store import read_checkpoint  # noqa: E402
from vidpred.diffusion import NoiseLevel  # noqa: E402
from vidpred.errors import UserError  # noqa: E402
from vidpred.prediction import LatentCalibration, load_predictor  # noqa: E402

TINY = {
    "network.channels": [8, 8], "network.head_dim": 8, "network.temporal_attention_levels": [],
    "training.num_steps": 2, "training.validation_clips": 2, "evaluation.num_clips": 1,
}  # fmt: skip
SCENE = Scene(height=16, width=16, frames=8, clips=(6, 3))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of a network that is hardly trained."""
    before = os.environ.get("VIDPRED_CACHE")
    os.environ["VIDPRED_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield trained("tuning", Recipe(SCENE, TINY), 0, tmp_path_factory.mktemp("bench"), "tiny")
    os.environ.pop("VIDPRED_CACHE") if before is None else os.environ.update(VIDPRED_CACHE=before)


# Clips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["shapes", "digits", "panorama", "street", *SCENES])
def test_clips_are_a_function_of_the_scene_and_move(kind):
    scene = dataclasses.replace(SCENE, kind=kind)
    first = clip(scene, "train", 1)
    assert first.shape == (8, 16, 16, 3) and first.dtype == np.uint8
    assert np.array_equal(first, clip(scene, "train", 1)) and not np.array_equal(first, clip(scene, "val", 1))
    assert not np.array_equal(first, clip(dataclasses.replace(scene, seed=1), "train", 1))
    assert np.abs(np.diff(first.astype(float), axis=0)).mean() > 0.5


def test_a_street_stands_still_around_its_shapes():
    frames = clip(dataclasses.replace(SCENE, kind="street"), "train", 0)
    assert (np.ptp(frames.astype(int), axis=0).max(axis=-1) == 0).mean() > 0.2


def test_colours_bars_noise_and_cuts():
    grey = clip(dataclasses.replace(SCENE, colours="grey"), "train", 0)
    assert (grey == grey[..., :1]).all()
    warm = clip(dataclasses.replace(SCENE, colours="warm"), "train", 0).astype(float)
    assert not np.allclose(warm.mean((0, 1, 2))[0], warm.mean((0, 1, 2))[2], atol=20)
    bars = clip(dataclasses.replace(SCENE, bars=3), "train", 0)
    assert not bars[:, :3].any() and not bars[:, -3:].any() and bars[:, 3:-3].any()
    noisy = clip(dataclasses.replace(SCENE, noise=10.0), "train", 0).astype(float)
    assert 6 < (noisy - clip(SCENE, "train", 0)).std() < 11
    cut = clip(dataclasses.replace(SCENE, cuts=1.0), "train", 0).astype(float)
    changes = np.abs(np.diff(cut, axis=0)).mean((1, 2, 3))
    assert changes.argmax() == 3  # into frame 4 of 8


def test_each_damage_is_what_it_says():
    def damaged(damage, index=0, split="train"):
        return damaged_clip(dataclasses.replace(SCENE, damage=damage, held=3), split, index)

    sound = clip(SCENE, "train", 0)
    assert (damaged("constant") == sound[0]).all()
    assert np.array_equal(damaged("duplicated"), sound[[0, 0, 0, 1, 1, 1, 2, 2]])
    assert np.array_equal(damaged("one_clip", 5, "val"), sound)
    assert np.array_equal(damaged("swapped"), sound[..., [2, 1, 0]])
    cast = damaged_clip(dataclasses.replace(SCENE, damage="cast", strength=9.0), "train", 0).astype(float) - sound
    assert not cast[:3].any() and 3 < cast[3:, ..., 0].mean() <= 9 and -9 <= cast[3:, ..., 2].mean() < -3
    brightens = dataclasses.replace(SCENE, damage="brightens", strength=3.0)
    added = damaged_clip(brightens, "train", 0).astype(float) - sound
    assert (np.diff(added.mean((1, 2, 3))) > 1.5).all()
    shuffled = damaged("shuffled")
    assert sorted(frame.tobytes() for frame in shuffled) == sorted(frame.tobytes() for frame in sound)
    assert not np.array_equal(shuffled, sound)


def test_digits_differ():
    assert len({glyph(digit, 12).tobytes() for digit in range(10)}) == 10


def test_a_scene_is_written_once(tmp_path):
    root = write_scene(SCENE, tmp_path)
    written = (root / "train" / "clips.npy").stat().st_mtime_ns
    assert np.load(root / "val" / "clips.npy").shape == (3, 8, 16, 16, 3)
    assert write_scene(SCENE, tmp_path) == root and (root / "train" / "clips.npy").stat().st_mtime_ns == written
    assert write_scene(dataclasses.replace(SCENE, seed=1), tmp_path) != root


# Edits -----------------------------------------------------------------------------------------------------


def test_an_edit_changes_what_it_says_and_checksums_hold(model, tmp_path):
    before = read_checkpoint(model.checkpoint)
    path = edits.edited(model.checkpoint, tmp_path, edits.set_keys({"diffusion.schedule.kind": "cosine"}))
    after = read_checkpoint(path)  # verifies them
    assert after.config["diffusion"]["schedule"]["kind"] == "cosine" and after.step == before.step
    after.config["diffusion"]["schedule"]["kind"] = before.config["diffusion"]["schedule"]["kind"]
    assert after.config == before.config and after.tensors.keys() == before.tensors.keys()
    for group in before.tensors:
        assert all(torch.equal(after.tensors[group][name], tensor) for name, tensor in before.tensors[group].items())


def test_one_value_is_spoiled(model, tmp_path):
    generator = np.random.default_rng(0)
    after = read_checkpoint(edits.edited(model.checkpoint, tmp_path, edits.spoil(generator, np.nan)))
    for group in edits.NETWORKS:
        assert sum(int(tensor.isnan().sum()) for tensor in after.tensors[group].values()) == 1


def test_calibration_is_taken_away_or_applied_twice(model, tmp_path):
    before = load_predictor(model.checkpoint, "cpu").calibration
    raw = torch.randn(1, 2, 3, 4, 4)
    without = edits.edited(model.checkpoint, tmp_path / "a", edits.without_calibration)
    assert torch.equal(load_predictor(without, "cpu").calibration.normalize(raw), raw)
    twice = load_predictor(edits.edited(model.checkpoint, tmp_path / "b", edits.calibrated_twice), "cpu").calibration
    torch.testing.assert_close(twice.normalize(raw), before.normalize(before.normalize(raw)), rtol=1e-4, atol=1e-4)
    assert isinstance(twice, LatentCalibration)


def test_a_bias_of_the_head_moves_x0_by_it_and_nothing_else(model, tmp_path):
    path = edits.edited(model.checkpoint, tmp_path, edits.shift_head(0.25))
    before, after = (load_predictor(checkpoint, "cpu").denoiser for checkpoint in (model.checkpoint, path))
    x, given = torch.randn(1, 3, 3, 8, 8), torch.tensor([[True, True, False]])
    noisy = NoiseLevel.from_alpha_sigma(torch.tensor(0.6), torch.tensor(0.8))
    level = NoiseLevel.where(given, NoiseLevel.clean((1, 1)), noisy)
    estimates = [denoiser(x, level, given, torch.arange(3.0)[None]) for denoiser in (before, after)]
    torch.testing.assert_close(estimates[1][:, 2], estimates[0][:, 2] + 0.25, rtol=0, atol=1e-5)


def test_scaled_weights_and_another_average(model, tmp_path):
    before = read_checkpoint(model.checkpoint)
    scaled = read_checkpoint(edits.edited(model.checkpoint, tmp_path / "a", edits.scale_weights(3.0, "head.")))
    torch.testing.assert_close(scaled.tensors["ema"]["head.weight"], 3 * before.tensors["ema"]["head.weight"])
    assert torch.equal(scaled.tensors["ema"]["stem.weight"], before.tensors["ema"]["stem.weight"])
    raw = read_checkpoint(edits.edited(model.checkpoint, tmp_path / "b", edits.average_is("model", updates=0)))
    assert all(torch.equal(raw.tensors["ema"][name], tensor) for name, tensor in raw.tensors["model"].items())
    assert raw.state["ema_updates"] == 0


def test_initial_weights_are_those_that_training_began_with(model):
    from vidpred.diagnosis.record import weight_sample

    checkpoint = read_checkpoint(model.checkpoint)
    start = edits.initial_weights(checkpoint)
    assert torch.equal(weight_sample(start), checkpoint.tensors["record"]["weights_start"])
    assert not torch.equal(start["stem.weight"], checkpoint.tensors["model"]["stem.weight"])


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    return fault_vaes.written_vae(fault_vaes.Vae(width=8, steps=3), write_scene(SCENE, folder / "clips"), folder)


@pytest.mark.parametrize("deviation", [5.0, 0.25])
def test_a_widened_vae_reconstructs_as_before(deviation):
    vae = fault_vaes.Vae(width=8)
    network, images = fault_vaes.build(vae).eval(), torch.rand(4, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        before = network.decode(network.encode(images).latent_dist.mode()).sample
        fault_vaes._widen(network, deviation, images)
        z = network.encode(images).latent_dist.mode()
        assert float(z.std()) == pytest.approx(deviation, rel=1e-3)
        torch.testing.assert_close(network.decode(z).sample, before, rtol=1e-3, atol=1e-3)
    assert network.config.scaling_factor == pytest.approx(1 / deviation)


def test_vae_edits(vae, tmp_path):
    from diffusers import AutoencoderKL

    def load(folder):
        return AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False)

    images, sound = torch.rand(2, 3, 16, 16), load(vae)
    with torch.no_grad():
        z = sound.encode(images).latent_dist.mode()
        swapped = load(edits.edited_vae(vae, tmp_path / "in", edits.swap_input))
        torch.testing.assert_close(swapped.encode(images.flip(1)).latent_dist.mode(), z)
        swapped = load(edits.edited_vae(vae, tmp_path / "out", edits.swap_output))
        torch.testing.assert_close(swapped.decode(z).sample.flip(1), sound.decode(z).sample)
        fresh = load(edits.edited_vae(vae, tmp_path / "fresh", edits.reinitialise(1)))
        assert not torch.allclose(fresh.encode(images).latent_dist.mode(), z, atol=0.1)
    none, twice = (load(edits.edited_vae(vae, tmp_path / str(power), edits.rescale(power))) for power in (0, 2))
    factor = sound.config.scaling_factor
    assert none.config.scaling_factor == 1 and twice.config.scaling_factor == pytest.approx(factor**2)


# Health ------------------------------------------------------------------------------------------------------


def test_equal_distributions_have_no_energy_distance_and_others_have():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 400, 3, generator=generator)
    assert abs(fault_health.energy_distance(a, b)) < 0.03
    # Of two points: 2 |a - b|.
    one, two = torch.zeros(2, 1), torch.full((2, 1), 3.0)
    assert fault_health.energy_distance(one, two) == pytest.approx(6.0)


def test_what_needs_no_learning_is_the_floor_and_an_untrained_model_is_not_healthy(model):
    predictor = load_predictor(model.checkpoint, "cpu")
    frames = fault_health.clips_in(model.clips, 3)
    known = predictor.context_frames
    copy = fault_health.psnr_of(frames[:, known - 1 : known], frames[:, known : predictor.num_frames])
    assert fault_health.floor_of(predictor, frames) >= copy == fault_health.copied(model.checkpoint, model.clips)
    health = fault_health.measured_health(model)
    assert not health.healthy and health.psnr < health.floor + 0.5
    remembers = dataclasses.replace(model, recipe=model.recipe.known_by("memory"))
    assert not fault_health.measured_health(remembers).healthy


def test_what_the_watch_found_is_read_from_the_metrics(tmp_path):
    lines = [{"step": 1, "finding/a": 1.0}, {"step": 2, "finding/a": 0.0, "finding/b": 1.0}, {"finding/c": 0.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert fault_health.found_while_training(tmp_path) == ["a", "b"]


def stirred(network):
    """Without layers of nothing but zeros."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def test_the_burst_of_a_loss_is_found_where_it_had_learned_before(tmp_path):
    def burst(losses):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"train/loss": loss}) + "\n" for loss in losses))
        return fault_health.burst(tmp_path)

    assert burst([1, 0.2, 0.1, 5, 9, 90, 9, 9, 1, 0.3]) == 8
    assert burst([1, 0.2, 0.1, 0.1, 0.5, 0.9, 0.4, 0.3, 0.1, 0.3]) is None  # noise
    assert burst([0.1, 5, 9, 90, 9, 9, 1, 0.3]) is None  # had not learned
    assert burst([1, 0.2, 0.1, 5, 9, float("nan"), 9, 9, 1, 0.3]) == 8


def test_the_network_of_the_judgement_predicts_and_takes_conditions():
    from vidpred.conditions import ConditionEmbedding, ConditionShape
    from vidpred.networks import NETWORKS, build_network

    config = NETWORKS.config_class("one_level")(width=16, depth=2)
    x, times = torch.randn(2, 4, 3, 5, 7), torch.arange(4.0).expand(2, 4)
    given = torch.tensor([[True, True, False, False]]).expand(2, 4)
    network = stirred(build_network(config, 3, 4))
    out = network(x, torch.full((2, 4), 0.5), given, times)
    assert out.shape == (2, 4, 4, 5, 7)
    assert not torch.allclose(out, network(x, torch.full((2, 4), 0.1), given, times))
    network = stirred(build_network(config, 3, 4, ConditionShape(8, False)))
    told = [network(x, torch.full((2, 4), 0.5), given, times, ConditionEmbedding(torch.randn(2, 4, 8))) for _ in "ab"]
    assert not torch.allclose(*told)


# Cases and tables --------------------------------------------------------------------------------------------


def test_the_sets_are_as_large_as_they_should_be_and_have_nothing_in_common():
    for set_name, per_fault, sound in (("tuning", 3, 12), ("rehearsal", 2, 12), ("judgement", 5, 25)):
        names = names_of(set_name, [])
        assert len({str(name) for name in names}) == len(names)
        assert sum(name.fault != "healthy" for name in names) == 25 * per_fault
        assert sum(name.fault == "healthy" for name in names) >= sound
    assert FIRST_SEED["tuning"] + 200 < FIRST_SEED["rehearsal"] < FIRST_SEED["judgement"] - 200
    assert len(names_of("judgement", ["frozen_output", "kl"])) == 6
    for set_name, groups in fault_case.BASES.items():
        assert all(kind in HEALTHY[set_name] for kinds in groups.values() for kind in kinds)
    scenes = {name: {recipe.scene.kind for recipe in HEALTHY[name].values()} for name in HEALTHY}
    assert not scenes["judgement"] & (scenes["tuning"] | scenes["rehearsal"])
    assert COMMON["judgement"]["network.kind"] == "one_level" and "network.kind" not in COMMON["tuning"]


def result(fault, number, findings, psnr=10.0, **others):
    return Result(fault, others.pop("kind", fault), number, psnr=psnr, twin_psnr=20.0, findings=findings, **others)


def test_tables_count_the_first_finding_and_targets_are_95_of_100_and_one_of_20():
    faults = [result("untrained", i, ["untrained"]) for i in range(19)]
    missed = result("untrained", 19, ["loss_plateau", "untrained"], psnr=None)
    sound = [result("healthy", i, [], kind=f"kind {i}") for i in range(19)]
    accused = result("healthy", 19, ["frozen_output"], kind="still")
    row = faults_table([*faults, missed]).splitlines()[2]
    assert row == "| untrained | 20 | 19 | 20 | loss_plateau 1 | 10.0 (least 10.0), 1 not finite |"
    watched = dataclasses.replace(accused, health="prediction +2.0 dB", findings=[], watched=["data_constant"])
    row = healthy_table([watched]).splitlines()[2]
    assert row == "| still | 10.0 | 20.0 | prediction +2.0 dB | data_constant (while training) |"
    assert not reached([*faults, *sound[:-1], accused, watched])
    unfit = dataclasses.replace(accused, visible=False, health="prediction -1.0 dB")
    assert split([unfit]) == ([], []) and not unseen([unfit])
    assert never_healthy([unfit]) == ["still: prediction -1.0 dB"]
    assert not reached([*faults, *sound, unfit]), "19 healthy models are too few"
    assert reached([*faults, missed, *sound, accused])
    assert not reached([*faults, missed, missed, *sound, accused])
    assert not reached([*faults, missed, *sound[:-1], accused, accused])
    invisible = result("untrained", 0, [], psnr=19.5, visible=False)
    assert split([invisible]) == ([], []) and reached([*faults, missed, invisible, *sound, accused])
    assert unseen([result("untrained", 0, [], psnr=19.5, visible=False)]) == ["untrained 0: 0.50 dB"]


def test_names_that_do_not_exist_are_refused():
    assert parse(["--only", "untrained", "static camera"]).only == ["untrained", "static camera"]
    with pytest.raises(UserError, match="'?nonsense"):
        parse(["--only", "nonsense"])


# A reduced bench ---------------------------------------------------------------------------------------------

REDUCED = ("weights_not_finite", "wrong_parameterization", "latent_scale_missing", "clip_bound_binds")


def test_a_reduced_bench_names_its_faults_and_accuses_no_healthy_model(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDPRED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(fault_case.BASES["tuning"], "any", ["short"])
    out = tmp_path / "tuning"
    sound = next(name for name in names_of("tuning", ["short"]))
    results = [fault_cases.run(name, out) for name in [sound, *(Name("tuning", fault, 0) for fault in REDUCED)]]
    assert results[0].findings == results[0].watched == [] and results[0].visible, "the healthy model"
    assert results[0].psnr > results[0].twin_psnr + 0.5 and results[0].attempt == 0
    assert [one.findings[:1] for one in results[1:]] == [[fault] for fault in REDUCED]
    assert results[1].psnr is None and all(one.twin_psnr - one.psnr >= 1 for one in results[2:])
    # What is done is not done again, and the rules alone say the same of what was measured.
    monkeypatch.setattr(fault_cases, "_planted", None)
    monkeypatch.setattr(fault_cases, "diagnose", None)
    assert fault_cases.run(sound, out) == results[0]
    assert [fault_cases.rejudged(one).findings for one in results] == [one.findings for one in results]
    command = [sys.executable, str(TOOLS / "fault_bench.py"), "--out", str(tmp_path), "--only", "short", "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and f"| short | {results[0].psnr:.1f} |" in done.stdout, done.stderr
    assert json.loads((tmp_path / "results" / "tuning.json").read_text())[0]["kind"] == "short"
