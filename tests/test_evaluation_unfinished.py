"""An evaluation that stops and goes on: exactly the same result, nothing scored twice."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from evaluation_helper import (
    NoiseDependent,
    Squares,
    Watched,
    begin,
    plain,
    run,
    save_stand_in,
    with_video_distance,
)

from vidpred.data import ClipError
from vidpred.errors import UserError
from vidpred.evaluation import BadClipsError, ClipSample, ClipScores, EvaluationStopped, forget_unfinished
from vidpred.evaluation import records as known_records
from vidpred.evaluation.unfinished import UnfinishedEvaluation, plain_of, record_of, unfinished_folder


@pytest.fixture(scope="module")
def whole():
    return plain(run(NoiseDependent(), None))


def through_json(value):
    return record_of(json.loads(json.dumps(plain_of(value))))


# Records ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [None, True, 3, -1e-308, 0.1 + 0.2, "ü\n", [1, [None]], (1, (2.5,)), {3: {"a": ()}}, {}]
)
def test_plain_values_come_back(value):
    back = through_json(value)
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8, np.bool_, np.int64])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_arrays_come_back_bit_for_bit(dtype, shape):
    value = (np.random.default_rng(0).normal(size=shape) * 9).astype(dtype)
    value = np.asarray(value)
    back = through_json(value)
    assert back.dtype == value.dtype and back.shape == value.shape and back.tobytes() == value.tobytes()
    if back.size:
        back[...] = 1  # it can be written to


def test_what_json_has_not_comes_back_too():
    values = np.array([np.nan, np.inf, -0.0, 5e-324])
    assert through_json(values).tobytes() == values.tobytes()
    assert through_json(values[::2].T).tolist()[1] == 0
    scalar = through_json(np.float32(0.1))
    assert type(scalar) is np.float32 and scalar == np.float32(0.1)


def test_records_travel_with_fields_that_nobody_knew(monkeypatch):
    @dataclasses.dataclass
    class Ensemble:
        values: np.ndarray

    @dataclasses.dataclass
    class Richer(ClipScores):
        further: object = None

    monkeypatch.setattr(known_records, "Ensemble", Ensemble, raising=False)
    monkeypatch.setattr(known_records, "Richer", Richer, raising=False)
    sample = ClipSample(1, "a", *(np.full((1, 3, 2, 2), k, np.uint8) for k in range(3)), given=None)
    scores, further = {"model": {"psnr": np.array([1 / 3, 2.0])}}, {"v": Ensemble(np.ones(3))}
    record = Richer(1, "a", 2, 3, (4, 5), scores, {"model": 0.1}, sample=sample, further=further)
    back = through_json(record)
    assert type(back) is Richer and back.frame_size == (4, 5)
    assert type(back.further["v"]) is Ensemble and back.further["v"].values.tolist() == [1, 1, 1]
    assert back.scores["model"]["psnr"].tolist() == [1 / 3, 2.0] and back.sample.truth.max() == 1


@pytest.mark.parametrize("value", [torch.zeros(2), np.array([None]), object(), {1, 2}])
def test_what_is_not_plain_is_refused(value):
    with pytest.raises(TypeError, match="a record of a clip cannot hold"):
        plain_of({"a": [value]})


# Going on --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [1, 3])
def test_going_on_gives_the_same_result_and_scores_only_what_is_left(whole, tmp_path, batches, caplog):
    result = tmp_path / "evaluation.json"
    begin(result, batches)
    network = Watched()
    with caplog.at_level("INFO", "vidpred"):
        finished = run(network, None, result=result)
    assert plain(finished) == whole and finished.to_json() == whole["json"]
    assert network.seen == set(range(2 * batches, 7))
    assert f"going on, {2 * batches} of 7 clips are scored" in caplog.text
    forget_unfinished(result)
    assert list(tmp_path.iterdir()) == []


def test_it_may_stop_again_and_again_and_at_the_very_end(whole, tmp_path):
    result = tmp_path / "evaluation.json"
    for _ in range(3):
        begin(result)
    assert plain(run(NoiseDependent(), None, result=result, stop_after=1)) == whole, "nothing is left to stop"
    network = Watched()
    assert plain(run(network, None, result=result)) == whole and network.seen == set()


def test_the_progress_bar_begins_where_it_goes_on(tmp_path, monkeypatch):
    import vidpred.evaluation.evaluator as evaluator

    bars = []

    class Bar(evaluator.tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            bars.append((options["initial"], options["total"], self))

    monkeypatch.setattr(evaluator, "tqdm", Bar)
    begin(tmp_path / "evaluation.json", 2)
    run(NoiseDependent(), None, result=tmp_path / "evaluation.json")
    assert [(initial, total, bar.n) for initial, total, bar in bars] == [(0, 7, 4), (4, 7, 7)]


def test_best_of_n_and_lpips_reasons_survive(tmp_path):
    class Small(Squares):
        def clip(self, index, generator=None):
            clip = super().clip(index)
            clip.frames = clip.frames[..., :16, :16]
            return clip

    from torchvision.models import squeezenet1_1

    backbone, result = tmp_path / "backbone.pth", tmp_path / "evaluation.json"
    torch.save(squeezenet1_1(weights=None).state_dict(), backbone)
    options = {"dataset": Small(), "trajectories": 2, "task": "infilling"}
    expected = run(NoiseDependent(), str(backbone), **options)
    assert "smaller than the 32 pixels" in expected.lpips_unavailable
    assert expected.protocol["lpips"] == {"net": None}
    with pytest.raises(EvaluationStopped):
        run(NoiseDependent(), str(backbone), result=result, stop_after=2, **options)
    for _ in range(2):  # the second time nothing is left to score
        finished = run(NoiseDependent(), str(backbone), result=result, **options)
        assert plain(finished) == plain(expected)


def test_ensemble_and_fvd_survive(tmp_path):
    result, weights = tmp_path / "evaluation.json", save_stand_in(tmp_path / "i3d_torchscript.pt")
    expected = with_video_distance(weights, trajectories=3)
    with pytest.raises(EvaluationStopped):
        with_video_distance(weights, trajectories=3, result=result, stop_after=2)
    for _ in range(2):  # the second time nothing is left to score
        finished = with_video_distance(weights, trajectories=3, result=result)
        assert plain(finished)["rows"] == plain(expected)["rows"]
        assert finished.to_json()["ensemble"] == expected.to_json()["ensemble"]
        assert finished.to_json()["clips"] == expected.to_json()["clips"]
        assert all(clip.features is None for clip in finished.clips)
        assert finished.fvd.clips == 5 and finished.fvd.figures.keys() == expected.fvd.figures.keys()
        for view, figures in expected.fvd.figures.items():
            assert finished.fvd.figures[view] == pytest.approx(figures, rel=1e-6, abs=1e-9)
        assert finished.fvd.truth_halves == pytest.approx(expected.fvd.truth_halves, rel=1e-6)


def test_a_torn_last_line_is_scored_again(whole, tmp_path):
    result = tmp_path / "evaluation.json"
    begin(result, 2)
    (path,) = unfinished_folder(result).iterdir()
    path.write_bytes(path.read_bytes()[:-40])
    network = Watched()
    assert plain(run(network, None, result=result)) == whole and network.seen == {3, 4, 5, 6}


@pytest.mark.parametrize(
    "change, named",
    [({"seed": 4}, "protocol.seed"), ({"steps": 2}, "protocol.sampling.num_inference_steps"),
     ({"batch_size": 3}, "evaluation.batch_size"), ({"num_clips": 3}, "evaluation.num_clips, clips")],
)  # fmt: skip
def test_other_settings_start_anew_and_say_so(tmp_path, caplog, change, named):
    result = tmp_path / "evaluation.json"
    begin(result, 2)
    expected, network = plain(run(NoiseDependent(), None, **change)), Watched()
    assert plain(run(network, None, result=result, **change)) == expected
    assert len(network.seen) == len(expected["json"]["clips"])
    told = [record.getMessage() for record in caplog.records if "starting anew" in record.getMessage()]
    assert len(told) == 1 and f"({named})" in told[0]
    network = Watched()  # and those of the new settings are kept
    run(network, None, result=result, **change)
    assert network.seen == set()


def test_other_weights_start_anew_and_say_so(tmp_path, caplog):
    class Other(Watched):
        def __init__(self):
            super().__init__()
            torch.nn.init.zeros_(self.weight)

    result = tmp_path / "evaluation.json"
    begin(result)
    network = Other()
    assert plain(run(network, None, result=result)) == plain(run(Other(), None))
    assert network.seen == set(range(7)) and "(run.weights_sha256); starting anew" in caplog.text


def test_without_a_result_file_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(NoiseDependent(), None, num_clips=2)
    assert list(tmp_path.iterdir()) == []


def test_what_is_scored_before_a_bad_clip_is_kept(whole, tmp_path):
    class Damaged(Squares):
        def clip(self, index, generator=None):
            if index == 4:
                raise ClipError("damaged")
            return super().clip(index)

    result = tmp_path / "evaluation.json"
    with pytest.raises(BadClipsError):
        run(NoiseDependent(), None, result=result, dataset=Damaged())
    network = Watched()
    finished = run(network, None, result=result, dataset=Damaged(), skip_bad=True)
    assert [clip.index for clip in finished.clips] == [0, 1, 2, 3, 5, 6]
    assert network.seen == {6}, "clip 5, beside the damaged one, was scored too"
    assert plain(run(NoiseDependent(), None, result=tmp_path / "evaluation.json")) == whole, "repaired"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    unfinished = UnfinishedEvaluation(tmp_path / "file" / "evaluation.json", {})
    record = ClipScores(0, "a", 1, 1, (1, 1), {}, {})
    with pytest.raises(UserError, match="cannot be written"):
        unfinished.append([record])
