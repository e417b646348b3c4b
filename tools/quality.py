"""Networks trained for the same wall time, in the same loop, on the quickstart's clips; for `tools/benchmark.py`.

Each run has the quickstart's data, batch size, autoencoder, objective and sampler. This project's network predicts
the residual to the nearest given frame; the peer is conditioned as Stable Video Diffusion is and predicts the frame
itself. Both predict x0, so their validation losses are errors of the same thing. A last run of this project's
network stops after the best peer's steps, its whole learning rate schedule within them: the comparison at equal
steps.
"""

import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor, nn

from vidpred.build import calibrate
from vidpred.conditioning import given_mask
from vidpred.configuration import Config, load_config
from vidpred.data import ClipDataset, build_dataset, evaluation_batches, training_loader
from vidpred.autoencoders import build_autoencoder
from vidpred.denoiser import Denoiser
from vidpred.diffusion import NoiseLevel, NoiseSchedule, build_parameterization
from vidpred.evaluation import EvaluationConfig, evaluate
from vidpred.prediction import LatentCalibration, Predictor
from vidpred.random_streams import normal, uniform
from vidpred.training.ema import Ema
from vidpred.training.optimization import LearningRate, Optimization
from vidpred.training.preparation import Autocast

QUICKSTART = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
SCHEDULE_UNITS = 10_000  # the learning rate is a function of the part of the run that is done
VALIDATE_EVERY = 20  # steps
PRECISION_ROUNDS = 5
VALIDATED_CLIPS, EVALUATED_CLIPS = 16, 32


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

    def predictor(self, network: nn.Module, residual: bool) -> Predictor:
        parameterization = build_parameterization(self.config.diffusion.parameterization, self.schedule)
        return Predictor(
            Denoiser(network, parameterization, residual), self.autoencoder, self.calibration, self.schedule,
            self.config.sampling, self.config.conditioning.context_frames, self.config.data.num_frames,
        )

    def level(self, draws: Tensor, given: Tensor, purpose: str) -> NoiseLevel:
        u = uniform(self.config.seed, purpose, draws, (1,), self.device)  # (B, 1)
        level = self.schedule.level((u * self.schedule.num_train_timesteps).long())
        return NoiseLevel.where(given, NoiseLevel.clean((1, 1), self.device), level)


@dataclass
class Run:
    """One network's training: seconds spent in steps, and the validation loss along the way."""

    steps: int = 0
    seconds: float = 0.0
    validation: dict[int, float] = field(default_factory=dict)


Progress = Callable[[Run], float]  # the part of a run that is done: the learning rate's clock; 1 ends the run


def for_minutes(minutes: float) -> Progress:
    return lambda run: run.seconds / (60 * minutes)


def for_steps(steps: int) -> Progress:
    return lambda run: run.steps / steps


def compare_quality(
    builders: dict[str, Callable[[int], nn.Module]],
    device: torch.device,
    minutes: float,
    rate: float,
    peer_rates: list[float],
) -> dict:
    """The report: every run's PSNR beside the floor, and the difference to the peer's best learning rate."""
    scene = open_scene(device)
    equal_time = for_minutes(minutes)
    ours = train_and_score(scene, builders["vidpred"], True, rate, equal_time)
    peers = {
        f"svd at rate {peer_rate:g}": train_and_score(scene, builders["svd"], False, peer_rate, equal_time)
        for peer_rate in peer_rates
    }
    best = max(peers, key=lambda name: peers[name]["psnr"])
    lowest = min(peers, key=lambda name: peers[name]["final_validation_loss"])
    steps = peers[lowest]["steps"]
    at_equal_steps = train_and_score(scene, builders["vidpred"], True, rate, for_steps(steps))
    return {
        "minutes_each": minutes,
        "runs": {"vidpred": ours, **peers, f"vidpred for {steps} steps": at_equal_steps},
        "best_peer": best,
        "psnr_over_best_peer": ours["psnr"] - peers[best]["psnr"],
        "validation_loss_at_equal_steps": {
            "steps": steps,
            "vidpred": at_equal_steps["final_validation_loss"],
            lowest: peers[lowest]["final_validation_loss"],
        },
    }


def open_scene(device: torch.device) -> Scene:
    config = load_config([], default_file=QUICKSTART)
    autoencoder = build_autoencoder(config.autoencoder).to(device)
    train, val = (build_dataset(config.data, split, config.seed) for split in ("train", "val"))
    calibration = calibrate(config, train, autoencoder, device)
    return Scene(config, train, val, calibration, autoencoder, NoiseSchedule(config.diffusion.schedule), device)


