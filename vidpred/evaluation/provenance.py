"""Where a result comes from: whose weights, drawn on what, by which code. It describes a result; two results
that differ in nothing else have the same protocol and compare.
"""

import functools
import hashlib
import platform
import subprocess
import weakref
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Optional

import torch
from torch import nn

import vidpred
from vidpred.evaluation.scoring import Trial

PACKAGES = ("torchvision", "torchmetrics", "lpips", "diffusers", "numpy")
_PACKAGE = Path(vidpred.__file__).resolve().parent
_frozen: "weakref.WeakKeyDictionary[nn.Module, str]" = weakref.WeakKeyDictionary()


def run_of(trial: Trial, checkpoint: Optional[str], chosen: Optional[str]) -> dict[str, Any]:
    """Plain data. `checkpoint` is the path of the weights, `chosen` how it was chosen; None: not known."""
    predictor = trial.predictor
    denoiser, autoencoder = predictor.denoiser, predictor.autoencoder
    return {
        "checkpoint": checkpoint,
        "chosen": chosen,
        "step": trial.step,
        "weights_sha256": weights_sha256(denoiser, predictor.calibration),
        "parameterization": getattr(getattr(denoiser, "parameterization", None), "name", None),
        "residual": getattr(denoiser, "residual", None),
        "motion_radius": getattr(getattr(denoiser, "motion", None), "radius", None),
        "window_frames": predictor.num_frames,
        "autoencoder": getattr(autoencoder, "name", type(autoencoder).__name__),
        "autoencoder_sha256": _frozen_sha256(autoencoder),
        "device": device_name(predictor.device),
        "versions": dict(package_versions()),
        "git": git_state(),
    }


def weights_sha256(*modules: Any) -> str:
    """Of the names, types, shapes and bytes of all tensors, wherever they lie. What is no module has none."""
    digest = hashlib.sha256()
    for module in modules:
        tensors = module.state_dict() if isinstance(module, nn.Module) else {}
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            # As bytes: NumPy has no bfloat16.
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()


def _frozen_sha256(module: nn.Module) -> str:
    """Remembered: an autoencoder may be large, and it never changes."""
    if module not in _frozen:
        _frozen[module] = weights_sha256(module)
    return _frozen[module]


def device_name(device: torch.device) -> str:
    """What it is sold as, where that can be found."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{device.type}: {names[0] if names else platform.machine()}"


@functools.lru_cache(maxsize=None)
def package_versions() -> tuple[tuple[str, Optional[str]], ...]:
    """(name, version) of what figures depend on; None for what is not installed."""
    found: list[tuple[str, Optional[str]]] = [
        ("vidpred", vidpred.__version__),
        ("python", platform.python_version()),
        ("torch", torch.__version__),  # with the build for CUDA, which its metadata lacks
    ]
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            found.append((name, None))
    return tuple(found)


@functools.lru_cache(maxsize=None)
def git_state(package: Path = _PACKAGE) -> Optional[dict[str, Any]]:
    """{"commit", "dirty"} of the checkout that `package` lies at the top of; None where it is in none, and
    where git cannot say. Of the code that is running: what is committed later does not count."""
    root = _git(package, "rev-parse", "--show-toplevel")
    # An installed package may lie inside somebody else's repository.
    if root is None or Path(root).resolve() != package.parent:
        return None
    commit, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", "-uno")
    return None if commit is None or changes is None else {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> Optional[str]:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, no repository, or one of somebody else
        return None
    return done.stdout.strip()
