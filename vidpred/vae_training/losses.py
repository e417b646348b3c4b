"""The terms of a VAE's loss, each (N,): one value per image."""

import torch.nn.functional as F
from torch import Tensor


def l1(images: Tensor, truth: Tensor) -> Tensor:
    """Mean |difference| over colours and pixels of (N, 3, H, W) -> (N,)."""
    return (images - truth).abs().flatten(1).mean(1)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) in nats, the mean over the numbers of a latent (N, C, h, w) -> (N,): for
    each, (mean^2 + variance - 1 - ln variance) / 2 (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).mean(1)


def hinge_generator(fake: Tensor) -> Tensor:
    """Scores (N, 1, h, w) of the patches of reconstructions -> -mean (Lim and Ye 2017, "Geometric GAN")."""
    return -fake.flatten(1).mean(1)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Scores of patches of true images and of reconstructions -> (mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2:
    1 where nothing is told apart, 0 where everything is, with a margin."""
    return 0.5 * (F.relu(1 - real).flatten(1).mean(1) + F.relu(1 + fake).flatten(1).mean(1))
