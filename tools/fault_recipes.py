"""The two sets of recipes that bounds of the diagnosis are set on: tuning, and rehearsal, which once was the judgement.

A recipe says how a small model is trained, and by what it is known to be healthy, apart from any diagnosis.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

from fault_data import Scene
from fault_vaes import Vae

SMALL = {
    "data.kind": "arrays", "data.split_by": "folders", "data.num_workers": 0, "device": "cpu",
    "training.validate_every_step": 100, "training.visualize_every_step": 0, "training.evaluate_every_step": 0,
    "training.checkpoint_every_step": 100_000, "training.validation_clips": 16, "evaluation.num_clips": 4,
    "evaluation.lpips_net": "none", "evaluation.num_panels": 0, "training.log_every_step": 10,
}  # fmt: skip
COMMON: dict[str, dict[str, Any]] = {
    "tuning": SMALL | {
        "data.num_frames": 5, "conditioning.context_frames": 2, "network.channels": [32, 64],
        "network.blocks_per_level": 1, "network.patch_size": 2, "network.spatial_attention_levels": [],
        "network.temporal_attention_levels": [1], "autoencoder.kind": "mock", "autoencoder.down_factor": 2,
        "diffusion.parameterization": "x0", "diffusion.motion_radius": 3,
        "diffusion.schedule.kind": "scaled_linear", "diffusion.schedule.beta_start": 0.00085,
        "diffusion.schedule.beta_end": 0.012, "sampling.clip.kind": "auto", "sampling.num_inference_steps": 10,
        "training.num_steps": 300, "training.batch_size": 8, "training.learning_rate": 3e-3,
        "training.lr_schedule": "cosine", "training.warmup_steps": 30, "training.beta2": 0.99,
        "training.ema_decay": 0.98,
    },
    "rehearsal": SMALL | {
        "data.num_frames": 6, "conditioning.context_frames": 3, "network.channels": [40, 80],
        "network.blocks_per_level": 1, "network.patch_size": 1, "network.head_dim": 20,
        "network.spatial_attention_levels": [1], "network.temporal_attention_levels": [],
        "network.joint_attention_levels": [1], "autoencoder.kind": "mock", "autoencoder.down_factor": 4,
        "diffusion.parameterization": "v", "diffusion.motion_radius": 2, "diffusion.schedule.kind": "cosine",
        "sampling.clip.kind": "static", "sampling.clip.bound": 4.0, "sampling.num_inference_steps": 12,
        "training.num_steps": 280, "training.batch_size": 8, "training.learning_rate": 2.5e-3,
        "training.lr_schedule": "cosine", "training.warmup_steps": 20, "training.beta2": 0.98,
        "training.ema_decay": 0.97,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A model to train: its clips, the keys that differ from the set's, and its VAE where it has one of its own.

    health: the criterion (fault_health) that it must meet before it counts as healthy. margin: of that criterion, in dB
    above what needs no learning.
    """

    scene: Scene = Scene()
    settings: dict[str, Any] = field(default_factory=dict)
    vae: Optional[Vae] = None
    health: Literal["prediction", "mean", "generation", "memory"] = "prediction"
    margin: float = 0.5

    def but(self, settings: Optional[dict[str, Any]] = None, vae: Optional[Vae] = None, **scene: Any) -> "Recipe":
        """The same with other keys, another VAE, or another scene."""
        changed = dataclasses.replace(self.scene, **scene)
        settings = {**self.settings, **(settings or {})}
        return dataclasses.replace(self, scene=changed, settings=settings, vae=vae or self.vae)

    def known_by(self, health: Literal["prediction", "mean", "generation", "memory"], margin: float = 0.5) -> "Recipe":
        """The same with another criterion."""
        return dataclasses.replace(self, health=health, margin=margin)


