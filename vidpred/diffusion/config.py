"""The configuration section `diffusion`: what is learned. (How it is drawn is `sampling`.)"""

import math
from dataclasses import dataclass, field
from typing import Literal

from vidpred.diffusion.level_distributions import LevelConfig
from vidpred.diffusion.schedules import ScheduleConfig
from vidpred.diffusion.weights import LossWeightConfig
from vidpred.errors import require


@dataclass
class DiffusionConfig:
    """The diffusion process and what the network predicts of it."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The noise levels."""
    parameterization: Literal["eps", "v", "x0", "flow", "edm"] = "v"
    """What the network outputs: the noise, the velocity, the clean latent, the velocity of rectified flow, or
    Karras' mixture of clean latent and noise."""
    residual: bool = True
    """Predict the difference to the nearest given frame, moved or in place, instead of the frame itself; eps is the
    same in both."""
    motion_radius: int = 0
    """Let the network move the given frames first, each position by up to this many latent positions, and predict
    the difference to that; 0: they stay in place. 4 is a good number; time and memory grow with its square
    (2 (2 r + 1)^2 values for each latent position)."""
    sigma_data: float = 1.0
    """Deviation of what the network learns, for edm's mixture and edm's weight: 1 for calibrated latents (0.5 in
    Karras' article on pixels), less for their differences."""
    weight: LossWeightConfig = field(default_factory=LossWeightConfig)
    """How much each level counts in the loss."""
    levels: LevelConfig = field(default_factory=LevelConfig)
    """Which levels training draws."""
    consistency_weight: float = 0.0
    """Weight of an optional loss beside the denoising loss: estimates of a clip from more and from less noise agree. It
    takes one more call of the network in each step; 0: off."""
    diversity_weight: float = 0.0
    """Weight of an optional loss: estimates of two clips are as far apart as the clips. It trades error for contrast;
    0: off, 0.01 is much."""

    def __post_init__(self) -> None:
        for key in ("consistency_weight", "diversity_weight"):
            value = getattr(self, key)
            require(0 <= value < math.inf, f"diffusion.{key}: {value} must be 0 (off) or more")
        radius = f"diffusion.motion_radius: {self.motion_radius}"
        require(self.motion_radius >= 0, f"{radius} is not possible; use 0 (no motion) or more")
        if self.motion_radius:
            require(self.residual, f"{radius} moves what the residual is to; set diffusion.residual to true")
            require(
                self.parameterization != "eps",
                f"{radius} would change nothing: in eps the moved frame cancels; choose another parameterization, "
                "or set it to 0",
            )
