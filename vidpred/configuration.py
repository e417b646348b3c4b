"""The configuration of a run: plain dataclasses of the rooms, composed; YAML, dotted overrides, help, errors.

A value comes from the dataclass, then the YAML file, then the command line. `kind` keys are resolved first, so
that every other key belongs to one known dataclass. Anything wrong is one line that names the key and the cure.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import sys
import typing
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ContextManager, Literal, Mapping, Optional, Sequence

import docstring_parser
import jsonargparse
import yaml

from vidpred.autoencoders import AUTOENCODERS
from vidpred.conditioning import (
    ConditionConfig,
    ConditioningConfig,
    generated_frames,
    require_trained_histories,
    trained_tasks,
)
from vidpred.config_keys import argument_keys, check_keys, complete_switches, known_keys, leaves
from vidpred.config_messages import explain, one_line
from vidpred.data import DATASETS
from vidpred.diffusion import DiffusionConfig, SamplingConfig, require_possible
from vidpred.errors import UserError
from vidpred.evaluation import EvaluationConfig, FiguresConfig
from vidpred.evaluation.video_distance import possible_views
from vidpred.metrics.video_features import DOWNLOAD
from vidpred.networks import NETWORKS
from vidpred.training import LoggingConfig, TrainingConfig, WandbConfig
from vidpred.vae_training import VAES

REGISTRIES = {"data": DATASETS, "autoencoder": AUTOENCODERS, "network": NETWORKS, "vae": VAES}
SMALLEST_FRAME = 11  # the window of SSIM
# Of an evaluated clip; of prediction given ones.
LEAST_FRAMES = {"prediction": 1, "interpolation": 3, "infilling": 2, "unconditional": 1}
DEFAULT_KINDS = {"data": "shapes", "autoencoder": "mock", "network": "unet", "vae": "new"}


@dataclass(kw_only=True)
class RunConfig:
    """What every run has, whatever its task."""

    task: str
    """What is trained: video_prediction, the denoising network, or autoencoder, the VAE of `vae`."""
    name: str = ""
    """Name of the run and of its folder; the configuration file's name where it is empty."""
    runs_dir: str = "runs"
    """Folder of the run folders."""
    seed: int = 0
    """Seed of the weights, the data order, the noise and the levels."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""
    init_from: Optional[str] = None
    """Checkpoint whose weights (EMA) begin a new run."""
    overfit_one_batch: bool = False
    """Train on the first batch again and again: the loss must fall towards 0, or something is broken."""
    data: Any
    """Where clips come from (data.kind)."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: FiguresConfig
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name or self.name == "..":
            raise UserError(f"name: '{self.name}' is not the name of a folder; set runs_dir to move all runs")
        if min(self.data.height, self.data.width) < SMALLEST_FRAME:
            raise UserError(
                f"data.height, data.width: {self.data.height}x{self.data.width} is too small to be evaluated; "
                f"SSIM needs {SMALLEST_FRAME} pixels at least"
            )
        if self.overfit_one_batch and self.data.kind == "mixture":
            raise UserError(
                "overfit_one_batch: a mixture has no one batch, but one of videos and one of images; give one source "
                "alone (data.kind)"
            )
        self._require_file("lpips_weights", "the backbone's weights")

    def _require_file(self, key: str, what: str) -> None:
        weights = getattr(self.evaluation, key)
        if weights and weights != DOWNLOAD and not Path(weights).expanduser().is_file():
            raise UserError(f"evaluation.{key}: {weights} is not a file; give {what}")

    def resolved(self) -> dict[str, Any]:
        """Plain data (str, int, float, bool, None, list, dict) for YAML, loggers and checkpoints."""
        return _plain(dataclasses.asdict(self))


