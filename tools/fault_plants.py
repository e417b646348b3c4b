"""The faults: one function for each, which plants it into a model of the bench.

A plant is a function of (set, fault, number, attempt). The bench measures what it changes for somebody who looks at
predictions, and asks for the next attempt, which is another base or a stronger fault, where that is too little.
"""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import fault_edits as edits
import numpy as np
from fault_data import write_scene
from fault_models import COMMON, CONSTANT_RATE, HEALTHY, NO_MOTION, PLAIN, X0, Model, Recipe, SetName, trained
from fault_vaes import written_vae

from vidpred.random_streams import host_generator

# Healthy models whose checkpoints are edited; `colours` have red and blue that differ, `eps` may explode.
BASES: dict[str, dict[str, list[str]]] = {
    "tuning": {
        "any": ["x0", "flow, euler", "v, constant rate"],
        "residual x0": ["x0", "three videos", "bars"],
        "absolute": ["no residual, dpm++"],
        "vae": ["kl", "tiny"],
        "kl": ["kl"],
        "eps": ["eps, ddpm"],
        "colours": ["no residual, dpm++", "tiny", "kl"],
        "scenes": ["x0", "no residual, dpm++", "v, constant rate"],
    },
    "judgement": {
        "any": ["digits, x0", "panorama, v", "panorama, flow, heun", "panorama, x0, unipc", "short"],
        "residual x0": [
            "panorama, x0, unipc", "digits, x0", "short", "two videos, constant rate", "random masks, no EMA",
        ],
        "absolute": ["no residual, ddim with noise"],
        "vae": ["kl", "tiny"],
        "kl": ["kl"],
        "eps": ["panorama, eps"],
        "colours": ["tiny", "kl", "no residual, ddim with noise"],
        "scenes": ["panorama, x0, unipc", "digits, x0", "no residual, ddim with noise", "panorama, v", "short"],
    },
}


HARDLY = 1 / 3  # of what a twin gains over the copied last frame: a model that has learned hardly anything


@dataclass(frozen=True)
class Planted:
    """A broken model and its healthy twin, each with the sound clips that its user would show it.

    windows: of a training window's length that are predicted, one after the other. gain: at most this part of what the
    twin has over the copied last frame is left, in dB; None: not asked.
    """

    checkpoint: Path
    twin: Path
    clips: Path
    twin_clips: Path
    windows: int = 1
    gain: Optional[float] = None


@dataclass(frozen=True)
class Case:
    """One fault to plant. out: the set's folder; folder: what belongs to this case alone."""

    set_name: SetName
    fault: str
    number: int
    attempt: int
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / "cases" / f"{self.fault}_{self.number}"

    @property
    def generator(self) -> np.random.Generator:
        return host_generator(self.number, f"{self.set_name} {self.fault} {self.attempt}", 0)

    def base(self, group: str) -> Model:
        """A healthy model: another one for each number and attempt, as far as the group goes."""
        kinds = BASES[self.set_name][group]
        return healthy(self.set_name, kinds[(self.number + self.attempt) % len(kinds)], self.out)

    def train(self, recipe: Recipe) -> Model:
        """A model of this case alone."""
        name = f"{self.fault}_{self.number}_{self.attempt}"
        return trained(self.set_name, recipe, 100 + self.number, self.out, name)

    def edit(self, base: Model, *changes: edits.Edit, **others: Any) -> Planted:
        """`base` after `changes`."""
        shutil.rmtree(self.folder, ignore_errors=True)
        checkpoint = edits.edited(base.checkpoint, self.folder, *changes)
        return dataclasses.replace(Planted(checkpoint, base.checkpoint, base.clips, base.clips), **others)

    def edit_vae(self, base: Model, *changes: Callable) -> Planted:
        """`base` with a changed copy of its VAE's folder."""

        def change(network: Any) -> None:
            for one in changes:
                one(network)

        source = Path(edits.read_checkpoint(base.checkpoint, with_state=False).config["autoencoder"]["pretrained"])
        planted = self.edit(base)
        folder = edits.edited_vae(source, self.folder / "vae", change)
        edits.edited(planted.checkpoint, self.folder, edits.set_keys({"autoencoder.pretrained": str(folder)}))
        return planted


