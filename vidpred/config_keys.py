"""The dotted keys of a configuration: which there are, which are written, and what is refused before a value is read.

`run` is the dataclass of a task, `sections` those of its sections by name.
"""

import dataclasses
import difflib
import re
import typing
from typing import Any, Iterator, Mapping, Sequence

from vidpred.errors import UserError

SECRET = re.compile(r"(^|[._])(api_?key|key|token|password|passwd|secret|credentials?)$", re.IGNORECASE)


def known_keys(config_class: type, sections: Mapping[str, type], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every key."""
    hints = typing.get_type_hints(config_class)
    for f in dataclasses.fields(config_class):
        type_ = sections.get(f.name, hints[f.name])
        if dataclasses.is_dataclass(type_):
            yield from known_keys(type_, {}, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", type_


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of everything that is not itself a section."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def argument_keys(overrides: Sequence[str]) -> Iterator[str]:
    """Those of `--key value` and `--key=value`."""
    for argument in overrides:
        if argument.startswith("--"):
            yield argument[2:].split("=", 1)[0]


def complete_switches(overrides: Sequence[str], run: type, sections: Mapping[str, type]) -> list[str]:
    """`--key` of a bool without a value -> `--key=true`."""
    switches = [f"--{key}" for key, type_ in known_keys(run, sections) if type_ is bool]
    following = [*overrides[1:], "--"]
    return [
        f"{argument}=true" if argument in switches and after.startswith("--") else argument
        for argument, after in zip(overrides, following)
    ]


def check_keys(run: type, sections: Mapping[str, type], keys: Sequence[str], tasks: Mapping[str, type]) -> None:
    """UserError at the first key that is a secret, a bare section, of another one of `tasks`, or not known, with the
    nearest known one."""
    types_by_key = dict(known_keys(run, sections))
    mappings = tuple(f"{key}." for key, type_ in types_by_key.items() if _holds_mapping(type_))
    for key in keys:
        # Known or not, a token is one; data.key, of a mixture's sources too, names an array in a file.
        ours = key in types_by_key or key.startswith(mappings)
        if SECRET.search(key) and not (ours and key in ("data.key", "data.videos.key", "data.images.key")):
            raise UserError(
                f"{key}: looks like a secret, and a configuration is saved in clear text; remove it and log in "
                "by the service's own command or environment variable (WANDB_API_KEY)"
            )
        if not ours and key not in ("help", "print_config"):
            raise _unknown(key, list(types_by_key), run, sections, tasks)


def _holds_mapping(type_: Any) -> bool:
    """Whether a value of this type may be a mapping, whose keys are no keys of the configuration."""
    return typing.get_origin(type_) is dict or any(map(_holds_mapping, typing.get_args(type_)))


def _unknown(
    key: str, known: Sequence[str], run: type, sections: Mapping[str, type], tasks: Mapping[str, type]
) -> UserError:
    """What is wrong with a key that is none of `known`."""
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        return UserError(f"{key}: is a section of keys; set one of them, for example {inside[0]}")
    section = key.split(".")[0]
    for task, other in tasks.items():
        if section in other.__dataclass_fields__ and section not in run.__dataclass_fields__:
            return UserError(f"{key}: belongs to task {task}, and this is task {run.task}; remove it, or set task")
    leaf = key.rsplit(".", 1)[-1]
    near = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    kind = getattr(sections.get(section), "kind", None)
    of_kind = "" if kind is None else f" of {section}.kind {kind}"
    cure = f"did you mean {near[0]}?" if near else "--help lists all keys"
    return UserError(f"{key}: unknown key{of_kind}; {cure}")
