"""The task of this library: predict the unknown frames of a clip from the given ones.

    frames uint8 -> autoencoder -> calibrated latents x0 -> x_t = alpha x0 + sigma eps at the unknown frames
    -> denoiser.loss -> mean over clips

The level of a clip (see `clip_levels`) and its noise are functions of (seed, running draw number).
"""

import contextlib
import logging
from pathlib import Path
from typing import Any, Callable, Generator, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from vidpred import distributed, random_streams, range_checks
from vidpred.conditioning import ConditioningConfig
from vidpred.conditions import Condition
from vidpred.data import ClipBatch, ClipLoader
from vidpred.denoiser import Denoiser, DenoisingLoss
from vidpred.diagnosis.record import TrainingRecord
from vidpred.diffusion import LevelDistribution, NoiseLevel, add_noise
from vidpred.errors import UserError
from vidpred.evaluation import BadClipsError, Evaluation
from vidpred.frame_roles import GIVEN, is_scored
from vidpred.prediction import Predictor
from vidpred.tensor_ops import shrink_frames
from vidpred.training.clip_levels import VALIDATION_LEVELS, ClipLevels, loss_by_level
from vidpred.training.clip_pictures import ClipPictures
from vidpred.training.clip_stream import ClipStream
from vidpred.training.extra_losses import ExtraLosses, NoisedClips
from vidpred.training.inspection import Inspection
from vidpred.training.latent_clips import EncodedValidation, LatentClips
from vidpred.training.prompt_pictures import PromptPictures
from vidpred.training.task import Findings, TaskLoss
from vidpred.training.validation_set import ValidationSet

logger = logging.getLogger(__name__)

# Calibrated latents have deviation 1 on training clips: beyond this, autoencoder or calibration is wrong.
SANE_LATENT = 100.0
# The autoencoder is frozen and the calibration measured: no setting of the training changes either.
LATENT_CURE = (
    "check the videos and the autoencoder (autoencoder.half false, other weights), and start a new run, so "
    "that the calibration is measured again"
)


