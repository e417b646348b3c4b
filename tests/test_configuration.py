"""The configuration: where values come from, what is refused and how it is said, help and printing."""

import dataclasses
import sys
from pathlib import Path

import docstring_parser
import pytest
import yaml
from distributed_helper import REPOSITORY, run_command

from vidpred.autoencoders import AUTOENCODERS
from vidpred.configuration import Config, config_from_resolved, load_config
from vidpred.data import DATASETS
from vidpred.errors import UserError
from vidpred.networks import NETWORKS

CONFIGS = REPOSITORY / "configs"
KINDS = [(registry, kind) for registry in (DATASETS, AUTOENCODERS, NETWORKS) for kind in registry.kinds()]


@pytest.fixture
def write(tmp_path):
    """A YAML file of this text, as arguments."""

    def write(text: str, name: str = "mine.yaml") -> list[str]:
        (tmp_path / name).write_text(text)
        return ["--config", str(tmp_path / name)]

    return write


def refusal(arguments) -> str:
    with pytest.raises(UserError) as caught:
        load_config(arguments)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300, message
    return message


# Where values come from ------------------------------------------------------------------------------------


def test_defaults_then_yaml_then_command_line(write):
    file = write("training: {num_steps: 7, batch_size: 4}\ndata: {num_frames: 6}\n")
    config = load_config([*file, "--training.batch_size", "2", "--network.channels", "[32, 64, 128, 128]"])
    assert (config.training.num_steps, config.training.batch_size, config.data.num_frames) == (7, 2, 6)
    assert config.training.learning_rate == 1e-4 and tuple(config.network.channels) == (32, 64, 128, 128)


def test_the_last_of_two_equal_arguments_counts():
    assert load_config(["--seed=1", "--seed", "2"]).seed == 2


def test_the_default_file_is_used_where_no_other_is_named(write):
    default = Path(write("seed: 5\n", "preset.yaml")[1])
    config = load_config([], default)
    assert (config.seed, config.name) == (5, "preset")
    config = load_config(write("runs_dir: elsewhere\n"), default)
    assert (config.seed, config.name, config.runs_dir) == (0, "mine", "elsewhere")
    assert load_config([]).name == "run"
    assert load_config(["--name", "first try"], default).name == "first try"


@pytest.mark.parametrize("text", ["1e-4", "1E-4", ".0001", "1.0e-4", "'1e-4'"])
def test_every_spelling_of_a_number_is_a_number(write, text):
    rate = load_config(write(f"training:\n  learning_rate: {text}\n")).training.learning_rate
    assert isinstance(rate, float) and rate == 1e-4
    assert load_config([f"--training.learning_rate={text.strip(chr(39))}"]).training.learning_rate == 1e-4


def test_a_kind_brings_its_own_keys(write):
    file = write("data: {kind: arrays, path: clips.npz}\n") if "path" in _fields("arrays") else None
    config = load_config(["--data.kind", "video_folder", "--data.root=/videos", "--autoencoder.kind=tiny"])
    assert (config.data.kind, config.data.root) == ("video_folder", "/videos")
    assert config.autoencoder.kind == "tiny"
    if file:
        assert load_config(file).data.kind == "arrays"
    # The command line's kind comes before the file's, also for the keys that belong to it.
    assert load_config([*write("data: {kind: video_folder}"), "--data.kind=shapes"]).data.kind == "shapes"


def _fields(kind):
    return [f.name for f in dataclasses.fields(DATASETS.config_class(kind))]


def test_a_switch_may_stand_alone():
    config = load_config(["--overfit_one_batch", "--training.compile", "--wandb.enabled", "false"])
    assert config.overfit_one_batch and config.training.compile and not config.wandb.enabled
    assert load_config(["--seed", "3", "--overfit_one_batch"]).overfit_one_batch


@pytest.mark.parametrize("text", ["", "# nothing\n", "training:\n# learning_rate: 1\n", "name: null\n"])
def test_an_empty_file_or_section_differs_in_nothing(write, text):
    assert load_config(write(text)) == load_config(["--name", "mine"])


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_the_configurations_that_come_along(file):
    config = load_config(["--config", str(file)])
    assert config.name == file.stem
    assert config_from_resolved(config.resolved()) == config


