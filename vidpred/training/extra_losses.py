"""The optional losses of a training step, beside the denoising loss; see `vidpred.diffusion.extra_losses`."""

from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from vidpred import random_streams
from vidpred.denoiser import Denoiser, DenoisingLoss
from vidpred.diffusion import (
    Denoise,
    DiffusionConfig,
    NoiseLevel,
    add_noise,
    cleaner_noise,
    consistency_loss,
    diversity_loss,
)
from vidpred.errors import require
from vidpred.training.averages import Averages


@dataclass(frozen=True)
class NoisedClips:
    """What the denoising loss is of. latents, noise: (B, T, C, h, w). scored: (B, T) bool. draws: (B,) int64."""

    latents: Tensor
    noise: Tensor
    level: NoiseLevel
    scored: Tensor
    draws: Tensor


@dataclass(frozen=True)
class ExtraLosses:
    """Their weights, 0 where one is off, and the seed of what they draw."""

    consistency_weight: float
    diversity_weight: float
    seed: int

    @staticmethod
    def of(config: DiffusionConfig, seed: int) -> "ExtraLosses":
        return ExtraLosses(config.consistency_weight, config.diversity_weight, seed)

    def require_pairs(self, micro_batch: int) -> None:
        """Raises UserError where draws 2k and 2k + 1 would not be in one micro batch."""
        require(
            self.diversity_weight == 0 or micro_batch % 2 == 0,
            f"diffusion.diversity_weight: compares clips in pairs, and {micro_batch} go through the network at once; "
            "make training.batch_size an even multiple of the processes and training.accumulation, or set it to 0",
        )

    def __bool__(self) -> bool:
        return self.consistency_weight > 0 or self.diversity_weight > 0

    def add(
        self,
        result: DenoisingLoss,
        clips: NoisedClips,
        denoiser: Denoiser,
        denoise: Denoise,
        cleaner: Callable[[Tensor], NoiseLevel],
    ) -> tuple[Tensor, Averages]:
        """The whole loss, and its terms by name.

        result: with x0. denoise: the denoiser at these clips, (x, level) -> x0. cleaner: (B,) in [0, 1) -> a level
        (B, T) below that of the clips, at this fraction of the way to clean.
        """
        terms = {"denoising": result.objective}
        weights = [1.0]
        if self.consistency_weight > 0:
            terms["consistency"] = self._consistency(result, clips, denoiser, denoise, cleaner)
            weights.append(self.consistency_weight)
        if self.diversity_weight > 0:
            terms["diversity"] = diversity_loss(result.x0, clips.latents, clips.scored)
            weights.append(self.diversity_weight)
        loss = sum(weight * term.mean() for weight, term in zip(weights, terms.values()))
        names = tuple(f"train/loss_{name}" for name in terms)
        sums = torch.stack([term.detach().sum() for term in terms.values()])
        counts = torch.tensor([float(len(term)) for term in terms.values()])  # of the host: no one waits for it
        return loss, Averages(names, sums, counts.to(sums.device, non_blocking=True))

    def _consistency(
        self,
        result: DenoisingLoss,
        clips: NoisedClips,
        denoiser: Denoiser,
        denoise: Denoise,
        cleaner: Callable[[Tensor], NoiseLevel],
    ) -> Tensor:
        """(B,), weighted by level as the denoising loss is."""
        shape, draws = tuple(clips.latents.shape[1:]), clips.draws
        fresh = random_streams.normal(self.seed, "consistency noise", draws, shape, clips.latents.device)
        level = cleaner(random_streams.uniform(self.seed, "consistency level", draws, ()))
        level = NoiseLevel.where(clips.scored, level, clips.level)
        noise = cleaner_noise(clips.noise, fresh, clips.level, level)
        with torch.no_grad():
            wanted = denoise(add_noise(clips.latents, noise, level), level)
        # The weight under the square: the mean over a clip's frames is then that of the denoising loss.
        scale = denoiser.parameterization.c_out(clips.level) / denoiser.weight(clips.level).clamp(min=1e-12).sqrt()
        return consistency_loss(result.x0, wanted, scale, clips.scored)
