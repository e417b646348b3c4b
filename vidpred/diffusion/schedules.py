"""Noise schedules: the table of levels that training draws from and that sampling walks down.

Notation: t = 0 .. T-1 are the training timesteps, t = -1 is clean, ratio = sigma / alpha. Three families of
levels differ in what is 1 at each of their levels:

    variance preserving (VP)   alpha^2 + sigma^2   linear, scaled_linear, cosine
    flow                       alpha + sigma       sigma_t = (t + 1) / T
    edm                        alpha               sigma_t^(1/rho) evenly spaced from sigma_min to sigma_max

VP levels (Ho et al. 2020, arXiv:2006.11239) come from betas,

    alpha_bar_t = prod_{s <= t} (1 - beta_s),   alpha_t = sqrt(alpha_bar_t),   sigma_t = sqrt(1 - alpha_bar_t)

and their t = 0 is not clean (sigma is 0.029 on the scaled-linear schedule). Flow levels are those of
rectified flow (Liu et al. 2022, arXiv:2209.03003), x = (1 - sigma) x0 + sigma eps. The last one is pure
noise, alpha = 0, because that is what sampling starts from: a table that ended below it would hand the
network pure noise and tell it that it is not. EDM levels are those of Karras et al. 2022 (arXiv:2206.00364,
eq. 5).

`shift` multiplies the ratio of every level. On flow levels this is the shift of Stable Diffusion 3 (Esser et
al. 2024, arXiv:2403.03206, eq. 23), sigma' = s sigma / (1 + (s - 1) sigma); on VP levels it moves log SNR by
-2 log s, as simple diffusion does (Hoogeboom et al. 2023, arXiv:2301.11093, section 2.1).
"""

import math
from dataclasses import dataclass
from typing import Literal, Optional

import torch
from torch import Tensor

from vidpred.diffusion.levels import NoiseLevel
from vidpred.errors import UserError, require

# What to divide a direction (alpha, sigma) by, so that it becomes a level of the family.
NORMS = {"vp": torch.hypot, "flow": torch.add, "edm": lambda alpha, sigma: alpha}
FAMILIES = {"linear": "vp", "scaled_linear": "vp", "cosine": "vp", "flow": "flow", "edm": "edm"}
NOT_RESCALED = {
    "flow": "ends in pure noise by itself",
    "edm": "has alpha = 1 at every level (a larger sigma_max hides more)",
}
SPACINGS = ("trailing", "linspace", "karras")
Spacing = Literal["trailing", "linspace", "karras"]


@dataclass
class ScheduleConfig:
    """The levels that training draws from and that sampling walks down."""

    kind: Literal["linear", "scaled_linear", "cosine", "flow", "edm"] = "linear"
    """linear: betas evenly spaced (DDPM). scaled_linear: their square roots (Stable Diffusion).
    cosine: squared-cosine alpha_bar (Nichol and Dhariwal). flow: alpha = 1 - sigma (rectified flow).
    edm: alpha = 1, sigma from sigma_min to sigma_max. The last three do not use beta_start and beta_end."""
    num_train_timesteps: int = 1000
    """Number of levels T."""
    beta_start: float = 0.0001
    """First beta (Stable Diffusion uses 0.00085 with scaled_linear)."""
    beta_end: float = 0.02
    """Last beta (Stable Diffusion uses 0.012 with scaled_linear)."""
    zero_terminal_snr: bool = False
    """Rescale the betas so that the last level is pure noise (arXiv:2305.08891); not with eps."""
    sigma_min: float = 0.002
    """edm: the smallest sigma."""
    sigma_max: float = 80.0
    """edm: the largest sigma."""
    rho: float = 7.0
    """edm, and karras spacing of any schedule: the larger, the more levels at little noise."""
    shift: float = 1.0
    """Multiplies sigma / alpha of every level; above 1 for large frames, whose neighbouring pixels repeat
    each other and need more noise to be hidden."""

    def __post_init__(self) -> None:
        at = "diffusion.schedule"
        kinds = ", ".join(FAMILIES)
        require(self.kind in FAMILIES, f"{at}.kind: '{self.kind}' is not known; choose one of {kinds}")
        total = self.num_train_timesteps
        require(total >= 2, f"{at}.num_train_timesteps: {total} is too few; use 1000")
        start, end = self.beta_start, self.beta_end
        require(
            0 < start < end < 1,
            f"{at}.beta_start, beta_end: need 0 < beta_start < beta_end < 1, got {start} and {end}",
        )
        require(
            not self.zero_terminal_snr or self.kind not in NOT_RESCALED,
            f"{at}.zero_terminal_snr: kind {self.kind} {NOT_RESCALED.get(self.kind)}; leave it false",
        )
        low, high = self.sigma_min, self.sigma_max
        require(
            0 < low < high < math.inf,
            f"{at}.sigma_min, sigma_max: need 0 < sigma_min < sigma_max, got {low} and {high}",
        )
        require(1 <= self.rho < math.inf, f"{at}.rho: {self.rho} must be 1 or more (7 is usual)")
        require(0 < self.shift < math.inf, f"{at}.shift: {self.shift} must be above 0 (1 does not shift)")


