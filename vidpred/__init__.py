"""vidpred: frame-conditioned latent diffusion for video prediction."""

__version__ = "0.1.0"
