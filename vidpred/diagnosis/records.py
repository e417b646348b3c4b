"""What an examination measures. All values of latents are in calibrated units.

Notation: x = alpha x0 + sigma eps at the unknown frames; c is the last given frame before an unknown one.
"""

import math
from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class StepRow:
    """What one sampling step saw at the unknown frames. What was not finite stays so.

    x: [min, max] of the state before the step. x0: of the clean estimate before clipping. clip_rate: fraction
    of values that clipping changed. eps_norm: rms of eps over its expectation, which is 1.
    """

    step: int
    alpha: float
    sigma: float
    x: tuple[float, float]
    x0: tuple[float, float]
    clip_rate: float
    eps_norm: float

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, (*self.x, *self.x0, self.eps_norm)))


@dataclass(frozen=True)
class LevelRow:
    """The one-step error of x0 at one level, rms over the unknown frames, and that of two rules.

    error: the model's, before clipping. zero: of predicting the mean of the data. copy_last: of repeating
    c, or of c as an untrained network moves it.
    """

    timestep: int
    alpha: float
    sigma: float
    error: float
    zero: float
    copy_last: float

    @property
    def unlearned(self) -> float:
        """What the better of the two rules comes to with the best constant filter of x (Wiener).

        With s the rule's error, c + k (x - alpha c) with the best k leaves
        s sigma / sqrt(alpha^2 s^2 + sigma^2): s at pure noise, less where x shows x0. (c = 0 for the first.)
        """
        return self._filtered(min(self.zero, self.copy_last))

    @property
    def of_zero(self) -> float:
        """The same of predicting the mean alone: what is reached without the given frames."""
        return self._filtered(self.zero)

    def _filtered(self, s: float) -> float:
        return s * self.sigma / max(math.hypot(self.alpha * s, self.sigma), 1e-12)


@dataclass(frozen=True)
class LatentFigures:
    """Latents of the clips. mean, std: per channel. uncertainty: standard error of each mean, from clip to
    clip (infinite for one clip). low, high: over all. measured: whether the calibration ever was.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    uncertainty: tuple[float, ...]
    low: float
    high: float
    measured: bool


@dataclass(frozen=True)
class WeightFigures:
    """Norms are L2 over all values; those of the moving average (EMA) are None where there is none.

    count: values. distance: |ema - raw| / |raw|. not_finite: tensors with NaN or infinity, of either. stuck:
    tensors whose average is exactly zero, as initialised, although the weights have left it. ema_updates: as
    the checkpoint says.
    """

    count: int
    raw_norm: float
    ema_norm: Optional[float]
    distance: Optional[float]
    not_finite: tuple[str, ...]
    stuck: tuple[str, ...]
    ema_updates: Optional[int]
