"""Every task by one mechanism: which frames are given, rows, motion, what is no figure, best of N."""

import contextlib
import json

import numpy as np
import pytest
import torch
from evaluation_helper import CONTEXT, FRAMES, CopyLast, NoiseDependent, Squares, make_predictor, run

from vidpred.autoencoders import MockConfig, build_autoencoder
from vidpred.conditioning import TASKS, evaluation_roles
from vidpred.errors import UserError
from vidpred.evaluation import EvaluationConfig, evaluate
from vidpred.evaluation.scoring import best_trajectories, require_task
from vidpred.frame_roles import GIVEN
from vidpred.metrics import motion_energy, psnr
from vidpred.prediction import LatentCalibration
from vidpred.prediction.predictor import NEXT_TRAJECTORY
from vidpred.random_streams import host_generator
from vidpred.tensor_ops import to_uint8


def settings(task: str, **options) -> EvaluationConfig:
    defaults = {"lpips_net": "none", "batch_size": 3, "num_panels": 7}
    return EvaluationConfig(task=task, **(defaults | options))


def evaluated(predictor, task: str, dataset=None, **options):
    dataset = dataset or Squares()
    return evaluate(predictor, dataset, settings(task), evaluation_roles(task, CONTEXT), seed=3, **options)


def lossy(denoiser):
    """A predictor whose autoencoder blurs."""
    predictor = make_predictor(denoiser)
    predictor.autoencoder, predictor.calibration = build_autoencoder(MockConfig()), LatentCalibration(3)
    return predictor


class Brighter:
    """A predictor whose answer is the first given frame `levels` brighter, or a grey where there is none."""

    def __init__(self, levels: float, inner=None):
        self.inner, self.levels = inner or make_predictor(CopyLast()), levels

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def sample_latents(self, latents, given, frame_times, draws, seed, **options):
        assert not latents[~given].any(), "the truth must not reach the model"
        first = torch.stack([row[mask][0] if mask.any() else row[0] for row, mask in zip(latents, given)])
        return first[:, None].expand_as(latents) + self.levels / 127.5


def test_a_prediction_beyond_one_window_is_a_rollout():
    """Nine frames in windows of three: what the predictor's rollout gives for the same noise."""
    predictor, clips = make_predictor(NoiseDependent()), Squares(num_frames=CONTEXT + 9)
    result = evaluated(predictor, "prediction", clips)
    assert (result.protocol["context_frames"], result.protocol["predicted_frames"]) == (CONTEXT, 9)
    assert result.run["window_frames"] == FRAMES
    for sample in result.samples:
        draws = torch.tensor([sample.index])
        context = torch.from_numpy(sample.context)[None]
        expected = predictor.predict(context, 9, seed=3, draws=draws, purpose="evaluation")[0].numpy()
        difference = np.abs(sample.prediction.astype(int) - expected)
        assert difference.max() <= 1 and difference.mean() < 0.01, "the batch changes the last bits alone"


def test_only_predictions_go_beyond_a_window():
    with pytest.raises(UserError, match="evaluation.num_frames: 9 is of prediction alone, infilling fills one"):
        settings("infilling", num_frames=9)


@pytest.mark.parametrize("task", TASKS)
def test_each_task_end_to_end(task):
    result = evaluated(make_predictor(NoiseDependent()), task)
    given = 0 if task == "unconditional" else 2  # the first two, both ends, or half of five
    assert [clip.index for clip in result.clips] == list(range(7))
    protocol = result.protocol
    assert protocol["task"] == task
    assert (protocol["context_frames"], protocol["predicted_frames"]) == (given, FRAMES - given)
    for clip, sample in zip(result.clips, result.samples):
        roles = evaluation_roles(task, CONTEXT)(host_generator(3, "evaluation given", clip.index), FRAMES)
        assert sample.given.tolist() == (roles == GIVEN).tolist()  # of (seed, clip), whatever the batch
        frames = Squares().clip(clip.index).frames.numpy()
        assert np.array_equal(frames[sample.given], sample.context)
        assert np.array_equal(frames[~sample.given], sample.truth)
        assert all(len(values) == FRAMES - given for row in clip.scores.values() for values in row.values())
    assert json.loads(json.dumps(result.to_json()))["protocol"]["task"] == task
    assert f"{given} given and {FRAMES - given} predicted frames ({task})" in result.table()


