"""The task of training a VAE: give frames back from few numbers.

    frames uint8 -> images x in [-1, 1] -> encoder -> mean + deviation * noise -> decoder -> x'
    loss = |x' - x| + w_lpips LPIPS(x', x) + w_kl KL + w_adversarial (-D(x')), each the mean over the batch's frames

with D the patch discriminator, from its start step on (Rombach et al. 2022, "High-resolution image synthesis with
latent diffusion models", appendix G). Its weight is fixed: one adapted to the gradients of each micro batch, as
there, would depend on the number of processes.
"""

import contextlib
import dataclasses
import logging
from pathlib import Path
from typing import Any, Callable, Generator, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from vidpred import distributed, random_streams, range_checks
from vidpred.data import ClipBatch, ClipLoader
from vidpred.errors import UserError
from vidpred.evaluation.judge import Judge
from vidpred.metrics import psnr
from vidpred.tensor_ops import fold_frames
from vidpred.training.averages import Averages
from vidpred.training.clip_stream import ClipStream
from vidpred.training.task import DiscriminatorLoss, Findings, TaskLoss
from vidpred.training.validation_set import ValidationSet
from vidpred.vae_training.config import VaeTrainingConfig
from vidpred.vae_training.evaluation import ReconstructionResult
from vidpred.vae_training.export import export_vae
from vidpred.vae_training.losses import hinge_discriminator, hinge_generator, kl_divergence, l1
from vidpred.vae_training.network import Reconstruction, VaeNetwork
from vidpred.vae_training.reconstruction import reconstruct, save_reconstructions, to_frames, to_images

logger = logging.getLogger(__name__)

SANE_PIXEL = 10.0  # of a reconstruction; its truth lies in [-1, 1]
EXPORT_FOLDER = "vae"


