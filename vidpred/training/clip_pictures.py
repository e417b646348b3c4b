"""Pictures of a few clips while a model trains: what was given, the truth, the prediction."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vidpred import distributed
from vidpred.data import ClipBatch
from vidpred.data.evaluation_batches import EvaluationBatches
from vidpred.evaluation import ClipSample, save_pictures
from vidpred.prediction import ClipCount, Predictor
from vidpred.training.task import Findings
from vidpred.training.validation_set import ValidationSet


@dataclass(frozen=True)
class ClipPictures:
    """validation: the clips, and how many are pictured. seed: of the noise. fps: of the pictures that move."""

    validation: ValidationSet
    seed: int
    fps: float

    def draw(self, predictor: Predictor, folder: Path, num_steps: int, training: ClipBatch | None) -> Findings:
        """Predicts the clips in so many inference steps and saves them; every rank must call it. `training`: this
        rank's training batch, to be pictured instead of validation clips; None: it is not."""
        shares = distributed.gather_or_fail(lambda: self._predict(predictor, num_steps, training))
        samples = sorted(
            (sample for share, _, _ in shares for sample in share), key=lambda sample: sample.index
        )
        self.validation.require_half(len(samples), (dropped for _, _, dropped in shares))
        clip_rate = sum(rate * len(share) for share, rate, _ in shares) / len(samples)
        values = {"sampling/clip_rate": clip_rate, "sampling/num_inference_steps": float(num_steps)}
        return Findings(values, self.save(folder, samples))

    def save(self, folder: Path, samples: list[ClipSample]) -> list[Path]:
        """Rank 0 draws; the paths of the strips, GIFs and videos."""
        return save_pictures(folder, samples, self.fps) if distributed.is_main() else []

    def _predict(
        self, predictor: Predictor, num_steps: int, training: ClipBatch | None
    ) -> tuple[list[ClipSample], float, dict[int, str]]:
        """This rank's share of the clips to look at, its clip rate, and the clips that cannot be read."""
        known, count, samples = predictor.context_frames, ClipCount(), []
        batches = self._batches(training)
        for batch, valid in batches:
            prediction = predictor.predict(
                batch.frames[:, :known],
                batch.frames.shape[1] - known,
                self.seed,
                condition=predictor.conditions_of(batch),
                num_inference_steps=num_steps,
                draws=batch.draws,
                callback=count,
            )  # (B, T - known, 3, H, W)
            frames, prediction = batch.frames.cpu().numpy(), prediction.cpu().numpy()
            for row in valid.nonzero().flatten().tolist():
                index, clip = int(batch.draws[row]), frames[row]
                samples.append(
                    ClipSample(index, batch.names[row], clip[:known], clip[known:], prediction[row])
                )
        return samples, count.rate, getattr(batches, "dropped", {})

    def _batches(self, training: ClipBatch | None) -> EvaluationBatches | list[tuple[ClipBatch, Tensor]]:
        if training is None:
            return self.validation.batches(self.validation.pictured)
        share = -(-self.validation.pictured // distributed.world_size())
        return [(training, torch.arange(len(training)) < share)]
