"""Philox against its published vectors; the distribution of the numbers; independence of the batch."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from vidpred.random_streams import MULTIPLIERS, host_generator, normal, philox, stream_key, uniform

# Random123, kat_vectors: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    result = philox(tuple(torch.tensor([word]) for word in words(counter)), words(key))
    assert tuple(int(word) for word in result) == words(expected)


def philox_in_integers(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = MULTIPLIERS[0] * c[0], MULTIPLIERS[1] * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second & 0xFFFFFFFF, first >> 32 ^ c[3] ^ k[1], first & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_random_counters_against_unbounded_integers():
    generator = np.random.default_rng(0)
    counters = generator.integers(0, 2**32, size=(300, 4))
    key = (0xFFFFFFFF, 1)
    result = torch.stack(philox(tuple(torch.from_numpy(counters).unbind(1)), key), dim=1)
    assert result.tolist() == [philox_in_integers(map(int, counter), key) for counter in counters]


def test_normal_distribution():
    numbers = normal(3, "noise", torch.arange(400), (1001,)).double().numpy()
    count = numbers.size
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((numbers**power).mean() - moment) < 4.5 * (variance / count) ** 0.5, power
    assert stats.kstest(numbers.ravel(), "norm").pvalue > 1e-3
    assert 4.2 < np.abs(numbers).max() < 6.8  # 4e5 normals: about 4.7 is the largest


def test_uniform_distribution():
    numbers = uniform(3, "level", torch.arange(200_000), ()).double().numpy()
    assert numbers.min() >= 0 and numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3


def test_neighbouring_rows_elements_and_streams_are_uncorrelated():
    numbers = normal(0, "noise", torch.arange(500), (400,)).double()
    other = normal(0, "levels", torch.arange(500), (400,)).double()
    bound = 4.5 / numbers.numel() ** 0.5
    assert (numbers[1:] * numbers[:-1]).mean().abs() < bound
    for lag in (1, 2, 3, 4):  # within and across the pairs and blocks that one counter gives
        assert (numbers[:, lag:] * numbers[:, :-lag]).mean().abs() < bound, lag
        assert (numbers[:, lag:].square() - 1).mul(
            numbers[:, :-lag].square() - 1
        ).mean().abs() < 2.2 * bound, lag
    assert (numbers * other).mean().abs() < bound


@pytest.mark.parametrize("draw", [normal, uniform])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5, 2), (4, 8, 8)])
def test_a_row_depends_on_its_draw_alone(draw, shape):
    draws = torch.tensor([5, 0, 2**40 + 1, 2**32, 5, 1])
    batch = draw(7, "noise", draws, shape)
    assert batch.shape == (6, *shape) and batch.dtype == torch.float32
    for row, number in zip(batch, draws):
        assert torch.equal(row, draw(7, "noise", number[None], shape)[0])
    assert torch.equal(batch[0], batch[4])
    different = batch[[0, 1, 2, 3, 5]].reshape(5, -1)
    assert len({tuple(row.tolist()) for row in different}) == 5


def test_seed_and_purpose_choose_the_stream():
    draws = torch.arange(2)
    streams = [normal(seed, name, draws, (4,)) for seed, name in ((0, "a"), (1, "a"), (0, "b"), (-1, "a"))]
    assert len({tuple(stream.flatten().tolist()) for stream in streams}) == 4


def test_empty_shapes():
    assert normal(0, "a", torch.arange(3), (0, 4)).shape == (3, 0, 4)
    assert uniform(0, "a", torch.arange(0), (2, 4)).shape == (0, 2, 4)


def test_draws_of_another_type_are_refused():
    with pytest.raises(ValueError, match="int64"):
        normal(0, "a", torch.arange(3.0), (2,))


def test_the_same_numbers_in_another_process():
    line = "import torch; from vidpred.random_streams import *; "
    line += "print(stream_key(3, 'noise'), uniform(3, 'noise', torch.tensor([9]), (2,)).tolist())"
    other = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True).stdout
    here = uniform(3, "noise", torch.tensor([9]), (2,)).tolist()
    assert other.strip() == f"{stream_key(3, 'noise')} {here}"


def test_numbers_stay_what_they_were():
    """A changed stream would change every run that is resumed and every recorded evaluation."""
    assert stream_key(0, "noise") == 3879412193591564987
    numbers = normal(0, "noise", torch.tensor([0, 2**33]), (2,))
    torch.testing.assert_close(
        numbers, torch.tensor([[0.8970012, -0.2293171], [0.9677545, 1.2113734]]), rtol=1e-6, atol=1e-6
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_gives_the_same_streams():
    draws = torch.tensor([0, 5, 2**32 + 3])
    compiled = torch.compile(lambda draws: uniform(1, "noise", draws, (3, 7)), fullgraph=True)
    assert torch.equal(compiled(draws), uniform(1, "noise", draws, (3, 7)))


def test_host_generator_repeats_and_differs_by_draw():
    first = host_generator(0, "clip", 4).integers(0, 2**31, 8).tolist()
    assert first == host_generator(0, "clip", 4).integers(0, 2**31, 8).tolist()
    others = [host_generator(0, "clip", 5), host_generator(1, "clip", 4), host_generator(0, "mask", 4)]
    assert all(first != other.integers(0, 2**31, 8).tolist() for other in others)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_draws_the_same_numbers():
    draws = torch.arange(6)
    on_gpu = normal(0, "noise", draws.cuda(), (5, 9))
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), normal(0, "noise", draws, (5, 9)), rtol=1e-5, atol=1e-6)
    assert torch.equal(uniform(0, "u", draws, (33,), "cuda").cpu(), uniform(0, "u", draws, (33,)))