def test_rows_of_interpolation_by_hand():
    result, dataset = evaluated(make_predictor(NoiseDependent()), "interpolation"), Squares()
    for i, sample in enumerate(result.samples):
        frames = dataset.clip(i).frames[None]
        truth, prediction = frames[:, 1:4], torch.from_numpy(sample.prediction)[None]
        nearest = frames[:, [0, 0, 4]]  # of two equally near frames the earlier
        weights = torch.tensor([0.25, 0.5, 0.75])[None, :, None, None, None]
        blend = (frames[:, :1] + weights * (frames[:, 4:].float() - frames[:, :1])).round().to(torch.uint8)
        for row, expected in (("floor", nearest), ("linear", blend), ("model", prediction)):
            assert result.values(row, "psnr")[i].tolist() == psnr(expected, truth)[0].tolist(), row
        assert (result.values("ceiling", "psnr")[i] == 100).all()  # of an autoencoder without loss
    assert result.values("floor", "psnr").tolist() == result.values("decoded_floor", "psnr").tolist()


def test_titles_say_what_is_copied():
    prediction, infilling = (evaluated(Brighter(0), task) for task in ("prediction", "infilling"))
    assert "copy last, decoded" in prediction.table()
    assert "eval/psnr_over_copy_last_decoded" in prediction.scalars()
    table, scalars = infilling.table(), infilling.scalars()
    assert "copy nearest, decoded" in table and "over copy nearest " in table and "copy last" not in table
    assert {"eval/psnr", "eval/psnr_over_copy_nearest", "eval/psnr_over_linear"} <= scalars.keys()
    assert len({len(line) for line in table.splitlines()[1:8]}) == 1


@pytest.mark.parametrize("task", ["infilling", "interpolation", "prediction"])
def test_the_decoded_floor_is_the_floor_through_the_autoencoder(task):
    result, predictor = evaluated(lossy(CopyLast()), task), lossy(CopyLast())
    for i, sample in enumerate(result.samples):
        frames, given = Squares().clip(i).frames[None], torch.from_numpy(sample.given)
        known, times = given.nonzero().flatten().tolist(), range(FRAMES)
        nearest = [min(known, key=lambda g: (abs(g - t), g)) for t in times if t not in known]
        shown = to_uint8(predictor.decode(predictor.encode(frames)))
        for row, expected in (("decoded_floor", shown[:, nearest]), ("ceiling", shown[:, ~given])):
            values = psnr(expected, frames[:, ~given])[0].numpy()
            assert result.values(row, "psnr")[i] == pytest.approx(values), row


def test_motion_of_prediction_begins_at_the_last_given_frame():
    """The figure as it has always been, by its own formula."""
    predictor = lossy(CopyLast())
    result = evaluated(Brighter(25, predictor), "prediction")
    for i, (clip, sample) in enumerate(zip(result.clips, result.samples)):
        frames = Squares().clip(i).frames[None]
        shown = to_uint8(predictor.decode(predictor.encode(frames)))
        begun = torch.cat([shown[:, CONTEXT - 1 : CONTEXT], torch.from_numpy(sample.prediction)[None]], dim=1)
        assert clip.motion["model"] == motion_energy(begun).item() > 0
        assert clip.motion["ceiling"] == motion_energy(shown[:, CONTEXT - 1 :]).item()
        assert clip.motion["truth"] == motion_energy(frames[:, CONTEXT - 1 :]).item()


@pytest.mark.parametrize("task", TASKS)
def test_motion_in_closed_form(task):
    """A still clip, predicted 10 levels too bright: a step of 10 wherever given and predicted frames meet."""
    result = evaluated(Brighter(10.2), task, Squares(still=True))
    for clip, sample in zip(result.clips, result.samples):
        unknown = ~sample.given
        counted = unknown[1:] | unknown[:-1]
        meetings = (unknown[1:] != unknown[:-1]).sum()
        assert clip.motion["model"] == pytest.approx(10 / 255 * meetings / counted.sum())
        assert clip.motion["truth"] == 0 == clip.motion["ceiling"]


@pytest.mark.parametrize("task", ["interpolation", "infilling"])
def test_the_autoencoders_error_is_no_motion(task):
    """A copy of what is given, beside given frames that the autoencoder blurs alike."""
    result = evaluated(Brighter(0, lossy(CopyLast())), task, Squares(still=True))
    assert all(clip.motion["model"] == 0 for clip in result.clips)
    assert result.summary("ceiling", "psnr").mean < 60


def test_of_generation_only_the_motion_is_a_figure(tmp_path):
    result = evaluated(make_predictor(NoiseDependent()), "unconditional", trajectories=4)
    for row in ("model", "floor", "decoded_floor", "context_mean", "linear"):
        assert result.summary(row, "psnr") is None and result.unavailable(row, "psnr")
    assert result.summary("ceiling", "psnr").mean == 100
    assert result.scalars() == {"eval/motion_energy_ratio": result.motion_energy_ratio}
    truth = sum(motion_energy(Squares().clip(i).frames[None]).item() for i in range(7))
    assert sum(clip.motion["truth"] for clip in result.clips) == pytest.approx(truth)
    saved = json.loads(result.save(tmp_path / "evaluation.json").read_text())
    for row, reason in (("model", "no clip is the truth"), ("floor", "could be copied")):
        assert saved[row]["ssim"]["mean"] is None and reason in saved[row]["ssim"]["unavailable"]
    assert saved["clips"][0]["model"] is None and saved["clips"][0]["ceiling"]["psnr"] == 100
    assert "best_of_n" not in saved and saved["protocol"]["trajectories_per_clip"] == 1
    lines = result.table().splitlines()
    assert [line.split()[-2:] for line in lines[2:7]] == [["n/a", "n/a"]] * 5
    assert any(line.startswith("model n/a: no frame is given, so no clip is the truth") for line in lines)
    assert not any("paired by clip" in line for line in lines)


