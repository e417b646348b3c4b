"""Noise schedules: discrete variance-preserving (VP) levels from a table of betas.

Notation (Ho et al. 2020, arXiv:2006.11239): t = 0 .. T-1 are the training timesteps,

    alpha_bar_t = prod_{s <= t} (1 - beta_s),   alpha_t = sqrt(alpha_bar_t),   sigma_t = sqrt(1 - alpha_bar_t)

t = 0 is not clean (sigma is 0.029 on the scaled-linear schedule); clean is t = -1, which this table has too.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vidpred.diffusion.levels import NoiseLevel
from vidpred.errors import UserError


@dataclass
class ScheduleConfig:
    """The levels that training draws from and that sampling walks down."""

    kind: Literal["linear", "scaled_linear", "cosine"] = "linear"
    """linear: betas evenly spaced (DDPM). scaled_linear: their square roots (Stable Diffusion).
    cosine: squared-cosine alpha_bar (Nichol and Dhariwal), beta_start and beta_end unused."""
    num_train_timesteps: int = 1000
    """Number of levels T."""
    beta_start: float = 0.0001
    """First beta (Stable Diffusion uses 0.00085 with scaled_linear)."""
    beta_end: float = 0.02
    """Last beta (Stable Diffusion uses 0.012 with scaled_linear)."""
    zero_terminal_snr: bool = False
    """Rescale the betas so that the last level is pure noise (arXiv:2305.08891); not with eps."""

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "scaled_linear", "cosine"):
            raise UserError(
                f"diffusion.schedule.kind: '{self.kind}' is not known; choose linear, scaled_linear or cosine"
            )
        if self.num_train_timesteps < 2:
            raise UserError(
                f"diffusion.schedule.num_train_timesteps: {self.num_train_timesteps} is too few; use 1000"
            )
        if not 0 < self.beta_start < self.beta_end < 1:
            raise UserError(
                f"diffusion.schedule.beta_start, beta_end: need 0 < beta_start < beta_end < 1, "
                f"got {self.beta_start} and {self.beta_end}"
            )


class NoiseSchedule:
    """The table of levels of a `ScheduleConfig`.

    Attributes:
        betas: (T,) float64, bit for bit what diffusers' schedulers hold.
        alphas, sigmas: (T,) float64, alpha_t and sigma_t of the module's notation.
    """

    def __init__(self, config: ScheduleConfig):
        betas = _betas(config)
        # The running product is taken in float32 because diffusers takes it there: a model moves between the
        # two libraries without a change of its levels. From here on alpha^2 + sigma^2 = 1 holds in float64.
        alpha_bar = torch.cumprod(1 - betas, dim=0).double()
        self.config = config
        self.num_train_timesteps = config.num_train_timesteps
        self.betas = betas.double()
        self.alphas = alpha_bar.sqrt()
        self.sigmas = (1 - alpha_bar).sqrt()
        clean = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
        table = torch.cat([clean, torch.stack([self.alphas, self.sigmas])], dim=1)  # (2, T+1), column t+1
        self._tables = {torch.device("cpu"): table}

    @property
    def reaches_pure_noise(self) -> bool:
        """Whether the last level has alpha exactly 0."""
        return bool(self.alphas[-1] == 0)

    def level(self, t: Tensor, dtype: torch.dtype = torch.float32) -> NoiseLevel:
        """The level at timestep t, integer or fractional, in [-1, T-1]; same shape and device as t.

        Between two timesteps (alpha, sigma) moves on the chord and is put back on the unit circle, so a
        fractional level is VP too. Integer timesteps give the table's own values; -1 is exactly clean.
        """
        table = self._table_on(t.device)
        position = t.double() + 1
        below = position.floor().long().clamp(max=self.num_train_timesteps - 1)
        weight = position - below
        alpha, sigma = table[:, below] * (1 - weight) + table[:, below + 1] * weight
        norm = torch.where((weight > 0) & (weight < 1), torch.hypot(alpha, sigma), torch.ones_like(alpha))
        return NoiseLevel.from_alpha_sigma((alpha / norm).to(dtype), (sigma / norm).to(dtype))

    def timesteps(self, num_steps: int) -> list[int]:
        """Descending timesteps, "trailing" spacing: the first is always T-1 (arXiv:2305.08891, table 2).

        A grid that starts below T-1 would hand the network pure noise and tell it that it is not.
        """
        total = self.num_train_timesteps
        if not 1 <= num_steps <= total:
            raise UserError(f"sampling.num_inference_steps: {num_steps} is outside 1..{total}")
        return [round(total - i * total / num_steps) - 1 for i in range(num_steps)]

    def sampling_levels(
        self, num_steps: int, given: Tensor, dtype: torch.dtype = torch.float32
    ) -> NoiseLevel:
        """The grid that a sampler walks down.

        Args:
            num_steps: S, the number of network calls.
            given: (B, T) bool, frames that are known.
        Returns:
            NoiseLevel (S+1, B, T): every unknown frame goes from t = T-1 to clean; given frames are clean
            throughout.
        """
        t = torch.tensor(self.timesteps(num_steps) + [-1], device=given.device)
        levels = self.level(t[:, None, None], dtype).expand(len(t), *given.shape)
        clean = NoiseLevel.clean((1, 1, 1), given.device, dtype)
        return NoiseLevel.where(given, clean, levels)

    def _table_on(self, device: torch.device) -> Tensor:
        # One copy per device: a transfer inside the training step would be a CPU-GPU sync point.
        if device not in self._tables:
            self._tables[device] = self._tables[torch.device("cpu")].to(device)
        return self._tables[device]


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
    alpha_bar = root**2
    alphas = torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return 1 - alphas
