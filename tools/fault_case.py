"""A case of the fault bench: the healthy models that faults are planted into, and how they are trained and edited."""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import fault_edits as edits
import fault_judgement as judgement
import numpy as np
from fault_health import healthy
from fault_models import Model, SetName, trained
from fault_recipes import Recipe

from vidpred.errors import UserError
from vidpred.random_streams import host_generator

# Healthy models whose checkpoints are edited; `colours` have red and blue that differ, `eps` may explode.
BASES: dict[str, dict[str, list[str]]] = {
    "judgement": judgement.BASES,
    "tuning": {
        "any": ["x0", "flow, euler", "v, constant rate"],
        "residual x0": ["x0", "three videos", "bars"],
        "absolute": ["no residual, dpm++"],
        "vae": ["kl", "tiny"],
        "kl": ["kl", "kl, small latents"],
        "eps": ["eps, ddpm"],
        "colours": ["no residual, dpm++", "tiny", "kl"],
        "scenes": ["x0", "no residual, dpm++", "v, constant rate"],
    },
    "rehearsal": {
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
WHOLE_LAYERS = {"tuning": "up.", "rehearsal": "up.", "judgement": "blocks."}  # names of weights within a network

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

    def base(self, group: str, turn: Optional[int] = None) -> Model:
        """A healthy model: another one for each number (or turn) and attempt, as far as the group goes. UserError where
        it could not be made healthy."""
        kinds = BASES[self.set_name][group]
        kind = kinds[((self.number if turn is None else turn) + self.attempt) % len(kinds)]
        model, health = healthy(self.set_name, kind, self.out)
        if not health.healthy:
            raise UserError(f"base {kind}: is not healthy itself ({health.words})")
        return model

    def train(self, recipe: Recipe, part: str = "") -> Model:
        """A model of this case alone; of several each has its `part`."""
        name = f"{self.fault}_{self.number}_{self.attempt}{part and '_'}{part}"
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
