"""The video-prediction task: closed forms of loss and levels, and a short run through the real trainer."""

import json

import numpy as np
import pytest
import torch
from test_training_trainer import assert_same
from torch import nn
from training_tiny import metrics

from vidpred import range_checks
from vidpred.autoencoders import MockConfig, build_autoencoder
from vidpred.checkpoint_store import CheckpointStore, read_checkpoint
from vidpred.conditioning import ConditionConfig, Conditioner, ConditioningConfig, prediction_roles
from vidpred.conditions import ConditionBatch
from vidpred.data import Clip, ClipBatch, ClipDataset, ClipError, evaluation_batches, training_loader
from vidpred.denoiser import Denoiser
from vidpred.diffusion import (
    LevelConfig,
    NoiseSchedule,
    SamplingConfig,
    ScheduleConfig,
    build_levels,
    build_parameterization,
)
from vidpred.errors import UserError
from vidpred.evaluation import BadClipsError, EvaluationConfig, evaluate
from vidpred.frame_roles import GIVEN, HIDDEN, UNKNOWN
from vidpred.prediction import LatentCalibration, Predictor
from vidpred.tensor_ops import append_dims
from vidpred.training import (
    LoggingConfig,
    Trainer,
    TrainingConfig,
    WandbConfig,
    build_loggers,
    latest_checkpoint,
)
from vidpred.training.clip_levels import LEVEL_BIN_NAMES
from vidpred.training.validation_set import ValidationSet
from vidpred.training.video_prediction import VideoPredictionTask

FRAMES, CONTEXT, SEED = 6, 2, 3


@pytest.fixture(autouse=True)
def fresh_ranges():
    range_checks.reset()
    yield
    range_checks.reset()


class Squares(ClipDataset):
    """A bright square that moves one pixel a frame; item 3 of the training split cannot be read."""

    name = "squares"

    def __init__(self, items, broken=()):
        self.items, self.broken = items, broken

    def __len__(self):
        return self.items

    def clip(self, index, generator):
        if index in self.broken:
            raise ClipError("damaged")
        start = index % 6 + (int(generator.integers(3)) if generator is not None else 0)
        frames = torch.full((FRAMES, 3, 16, 16), 40, dtype=torch.uint8)
        for t in range(FRAMES):
            frames[t, :, 4:10, start + t : start + t + 5] = 220
        return Clip(frames, torch.arange(FRAMES, dtype=torch.float32), self.item_name(index))

    def item_name(self, index):
        return f"folder/square {index}.mp4"


class TinyNetwork(nn.Module):
    """One convolution that sees the code; begins at zero when `zero`."""

    def __init__(self, zero=False):
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv2d(4, 3, 3, padding=1)
        if zero:
            nn.init.zeros_(self.mix.weight)
            nn.init.zeros_(self.mix.bias)

    def forward(self, x, noise_code, given, frame_times, condition=None):
        code = append_dims(noise_code, 5).expand(-1, -1, 1, *x.shape[3:])
        return self.mix(torch.cat([x, code], dim=2).flatten(0, 1)).unflatten(0, x.shape[:2])


def make_task(
    tmp_path,
    *,
    network=None,
    parameterization="v",
    residual=True,
    batch_size=4,
    overfit=False,
    items=16,
    broken=(),
    validation=None,
    conditioning=None,
    extra_losses=None,
    **sampling,
):
    autoencoder = build_autoencoder(MockConfig(down_factor=4))
    schedule = NoiseSchedule(ScheduleConfig(zero_terminal_snr=True))
    denoiser = Denoiser(
        network or TinyNetwork(), build_parameterization(parameterization, schedule), residual
    )
    predictor = Predictor(
        denoiser,
        autoencoder,
        LatentCalibration(3),
        schedule,
        SamplingConfig(num_inference_steps=3, **sampling),
        CONTEXT,
        FRAMES,
    )
    roles = prediction_roles(CONTEXT)
    train, held_out = Squares(items, broken), Squares(5)

    def open_loader(first_step):
        return training_loader(
            train,
            seed=SEED,
            global_batch=batch_size,
            accumulation=1,
            first_step=first_step,
            frame_roles=roles,
            num_workers=0,
            timeout=10.0,
            device_type="cpu",
            repeat_draws=batch_size if overfit else None,
        )

    def full_evaluation(predictor, step):
        config = EvaluationConfig(num_clips=4, batch_size=2, lpips_net="none", num_panels=1)
        return evaluate(predictor, held_out, config, roles, seed=SEED, step=step, ema=True)

    return VideoPredictionTask(
        predictor,
        conditioning or ConditioningConfig(context_frames=CONTEXT),
        build_levels(LevelConfig(), schedule),
        open_loader,
        validation or ValidationSet(held_out, roles, 5, 2, 2),
        full_evaluation,
        run_folder=tmp_path,
        seed=SEED,
        global_batch=batch_size,
        show_training_clips=overfit,
        extra_losses=extra_losses,
    )