class NoiseSchedule:
    """The table of levels of a `ScheduleConfig`.

    Attributes:
        family: "vp", "flow" or "edm".
        alphas, sigmas: (T,) float64, alpha_t and sigma_t of the module's notation, shifted.
        betas: (T,) float64 of VP levels, bit for bit what diffusers' schedulers hold where nothing is
            shifted; None for the other families.
    """

    def __init__(self, config: ScheduleConfig):
        self.config = config
        self.family = FAMILIES[config.kind]
        self.num_train_timesteps = config.num_train_timesteps
        # A fractional level lies on the chord between its neighbours, taken in this root of sigma: then it is
        # on edm's curve exactly.
        self._root = config.rho if self.family == "edm" else 1.0
        alphas, sigmas, self.betas = _unshifted_table(config)
        roots = torch.stack([alphas, sigmas]) ** (1 / self._root)
        if config.shift != 1:
            alphas, sigmas = self._onto_family(alphas, config.shift * sigmas)
            self.betas = None if self.betas is None else _betas_of(alphas**2)
        self.alphas, self.sigmas = alphas, sigmas
        clean = torch.tensor([[1.0], [0.0], [1.0], [0.0]], dtype=torch.float64)
        table = torch.cat([clean, torch.cat([torch.stack([alphas, sigmas]), roots])], dim=1)
        self._tables = {torch.device("cpu"): table}  # (4, T+1), column t+1

    @property
    def reaches_pure_noise(self) -> bool:
        """Whether the last level has alpha exactly 0."""
        return bool(self.alphas[-1] == 0)

    @property
    def pure_noise_key(self) -> str:
        """The setting by which the schedule reaches pure noise, for messages."""
        return "diffusion.schedule." + ("kind flow" if self.family == "flow" else "zero_terminal_snr")

    @property
    def ratio_range(self) -> tuple[float, float]:
        """sigma / alpha of the first and of the last level; the last is infinite at pure noise."""
        first, last = (self.sigmas / self.alphas)[[0, -1]].tolist()
        return first, last

    def level(self, t: Tensor, dtype: torch.dtype = torch.float32) -> NoiseLevel:
        """The level at timestep t, integer or fractional, in [-1, T-1]; same shape and device as t.

        Integer timesteps give the table's own values; -1 is exactly clean. Between two timesteps
        (alpha, sigma) moves on the chord and is put back on the family's curve: a circle, a line, or
        alpha = 1.
        """
        table = self._table_on(t.device)
        position = t.double() + 1
        below = position.floor().long().clamp(max=self.num_train_timesteps - 1)
        weight = position - below
        alpha, sigma = (table[2:, below] * (1 - weight) + table[2:, below + 1] * weight) ** self._root
        between = self._onto_family(alpha, self.config.shift * sigma)
        nearest = position.round().long()
        on_table = position == nearest
        alpha, sigma = (torch.where(on_table, table[i, nearest], between[i]).to(dtype) for i in range(2))
        return NoiseLevel.from_alpha_sigma(alpha, sigma)

    def at(self, fraction: Tensor, dtype: torch.dtype = torch.float32) -> NoiseLevel:
        """How noisy, as a user says it: 0 is exactly clean, 1 the noisiest level, else t = T fraction - 1.

        fraction: any shape, in [0, 1].
        """
        return self.level(self.num_train_timesteps * fraction.double() - 1, dtype)

    def at_ratio(self, ratio: Tensor, dtype: torch.dtype = torch.float32) -> NoiseLevel:
        """The family's level with this sigma / alpha, finite, of any shape; also outside the table."""
        ratio = ratio.double()
        alpha, sigma = self._onto_family(torch.ones_like(ratio), ratio)
        return NoiseLevel.from_alpha_sigma(alpha.to(dtype), sigma.to(dtype))

    def timesteps(self, num_steps: int, spacing: str = "trailing") -> list[int]:
        """Descending timesteps; the first is always T-1 (arXiv:2305.08891, table 2).

        trailing: T, T - T/S, T - 2T/S, ..., less 1. linspace: evenly from T-1 to 0, both included. A grid
        that starts below T-1 would hand the network pure noise and tell it that it is not.
        """
        total = self.num_train_timesteps
        if not 1 <= num_steps <= total:
            raise UserError(f"sampling.num_inference_steps: {num_steps} is outside 1..{total}")
        if spacing == "trailing":
            return [round(total - i * total / num_steps) - 1 for i in range(num_steps)]
        intervals = max(num_steps - 1, 1)
        return [round((total - 1) * (intervals - i) / intervals) for i in range(num_steps)]

    def path(
        self,
        num_steps: int,
        spacing: str = "trailing",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> NoiseLevel:
        """The way of one unknown frame: (S+1,) levels from the noisiest to clean, for S steps.

        karras: ratio^(1/rho) evenly spaced over the table's range (Karras et al. 2022, eq. 5). UserError
        where the table reaches pure noise, which has no finite ratio.
        """
        require_spacing(self, spacing)
        if spacing != "karras":
            return self.level(torch.tensor([*self.timesteps(num_steps, spacing), -1], device=device), dtype)
        low, high = (ratio ** (1 / self.config.rho) for ratio in self.ratio_range)
        evenly = torch.linspace(1, 0, num_steps, dtype=torch.float64, device=device)
        ratio = (low + evenly * (high - low)) ** self.config.rho
        return self.at_ratio(torch.cat([ratio, ratio.new_zeros(1)]), dtype)

    def sampling_levels(
        self,
        num_steps: int,
        given: Tensor,
        dtype: torch.dtype = torch.float32,
        spacing: str = "trailing",
        context: float = 0.0,
    ) -> NoiseLevel:
        """The grid that a sampler walks down.

        Args:
            num_steps: S.
            given: (B, T) bool, frames that are known.
            spacing: trailing, linspace or karras, see `timesteps` and `path`.
            context: how noisy given frames are kept, as a fraction (`at`); 0 is clean.
        Returns:
            NoiseLevel (S+1, B, T): every unknown frame goes from t = T-1 to clean; given frames stay where
            they are.
        """
        path = self.path(num_steps, spacing, given.device, dtype)
        levels = path[:, None, None].expand(len(path), *given.shape)
        known = self.at(torch.full((1, 1, 1), context, dtype=torch.float64, device=given.device), dtype)
        return NoiseLevel.where(given, known, levels)

    def _onto_family(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The family's level in the direction of (alpha, sigma)."""
        norm = NORMS[self.family](alpha, sigma)
        return alpha / norm, sigma / norm

    def _table_on(self, device: torch.device) -> Tensor:
        # One copy per device: a transfer inside the training step would be a CPU-GPU sync point.
        if device not in self._tables:
            self._tables[device] = self._tables[torch.device("cpu")].to(device)
        return self._tables[device]


def require_spacing(schedule: NoiseSchedule, spacing: str) -> None:
    """Raises UserError where the schedule has no such spacing."""
    if spacing not in SPACINGS:
        raise UserError(f"sampling.spacing: '{spacing}' is not known; choose {', '.join(SPACINGS)}")
    if spacing == "karras" and schedule.reaches_pure_noise:
        raise UserError(
            "sampling.spacing: karras spaces sigma / alpha, which is infinite at pure noise, where "
            f"{schedule.pure_noise_key} ends; use trailing or linspace"
        )


def _unshifted_table(config: ScheduleConfig) -> tuple[Tensor, Tensor, Optional[Tensor]]:
    """alphas, sigmas and (VP) betas, (T,) float64."""
    total = config.num_train_timesteps
    if config.kind == "flow":
        sigmas = torch.arange(1, total + 1, dtype=torch.float64) / total
        return 1 - sigmas, sigmas, None
    if config.kind == "edm":
        low, high = config.sigma_min ** (1 / config.rho), config.sigma_max ** (1 / config.rho)
        sigmas = torch.linspace(low, high, total, dtype=torch.float64) ** config.rho
        return torch.ones_like(sigmas), sigmas, None
    betas = _betas(config)
    # The running product is taken in float32 because diffusers takes it there: a model moves between the two
    # libraries without a change of its levels. From here on alpha^2 + sigma^2 = 1 holds in float64.
    alpha_bar = torch.cumprod(1 - betas, dim=0).double()
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), betas.double()


def _betas(config: ScheduleConfig) -> Tensor:
    """(T,) float32."""
    start, end, total = config.beta_start, config.beta_end, config.num_train_timesteps
    if config.kind == "linear":
        betas = torch.linspace(start, end, total, dtype=torch.float32)
    elif config.kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, total, dtype=torch.float32) ** 2
    else:
        betas = _cosine_betas(total)
    return _rescale_to_zero_terminal_snr(betas) if config.zero_terminal_snr else betas


def _cosine_betas(total: int, max_beta: float = 0.999) -> Tensor:
    """alpha_bar(u) = cos^2((u + 0.008) / 1.008 * pi/2), u = t/T (Nichol and Dhariwal 2021, eq. 17)."""

    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - alpha_bar((t + 1) / total) / alpha_bar(t / total), max_beta) for t in range(total)]
    return torch.tensor(betas, dtype=torch.float32)


def _rescale_to_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shifts and scales sqrt(alpha_bar): the first stays, the last becomes 0 (arXiv:2305.08891, alg. 1)."""
    root = torch.cumprod(1 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    root = (root - last) * (first / (first - last))
    return _betas_of(root**2)


def _betas_of(alpha_bar: Tensor) -> Tensor:
    """The betas whose running product of 1 - beta is alpha_bar."""
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
