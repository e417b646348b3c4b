"""The recipes of the judgement: nothing here was ever diagnosed before the rules were frozen.

Other scenes, sizes, schedules and samplers than those that bounds were set on, and a network that is no UNet.
"""

from typing import Any

import fault_network  # noqa: F401  (registers it)
from fault_data import Scene
from fault_recipes import CONSTANT_RATE, NO_MOTION, PLAIN, SMALL, UNCONDITIONAL, Recipe
from fault_vaes import Vae

COMMON: dict[str, Any] = SMALL | {
    "data.num_frames": 7, "conditioning.context_frames": 4, "network.kind": "one_level", "network.width": 64,
    "network.depth": 3, "network.patch_size": 2, "autoencoder.kind": "pixel_unshuffle", "autoencoder.down_factor": 2,
    "diffusion.parameterization": "x0", "diffusion.motion_radius": 3, "diffusion.schedule.kind": "linear",
    "diffusion.schedule.zero_terminal_snr": True, "sampling.clip.kind": "auto", "sampling.sampler": "ddim",
    "sampling.num_inference_steps": 8, "training.num_steps": 400, "training.batch_size": 6,
    "training.learning_rate": 2e-3, "training.lr_schedule": "cosine", "training.warmup_steps": 25,
    "training.beta2": 0.99, "training.ema_decay": 0.975,
}  # fmt: skip

ENDS_EARLY = {"diffusion.schedule.zero_terminal_snr": False}
MOCK = {"autoencoder.kind": "mock", "autoencoder.down_factor": 4, "network.patch_size": 1}
V = {**MOCK, "diffusion.parameterization": "v"}
EPS = {
    **NO_MOTION, **ENDS_EARLY, **MOCK, "diffusion.parameterization": "eps", "diffusion.schedule.kind": "scaled_linear",
    "training.num_steps": 700,
}  # fmt: skip
EDM = {
    **NO_MOTION, **ENDS_EARLY, **MOCK, "diffusion.parameterization": "edm", "diffusion.schedule.kind": "edm",
    "diffusion.schedule.sigma_max": 30.0, "sampling.sampler": "euler", "sampling.spacing": "karras",
    "training.num_steps": 600,
}  # fmt: skip
FLOW = {**ENDS_EARLY, **MOCK, "diffusion.parameterization": "flow", "diffusion.schedule.kind": "flow",
        "sampling.sampler": "heun"}  # fmt: skip
IMAGES = {**UNCONDITIONAL, **MOCK, "data.num_frames": 1, "conditioning.context_frames": 0, "training.batch_size": 24}
PUSHED = {"data.kind": "pushed_shapes", "data.num_clips": 600, "data.num_val_clips": 24, "data.max_push": 2.0,
          "condition.width": 32}  # fmt: skip


def _scene(kind: str, **others: Any) -> Scene:
    return Scene(kind, **({"height": 24, "width": 24, "frames": 30, "clips": (200, 24), "wavelength": 14.0} | others))


def _recipes() -> dict[str, Recipe]:
    rotating, plasma = Recipe(_scene("rotating", speed=(1.0, 2.0))), Recipe(_scene("plasma", speed=(1.0, 2.0)))
    zoom, falling = Recipe(_scene("zoom", speed=(1.0, 2.0))), Recipe(_scene("falling", speed=(1.0, 2.0)))
    balls = Recipe(_scene("balls", speed=(1.0, 2.0)))
    # Noise is hard to predict in a few hundred steps: all move alike.
    alike = Recipe(_scene("rotating", speed=(2.0, 2.5), heading=0.0, wavelength=20.0))
    kicked = Recipe(_scene("kicked", speed=(1.5, 2.5)), {"conditioning.context_frames": 2})
    return {
        "rotating": rotating,
        "rotating, v": rotating.but(V),
        "balls": balls,
        "plasma, v": plasma.but(V),
        "zoom, dpm++": zoom.but({"sampling.sampler": "dpmpp_2m"}),
        "falling letters": falling,
        "rotating, eps": alike.but(EPS),
        "rotating, edm": alike.but(EDM),
        "plasma, flow": plasma.but(FLOW),
        "no residual, cosine schedule": plasma.but({**PLAIN, "diffusion.schedule.kind": "cosine"}),
        "kl": plasma.but({"autoencoder.kind": "kl"}, Vae(latent_channels=6, deviation=4.0)),
        "kl, small latents": plasma.but({"autoencoder.kind": "kl"}, Vae(latent_channels=8, deviation=0.3)),
        "tiny": plasma.but({"autoencoder.kind": "tiny"}, Vae("tiny", latent_channels=6, steps=350),
                           colours="warm"),
        "static camera": balls.but(speed=(0.3, 0.8)),
        "sensor noise": balls.but(noise=7.0, speed=(0.3, 0.8)).known_by("prediction", -0.2),
        "slow rotation": rotating.but(speed=(0.2, 0.5)),
        "two frames": alike.but({"data.num_frames": 2, "conditioning.context_frames": 1, "training.batch_size": 16}),
        "three validation videos": zoom.but(clips=(200, 3)),
        "ten training videos": zoom.but(clips=(10, 12), frames=60),
        "unconditional": falling.but({**UNCONDITIONAL, **MOCK, "training.num_steps": 600}).known_by("generation"),
        "random masks": rotating.but({"conditioning.scheme": "random"}),
        "overfitted": balls.but({"overfit_one_batch": True, "training.num_steps": 250}).known_by("memory"),
        "images": rotating.but(IMAGES).known_by("generation"),
        "images of a class": rotating.but({**IMAGES, **PUSHED, "condition.kinds": ["class"]}).known_by("generation"),
        "actions": rotating.but({**PUSHED, "condition.kinds": ["actions"]}),
        "actions and class, constant rate": rotating.but({**PUSHED, **CONSTANT_RATE,
                                                         "condition.kinds": ["actions", "class"]}),
        "kicked balls, constant rate": kicked.but(CONSTANT_RATE).known_by("mean", 0.0),
        "no EMA, noise in ddim, bars": plasma.but({"training.ema_decay": 0, "sampling.eta": 0.7}, bars=3),
        "cuts, grey": rotating.but(cuts=0.3, colours="grey"),
        "short": zoom.but({"training.num_steps": 200}),
        "constant rate": rotating.but(CONSTANT_RATE),
    }  # fmt: skip


HEALTHY = _recipes()
BASES = {
    "any": ["rotating", "balls", "plasma, flow", "zoom, dpm++", "rotating, v"],
    "residual x0": ["zoom, dpm++", "rotating", "balls", "short", "random masks"],
    "absolute": ["no residual, cosine schedule"],
    "vae": ["kl", "tiny"],
    "kl": ["kl", "kl, small latents"],
    "eps": ["rotating, eps"],
    "colours": ["tiny", "kl", "no residual, cosine schedule"],
    "scenes": ["rotating", "zoom, dpm++", "no residual, cosine schedule", "plasma, v", "falling letters"],
}
