"""Random tensors as a function of (seed, purpose, running draw number).

Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is a keyed
bijection of 128-bit counters: no state, no order, no host generator. Here

    key (k0, k1)             = a 64-bit hash of (seed, purpose)
    counter (c0, c1, c2, c3) = (draw's low word, block within the row, draw's high word, 0)

so a row depends on nothing but (seed, purpose, its draw number): not on the batch around it, the rank, the
device or what was drawn before. Words are 32-bit numbers held in int64 tensors.
"""

import math

import numpy as np
import torch
from torch import Tensor

WORD = 0xFFFFFFFF
LONG = 0xFFFFFFFFFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, added to the key after each round


def stream_key(seed: int, purpose: str) -> int:
    """A stable 64-bit hash of (seed, purpose) (Python's own changes from process to process).

    FNV-1a with the finaliser of MurmurHash3. In plain integers rather than hashlib, so that torch.compile can
    trace it.
    """
    value = 0xCBF29CE484222325
    for character in f"{seed}/{purpose}":
        value = ((value ^ ord(character)) * 0x100000001B3) & LONG
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value = ((value ^ (value >> 33)) * multiplier) & LONG
    return value ^ (value >> 33)


def _multiply(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low words of the 64-bit product of two 32-bit words, inside signed 64-bit arithmetic.

    The multiplier is taken as the signed number m = multiplier - 2^32, |m| < 2^30, so the product stays
    within int64; multiplier * word = m * word + 2^32 * word gives the high word back. The shift is
    arithmetic.
    """
    product = word * (multiplier - (WORD + 1))
    return (product >> 32) + word, product & WORD


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four broadcastable int64 tensors of words and a key of two words -> four words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(MULTIPLIERS[0], c0)
        high1, low1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def _words(seed: int, purpose: str, draws: Tensor, blocks: int) -> tuple[Tensor, ...]:
    """Four int64 tensors (B, blocks) of random words."""
    if draws.ndim != 1 or draws.dtype != torch.int64:
        raise ValueError(f"draws must be (B,) int64, got {tuple(draws.shape)} {draws.dtype}")
    key = stream_key(seed, purpose)
    block = torch.arange(blocks, device=draws.device)[None]  # (1, blocks)
    row = draws[:, None]  # (B, 1)
    # The block goes where Philox only xors: torch.compile multiplies an arange in 32 bits and overflows.
    counter = (row & WORD, block, (row >> 32) & WORD, torch.zeros_like(row))
    return philox(counter, (key & WORD, key >> 32))


def uniform(
    seed: int, purpose: str, draws: Tensor, shape: tuple[int, ...], device: torch.device | str | None = None
) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24: (B, *shape) float32 on `device`.

    `draws` (B,) int64 are running draw numbers; row b depends on (seed, purpose, draws[b]) only. `device`
    defaults to that of `draws`; draws that are on it already make the call free of host synchronisation.
    Equal bit for bit on every device.
    """
    count = math.prod(shape)
    words = _words(seed, purpose, draws.to(device or draws.device), -(-count // 4))
    numbers = torch.stack([(word >> 8).float() * 2.0**-24 for word in words], dim=-1)
    return numbers.flatten(1)[:, :count].reshape(len(draws), *shape)


def normal(
    seed: int, purpose: str, draws: Tensor, shape: tuple[int, ...], device: torch.device | str | None = None
) -> Tensor:
    """Standard normal numbers by Box and Muller, |value| < 6.8: (B, *shape) float32 on `device`.

    `draws` and `device` as in `uniform`. Float32 throughout: a GPU's logarithm and cosine differ from the
    CPU's in the last bits.
    """
    count = math.prod(shape)
    words = _words(seed, purpose, draws.to(device or draws.device), -(-count // 4))
    pairs = [_box_muller(words[0], words[1]), _box_muller(words[2], words[3])]
    numbers = torch.stack([number for pair in pairs for number in pair], dim=-1)
    return numbers.flatten(1)[:, :count].reshape(len(draws), *shape)


def _box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two words -> two independent normal numbers."""
    # The half keeps the argument of the logarithm above 0; all 32 bits are kept for the tails.
    radius = ((first.float() + 0.5) * 2.0**-32).log().mul(-2).sqrt()
    angle = (second >> 8).float() * (2 * math.pi * 2.0**-24)
    return radius * angle.cos(), radius * angle.sin()


def host_generator(seed: int, purpose: str, draw: int) -> np.random.Generator:
    """NumPy's generator for decisions on the host (a crop, a flip) of one draw: the same contract.

    The streams of two draws are 2^192 blocks apart. `draw` is at least 0.
    """
    return np.random.Generator(np.random.Philox(key=stream_key(seed, purpose), counter=[0, 0, 0, draw]))
