"""diffusers' AutoencoderKL and AutoencoderTiny, by hub name or from a local folder.

Notation: z is what the VAE's encoder returns; the latents of this package are (z - shift) * scale with the
constants of the VAE's own configuration, so that they are of about unit scale whatever the VAE.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Optional

import torch
from torch import Tensor, nn

from vidpred.autoencoders.base import AUTOENCODERS, Autoencoder, AutoencoderConfig
from vidpred.downloads import reachable
from vidpred.errors import UserError
from vidpred.tensor_ops import append_dims

KIND_OF_CLASS = {"AutoencoderKL": "kl", "AutoencoderTiny": "tiny"}


@dataclass
class PretrainedConfig(AutoencoderConfig):
    """Where the weights come from, and in which precision they run."""

    pretrained: str = ""
    """Name on the Hugging Face hub (owner/name) or a local folder that `save_pretrained` wrote."""

    subfolder: Optional[str] = None
    """Folder inside it, for example vae for a whole Stable Diffusion pipeline."""

    revision: Optional[str] = None
    """Branch, tag or commit on the hub."""

    half: bool = False
    """Run the autoencoder in bfloat16 (it has float32's range, so that no VAE overflows)."""

    section: ClassVar[str] = "autoencoder"
    """Where in the configuration the user has named it; for messages."""


@dataclass
class KLConfig(PretrainedConfig):
    """diffusers AutoencoderKL (Stable Diffusion's VAE); latents are the mean of the posterior."""

    kind: str = "kl"
    """Which autoencoder: kl, tiny, mock, pixel_unshuffle or identity."""

    pretrained: str = "stabilityai/sd-vae-ft-mse"
    """Name on the Hugging Face hub (owner/name) or a local folder that `save_pretrained` wrote."""


@dataclass
class TinyConfig(PretrainedConfig):
    """diffusers AutoencoderTiny (TAESD): a small, fast VAE with the latents of a large one."""

    kind: str = "tiny"
    """Which autoencoder: kl, tiny, mock, pixel_unshuffle or identity."""

    pretrained: str = "madebyollin/taesd"
    """Name on the Hugging Face hub (owner/name) or a local folder that `save_pretrained` wrote."""


class KLAutoencoder(Autoencoder):
    """AutoencoderKL with its scaling factor and, where the VAE has them, its shift or per-channel moments."""

    def __init__(self, config: KLConfig, vae: nn.Module, name: str):
        channels, factor = vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1)
        super().__init__(config, name=name, latent_channels=channels, down_factor=factor)
        self.vae = vae
        shift, scale = _latent_constants(vae.config)
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def encode_images(self, images: Tensor) -> Tensor:
        z = self.vae.encode(_prepare(images, self.vae)).latent_dist.mode().float()
        return (z - append_dims(self.shift.float(), 3)) * append_dims(self.scale.float(), 3)

    def decode_images(self, latents: Tensor) -> Tensor:
        z = latents / append_dims(self.scale.float(), 3) + append_dims(self.shift.float(), 3)
        return self.vae.decode(_prepare(z, self.vae)).sample


class TinyAutoencoder(Autoencoder):
    """AutoencoderTiny; its encoder is trained to return the large VAE's latents already scaled."""

    def __init__(self, config: TinyConfig, vae: nn.Module, name: str):
        channels, factor = vae.config.latent_channels, 2 ** (len(vae.config.encoder_block_out_channels) - 1)
        super().__init__(config, name=name, latent_channels=channels, down_factor=factor)
        self.vae = vae

    def encode_images(self, images: Tensor) -> Tensor:
        return self.vae.encode(_prepare(images, self.vae)).latents

    def decode_images(self, latents: Tensor) -> Tensor:
        return self.vae.decode(_prepare(latents, self.vae)).sample


@AUTOENCODERS.register("kl", KLConfig)
def build_kl(config: KLConfig) -> Autoencoder:
    return KLAutoencoder(config, load_kl(config), f"the VAE {_where(config)}")


def load_kl(config: KLConfig) -> nn.Module:
    """The bare AutoencoderKL that `config` names; see `load_vae`."""
    from diffusers import AutoencoderKL

    return load_vae(AutoencoderKL, config)


@AUTOENCODERS.register("tiny", TinyConfig)
def build_tiny(config: TinyConfig) -> Autoencoder:
    from diffusers import AutoencoderTiny

    return TinyAutoencoder(config, load_vae(AutoencoderTiny, config), f"the VAE {_where(config)}")


