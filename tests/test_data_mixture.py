"""Videos and images in one training: which step is of which, what each batch holds, exactness, refusals."""

import contextlib
import json
from itertools import islice

import numpy as np
import pytest
import torch
from distributed_helper import REPOSITORY, run_torchrun
from end_to_end_helper import assert_same, losses, tiny_arguments
from PIL import Image

from vidpred import range_checks
from vidpred.assembly import train
from vidpred.assembly.conditions import settle_conditions
from vidpred.checkpoint_store import read_checkpoint
from vidpred.conditioning import prediction_roles
from vidpred.configuration import load_config
from vidpred.data import DATASETS, MixtureConfig, build_dataset, sample_clips, training_loader
from vidpred.data.mixture import IMAGE_STEPS, ImageSteps
from vidpred.errors import UserError
from vidpred.frame_roles import GIVEN, UNKNOWN
from vidpred.prediction import load_predictor

STEPS = 6
TINY_SHAPES = {"kind": "shapes", "clip_frames": 6, "num_clips": 6, "num_val_clips": 3, "num_test_clips": 1}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDPRED_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def images(tmp_path):
    folder, generator = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for number in range(7):
        pixels = (generator.integers(0, 60, (20, 24, 3)) + 20 * number).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return {"kind": "image_folder", "root": str(folder), "val_fraction": 0.0, "test_fraction": 0.0}


def config(pictures, **changes) -> MixtureConfig:
    size = dict(num_frames=4, height=16, width=16, num_workers=0)
    return MixtureConfig(**{**size, "videos": TINY_SHAPES, "images": pictures, "image_share": 0.3, **changes})


@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3, 0.3, 0.29, 0.9])
def test_image_steps_are_evenly_spread_and_of_their_share(share):
    steps = ImageSteps(share)
    chosen = [step in steps for step in range(1000)]
    counts = np.cumsum([0, *chosen])
    assert [steps.before(step) for step in range(1001)] == counts.tolist()
    assert np.abs(counts - share * np.arange(1001)).max() < 1 + 1e-9
    gaps = np.diff(np.flatnonzero(chosen))
    assert gaps.max() - gaps.min() <= 1


def batches(dataset, first_step, count, accumulation=1, **options):
    loader = training_loader(
        dataset, seed=3, global_batch=4, accumulation=accumulation, first_step=first_step, device_type="cpu",
        frame_roles=prediction_roles(2), num_workers=0, timeout=60.0, **options,
    )  # fmt: skip
    with contextlib.closing(loader):
        return list(islice(loader, count * accumulation))


