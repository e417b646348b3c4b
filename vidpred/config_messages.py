"""What argparse and jsonargparse say of a wrong value, in the words of this program."""

import re
import types
import typing
from typing import Any, Mapping


def one_line(message: str) -> str:
    """A message of argparse or jsonargparse as one line that begins with the key."""
    message = re.sub(r'Parser key "([^"]+)":', r"\1:", " ".join(message.split()))
    return re.sub(r"^argument --([\w.]+): expected one argument$", r"\1: a value must follow it", message)


def explain(message: str, known: Mapping[str, Any]) -> str:
    """The message about a value of a wrong type, in words; any other message as it is."""
    found = re.match(r"([\w.]+): .*(?:Got|Given) value: (.*)$", message)
    if found is None or found[1] not in known:
        return message
    key, value = found.groups()
    return f"{key}: '{value}' is not possible; give {_in_words(known[key])}"


def _in_words(type_: Any) -> str:
    """What values a type of a configuration field has."""
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    origin, inside = typing.get_origin(type_), typing.get_args(type_)
    if origin is typing.Literal:
        return " or ".join([", ".join(map(str, inside[:-1])), str(inside[-1])] if inside[1:] else map(str, inside))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_in_words, inside))
    if origin in (tuple, list):
        examples = {int: ["1", "2"], float: ["0.5", "1.0"], str: ["one", "two"]}.get(inside[0], ["..."])
        return f"a list such as [{', '.join(examples)}]"
    return plain.get(type_, str(type_))
