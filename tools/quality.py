"""Networks trained for the same time, in the same loop, on the quickstart's clips; for `tools/benchmark.py`.

Each run has the quickstart's data, batch size, autoencoder, objective and sampler; what differs is the network,
and whether it predicts the frame itself or the residual to given frames that it moves, as the quickstart does. The
peer is conditioned as Stable Video Diffusion is, which has no residual; one more run of it, at its best rate, has,
motion and all. All predict x0, so their validation losses are errors of the same thing. Every network is tuned over
the same learning rates, in equal time and, in a last series of this project's network, in the peer's number of steps.

Time is that of the steps: a wait for the data, or for the validation, is not counted.
"""

import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vidpred.assembly import calibrate
from vidpred.autoencoders import build_autoencoder
from vidpred.conditioning import prediction_roles
from vidpred.configuration import Config, load_config
from vidpred.data import ClipDataset, build_dataset, evaluation_batches, evenly_spaced_clips, training_loader
from vidpred.denoiser import Denoiser
from vidpred.diffusion import MotionCompensation, NoiseLevel, NoiseSchedule, build_parameterization
from vidpred.errors import UserError
from vidpred.evaluation import EvaluationConfig, evaluate, summarize
from vidpred.frame_roles import FrameRoles
from vidpred.prediction import LatentCalibration, Predictor
from vidpred.random_streams import normal, uniform
from vidpred.training.ema import Ema
from vidpred.training.optimization import LearningRate, Optimization
from vidpred.training.preparation import Autocast

QUICKSTART = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
SCHEDULE_UNITS = 10_000  # the learning rate is a function of the part of the run that is done
WARMUP = 1 / 8  # of the run
VALIDATE_EVERY = 20  # steps
STRATA = 4  # levels at which each validation clip is denoised at the end
PRECISION_ROUNDS = 5

Builder = Callable[[int, int], nn.Module]
"""channels of the latents, channels of the output -> network."""


@dataclass
class Scene:
    """What all runs share."""

    config: Config
    train: ClipDataset
    val: ClipDataset
    calibration: LatentCalibration
    autoencoder: nn.Module
    schedule: NoiseSchedule
    device: torch.device

    @staticmethod
    def open(device: torch.device, overrides: Sequence[str]) -> "Scene":
        # Without fresh noise at each step: one source of chance less between the networks.
        config = load_config(["--sampling.sampler=ddim", *overrides], default_file=QUICKSTART)
        autoencoder = build_autoencoder(config.autoencoder).to(device)
        train, val = (build_dataset(config.data, split, config.seed) for split in ("train", "val"))
        calibration = calibrate(config, train, autoencoder, device)
        return Scene(config, train, val, calibration, autoencoder, NoiseSchedule(config.diffusion.schedule), device)

    @property
    def roles(self) -> FrameRoles:
        return prediction_roles(self.config.conditioning.context_frames)

    def motion(self, residual: bool) -> MotionCompensation:
        """What moves the given frames; nothing without the residual."""
        return MotionCompensation(self.config.diffusion.motion_radius if residual else 0)

    def build(self, build: Builder, residual: bool) -> nn.Module:
        channels = self.autoencoder.latent_channels
        return build(channels, channels + self.motion(residual).channels).to(self.device)

    def predictor(self, network: nn.Module, residual: bool) -> Predictor:
        diffusion = self.config.diffusion
        parameterization = build_parameterization(diffusion.parameterization, self.schedule, diffusion.sigma_data)
        return Predictor(
            Denoiser(network, parameterization, residual, motion=self.motion(residual)),
            self.autoencoder, self.calibration, self.schedule,
            self.config.sampling, self.config.conditioning.context_frames, self.config.data.num_frames,
        )

    def losses(self, denoiser: Denoiser, batch: Any, purpose: str, u: Tensor | None = None) -> Tensor:
        """(B,): the denoiser's loss at levels u (B, 1) in [0, 1), or drawn ones, and noise that belong to the draws."""
        latents = self.calibration.normalize(self.autoencoder.encode(batch.frames))
        if u is None:
            u = uniform(self.config.seed, f"{purpose} level", batch.draws, (1,), self.device)
        level = self.schedule.level((u * self.schedule.num_train_timesteps).long())
        level = NoiseLevel.where(batch.given, NoiseLevel.clean((1, 1), self.device), level)
        noise = normal(self.config.seed, f"{purpose} noise", batch.draws, tuple(latents.shape[1:]), self.device)
        return denoiser.loss(latents, noise, level, batch.given, batch.frame_times).per_clip


