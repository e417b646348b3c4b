"""The Fréchet distance and its statistics: closed forms, SciPy, singular covariances, merging, ranks."""

import numpy as np
import pytest
import torch

from vidpred.metrics import FeatureStatistics, frechet_distance


def features(count: int, size: int, seed: int, offset: float = 0.0, rank: int | None = None) -> torch.Tensor:
    """Correlated float64 (count, size), in a subspace of `rank` dimensions."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank or size, size, generator=generator, dtype=torch.float64)
    return torch.randn(count, rank or size, generator=generator, dtype=torch.float64) @ mixing + offset


def statistics(*batches: torch.Tensor) -> FeatureStatistics:
    result = FeatureStatistics(batches[0].shape[1])
    for batch in batches:
        result.add(batch)
    return result


def by_scipy(left: torch.Tensor, right: torch.Tensor) -> float:
    """The closed form as it is usually written."""
    from scipy.linalg import sqrtm

    (m1, s1), (m2, s2) = ((x.mean(axis=0), np.cov(x, rowvar=False)) for x in (left.numpy(), right.numpy()))
    return float(((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * np.real(sqrtm(s1 @ s2))))


def by_singular_values(left: torch.Tensor, right: torch.Tensor) -> float:
    """tr((S1 S2)^(1/2)) is the nuclear norm of X1 X2^T / sqrt((N1 - 1)(N2 - 1)) for centred features X: exact
    without any covariance, so also where covariances are singular."""
    x, y = left - left.mean(dim=0), right - right.mean(dim=0)
    scale = ((len(x) - 1) * (len(y) - 1)) ** 0.5
    common = torch.linalg.svdvals(x @ y.mT).sum() / scale
    traces = x.square().sum() / (len(x) - 1) + y.square().sum() / (len(y) - 1)
    return float((left.mean(dim=0) - right.mean(dim=0)).square().sum() + traces - 2 * common)


def test_closed_form_of_commuting_covariances():
    """Diagonal ones: the sum of (m1 - m2)^2 + (s1 - s2)^2 over the features."""
    corners = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64) * (3 / 4) ** 0.5
    left = corners * torch.tensor([1.0, 2.0])
    right = corners * torch.tensor([4.0, 1.0]) + torch.tensor([2.0, 0.0])
    distance = frechet_distance(statistics(left), statistics(right))
    assert distance == pytest.approx(4 + 9 + 1)


@pytest.mark.parametrize("size, offset", [(5, 0.0), (64, 1.0), (64, 100.0)])
def test_equals_scipy(size, offset):
    left, right = features(400, size, 0), 1.3 * features(300, size, 1, offset)
    distance = frechet_distance(statistics(left), statistics(right))
    assert distance == pytest.approx(by_scipy(left, right), rel=1e-8)


@pytest.mark.parametrize("left_count, right_count", [(2, 2), (20, 30), (20, 500), (63, 64)])
def test_singular_covariances_are_exact(left_count, right_count):
    """Fewer clips than features, as always with 400 of them."""
    left, right = features(left_count, 64, 0), features(right_count, 64, 1, 0.5)
    distance = frechet_distance(statistics(left), statistics(right))
    assert distance == pytest.approx(by_singular_values(left, right), rel=1e-9)


def test_a_constant_feature_and_a_subspace_are_exact():
    left, right = features(200, 32, 0, rank=5), features(200, 32, 1, rank=7)
    left[:, 3] = right[:, 3] = 1.0
    distance = frechet_distance(statistics(left), statistics(right))
    assert distance == pytest.approx(by_singular_values(left, right), rel=1e-9)
    frozen = torch.ones(10, 4, dtype=torch.float64)
    assert frechet_distance(statistics(frozen), statistics(frozen + 2)) == pytest.approx(16)


@pytest.mark.parametrize("count", [20, 500])
def test_equal_collections_have_distance_zero(count):
    one = statistics(features(count, 64, 0, 3.0))
    assert frechet_distance(one, one) <= 1e-10 * float(one.covariance().trace())


def test_of_one_clip_there_is_no_distance():
    one, many = statistics(features(1, 4, 0)), statistics(features(9, 4, 0))
    assert frechet_distance(one, many) is None and frechet_distance(many, one) is None


def test_streaming_equals_all_at_once_even_far_from_zero():
    """Raw sums of squares of features around 1e6 would have lost everything: their variance is about 8."""
    whole = features(100, 8, 0, offset=1e6)
    streamed = statistics(*whole.split([1, 2, 40, 57]), whole[:0])
    assert streamed.count == 100
    np.testing.assert_allclose(streamed.mean, whole.mean(dim=0), rtol=1e-14)
    expected = np.cov(whole.numpy(), rowvar=False)
    np.testing.assert_allclose(streamed.covariance(), expected, rtol=1e-8, atol=1e-8)


def test_merging_is_adding_and_empty_ones_change_nothing():
    left, right = features(10, 8, 0), features(7, 8, 1, 3.0)
    merged, whole = statistics(left).merged(statistics(right)), statistics(torch.cat([left, right]))
    empty = FeatureStatistics(8)
    for other in (merged, empty.merged(whole), whole.merged(empty), whole.reduced()):
        assert other.count == 17
        torch.testing.assert_close(other.mean, whole.mean, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(other.scatter, whole.scatter, rtol=1e-12, atol=1e-12)
    assert empty.merged(empty).count == 0 == empty.reduced().count


def test_float32_features_are_summed_in_float64():
    values = features(50, 8, 0, offset=100.0).float()
    own = statistics(values)
    assert own.scatter.dtype == torch.float64
    np.testing.assert_allclose(own.covariance(), np.cov(values.double().numpy(), rowvar=False), rtol=1e-9)
