"""The same prompts again and again while a model trains: a grid of what it makes of them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vidpred import distributed
from vidpred.prediction import Predictor
from vidpred.video_io import save_clip_grid


@dataclass(frozen=True)
class PromptPictures:
    """prompts: texts, or class names. height, width: of the pictures. batch_size: clips that a process draws at once.
    seed: of the noise, which is that of the prompt's place. num_frames: of each clip, 1 for pictures."""

    prompts: tuple[str, ...]
    height: int
    width: int
    batch_size: int
    seed: int
    num_frames: int

    def save(self, predictor: Predictor, folder: Path, num_steps: int, fps: float) -> list[Path]:
        """Draws them, shared over ranks, which must all call it; rank 0 writes prompts.png, or .gif and .mp4, in the
        order of the prompts row by row, and returns the paths."""
        if not self.prompts:
            return []
        shares = distributed.gather_or_fail(lambda: self._share(predictor, num_steps))
        if not distributed.is_main():
            return []
        clips = dict(row for share in shares for row in share)
        return save_clip_grid(folder, "prompts", torch.stack([clips[i] for i in sorted(clips)]), fps)

    def _share(self, predictor: Predictor, num_steps: int) -> list[tuple[int, Tensor]]:
        """(number of the prompt, (T, 3, H, W) uint8) of this rank."""
        mine, rows = list(distributed.shard(len(self.prompts))), []
        for place in range(0, len(mine), self.batch_size):
            numbers = mine[place : place + self.batch_size]
            clips = predictor.generate(
                self.height, self.width, torch.tensor(numbers), self.seed,
                condition=predictor.prompts([self.prompts[number] for number in numbers]),
                num_frames=self.num_frames, num_inference_steps=num_steps, purpose="prompts",
            )  # fmt: skip
            rows += zip(numbers, clips)
        return rows