def load_vae(vae_class: type, config: PretrainedConfig) -> nn.Module:
    """Loads safetensors weights, all of them: a missing, unexpected or mismatched tensor is a UserError."""
    local = _local_folder(config)
    try:
        if local is not None:
            _check_class(local, vae_class, config)
            vae, info = _from_pretrained(vae_class, config, local, local_files_only=True)
        else:
            vae, info = _from_hub(vae_class, config)
    except (OSError, ValueError, RuntimeError) as error:
        # What diffusers, huggingface_hub, safetensors and the HTTP clients raise, all below these three.
        raise UserError(_cannot_load(config, local, error)) from error
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise UserError(
            f"{config.section}.pretrained: {_where(config)} is not a complete {vae_class.__name__}: "
            f"{len(wrong)} tensors are missing or do not fit (first: {wrong[0]}); use a folder that "
            "save_pretrained wrote"
        )
    # Convolutions read channels-last without a transposition on GPUs and in oneDNN.
    return vae.to(memory_format=torch.channels_last)


def _from_hub(vae_class: type, config: PretrainedConfig) -> tuple[nn.Module, dict]:
    """From the hub's local cache when it is there, so that a run does not depend on the network twice."""
    from huggingface_hub import constants

    try:
        return _from_pretrained(vae_class, config, config.pretrained, local_files_only=True)
    except OSError as error:
        if constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT):
            reason = f"it is not in the local cache and {constants.ENDPOINT} cannot be reached"
            raise UserError(_cannot_load(config, None, reason)) from error
    return _from_pretrained(vae_class, config, config.pretrained, local_files_only=False)


def _from_pretrained(
    vae_class: type, config: PretrainedConfig, source: str | Path, local_files_only: bool
) -> tuple[nn.Module, dict]:
    return vae_class.from_pretrained(
        str(source),
        subfolder=None if isinstance(source, Path) else config.subfolder,  # a local path has it already
        revision=config.revision,
        local_files_only=local_files_only,
        use_safetensors=True,  # a pickled checkpoint is code
        low_cpu_mem_usage=False,
        torch_dtype=torch.bfloat16 if config.half else torch.float32,
        output_loading_info=True,
    )


def _latent_constants(vae_config: Any) -> tuple[Tensor, Tensor]:
    """(shift, scale), each (C,) or (1,): latents = (z - shift) * scale."""
    scale = torch.tensor([float(vae_config.scaling_factor)])
    if vae_config.latents_mean is not None and vae_config.latents_std is not None:
        return torch.tensor(vae_config.latents_mean), scale / torch.tensor(vae_config.latents_std)
    return torch.tensor([float(vae_config.shift_factor or 0.0)]), scale


def _prepare(images: Tensor, vae: nn.Module) -> Tensor:
    return images.to(vae.dtype, memory_format=torch.channels_last)


def _where(config: PretrainedConfig) -> str:
    return f"{config.pretrained}/{config.subfolder}" if config.subfolder else config.pretrained


def _local_folder(config: PretrainedConfig) -> Optional[Path]:
    """The local folder that `pretrained` names, None for a hub name; UserError when it is neither."""
    root = Path(config.pretrained).expanduser()
    folder = root / config.subfolder if config.subfolder else root
    if root.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{config.section}.pretrained: {folder} holds no config.json; name the folder that "
                f"save_pretrained wrote ({config.section}.subfolder: vae for a whole pipeline)"
            )
        return folder
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", config.pretrained):
        raise UserError(
            f"{config.section}.pretrained: '{config.pretrained}' is neither a folder nor a hub name (owner/name); "
            "correct the path"
        )
    return None


def _check_class(folder: Path, vae_class: type, config: PretrainedConfig) -> None:
    name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
    if name != vae_class.__name__:
        kind = KIND_OF_CLASS.get(name) if config.section == PretrainedConfig.section else None
        cure = f"set autoencoder.kind to {kind}" if kind else "use another VAE"
        raise UserError(f"{config.section}.pretrained: {folder} holds {name}, not {vae_class.__name__}; {cure}")


def _cannot_load(config: PretrainedConfig, local: Optional[Path], error: Exception | str) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    cure = (
        "check that the folder is complete"
        if local
        else "check the name and the network, or download it elsewhere and give the local folder"
    )
    return f"{config.section}.pretrained: {_where(config)} cannot be loaded ({reason}); {cure}"
