"""Figures of several trajectories and of collections of clips, through the whole evaluation."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_helper import (
    CONTEXT,
    LONG,
    CopyLast,
    NoiseDependent,
    Squares,
    first_frames,
    make_predictor,
    run,
    save_stand_in,
    with_video_distance,
)
from torch import nn

from vidpred.conditioning import evaluation_roles
from vidpred.configuration import load_config
from vidpred.errors import UserError
from vidpred.evaluation import EvaluationConfig, evaluate
from vidpred.evaluation.judge import Judge
from vidpred.evaluation.video_distance import ENOUGH_CLIPS, VideoDistances
from vidpred.metrics import FeatureStatistics, VideoFeatures, frechet_distance, video_features
from vidpred.prediction.predictor import NEXT_TRAJECTORY
from vidpred.tensor_ops import to_uint8


@pytest.fixture(scope="module")
def i3d(tmp_path_factory):
    return save_stand_in(tmp_path_factory.mktemp("i3d") / "i3d_torchscript.pt")


@pytest.fixture(autouse=True)
def the_known_checksum():
    """`with_video_distance` takes the stand-in for the known file."""
    known = video_features.TORCHSCRIPT_SHA256
    yield
    video_features.TORCHSCRIPT_SHA256 = known


def drawn(count: int) -> np.ndarray:
    """The trajectories of every clip by hand: (N, clips, H, 3, h, w) in [0, 1]."""
    predictor, rows = make_predictor(NoiseDependent()), []
    for index in range(len(Squares())):
        clip = Squares().clip(index)
        frames, times = clip.frames[None], clip.frame_times[None]
        given = torch.arange(frames.shape[1])[None] < CONTEXT
        latents = torch.where(given[..., None, None, None], predictor.encode(frames), 0)
        samples = [
            predictor.sample_latents(
                latents, given, times, torch.tensor([index + k * NEXT_TRAJECTORY]), 3, purpose="evaluation"
            )
            for k in range(count)
        ]
        rows.append([to_uint8(predictor.decode(sample[:, CONTEXT:]))[0] for sample in samples])
    return np.stack([[frames.numpy() / 255 for frames in row] for row in rows], axis=1)


def test_ensemble_figures_are_those_of_the_trajectories():
    count = 4
    result = run(NoiseDependent(), None, trajectories=count)
    members = drawn(count)
    truth = np.stack([Squares().clip(i).frames[CONTEXT:].numpy() / 255 for i in range(7)])
    pixels = (2, 3, 4)
    pairs = [np.abs(a - b) for k, a in enumerate(members) for b in members[:k]]
    pairs = np.mean(pairs, axis=0).mean(axis=pixels)
    crps = np.abs(members - truth).mean(axis=(0, 3, 4, 5)) - pairs / 2
    error = ((members.mean(axis=0) - truth) ** 2).mean(axis=pixels)
    variance = members.var(axis=0, ddof=1).mean(axis=pixels)

    def close(values):
        return pytest.approx(values, rel=1e-4)  # one clip alone in a batch may round a pixel differently

    def ratio(variance, error):
        return np.sqrt((count + 1) / count * variance / error)

    np.testing.assert_allclose(result.values("model", "crps"), crps, rtol=1e-4)
    assert result.summary("model", "crps").mean == close(crps.mean())
    assert result.diversity().per_horizon == close(pairs.mean(axis=0))
    found, clip = result.spread_over_skill(), result.to_json()["clips"][2]
    assert found["mean"] == close(ratio(variance.mean(), error.mean()))
    assert found["per_horizon"] == close(ratio(variance.mean(axis=0), error.mean(axis=0)))
    assert clip["diversity"] == close(pairs[2].mean())
    assert clip["spread_over_skill"] == close(ratio(variance[2].mean(), error[2].mean()))
    assert clip["model_per_horizon"]["crps"] == close(crps[2])
    assert clip["model_per_horizon"]["spread_over_skill"] == close(ratio(variance[2], error[2]))


def test_crps_of_floors_is_their_absolute_error_and_of_one_chosen_trajectory_no_figure():
    result = run(NoiseDependent(), None, trajectories=2)
    for i in range(7):
        frames = Squares().clip(i).frames.numpy() / 255
        error = np.abs(frames[CONTEXT - 1] - frames[CONTEXT:]).mean(axis=(1, 2, 3))
        assert result.values("floor", "crps")[i] == pytest.approx(error)
        mean = np.round(255 * frames[:CONTEXT].mean(axis=0)) / 255
        error = np.abs(mean - frames[CONTEXT:]).mean(axis=(1, 2, 3))
        assert result.values("context_mean", "crps")[i] == pytest.approx(error)
    saved = json.loads(json.dumps(result.to_json(), allow_nan=False))
    chosen = saved["best_of_n"]["crps"]
    assert chosen["mean"] is None and "all trajectories" in chosen["unavailable"]
    assert saved["ceiling"]["crps"]["mean"] < 0.003 and "Ferro" in saved["protocol"]["crps"]
    table = result.table()
    assert table.splitlines()[1].split()[-1] == "CRPS"
    assert f"2 trajectories: diversity {result.diversity().mean:.4f}" in table
    assert f"spread over skill {result.spread_over_skill()['mean']:.3f}" in table
    assert result.scalars()["eval/crps"] == result.summary("model", "crps").mean


def test_of_one_trajectory_there_is_no_ensemble():
    result = run(NoiseDependent(), None, num_clips=2)
    saved = result.to_json()
    assert result.diversity() is None is result.spread_over_skill() and saved["ensemble"] is None
    assert "crps" not in saved["model"] and "CRPS" not in result.table() and saved["fvd"] is None
    assert "diversity" not in saved["clips"][0] and "FVD" not in result.table()


def test_trajectories_that_never_differ():
    result = run(CopyLast(), None, trajectories=3, num_clips=2)
    assert result.diversity().mean == 0 == result.spread_over_skill()["mean"]
    assert np.array_equal(result.values("model", "crps"), result.values("floor", "crps"))
    assert [clip.best_trajectory for clip in result.clips] == [0, 0]


def test_no_error_is_no_ratio():
    class Exact:
        inner = make_predictor(CopyLast())

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def sample_latents(self, latents, given, frame_times, draws, seed, **options):
            return latents[:, CONTEXT - 1 : CONTEXT].expand_as(latents)

    config = EvaluationConfig(lpips_net="none", num_clips=2)
    result = evaluate(Exact(), Squares(still=True), config, first_frames, seed=0, trajectories=2)
    assert result.spread_over_skill() is None and "n/a (no error)" in result.table()
    clip = json.loads(json.dumps(result.to_json(), allow_nan=False))["clips"][0]
    assert clip["spread_over_skill"] is None is clip["model_per_horizon"]["spread_over_skill"]


def test_lpips_chooses_the_best_trajectory_where_there_is_one(monkeypatch):
    """Here "LPIPS" is the mean brightness of a prediction: the darkest one is chosen, by no other metric."""

    class Brightness:
        protocol = {"net": "brightness"}

        def __init__(self, *arguments):
            pass

        def __call__(self, prediction, truth):
            return prediction.double().mean(dim=(2, 3, 4))

    monkeypatch.setattr("vidpred.evaluation.judge.Lpips", Brightness)
    result = run(NoiseDependent(), None, trajectories=3, lpips_net="squeeze")
    darkest = drawn(3).mean(axis=(2, 3, 4, 5)).argmin(axis=0)
    assert [clip.best_trajectory for clip in result.clips] == darkest.tolist() and darkest.any()
    assert result.protocol["best_of_n"]["chosen_by"] == "lpips"
    assert "the best LPIPS, for all metrics" in result.table()


def test_one_rank_without_lpips_is_all_without(monkeypatch):
    monkeypatch.setattr("vidpred.evaluation.judge.Lpips", lambda *arguments: object())
    monkeypatch.setattr("vidpred.evaluation.judge.gather_objects", lambda value: [value, "no file on rank 1"])
    judge = Judge(EvaluationConfig(lpips_net="squeeze"), torch.device("cpu"))
    assert (judge.lpips, judge.lpips_reason, judge.choice) == (None, "no file on rank 1", "psnr")


def test_fvd_is_the_distance_of_the_features(i3d):
    result = with_video_distance(i3d, num_panels=7, num_clips=7)
    extract, dataset = VideoFeatures(str(i3d)), Squares(num_frames=LONG)
    truth = torch.stack([dataset.clip(i).frames for i in range(7)])
    model = truth.clone()
    model[:, CONTEXT:] = torch.stack([torch.from_numpy(sample.prediction) for sample in result.samples])
    copy = truth.clone()
    copy[:, CONTEXT:] = truth[:, CONTEXT - 1 : CONTEXT]

    def distance(left, right):
        sides = []
        for clips in (left, right):
            features = extract(clips)
            sides.append(FeatureStatistics(features.shape[1]))
            sides[-1].add(features)
        return frechet_distance(*sides)

    saved = json.loads(json.dumps(result.to_json()))["fvd"]
    for view, first in (("generated", CONTEXT), ("whole_clip", 0)):
        for row, clips in (("model", model), ("floor", copy)):
            assert saved[view][row] == pytest.approx(distance(clips[:, first:], truth[:, first:]), rel=1e-9)
        halves = distance(truth[::2, first:], truth[1::2, first:])
        assert saved[view]["truth_halves"] == pytest.approx(halves, rel=1e-9)
        assert saved[view]["ceiling"] < 1e-3 * saved[view]["floor"]
    assert saved["whole_clip"]["model"] < saved["generated"]["model"]
    assert saved["clips"] == 7 and "fewer than 2048" in saved["warning"]
    assert all(clip.features is None for clip in result.clips)
    fvd = result.protocol["fvd"]
    assert fvd["weights_sha256"] == hashlib.sha256(i3d.read_bytes()).hexdigest()
    assert result.scalars()["eval/fvd"] == result.fvd.figures["generated"]["model"]
    lines = result.table().splitlines()
    assert lines[1].endswith(f"{'FVD':>20}{'FVD (whole clips)':>20}")
    assert f"{saved['generated']['model']:.2f}" in lines[2].split()
    assert any(line.startswith("WARNING: FVD of 7 clips, fewer than 2048") for line in lines)
    halves = f"{saved['generated']['truth_halves']:.2f} (generated frames only)"
    assert any(f"own two halves: {halves}" in line for line in lines)


def test_padding_and_batches_do_not_change_fvd(i3d):
    one, other = (with_video_distance(i3d, batch_size=size, num_clips=3).fvd for size in (2, 3))
    for view, rows in one.figures.items():
        assert other.figures[view] == pytest.approx(rows, rel=1e-6)


def test_generation_has_a_distance_though_no_other_figure(i3d):
    result = with_video_distance(i3d, task="unconditional", num_clips=5)
    assert result.fvd.figures.keys() == {"generated"}
    figures = result.fvd.figures["generated"]
    assert figures.keys() == {"model", "ceiling"} and figures["model"] > 0
    assert result.table().splitlines()[2].split()[-2:] == ["n/a", f"{figures['model']:.2f}"]


def test_horizons_too_short_for_an_i3d_have_the_whole_clips_only(i3d):
    result = with_video_distance(i3d, task="infilling", num_clips=4)  # 6 of 12 frames are predicted
    assert result.fvd.figures.keys() == {"whole_clip"}
    assert "no FVD of generated frames only" in result.table()
    assert "eval/fvd" not in result.scalars() and result.scalars()["eval/fvd_whole_clip"] > 0


def test_clips_too_short_for_an_i3d_are_refused_before_the_work(i3d, monkeypatch):
    video_features.TORCHSCRIPT_SHA256 = hashlib.sha256(i3d.read_bytes()).hexdigest()
    predictor = make_predictor(nn.Identity())  # would fail if it was asked
    config = EvaluationConfig(lpips_net="none", fvd_weights=str(i3d))
    with pytest.raises(UserError, match="evaluation.fvd_weights: clips of 5 frames are shorter than the 9"):
        evaluate(predictor, Squares(), config, evaluation_roles("prediction", CONTEXT), seed=0)


def test_a_training_run_with_fvd_is_refused_at_its_start_where_it_would_fail_at_its_end(i3d):
    quickstart = Path(__file__).resolve().parent.parent / "configs" / "quickstart.yaml"
    with pytest.raises(UserError, match="evaluation.fvd_weights: /no/such.pt is not a file; give an I3D"):
        load_config(["--evaluation.fvd_weights=/no/such.pt"], quickstart)
    with pytest.raises(UserError, match="clips of 8 frames are shorter than the 9"):
        load_config([f"--evaluation.fvd_weights={i3d}"], quickstart)
    assert load_config(["--evaluation.fvd_weights=download", "--data.num_frames=9"], quickstart)


def test_one_clip_has_no_distance(i3d):
    result = with_video_distance(i3d, num_clips=1)
    assert result.fvd.figures["generated"]["model"] is None and result.fvd.truth_halves["generated"] is None
    assert json.dumps(result.to_json()["fvd"]) and "n/a" in result.table()


def test_enough_clips_bring_no_warning():
    assert VideoDistances(ENOUGH_CLIPS, {}).warning is None
    assert "2047" in VideoDistances(ENOUGH_CLIPS - 1, {}).warning