def first_batch(task, step=0):
    batches = task.batches(step)
    batch = next(batches)
    batches.close()
    return batch


def test_conditions_are_dropped_by_the_draw_at_their_rate(tmp_path):
    task, rows = make_task(tmp_path), 4000
    task._predictor.conditioner = Conditioner(ConditionConfig(kinds=("class",), class_names=("a", "b"), dropout=0.25))
    asked = ConditionBatch(class_names=["b"] * rows)
    roles = torch.full((rows, 2), UNKNOWN, dtype=torch.uint8)
    frames, names = torch.empty(rows, 2, 3, 1, 1), ["x"] * rows
    batch = ClipBatch(frames, roles, torch.zeros(rows, 2), torch.arange(rows), names, asked)
    dropped = task._condition(batch, dropped=True).classes < 0
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / rows) ** 0.5)
    assert abs(torch.corrcoef(torch.stack([dropped[1:], dropped[:-1]]).float())[0, 1]) < 0.06
    assert (task._condition(batch, dropped=False).classes == 1).all()  # as validation asks
    some = batch.first(7)
    some.draws = torch.arange(100, 107)
    assert torch.equal(task._condition(some, dropped=True).classes < 0, dropped[100:107])  # of the draw alone
    task._seed += 1
    assert not torch.equal(task._condition(batch, dropped=True).classes < 0, dropped)
    task._predictor.conditioner = None
    assert task._condition(batch, dropped=True) is None


def test_of_several_kinds_each_is_also_dropped_by_itself(tmp_path):
    """The network sees every subset of the kinds: with p all are dropped, else each of two with p of its own."""
    task, rows, p = make_task(tmp_path), 4000, 0.25
    kinds = ("class", "actions")
    config = ConditionConfig(kinds=kinds, class_names=("a", "b"), action_scale=(1.0,), dropout=p)
    task._predictor.conditioner = Conditioner(config)
    asked = ConditionBatch(["b"] * rows, None, torch.ones(rows, 2, 1))
    roles = torch.full((rows, 2), UNKNOWN, dtype=torch.uint8)
    frames, names = torch.empty(rows, 2, 3, 1, 1), ["x"] * rows
    batch = ClipBatch(frames, roles, torch.zeros(rows, 2), torch.arange(rows), names, asked)
    told = task._condition(batch, dropped=True)
    with_class, with_actions = told.classes >= 0, told.actions_known
    for seen, expected in (
        (with_class & with_actions, (1 - p) ** 3), (with_class & ~with_actions, (1 - p) ** 2 * p),
        (~with_class & with_actions, (1 - p) ** 2 * p), (~with_class & ~with_actions, p + (1 - p) * p**2),
    ):  # fmt: skip
        assert seen.float().mean().item() == pytest.approx(expected, abs=0.03)
    whole = task._condition(batch, dropped=False)
    assert (whole.classes == 1).all() and whole.actions_known.all()


def test_only_scored_frames_enter_the_loss_and_its_bins(tmp_path):
    task = make_task(tmp_path)
    batch = first_batch(task)
    batch.roles[:] = torch.tensor([GIVEN, HIDDEN] + [UNKNOWN] * (FRAMES - 2))
    before = task.loss(task.network, batch, 0)
    assert before.averages.weights.sum() == len(batch) * (FRAMES - 2)
    batch.frames[:, 1] = 255 - batch.frames[:, 1]  # what is hidden cannot be seen, and is not asked for
    torch.testing.assert_close(task.loss(task.network, batch, 0).loss, before.loss)


def test_the_loss_of_a_batch_is_the_mean_over_any_division_of_it(tmp_path):
    task = make_task(tmp_path, batch_size=4)
    batch = first_batch(task, step=5)
    assert batch.draws.tolist() == [20, 21, 22, 23]
    whole = task.loss(task.network, batch, 5)
    halves = []
    for rows in (torch.tensor([3, 1]), torch.tensor([0, 2])):
        part = type(batch)(
            batch.frames[rows], batch.roles[rows], batch.frame_times[rows], batch.draws[rows], []
        )
        halves.append(task.loss(task.network, part, 5))
    torch.testing.assert_close(whole.loss, (halves[0].loss + halves[1].loss) / 2)
    frames = 4 * (FRAMES - CONTEXT)
    assert whole.averages.names == LEVEL_BIN_NAMES and whole.averages.weights.sum() == frames
    torch.testing.assert_close(whole.averages.sums.sum() / frames, whole.loss.detach())
    torch.testing.assert_close(whole.averages.sums, halves[0].averages.sums + halves[1].averages.sums)


