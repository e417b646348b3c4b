"""The floor of a VAE: the best linear map of the same rate, which needs no training.

Frames are cut into patches of f x f pixels, each a vector of 3 f^2 levels; C principal components of the training
frames' patches stand for it, as C latent channels do in a VAE (their numbers are not rounded, as latents are not).
"""

from dataclasses import dataclass
from typing import Iterable

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vidpred import distributed
from vidpred.tensor_ops import fold_frames, unfold_frames


@dataclass(frozen=True)
class PatchPca:
    """`mean` (D,) and `components` (C, D), orthonormal rows, float64, of patches of `size` x `size`; D = 3 size^2."""

    size: int
    mean: Tensor
    components: Tensor

    def reconstruct(self, frames: Tensor) -> Tensor:
        """uint8 frames (B, T, 3, H, W), H and W multiples of `size` -> the same shape, projected and rounded."""
        folded = fold_frames(frames)
        centred = _patches(folded, self.size).double() - self.mean
        projected = centred @ self.components.mT @ self.components + self.mean
        height = folded.shape[-2] // self.size
        pixels = rearrange(
            projected, "(n h w) (c p q) -> n c (h p) (w q)", n=len(folded), h=height, c=3, p=self.size
        )
        return unfold_frames(pixels.clamp(0, 255).round().to(torch.uint8), len(frames))


def measure_patch_pca(clips: Iterable[Tensor], size: int, components: int) -> PatchPca:
    """The PCA of this rank's clips, uint8 (B, T, 3, H, W) each, and those of all other ranks together.

    `components` of 3 size^2 at most. All sums are of whole numbers below 2^53, so exact in any order.
    """
    dimensions = 3 * size**2
    sums = torch.zeros(dimensions + 1, dimensions, dtype=torch.float64)  # of x, and of x x^T
    count = torch.zeros((), dtype=torch.float64)
    for clip in clips:
        for frame in fold_frames(clip.cpu()):
            patches = _patches(frame[None], size).double()
            sums[0] += patches.sum(0)
            sums[1:] += patches.mT @ patches
            count += len(patches)
    sums, count = distributed.all_reduce_sum(sums), distributed.all_reduce_sum(count)
    mean = sums[0] / count
    covariance = (sums[1:] / count - mean[:, None] * mean).numpy()
    _, vectors = np.linalg.eigh(covariance)  # ascending
    return PatchPca(size, mean, torch.from_numpy(vectors[:, ::-1][:, :components].T.copy()))


def _patches(frames: Tensor, size: int) -> Tensor:
    """(N, 3, H, W) -> (N * H/size * W/size, 3 size^2)."""
    return rearrange(frames.cpu(), "n c (h p) (w q) -> (n h w) (c p q)", p=size, q=size)
