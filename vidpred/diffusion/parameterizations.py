"""What the network's output F means.

Notation: x = alpha x0 + sigma eps. Whatever F estimates, x0 is recovered linearly,

    x0 = c_skip x + c_out F,    network input = c_in x    (the preconditioning of Karras et al. 2022)

and the factors are functions of the level alone. With n^2 = alpha^2 + sigma^2, which is 1 for VP levels only:

    F     target                         c_skip      c_out
    x0    x0                             0           1
    eps   eps                            1/alpha     -sigma/alpha
    v     (alpha eps - sigma x0) / n     alpha/n^2   -sigma/n     (Salimans and Ho 2022; n makes it general:
                                                                   at alpha = 1 it is EDM with sigma_data = 1)
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vidpred.diffusion.levels import NoiseLevel
from vidpred.diffusion.schedules import NoiseSchedule
from vidpred.errors import UserError
from vidpred.tensor_ops import append_dims


class Parameterization(ABC):
    """Between x0 and the network. The factors have the level's shape, (B, T)."""

    name: str

    def c_in(self, level: NoiseLevel) -> Tensor:
        """Gives the network's input unit variance when the latents have it (calibrated ones do); 1 for VP."""
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
        alpha, sigma = append_dims(level.alpha / norm, x0.ndim), append_dims(level.sigma / norm, x0.ndim)
        return alpha * noise - sigma * x0


PARAMETERIZATIONS = {kind.name: kind for kind in (PredictEps, PredictV, PredictX0)}


def build_parameterization(name: str, schedule: NoiseSchedule) -> Parameterization:
    """eps, v or x0 by name; refuses eps where the schedule reaches alpha = 0, because the first x0 is 0/0."""
    if name not in PARAMETERIZATIONS:
        raise UserError(
            f"diffusion.parameterization: '{name}' is not known; choose one of {', '.join(PARAMETERIZATIONS)}"
        )
    if name == "eps" and schedule.reaches_pure_noise:
        raise UserError(
            "diffusion.parameterization: eps cannot be used with diffusion.schedule.zero_terminal_snr, "
            "x0 is 0/0 at pure noise; use v or x0"
        )
    return PARAMETERIZATIONS[name]()