@dataclass
class Run:
    """One network's training: seconds spent in steps, and the validation loss along the way."""

    steps: int = 0
    seconds: float = 0.0
    validation: dict[int, float] = field(default_factory=dict)


Progress = Callable[[Run], float]
"""The part of a run that is done: the learning rate's clock; 1 ends the run."""


def for_minutes(minutes: float) -> Progress:
    return lambda run: run.seconds / (60 * minutes)


def for_steps(steps: int) -> Progress:
    return lambda run: run.steps / steps


def compare_quality(
    builders: dict[str, Builder],
    device: torch.device,
    minutes: float,
    rates: list[float],
    report: Callable[[dict], None],
    overrides: Sequence[str] = (),
) -> dict:
    """Every run beside the floor, and this project's best beside the peer's, paired by clip.

    `report` receives all that is known after each run: a series of them takes long, and may be interrupted.
    `overrides` change the quickstart's configuration.
    """
    scene = Scene.open(device, overrides)
    runs: dict[str, dict] = {}

    def series(name: str, build: Builder, residual: bool, progress: Progress, tried: list[float]) -> str:
        """Trains at each of the rates; the name of the run with the best PSNR."""
        named = {f"{name}, rate {rate:g}": rate for rate in tried}
        for run_name, rate in named.items():
            try:
                runs[run_name] = train_and_score(scene, build, residual, rate, progress)
            except UserError as error:  # a rate at which the network diverges: its predictions are not finite
                runs[run_name] = {"learning_rate": rate, "failed": str(error)}
            report({"minutes_each": minutes, "runs": _printable(runs)})
        scored = [run_name for run_name in named if "failed" not in runs[run_name]]
        if not scored:
            raise UserError(f"--rates: {name} cannot be trained at any of them ({runs[run_name]['failed']})")
        return max(scored, key=lambda run_name: runs[run_name]["psnr"])

    for residual in (True, False):
        zero = scene.build(ZeroNetwork, residual)
        runs["zero, residual" if residual else "zero"] = score(scene, zero, residual, None)
    own, peer = builders["vidpred"], builders["svd"]
    ours = series("vidpred", own, True, for_minutes(minutes), rates)
    best = series("svd", peer, False, for_minutes(minutes), rates)
    residual = series("svd, residual", peer, True, for_minutes(minutes), [runs[best]["learning_rate"]])
    steps = runs[best]["steps"]
    short = series(f"vidpred for {steps} steps", own, True, for_steps(steps), rates)
    pairs = {"equal time": (ours, best), "equal time, residual": (ours, residual), "equal steps": (short, best)}
    return {
        "minutes_each": minutes,
        "runs": _printable(runs),
        "comparisons": {name: _compare(runs, *pair) for name, pair in pairs.items()},
    }


def _compare(runs: dict[str, dict], own: str, peer: str) -> dict:
    gain = summarize(runs[own]["psnr_by_clip"] - runs[peer]["psnr_by_clip"])
    loss = summarize(runs[own]["loss_by_clip"] / runs[peer]["loss_by_clip"])
    return {
        "vidpred": own,
        "peer": peer,
        "psnr_gain": {"mean": gain.mean, "ci95": gain.ci95},
        "validation_loss_ratio": {"mean": loss.mean, "ci95": loss.ci95},
    }


def _printable(runs: dict[str, dict]) -> dict[str, dict]:
    return {name: {key: v for key, v in run.items() if not key.endswith("_by_clip")} for name, run in runs.items()}


