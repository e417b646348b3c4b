"""LPIPS (Zhang et al. 2018), by the `lpips` package, with real weights or not at all.

Two files make one LPIPS: an ImageNet backbone (torchvision's file, hundreds of MB for alex and vgg) and the
linear heads that the package brings along. Both are loaded strictly here: the package itself loads heads
with `strict=False`, under which a wrong file gives wrong scores without a word.
"""

import hashlib
import re
import warnings
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor, nn

from vidpred.downloads import reachable
from vidpred.errors import UserError
from vidpred.metrics.checks import check_pair
from vidpred.tensor_ops import fold_frames, to_float, unfold_frames

BACKBONES = {
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "squeeze": "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
}
"""torchvision's backbone of each net; the last part is its name in $TORCH_HOME/hub/checkpoints."""

SMALLEST_FRAME = 32
"""Below this size the deepest layers of the backbones have nothing left to look at."""

_FRAMES_AT_ONCE = 32


class LpipsUnavailable(Exception):
    """LPIPS cannot be measured here, and why; figures go on without it."""


class Lpips:
    """Perceptual distance of frames; 0 for equal ones, larger is worse.

    `net` is alex, squeeze or vgg; `weights` the path of a backbone file (torchvision's state dict). Without
    `weights` the backbone is the file in `$TORCH_HOME/hub/checkpoints`, or else downloaded there when the
    server answers. Raises `LpipsUnavailable` where there is none, `UserError` where `weights` is wrong.
    `protocol` names net, version and the backbone file, with the checksums of backbone and heads.
    """

    def __init__(
        self, net: str = "squeeze", weights: Optional[str] = None, device: str | torch.device = "cpu"
    ):
        if net not in BACKBONES:
            raise UserError(f"evaluation.lpips_net: '{net}' is unknown; choose one of {', '.join(BACKBONES)}")
        try:
            backbone = find_backbone(net, weights)
            model = _assemble(net, backbone)
        except (OSError, RuntimeError, KeyError, ValueError, ImportError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if weights is not None:
                raise UserError(
                    f"evaluation.lpips_weights: {weights} is not a {net} backbone of torchvision ({reason}); "
                    f"give {Path(BACKBONES[net]).name} or leave it out"
                ) from error
            raise LpipsUnavailable(reason) from error
        self.net = net
        self.device = torch.device(device)
        self._model = model.to(self.device)
        self.protocol = {
            "net": net,
            "version": "0.1",
            "package": f"lpips {_package_version()}",
            "backbone": backbone.name,
            "backbone_sha256": hashlib.sha256(backbone.read_bytes()).hexdigest(),
            "heads_sha256": hashlib.sha256(_heads(net).read_bytes()).hexdigest(),
            "input_range": [-1, 1],
        }

    @torch.no_grad()
    def __call__(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """uint8 frames (B, T, 3, H, W), at least 32x32 -> distance (B, T) float64, each frame by itself."""
        check_pair(prediction, truth)
        if min(truth.shape[-2:]) < SMALLEST_FRAME:
            size = "x".join(map(str, truth.shape[-2:]))
            raise ValueError(f"LPIPS needs frames of {SMALLEST_FRAME} pixels or more, got {size}")
        pairs = zip(fold_frames(prediction).split(_FRAMES_AT_ONCE), fold_frames(truth).split(_FRAMES_AT_ONCE))
        values = [self.distance(self._range(left), self._range(right)) for left, right in pairs]
        return unfold_frames(torch.cat(values).double(), truth.shape[0])

    def distance(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """float32 images (N, 3, H, W) in [-1, 1], at least 32x32 -> distance (N,), with gradient: a training loss."""
        return self._model(prediction, truth).flatten()

    def _range(self, frames: Tensor) -> Tensor:
        return to_float(frames.to(self.device)) * 2 - 1  # LPIPS wants [-1, 1]; [0, 1] gives other numbers


def find_backbone(net: str, weights: Optional[str] = None) -> Path:
    """The backbone file: `weights`, or the one in torch's hub folder, downloaded when the server answers."""
    if weights is not None:
        if not Path(weights).expanduser().is_file():
            raise UserError(f"evaluation.lpips_weights: no file {weights}; give the path of a {net} backbone")
        return Path(weights).expanduser()
    url = BACKBONES[net]
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if path.is_file():
        return path
    if not reachable(url):
        raise LpipsUnavailable(f"no backbone at {path} and no network to download it (TORCH_HOME)")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = re.search(r"-([0-9a-f]{8})\.pth$", path.name).group(1)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
    except (OSError, RuntimeError) as error:  # no space, connection lost, wrong checksum
        raise LpipsUnavailable(f"the download of {url} failed: {error}") from error
    return path


def _assemble(net: str, backbone: Path) -> nn.Module:
    """lpips.LPIPS with every tensor taken from a file; KeyError or RuntimeError where one is missing."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package uses torchvision's old spelling of `weights=None`
        # Random values, all of which are replaced below; this way the package downloads nothing.
        model = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    tensors = {f"net.{name}": value for name, value in _backbone_tensors(model.net, backbone).items()}
    for name, value in _load(_heads(net)).items():  # lin0.model.1.weight
        # The model registers its heads twice, as `lin0` and in the list `lins`.
        tensors[name] = tensors[name.replace("lin", "lins.", 1)] = value
    buffers = {f"scaling_layer.{name}": value for name, value in model.scaling_layer.state_dict().items()}
    model.load_state_dict({**buffers, **tensors}, strict=True)
    return model.requires_grad_(False).eval()


def _heads(net: str) -> Path:
    """The linear heads, which the package brings along."""
    import lpips

    return Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"


def _backbone_tensors(slices: nn.Module, backbone: Path) -> dict[str, Tensor]:
    """lpips cuts torchvision's `features` into slices: slice3.7.weight is features.7.weight."""
    saved = _load(backbone)
    return {name: saved[re.sub(r"^slice\d+\.", "features.", name)] for name in slices.state_dict()}


def _load(path: Path) -> dict[str, Any]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything from EOFError to UnpicklingError
        raise RuntimeError(f"{path} cannot be read: {(str(error).splitlines() or [''])[0][:120]}") from error
    if not isinstance(loaded, dict):
        raise RuntimeError(f"{path} holds a {type(loaded).__name__}, not a state dict")
    return loaded


def _package_version() -> str:
    from importlib.metadata import version

    return version("lpips")