class AutoencoderTask:
    """See `vidpred.training.task.Task` for what each method is to the trainer.

    Args:
        network: the VAE that is trained. discriminator: of its reconstructions, or None.
        config: the loss.
        judge: the metrics; its LPIPS is a term of the loss.
        open_loader: first step -> this rank's training batches from that step on.
        validation: the clips of the validation loss and the pictures.
        evaluate: (network, step) -> the full evaluation; called on every rank.
        run_folder: receives `samples/`, `evaluation/` and `vae/`.
        seed: of crops and noise.
        repeat_draws: after so many draws the same clips come again, and with them their crops (to see one batch being
            overfitted); None: never.
    """

    def __init__(
        self,
        network: VaeNetwork,
        discriminator: nn.Module | None,
        config: VaeTrainingConfig,
        judge: Judge,
        open_loader: Callable[[int], ClipLoader],
        validation: ValidationSet,
        evaluate: Callable[[nn.Module, int], ReconstructionResult],
        *,
        run_folder: Path,
        seed: int,
        repeat_draws: int | None = None,
    ):
        if config.lpips_weight > 0 and judge.lpips is None:
            raise UserError(
                f"vae.lpips_weight: {config.lpips_weight:g}, and LPIPS is unavailable: {judge.lpips_reason}; set it to "
                "0, or give the backbone (TORCH_HOME or evaluation.lpips_weights)"
            )
        self.network, self.discriminator = network, discriminator
        self._config, self._lpips = config, judge.lpips if config.lpips_weight > 0 else None
        self._stream = ClipStream(open_loader, validation.dataset)
        self._validation, self._evaluate = validation, evaluate
        self._run_folder, self._seed, self._repeat_draws = run_folder, seed, repeat_draws
        cure = "lower training.learning_rate or vae.adversarial.weight"
        range_checks.expect("reconstruction", -SANE_PIXEL, SANE_PIXEL, cure=cure)

    # Training ----------------------------------------------------------------------------------------------

    def batches(self, first_step: int) -> Generator[ClipBatch, None, None]:
        with contextlib.closing(self._stream.batches(first_step)) as source:
            yield from map(self._cropped, source)

    def _cropped(self, batch: ClipBatch) -> ClipBatch:
        """A square of each frame, at a place of its own."""
        side = self._config.crop
        if side is None:
            return batch
        free = np.array(batch.frames.shape[-2:]) - side
        shape = (*batch.frames.shape[:3], side, side)
        # Pinned as the batch is: else the copy to the device waits for it.
        frames = torch.empty(shape, dtype=batch.frames.dtype, pin_memory=batch.frames.is_pinned())
        for clip, target, draw in zip(batch.frames, frames, batch.draws.tolist()):
            generator = random_streams.host_generator(self._seed, "vae crop", draw % (self._repeat_draws or draw + 1))
            places = generator.integers(free + 1, size=(len(clip), 2))
            for frame, cut, (top, left) in zip(clip, target, places.tolist()):
                cut.copy_(frame[:, top : top + side, left : left + side])
        return dataclasses.replace(batch, frames=frames)

    def loss(self, network: nn.Module, batch: ClipBatch, step: int) -> TaskLoss:
        images = to_images(fold_frames(batch.frames))
        made = Reconstruction(*network(images, self._noise(batch)))
        range_checks.report("latent mean", made.mean)
        range_checks.report("reconstruction", made.images)
        terms = self._terms(made, images)
        learns = self.discriminator is not None and step >= self._config.adversarial.start_step
        if learns:
            frozen = {name: value.detach() for name, value in self.discriminator.named_parameters()}
            terms["generator"] = hinge_generator(functional_call(self.discriminator, frozen, (made.images,)))
        return TaskLoss(
            self._objective(terms).mean(),
            _averages(terms, absent=() if learns or self.discriminator is None else ("generator",)),
            _discriminator_loss(images, made.images.detach()) if learns else None,
        )

    def _noise(self, batch: ClipBatch) -> Tensor | None:
        if self.network.decoder_only:
            return None
        count, (height, width) = batch.frames.shape[1], batch.frames.shape[-2:]
        factor = self.network.down_factor
        shape = (count, self.network.latent_channels, height // factor, width // factor)
        device = batch.frames.device
        return fold_frames(random_streams.normal(self._seed, "posterior noise", batch.draws, shape, device))

    def _terms(self, made: Reconstruction, images: Tensor) -> dict[str, Tensor]:
        """The terms of the loss that do not need a discriminator, (N,) each."""
        terms = {"l1": l1(made.images, images)}
        if self._lpips is not None:
            terms["lpips"] = self._lpips.distance(made.images, images)
        return terms | {"kl": kl_divergence(made.mean, made.log_variance)}

    def _objective(self, terms: dict[str, Tensor]) -> Tensor:
        """(N,): the weighted sum."""
        weights = {
            "l1": 1.0,
            "lpips": self._config.lpips_weight,
            "kl": self._config.kl_weight,
            "generator": self._config.adversarial.weight,
        }
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum(0)

    # Validation --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """Means over validation clips of the terms of the loss, of the loss without the discriminator's, and of the
        PSNR in dB; decoded is the mean of the posterior."""
        batches = self._validation.batches(self._validation.count)
        shares = distributed.gather_or_fail(lambda: (list(self._validation_rows(network, batches)), batches.dropped))
        # Reduced in clip order: the figures do not depend on the number of processes.
        rows = sorted((row for share, _ in shares for row in share), key=lambda row: row[0])
        self._validation.require_half(len(rows), (dropped for _, dropped in shares))
        return {name: float(np.mean([figures[name] for _, figures in rows])) for name in rows[0][1]}

    def _validation_rows(self, network: nn.Module, batches: Any) -> Iterator[tuple[int, dict[str, float]]]:
        """(clip, its figures) of this rank's share."""
        for batch, valid in batches:
            frames = batch.frames.to(next(self.network.parameters()).device)
            for row in valid.nonzero().flatten().tolist():
                made = reconstruct(network, frames[row])
                terms = self._terms(made, to_images(frames[row]))
                figures = {"loss": self._objective(terms), **terms}
                figures["psnr"] = psnr(to_frames(made.images)[None], frames[row][None])[0]
                yield int(batch.draws[row]), {name: float(value.double().mean()) for name, value in figures.items()}

    # Pictures, evaluation and the VAE itself ---------------------------------------------------------------

    @torch.no_grad()
    def visualize(self, network: nn.Module, step: int, progress: float) -> Findings:
        """One picture: the middle frames of a few validation clips, their reconstructions, and the errors."""
        batches = self._validation.batches(self._validation.pictured)
        shares = distributed.gather_or_fail(lambda: list(self._pictured(network, batches)))
        pairs = [pair for _, pair in sorted((row for share in shares for row in share), key=lambda row: row[0])]
        path = self._run_folder / "samples" / f"step_{step:08d}" / "reconstructions.png"
        if pairs and distributed.is_main():
            save_reconstructions(path, pairs)
        return Findings({}, [path] if pairs and distributed.is_main() else [])

    def _pictured(self, network: nn.Module, batches: Any) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """(clip, (truth, reconstruction)) of this rank's share, uint8 (3, H, W) each."""
        for batch, valid in batches:
            for row in valid.nonzero().flatten().tolist():
                frame = batch.frames[row, batch.frames.shape[1] // 2]
                made = reconstruct(network, frame[None].to(next(self.network.parameters()).device))
                yield int(batch.draws[row]), (frame, to_frames(made.images)[0].cpu())

    def evaluate(self, network: nn.Module, step: int) -> Findings:
        """PSNR, SSIM and LPIPS beside the floor, a PCA of patches: a JSON file and a table in the log."""
        result = self._evaluate(network, step)
        if distributed.is_main():
            path = result.save(self._evaluation_file(step))
            logger.info("step %d  evaluation: %s\n%s", step, path, result.table())
        return Findings(result.scalars(), [])

    def is_evaluated(self, step: int) -> bool:
        return distributed.broadcast_object(self._evaluation_file(step).exists())

    def _evaluation_file(self, step: int) -> Path:
        return self._run_folder / "evaluation" / f"step_{step:08d}.json"

    def export(self, network: nn.Module) -> None:
        """`vae/` in the run folder, for `autoencoder.pretrained`."""
        if distributed.is_main():
            export_vae(network.vae, self._run_folder / EXPORT_FOLDER)

    # Checkpoints -------------------------------------------------------------------------------------------

    def record(self, averaged: nn.Module) -> None:
        """Nothing: the diagnosis is of models that denoise."""

    def measures(self) -> dict[str, float]:
        return {}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {}

    def state(self) -> dict[str, Any]:
        return self._stream.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self._stream.load_state(state)


def _discriminator_loss(real: Tensor, fake: Tensor) -> DiscriminatorLoss:
    def loss(discriminator: nn.Module) -> TaskLoss:
        scores = discriminator(torch.cat([real, fake]))  # at once: DDP wants one forward pass for each backward one
        terms = {"discriminator": hinge_discriminator(*scores.chunk(2))}
        return TaskLoss(terms["discriminator"].mean(), _averages(terms))

    return loss


def _averages(terms: dict[str, Tensor], absent: tuple[str, ...] = ()) -> Averages:
    """The names are the same in every step, those of `absent` terms without any weight."""
    sums = torch.stack([term.detach().sum() for term in terms.values()])
    counts = torch.full_like(sums, len(next(iter(terms.values()))))
    nothing = sums.new_zeros(len(absent))
    names = tuple(f"train/{name}" for name in (*terms, *absent))
    return Averages(names, torch.cat([sums, nothing]), torch.cat([counts, nothing]))