def test_the_best_trajectory_by_hand():
    values = torch.tensor([[[1.0, 2.0], [5.0, 5.0]], [[0.0, 4.0], [6.0, 3.0]], [[4.0, 0.0], [1.0, 1.0]]])
    assert best_trajectories(values, "psnr").tolist() == [1, 0]  # means 1.5, 2, 2: the first of equal ones
    assert best_trajectories(values, "lpips").tolist() == [0, 2]


class Shifted(Brighter):
    """Its first trajectory is number `levels` of the predictor inside."""

    def sample_latents(self, latents, given, frame_times, draws, seed, **options):
        shifted = draws + self.levels * NEXT_TRAJECTORY
        return self.inner.sample_latents(latents, given, frame_times, shifted, seed, **options)


def test_best_of_n_is_one_trajectory_for_all_metrics_and_the_model_is_the_first():
    result = evaluated(make_predictor(NoiseDependent()), "infilling", trajectories=3)
    singles = [evaluated(Shifted(k, make_predictor(NoiseDependent())), "infilling") for k in range(3)]
    means = np.stack([single.values("model", "psnr").mean(axis=1) for single in singles])
    best = means.argmax(axis=0)
    assert [clip.best_trajectory for clip in result.clips] == best.tolist() and len(set(best)) > 1
    for metric in ("psnr", "ssim"):
        values = np.stack([single.values("model", metric) for single in singles])
        assert np.array_equal(result.values("model", metric), values[0])
        assert np.array_equal(result.values("best_of_n", metric), values[best, np.arange(7)])
    assert result.protocol["trajectories_per_clip"] == 3
    chosen = result.protocol["best_of_n"]
    assert chosen["chosen_by"] == "psnr" and "PSNR" in chosen["definition"]
    table, saved = result.table(), result.to_json()
    assert "model, best of 3: of each clip the one with the best PSNR, for all metrics; model is" in table
    assert saved["best_of_n"]["psnr"]["mean"] > saved["model"]["psnr"]["mean"]
    assert saved["clips"][1]["best_trajectory"] == best[1]
    with pytest.raises(UserError, match="trajectories: 0 must be 1 or more"):
        run(CopyLast(), None, trajectories=0)


@pytest.mark.parametrize(
    "task, given",
    [("prediction", [[0, 1, 0]]), ("prediction", [[0, 0, 0]]), ("prediction", [[1, 0, 0], [1, 1, 0]]),
     ("interpolation", [[1, 1, 0]]), ("interpolation", [[1, 1]]), ("interpolation", [[1, 0, 0]]),
     ("infilling", [[0, 0, 0]]), ("infilling", [[1, 1, 1]]), ("infilling", [[1, 0, 0], [1, 1, 0]]),
     ("unconditional", [[1, 0, 0]])],
)  # fmt: skip
def test_masks_of_another_task_are_refused(task, given):
    with pytest.raises(UserError, match=f"evaluation: {task} needs clips"):
        require_task(task, torch.tensor(given, dtype=torch.bool))


@pytest.mark.parametrize(
    "given, expected",
    [([[1, 1, 0], [1, 1, 0]], ["prediction", "infilling"]), ([[1, 0, 1]], ["interpolation", "infilling"]),
     ([[0, 1, 0], [1, 0, 0]], ["infilling"]), ([[0, 0, 0]], ["unconditional"])],
)  # fmt: skip
def test_masks_of_the_task_are_accepted(given, expected):
    accepted = []
    for task in TASKS:
        with contextlib.suppress(UserError):
            require_task(task, torch.tensor(given, dtype=torch.bool))
            accepted.append(task)
    assert accepted == expected


def test_clips_of_different_counts_are_refused_even_in_different_batches():
    def roles(generator, num_frames):
        return (np.arange(num_frames) < generator.integers(1, num_frames)).astype(np.uint8)

    with pytest.raises(UserError, match="as many given and unknown frames in every clip"):
        evaluate(make_predictor(CopyLast()), Squares(), settings("infilling", batch_size=1), roles, seed=0)


def test_an_unknown_task_names_the_key():
    with pytest.raises(UserError, match="evaluation.task: 'magic' is not known; choose prediction, inter"):
        EvaluationConfig(task="magic")
