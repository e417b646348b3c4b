"""The configuration section `diffusion`: what is learned. (How it is drawn is `sampling`.)"""

from dataclasses import dataclass, field
from typing import Literal

from vidpred.diffusion.schedules import ScheduleConfig


@dataclass
class DiffusionConfig:
    """The diffusion process and what the network predicts of it."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The noise levels."""
    parameterization: Literal["eps", "v", "x0"] = "v"
    """What the network outputs: the noise, the velocity or the clean latent."""
    residual: bool = True
    """Predict the difference to the nearest given frame instead of the frame itself."""
