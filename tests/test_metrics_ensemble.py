"""CRPS, diversity and spread over skill: closed forms, definitions by brute force, what they reward."""

import itertools
import math

import numpy as np
import pytest
import torch

from vidpred.metrics import absolute_error, ensemble_figures, spread_over_skill


def clips(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def by_definition(members: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """In loops over trajectories and pairs of them, (N, B, T, ...) and (B, T, ...) in [0, 1]."""
    count, axes = len(members), tuple(range(2, truth.ndim))
    pairs = [np.abs(a - b) for a, b in itertools.permutations(members, 2)]
    error = np.mean([np.abs(x - truth) for x in members], axis=0)
    figures = {
        "crps": error - np.sum(pairs, axis=0) / (2 * count * (count - 1)),
        "diversity": np.mean(pairs, axis=0),
        "variance": members.var(axis=0, ddof=1),
        "squared_error": (members.mean(axis=0) - truth) ** 2,
    }
    return {name: values.mean(axis=axes) for name, values in figures.items()}


@pytest.mark.parametrize("count", [2, 3, 10])
def test_figures_equal_their_definition(count):
    members, truth = clips(count, 3, 5, 3, 6, 7), clips(3, 5, 3, 6, 7, seed=1)  # 15 frames: several pieces
    figures = ensemble_figures(members, truth)
    expected = by_definition(members.numpy() / 255, truth.numpy() / 255)
    assert figures.keys() == expected.keys()
    for name, values in expected.items():
        assert figures[name].dtype == torch.float64 and figures[name].shape == (3, 5)
        np.testing.assert_allclose(figures[name].numpy(), values, rtol=1e-12, err_msg=name)


def test_closed_form_of_two_trajectories():
    """51 and 153 around the truth of 102 (0.2, 0.6 and 0.4), then both below it (truth 204)."""
    members = torch.tensor([51, 153]).byte()[:, None, None, None, None, None].expand(2, 1, 2, 3, 4, 4)
    truth = torch.tensor([102, 204]).byte()[None, :, None, None, None].expand(1, 2, 3, 4, 4)
    figures = ensemble_figures(members, truth)
    assert figures["diversity"].tolist() == [pytest.approx([0.4, 0.4])]
    assert figures["crps"].tolist() == [pytest.approx([0.0, 0.2])]  # mean errors 0.2 and 0.4, less 0.4 / 2
    assert figures["variance"].tolist() == [pytest.approx([0.08, 0.08])]
    assert figures["squared_error"].tolist() == [pytest.approx([0.0, 0.16])]


def test_equal_trajectories_score_as_one_prediction():
    prediction, truth = clips(2, 3, 3, 5, 5), clips(2, 3, 3, 5, 5, seed=1)
    figures = ensemble_figures(prediction.expand(4, -1, -1, -1, -1, -1), truth)
    assert torch.equal(figures["crps"], absolute_error(prediction, truth))
    assert not figures["diversity"].any() and not figures["variance"].any()
    expected = (prediction.double() - truth.double()).abs().mean(dim=(2, 3, 4)) / 255
    torch.testing.assert_close(figures["crps"], expected)


def test_black_and_white_do_not_overflow():
    members = torch.zeros(200, 1, 1, 3, 64, 64, dtype=torch.uint8)
    members[:100] = 255
    figures = ensemble_figures(members, torch.full((1, 1, 3, 64, 64), 255, dtype=torch.uint8))
    assert figures["diversity"].item() == pytest.approx(2 * 100 * 100 / (200 * 199))
    assert figures["variance"].item() == pytest.approx(0.25 * 200 / 199)
    assert figures["squared_error"].item() == pytest.approx(0.25)
    assert figures["crps"].item() == pytest.approx(0.5 - 100 * 100 / (200 * 199))


def ensembles(spread: float, bias: float = 0.0, count: int = 8):
    """Truth and trajectories from normal distributions around one mean: 40 clips of one frame."""
    generator = torch.Generator().manual_seed(0)
    mean = 80 + 95 * torch.rand(40, 1, 3, 16, 16, generator=generator)

    def draw(deviation: float, *shape: int) -> torch.Tensor:
        noise = torch.randn(*shape, *mean.shape, generator=generator)
        return (mean + deviation * noise).round().clamp(0, 255).to(torch.uint8)

    truth = draw(12)
    members = (draw(spread, count).float() + bias).clamp(0, 255).to(torch.uint8)
    return ensemble_figures(members, truth)


def test_crps_is_proper_and_does_not_depend_on_the_number_of_trajectories():
    """Gneiting and Raftery: 2 * sigma / sqrt(pi) / 2 for a forecast of the truth's own distribution."""
    right, sure, unsure, biased = (ensembles(*case)["crps"].mean() for case in ((12,), (4,), (36,), (12, 10)))
    assert right < min(sure, unsure, biased)
    assert right.item() == pytest.approx(12 / 255 / math.sqrt(math.pi), rel=0.02)
    assert ensembles(12, count=2)["crps"].mean().item() == pytest.approx(right.item(), rel=0.02)


@pytest.mark.parametrize("count", [2, 8])
def test_spread_over_skill_is_one_where_the_truth_could_be_a_trajectory(count):
    def ratio(spread: float) -> float:
        figures = ensembles(spread, count=count)
        return spread_over_skill(figures["variance"].mean(), figures["squared_error"].mean(), count).item()

    assert ratio(12) == pytest.approx(1, abs=0.02)
    assert ratio(4) < 0.5 < 1.5 < ratio(36)


def test_spread_over_an_exact_mean_is_no_figure():
    assert spread_over_skill(torch.tensor(0.1), torch.tensor(0.0), 3).isnan()


def test_what_is_no_ensemble_is_refused():
    truth = clips(1, 2, 3, 4, 4)
    with pytest.raises(ValueError, match="two trajectories"):
        ensemble_figures(truth[None], truth)
    with pytest.raises(ValueError, match="uint8"):
        ensemble_figures(truth[None].float().expand(2, -1, -1, -1, -1, -1), truth)
