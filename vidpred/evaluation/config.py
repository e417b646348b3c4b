"""The configuration section `evaluation`."""

import dataclasses
from dataclasses import dataclass
from typing import Literal, Optional

from vidpred.conditioning import TASKS, TaskName
from vidpred.data import ClipConfig
from vidpred.errors import UserError


@dataclass
class FiguresConfig:
    """What every evaluation has, whatever the model is for."""

    num_clips: int = 64
    """Clips to evaluate, evenly spaced over the split: of a split with fewer items (videos) several windows
    each, without common frames, as far as there are any."""

    batch_size: int = 8
    """Clips that each process works on at once; changes speed and memory only."""

    lpips_net: Literal["squeeze", "alex", "vgg", "none"] = "squeeze"
    """Backbone of LPIPS; its weights are a file in $TORCH_HOME/hub/checkpoints, or are downloaded there. none
    leaves LPIPS out."""

    lpips_weights: Optional[str] = None
    """Path of the backbone's weights (torchvision's file), where it is not in $TORCH_HOME."""

    def __post_init__(self) -> None:
        self._require_least("num_clips", 1)
        self._require_least("batch_size", 1)

    def _require_least(self, key: str, least: int) -> None:
        value = getattr(self, key)
        if value < least:
            raise UserError(f"evaluation.{key}: {value} is less than {least}; give a larger one")


@dataclass
class EvaluationConfig(FiguresConfig):
    """What is measured, on how many clips."""

    task: TaskName = "prediction"
    """prediction: the first conditioning.context_frames are given. interpolation: the first and the last
    frame. infilling: a random half of them. unconditional: none."""

    num_frames: Optional[int] = None
    """prediction: frames of an evaluated clip, given ones too; what is beyond one window of training is predicted
    window after window, as in a rollout. null: data.num_frames."""

    fvd_weights: Optional[str] = None
    """An I3D for the FVD: path of a safetensors file or of StyleGAN-V's i3d_torchscript.pt, or download. No
    FVD without it."""

    skip_bad: bool = False
    """Leave out clips that cannot be read or scored, and count and name them in the result. false: they end
    the evaluation (but never the training, which logs the reason and goes on without the figures)."""

    num_panels: int = 4
    """Clips whose context, truth and prediction are kept for pictures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_least("num_panels", 0)
        if self.task not in TASKS:
            raise UserError(f"evaluation.task: '{self.task}' is not known; choose {', '.join(TASKS)}")
        if self.num_frames is not None and self.task != "prediction":
            raise UserError(
                f"evaluation.num_frames: {self.num_frames} is of prediction alone, {self.task} fills one window; "
                "leave it null (--frames out), or set task to prediction"
            )

    def clip_config(self, data: ClipConfig) -> ClipConfig:
        """`data` with the number of frames of an evaluated clip; items that are too short for it are left out."""
        if self.num_frames is None:
            return data
        lenient = {"max_bad_fraction": 1.0} if hasattr(data, "max_bad_fraction") else {}
        return dataclasses.replace(data, num_frames=self.num_frames, **lenient)
