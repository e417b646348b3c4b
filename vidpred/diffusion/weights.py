"""How much a noise level counts in the training loss.

Notation: SNR = alpha^2 / sigma^2, d = sigma_data, F the network's output, x0 = c_skip x + c_out F. A weight
is stated as lambda, the factor on the squared error of x0. The loss is on F, whose error is that of x0
divided by c_out, so its factor is w = lambda c_out^2:

    kind      lambda                  of
    uniform   1 / c_out^2 (w = 1)     the plain loss of each objective
    min_snr   min(SNR, gamma)         Hang et al. 2023, arXiv:2303.09556, section 3.4
    sigmoid   SNR sigmoid(bias - log SNR) = 1 / (1/SNR + e^-bias)
                                      Kingma and Gao 2023, arXiv:2303.00848; a smooth min(SNR, e^bias)
    edm       SNR + 1/d^2             Karras et al. 2022, arXiv:2206.00364, table 1; w = 1 with objective edm

For eps min_snr gives the published w = min(1, gamma/SNR), for v w = min(SNR, gamma)/(SNR + 1). min_snr and
sigmoid vanish with the SNR; `floor` keeps lambda above 0, because sampling starts from the noisiest level and
its first step is made of what was learned there.
"""

import math
from dataclasses import dataclass
from typing import Callable, Literal

import torch
from torch import Tensor

from vidpred.diffusion.levels import NoiseLevel
from vidpred.diffusion.parameterizations import Parameterization
from vidpred.diffusion.schedules import NoiseSchedule
from vidpred.errors import require

LossWeight = Callable[[NoiseLevel], Tensor]
"""level (B, T) -> the factor (B, T) on the squared error of the network's target; 0 or 1 at clean frames."""

KINDS = ("uniform", "min_snr", "sigmoid", "edm")


@dataclass
class LossWeightConfig:
    """How much each noise level counts in the training loss."""

    kind: Literal["uniform", "min_snr", "sigmoid", "edm"] = "uniform"
    """uniform: every level alike, in what the network predicts. min_snr: the clean estimate's error times
    min(SNR, gamma). sigmoid: a smooth form of the same. edm: Karras' weight."""
    gamma: float = 5.0
    """min_snr: the largest weight."""
    bias: float = 2.0
    """sigmoid: log of the largest weight."""
    floor: float = 0.1
    """min_snr, sigmoid: the smallest weight of the clean estimate's error, which pure noise gets."""

    def __post_init__(self) -> None:
        at, kinds = "diffusion.weight", ", ".join(KINDS)
        require(self.kind in KINDS, f"{at}.kind: '{self.kind}' is not known; choose one of {kinds}")
        require(self.gamma > 0, f"{at}.gamma: {self.gamma} must be above 0 (5 is usual)")
        require(self.floor >= 0, f"{at}.floor: {self.floor} must be 0 or more (0.1 is usual)")
        require(self.floor <= self.gamma, f"{at}.floor: {self.floor} must not exceed gamma, {self.gamma}")


def uniform_weight(level: NoiseLevel) -> Tensor:
    """1 at every level."""
    return torch.ones_like(level.alpha)


def build_weight(
    config: LossWeightConfig, parameterization: Parameterization, schedule: NoiseSchedule
) -> LossWeight:
    """The weight as a function of the level, finite everywhere.

    Refuses a floor of 0 where it would leave the level that sampling starts from untrained.
    """
    if config.kind == "uniform":
        return uniform_weight
    require(
        config.kind == "edm" or config.floor > 0 or not schedule.reaches_pure_noise,
        f"diffusion.weight.floor: 0 leaves pure noise untrained, where sampling starts "
        f"({schedule.pure_noise_key}); set it above 0 (0.1 is usual)",
    )

    def weight(level: NoiseLevel) -> Tensor:
        # At sigma = 0 the SNR is infinite and there is nothing to learn: any finite sigma will do.
        noisy = level.sigma > 0
        variance = torch.where(noisy, level.sigma, torch.ones_like(level.sigma)) ** 2
        on_x0 = _on_x0(config, level.alpha**2, variance, parameterization.sigma_data)
        return torch.where(noisy, on_x0 * parameterization.c_out(level) ** 2, torch.zeros_like(on_x0))

    return weight


def _on_x0(config: LossWeightConfig, signal: Tensor, variance: Tensor, sigma_data: float) -> Tensor:
    """lambda, from alpha^2 and sigma^2."""
    if config.kind == "edm":
        return signal / variance + sigma_data**-2
    if config.kind == "min_snr":
        return (signal / variance).clamp(config.floor, config.gamma)
    return (signal / (variance + math.exp(-config.bias) * signal)).clamp(min=config.floor)
