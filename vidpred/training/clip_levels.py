"""The noise levels of the frames that a network is trained and validated on, and what it loses at each.

The level of a clip is a function of (seed, running draw number). Draw n sees the level of
u = frac(u_0 + n / golden ratio), see `diffusion.level_distributions`: uniform, and evenly spread over any
consecutive draws, hence over a batch, which lowers the variance of the gradient (Kingma et al. 2021,
"Variational diffusion models", appendix I).
"""

import torch
from torch import Tensor

from vidpred import random_streams
from vidpred.conditioning import ConditioningConfig
from vidpred.diffusion import LevelDistribution, NoiseLevel, NoiseSchedule
from vidpred.frame_roles import FREE, GIVEN, HIDDEN, is_scored
from vidpred.training.averages import Averages

GOLDEN_STEP = 1327217885  # 2^31 / golden ratio, to the nearest integer
HALF_WORD = 2**31
VALIDATION_LEVELS = 4
LEVEL_BINS = 5
LEVEL_BIN_NAMES = tuple(
    f"train/loss_code_{k / LEVEL_BINS:.1f}_{(k + 1) / LEVEL_BINS:.1f}" for k in range(LEVEL_BINS)
)


class ClipLevels:
    """Of clips by their draw numbers (B,) and the roles of their frames (B, T).

    Args:
        conditioning: how the roles come about, and the noise on given frames.
        distribution: u uniform in [0, 1) -> level.
        schedule: of the levels. seed: of what is drawn. device: where the schedule is.
    """

    def __init__(
        self,
        conditioning: ConditioningConfig,
        distribution: LevelDistribution,
        schedule: NoiseSchedule,
        seed: int,
        device: torch.device,
    ):
        self._conditioning, self._distribution, self._schedule = conditioning, distribution, schedule
        self._seed = seed
        self._pure_noise = schedule.at(torch.ones(1, 1, device=device))

    def training(self, draws: Tensor, roles: Tensor, part: Tensor | None = None) -> NoiseLevel:
        """(B, T): see `_levels`; given frames are noised by up to the configured fraction of the schedule."""
        offset = random_streams.uniform(self._seed, "training level", torch.zeros_like(draws[:1]), ())  # (1,)
        # Whole numbers, exact for any number of draws; float32 would run out of digits.
        golden = (draws % HALF_WORD * GOLDEN_STEP % HALF_WORD).float() / HALF_WORD
        level = self._levels((golden + offset) % 1, draws, roles, "training frame level", part)
        most = self._conditioning.context_noise
        if most == 0:
            return level
        fraction = most * random_streams.uniform(self._seed, "context noise", draws, (1,))
        return NoiseLevel.where(roles == GIVEN, self._schedule.at(fraction), level)

    def validation(self, draws: Tensor, roles: Tensor, stratum: int) -> NoiseLevel:
        """(B, T): never changing, of each clip's own u in [stratum, stratum + 1) / VALIDATION_LEVELS; given frames are
        clean."""
        golden = (draws * GOLDEN_STEP % HALF_WORD).float() / HALF_WORD
        u = (stratum + golden) / VALIDATION_LEVELS
        return self._levels(u, draws, roles, f"validation frame level {stratum}")

    def _levels(
        self, u: Tensor, draws: Tensor, roles: Tensor, purpose: str, part: Tensor | None = None
    ) -> NoiseLevel:
        """(B, T): unknown frames at the level of the clip's u (B,) in [0, 1), free ones each at its own, which
        is drawn for `purpose`; given ones clean, hidden ones pure noise. `part` (B,) in [0, 1) makes unknown and free
        ones cleaner: that part of their u."""
        cleaner = 1.0 if part is None else part[:, None]
        level = self._distribution(cleaner * u[:, None])
        if "diffusion_forcing" in self._conditioning.mixture():
            own = random_streams.uniform(self._seed, purpose, draws, tuple(roles.shape[1:]))
            level = NoiseLevel.where(roles == FREE, self._distribution(cleaner * own), level)
        level = NoiseLevel.where(roles == HIDDEN, self._pure_noise, level)
        return NoiseLevel.where(roles == GIVEN, NoiseLevel.clean((1, 1), roles.device), level)


def loss_by_level(per_frame: Tensor, level: NoiseLevel, roles: Tensor) -> Averages:
    """The loss of each scored frame under the bin of its noise code, in fifths of [0, 1]."""
    bins = (level.code * LEVEL_BINS).long().clamp(max=LEVEL_BINS - 1)  # (B, T)
    bins = bins.masked_fill(~is_scored(roles), -1).flatten()
    member = bins[:, None] == torch.arange(LEVEL_BINS, device=bins.device)  # (B*T, bins)
    sums = torch.where(member, per_frame.flatten()[:, None], 0).sum(0)
    return Averages(LEVEL_BIN_NAMES, sums, member.float().sum(0))
