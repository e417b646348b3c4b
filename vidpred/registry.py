"""Named kinds: every exchangeable part is chosen in the configuration by its `kind`.

A kind is a plain dataclass of values (first field `kind`) and a function that builds the part from it.
One's own network or data set joins by the same decorator that the built-in ones use:

    @dataclass
    class TinyConfig:
        kind: str = "tiny"
        width: int = 32

    @NETWORKS.register("tiny", TinyConfig)
    def build_tiny(config, in_channels, out_channels):
        return TinyNetwork(in_channels, config.width, out_channels)
"""

import dataclasses
import inspect
import typing
from typing import Any, Callable, Mapping

from vidpred.errors import UserError


class Registry:
    """The kinds of one configuration section, each with its dataclass and its builder."""

    def __init__(self, section: str):
        self.section = section
        self._kinds: dict[str, tuple[type, Callable[..., Any]]] = {}

    def register(self, kind: str, config_class: type) -> Callable[[Callable], Callable]:
        """Decorates `build(config, **parts)`; `config_class` is a dataclass whose `kind` defaults to `kind`."""
        if kind in self._kinds:
            raise UserError(f"{self.section}.kind '{kind}' is registered twice: choose another name")
        fields = dataclasses.fields(config_class) if dataclasses.is_dataclass(config_class) else ()
        # The field, not the class attribute: a subclass that forgot @dataclass has the one and not the other.
        if {field.name: field.default for field in fields}.get("kind") != kind:
            raise UserError(f"{config_class.__name__} must be a dataclass with the field: kind: str = {kind!r}")

        def decorate(build: Callable) -> Callable:
            self._kinds[kind] = (config_class, build)
            return build

        return decorate

    def kinds(self) -> list[str]:
        return sorted(self._kinds)

    def config_class(self, kind: str) -> type:
        return self._find(kind)[0]

    def build(self, config: Any, *args: Any, **parts: Any) -> Any:
        return self._find(config.kind)[1](config, *args, **parts)

    def takes(self, kind: str, part: str) -> bool:
        """Whether the kind's builder has a parameter of that name."""
        return part in inspect.signature(self._find(kind)[1]).parameters

    def from_mapping(self, mapping: Mapping[str, Any]) -> Any:
        """The dataclass of `mapping["kind"]`, filled from a plain dictionary (a saved configuration)."""
        return from_mapping(self.config_class(mapping["kind"]), mapping, self.section)

    def _find(self, kind: str) -> tuple[type, Callable[..., Any]]:
        if kind not in self._kinds:
            raise UserError(
                f"{self.section}.kind: '{kind}' is not known; choose one of {', '.join(self.kinds())}, "
                "or import the module that registers it before this point"
            )
        return self._kinds[kind]


def from_mapping(config_class: type, mapping: Mapping[str, Any], where: str) -> Any:
    """Fills a (nested) dataclass of plain values from a dictionary; unknown keys are a `UserError`."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    unknown = sorted(set(mapping) - set(fields))
    if unknown:
        raise UserError(f"{where}.{unknown[0]}: unknown key; known keys: {', '.join(fields)}")
    hints = typing.get_type_hints(config_class)
    values = {}
    for name, value in mapping.items():
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping):
            value = from_mapping(hints[name], value, f"{where}.{name}")
        elif typing.get_origin(hints[name]) is tuple and isinstance(value, list):
            value = tuple(value)
        values[name] = value
    return config_class(**values)