def healthy(set_name: SetName, kind: str, out: Path) -> Model:
    """The healthy model of a kind, trained where it is not."""
    kinds = list(HEALTHY[set_name])
    return trained(set_name, HEALTHY[set_name][kind], kinds.index(kind), out, f"healthy_{kinds.index(kind)}")


# Weights ---------------------------------------------------------------------------------------------------


def weights_not_finite(case: Case) -> Planted:
    value = (np.nan, np.inf)[case.number % 2]
    return case.edit(case.base("any"), edits.spoil(case.generator, value))


def weights_exploded(case: Case) -> Planted:
    part, factor = (("", 2.5), ("head.", 40.0), ("up.", 3.0))[case.number % 3]
    return case.edit(case.base("any"), edits.scale_weights(factor * 1.5**case.attempt, part))


def untrained(case: Case) -> Planted:
    base = case.base("scenes")
    steps = {"training.num_steps": 1 + case.number, "training.warmup_steps": 0, "training.learning_rate": 1e-4}
    return _beside(case.train(base.recipe.but(steps)), base)


def undertrained(case: Case) -> Planted:
    """Stopped at 10 to 24 % of the steps, with a low rate."""
    base = case.base("scenes")
    share = (0.1, 0.16, 0.24, 0.13, 0.2)[case.number % 5]
    keys = {"training.lr_schedule": "constant", "training.warmup_steps": 10,
            "training.learning_rate": 3e-4 / 1.6**case.attempt}  # fmt: skip
    keys["training.num_steps"] = round(share * _steps(case.set_name, base.recipe))
    return _beside(case.train(base.recipe.but(keys)), base, gain=HARDLY)


def loss_plateau(case: Case) -> Planted:
    """A network that is too small, or a rate that is too high and never lowered."""
    base = case.base("scenes")
    if case.number % 2 == 0:
        width = (8, 8, 6)[min(case.attempt, 2)]
        keys = {**PLAIN, "network.channels": [width, width], "network.head_dim": width, "network.blocks_per_level": 1,
                "network.temporal_attention_levels": [], "network.joint_attention_levels": [],
                "network.spatial_attention_levels": [], "training.num_steps": 500,
                "training.lr_schedule": "cosine"}  # fmt: skip
    else:
        keys = {"training.lr_schedule": "constant", "training.learning_rate": 0.02 * 1.5**case.attempt}
    return _beside(case.train(base.recipe.but(keys)), base, gain=HARDLY)


# What is loaded, and how it is fed -----------------------------------------------------------------------------


def wrong_parameterization(case: Case) -> Planted:
    base = case.base(("any", "absolute", "any")[case.number % 3])
    config = edits.read_checkpoint(base.checkpoint, with_state=False).config["diffusion"]
    names = [name for name in ("x0", "v", "flow", "edm") if name != config["parameterization"]]
    if not (config["motion_radius"] or config["schedule"]["zero_terminal_snr"] or config["schedule"]["kind"] == "flow"):
        names.append("eps")
    name = names[(case.number + case.attempt) % len(names)]
    return case.edit(base, edits.set_keys({"diffusion.parameterization": name}))


def wrong_schedule(case: Case) -> Planted:
    """Levels of another family, or that end at little noise; the network is told the true angle of every level."""
    base = case.base("any")
    flow = base.recipe.settings.get("diffusion.schedule.kind") == "flow"
    changes = [
        {"kind": "linear", "beta_start": 1e-4, "beta_end": 2e-3, "zero_terminal_snr": False},
        {"kind": "edm", "zero_terminal_snr": False, "sigma_max": 20.0},
        {"kind": "scaled_linear", "beta_start": 1e-4, "beta_end": 1e-3, "zero_terminal_snr": False},
        {"kind": "cosine", "zero_terminal_snr": False} if flow else {"kind": "flow", "zero_terminal_snr": False},
    ]
    chosen = changes[(case.number + case.attempt) % len(changes)]
    # Samplers of diffusers know the levels of one family only.
    keys = {f"diffusion.schedule.{key}": value for key, value in chosen.items()} | {"sampling.sampler": "ddim"}
    return case.edit(base, edits.set_keys(keys))


