"""Two results side by side: paired differences and intervals against scipy, pairing, and what is refused."""

import copy
import json

import numpy as np
import pytest
from evaluation_helper import CopyLast, NoiseDependent, Squares, run
from scipy import stats

from vidpred.errors import UserError
from vidpred.evaluation import compare
from vidpred.evaluation.comparison import ProtocolsDiffer


@pytest.fixture(scope="module")
def results():
    return [run(network, None).to_json() for network in (CopyLast(), NoiseDependent())]


@pytest.fixture
def saved(results, tmp_path):
    """(left, right) as they are changed -> their files."""

    def save(change_left=None, change_right=None):
        paths = []
        for name, result, change in zip("ab", copy.deepcopy(results), (change_left, change_right)):
            if change:
                change(result)
            paths.append(tmp_path / f"{name}.json")
            paths[-1].write_text(json.dumps(result))
        return paths

    return save


def test_paired_differences_and_intervals(results, saved):
    comparison = compare(*saved())
    found = {(row.row, row.metric): row for row in comparison.rows}
    rows = {row: ("psnr", "ssim") for row in ("model", "floor", "decoded_floor", "linear", "ceiling")}
    rows["motion"] = ("model", "ceiling", "truth")
    assert set(found) >= {(row, metric) for row, metrics in rows.items() for metric in metrics}
    for (row, metric), pair in found.items():
        left, right = (np.array([clip[row][metric] for clip in result["clips"]]) for result in results)
        assert (pair.left, pair.right) == pytest.approx((left.mean(), right.mean()))
        assert pair.difference.mean == pytest.approx((right - left).mean())
        if (right == left).all():
            assert pair.difference.ci95 == 0 and not pair.clear
            continue
        low, high = stats.ttest_rel(right, left).confidence_interval(0.95)
        half = pair.difference.ci95
        assert (pair.difference.mean - half, pair.difference.mean + half) == pytest.approx((low, high))
        assert pair.clear == (stats.ttest_rel(right, left).pvalue < 0.05)
    assert found["model", "psnr"].clear, "one of them is much better: the star must be able to appear"
    ratio = {name: (left, right) for name, left, right in comparison.figures}["motion_energy_ratio"]
    assert ratio == (results[0]["motion_energy_ratio"], results[1]["motion_energy_ratio"])


def test_the_table_is_aligned_and_says_who_is_who(saved):
    def describe(result):
        result["run"].update(step=100, chosen="given", device="cpu: x")

    lines = compare(*saved(describe)).table().splitlines()
    assert lines[0].startswith("a: ") and lines[0].endswith("a.json: chosen given, step 100, device cpu: x")
    assert lines[2] == "7 clips paired by content; 0 only in a, 0 only in b"
    assert lines[3].split() == ["a", "b", "b", "-", "a,", "paired"]
    body = lines[4 : lines.index(next(line for line in lines if line.startswith("+-: 95 %")))]
    assert len({len(line) for line in body}) == 1
    assert body[0].startswith("model psnr ") and body[0].endswith(" *")
    (ratio,) = (line for line in body if line.startswith("motion_energy_ratio"))
    (floor,) = (line for line in body if line.startswith("floor psnr"))
    assert "+-" not in ratio and floor.endswith("+0.0000 +- 0.0000  ")


def test_clips_are_paired_by_content_whatever_their_order_and_number(saved):
    def shuffle(result):
        clips = result["clips"]
        result["clips"] = [clips[i] for i in (6, 2, 0, 4, 5)]
        for number, clip in enumerate(result["clips"]):
            clip["index"] = 100 + number

    straight, shuffled = compare(*saved()), compare(*saved(None, shuffle))
    assert (shuffled.common, shuffled.only, shuffled.by_content) == (5, (2, 0), True)
    row = next(row for row in shuffled.rows if (row.row, row.metric) == ("model", "psnr"))
    left = straight.rows[0]
    assert (left.row, left.metric) == ("model", "psnr") and row.left != left.left, "of five of them"


def test_clips_of_equal_content_are_paired_one_by_one(tmp_path):
    class Copies(Squares):
        def clip(self, index, generator=None):
            clip = super().clip(index % 2)
            clip.name = self.item_name(index)
            return clip

    for name, network in (("a", CopyLast()), ("b", NoiseDependent())):
        run(network, None, dataset=Copies()).save(tmp_path / f"{name}.json")
    comparison = compare(tmp_path / "a.json", tmp_path / "b.json")
    assert (comparison.common, comparison.only) == (7, (0, 0))


def test_clips_of_other_sizes_are_paired_by_number_and_name(saved):
    def resize(result):
        for clip in result["clips"]:
            clip["sha256"] = clip["sha256"][::-1]

    comparison = compare(*saved(None, resize))
    assert comparison.common == 7 and not comparison.by_content
    assert "paired by number and name" in comparison.table()


def test_other_protocols_are_refused_with_both_values_in_a_line_each(saved):
    def change(result):
        result["protocol"]["seed"] = 4
        result["protocol"]["sampling"]["num_inference_steps"] = 50
        del result["protocol"]["rounding"]

    paths = saved(None, change)
    with pytest.raises(ProtocolsDiffer, match="the protocols differ in 3 keys.*--anyway") as error:
        compare(*paths)
    a, b = paths
    expected = [
        f"protocol differs: seed is 3 in {a}, 4 in {b}",
        f"protocol differs: sampling.num_inference_steps is 3 in {a}, 50 in {b}",
        "protocol differs: rounding is uint8 before every metric, predictions clamped to the range "
        f"in {a}, absent in {b}",
    ]
    assert list(error.value.comparison.difference_lines()) == expected
    comparison = compare(*paths, anyway=True)
    assert list(comparison.difference_lines()) == expected and comparison.common == 7


def test_what_describes_a_run_does_not_matter(saved):
    def change(result):
        result["run"] = {key: "another" for key in result["run"]}

    assert compare(*saved(None, change)).differences == []


def test_figures_of_one_side_are_named(saved):
    def change(result):
        for clip in result["clips"]:
            del clip["linear"]
            clip["extra"] = {"crps": 1.0}
        result["fvd"] = {"value": 3.0, "clips": 7}
        result["psnr_by_hand"] = None

    comparison = compare(*saved(None, change), anyway=True)
    assert comparison.missing == ["linear psnr", "linear ssim", "extra crps", "fvd.clips", "fvd.value"]
    assert comparison.table().splitlines()[-1].startswith("in one of them only: linear psnr,")


def test_a_single_clip_has_no_interval(saved):
    def first(result):
        del result["clips"][1:]

    comparison = compare(*saved(first, first))
    assert all(row.difference.ci95 is None and not row.clear for row in comparison.rows)
    assert "+-" not in comparison.table().splitlines()[4]


def test_what_is_no_result_is_one_line(saved, tmp_path):
    good, _ = saved()
    (tmp_path / "text.json").write_text("no")
    (tmp_path / "list.json").write_text("[1]")
    for name, reason in (("text", "not JSON"), ("list", "no result"), ("gone", "No such file")):
        with pytest.raises(UserError, match=f"--compare: .*{name}.json .*{reason}"):
            compare(good, tmp_path / f"{name}.json")

    def others(result):
        for clip in result["clips"]:
            clip["sha256"], clip["name"] = clip["sha256"][::-1], "x"

    with pytest.raises(UserError, match="no clip in common"):
        compare(*saved(None, others))
