"""How well a VAE gives frames back, beside the best linear map of the same rate."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Iterator, Optional

import numpy as np
import torch
from torch import nn

from vidpred import distributed
from vidpred.data import ClipBatch, ClipDataset, evaluation_batches, evenly_spaced_clips, require_half
from vidpred.evaluation import FiguresConfig, protocol, summarize
from vidpred.evaluation.judge import Judge
from vidpred.evaluation.protocol import content_sha256, cutting, precision
from vidpred.evaluation.provenance import device_name, git_state, package_versions, weights_sha256
from vidpred.evaluation.results import cell
from vidpred.evaluation.statistics import Summary, half_width
from vidpred.files import write_json
from vidpred.frame_roles import all_unknown
from vidpred.vae_training.floor import PatchPca
from vidpred.vae_training.losses import kl_divergence
from vidpred.vae_training.reconstruction import reconstruct, to_frames

METRICS = ("psnr", "ssim", "lpips")
HEADINGS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS"}
DECIMALS = {"psnr": 2, "ssim": 4, "lpips": 4}
DEFINITIONS = {
    **{key: protocol.DEFINITIONS[key] for key in ("reduction", "interval", "psnr")},
    "rounding": "uint8 before every metric, reconstructions clamped",
    "model": "the mean of the posterior, decoded; averaged weights",
    "floor": (
        "patches of f x f pixels projected on as many principal components (of patches of training frames) as the "
        "VAE has latent channels: the best linear map of the same rate"
    ),
}


@dataclass
class ClipFigures:
    """`scores[row][metric]` is (T,) float64, one value per frame, of the rows "model" and "floor". `kl` is the mean
    over frames, in nats per latent number. `content` is the SHA-256 of all frames."""

    index: int
    name: str
    content: str
    scores: dict[str, dict[str, np.ndarray]]
    kl: float


@dataclass
class ReconstructionResult:
    """Figures of N clips in clip order; the same on every rank and for every number of ranks."""

    protocol: dict[str, Any]
    run: dict[str, Any]
    clips: list[ClipFigures]
    floor_title: str
    lpips_unavailable: Optional[str] = None
    left_out: list[str] = field(default_factory=list)

    def summary(self, row: str, metric: str) -> Optional[Summary]:
        """Mean, 95 % interval and curve over the frames of a clip; None for what is unavailable."""
        if metric not in self.clips[0].scores[row]:
            return None
        return summarize(np.stack([clip.scores[row][metric] for clip in self.clips]))

    @property
    def gain(self) -> tuple[float, Optional[float]]:
        """PSNR of the VAE minus that of the floor in dB, paired by clip: mean and half of its 95 % interval."""
        pairs = [[clip.scores[row]["psnr"].mean() for row in ("model", "floor")] for clip in self.clips]
        gain = np.subtract(*np.array(pairs).T)
        return float(gain.mean()), half_width(gain)

    @property
    def kl(self) -> float:
        return float(np.mean([clip.kl for clip in self.clips]))

    def scalars(self) -> dict[str, float]:
        """The figures that are logged."""
        found = {f"eval/{metric}": self.summary("model", metric) for metric in METRICS}
        logged = {name: summary.mean for name, summary in found.items() if summary}
        return logged | {"eval/psnr_over_patch_pca": self.gain[0], "eval/kl": self.kl}

    def table(self) -> str:
        """VAE and floor, aligned, and the gain below them."""
        titles = {"model": "VAE", "floor": self.floor_title}
        width = max(map(len, titles.values()))
        lines = [
            f"{len(self.clips)} clips of {self.protocol['dataset']}; mean +- 95 % confidence interval over clips",
            "".join([" " * width, *(f"{HEADINGS[metric]:>20}" for metric in METRICS)]),
        ]
        for row, title in titles.items():
            cells = [cell(self.summary(row, metric), DECIMALS[metric]) for metric in METRICS]
            lines.append("".join([f"{title:<{width}}", *(f"{cell:>20}" for cell in cells)]))
        mean, half = self.gain
        interval = "" if half is None else f" +- {half:.2f}"
        lines.append(f"PSNR over the floor {mean:+.2f}{interval} dB (paired by clip); KL {self.kl:.3f} nats per number")
        if self.left_out:
            lines.append(f"{len(self.left_out)} clips cannot be read and are left out: {'; '.join(self.left_out[:3])}")
        if self.lpips_unavailable:
            lines.append(f"LPIPS unavailable: {self.lpips_unavailable}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain data: `protocol`; `run`; `model` and `floor` with `psnr`, `ssim`, `lpips`, each {"mean", "ci95",
        "per_frame"}; `psnr_over_floor`; `kl`; `clips` with their means and the PSNR of each frame."""
        gain = dict(zip(("mean", "ci95"), self.gain))
        return {
            "protocol": self.protocol,
            "run": self.run,
            "left_out": self.left_out,
            **{row: {metric: self._summary_json(row, metric) for metric in METRICS} for row in ("model", "floor")},
            "psnr_over_floor": gain,
            "kl": self.kl,
            "clips": [_clip_json(clip) for clip in self.clips],
        }

    def _summary_json(self, row: str, metric: str) -> dict[str, Any]:
        summary = self.summary(row, metric)
        if summary is None:
            return {**dict.fromkeys(("mean", "ci95", "per_frame")), "unavailable": self.lpips_unavailable}
        return {("per_frame" if key == "per_horizon" else key): value for key, value in asdict(summary).items()}

    def save(self, path: Path) -> Path:
        """Writes the JSON file, whole or not at all."""
        write_json(path, self.to_json())
        return path