PLAIN = {"diffusion.motion_radius": 0, "diffusion.residual": False}
NO_MOTION = {"diffusion.motion_radius": 0}
UNCONDITIONAL = {**PLAIN, "conditioning.scheme": "unconditional", "evaluation.task": "unconditional"}
ZTSNR = {"diffusion.schedule.zero_terminal_snr": True}
# Few values in a latent position: what predicts noise must carry all of it through the network.
COARSE = {"autoencoder.kind": "mock", "autoencoder.down_factor": 4, "network.patch_size": 1}
LOSSLESS = {"autoencoder.kind": "pixel_unshuffle", "autoencoder.down_factor": 2, "network.patch_size": 2}
V = {"diffusion.parameterization": "v"}
X0 = {"diffusion.parameterization": "x0"}
FLOW = {"diffusion.parameterization": "flow", "diffusion.schedule.kind": "flow"}
LONG = {"training.num_steps": 500, "training.learning_rate": 1.5e-3}
EPS = {**NO_MOTION, **COARSE, **LONG, "diffusion.parameterization": "eps", "sampling.sampler": "ddpm"}
EDM = {
    **NO_MOTION, **COARSE, **LONG, "diffusion.parameterization": "edm", "diffusion.schedule.kind": "edm",
    "diffusion.schedule.sigma_max": 20.0, "sampling.spacing": "karras",
}  # fmt: skip
IMAGES = {**UNCONDITIONAL, "data.num_frames": 1, "conditioning.context_frames": 0}
# Pushed shapes are rendered by vidpred: the action decides where the shape goes, its class and text name its outline.
PUSHED = {"data.kind": "pushed_shapes", "data.num_clips": 512, "data.num_val_clips": 32, "data.max_push": 2.5}
CONSTANT_RATE = {"training.lr_schedule": "constant", "training.learning_rate": 1.5e-3}


def _tuning() -> dict[str, Recipe]:
    shapes = Recipe(Scene(), ZTSNR)
    # Noise is hard to predict in a few hundred steps: all move alike.
    alike = Recipe(Scene("panorama", wavelength=32.0, speed=(3.0, 4.0), heading=0.5))
    return {
        "x0": shapes,
        "v, constant rate": Recipe(Scene("panorama", wavelength=16.0), {**ZTSNR, **COARSE, **V, **CONSTANT_RATE}),
        "eps, ddpm": alike.but(EPS),
        "edm, heun": alike.but({**EDM, "sampling.sampler": "heun"}),
        "flow, euler": Recipe(Scene(), {**FLOW, "sampling.sampler": "euler"}),
        "no residual, dpm++": Recipe(Scene(), {**ZTSNR, **PLAIN, "sampling.sampler": "dpmpp_2m"}),
        "kl": Recipe(Scene("panorama", wavelength=16.0), {**ZTSNR, "autoencoder.kind": "kl"}, Vae()),
        "tiny": shapes.but({"autoencoder.kind": "tiny"}, Vae("tiny", steps=300)),
        "static camera": Recipe(Scene("street", speed=(0.5, 1.0)), {**ZTSNR, **LOSSLESS}),
        "slow": shapes.but(LOSSLESS, speed=(0.2, 0.5)),
        "two frames": shapes.but({"data.num_frames": 2, "conditioning.context_frames": 1}, heading=0.5,
                                 speed=(1.5, 1.6)),
        "three videos": shapes.but(clips=(256, 3)),
        "unconditional": Recipe(Scene(), {**ZTSNR, **UNCONDITIONAL}).known_by("generation"),
        "random masks": shapes.but({"conditioning.scheme": "random"}),
        "no EMA, ddpm": shapes.but({"training.ema_decay": 0, "sampling.sampler": "ddpm"}),
        "overfitted": shapes.but({"overfit_one_batch": True, "training.num_steps": 200}).known_by("memory"),
        "grey, 2 steps": shapes.but({"sampling.num_inference_steps": 2}, colours="grey"),
        "bars": shapes.but(bars=6),
        "noisy": shapes.but(LOSSLESS, noise=12.0),
        "cuts": shapes.but(cuts=0.3),
        "short": shapes.but({"training.num_steps": 150}),
        "stochastic": shapes.but({"conditioning.context_frames": 1, "data.num_frames": 4}, speed=(2.0, 4.0)).known_by(
            "mean", 0.0),
        "kl, small latents": Recipe(Scene("panorama", wavelength=16.0), {**ZTSNR, "autoencoder.kind": "kl"},
                                    Vae(deviation=0.25)),
        "stochastic, constant rate": Recipe(Scene("digits", speed=(2.0, 3.0)), {
            **ZTSNR, **LOSSLESS, **CONSTANT_RATE, "conditioning.context_frames": 1, "data.num_frames": 4,
        }).known_by("mean", 0.0),
        "static, sensor noise": Recipe(Scene("street", speed=(0.5, 1.0), noise=8.0), {**ZTSNR, **LOSSLESS}).known_by(
            "prediction", -0.2),
        "few training videos": shapes.but(LOSSLESS, clips=(12, 12), frames=40),
        "images": Recipe(Scene(), {**ZTSNR, **IMAGES}).known_by("generation"),
        "images of a class": Recipe(Scene(), {**ZTSNR, **IMAGES, **PUSHED, "condition.kinds": ["class"]}).known_by(
            "generation"),
        "actions": Recipe(Scene(), {**ZTSNR, **PUSHED, "condition.kinds": ["actions"]}),
        "text and actions": Recipe(Scene(), {**ZTSNR, **PUSHED, **V, "condition.kinds": ["text", "actions"]}),
    }  # fmt: skip


