"""The configuration section `conditioning`."""

from dataclasses import dataclass
from typing import Dict, Literal, Optional, Union, get_args

from vidpred.errors import UserError

SCHEMES = ("prediction", "random", "unconditional", "diffusion_forcing")

TaskName = Literal["prediction", "interpolation", "infilling", "unconditional"]
"""What a model is asked to do, by the frames that it is given: the first few, both ends, any half, none."""

TASKS: tuple[str, ...] = get_args(TaskName)


@dataclass
class ConditioningConfig:
    """Which frames of a training clip are given, and how clean they are."""

    scheme: Union[str, Dict[str, float]] = "prediction"
    """prediction: the first frames are given. random: any frames (prediction, interpolation, infilling).
    unconditional: none. diffusion_forcing: the first few or none, each other frame at a noise level of its own.
    Or several with their probabilities, such as {prediction: 0.5, random: 0.5}."""
    context_frames: int = 4
    """Number of first frames that are given; 0: none, as for images."""
    min_context_frames: Optional[int] = None
    """Where set, the number of given frames varies from clip to clip, from this one to context_frames."""
    history_dropout: float = 0.0
    """Probability that a training clip's given frames are all hidden; 0.1 makes guidance possible."""
    context_noise: float = 0.0
    """Given frames of training clips are noised by up to this fraction of the noise schedule (0 clean, 1 pure
    noise), and the network is told; then predictions can be stabilised by sampling.context_noise."""

    def __post_init__(self) -> None:
        if self.context_frames < 0:
            raise UserError(f"conditioning.context_frames: {self.context_frames} must be 0 (none is given) or more")
        fewest = self.min_context_frames
        if fewest is not None and not 0 <= fewest <= self.context_frames:
            raise UserError(
                f"conditioning.min_context_frames: {fewest} must be from 0 to context_frames ({self.context_frames})"
            )
        for key in ("history_dropout", "context_noise"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"conditioning.{key}: {getattr(self, key)} must be in [0, 1] (0.1 is usual)")
        self.mixture()

    def mixture(self) -> dict[str, float]:
        """Scheme -> probability; they add up to 1. Raises UserError."""
        mixture = {self.scheme: 1.0} if isinstance(self.scheme, str) else dict(self.scheme)
        unknown = [name for name in mixture if name not in SCHEMES]
        if unknown:
            raise UserError(f"conditioning.scheme: '{unknown[0]}' is not known; choose {', '.join(SCHEMES)}")
        if not mixture or min(mixture.values()) < 0 or abs(sum(mixture.values()) - 1) > 1e-6:
            raise UserError(
                f"conditioning.scheme: the probabilities {mixture} must be 0 or more and add up to 1"
            )
        return mixture
