"""The named lines that a prediction writes: what was clipped, and the ranges on the way to pixels."""

from typing import Optional

from torch import Tensor

from vidpred.diffusion import Callback, StepReport

MANY = 0.05  # of all values of the clean estimates
ALMOST_NONE = 1e-4


class ClipCount:
    """A sampler callback that counts clipped values. On the device; only `total` and `rate` wait for it."""

    def __init__(self) -> None:
        self._clipped: Tensor | float = 0.0
        self._values: Tensor | float = 0.0

    def __call__(self, report: StepReport) -> None:
        values = report.moving.sum() * report.x[0, 0].numel()
        self._values = self._values + values
        self._clipped = self._clipped + report.clip_rate.double() * values

    @property
    def total(self) -> int:
        """Clipped values over all steps and unknown frames."""
        return round(float(self._clipped))

    @property
    def rate(self) -> float:
        """The same as a fraction of all values, 0 to 1."""
        return float(self._clipped) / max(float(self._values), 1.0)


def in_turn(first: Optional[Callback], second: Optional[Callback]) -> Optional[Callback]:
    """Both callbacks as one; None where there is none."""
    callbacks = [callback for callback in (first, second) if callback is not None]
    if not callbacks:
        return None

    def call(report: StepReport) -> None:
        for callback in callbacks:
            callback(report)

    return call


def clip_advice(rate: float) -> str:
    """What to do about a clip rate (a fraction of all values, 0 to 1)."""
    if rate > MANY:
        return "many values clipped: lower the learning rate, clip gradients, check the normalisation"
    if rate < ALMOST_NONE:
        return "almost none clipped: keep the bound (a static one may widen to 4)"
    return "some values clipped: as it should be"


def range_line(name: str, values: Tensor) -> str:
    """`name: [min, max]`."""
    return f"{name}: [{float(values.min()):.4f}, {float(values.max()):.4f}]"


def prediction_lines(
    count: ClipCount, num_inference_steps: int, latents: Tensor, raw: Tensor, frame_range: Tensor
) -> list[str]:
    """The lines of one prediction.

    Args:
        latents: the predicted latents in calibrated units; raw: the same in the autoencoder's.
        frame_range: any tensor with the minimum and maximum of the decoded frames before clamping.
    """
    return [
        f"num_inference_steps={num_inference_steps}",
        f"clipped={count.total} values ({100 * count.rate:.3f} %; {clip_advice(count.rate)})",
        range_line("Final latents range", latents),
        f"{range_line('Denormalized', raw)} mean {float(raw.mean()):.4f} std {float(raw.std()):.4f}",
        range_line("Predicted frames range", frame_range),
    ]
