"""The configuration section `diffusion`: what is learned. (How it is drawn is `sampling`.)"""

from dataclasses import dataclass, field
from typing import Literal

from vidpred.diffusion.level_distributions import LevelConfig
from vidpred.diffusion.schedules import ScheduleConfig
from vidpred.diffusion.weights import LossWeightConfig


@dataclass
class DiffusionConfig:
    """The diffusion process and what the network predicts of it."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The noise levels."""
    parameterization: Literal["eps", "v", "x0", "flow", "edm"] = "v"
    """What the network outputs: the noise, the velocity, the clean latent, the velocity of rectified flow, or
    Karras' mixture of clean latent and noise."""
    residual: bool = True
    """Predict the difference to the nearest given frame instead of the frame itself."""
    sigma_data: float = 1.0
    """Deviation of what the network learns, for the scale of its input, edm's mixture and edm's weight: 1 for
    calibrated latents (0.5 in Karras' article on pixels), less for their differences."""
    weight: LossWeightConfig = field(default_factory=LossWeightConfig)
    """How much each level counts in the loss."""
    levels: LevelConfig = field(default_factory=LevelConfig)
    """Which levels training draws."""
