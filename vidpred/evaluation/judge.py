"""The metrics of an evaluation: which there are, why others are not, and what the protocol says of them."""

from typing import Any, Optional

import torch
from torch import Tensor

from vidpred.distributed import all_or_fail, gather_objects, main_first
from vidpred.errors import UserError
from vidpred.evaluation.config import FiguresConfig
from vidpred.evaluation.video_distance import FVD_PROTOCOL, VIEWS
from vidpred.metrics import (
    ENSEMBLE_PROTOCOL,
    SSIM_PROTOCOL,
    Lpips,
    LpipsUnavailable,
    VideoFeatures,
    psnr,
    ssim,
)
from vidpred.metrics.lpips import SMALLEST_FRAME

BEST_OF_N = (
    "of the trajectories of a clip the one with the best {metric}, mean over its frames, for all metrics; "
    "chosen with the truth in hand, so no prediction: `model` is the first trajectory alone"
)


class Judge:
    """`lpips` is None where it is unavailable, and `lpips_reason` says why; `video` is None without FVD.

    Every rank must make one: where one of them has no LPIPS, none has, so that all choose alike.
    """

    def __init__(self, config: FiguresConfig, device: torch.device, fvd_weights: Optional[str] = None):
        self.lpips: Optional[Lpips] = None
        self.lpips_reason: Optional[str] = None
        self.video: Optional[VideoFeatures] = None
        failure: Optional[UserError] = None
        with main_first():  # rank 0 downloads, the others find the file
            try:
                self._load(config, device, fvd_weights)
            except UserError as error:
                failure = error
        all_or_fail(lambda: _raise(failure))
        if reasons := [reason for reason in gather_objects(self.lpips_reason) if reason]:
            self.withdraw_lpips(reasons[0])

    def _load(self, config: FiguresConfig, device: torch.device, fvd_weights: Optional[str]) -> None:
        if fvd_weights:
            self.video = VideoFeatures(fvd_weights, device)
        if config.lpips_net == "none":
            self.lpips_reason = "switched off (evaluation.lpips_net: none)"
            return
        try:
            self.lpips = Lpips(config.lpips_net, config.lpips_weights, device)
        except LpipsUnavailable as reason:
            self.lpips_reason = str(reason)

    def __call__(self, prediction: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """uint8 (B, H, C, h, w) twice -> metric -> (B, H) float64 on the CPU."""
        values = {"psnr": psnr(prediction, truth), "ssim": ssim(prediction, truth)}
        self.fit(*truth.shape[-2:])
        if self.lpips is not None:
            values["lpips"] = self.lpips(prediction, truth)
        return {name: value.cpu() for name, value in values.items()}

    def fit(self, height: int, width: int) -> None:
        """Withdraws LPIPS where frames are too small for it."""
        if self.lpips is not None and min(height, width) < SMALLEST_FRAME:
            self.withdraw_lpips(f"frames are smaller than the {SMALLEST_FRAME} pixels that it needs")

    def withdraw_lpips(self, reason: str) -> None:
        self.lpips, self.lpips_reason = None, reason

    @property
    def choice(self) -> str:
        """The metric that chooses the best of several trajectories. Known once a batch was judged."""
        return "lpips" if self.lpips else "psnr"

    def protocol(self, trajectories: int) -> dict[str, Any]:
        """What the figures are, as plain data."""
        # Why there is no LPIPS differs between machines, and stands beside the figures; versions of packages
        # are in `provenance`, for each implementation is pinned by a test.
        lpips = self.lpips.protocol if self.lpips else {"net": None}
        described: dict[str, Any] = {
            "ssim": {"implementation": SSIM_PROTOCOL},
            "lpips": {key: value for key, value in lpips.items() if key != "package"},
            "fvd": (
                {"definition": FVD_PROTOCOL, "views": VIEWS, **self.video.protocol}
                if self.video
                else {"unavailable": "switched off (evaluation.fvd_weights)"}
            ),
        }
        if trajectories > 1:
            definition = BEST_OF_N.format(metric=self.choice.upper())
            described["best_of_n"] = {"chosen_by": self.choice, "definition": definition}
            described |= ENSEMBLE_PROTOCOL
        return described


def _raise(failure: Optional[UserError]) -> None:
    if failure is not None:
        raise failure