@dataclass(kw_only=True)
class Config(RunConfig):
    """Everything that defines a run of video prediction."""

    task: str = "video_prediction"
    autoencoder: Any
    """Between frames and latents (autoencoder.kind)."""
    network: Any
    """The denoising network (network.kind)."""
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_possible_clips()
        self._require_file("fvd_weights", "an I3D, or download")
        if self.evaluation.fvd_weights:
            context = self.conditioning.context_frames
            possible_views(context, self.data.num_frames - context)
        self._require_possible_steps()
        require_possible(self.diffusion, self.sampling)
        self._require_possible_network()
        self._require_possible_guidance()
        self._require_possible_prompts()

    def _require_possible_clips(self) -> None:
        frames, context = self.data.num_frames, self.conditioning.context_frames
        if context >= frames:
            raise UserError(
                f"conditioning.context_frames: {context} given frames leave nothing to predict in a clip of "
                f"data.num_frames {frames}; lower the one or raise the other"
            )
        task = self.evaluation.task
        given = task == "prediction"
        key, there = ("conditioning.context_frames", context) if given else ("data.num_frames", frames)
        if there < LEAST_FRAMES[task]:
            raise UserError(
                f"evaluation.task: {task} needs {LEAST_FRAMES[task]} or more, and {key} is {there}; raise it, or set "
                "evaluation.task to unconditional"
            )

    def _require_possible_steps(self) -> None:
        levels = self.diffusion.schedule.num_train_timesteps
        for key in ("num_inference_steps", "num_inference_steps_start"):
            steps = getattr(self.sampling, key)
            if steps is not None and steps > levels:
                raise UserError(
                    f"sampling.{key}: {steps} steps need as many noise levels, and "
                    f"diffusion.schedule.num_train_timesteps is {levels}; lower the one or raise the other"
                )

    def _require_possible_network(self) -> None:
        if not getattr(self.network, "each_frame_alone", False):
            return
        frames, tasks = self.data.num_frames, trained_tasks(self.conditioning)
        if frames > 1 or tasks != ("unconditional",) or self.diffusion.motion_radius:
            raise UserError(
                f"network.kind: {self.network.kind} looks at each frame alone and cannot use given ones; set "
                "data.num_frames to 1, conditioning.context_frames and diffusion.motion_radius to 0, and "
                "conditioning.scheme to unconditional, or use unet"
            )

    def _require_possible_guidance(self) -> None:
        guidance, condition = self.sampling.guidance, self.condition
        hidden, noised = guidance.hides_history, guidance.noises_history
        require_trained_histories(self.conditioning, "sampling.guidance", hidden, noised)
        scale = guidance.condition_scale
        if scale != 1 and not (condition.kinds and condition.dropout > 0):
            raise UserError(
                f"sampling.guidance.condition_scale: {scale} compares with the network without its condition, and "
                f"condition.kinds is {list(condition.kinds)}, condition.dropout {condition.dropout}; set kinds, and a "
                "dropout above 0, or leave the scale at 1"
            )

    def _require_possible_prompts(self) -> None:
        if not self.training.visualize_prompts:
            return
        if not {"text", "class"} & set(self.condition.kinds):
            raise UserError(
                f"training.visualize_prompts: condition.kinds is {list(self.condition.kinds)}; add text or class, or "
                "leave the prompts out"
            )
        if not generated_frames(self.conditioning, self.data.num_frames, getattr(self.data, "has_images", False)):
            raise UserError(
                f"training.visualize_prompts: conditioning.scheme {self.conditioning.scheme} never trains to draw "
                "clips from nothing; use unconditional or random (also in a mixture), or leave the prompts out"
            )


@dataclass(kw_only=True)
class VaeConfig(RunConfig):
    """Everything that defines the training of a VAE."""

    task: str = "autoencoder"
    vae: Any
    """The VAE, where it begins, and its loss (vae.kind)."""
    evaluation: FiguresConfig = field(default_factory=FiguresConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        side, smallest = self.vae.crop, min(self.data.height, self.data.width)
        if side is not None and side > smallest:
            raise UserError(f"vae.crop: {side} does not fit into frames of {smallest} pixels; lower it")
        if self.training.double_resolution_at:
            raise UserError(
                "training.double_resolution_at: is of video prediction; leave it out, and train on vae.crop"
            )
        if self.training.visualize_prompts:
            raise UserError("training.visualize_prompts: a VAE knows no prompts; leave them out")


TASKS = {"video_prediction": Config, "autoencoder": VaeConfig}


def load_config(arguments: Sequence[str] | None = None, default_file: Path | None = None) -> Config | VaeConfig:
    """Parses `--config FILE --section.key value …` (default: this process's arguments).

    Without `--config` the values of `default_file` are used. `--help` and `--print_config` print and exit. A key
    that is true or false may stand alone, for true: `--overfit_one_batch`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    door = _Finder()
    door.add_argument("--config", type=Path, default=default_file)
    known, overrides = door.parse_known_args(arguments)
    values = _read_yaml(known.config) if known.config else {}
    run = _run_class(values, overrides)
    sections = _section_classes(run, values, overrides)
    check_keys(run, sections, [*leaves(values), *argument_keys(overrides)], TASKS)
    overrides = ["--print_config=comments" if o == "--print_config" else o for o in overrides]
    config = _parse(run, sections, values, complete_switches(overrides, run, sections))
    config.name = config.name or _default_name(known.config, config)
    return config


def _default_name(file: Path | None, config: RunConfig) -> str:
    """That of the configuration file; a batch that is overfitted must not take the place of the real run."""
    return (file.stem if file else "run") + ("_overfit" if config.overfit_one_batch else "")


def config_from_resolved(values: Mapping[str, Any]) -> Config | VaeConfig:
    """The configuration of a saved run (what `RunConfig.resolved` returned)."""
    run = _run_class(values, [])
    sections = _section_classes(run, values, [])
    check_keys(run, sections, list(leaves(values)), TASKS)
    return _parse(run, sections, values, [])


class _Finder(argparse.ArgumentParser):
    """Takes a few arguments out of many; what is wrong with them is one line."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(one_line(message))


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"--config {file}: no such file")
    try:
        values = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = one_line(str(error)).replace('in "<unicode string>", ', "at ")
        raise UserError(f"{file}: not valid YAML: {reason}") from error
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{file}: must hold 'section:' lines with 'key: value' lines below them")
    # A section whose lines are all commented out differs in nothing.
    return {key: value for key, value in (values or {}).items() if value is not None}


