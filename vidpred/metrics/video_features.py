"""Features of whole clips for the Fréchet video distance (FVD, Unterthiner et al. 2018), by an I3D.

Two kinds of weights are accepted. safetensors holds tensors and nothing else. TorchScript is a program: it is
run only where its checksum is that of the one file that most published FVDs are computed with (StyleGAN-V's).
Nothing is unpickled.
"""

import hashlib
import warnings
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from vidpred.downloads import reachable
from vidpred.errors import UserError
from vidpred.metrics.i3d import FRAME_SIZE, I3D, SHORTEST_CLIP
from vidpred.tensor_ops import check_clip, to_float

DOWNLOAD = "download"
TORCHSCRIPT_URL = "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1"
TORCHSCRIPT_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
_KEY = "evaluation.fvd_weights"


class VideoFeatures:
    """Clips -> features; `weights` is the path of a file, or "download".

    "download" is StyleGAN-V's TorchScript file in $TORCH_HOME/hub/checkpoints, fetched where it is missing.
    `protocol` names the file, its checksum and what is done to frames. UserError where it cannot be had or is
    another file than it must be.
    """

    def __init__(self, weights: str, device: str | torch.device = "cpu"):
        path = find_weights(weights)
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        self.device = torch.device(device)
        self._network = _load(path, checksum, self.device)
        self.protocol: dict[str, Any] = {
            "network": "I3D, trained on Kinetics-400: logits before the softmax, mean over time",
            "weights": path.name,
            "weights_sha256": checksum,
            "frames": (
                f"rounded to uint8, resized to {FRAME_SIZE}x{FRAME_SIZE} bilinearly (no corner alignment, no "
                "antialiasing), in [-1, 1]; clips as they are, neither repeated nor cut"
            ),
        }

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        """uint8 (B, T, 3, H, W), T >= 9 -> (B, D) float32 on the CPU.

        One clip after the other: memory does not grow with the batch, and a clip's features do not depend on
        who shares its batch.
        """
        check_clip("clips", clips)
        if clips.shape[1] < SHORTEST_CLIP:
            raise ValueError(f"I3D needs clips of {SHORTEST_CLIP} frames or more, got {clips.shape[1]}")
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.cat([self._network(self._prepared(clip))[:1].float().cpu() for clip in clips])

    def _prepared(self, clip: Tensor) -> Tensor:
        """uint8 (T, 3, H, W) -> (1, 3, T, 224, 224) in [-1, 1]."""
        frames = to_float(clip.to(self.device)) * 2 - 1
        size = (FRAME_SIZE, FRAME_SIZE)
        return functional.interpolate(frames, size, mode="bilinear", align_corners=False).movedim(0, 1)[None]


def find_weights(weights: str) -> Path:
    """The file; downloaded where `weights` asks for it. UserError where there is none."""
    if weights != DOWNLOAD:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise UserError(f"{_KEY}: no file {weights}; give the path of an I3D, or {DOWNLOAD}")
        return path
    path = Path(torch.hub.get_dir()) / "checkpoints" / "i3d_torchscript.pt"
    if path.is_file():
        return path
    if not reachable(TORCHSCRIPT_URL):
        raise UserError(f"{_KEY}: no file {path} and no network to download it; give the path of one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            TORCHSCRIPT_URL, str(path), hash_prefix=TORCHSCRIPT_SHA256, progress=False
        )
    except (OSError, RuntimeError) as error:  # no space, connection lost, wrong checksum
        raise UserError(f"{_KEY}: the download of {TORCHSCRIPT_URL} failed: {error}; give a path") from error
    return path


def _load(path: Path, checksum: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """(1, 3, T, 224, 224) in [-1, 1] -> (1, D)."""
    if path.suffix == ".safetensors":
        return _from_safetensors(path).to(device)
    if checksum != TORCHSCRIPT_SHA256:
        raise UserError(
            f"{_KEY}: {path} has the checksum {checksum[:12]}..., and of files that are not safetensors only "
            f"i3d_torchscript.pt with {TORCHSCRIPT_SHA256[:12]}... is run; convert the weights to safetensors"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that TorchScript is deprecated
        network = torch.jit.load(str(path), map_location=device).eval()
    # Frames come resized and in [-1, 1]; it would do the same to frames in [0, 255].
    return lambda clips: network(clips, rescale=False, resize=False, return_features=True)


def _from_safetensors(path: Path) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with torch.device("meta"):
        network = I3D()
    try:
        saved = load_file(path)
        # BatchNorm's count of training steps is in some files and not in others; nothing here reads it.
        counts = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("_tracked")}
        network.load_state_dict({**counts, **saved}, strict=True, assign=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{_KEY}: {path} does not hold the tensors of an I3D with 400 classes ({reason}); convert one "
            "with the usual PyTorch names, such as Mixed_3b.b0.conv3d.weight"
        ) from error
    if not all(value.isfinite().all() for value in network.state_dict().values()):
        raise UserError(f"{_KEY}: {path} holds values that are not finite; get the file again")
    return network.float().requires_grad_(False).eval()