def test_validation_loss_of_a_zero_network_in_closed_form(tmp_path):
    """Predicting x0 = 0 costs the mean square of the unknown latents, whatever noise and level."""
    network = TinyNetwork(zero=True)
    task = make_task(tmp_path, network=network, parameterization="x0", residual=False)
    expected = []
    roles = prediction_roles(CONTEXT)
    for batch, _ in evaluation_batches(Squares(5), range(5), 1, roles):
        expected.append(task._predictor.encode(batch.frames)[:, CONTEXT:].square().mean().item())
    assert task.validate(network)["loss"] == pytest.approx(np.mean(expected), rel=1e-6)


def test_validation_is_the_same_at_every_call_and_for_every_batch_size(tmp_path):
    task = make_task(tmp_path)
    first = task.validate(task.network)
    assert task.validate(task.network) == first
    roles = prediction_roles(CONTEXT)
    other = make_task(tmp_path, validation=ValidationSet(Squares(5), roles, 5, 2, 4))
    assert other.validate(task.network)["loss"] == pytest.approx(first["loss"], rel=1e-6)
    with torch.no_grad():
        task.network.mix.bias.add_(1.0)
    assert task.validate(task.network)["loss"] > first["loss"]


def test_pictures_numbers_and_range_lines(tmp_path, caplog):
    task = make_task(tmp_path, num_inference_steps_start=1)
    with caplog.at_level("INFO", "vidpred"):
        early = task.visualize(task.network, 7, progress=0.0)
        late = task.visualize(task.network, 8, progress=1.0)
    assert (
        early.values["sampling/num_inference_steps"] == 1 and late.values["sampling/num_inference_steps"] == 3
    )
    assert 0 <= late.values["sampling/clip_rate"] <= 1
    assert [path.relative_to(tmp_path).as_posix() for path in early.pictures if path.suffix == ".png"] == [
        "samples/step_00000007/00000_square 0.png",
        "samples/step_00000007/00002_square 2.png",
    ]
    assert all(path.stat().st_size > 0 for path in early.pictures) and len(early.pictures) == 6
    for line in (
        "clipped=",
        "Final latents range: [",
        "Predicted frames range: [",
        "Denormalized: [",
        "num_inference_steps=3",
    ):
        assert line in caplog.text


def test_an_empty_or_unreadable_validation_split_is_one_line(tmp_path):
    roles = prediction_roles(CONTEXT)
    with pytest.raises(UserError, match="validation split holds no clip"):
        make_task(tmp_path, validation=ValidationSet(Squares(0), roles, 5, 2, 2))
    broken = ValidationSet(Squares(5, broken=(0, 2, 4)), roles, 5, 5, 2, num_workers=0)
    task = make_task(tmp_path, validation=broken)
    for work in (lambda: task.validate(task.network), lambda: task.visualize(task.network, 1, 1.0)):
        with pytest.raises(UserError, match="3 of 5 fixed clips .*square 0.mp4: damaged"):
            work()


def test_a_clip_that_cannot_be_read_is_left_out_of_validation_and_pictures(tmp_path):
    roles = prediction_roles(CONTEXT)

    def task_with(batch_size, broken=(2,)):
        clips = ValidationSet(Squares(5, broken), roles, 5, 5, batch_size, num_workers=0)
        return make_task(tmp_path, validation=clips)

    losses = [task.validate(task.network)["loss"] for task in (task_with(2), task_with(4), task_with(4, ()))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] != pytest.approx(losses[2], rel=1e-5)
    task = task_with(2)
    pictures = task.visualize(task.network, 1, 1.0).pictures
    assert {path.name[:5] for path in pictures} == {"00000", "00001", "00003", "00004"}


def settings(**changes):
    values = dict(
        num_steps=8,
        batch_size=4,
        learning_rate=1e-2,
        warmup_steps=2,
        log_every_step=2,
        validate_every_step=4,
        visualize_every_step=4,
        evaluate_every_step=0,
        checkpoint_every_step=4,
        precision="fp32",
    )
    return TrainingConfig(**(values | changes))