def _run_class(values: Mapping[str, Any], overrides: Sequence[str]) -> type[RunConfig]:
    """The dataclass of the task: command line, then YAML, then video prediction."""
    finder = _Finder()
    finder.add_argument("--task", default=str(values.get("task", Config.task)))
    task = finder.parse_known_args(list(overrides))[0].task
    if task not in TASKS:
        raise UserError(f"task: '{task}' is not known; choose {' or '.join(TASKS)}")
    return TASKS[task]


def _section_classes(
    run: type[RunConfig], values: Mapping[str, Any], overrides: Sequence[str]
) -> dict[str, type]:
    """The dataclass of every section; where it has a `kind`: command line, then YAML, then default."""
    finder = _Finder()
    own = {f.name: f.type for f in dataclasses.fields(run)}
    kinds_of = {section: kind for section, kind in DEFAULT_KINDS.items() if section in own}
    for section, default in kinds_of.items():
        written = values.get(section)
        kind = written.get("kind", default) if isinstance(written, Mapping) else default
        finder.add_argument(f"--{section}.kind", default=str(kind))
    kinds = vars(finder.parse_known_args(list(overrides))[0])
    classes = {name: type_ for name, type_ in own.items() if dataclasses.is_dataclass(type_)}
    return classes | {name: REGISTRIES[name].config_class(kinds[f"{name}.kind"]) for name in kinds_of}


def _parse(
    run: type[RunConfig], sections: Mapping[str, type], values: Mapping[str, Any], overrides: Sequence[str]
) -> Any:
    source = ["--config", yaml.safe_dump(dict(values))] if values else []
    try:
        with warnings.catch_warnings(), _rank_0_speaks():
            warnings.simplefilter("ignore")  # jsonargparse's own deprecations are not the user's business
            parser = _parser(run, sections)
            namespace = parser.instantiate(parser.parse_args([*source, *overrides]))
    except jsonargparse.ArgumentError as error:
        raise UserError(explain(one_line(str(error)), dict(known_keys(run, sections)))) from error
    parts = {key: value for key, value in vars(namespace).items() if key != "config"}
    return run(**parts)


def _rank_0_speaks() -> ContextManager:
    """The help, and the printed configuration, once and not once per process."""
    silent = os.environ.get("RANK", "0") != "0"
    return contextlib.redirect_stdout(io.StringIO()) if silent else contextlib.nullcontext()


def _parser(run: type[RunConfig], sections: Mapping[str, type]) -> jsonargparse.ArgumentParser:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog="train_video_pred.py", description=run.__doc__, exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="YAML file; it states only what differs.")
    documented = [docstring_parser.parse_from_object(each) for each in (RunConfig, run)]
    helps = {p.arg_name: p.description for docstring in documented for p in docstring.params if p.description}
    for f in dataclasses.fields(run):
        section = sections.get(f.name)
        if section is None:
            parser.add_argument(f"--{f.name}", type=f.type, default=f.default, help=helps[f.name])
        else:
            parser.add_class_arguments(section, f.name)
    return parser


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
