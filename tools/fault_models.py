"""The small models of the fault bench: two sets of recipes, each trained by `vidpred.assembly.train` in seconds.

A model is a function of (set, kind, number). Bounds of the diagnosis are set on the tuning set alone, and judged on the
judgement set, which has other scenes, sizes, seeds, samplers and another network.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Literal, Optional, get_args

from fault_data import Scene, write_scene
from fault_vaes import Vae, written_vae

from vidpred.assembly import train
from vidpred.checkpoint_store import find_checkpoint
from vidpred.configuration import Config, load_config

SetName = Literal["tuning", "judgement"]
SETS: tuple[str, ...] = get_args(SetName)
FIRST_SEED = {"tuning": 1000, "judgement": 9000}
DONE = "done"  # a file in the folder of a training that ended

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
    "judgement": SMALL | {
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
    """A model to train: its clips, the keys that differ from the set's, and its VAE where it has one of its own."""

    scene: Scene = Scene()
    settings: dict[str, Any] = field(default_factory=dict)
    vae: Optional[Vae] = None

    def but(self, settings: Optional[dict[str, Any]] = None, vae: Optional[Vae] = None, **scene: Any) -> "Recipe":
        """The same with other keys, another VAE, or another scene."""
        changed = dataclasses.replace(self.scene, **scene)
        return Recipe(changed, {**self.settings, **(settings or {})}, vae or self.vae)


@dataclass(frozen=True)
class Model:
    """A trained model on the disk. number: decides seeds. clips: the folder of its scene."""

    recipe: Recipe
    number: int
    checkpoint: Path
    clips: Path


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
        "two frames": shapes.but({"data.num_frames": 2, "conditioning.context_frames": 1}, heading=0.5),
        "three videos": shapes.but(clips=(256, 3)),
        "unconditional": Recipe(Scene(), {**ZTSNR, **UNCONDITIONAL}),
        "random masks": shapes.but({"conditioning.scheme": "random"}),
        "no EMA, ddpm": shapes.but({"training.ema_decay": 0, "sampling.sampler": "ddpm"}),
        "overfitted": shapes.but({"overfit_one_batch": True, "training.num_steps": 200}),
        "grey, 2 steps": shapes.but({"sampling.num_inference_steps": 2}, colours="grey"),
        "bars": shapes.but(bars=6),
        "noisy": shapes.but(LOSSLESS, noise=12.0),
        "cuts": shapes.but(cuts=0.3),
        "short": shapes.but({"training.num_steps": 150}),
        "stochastic": shapes.but({"conditioning.context_frames": 1, "data.num_frames": 4}, speed=(2.0, 4.0)),
    }  # fmt: skip


def _judgement() -> dict[str, Recipe]:
    digits = Recipe(Scene("digits", height=24, width=32, speed=(1.0, 2.0), frames=24), {**LOSSLESS, **X0})
    panorama = Recipe(Scene("panorama", height=24, width=32, speed=(1.0, 2.5), frames=24, wavelength=18.0))
    # Noise is hard to predict in a few hundred steps: all move alike.
    alike = panorama.but(wavelength=28.0, speed=(2.5, 4.0), heading=4.0)
    return {
        "digits, x0": digits,
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
        "unconditional": digits.but(UNCONDITIONAL),
        "random masks, no EMA": panorama.but({**X0, "conditioning.scheme": "random", "training.ema_decay": 0}),
        "overfitted digits": digits.but({"overfit_one_batch": True, "training.num_steps": 200}),
        "two digits, 3 steps, ddpm": digits.but({"sampling.num_inference_steps": 3, "sampling.sampler": "ddpm"},
                                                objects=2, speed=(1.5, 3.0)),
        "noisy panorama with bars": panorama.but(X0, noise=10.0, bars=4),
        "cuts, grey": panorama.but(X0, cuts=0.3, colours="grey"),
        "short": panorama.but({**X0, "training.num_steps": 140}),
    }  # fmt: skip


HEALTHY: dict[str, dict[str, Recipe]] = {"tuning": _tuning(), "judgement": _judgement()}


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
    return load_config([f"--{key}={_text(value)}" for key, value in keys.items()])


def trained(set_name: SetName, recipe: Recipe, number: int, out: Path, name: str) -> Model:
    """The model of a recipe, trained in out/runs/name unless that was done with the same recipe and code."""
    seed = FIRST_SEED[set_name] + number
    recipe = recipe.but(recipe.settings, recipe.vae and dataclasses.replace(recipe.vae, seed=seed), seed=seed)
    run = out / "runs" / name
    with only_one(out / "locks" / name):
        clips = write_scene(recipe.scene, out / "clips")
        if not (run / DONE).exists() or (run / DONE).read_text() != training_key(set_name, recipe):
            shutil.rmtree(run, ignore_errors=True)
            if train(configuration(set_name, recipe, number, clips, out / "runs", name)).status == "interrupted":
                raise KeyboardInterrupt
            (run / DONE).write_text(training_key(set_name, recipe))
    return Model(recipe, number, find_checkpoint(run), clips)


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Others that want the same wait here, and find it done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def training_key(set_name: SetName, recipe: Recipe) -> str:
    """Changes with the recipe, and with the code that renders clips, or leaves a record of the training."""
    return hash_of(CODE, VAE_CODE if recipe.vae else "", str(recipe), str(COMMON[set_name]))


def hash_of(*parts: Path | str) -> str:
    """Of texts and of the contents of files."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else part.encode())
    return digest.hexdigest()


def _code_hashes() -> tuple[str, str]:
    tools = Path(__file__).resolve().parent
    diagnosis = tools.parent / "vidpred" / "diagnosis"
    files = (tools / "fault_data.py", diagnosis / "record.py", diagnosis / "curve.py")
    return hash_of(*files), hash_of(tools / "fault_vaes.py")


CODE, VAE_CODE = _code_hashes()  # as imported: files may change while the bench runs


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
