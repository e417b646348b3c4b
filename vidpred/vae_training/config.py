"""The configuration section `vae`: which VAE is trained, from what beginning, by which loss."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Optional

import torch
from torch import nn

from vidpred import errors
from vidpred.autoencoders import KLConfig, load_kl
from vidpred.registry import Registry

VAES = Registry("vae")
LEAST_PICTURE = 32  # of LPIPS
INITIAL_LOG_VARIANCE = -6.0


def _require(holds: bool, key: str, message: str) -> None:
    errors.require(holds, f"vae.{key}: {message}")


@dataclass
class AdversarialConfig:
    """The patch discriminator, which sharpens what L1 and LPIPS leave blurred. Its learning rate is training's."""

    weight: float = 0.0
    """Weight of the generator's hinge loss; 0: there is no discriminator."""
    start_step: int = 10_000
    """Step from which on there is one: before it, reconstructions are too poor to learn anything from."""
    channels: int = 64
    """Channels of its first layer; they double with each of the others."""
    layers: int = 3
    """Layers that halve the picture: 3 judge patches of 70 pixels, 2 of 34, 1 of 16."""

    def __post_init__(self) -> None:
        for key, least in (("weight", 0), ("start_step", 0), ("channels", 1), ("layers", 1)):
            value = getattr(self, key)
            _require(value >= least, f"adversarial.{key}", f"{value} is less than {least}; give a larger one")


@dataclass
class VaeTrainingConfig:
    """What every beginning has in common: the loss."""

    kind: str = ""
    """new: from scratch. pretrained: a given VAE goes on."""
    crop: Optional[int] = None
    """Train on random squares of this side, one of each frame, in pixels; validation and evaluation see whole
    frames. null: whole frames."""
    lpips_weight: float = 0.1
    """Weight of LPIPS beside L1 (of pixels in [-1, 1]); 0: without. The net is evaluation.lpips_net."""
    kl_weight: float = 1e-6
    """Weight of the KL divergence from a standard normal, in nats per latent number."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)

    def __post_init__(self) -> None:
        for key in ("lpips_weight", "kl_weight"):
            value = getattr(self, key)
            _require(value >= 0, key, f"{value} is less than 0; give 0 or more")
        _require(self.crop is None or self.crop >= 1, "crop", f"{self.crop} is no size; give pixels, or null")
        tiny = self.crop is not None and self.crop < LEAST_PICTURE and self.lpips_weight > 0
        _require(not tiny, "crop", f"{self.crop} is less than the {LEAST_PICTURE} pixels of LPIPS; or lpips_weight 0")


@dataclass
class NewVaeConfig(VaeTrainingConfig):
    """diffusers' AutoencoderKL from scratch, of any size."""

    kind: str = "new"
    """new: from scratch. pretrained: a given VAE goes on."""
    block_out_channels: tuple[int, ...] = (64, 128, 256)
    """Channels of each level; every one after the first halves the picture, so three make f = 4."""
    layers_per_block: int = 1
    """Residual blocks of a level in the encoder; the decoder has one more."""
    latent_channels: int = 4
    """Numbers that stand for f x f pixels."""
    norm_num_groups: int = 16
    """Groups of the normalisations; they must divide every level's channels."""
    mid_attention: bool = True
    """Attention in the middle, over all places of the coarsest level. Without it the VAE is convolutional alone, and
    may be trained on small crops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.block_out_channels = tuple(self.block_out_channels)
        least = min(self.block_out_channels, default=0)
        _require(least >= 1, "block_out_channels", f"{list(self.block_out_channels)}: give 1 channel or more a level")
        for key in ("layers_per_block", "latent_channels", "norm_num_groups"):
            value = getattr(self, key)
            _require(value >= 1, key, f"{value} is less than 1; give a larger one")
        for channels in self.block_out_channels:
            _require(
                channels % self.norm_num_groups == 0,
                "norm_num_groups",
                f"{self.norm_num_groups} groups do not divide {channels} channels of block_out_channels; choose a "
                "common divisor",
            )


@dataclass
class PretrainedVaeConfig(VaeTrainingConfig):
    """A given AutoencoderKL goes on, or its decoder alone: the latents stay what they are."""

    kind: str = "pretrained"
    """new: from scratch. pretrained: a given VAE goes on."""
    pretrained: str = "stabilityai/sd-vae-ft-mse"
    """Name on the Hugging Face hub (owner/name) or a local folder that `save_pretrained` wrote."""
    subfolder: Optional[str] = None
    """Folder inside it, for example vae for a whole Stable Diffusion pipeline."""
    revision: Optional[str] = None
    """Branch, tag or commit on the hub."""
    part: Literal["all", "decoder"] = "decoder"
    """What is trained. decoder: the encoder keeps every bit, so models on its latents go on working."""


@dataclass
class _GivenVae(KLConfig):
    section: ClassVar[str] = "vae"


@VAES.register("new", NewVaeConfig)
def build_new(config: NewVaeConfig) -> nn.Module:
    """An untrained AutoencoderKL; its weights come from torch's generator."""
    from diffusers import AutoencoderKL

    levels = len(config.block_out_channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        mid_block_add_attention=config.mid_attention,
        scaling_factor=1.0,  # whoever uses the latents measures their scale
    )
    _narrow_posterior(vae)
    return vae


@torch.no_grad()
def _narrow_posterior(vae: nn.Module) -> None:
    """The deviation of all latents begins at 0.05. As diffusers leaves it, at 1, noise covers the means, which begin at
    a few tenths, and for hundreds of steps nothing is learnt but to make them larger."""
    channels = vae.config.latent_channels  # the second half of the moments is the log variance
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = INITIAL_LOG_VARIANCE


@VAES.register("pretrained", PretrainedVaeConfig)
def build_pretrained(config: PretrainedVaeConfig) -> nn.Module:
    """The given AutoencoderKL, in float32. Raises UserError."""
    return load_kl(_GivenVae(pretrained=config.pretrained, subfolder=config.subfolder, revision=config.revision))
