"""What the network's output F means.

Notation: x = alpha x0 + sigma eps. Whatever F estimates, x0 is recovered linearly,

    x0 = c_skip x + c_out F,    network input = c_in x    (the preconditioning of Karras et al. 2022)

and the factors are functions of the level alone. With d = sigma_data, n^2 = alpha^2 + sigma^2, which is 1 for
VP levels only, and m^2 = d^2 alpha^2 + sigma^2:

    F     target                            c_skip               c_out
    x0    x0                                0                    1
    eps   eps                               1/alpha              -sigma/alpha
    v     (alpha eps - sigma x0) / n        alpha/n^2            -sigma/n
    flow  eps - x0                          1/(alpha + sigma)    -sigma/(alpha + sigma)
    edm   (sigma x0/d - alpha d eps) / m    alpha d^2/m^2        sigma d/m

v is of Salimans and Ho 2022 (arXiv:2202.00512); n makes it general. flow is the velocity of rectified flow
(Liu et al. 2022, arXiv:2209.03003), dx/dsigma where alpha = 1 - sigma. edm is of Karras et al. 2022
(arXiv:2206.00364, eq. 7 and table 1), written for x in place of x/alpha; at d = 1 it is -v.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vidpred.diffusion.levels import NoiseLevel
from vidpred.diffusion.schedules import NoiseSchedule
from vidpred.errors import UserError, require
from vidpred.tensor_ops import append_dims


class Parameterization(ABC):
    """Between x0 and the network. The factors have the level's shape, (B, T).

    sigma_data: deviation of the latents that the network learns; 1 for calibrated ones, less where it learns
    their difference to a given frame.
    """

    name: str

    def __init__(self, sigma_data: float = 1.0):
        self.sigma_data = sigma_data

    def c_in(self, level: NoiseLevel) -> Tensor:
        """1/n, which gives noised calibrated latents unit variance; 1 for VP levels.

        Not a function of sigma_data: the network sees the latents themselves also where it learns a difference.
        """
        return 1 / torch.hypot(level.alpha, level.sigma)

    @abstractmethod
    def c_skip(self, level: NoiseLevel) -> Tensor: ...

    @abstractmethod
    def c_out(self, level: NoiseLevel) -> Tensor: ...

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        """What the network should output, (B, T, ...), when x = alpha x0 + sigma noise."""

    def to_x0(self, x: Tensor, output: Tensor, level: NoiseLevel) -> Tensor:
        """The clean estimate c_skip x + c_out F, (B, T, ...). At alpha = 0 eps has none: division by 0."""
        c_skip = append_dims(self.c_skip(level), x.ndim)
        return c_skip * x + append_dims(self.c_out(level), x.ndim) * output


class PredictX0(Parameterization):
    name = "x0"

    def c_skip(self, level: NoiseLevel) -> Tensor:
        return torch.zeros_like(level.alpha)

    def c_out(self, level: NoiseLevel) -> Tensor:
        return torch.ones_like(level.alpha)

    def target(self, x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        return x0


class PredictEps(Parameterization):
    name = "eps"

    def c_skip(self, level: NoiseLevel) -> Tensor:
        return 1 / level.alpha

    def c_out(self, level: NoiseLevel) -> Tensor:
        return -level.sigma / level.alpha

    def target(self, x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        return noise


class PredictV(Parameterization):
    name = "v"

    def c_skip(self, level: NoiseLevel) -> Tensor:
        return level.alpha / (level.alpha**2 + level.sigma**2)

    def c_out(self, level: NoiseLevel) -> Tensor:
        return -level.sigma / torch.hypot(level.alpha, level.sigma)

    def target(self, x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        norm = torch.hypot(level.alpha, level.sigma)
        return _mix(level.alpha / norm, noise, -level.sigma / norm, x0)


class PredictFlow(Parameterization):
    name = "flow"

    def c_skip(self, level: NoiseLevel) -> Tensor:
        return 1 / (level.alpha + level.sigma)

    def c_out(self, level: NoiseLevel) -> Tensor:
        return -level.sigma / (level.alpha + level.sigma)

    def target(self, x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        return noise - x0


class PredictEdm(Parameterization):
    name = "edm"

    def c_skip(self, level: NoiseLevel) -> Tensor:
        return level.alpha * (self.sigma_data / self._m(level)) ** 2

    def c_out(self, level: NoiseLevel) -> Tensor:
        return level.sigma * self.sigma_data / self._m(level)

    def target(self, x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        # The table's quotient (x0 - c_skip x) / c_out, multiplied out: it would be 0/0 at sigma = 0.
        m = self._m(level)
        return _mix(-level.alpha * self.sigma_data / m, noise, level.sigma / self.sigma_data / m, x0)

    def _m(self, level: NoiseLevel) -> Tensor:
        return torch.hypot(self.sigma_data * level.alpha, level.sigma)


def _mix(a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """a x + b y for factors a, b (B, T)."""
    return append_dims(a, x.ndim) * x + append_dims(b, y.ndim) * y


PARAMETERIZATIONS = {kind.name: kind for kind in (PredictEps, PredictV, PredictX0, PredictFlow, PredictEdm)}


def build_parameterization(name: str, schedule: NoiseSchedule, sigma_data: float = 1.0) -> Parameterization:
    """By name; refuses eps where the schedule reaches alpha = 0, because the first x0 is 0/0."""
    known = ", ".join(PARAMETERIZATIONS)
    require(
        name in PARAMETERIZATIONS, f"diffusion.parameterization: '{name}' is not known; choose one of {known}"
    )
    require(sigma_data > 0, f"diffusion.sigma_data: {sigma_data} must be above 0 (1 is usual)")
    if name == "eps" and schedule.reaches_pure_noise:
        raise UserError(
            f"diffusion.parameterization: eps cannot be used with {schedule.pure_noise_key}, "
            "x0 is 0/0 at pure noise; use v, flow or x0"
        )
    return PARAMETERIZATIONS[name](sigma_data)