def test_batches_are_of_one_source_and_a_function_of_the_step(images):
    dataset = build_dataset(config(images), "train", 0)
    seen = batches(dataset, 0, 20)
    lengths = [batch.frames.shape[1] for batch in seen]
    assert lengths == [1 if step in ImageSteps(0.3) else 4 for step in range(20)] and lengths.count(1) == 6
    for batch in seen:
        one = batch.frames.shape[1] == 1
        assert batch.frames.shape == (4, 1 if one else 4, 3, 16, 16)
        assert batch.roles.tolist() == [[UNKNOWN] if one else [GIVEN, GIVEN, UNKNOWN, UNKNOWN]] * 4
        assert all(name.endswith(".png" if one else ".mp4") for name in batch.names)
        assert bool((batch.draws >= 4 * IMAGE_STEPS).all()) == one
    # Each source goes through its own items, epoch after epoch, and no draw comes twice.
    by_epoch = {}
    for batch in seen:
        for draw, name in zip(batch.draws.tolist(), batch.names):
            by_epoch.setdefault((name[-4:], draw // (7 if name.endswith(".png") else 6)), []).append(name)
    assert len(by_epoch) > 10 and all(len(set(names)) == len(names) for names in by_epoch.values())
    draws = torch.cat([batch.draws for batch in seen])
    assert len(draws.unique()) == len(draws)

    for first in (1, 7, 13):
        for again, batch in zip(batches(dataset, first, 7), seen[first:]):
            assert torch.equal(again.frames, batch.frames) and torch.equal(again.draws, batch.draws)
    parts = batches(dataset, 3, 5, accumulation=2)
    for step, batch in enumerate(seen[3:8]):
        both = parts[2 * step : 2 * step + 2]
        assert torch.equal(torch.cat([part.frames for part in both]), batch.frames)


def test_videos_alone_see_what_they_see_in_a_mixture(images):
    """The video steps are the first steps of the videos by themselves, with the same draws."""
    mixed, alone = config(images), config(images).sources()["videos"]
    of_videos = [batch for batch in batches(build_dataset(mixed, "train", 0), 0, 10) if batch.frames.shape[1] == 4]
    for batch, other in zip(of_videos, batches(build_dataset(alone, "train", 0), 0, len(of_videos))):
        assert torch.equal(batch.frames, other.frames) and torch.equal(batch.draws, other.draws)


def test_calibration_is_of_both_and_evaluation_of_the_videos(images, tmp_path):
    train_clips = build_dataset(config(images), "train", 0, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["videos"]["splits"]["train"]["items"] == 6 and report["images"]["splits"]["train"]["items"] == 7
    assert len(train_clips) == 13 and train_clips.item_name(6).endswith(".png")
    options = dict(seed=0, purpose="calibration", batch_size=4, num_workers=0, timeout=60.0)
    with contextlib.closing(sample_clips(train_clips, 10, **options)) as loader:
        shapes = [tuple(batch.frames.shape[:2]) for batch in loader]
    assert shapes == [(4, 4), (3, 4), (3, 1)]
    val = build_dataset(config(images), "val", 0)
    assert len(val) == 3 and val.clip(0, None).frames.shape[0] == 4


@pytest.mark.parametrize(
    "changes, message",
    [(dict(image_share=0.0), "data.image_share: 0.0 is no share"), (dict(image_share=1.0), "data.image_share"),
     (dict(images={}), "data.images: has no kind; give one of"),
     (dict(videos={"root": "x"}), "data.videos: has no kind"),
     (dict(videos={"kind": "mixture"}), "data.videos: a mixture in a mixture"),
     (dict(videos={"kind": "magic"}), "data.kind: 'magic' is not known"),
     (dict(images={"kind": "image_folder"}), "data.images: data.root: not set"),
     (dict(images={"kind": "image_folder", "roof": "x"}), "data.images: .*roof"),
     (dict(images={"kind": "mnist", "height": "tall"}), "data.images: .*height.*tall"),
     (dict(images={"kind": "image_folder", "height": 32}), "data.images.height: is 32, and the mixture's is 16"),
     (dict(images={"kind": "image_folder", "min_crop": 0.5}), "data.images: data.min_crop: 0.5 cuts windows")],
)  # fmt: skip
def test_impossible_mixtures_are_one_line(images, changes, message):
    with pytest.raises(UserError, match=message):
        build_dataset(config(images, **changes), "train", 0)


@pytest.mark.parametrize("share, batch", [(0.1, 4), (0.3, 2), (0.5, 7), (0.9, 3), (1 / 3, 1)])
def test_in_an_epoch_both_sources_are_seen_once(images, share, batch):
    dataset = build_dataset(config(images, image_share=share), "train", 0)
    seen = [0, 0]
    for steps in range(1, 1000):
        seen[steps - 1 in ImageSteps(share)] += batch
        if seen[0] >= len(dataset.videos) and seen[1] >= len(dataset.images):
            break
    assert dataset.steps_per_epoch(batch) == steps
    assert dataset.videos.steps_per_epoch(4) == 2


def test_a_source_without_a_condition_is_named(images, tmp_path, caplog):
    for number in range(7):
        (tmp_path / "pictures" / f"{number}.txt").write_text(f"number {number}")
    mixed = build_dataset(config({**images, "captions": "text_files"}), "train", 0)
    assert mixed.has_text and mixed.lacking == {"class": mixed.images.name, "text": mixed.videos.name}
    run = load_config(arguments(tmp_path / "run", images, '--condition.kinds=["text"]'))
    with caplog.at_level("WARNING"):
        settle_conditions(run, mixed, None)
    (line,) = caplog.messages
    assert line == f"condition.kinds: text, and the clips of {mixed.videos.name} all come without"


def test_one_batch_of_a_mixture_is_not_overfitted(images, tmp_path):
    with pytest.raises(UserError, match="^overfit_one_batch: a mixture has no one batch"):
        load_config(arguments(tmp_path / "run", images, "--overfit_one_batch"))


# Whole runs ------------------------------------------------------------------------------------------------


def arguments(folder, images, *more) -> list[str]:
    """The tiny run with a mixture in the place of its data."""
    folder.mkdir(exist_ok=True)
    command = tiny_arguments(folder, f"--training.num_steps={STEPS}", *more)
    file = folder / "tiny.yaml"
    data = json.dumps({"kind": "mixture", "num_frames": 4, "height": 16, "width": 16, "num_workers": 0,
                       "image_share": 0.34, "videos": TINY_SHAPES, "images": images})  # fmt: skip
    file.write_text(f"\ndata: {data}\n" + file.read_text().split("num_test_clips: 1}\n", 1)[1])
    return command


def run(folder, images, *more):
    range_checks.reset()
    train(load_config(arguments(folder, images, *more)))
    range_checks.reset()
    return read_checkpoint(folder / "tiny")


def test_one_and_two_processes_and_a_resume_train_alike(tmp_path, images):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes have
    try:
        one = run(tmp_path / "one", images)
        run(tmp_path / "parts", images, "--training.num_steps=3")
        parts = run(tmp_path / "parts", images)
    finally:
        torch.set_num_threads(threads)
    assert_same(dict(one.tensors["ema"]), dict(parts.tensors["ema"]))
    assert losses(tmp_path / "one" / "tiny") == losses(tmp_path / "parts" / "tiny")
    script = str(REPOSITORY / "train_video_pred.py")
    run_torchrun(script, arguments(tmp_path / "two", images), nproc=2, timeout=200)
    assert losses(tmp_path / "two" / "tiny") == pytest.approx(losses(tmp_path / "one" / "tiny"), abs=1e-5)

    # Its configuration is read back, keys inside the sources are overridden, and both tasks are drawn.
    saved = DATASETS.from_mapping(one.config["data"])
    assert saved.sources()["images"].root == images["root"] and saved.sources()["videos"].num_frames == 4
    predictor = load_predictor(tmp_path / "one" / "tiny", "cpu")
    given = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    assert predictor.predict(given, 2).shape == (2, 3, 16, 16)
    assert predictor.fill(given[:1], torch.zeros(1, dtype=torch.bool)).shape == (1, 3, 16, 16)


def test_a_model_of_images_and_videos_draws_pictures(tmp_path, images, run_file):
    """Its videos are always continued, its images come from nothing: so do prompts, and samples, as pictures."""
    for number in range(7):
        (tmp_path / "pictures" / f"{number}.txt").write_text(f"number {number}")
    captions, more = {**images, "captions": "text_files"}, ('--condition.kinds=["text"]', "--condition.width=8")
    prompts = ('--training.visualize_prompts=["number 1", "number 2"]', f"--training.visualize_every_step={STEPS}")
    run(tmp_path / "run", captions, *more, *prompts)
    folder = tmp_path / "run" / "tiny"
    assert (folder / "samples" / f"step_{STEPS:08d}" / "prompts.png").is_file()
    tool = REPOSITORY / "tools" / "sample.py"
    asked = ("--prompts", "number 3", "--out", tmp_path, "--device", "cpu")
    code, lines, errors = run_file(tool, "--checkpoint", folder, *asked)
    assert code == 0 and "samples.png" in lines[-1], errors


def test_the_watch_looks_at_the_videos_of_a_mixture(tmp_path, images):
    """Half of the steps are of pictures; a run that begins at one of them, with two micro batches a step."""
    more = ("--data.image_share=0.5", "--training.accumulation=2")
    run(tmp_path, images, *more, "--training.num_steps=1")
    assert run(tmp_path, images, *more, "--training.num_steps=40").step == 40


def test_keys_of_the_sources_are_overridden_by_their_dotted_names(tmp_path, images):
    overrides = ("--data.images.max_enlargement=3.0", "--data.image_share=0.5")
    loaded = load_config(arguments(tmp_path / "run", images, *overrides))
    assert loaded.data.sources()["images"].max_enlargement == 3.0 and loaded.data.image_share == 0.5
    assert loaded.data.sources()["images"].root == images["root"]


def test_schemes_may_be_written_as_yaml(tmp_path):
    file = tmp_path / "schemes.yaml"
    file.write_text("conditioning: {scheme: {prediction: 0.5, random: 0.5}}\n")
    assert load_config(["--config", str(file)]).conditioning.mixture() == {"prediction": 0.5, "random": 0.5}
