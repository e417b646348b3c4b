"""Two optional terms beside the denoising loss, on the clean estimates D of a batch.

Notation: x_t = alpha_t x0 + sigma_t eps, r = sigma / alpha, s a cleaner level than t, F the network's output.

Consistency (Daras et al. 2023, "Consistent diffusion models", arXiv:2302.09057): the best estimate is a martingale,

    D(x_t) = E[D(x_s) | x_t],    x_s ~ q(x_s | x_t, x0),

so D(x_t) is drawn to D(x_s), which is not moved by it (it knows more):

    L_c = w(t) mean |(D(x_t) - D(x_s)) / c_out(t)|^2

in units of what the network predicts, as the denoising loss is. The perfect denoiser minimises it too. x_s shares with
x_t the noise that the step from s to t leaves: eps_s = q eps + sqrt(1 - q^2) z, q = r_s / r_t, z ~ N(0, I).

Diversity (after the ratio of distances of Mao et al. 2019, "Mode seeking GANs", arXiv:1903.05628): clips 2k and 2k + 1
of a batch, of other captions and other noises, must not have estimates that are closer than the clips themselves,

    L_d = mean_k max(0, 1 - |D_2k - D_2k+1|^2 / |x0_2k - x0_2k+1|^2)

which is 1 where all estimates are the same and 0 for perfect ones. At much noise the best estimate is a mean, and means
are closer than clips: L_d trades error for contrast there, so its weight should be small. Pairs, and not all of a
batch, because draws 2k and 2k + 1 are in one process however many there are.
"""

import torch
from torch import Tensor

from vidpred.diffusion.levels import NoiseLevel
from vidpred.tensor_ops import append_dims


def cleaner_noise(noise: Tensor, fresh: Tensor, level: NoiseLevel, cleaner: NoiseLevel) -> Tensor:
    """eps_s, so that alpha_s x0 + sigma_s eps_s is a draw from q(x_s | x_t, x0).

    noise, fresh: (B, T, ...) eps and z. level, cleaner: (B, T), t and s. Where the two are the same, eps itself.
    """
    below = cleaner.alpha * level.sigma
    q = level.alpha * cleaner.sigma / torch.where(below > 0, below, torch.ones_like(below))
    q = torch.where(level.differs(cleaner), q, torch.ones_like(q)).clamp(max=1)
    kept, added = (append_dims(factor, noise.ndim) for factor in (q, (1 - q**2).sqrt()))
    return kept * noise + added * fresh


def consistency_loss(estimates: Tensor, wanted: Tensor, scale: Tensor, scored: Tensor) -> Tensor:
    """L_c of each clip, without the factor w: (B,).

    estimates, wanted: (B, T, C, H, W), D(x_t) and D(x_s); no gradient flows into the second. scale: (B, T), c_out(t).
    scored: (B, T) bool, the frames it is about.
    """
    scale = append_dims(torch.where(scored, scale, torch.ones_like(scale)), estimates.ndim)
    errors = ((estimates - wanted.detach()) / scale).square().mean(dim=(2, 3, 4))
    return torch.where(scored, errors, 0).sum(dim=1) / scored.sum(dim=1).clamp(min=1)


def diversity_loss(estimates: Tensor, clips: Tensor, scored: Tensor) -> Tensor:
    """L_d of each pair of neighbours: (B/2,), in [0, 1].

    estimates, clips: (B, T, C, H, W), D and x0, B even. scored: (B, T) bool; a pair is compared at the frames that are
    scored in both. 0 for a pair of equal clips, and where there is no such frame.
    """
    both = (scored[::2] & scored[1::2]).to(estimates.dtype)
    found, true = (
        ((values[::2] - values[1::2]).square().mean(dim=(2, 3, 4)) * both).sum(dim=1) for values in (estimates, clips)
    )
    apart = true > 0
    shortfall = (1 - found / torch.where(apart, true, torch.ones_like(true))).clamp(min=0)
    return torch.where(apart, shortfall, 0)