def test_the_real_recipe_is_what_was_promised():
    file = CONFIGS / "config_video_prediction.yaml"
    config = load_config(["--config", str(file), "--data.root", "/my/videos"])
    assert (config.data.height, config.data.width, config.data.kind) == (256, 256, "video_folder")
    assert (config.autoencoder.kind, config.training.precision) == ("kl", "auto")
    assert (config.training.learning_rate, config.training.checkpoint_every_step) == (1e-4, 5000)
    assert (config.sampling.num_inference_steps, config.training.visualize_every_step) == (20, 1000)
    assert "wandb" in yaml.safe_load(file.read_text())


def test_resolved_is_plain_data_and_comes_back(write):
    config = load_config(write("network: {channels: [32, 32]}\n") + ["--network.spatial_attention_levels=[1]",
                         "--network.temporal_attention_levels=[]", "--data.speed=[1, 2]"])  # fmt: skip
    resolved = config.resolved()
    assert yaml.safe_load(yaml.safe_dump(resolved)) == resolved
    assert resolved["network"]["channels"] == [32, 32] and resolved["name"] == "mine"
    assert config_from_resolved(resolved) == config


def test_a_mixture_of_schemes_comes_from_a_file_too(write):
    config = load_config(write("conditioning: {scheme: {prediction: 0.5, random: 0.5}}\n"))
    assert config.conditioning.mixture() == {"prediction": 0.5, "random": 0.5}
    assert config_from_resolved(config.resolved()).conditioning == config.conditioning
    assert "half" in refusal(write("conditioning: {scheme: {half: 1.0}}\n"))


def test_the_name_of_an_array_is_no_secret():
    config = load_config(["--data.kind", "arrays", "--data.root", "/x", "--data.key", "frames"])
    assert config.data.key == "frames"
    assert config_from_resolved(config.resolved()) == config


# What is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        # unknown keys, with the nearest known one
        (["--trainig.num_steps=3"], "trainig.num_steps: unknown key; did you mean training.num_steps?"),
        (["--training.learning_rte", "1"], "unknown key; did you mean training.learning_rate?"),
        (["--num_inference_steps", "5"], "unknown key; did you mean sampling.num_inference_steps?"),
        (["--qwertyuiop", "5"], "qwertyuiop: unknown key; --help lists all keys"),
        (["--data.root", "/x"], "data.root: unknown key of data.kind shapes"),
        (["--autoencoder.pretrained", "x"], "autoencoder.pretrained: unknown key of autoencoder.kind mock"),
        (["quickstart"], "unrecognized arguments: quickstart"),
        # sections
        (["--training", "fast"], "training: is a section of keys; set one of them, for example training."),
        (["--diffusion.schedule", "cosine"], "for example diffusion.schedule.kind"),
        # secrets
        (["--wandb.api_key", "x"], "wandb.api_key: looks like a secret"),
        (["--wandb.token=x"], "wandb.token: looks like a secret"),
        (["--password", "x"], "(WANDB_API_KEY)"),
        (["--wandb.key", "x"], "wandb.key: looks like a secret"),
        (["--data.key", "x"], "data.key: looks like a secret"),  # shapes have no arrays
        # types
        (["--seed", "1.5"], "seed: '1.5' is not possible; give a whole number"),
        (["--training.learning_rate", "fast"], "training.learning_rate: 'fast' is not possible; give a num"),
        (["--training.compile", "maybe"], "training.compile: 'maybe' is not possible; give true or false"),
        (["--device", "tpu"], "device: 'tpu' is not possible; give auto, cpu or cuda"),
        (["--sampling.clip.kind", "x"], "sampling.clip.kind: 'x' is not possible; give static, auto,"),
        (["--data.fps", "x"], "data.fps: 'x' is not possible; give a number or null"),
        (["--network.channels", "64"], "network.channels: '64' is not possible; give a list such as [1, 2]"),
        (["--data.speed", "[1]"], "data.speed: '[1]' is not possible; give a list such as [0.5, 1.0]"),
        # missing values
        (["--seed"], "seed: a value must follow it"),
        (["--config"], "config: a value must follow it"),
        (["--data.kind", "--seed", "1"], "data.kind: a value must follow it"),
        # kinds
        (["--data.kind", "cartoon"], "data.kind: 'cartoon' is not known; choose one of arrays, frame_folder"),
        (["--network.kind=dit"], "network.kind: 'dit' is not known; choose one of diffusers_unet2d, "),
        # impossible values and combinations
        (["--data.num_frames", "25"], "data.num_frames: 25 frames need 25 of the 24 that a clip holds"),
        (["--data.num_frames", "4"], "conditioning.context_frames: 4 given frames leave nothing to predict"),
        (["--sampling.num_inference_steps=1001"], "sampling.num_inference_steps: 1001 steps need as many"),
        (["--sampling.num_inference_steps_start=1001"], "sampling.num_inference_steps_start: 1001 steps"),
        (["--diffusion.parameterization=eps", "--diffusion.schedule.zero_terminal_snr"], "eps cannot be"),
        (["--training.learning_rate", "-1"], "training.learning_rate is -1.0: give a positive number"),
        (["--network.head_dim", "7"], "network.head_dim: 7 is not possible"),
        (["--name", "../elsewhere"], "name: '../elsewhere' is not the name of a folder"),
        (["--name", ".."], "name: '..' is not the name of a folder"),
    ],
)  # fmt: skip
def test_what_is_refused_on_the_command_line(arguments, message):
    assert message in refusal(arguments)


