"""The small models of the fault bench: sets of recipes, each trained by `vidpred.assembly.train` in seconds.

A model is a function of (set, kind, number). Bounds of the diagnosis are set on tuning and rehearsal alone, and judged
on the judgement set, which has other scenes, sizes, seeds, samplers and another network.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Literal, get_args

import fault_judgement as judgement
import fault_recipes as recipes
from fault_data import write_scene
from fault_recipes import Recipe
from fault_vaes import written_vae

from vidpred.assembly import train
from vidpred.checkpoint_store import find_checkpoint
from vidpred.configuration import Config, load_config

SetName = Literal["tuning", "rehearsal", "judgement"]
SETS: tuple[str, ...] = get_args(SetName)
FIRST_SEED = {"tuning": 1000, "rehearsal": 9000, "judgement": 52_000}
DONE = "done"  # a file in the folder of a training that ended

COMMON: dict[str, dict[str, Any]] = recipes.COMMON | {"judgement": judgement.COMMON}
HEALTHY: dict[str, dict[str, Recipe]] = recipes.HEALTHY | {"judgement": judgement.HEALTHY}


@dataclass(frozen=True)
class Model:
    """A trained model on the disk. number: decides seeds. clips: the folder of its scene."""

    recipe: Recipe
    number: int
    checkpoint: Path
    clips: Path

    @property
    def run(self) -> Path:
        """The folder of its training."""
        return self.checkpoint.parent.parent


def configuration(set_name: SetName, recipe: Recipe, number: int, clips: Path, runs: Path, name: str) -> Config:
    """What a recipe comes to; seeds are of (set, number)."""
    keys = {"name": name, "runs_dir": runs, "seed": FIRST_SEED[set_name] + number, **COMMON[set_name]}
    keys |= {"data.root": clips, "data.height": recipe.scene.height, "data.width": recipe.scene.width}
    keys |= recipe.settings
    if recipe.vae:
        keys |= {"autoencoder.pretrained": written_vae(recipe.vae, clips, runs.parent / "vaes"),
                 "autoencoder.min_psnr": 5}  # fmt: skip
    if keys["autoencoder.kind"] in ("kl", "tiny"):
        keys.pop("autoencoder.down_factor")
    if keys["data.kind"] == "pushed_shapes":
        keys = {key: value for key, value in keys.items() if key not in ("data.root", "data.split_by")}
        keys["data.render_seed"] = FIRST_SEED[set_name] + number
    return load_config([f"--{key}={_text(value)}" for key, value in keys.items()])


def trained(
    set_name: SetName, recipe: Recipe, number: int, out: Path, name: str, watched: bool = False
) -> Model:
    """The model of a recipe, trained in out/runs/name unless that was done with the same recipe and code.

    watched: what the rules found while it trained is wanted too, so that other rules make another training of it.
    """
    seed = FIRST_SEED[set_name] + number
    recipe = recipe.but(recipe.settings, recipe.vae and dataclasses.replace(recipe.vae, seed=seed), seed=seed)
    run = out / "runs" / name
    with only_one(out / "locks" / name):
        clips = write_scene(recipe.scene, out / "clips")
        key = training_key(set_name, recipe, watched)
        if not (run / DONE).exists() or (run / DONE).read_text() != key:
            shutil.rmtree(run, ignore_errors=True)
            if train(configuration(set_name, recipe, number, clips, out / "runs", name)).status == "interrupted":
                raise KeyboardInterrupt
            (run / DONE).write_text(key)
    return Model(recipe, number, find_checkpoint(run), clips)


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Others that want the same wait here, and find it done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def training_key(set_name: SetName, recipe: Recipe, watched: bool) -> str:
    """Changes with the recipe, and with the code that renders clips and trains."""
    return hash_of(ALL_CODE if watched else "", TRAINING_CODE, str(recipe), str(COMMON[set_name]))


def hash_of(*parts: Path | str) -> str:
    """Of texts and of the contents of files."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else part.encode())
    return digest.hexdigest()


def _code_hashes() -> tuple[str, str]:
    """Of all that a training runs, but the rules that its watch asks; and of everything in vidpred."""
    tools = Path(__file__).resolve().parent
    package = tools.parent / "vidpred"
    everything = sorted(package.rglob("*.py"))
    leaves_a_record = [*package.glob("diagnosis/*record*.py"), *package.glob("diagnosis/*curve*.py")]
    trains = [file for file in everything if file.parent.name != "diagnosis"] + sorted(leaves_a_record)
    own = [tools / f"fault_{part}.py" for part in ("data", "scenes", "network", "vaes", "models")]
    return hash_of(*trains, *own), hash_of(*everything)


# As imported: files may change while the bench runs.
TRAINING_CODE, ALL_CODE = _code_hashes()


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