def latent_scale_missing(case: Case) -> Planted:
    if case.number % 2:
        return case.edit_vae(case.base("kl"), edits.rescale(0))
    return case.edit(case.base("any"), edits.without_calibration)


def latent_scale_doubled(case: Case) -> Planted:
    if case.number % 2:
        return case.edit_vae(case.base("kl"), edits.rescale(2))
    return case.edit(case.base("any"), edits.calibrated_twice)


def wrong_pixel_normalization(case: Case) -> Planted:
    base = case.base(("vae", "any", "absolute")[case.number % 3])
    return case.edit(base, edits.set_keys({"autoencoder.pixel_norm": "imagenet"}))


def wrong_channel_order(case: Case) -> Planted:
    """Before the encoder, after the decoder, or in the files."""
    way = (case.number + case.attempt) % 3
    if way < 2:
        return case.edit_vae(case.base("vae"), (edits.swap_input, edits.swap_output)[way])
    base = case.base("colours")
    swapped = write_scene(dataclasses.replace(base.recipe.scene, damage="swapped"), case.out / "clips")
    return case.edit(base, edits.set_keys({"data.root": str(swapped)}), clips=swapped)


def vae_not_loaded(case: Case) -> Planted:
    return case.edit_vae(case.base("vae"), edits.reinitialise(case.number))


def wrong_vae(case: Case) -> Planted:
    """One of the same shape that is good by itself, with latents of its own."""
    base = case.base("vae")
    other = dataclasses.replace(base.recipe.vae, seed=base.recipe.vae.seed + 50 + case.number)
    folder = written_vae(other, base.clips, case.out / "vaes")
    return case.edit(base, edits.set_keys({"autoencoder.pretrained": str(folder)}))


def vae_bottleneck(case: Case) -> Planted:
    base = case.base("scenes")
    recipe = base.recipe.but({"autoencoder.min_psnr": 0.0, "autoencoder.kind": "mock", "network.patch_size": 1,
                              "autoencoder.down_factor": 8})  # fmt: skip
    return _beside(case.train(recipe), base)


# How it is drawn -----------------------------------------------------------------------------------------------


def clip_bound_binds(case: Case) -> Planted:
    bound = float((0.7, 0.5, 0.9, 0.6, 0.4)[case.number % 5] / 1.5**case.attempt)
    keys = {"sampling.clip.kind": "static", "sampling.clip.bound": bound}
    return case.edit(case.base("any"), edits.set_keys(keys))


def unclipped_x0_explodes(case: Case) -> Planted:
    base = case.base("eps")
    steps = max(2, 8 - 2 * ((case.number + case.attempt) % 4))
    keys = {"sampling.clip.kind": "none", "sampling.num_inference_steps": steps}
    if case.number or case.attempt:  # a model of its own, trained for a shorter time
        base = case.train(base.recipe.but({"training.num_steps": 250 - 50 * case.attempt}))
    return case.edit(base, edits.set_keys(keys))


# What it was trained on, and to do ------------------------------------------------------------------------------


def given_frames_ignored(case: Case) -> Planted:
    """In training, given frames were those of another clip."""
    base = case.base("scenes")
    frames = COMMON[case.set_name]["data.num_frames"]  # the only window of each clip, so that the seam has its place
    known = COMMON[case.set_name]["conditioning.context_frames"]
    model = case.train(base.recipe.but(PLAIN, frames=frames, held=known, damage="foreign"))
    planted = case.edit(model, edits.set_keys({"data.root": str(base.clips)}))
    return dataclasses.replace(planted, twin=base.checkpoint, clips=base.clips, twin_clips=base.clips)


