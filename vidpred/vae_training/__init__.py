"""Training a VAE: give frames back from few numbers. One more task of the same trainer; the result is a folder that
loads as `autoencoder.pretrained`."""

from vidpred.vae_training.config import VAES, VaeTrainingConfig

__all__ = ["VAES", "VaeTrainingConfig"]