def train(folder, config, **changes):
    folder.mkdir(exist_ok=True)
    task = make_task(folder, **changes)
    store = CheckpointStore(folder / "checkpoints")
    checkpoint = latest_checkpoint(store)
    loggers = build_loggers(
        LoggingConfig(), WandbConfig(), folder, "squares", {}, checkpoint.step if checkpoint else 0
    )
    trainer = Trainer(
        task,
        config,
        store,
        loggers,
        torch.device("cpu"),
        run_folder=folder,
        resolved={},
        seed=SEED,
        resume_from=checkpoint,
    )
    return task, trainer.run()


def test_a_run_writes_what_the_folder_promises(tmp_path, caplog):
    with caplog.at_level("INFO", "vidpred"):
        _, outcome = train(tmp_path / "run", settings())
    run = tmp_path / "run"
    assert outcome.status == "finished"
    keys = set().union(*metrics(run))
    for name in ("encoded latents", "calibrated latents", "x_t", "network output", "loss", "gradient norm"):
        assert {f"range/{name}/{part}" for part in ("min", "max", "mean", "std", "non_finite")} <= keys, name
    assert {
        "train/loss",
        "train/visualization",
        "eval/psnr",
        "sampling/clip_rate",
        "validation/loss_ema",
    } <= keys
    assert keys & set(LEVEL_BIN_NAMES)
    evaluation = json.loads((run / "evaluation" / "step_00000008.json").read_text())
    assert evaluation["run"]["step"] == 8 and evaluation["model"]["psnr"]["mean"] > 0
    assert (run / "samples" / "step_00000004").is_dir() and (run / "evaluation" / "step_00000008").is_dir()
    assert set(read_checkpoint(run).tensors["calibration"]) == {"shift", "scale", "low", "high"}
    assert "copy last" in caplog.text and "network output range: [" in caplog.text


def test_bad_clips_end_an_evaluation_but_not_the_training(tmp_path, caplog):
    """No figures are better than figures of other clips; a later evaluation of this step is possible."""
    task = make_task(tmp_path)

    def refuse(predictor, step):
        raise BadClipsError("evaluation: 1 of the first 4 clips are bad: 'square 3'")

    task._evaluate_predictor = refuse
    assert vars(task.evaluate(task.network, 8)) == {"values": {}, "pictures": []}
    assert "step 8  no figures: evaluation: 1 of the first 4 clips are bad: 'square 3'" in caplog.text
    assert not task.is_evaluated(8) and not (tmp_path / "evaluation").exists()


def test_resume_of_the_real_task_is_bit_exact(tmp_path):
    """Data order with a quarantined clip included."""
    broken = (3, 11)
    train(tmp_path / "whole", settings(), broken=broken)
    train(tmp_path / "parts", settings(num_steps=4), broken=broken)
    _, outcome = train(tmp_path / "parts", settings(), broken=broken)
    assert outcome.step == 8
    one, two = read_checkpoint(tmp_path / "whole"), read_checkpoint(tmp_path / "parts")
    assert_same(one.tensors, two.tensors)
    assert_same(one.state, two.state)
    assert set(one.state["task"]["quarantined"]) == {"folder/square 3.mp4", "folder/square 11.mp4"}


@pytest.mark.parametrize("before, now", [(None, "moving shapes"), ("moving shapes", None)])
def test_a_run_does_not_go_on_with_what_took_the_place_of_its_data(tmp_path, before, now):
    task = make_task(tmp_path)
    dataset = task._validation.dataset
    dataset.substitute = before
    state = task.state()
    task.load_state(state)
    dataset.substitute = now
    with pytest.raises(UserError, match="^data.root: the run was trained on .*, and there are .* now; give the old"):
        task.load_state(state)


def test_one_batch_can_be_overfitted_and_is_what_is_pictured(tmp_path):
    config = settings(num_steps=60, log_every_step=10, validate_every_step=0, visualize_every_step=60)
    task, _ = train(tmp_path / "run", config, overfit=True)
    losses = [row["train/loss"] for row in metrics(tmp_path / "run") if "train/loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    assert task._last_batch.draws.tolist() == [236, 237, 238, 239]  # noise goes on changing
    first = first_batch(make_task(tmp_path, overfit=True))
    assert torch.equal(task._last_batch.frames, first.frames)
    pictures = sorted((tmp_path / "run" / "samples" / "step_00000060").glob("*.png"))
    assert [path.stem.split("_")[1] + ".mp4" for path in pictures] == [
        n.split("/")[1] for n in first.names[:2]
    ]