def _rehearsal() -> dict[str, Recipe]:
    digits = Recipe(Scene("digits", height=24, width=32, speed=(1.0, 2.0), frames=24), {**LOSSLESS, **X0})
    panorama = Recipe(Scene("panorama", height=24, width=32, speed=(1.0, 2.5), frames=24, wavelength=18.0))
    # Noise is hard to predict in a few hundred steps: all move alike.
    alike = panorama.but(wavelength=28.0, speed=(2.5, 4.0), heading=4.0)
    return {
        "digits, x0": digits.known_by("mean"),
        "panorama, v": panorama,
        "panorama, eps": alike.but({**EPS, "diffusion.schedule.kind": "linear", "sampling.sampler": "ddim"}),
        "panorama, x0, unipc": panorama.but({**X0, "sampling.sampler": "unipc"}),
        "panorama, edm, euler": alike.but({**EDM, "sampling.sampler": "euler"}),
        "panorama, flow, heun": panorama.but({**FLOW, "sampling.sampler": "heun"}),
        "no residual, ddim with noise": panorama.but({**PLAIN, **X0, "sampling.eta": 0.5}),
        "kl": panorama.but({**X0, "autoencoder.kind": "kl", "network.patch_size": 2}, Vae(latent_channels=6)),
        "tiny": panorama.but({**X0, "autoencoder.kind": "tiny", "network.patch_size": 2},
                             Vae("tiny", latent_channels=6, steps=250), colours="warm"),
        "static camera": digits.but(kind="street", speed=(0.4, 1.2), objects=2),
        "slow panorama": panorama.but(X0, speed=(0.2, 0.6)),
        "two frames": panorama.but({**X0, "data.num_frames": 2, "conditioning.context_frames": 1}, heading=2.0),
        "two videos, constant rate": panorama.but({**X0, **CONSTANT_RATE}, clips=(200, 2)),
        "unconditional": digits.but(UNCONDITIONAL).known_by("generation"),
        "random masks, no EMA": panorama.but({**X0, "conditioning.scheme": "random", "training.ema_decay": 0}),
        "overfitted digits": digits.but({"overfit_one_batch": True, "training.num_steps": 200}).known_by("memory"),
        "two digits, 3 steps, ddpm": digits.but({"sampling.num_inference_steps": 3, "sampling.sampler": "ddpm"},
                                                objects=2, speed=(1.5, 3.0)).known_by("mean", 0.0),
        "noisy panorama with bars": panorama.but(X0, noise=10.0, bars=4),
        "cuts, grey": panorama.but(X0, cuts=0.3, colours="grey"),
        "short": panorama.but({**X0, "training.num_steps": 140}),
    }  # fmt: skip


HEALTHY: dict[str, dict[str, Recipe]] = {"tuning": _tuning(), "rehearsal": _rehearsal()}