def _clip_json(clip: ClipFigures) -> dict[str, Any]:
    return {
        "index": clip.index,
        "name": clip.name,
        "sha256": clip.content,
        **{row: {metric: float(v.mean()) for metric, v in scores.items()} for row, scores in clip.scores.items()},
        "kl": clip.kl,
        "psnr_per_frame": {row: scores["psnr"].tolist() for row, scores in clip.scores.items()},
    }


def evaluate_reconstruction(
    network: nn.Module,
    dataset: ClipDataset,
    config: FiguresConfig,
    judge: Judge,
    floor: PatchPca,
    *,
    split: str,
    step: int,
    num_workers: int,
    timeout: float,
) -> ReconstructionResult:
    """Figures of `config.num_clips` clips of `dataset`, evenly spaced; every rank must call it.

    Clips that cannot be read are left out and named. Raises UserError where those are more than half.
    """
    numbers = evenly_spaced_clips(dataset, config.num_clips)
    mine = [numbers[i] for i in distributed.shard(len(numbers))]
    batches = evaluation_batches(
        dataset, mine, config.batch_size, all_unknown, num_workers=num_workers, timeout=timeout
    )
    shares = distributed.gather_or_fail(
        lambda: ([each for batch, valid in batches for each in _score(network, batch, valid, judge, floor)],
                 batches.dropped)
    )  # fmt: skip
    clips = sorted((clip for share, _ in shares for clip in share), key=lambda clip: clip.index)
    dropped = {number: line for _, share in shares for number, line in share.items()}
    require_half(len(clips), dropped, dataset)
    device = next(network.parameters()).device
    return ReconstructionResult(
        protocol=_protocol(dataset, split, clips, judge, floor, device),
        run=distributed.broadcast_object(_run(network, step, device) if distributed.is_main() else None),
        clips=clips,
        floor_title=f"PCA of {floor.size}x{floor.size} patches, {len(floor.components)} components",
        lpips_unavailable=judge.lpips_reason,
        left_out=[dropped[number] for number in sorted(dropped)],
    )


def _score(
    network: nn.Module, batch: ClipBatch, valid: torch.Tensor, judge: Judge, floor: PatchPca
) -> Iterator[ClipFigures]:
    device = next(network.parameters()).device
    for row in valid.nonzero().flatten().tolist():
        truth = batch.frames[row].to(device)
        made = reconstruct(network, truth)
        rows = {"model": to_frames(made.images), "floor": floor.reconstruct(batch.frames[row][None])[0].to(device)}
        yield ClipFigures(
            int(batch.draws[row]),
            batch.names[row],
            content_sha256(batch.frames[row].numpy()),
            {name: {k: v[0].numpy() for k, v in judge(frames[None], truth[None]).items()}
             for name, frames in rows.items()},
            float(kl_divergence(made.mean, made.log_variance).double().mean()),
        )  # fmt: skip


def _protocol(
    dataset: ClipDataset, split: str, clips: list[ClipFigures], judge: Judge, floor: PatchPca, device: torch.device
) -> dict[str, Any]:
    contents = "".join(f"{clip.index} {clip.content}\n" for clip in clips)
    described = {key: value for key, value in judge.protocol(1).items() if key != "fvd"}
    return {
        "task": "reconstruction",
        "dataset": dataset.name,
        "split": split,
        "items_in_split": len(dataset),
        **cutting(dataset),
        "clips": len(clips),
        "clips_sha256": hashlib.sha256(contents.encode()).hexdigest(),
        "frames": len(clips[0].scores["model"]["psnr"]),
        "patch_size": floor.size,
        "components": len(floor.components),
        "precision": precision(device),
        **described,
        **DEFINITIONS,
    }


def _run(network: nn.Module, step: int, device: torch.device) -> dict[str, Any]:
    return {
        "step": step,
        "weights_sha256": weights_sha256(network),
        "device": device_name(device),
        "versions": dict(package_versions()),
        "git": git_state(),
    }
