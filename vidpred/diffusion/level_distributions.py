"""Which noise levels training draws, and how often.

A distribution is its inverse cumulative function: it turns u, uniform in [0, 1), into a level. So what is
known of u stays true of the levels: evenly spread u (over a batch) give evenly spread levels, and independent
u for each frame give independent levels. Phi^-1 is the quantile function of the standard normal distribution.

    uniform        t = floor(T u)                               Ho et al. 2020, arXiv:2006.11239
    logit_normal   t = T sigmoid(mean + std Phi^-1(u)) - 1      Esser et al. 2024, arXiv:2403.03206, eq. 19
    log_normal     log(sigma / alpha) = mean + std Phi^-1(u)    Karras et al. 2022, arXiv:2206.00364, table 1

All are kept within the levels of the schedule. log_normal speaks of sigma / alpha itself, so the
schedule's shift does not move it.
"""

import math
from dataclasses import dataclass
from typing import Callable, Literal, Optional

import torch
from torch import Tensor

from vidpred.diffusion.levels import NoiseLevel
from vidpred.diffusion.schedules import NoiseSchedule
from vidpred.errors import require

LevelDistribution = Callable[[Tensor], NoiseLevel]
"""u of any shape, in [0, 1) -> levels of that shape, float32; noisier for larger u."""

USUAL = {"uniform": (0.0, 1.0), "logit_normal": (0.0, 1.0), "log_normal": (-1.2, 1.2)}


@dataclass
class LevelConfig:
    """Which noise levels training draws, and how often."""

    kind: Literal["uniform", "logit_normal", "log_normal"] = "uniform"
    """uniform: every timestep alike. logit_normal: mostly the middle of the schedule (Stable Diffusion 3).
    log_normal: log(sigma / alpha) is normal (EDM)."""
    mean: Optional[float] = None
    """Of the normal distribution; null: 0 for logit_normal, -1.2 for log_normal."""
    std: Optional[float] = None
    """Its standard deviation; null: 1 for logit_normal, 1.2 for log_normal."""

    def __post_init__(self) -> None:
        at, kinds = "diffusion.levels", ", ".join(USUAL)
        require(self.kind in USUAL, f"{at}.kind: '{self.kind}' is not known; choose one of {kinds}")
        require(self.std is None or self.std > 0, f"{at}.std: {self.std} must be above 0 (1 is usual)")
        require(
            self.kind != "uniform" or (self.mean is None and self.std is None),
            f"{at}.mean, std: uniform has none; leave them null, or set kind to logit_normal or log_normal",
        )


def build_levels(config: LevelConfig, schedule: NoiseSchedule) -> LevelDistribution:
    """The inverse cumulative function of a configuration."""
    last = schedule.num_train_timesteps - 1
    mean, std = (
        usual if own is None else own for own, usual in zip((config.mean, config.std), USUAL[config.kind])
    )

    def uniform(u: Tensor) -> NoiseLevel:
        return schedule.level((u * (last + 1)).long().clamp(max=last))

    def logit_normal(u: Tensor) -> NoiseLevel:
        fraction = torch.sigmoid(mean + std * torch.special.ndtri(u.double()))
        return schedule.level(((last + 1) * fraction - 1).clamp(0, last))

    def log_normal(u: Tensor) -> NoiseLevel:
        low, high = schedule.ratio_range
        ratio = torch.exp(mean + std * torch.special.ndtri(u.double()))
        # Without u = 1 the ratio is finite, so a limit of infinity (pure noise) is none.
        return schedule.at_ratio(ratio.clamp(low, high if math.isfinite(high) else None))

    return {"uniform": uniform, "logit_normal": logit_normal, "log_normal": log_normal}[config.kind]
