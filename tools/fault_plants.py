"""The faults: one function for each, which plants it into a model of the bench.

A plant is a function of (set, fault, number, attempt). The bench measures what it changes for somebody who looks at
predictions, and asks for the next attempt, which is another base or a stronger fault, where that is too little.
"""

import dataclasses
from typing import Any, Callable, Optional

import fault_edits as edits
import numpy as np
from fault_case import HARDLY, WHOLE_LAYERS, Case, Planted
from fault_data import write_scene
from fault_health import burst, steps_of
from fault_models import COMMON, Model, trained
from fault_recipes import CONSTANT_RATE, NO_MOTION, PLAIN, X0
from fault_vaes import written_vae

from vidpred.errors import UserError


# Weights ---------------------------------------------------------------------------------------------------


def weights_not_finite(case: Case) -> Planted:
    value = (np.nan, np.inf)[case.number % 2]
    return case.edit(case.base("any"), edits.spoil(case.generator, value))


def weights_exploded(case: Case) -> Planted:
    """A checkpoint that was scaled, or that of a training in a burst of its loss: its record knows nothing else."""
    if case.number % 2:
        base = case.base("scenes")
        keys = {"training.warmup_steps": steps_of(case.set_name, base.recipe), "training.lr_schedule": "constant",
                "training.learning_rate": (1.0, 3.0, 0.5, 10.0, 0.3, 30.0)[case.attempt],
                "training.max_grad_norm": 1e6, "training.log_every_step": 1}  # fmt: skip
        whole = case.train(base.recipe.but(keys), "whole")
        step = burst(whole.run)
        if step is None:
            raise UserError(f"{whole.run}: its loss never diverged")
        return _beside(case.train(base.recipe.but(keys | {"training.num_steps": step})), base)
    part, factor = (("", 2.5), ("head", 40.0), (WHOLE_LAYERS[case.set_name], 3.0))[case.number // 2 % 3]
    return case.edit(case.base("any"), edits.scale_weights(factor * 1.5**case.attempt, part))


def untrained(case: Case) -> Planted:
    """A few steps; or many with a rate that is next to nothing, or of a warmup that has hardly begun."""
    base = case.base("scenes")
    steps = steps_of(case.set_name, base.recipe) // 2
    keys = (
        {"training.num_steps": 1 + case.number, "training.warmup_steps": 0, "training.learning_rate": 1e-4},
        {"training.num_steps": steps, "training.learning_rate": 1e-8},
        {"training.num_steps": steps, "training.lr_schedule": "constant", "training.warmup_steps": 10**9},
    )[case.number % 3]
    return _beside(case.train(base.recipe.but(keys)), base)


def undertrained(case: Case) -> Planted:
    """Stopped at 10 to 24 % of the steps, with a low rate."""
    base = case.base("scenes")
    share = (0.1, 0.16, 0.24, 0.13, 0.2)[case.number % 5]
    keys = {"training.lr_schedule": "constant", "training.warmup_steps": 10,
            "training.learning_rate": 3e-4 / 1.6**case.attempt}  # fmt: skip
    keys["training.num_steps"] = round(share * steps_of(case.set_name, base.recipe))
    return _beside(case.train(base.recipe.but(keys)), base, gain=HARDLY)


def loss_plateau(case: Case) -> Planted:
    """A network that is too small or sees too coarse patches, or a rate that is too high and never lowered."""
    base = case.base("scenes")
    too_small = (_narrow, _coarse)[case.number // 2 % 2]
    keys = too_small(case) if case.number % 2 == 0 else {
        "training.lr_schedule": "constant", "training.learning_rate": 0.02 * 1.5**case.attempt}  # fmt: skip
    return _beside(case.train(base.recipe.but(keys)), base, gain=HARDLY)


def _narrow(case: Case) -> dict[str, Any]:
    width = (8, 8, 6)[min(case.attempt, 2)]
    keys = {**PLAIN, "training.num_steps": 500, "training.lr_schedule": "cosine"}
    if case.set_name == "judgement":
        return keys | {"network.width": width, "network.depth": 1}
    attended = {f"network.{kind}_attention_levels": [] for kind in ("temporal", "joint", "spatial")}
    return keys | attended | {"network.channels": [width, width], "network.head_dim": width}


def _coarse(case: Case) -> dict[str, Any]:
    """Of full width, but a position is a patch of 8 latents' side, and there is one block."""
    keys = {**PLAIN, "network.patch_size": 8, "training.lr_schedule": "cosine"}
    if case.set_name == "judgement":
        return keys | {"network.width": 16, "network.depth": 1}
    return keys | {"network.channels": [16, 16], "network.head_dim": 16}


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
        return case.edit_vae(case.base("kl", turn=case.number // 2), edits.rescale(0))
    return case.edit(case.base("any"), edits.without_calibration)


def latent_scale_doubled(case: Case) -> Planted:
    if case.number % 2:
        return case.edit_vae(case.base("kl", turn=case.number // 2), edits.rescale(2))
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
        base = case.train(base.recipe.but({"training.num_steps": max(250 - 50 * case.attempt, 50)}))
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
        return case.edit(case.train(still), edits.scale_weights(0.02 / 2**case.attempt, "head"))
    slow = case.train(still.but(speed=(0.05, 0.15)))
    planted = case.edit(slow, edits.set_keys({"data.root": str(base.clips)}))
    return dataclasses.replace(planted, twin=base.checkpoint, clips=base.clips, twin_clips=base.clips)


def rollout_drift(case: Case) -> Planted:
    """A sound first window, and every later one further away: trained on clips with a cast after their given frames, or
    that brighten, and used on steady ones; or a last layer with a small bias."""
    strength, way = 1.4**case.attempt, case.number % 3
    if way == 2:
        bias, gain = ((0.18, 1.0), (-0.18, 1.0), (0.15, 1.1))[case.number // 3 % 3]
        shift = edits.shift_head(bias * strength, 1 + (gain - 1) * strength)
        return case.edit(case.base("residual x0"), shift, windows=4)
    base, sign = case.base("scenes"), 1 if case.number < 3 else -1
    frames, known = (COMMON[case.set_name][key] for key in ("data.num_frames", "conditioning.context_frames"))
    # The only window of a clip, so that the cast has its place in it.
    damaged = ({"damage": "cast", "strength": 9.0 * sign * strength, "held": known, "frames": frames},
               {"damage": "brightens", "strength": 3.0 * sign * strength, "frames": frames + 2})[way]  # fmt: skip
    model = case.train(base.recipe.but(X0 | {"diffusion.residual": True}, **damaged))
    planted = case.edit(model, edits.set_keys({"data.root": str(base.clips)}))
    return dataclasses.replace(
        planted, twin=base.checkpoint, clips=base.clips, twin_clips=base.clips, windows=4,
    )  # fmt: skip


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
    recipe = case.base("residual x0").recipe
    keys = {**CONSTANT_RATE, "training.learning_rate": 8e-3 * 1.4**case.attempt, "training.batch_size": 2,
            "training.beta1": 0.5, "training.beta2": 0.9, "training.ema_decay": 0.98}  # fmt: skip
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


def _trained_on(case: Case, damage: str) -> Planted:
    """Damaged clips, of eight frames, so that there is something to see of their order."""
    base = case.base("scenes")
    long = base.recipe.but({"data.num_frames": 8})
    twin = trained(case.set_name, long, base.number, case.out, f"eight_frames_{base.number}")
    return _beside(case.train(long.but(damage=damage)), twin)