class VideoPredictionTask:
    """See `vidpred.training.task.Task` for what each method is to the trainer.

    Args:
        predictor: the parts between frames and predictions, around the network that is trained.
        conditioning: the roles of training frames.
        distribution: of their noise levels, u uniform in [0, 1) -> level.
        open_loader: first step -> this rank's training batches from that step on.
        validation: the clips of the validation loss and the pictures.
        evaluate: (predictor, step) -> the full evaluation; called on every rank.
        run_folder: receives `samples/` and `evaluation/`.
        seed: of levels and noise.
        global_batch: clips of one step, over all processes.
        fps: frame rate of the pictures that move.
        extra_losses: beside the denoising loss; None: there are none.
        shrinkage: 0-based step -> by how much the height and width of its training frames are divided.
        show_training_clips: pictures of the training batch itself (to see one batch being overfitted).
        prompts: of which a grid is drawn beside the pictures.
        reference: the record of the checkpoint that is resumed, which the watch compares with.
    """

    def __init__(
        self,
        predictor: Predictor,
        conditioning: ConditioningConfig,
        distribution: LevelDistribution,
        open_loader: Callable[[int], ClipLoader],
        validation: ValidationSet,
        evaluate: Callable[[Predictor, int], Evaluation],
        *,
        run_folder: Path,
        seed: int,
        global_batch: int,
        fps: float = 8.0,
        show_training_clips: bool = False,
        shrinkage: Callable[[int], int] = lambda step: 1,
        prompts: PromptPictures | None = None,
        extra_losses: ExtraLosses | None = None,
        reference: TrainingRecord | None = None,
    ):
        if len(validation.dataset) == 0:
            raise UserError("data: the validation split holds no clip; add videos or give it a larger share")
        self.network = predictor.denoiser.network
        self.discriminator = None
        self._predictor, self._evaluate_predictor = predictor, evaluate
        self._run_folder, self._seed = run_folder, seed
        self._levels = ClipLevels(conditioning, distribution, predictor.schedule, seed, predictor.device)
        self._stream = ClipStream(open_loader, validation.dataset)
        self._validation, self._encoded_validation = validation, EncodedValidation(validation, predictor.encode)
        self._pictures = ClipPictures(validation, seed, fps)
        self._show_training_clips, self._shrinkage, self._prompts = show_training_clips, shrinkage, prompts
        self._extra_losses = extra_losses
        self._last_batch: ClipBatch | None = None  # only where it is to be shown
        self._inspection = Inspection(predictor, conditioning, validation.fixed_clips, seed, global_batch, reference)
        range_checks.expect("encoded latents", cure=LATENT_CURE)
        range_checks.expect("calibrated latents", -SANE_LATENT, SANE_LATENT, cure=LATENT_CURE)

    # Training ----------------------------------------------------------------------------------------------

    def batches(self, first_step: int) -> Generator[ClipBatch, None, None]:
        with contextlib.closing(self._stream.batches(first_step)) as batches:
            yield from self._inspection.watched(batches)

    def loss(self, network: nn.Module, batch: ClipBatch, step: int) -> TaskLoss:
        """The mean over clips of the denoiser's loss, and that loss by noise level."""
        if self._show_training_clips:
            self._last_batch = batch
        latents = self._encode(shrink_frames(batch.frames, self._shrinkage(step)))
        level = self._levels.training(batch.draws, batch.roles)
        noise, condition = self._noise("training noise", batch, latents), self._condition(batch, dropped=True)
        denoiser = self._predictor.denoiser.with_network(network)
        result = self._denoising_loss(denoiser, latents, noise, level, batch, condition, bool(self._extra_losses))
        range_checks.report("x_t", add_noise(latents, noise, level))
        range_checks.report("network output", result.output)
        averages = loss_by_level(result.per_frame.detach(), level, batch.roles)
        if not self._extra_losses:
            return TaskLoss(result.objective.mean(), averages)
        whole, terms = self._extra_losses.add(
            result, NoisedClips(latents, noise, level, is_scored(batch.roles), batch.draws), denoiser,
            lambda x, level: denoiser(x, level, batch.roles == GIVEN, batch.frame_times, condition),
            lambda fraction: self._levels.training(batch.draws, batch.roles, fraction),
        )  # fmt: skip
        return TaskLoss(whole, averages.and_also(terms))

    @torch.no_grad()
    def _encode(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) uint8 -> calibrated latents (B, T, C, h, w), reported on the way."""
        raw = self._predictor.autoencoder.encode(frames)
        range_checks.report("encoded latents", raw)
        latents = self._predictor.calibration.normalize(raw)
        range_checks.report("calibrated latents", latents)
        return latents

    def _noise(self, purpose: str, batch: Any, latents: Tensor) -> Tensor:
        return random_streams.normal(self._seed, purpose, batch.draws, tuple(latents.shape[1:]), latents.device)

    def _denoising_loss(
        self,
        denoiser: Denoiser,
        latents: Tensor,
        noise: Tensor,
        level: NoiseLevel,
        batch: Any,
        condition: Condition | None,
        with_x0: bool = False,
    ) -> DenoisingLoss:
        """`batch` has roles and frame_times."""
        given, scored = batch.roles == GIVEN, is_scored(batch.roles)
        return denoiser.loss(
            latents, noise, level, given, batch.frame_times, condition, scored=scored, with_x0=with_x0
        )

    def _condition(self, batch: Any, dropped: bool) -> Condition | None:
        """Of a batch, for a network that takes it; in training that of some clips is dropped: all kinds together, as
        guidance compares with, and each kind by itself, so that the network knows whatever part is asked for."""
        conditioner = self._predictor.conditioner
        if conditioner is None:
            return None
        condition = conditioner(batch.conditions, *batch.roles.shape, batch.roles.device)
        if not dropped:
            return condition
        config = conditioner.config
        chance = random_streams.uniform(self._seed, "condition dropout", batch.draws, ())
        condition = condition.without(chance < config.dropout)
        for kind in config.kinds if len(config.kinds) > 1 else ():
            chance = random_streams.uniform(self._seed, f"{kind} dropout", batch.draws, ())
            condition = condition.without(chance < config.dropout, [kind])
        return condition

    # Validation --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """`loss`: the mean over validation clips, each at 4 levels and with noise that never change."""
        shares = distributed.gather_or_fail(
            lambda: (list(self._validation_rows(network)), self._encoded_validation.dropped)
        )
        # Summed in clip order: the figure does not depend on the number of processes.
        rows = sorted(row for share, _ in shares for row in share)
        self._validation.require_half(len(rows), (dropped for _, dropped in shares))
        return {"loss": float(np.mean([loss for _, loss in rows]))}

    def _validation_rows(self, network: nn.Module) -> Iterator[tuple[int, float]]:
        """(clip, loss) of this rank's share."""
        for clips in self._encoded_validation.batches():
            losses = torch.stack([self._validation_loss(network, clips, k) for k in range(VALIDATION_LEVELS)])
            per_clip = losses.mean(0).cpu()[clips.valid]
            yield from zip(clips.draws[clips.valid].tolist(), per_clip.tolist())

    def _validation_loss(self, network: nn.Module, clips: LatentClips, stratum: int) -> Tensor:
        """(B,): the loss at a level of each clip's own in [stratum, stratum + 1) / 4 of the timesteps."""
        on_device = clips.to(self._predictor.device)
        level = self._levels.validation(on_device.draws, on_device.roles, stratum)
        noise = self._noise(f"validation noise {stratum}", on_device, on_device.latents)
        denoiser, condition = self._predictor.denoiser.with_network(network), self._condition(on_device, dropped=False)
        return self._denoising_loss(denoiser, on_device.latents, noise, level, on_device, condition).per_clip

    # Pictures and evaluation -------------------------------------------------------------------------------

    def visualize(self, network: nn.Module, step: int, progress: float) -> Findings:
        """Pictures of a few clips, predicted with as many inference steps as belong to `progress`."""
        predictor = self._predictor_with(network)
        num_steps = predictor.sampling.num_steps_at(progress)
        folder = self._run_folder / "samples" / f"step_{step:08d}"
        findings = self._pictures.draw(predictor, folder, num_steps, self._last_batch)
        if self._prompts is None:
            return findings
        quiet = self._predictor_with(network, quiet=True)
        prompted = self._prompts.save(quiet, folder, num_steps, self._pictures.fps)
        return Findings(findings.values, findings.pictures + prompted)

    def evaluate(self, network: nn.Module, step: int) -> Findings:
        """PSNR, SSIM and LPIPS beside floor and ceiling: a JSON file, a table in the log, a few pictures.

        Bad clips end the evaluation and not the training: figures of other clips would not compare with those
        of other steps, so there are none at this one.
        """
        try:
            result = self._evaluate_predictor(self._predictor_with(network, quiet=True), step)
        except BadClipsError as error:
            if distributed.is_main():
                logger.error("step %d  no figures: %s", step, error)
            return Findings({}, [])
        path = self._evaluation_file(step)
        pictures = self._pictures.save(path.with_suffix(""), result.samples)
        if distributed.is_main():
            result.save(path)
            logger.info("step %d  evaluation: %s\n%s", step, path, result.table())
        return Findings(result.scalars(), pictures)

    def is_evaluated(self, step: int) -> bool:
        return distributed.broadcast_object(self._evaluation_file(step).exists())

    def _evaluation_file(self, step: int) -> Path:
        return self._run_folder / "evaluation" / f"step_{step:08d}.json"

    def _predictor_with(self, network: nn.Module, quiet: bool = False) -> Predictor:
        p = self._predictor
        return Predictor(
            p.denoiser.with_network(network).eval(),
            p.autoencoder,
            p.calibration,
            p.schedule,
            p.sampling,
            p.context_frames,
            p.num_frames,
            log=None if quiet or not distributed.is_main() else logger.info,
            conditioner=p.conditioner,
        )

    # Checkpoints -------------------------------------------------------------------------------------------

    def export(self, network: nn.Module) -> None:
        """Nothing: a checkpoint alone rebuilds the predictor."""

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"calibration": self._predictor.calibration.state_dict()}

    def record(self, averaged: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self._inspection.record(averaged)

    def measures(self) -> dict[str, float]:
        return {**self._inspection.measures(), "training/one_batch": float(self._show_training_clips)}

    def state(self) -> dict[str, Any]:
        return self._stream.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self._stream.load_state(state)