VANILLA, FRACTIONAL, TEMPORAL = (
    [f"--sampling.guidance.kind={kind}", "--sampling.guidance.scale=2"]
    for kind in ("vanilla", "fractional", "temporal")
)
DROPOUT, NOISE = "--conditioning.history_dropout=0.1", "--conditioning.context_noise=0.1"
HALF = '--conditioning.scheme={"prediction": 0.5, "unconditional": 0.5}'


@pytest.mark.parametrize("arguments, message", [
    (VANILLA, "given frames, and conditioning.history_dropout is 0 and conditioning.scheme prediction always"),
    (TEMPORAL, "conditioning.history_dropout is 0"),
    ([*VANILLA, "--conditioning.min_context_frames=1"], "conditioning.history_dropout is 0"),
    ([*FRACTIONAL, NOISE], "conditioning.history_dropout is 0"),
    ([*FRACTIONAL, DROPOUT], "kind fractional noises the given frames, and conditioning.context_noise is 0"),
])  # fmt: skip
def test_guidance_on_a_history_that_was_never_trained_is_refused(arguments, message):
    line = refusal(arguments)
    assert line.startswith("sampling.guidance: ") and message in line


@pytest.mark.parametrize("arguments", [
    ["--sampling.guidance.kind=vanilla"],  # a scale of 1 asks for nothing
    [*VANILLA, DROPOUT], [*VANILLA, "--conditioning.scheme=random"], [*VANILLA, HALF],
    [*VANILLA, "--conditioning.min_context_frames=0"], [*FRACTIONAL, DROPOUT, NOISE], [*TEMPORAL, DROPOUT],
])  # fmt: skip
def test_guidance_on_a_history_that_was_trained_is_possible(arguments):
    assert load_config(arguments).sampling.guidance.kind != "none"


@pytest.mark.parametrize(
    "text, message",
    [
        ("training: {num_step: 3}", "training.num_step: unknown key; did you mean training.num_steps?"),
        ("diffusion: {schedule: {kid: linear}}", "diffusion.schedule.kid: unknown key"),
        ("5: 3", "5: unknown key"),
        ("data: shapes", "data: is a section of keys; set one of them, for example data.kind"),
        ("training: 100", "training: is a section of keys"),
        ("data: {kind: [shapes]}", "data.kind: '['shapes']' is not known"),
        ("training: {num_steps: 1e3}", "training.num_steps: '1000.0' is not possible; give a whole number"),
        ("training: {num_steps: many}", "training.num_steps: 'many' is not possible; give a whole number"),
        ("seed: true", "seed: 'True' is not possible; give a whole number"),
        ("wandb: {api_key: abc}", "wandb.api_key: looks like a secret"),
        ("wandb: {tags: one}", "wandb.tags: 'one' is not possible; give a list such as [one, two]"),
        ("conditioning: {context_frames: 99}", "conditioning.context_frames: 99 given frames leave nothing"),
        ("- a\n- b", "mine.yaml: must hold 'section:' lines"),
        ("a: [1", "mine.yaml: not valid YAML: while parsing a flow sequence at line 1, column 4"),
        ("seed: !!python/object/apply:os.getpid []", "mine.yaml: not valid YAML: could not determine"),
    ],
)
def test_what_is_refused_in_a_file(write, text, message):
    assert message in refusal(write(text))


