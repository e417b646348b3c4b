"""How noisy each frame is.

Notation: x0 is the clean latent, eps ~ N(0, I), and a frame at level (alpha, sigma) is

    x = alpha * x0 + sigma * eps

Clean is (1, 0). Nothing here assumes alpha^2 + sigma^2 = 1: variance-preserving (VP) levels obey it, flow
matching (alpha = 1 - sigma) and EDM (alpha = 1, any sigma) do not.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vidpred.tensor_ops import append_dims


@dataclass(frozen=True)
class NoiseLevel:
    """One level per frame: alpha, sigma and code share a shape, (B, T), or (S+1, B, T) for a sampling grid.

    `code` is the only thing that a network sees of a level: the angle (2/pi) atan2(sigma, alpha), from 0
    (clean) to 1 (pure noise). It is defined for every family of levels, at sigma = 0 and at alpha = 0.
    Build one with `from_alpha_sigma`.
    """

    alpha: Tensor
    sigma: Tensor
    code: Tensor

    @staticmethod
    def from_alpha_sigma(alpha: Tensor, sigma: Tensor) -> "NoiseLevel":
        """alpha, sigma >= 0, broadcastable floating tensors -> the level with its code, same dtype."""
        alpha, sigma = torch.broadcast_tensors(alpha, sigma)
        return NoiseLevel(alpha, sigma, torch.atan2(sigma, alpha) * (2 / math.pi))

    @staticmethod
    def clean(
        shape: tuple[int, ...],
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "NoiseLevel":
        """Exactly (1, 0) everywhere: the level of a given frame."""
        zeros = torch.zeros(shape, device=device, dtype=dtype)
        return NoiseLevel(torch.ones_like(zeros), zeros, zeros)

    @staticmethod
    def where(mask: Tensor, a: "NoiseLevel", b: "NoiseLevel") -> "NoiseLevel":
        """`a` where the boolean mask holds, else `b`; shapes broadcast."""
        pairs = ((a.alpha, b.alpha), (a.sigma, b.sigma), (a.code, b.code))
        return NoiseLevel(*(torch.where(mask, x, y) for x, y in pairs))

    @property
    def ratio(self) -> Tensor:
        """sigma / alpha, the noise in units of the signal; infinite at alpha = 0."""
        return self.sigma / self.alpha

    @property
    def shape(self) -> torch.Size:
        return self.alpha.shape

    def __len__(self) -> int:
        return len(self.alpha)

    def __getitem__(self, index) -> "NoiseLevel":
        """`grid[s]` is the (B, T) level of step s; any tensor index works."""
        return NoiseLevel(self.alpha[index], self.sigma[index], self.code[index])

    def expand(self, *shape: int) -> "NoiseLevel":
        return NoiseLevel(self.alpha.expand(*shape), self.sigma.expand(*shape), self.code.expand(*shape))

    def to(self, *args, **kwargs) -> "NoiseLevel":
        """As `Tensor.to`: device, dtype."""
        return NoiseLevel(*(x.to(*args, **kwargs) for x in (self.alpha, self.sigma, self.code)))

    def differs(self, other: "NoiseLevel") -> Tensor:
        """Boolean, same shape: where the two levels are not the same."""
        return (self.alpha != other.alpha) | (self.sigma != other.sigma)


def add_noise(x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
    """x = alpha x0 + sigma eps.

    Args:
        x0, noise: (B, T, ...) clean latents and standard normal noise.
        level: (B, T).
    """
    return append_dims(level.alpha, x0.ndim) * x0 + append_dims(level.sigma, x0.ndim) * noise


def add_more_noise(x: Tensor, level: NoiseLevel, noisier: NoiseLevel, noise: Tensor) -> Tensor:
    """Carries x from its level (alpha, sigma) on to a noisier one, (alpha', sigma'), by the forward process:

        x' = r x + sqrt(sigma'^2 - (r sigma)^2) eps,    r = alpha' / alpha

    From the clean level this is `add_noise`. Where `noisier` is not noisier, or alpha = 0, the result has no
    meaning and callers never use it.

    Args:
        x, noise: (B, T, ...). level, noisier: (B, T).
    """
    kept = noisier.alpha / torch.where(level.alpha > 0, level.alpha, torch.ones_like(level.alpha))
    added = (noisier.sigma**2 - (kept * level.sigma) ** 2).clamp(min=0).sqrt()
    return append_dims(kept, x.ndim) * x + append_dims(added, x.ndim) * noise


def implied_noise(x: Tensor, x0: Tensor, level: NoiseLevel) -> Tensor:
    """eps = (x - alpha x0) / sigma, the noise that x holds if x0 is the clean latent.

    At sigma = 0 there is none and 0/0 must not arise: the remainder x - alpha x0 is returned undivided there,
    and callers never use it.
    """
    sigma = torch.where(level.sigma > 0, level.sigma, torch.ones_like(level.sigma))
    return (x - append_dims(level.alpha, x.ndim) * x0) / append_dims(sigma, x.ndim)
