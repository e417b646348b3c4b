"""The evaluation end to end on small clips: exact rows, honest failure, equal on 1 and 3 processes."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed_helper import run_torchrun
from evaluation_helper import (
    BROKEN,
    CONTEXT,
    FRAMES,
    SIZE,
    BreaksOn,
    CopyLast,
    NoiseDependent,
    Squares,
    Watched,
    begin,
    first_frames,
    make_predictor,
    plain,
    run,
    save_stand_in,
    with_video_distance,
)

from vidpred.autoencoders import MockConfig, build_autoencoder
from vidpred.errors import UserError
from vidpred.frame_roles import GIVEN, UNKNOWN
from vidpred.evaluation import EvaluationConfig, EvaluationStopped, evaluate
from vidpred.metrics import LpipsUnavailable, lpips, psnr, ssim
from vidpred.prediction import LatentCalibration


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    from torchvision.models import squeezenet1_1

    path = tmp_path_factory.mktemp("backbone") / "squeezenet1_1.pth"
    torch.manual_seed(5)
    torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def evaluation(backbone):
    return run(NoiseDependent(), backbone)


def test_a_model_that_copies_the_last_frame_is_the_floor():
    result = run(CopyLast(), None)
    for metric in ("psnr", "ssim"):
        assert np.array_equal(result.values("model", metric), result.values("floor", metric))
    assert result.psnr_gain("floor") == (0, 0) and result.motion_energy_ratio == 0
    assert result.summary("ceiling", "psnr").mean == 100
    assert result.summary("ceiling", "ssim").mean == pytest.approx(1, abs=1e-4)


def test_motion_is_not_counted_from_the_autoencoders_error():
    """Under a lossy autoencoder the step from a real to a decoded frame is no motion of the prediction."""
    predictor = make_predictor(CopyLast())
    predictor.autoencoder = build_autoencoder(MockConfig())
    predictor.calibration = LatentCalibration(3)
    result = evaluate(predictor, Squares(), EvaluationConfig(lpips_net="none"), first_frames, seed=0)
    assert result.motion_energy_ratio == 0
    assert 0.8 < sum(clip.motion["ceiling"] for clip in result.clips) / sum(
        clip.motion["truth"] for clip in result.clips
    ) < 1.2


def test_rows_are_those_of_the_metrics_computed_by_hand():
    result, dataset = run(CopyLast(), None), Squares()
    assert [clip.name for clip in result.clips] == [dataset.item_name(i) for i in range(7)]
    for i in range(7):
        frames = dataset.clip(i).frames[None]
        truth = frames[:, CONTEXT:]
        copy = frames[:, CONTEXT - 1 : CONTEXT].expand_as(truth)
        assert result.values("floor", "psnr")[i].tolist() == psnr(copy, truth)[0].tolist()
        assert result.values("floor", "ssim")[i] == pytest.approx(ssim(copy, truth)[0].numpy(), abs=1e-6)


class Fixed:
    """A predictor whose answer is the last frame `levels` brighter, whatever it is asked."""

    def __init__(self, levels: float):
        self.inner, self.levels = make_predictor(CopyLast()), levels
        self.seen: list = []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def sample_latents(self, latents, given, frame_times, draws, seed, **options):
        self.seen.append((latents, draws, options))
        return latents[:, CONTEXT - 1 : CONTEXT].expand_as(latents) + self.levels / 127.5


def test_figures_in_closed_form_where_nothing_moves():
    config = EvaluationConfig(batch_size=4, lpips_net="none")
    result = evaluate(Fixed(10.2), Squares(still=True), config, first_frames, seed=0)
    summary = result.summary("model", "psnr")  # 10.2 levels round to 10
    assert summary.mean == pytest.approx(20 * math.log10(25.5))
    assert summary.ci95 == pytest.approx(0, abs=1e-12)
    assert summary.per_horizon == pytest.approx([summary.mean] * (FRAMES - CONTEXT))
    assert result.summary("floor", "psnr").mean == result.summary("linear", "psnr").mean == 100
    assert result.motion_energy_ratio is None and "n/a (no truth moves)" in result.table()
    assert json.loads(json.dumps(result.to_json()))["motion_energy_ratio"] is None
    assert "eval/motion_energy_ratio" not in result.scalars()


def test_the_model_never_sees_the_truth_and_draws_are_clip_indices():
    predictor = Fixed(0)
    config = EvaluationConfig(batch_size=2, num_clips=3, lpips_net="none")
    evaluate(predictor, Squares(), config, first_frames, seed=0, num_inference_steps=7)
    assert [draws.tolist() for _, draws, _ in predictor.seen] == [[0, 2], [4, 4]], "the last is padding"
    for latents, _, options in predictor.seen:
        assert latents.shape[0] == 2 and not latents[:, CONTEXT:].any() and latents[:, :CONTEXT].any()
        assert options == {"num_inference_steps": 7, "purpose": "evaluation"}


def test_batch_size_changes_nothing(evaluation, backbone):
    other = run(NoiseDependent(), backbone, batch_size=5)
    for row in ("model", "floor", "linear", "ceiling"):
        for metric in ("psnr", "ssim", "lpips"):
            assert other.values(row, metric) == pytest.approx(evaluation.values(row, metric), abs=1e-5)


def test_another_seed_is_another_trajectory():
    config = EvaluationConfig(lpips_net="none", num_clips=2)
    first, same, other = (
        evaluate(make_predictor(NoiseDependent()), Squares(), config, first_frames, seed=s) for s in (3, 3, 4)
    )
    assert np.array_equal(first.values("model", "psnr"), same.values("model", "psnr"))
    assert not np.array_equal(first.values("model", "psnr"), other.values("model", "psnr"))
    assert np.array_equal(first.values("floor", "psnr"), other.values("floor", "psnr"))


@pytest.fixture(scope="module")
def i3d(tmp_path_factory):
    return save_stand_in(tmp_path_factory.mktemp("i3d") / "i3d_torchscript.pt")


@pytest.fixture(scope="module")
def three_processes(backbone, i3d, tmp_path_factory):
    """A folder with what each of three ranks got, see `evaluation_helper`; begun.json and begun_fvd.json are
    begun by one process."""
    folder = tmp_path_factory.mktemp("ranks")
    begin(folder / "begun.json")
    with pytest.raises(EvaluationStopped):
        with_video_distance(i3d, result=folder / "begun_fvd.json", stop_after=1)
    script = Path(__file__).parent / "evaluation_helper.py"
    run_torchrun(script, [folder, backbone, i3d], nproc=3, timeout=240)
    return folder


def test_rows_are_equal_on_one_and_three_processes(evaluation, i3d, three_processes):
    ranks = [json.loads((three_processes / f"rank_{r}.json").read_text()) for r in range(3)]
    expected = json.loads(json.dumps(plain(evaluation)))
    infilling = run(NoiseDependent(), None, task="infilling", trajectories=2)
    distances = with_video_distance(i3d).to_json()["fvd"]
    for result in ranks:
        for name, view in itertools.product(("fvd", "begun fvd"), ("generated", "whole_clip")):
            found, alone = result[name]["json"]["fvd"][view], distances[view]
            assert found["frames"] == alone["frames"] and found.keys() == alone.keys()
            assert min(found["model"], found["floor"], found["truth_halves"]) > 0
            for row in alone.keys() - {"frames"}:  # the ceiling's is 0 up to rounding
                assert found[row] == pytest.approx(alone[row], rel=1e-6, abs=1e-9)
        assert result["all"] == expected
        assert result["infilling"] == json.loads(json.dumps(plain(infilling)))
        assert result["fewer clips than ranks"]["json"]["protocol"]["clips"] == 2
        assert f"'{BROKEN}' (index 4)" in result["error"], "every rank raises what one of them met"


def test_an_interrupted_evaluation_goes_on_with_another_number_of_processes(three_processes):
    whole = json.loads(json.dumps(plain(run(NoiseDependent(), None))))
    for r in range(3):  # begun by one, finished by three
        assert json.loads((three_processes / f"rank_{r}.json").read_text())["begun"] == whole
    # begun by three, which stop together when one of them is asked to, finished by one
    assert len(list((three_processes / "stopped.unfinished").iterdir())) == 3
    network = Watched()
    finished = run(network, None, result=three_processes / "stopped.json")
    assert json.loads(json.dumps(plain(finished))) == whole
    assert network.seen == {6}, "of 7 clips three batches of two are scored"


def test_a_prediction_that_is_not_finite_names_the_clip_and_horizon():
    with pytest.raises(UserError, match=r"'clip 4' \(index 4\): the prediction has .* non-finite.*horizon 2"):
        run(BreaksOn(), None, steps=1)  # with more, it would spread to the other frames


def test_a_reconstruction_that_is_not_finite_is_not_blamed_on_the_model(monkeypatch):
    predictor = Fixed(0)
    decode = predictor.inner.decode
    calls = iter(range(100))
    # The prediction is decoded first, its reconstruction second.
    monkeypatch.setattr(predictor.inner, "decode", lambda x: decode(x) / (next(calls) % 2 == 0))
    with pytest.raises(UserError, match="'clip 0' .index 0.: the reconstruction by the autoencoder has"):
        evaluate(predictor, Squares(), EvaluationConfig(lpips_net="none"), first_frames, seed=0)


@pytest.mark.parametrize(
    "roles",
    [[UNKNOWN] * 5, [GIVEN] * 5, [GIVEN, UNKNOWN, GIVEN, UNKNOWN, UNKNOWN], [UNKNOWN, GIVEN] + [UNKNOWN] * 3],
)
def test_other_roles_are_refused(roles):
    config = EvaluationConfig(lpips_net="none")
    with pytest.raises(UserError, match="conditioning.scheme"):
        evaluate(make_predictor(CopyLast()), Squares(), config, lambda g, t: np.array(roles), seed=0)


def test_json_holds_every_figure_and_its_protocol(evaluation, tmp_path):
    path = evaluation.save(tmp_path / "evaluation" / "step_00000010.json")
    saved = json.loads(path.read_text())
    assert [file.name for file in path.parent.iterdir()] == ["step_00000010.json"]
    for row in ("model", "floor", "linear", "ceiling"):
        for metric in ("psnr", "ssim", "lpips"):
            figure, values = saved[row][metric], evaluation.values(row, metric)
            assert set(figure) == {"mean", "ci95", "per_horizon"} and len(figure["per_horizon"]) == 3
            assert figure["mean"] == pytest.approx(values.mean())
    assert saved["clips"][2]["model_per_horizon"]["ssim"] == evaluation.values("model", "ssim")[2].tolist()
    assert saved["motion_energy_ratio"] == pytest.approx(evaluation.motion_energy_ratio)
    assert len(saved["clips"]) == 7
    protocol = saved["protocol"]
    assert (protocol["clips"], protocol["context_frames"], protocol["predicted_frames"]) == (7, 2, 3)
    assert (protocol["height"], protocol["width"], protocol["seed"]) == (SIZE, SIZE, 3)
    assert protocol["lpips"]["net"] == "squeeze" and "torchmetrics" in protocol["ssim"]["implementation"]
    assert protocol["sampling"]["num_inference_steps"] == 3 and protocol["sampling"]["sampler"] == "ddim"
    assert "Student t" in protocol["interval"] and "uint8" in protocol["rounding"]


def test_protocol_says_whose_weights_and_how_many_steps():
    config = EvaluationConfig(lpips_net="none", num_clips=1, num_panels=0)
    predictor = make_predictor(CopyLast())
    result = evaluate(
        predictor, Squares(), config, first_frames, seed=9, step=1000, ema=True, num_inference_steps=2
    )
    protocol = result.protocol
    assert (result.run["step"], protocol["ema"], protocol["seed"]) == (1000, True, 9)
    assert protocol["sampling"]["num_inference_steps"] == 2 and protocol["height"] == SIZE


def test_an_empty_split_is_refused():
    config = EvaluationConfig(lpips_net="none")
    with pytest.raises(UserError, match="holds no clip"):
        evaluate(make_predictor(CopyLast()), Squares(0), config, first_frames, seed=0)


def test_table_is_aligned_and_complete(evaluation):
    lines = evaluation.table().splitlines()
    assert lines[0].startswith("7 clips of squares, 2 given and 3 predicted frames")
    assert lines[1].split() == ["PSNR", "(dB)", "SSIM", "LPIPS", "squeeze"]
    assert [line[:18].strip() for line in lines[2:8]] == [
        "model", "copy last", "copy last, decoded", "mean of context", "linear", "ceiling"
    ]  # fmt: skip
    assert len({len(line) for line in lines[1:8]}) == 1 and all(line.count("+-") == 3 for line in lines[2:8])
    summary = evaluation.summary("model", "psnr")
    assert f"{summary.mean:.2f} +- {summary.ci95:.2f}" in lines[2]
    assert "paired by clip" in lines[8] and f"{evaluation.motion_energy_ratio:.3f}" in lines[9]


def test_without_lpips_the_table_says_why(monkeypatch):
    def unavailable(*arguments):
        raise LpipsUnavailable("no backbone and no network")

    monkeypatch.setattr(lpips, "find_backbone", unavailable)
    result = run(CopyLast(), None, lpips_net="squeeze", num_clips=2)
    assert "LPIPS unavailable: no backbone and no network" in result.table() and "n/a" in result.table()
    figure = result.to_json()["model"]["lpips"]
    assert figure["mean"] is None and figure["unavailable"] == "no backbone and no network"
    assert result.protocol["lpips"] == {"net": None}
    assert "eval/lpips" not in result.scalars() and "eval/psnr" in result.scalars()
    assert "switched off" in run(CopyLast(), None, num_clips=1).table()


def test_lpips_is_left_out_where_frames_are_too_small_for_it(backbone):
    class Small(Squares):
        def clip(self, index, generator=None):
            clip = super().clip(index)
            clip.frames = clip.frames[..., :16, :16]
            return clip

    config = EvaluationConfig(lpips_weights=str(backbone), num_clips=3, batch_size=2)
    result = evaluate(make_predictor(CopyLast()), Small(), config, first_frames, seed=0)
    assert "smaller than the 32 pixels" in result.lpips_unavailable
    assert result.summary("model", "lpips") is None and result.summary("model", "psnr").mean > 0


def test_samples_are_the_frames_of_the_first_clips(evaluation):
    samples, dataset = evaluation.samples, Squares()
    assert [sample.index for sample in samples] == [0, 1, 2, 3]
    for sample in samples:
        frames = dataset.clip(sample.index).frames.numpy()
        assert np.array_equal(np.concatenate([sample.context, sample.truth]), frames)
        assert sample.prediction.shape == sample.truth.shape and sample.prediction.dtype == np.uint8
    prediction, truth = (torch.from_numpy(x)[None] for x in (samples[2].prediction, samples[2].truth))
    assert psnr(prediction, truth)[0].tolist() == evaluation.values("model", "psnr")[2].tolist()


def test_logged_scalars(evaluation):
    scalars = evaluation.scalars()
    assert scalars["eval/psnr"] == evaluation.summary("model", "psnr").mean
    assert scalars["eval/lpips"] == evaluation.summary("model", "lpips").mean
    assert scalars["eval/psnr_over_copy_last"] == pytest.approx(
        scalars["eval/psnr"] - evaluation.summary("floor", "psnr").mean
    )


@pytest.mark.parametrize("key", ["num_clips", "batch_size", "num_panels"])
def test_wrong_values_name_the_key(key):
    with pytest.raises(UserError, match=f"evaluation.{key}"):
        EvaluationConfig(**{key: -1})