def frozen_output(case: Case) -> Planted:
    """A residual that is nothing, or a model of nearly still clips that is shown moving ones."""
    base = case.base("scenes")
    still = base.recipe.but({**NO_MOTION, **X0, "diffusion.residual": True})
    if case.number % 2 == 0:
        return case.edit(case.train(still), edits.scale_weights(0.02 / 2**case.attempt, "head."))
    slow = case.train(still.but(speed=(0.05, 0.15)))
    planted = case.edit(slow, edits.set_keys({"data.root": str(base.clips)}))
    return dataclasses.replace(planted, twin=base.checkpoint, clips=base.clips, twin_clips=base.clips)


def rollout_drift(case: Case) -> Planted:
    base = case.base("residual x0")
    strength = 1.4**case.attempt
    bias, gain = ((0.18, 1.0), (-0.18, 1.0), (0.15, 1.1), (0.2, 1.0), (-0.2, 1.0))[case.number % 5]
    return case.edit(base, edits.shift_head(bias * strength, 1 + (gain - 1) * strength), windows=4)


def data_constant(case: Case) -> Planted:
    return _trained_on(case, "constant")


def data_duplicated(case: Case) -> Planted:
    return _trained_on(case, ("duplicated", "one_clip")[case.number % 2])


def data_shuffled(case: Case) -> Planted:
    return _trained_on(case, "shuffled")


# The average ----------------------------------------------------------------------------------------------------


def ema_never_updated(case: Case) -> Planted:
    return case.edit(case.base("any"), edits.average_is("start", updates=0 if case.number % 2 == 0 else None))


def ema_not_loaded(case: Case) -> Planted:
    """The raw weights of a noisy training in the place of their average."""
    recipe = case.base("scenes").recipe
    keys = {**CONSTANT_RATE, "training.learning_rate": 8e-3 * 1.4**case.attempt, "training.batch_size": 2,
            "training.ema_decay": 0.98}  # fmt: skip
    return case.edit(case.train(recipe.but(keys)), edits.average_is("model"))


def ema_too_slow(case: Case) -> Planted:
    recipe = case.base("scenes").recipe
    decay = (0.9999, 0.9995, 0.999, 0.9998, 0.9997)[case.number % 5]
    model = case.train(recipe.but({"training.ema_decay": decay, "training.ema_warmup": False}))
    twin = edits.edited(model.checkpoint, case.folder / "twin", edits.average_is("model"))
    return Planted(model.checkpoint, twin, model.clips, model.clips)


FAULTS: dict[str, Callable[[Case], Planted]] = {
    plant.__name__: plant
    for plant in (
        untrained, undertrained, loss_plateau, weights_not_finite, weights_exploded, wrong_parameterization,
        wrong_schedule, latent_scale_missing, latent_scale_doubled, wrong_pixel_normalization, wrong_channel_order,
        vae_not_loaded, wrong_vae, vae_bottleneck, clip_bound_binds, unclipped_x0_explodes, given_frames_ignored,
        frozen_output, rollout_drift, ema_never_updated, ema_not_loaded, ema_too_slow, data_constant,
        data_duplicated, data_shuffled,
    )  # fmt: skip
}


def _beside(model: Model, base: Model, gain: Optional[float] = None) -> Planted:
    """A model that was trained wrongly, and the healthy one, both on the healthy one's clips."""
    return Planted(model.checkpoint, base.checkpoint, base.clips, base.clips, gain=gain)


def _steps(set_name: SetName, recipe: Recipe) -> int:
    return recipe.settings.get("training.num_steps", COMMON[set_name]["training.num_steps"])


def _trained_on(case: Case, damage: str) -> Planted:
    """Damaged clips, of eight frames, so that there is something to see of their order."""
    base = case.base("scenes")
    long = base.recipe.but({"data.num_frames": 8})
    twin = trained(case.set_name, long, base.number, case.out, f"eight_frames_{base.number}")
    return _beside(case.train(long.but(damage=damage)), twin)