class ZeroNetwork(nn.Module):
    """Returns zeros, as a new network of this project does: what is reached without learning."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.out_channels = out_channels

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        return x.new_zeros(*x.shape[:2], self.out_channels, *x.shape[3:])


def train_and_score(scene: Scene, build: Builder, residual: bool, rate: float, progress: Progress) -> dict:
    torch.manual_seed(scene.config.seed)
    network = scene.build(build, residual)
    ema = Ema(network, scene.config.training.ema_decay)
    precision = _faster_precision(scene, network, residual)
    run = _train(scene, network, ema, residual, rate, progress, precision)
    return {
        "learning_rate": rate,
        "parameters": sum(p.numel() for p in network.parameters()),
        "precision": "bf16" if precision else "fp32",
        "steps": run.steps,
        "milliseconds_per_step": 1000 * run.seconds / run.steps,
        **score(scene, ema.network, residual, precision),
        "validation_loss_at": run.validation,
    }


def score(scene: Scene, network: nn.Module, residual: bool, precision: torch.dtype | None) -> dict:
    """PSNR of all validation clips beside the floors', and the denoiser's loss on them."""
    averaged = Autocast(network, scene.device, precision)
    settings = EvaluationConfig(num_clips=len(scene.val), lpips_net="none")
    result = evaluate(scene.predictor(averaged, residual), scene.val, settings, scene.roles, seed=scene.config.seed)
    print(result.table(), file=sys.stderr, flush=True)
    losses = _validation_losses(scene, averaged, residual, len(scene.val), STRATA)
    return {
        **{name: result.summary(row, "psnr").mean for name, row in (("psnr", "model"), ("floor_psnr", "floor"))},
        "psnr_ci95": result.summary("model", "psnr").ci95,
        "motion_energy_ratio": result.motion_energy_ratio,
        "validation_loss": float(losses.mean()),
        "psnr_by_clip": result.values("model", "psnr").mean(axis=1, keepdims=True),
        "loss_by_clip": losses,
    }


def _train(
    scene: Scene, network: nn.Module, ema: Ema, residual: bool, rate: float, progress: Progress,
    precision: torch.dtype | None,
) -> Run:
    """Steps until `progress` is 1. A step whose gradient is not finite is skipped, as in a training run."""
    settings = scene.config.training
    schedule = LearningRate(rate, "cosine", int(WARMUP * SCHEDULE_UNITS), SCHEDULE_UNITS, settings.lr_floor)
    optimization = Optimization(
        network, schedule, weight_decay=settings.weight_decay, betas=(settings.beta1, settings.beta2),
        max_grad_norm=settings.max_grad_norm,
    )
    denoiser = scene.predictor(Autocast(network, scene.device, precision), residual).denoiser
    run = Run()
    loader = training_loader(
        scene.train, seed=scene.config.seed, global_batch=settings.batch_size, accumulation=1, first_step=0,
        frame_roles=scene.roles, num_workers=scene.config.data.num_workers,
        timeout=scene.config.data.decode_timeout, device_type=scene.device.type,
    )
    for batch in loader:
        start = time.perf_counter()
        scene.losses(denoiser, batch.to(scene.device), "train").mean().backward()
        norm = optimization.gradient_norm()
        optimization.update(int(SCHEDULE_UNITS * progress(run)), norm, (~norm.isfinite()).float())
        ema.update(network)
        if scene.device.type == "cuda":
            torch.cuda.synchronize()  # equal time is the point here
        run.seconds += time.perf_counter() - start
        run.steps += 1
        done = progress(run) >= 1
        if done or run.steps % VALIDATE_EVERY == 0:
            losses = _validation_losses(scene, Autocast(ema.network, scene.device, precision), residual, 16, 1)
            run.validation[run.steps] = float(losses.mean())
            print(f"step {run.steps}  {progress(run):.0%}  {run.seconds:.0f} s  validation loss "
                  f"{run.validation[run.steps]:.4f}", file=sys.stderr, flush=True)
        if done:
            break
    loader.close()
    return run


@torch.no_grad()
def _validation_losses(scene: Scene, network: nn.Module, residual: bool, count: int, strata: int) -> np.ndarray:
    """(N, strata): of each clip at a level of its own in each of equal parts of the timesteps."""
    denoiser = scene.predictor(network, residual).denoiser
    rows = []
    for batch, valid in evaluation_batches(scene.val, evenly_spaced_clips(scene.val, count), 8, scene.roles):
        batch = batch.to(scene.device)
        part = uniform(scene.config.seed, "validation level", batch.draws, (1,), scene.device)
        columns = [
            scene.losses(denoiser, batch, f"validation {k}", (k + part) / strata) for k in range(strata)
        ]
        rows.append(torch.stack(columns, dim=1)[valid].cpu().double())
    return torch.cat(rows).numpy()


def _faster_precision(scene: Scene, network: nn.Module, residual: bool) -> torch.dtype | None:
    """bf16 or fp32, whichever takes less time for a forward and backward pass of this network."""
    size = scene.config.training.batch_size
    batch = next(iter(evaluation_batches(scene.train, range(size), size, scene.roles)))[0].to(scene.device)
    denoisers = {
        precision: scene.predictor(Autocast(network, scene.device, precision), residual).denoiser
        for precision in (None, torch.bfloat16)
    }
    times = {precision: [] for precision in denoisers}
    for _ in range(1 + PRECISION_ROUNDS):  # in turns: a machine that slows down slows both
        for precision, denoiser in denoisers.items():
            start = time.perf_counter()
            scene.losses(denoiser, batch, "precision").mean().backward()
            if scene.device.type == "cuda":
                torch.cuda.synchronize()
            times[precision].append(time.perf_counter() - start)
    medians = {precision: statistics.median(measured[1:]) for precision, measured in times.items()}
    network.zero_grad(set_to_none=True)
    return min(medians, key=medians.get)