def test_files_that_cannot_be_read(tmp_path):
    assert refusal(["--config", f"{tmp_path}/none.yaml"]) == f"--config {tmp_path}/none.yaml: no such file"
    assert "no such file" in refusal(["--config", str(tmp_path)])
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00seed")
    assert "binary.yaml: not valid YAML" in refusal(["--config", f"{tmp_path}/binary.yaml"])


def test_the_real_command_says_it_in_one_line_before_anything_is_touched(tmp_path):
    command = [sys.executable, REPOSITORY / "train_video_pred.py", "--training.num_step", "3"]
    cache = {"VIDPRED_CACHE": f"{tmp_path}/cache"}
    result = run_command(command, timeout=250, env=cache, cwd=tmp_path, check=False)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "error: training.num_step: unknown key; did you mean training.num_steps?\n"
    assert list(tmp_path.iterdir()) == []


# Help and printing -----------------------------------------------------------------------------------------


def all_keys(config) -> list[str]:
    return list(_dotted(config.resolved()))


def _dotted(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _printed(arguments, capsys) -> str:
    with pytest.raises(SystemExit) as caught:
        load_config(arguments)
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kinds", [[], ["--data.kind=video_folder", "--autoencoder.kind=kl"]])
def test_help_explains_every_key(kinds, capsys):
    text = " ".join(_printed([*kinds, "--help"], capsys).split())
    config = load_config(kinds)
    for key in all_keys(config):
        assert f"--{key} " in text, key
    for section, help_text in _help_texts(config):
        assert " ".join(help_text.split()) in text, section


def _help_texts(config):
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from ((f"{f.name}.{name}", text) for name, text in _help_texts(value))
    for parameter in docstring_parser.parse_from_object(type(config)).params:
        value = getattr(config, parameter.arg_name, None)
        if not dataclasses.is_dataclass(value):
            yield parameter.arg_name, parameter.description or ""


def test_print_config_explains_every_key_and_loads_back_equal(write, capsys):
    arguments = ["--seed=3", "--data.kind=video_folder", "--network.channels=[32, 64, 64, 64]"]
    text = _printed([*arguments, "--print_config"], capsys)
    assert load_config([*write(text), "--name=same"]) == load_config([*arguments, "--name=same"])
    flat = " ".join(text.replace("#", " ").split())
    for key, help_text in _help_texts(load_config(arguments)):
        assert " ".join(help_text.split())[:60] in flat, key


def _section_classes() -> list[type]:
    sections = [registry.config_class(kind) for registry, kind in KINDS]
    found, queue = [], [Config, *sections]
    while queue:
        one = queue.pop()
        found.append(one)
        queue += [f.type for f in dataclasses.fields(one) if dataclasses.is_dataclass(f.type)]
    return found


@pytest.mark.parametrize("section", _section_classes(), ids=lambda section: section.__name__)
def test_every_key_has_a_help_text(section):
    assert section.__doc__ and not section.__doc__.startswith(section.__name__ + "(")
    documented: dict[str, str] = {}
    for base in reversed(section.__mro__[:-1]):
        documented |= {p.arg_name: p.description for p in docstring_parser.parse_from_object(base).params}
    for f in dataclasses.fields(section):
        if not dataclasses.is_dataclass(f.type):  # a section's help is its own docstring
            assert documented.get(f.name), f"{section.__name__}.{f.name} has no help text"


def test_every_kind_has_defaults():
    for registry, kind in KINDS:
        assert registry.config_class(kind)().kind == kind
