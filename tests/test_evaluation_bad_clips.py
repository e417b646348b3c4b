"""Nothing is repaired silently: bad clips end the evaluation with their names, or are left out, counted."""

import json

import pytest
import torch
from evaluation_helper import CopyLast, NoiseDependent, Squares, run

from vidpred.data import ClipError
from vidpred.errors import UserError
from vidpred.evaluation import BadClipsError


class Damaged(Squares):
    def __init__(self, *broken: int):
        super().__init__()
        self.broken = broken

    def clip(self, index, generator=None):
        if index in self.broken:
            raise ClipError("damaged")
        return super().clip(index)


class Wrong(NoiseDependent):
    """Puts `value` into the second predicted frame of the clips `numbers`."""

    def __init__(self, value: float, *numbers: int):
        super().__init__()
        self.value, self.numbers = value, torch.tensor(numbers)

    def forward(self, x, level, given, frame_times):
        number = ((x[:, 0, 0, 0, 0] + 1) * 127.5 - 40).round().int()
        x0 = super().forward(x, level, given, frame_times)
        x0[torch.isin(number, self.numbers), 3, 0, 1, 1] = self.value
        return x0


@pytest.fixture(scope="module")
def whole():
    return run(NoiseDependent(), None)


def message(network, dataset=None, **options) -> str:
    options = {"steps": 1, **options}
    with pytest.raises(BadClipsError) as error:
        run(network, None, dataset=dataset, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unreadable_clips_are_all_named_in_one_line():
    line = message(CopyLast(), Damaged(2, 3, 5), batch_size=4)
    assert line.startswith("evaluation: 2 of the first 4 clips are bad: 'clip 2' (index 2): damaged; 'clip 3'")
    assert "clip 5" not in line and "--skip-bad" in line  # the second batch was not read


def test_not_finite_clips_are_all_named_in_one_line():
    line = message(Wrong(torch.nan, 1, 2, 6), batch_size=3)
    assert line.startswith("evaluation: 2 of the first 3 clips are bad: 'clip 1' (index 1): the prediction")
    assert "1 non-finite values, the first at horizon 2; 'clip 2' (index 2)" in line and "clip 6" not in line


def test_unreadable_and_not_finite_ones_stand_side_by_side():
    line = message(Wrong(torch.nan, 0), Damaged(1), batch_size=2)
    assert "2 of the first 2 clips" in line and "'clip 0'" in line and "'clip 1' (index 1): damaged" in line


@pytest.mark.parametrize("value, shown", [(400.0, "200.5]"), (-400.0, "[-199.5, ")])
def test_far_out_of_range_is_bad_too(value, shown):
    line = message(Wrong(value, 4), batch_size=7, clip="none")
    assert "1 of the first 7 clips are bad: 'clip 4' (index 4): the prediction spans [" in line
    assert shown in line and "beyond [0, 1] from horizon 2 on" in line


@pytest.mark.parametrize("value", [4.9, -4.9])
def test_a_little_out_of_range_is_rounding(value):
    """In [-1, 1] units: decoded 2.95 and -1.95, inside [-2, 3]."""
    assert len(run(Wrong(value, 4), None, steps=1, clip="none").clips) == 7


def test_skip_bad_leaves_them_out_counts_and_names_them(whole, tmp_path):
    result = run(Wrong(torch.nan, 1), None, dataset=Damaged(4), skip_bad=True, batch_size=3, steps=1)
    same = run(NoiseDependent(), None, batch_size=3, steps=1)
    assert [clip.index for clip in result.clips] == [0, 2, 3, 5, 6]
    for metric in ("psnr", "ssim"):
        rows = same.values("model", metric)[[0, 2, 3, 5, 6]]
        assert result.values("model", metric).tolist() == rows.tolist(), "as they are without"
    saved = json.loads(result.save(tmp_path / "evaluation.json").read_text())
    assert saved["protocol"]["clips"] == 5 and [clip["index"] for clip in saved["clips"]] == [0, 2, 3, 5, 6]
    assert [(bad["index"], bad["name"]) for bad in saved["left_out"]] == [(1, "clip 1"), (4, "clip 4")]
    assert "non-finite" in saved["left_out"][0]["reason"] and saved["left_out"][1]["reason"] == "damaged"
    assert "2 bad clips left out: clip 1, clip 4" in result.table()
    assert whole.left_out == [] and "left out" not in whole.table()


def test_a_whole_bad_batch_does_not_shift_the_others(whole):
    result = run(NoiseDependent(), None, dataset=Damaged(0, 1, 6), skip_bad=True)
    assert [clip.index for clip in result.clips] == [2, 3, 4, 5]
    assert result.values("model", "psnr").tolist() == whole.values("model", "psnr")[2:6].tolist()
    assert [bad["index"] for bad in result.left_out] == [0, 1, 6]


def test_with_nothing_bad_skip_bad_changes_nothing(whole):
    assert run(NoiseDependent(), None, skip_bad=True).to_json() == whole.to_json()


def test_where_all_are_bad_there_is_no_result():
    with pytest.raises(UserError, match="no clip is left to be scored: 'clip 0' .index 0.: damaged; "):
        run(CopyLast(), None, dataset=Damaged(*range(7)), skip_bad=True)