def train_and_score(
    scene: Scene, build: Callable[[int], nn.Module], residual: bool, rate: float, progress: Progress
) -> dict:
    torch.manual_seed(scene.config.seed)
    network = build(scene.autoencoder.latent_channels).to(scene.device)
    ema = Ema(network, scene.config.training.ema_decay)
    precision = _faster_precision(scene, network, residual)
    run = _train(scene, network, ema, residual, rate, progress, precision)
    result = evaluate(
        scene.predictor(Autocast(ema.network, scene.device, precision), residual), scene.val,
        EvaluationConfig(num_clips=EVALUATED_CLIPS, lpips_net="none"),
        given_mask(scene.config.conditioning), seed=scene.config.seed, step=run.steps, ema=True,
    )
    print(result.table(), file=sys.stderr, flush=True)
    return {
        "learning_rate": rate,
        "precision": "bf16" if precision else "fp32",
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": run.steps,
        "milliseconds_per_step": 1000 * run.seconds / run.steps,
        "psnr": result.summary("model", "psnr").mean,
        "psnr_ci95": result.summary("model", "psnr").ci95,
        "floor_psnr": result.summary("floor", "psnr").mean,
        "ceiling_psnr": result.summary("ceiling", "psnr").mean,
        "motion_energy_ratio": result.motion_energy_ratio,
        "final_validation_loss": run.validation[run.steps],
        "validation_loss": run.validation,
    }


def _train(
    scene: Scene, network: nn.Module, ema: Ema, residual: bool, rate: float, progress: Progress,
    precision: torch.dtype | None,
) -> Run:
    """Steps until `progress` is 1; the time of validation is not counted."""
    settings = scene.config.training
    schedule = LearningRate(rate, "cosine", SCHEDULE_UNITS // 8, SCHEDULE_UNITS, settings.lr_floor)
    optimization = Optimization(
        network, schedule, weight_decay=settings.weight_decay, betas=(settings.beta1, settings.beta2),
        max_grad_norm=settings.max_grad_norm,
    )
    denoiser = scene.predictor(Autocast(network, scene.device, precision), residual).denoiser
    run, never = Run(), torch.zeros((), device=scene.device)
    loader = training_loader(
        scene.train, seed=scene.config.seed, global_batch=settings.batch_size, accumulation=1, first_step=0,
        given_mask=given_mask(scene.config.conditioning), num_workers=scene.config.data.num_workers,
        timeout=scene.config.data.decode_timeout, device_type=scene.device.type,
    )
    for batch in loader:
        start = time.perf_counter()
        _loss(scene, denoiser, batch.to(scene.device), "train").mean().backward()
        now = int(SCHEDULE_UNITS * progress(run))
        optimization.update(now, optimization.gradient_norm(), never)
        ema.update(network)
        if scene.device.type == "cuda":
            torch.cuda.synchronize()  # equal wall time is the point here
        run.seconds += time.perf_counter() - start
        run.steps += 1
        done = progress(run) >= 1
        if done or run.steps % VALIDATE_EVERY == 0:
            run.validation[run.steps] = _validate(scene, Autocast(ema.network, scene.device, precision), residual)
            print(f"step {run.steps}  {progress(run):.0%}  {run.seconds:.0f} s  validation loss "
                  f"{run.validation[run.steps]:.4f}", file=sys.stderr, flush=True)
        if done:
            break
    loader.close()
    return run


def _loss(scene: Scene, denoiser: Denoiser, batch, purpose: str) -> Tensor:
    """(B,): the denoiser's loss at levels and noise that belong to the clips' draws."""
    latents = scene.calibration.normalize(scene.autoencoder.encode(batch.frames))
    level = scene.level(batch.draws, batch.given, f"{purpose} level")
    noise = normal(scene.config.seed, f"{purpose} noise", batch.draws, tuple(latents.shape[1:]), scene.device)
    return denoiser.loss(latents, noise, level, batch.given, batch.frame_times).per_clip


@torch.no_grad()
def _validate(scene: Scene, network: nn.Module, residual: bool) -> float:
    denoiser = scene.predictor(network, residual).denoiser
    indices = range(0, len(scene.val), max(len(scene.val) // VALIDATED_CLIPS, 1))
    batches = evaluation_batches(scene.val, indices, 8, given_mask(scene.config.conditioning))
    losses = [_loss(scene, denoiser, batch.to(scene.device), "validation")[valid] for batch, valid in batches]
    return float(torch.cat(losses).mean())


def _faster_precision(scene: Scene, network: nn.Module, residual: bool) -> torch.dtype | None:
    """bf16 or fp32, whichever takes less time for a forward and backward pass of this network."""
    mask = given_mask(scene.config.conditioning)
    indices = range(scene.config.training.batch_size)
    batch = next(iter(evaluation_batches(scene.train, indices, len(indices), mask)))[0].to(scene.device)
    denoisers = {
        precision: scene.predictor(Autocast(network, scene.device, precision), residual).denoiser
        for precision in (None, torch.bfloat16)
    }
    times = {precision: [] for precision in denoisers}
    for _ in range(1 + PRECISION_ROUNDS):  # in turns: a machine that slows down slows both
        for precision, denoiser in denoisers.items():
            start = time.perf_counter()
            _loss(scene, denoiser, batch, "precision").mean().backward()
            if scene.device.type == "cuda":
                torch.cuda.synchronize()
            times[precision].append(time.perf_counter() - start)
    medians = {precision: statistics.median(measured[1:]) for precision, measured in times.items()}
    network.zero_grad(set_to_none=True)
    return min(medians, key=medians.get)
