"""Quote arguments KEY=VALUE of the command line for Hydra's grammar.

Hydra's grammar gives meaning to `= ( ) [ ] { } , ' "` and has no accents, `~` or `#`. A value that it cannot read but that is
plainly text, and a value that names an existing file or folder, is quoted here. So is what it reads as a number where the
config holds a text: `name=2026_11` would become 202611, and the key of a folder, `12e456`, infinity.
"""

import os
import re
import typing
from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import cache
from types import UnionType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from convrec_r1.base.errors import UserError
from convrec_r1.config.schema import Config

_ARGUMENT = re.compile(r"(?P<key>\+{0,2}[A-Za-z_][\w./@:-]*)=(?P<value>.*)", re.DOTALL)
_STRUCTURED = re.compile(r"""\s*(?:[\[{("']|\w+\()""")
"""Start of a list, a mapping, a quoted string or a function of Hydra's grammar."""
_SPOKEN = ("message", "where")
"""Keys whose values are what people say, in any signs: Hydra's grammar has no meaning there."""
_SWITCHES = ("-m", "--multirun", "-r", "--run", "--resolve", "--help", "-h", "--hydra-help", "--version")
"""Flags of Hydra's without a value."""


def readable(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with values quoted that Hydra would not read, or would read as something else.

    Raises:
        UserError: an argument that is neither a flag nor KEY=VALUE, or a value that must be quoted by hand.
    """
    made: list[str] = []
    is_value = False
    for argument in arguments:
        if is_value or argument.startswith(("-", "~")):
            flag = re.match(r"--config-(?:dir|path)=(?=~)", argument)
            made.append(flag[0] + os.path.expanduser(argument[flag.end() :]) if flag else argument)
        else:
            made.append(_readable(argument, made[-1] if made else ""))
        is_value = argument.startswith("-") and "=" not in argument and argument not in _SWITCHES
    return made


def quote(text: str) -> str:
    """Return a text as a quoted string of Hydra's grammar."""
    return QuotedString(text, Quote.single).with_quotes()


def as_text(text: str) -> str:
    """Return a text as Hydra reads it: quoted where it must be."""
    return text if _reads_as(f"key={text}", text) else quote(text)


def texts_of(value: str) -> list[str]:
    """Return A and B of a value `A,B`, each as it is or quoted. A value that names a file or folder is one."""
    if _is_there(os.path.expanduser(value)):
        return [value]
    try:
        override = OverridesParser.create().parse_override(f"key={value}")
        found = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    except HydraException:
        return value.split(",")
    return [each.text if isinstance(each, QuotedString) else str(each) for each in found]


def _readable(argument: str, before: str) -> str:
    found = _ARGUMENT.fullmatch(argument)
    if found is None:
        raise UserError(
            f"{argument!r} is not KEY=VALUE. "
            + (f"If it belongs to {before!r}, quote both together: '{before} {argument}'. " if before else "")
            + "There is no space around the = sign. All keys: python -m convrec_r1 --cfg job"
        )
    key, value = found["key"], found["value"]
    if key in _SPOKEN:
        return f"{key}={_spoken(value, key)}"
    path = os.path.expanduser(value)
    if _is_there(path):
        return argument if _reads_as(argument, path) else f"{key}={_quoted_path(path, key)}"
    if value.startswith("~/"):
        return f"{key}={quote(path)}"
    is_list = _is_list(value)
    if (error := _error(argument)) is None:
        if value == "" or not (_is_group(key) or _is_text(key)):
            return argument
        parts = _parts(value)
        if any(_STRUCTURED.match(part) for part in parts):
            return argument
        return _argument(key, [quote(p.strip()) if _is_respelled(p, _is_group(key)) else p for p in parts], is_list)
    parts = _parts(value)
    if any(not part or _STRUCTURED.match(part) for part in parts):
        by_hand = "['text 1','text (2)']" if is_list else quote(value)
        raise UserError(
            f"{argument}\ncannot be read: {error}\nQuote texts with special characters for Hydra, and the whole argument for "
            f"the shell: {_for_shell(f'{key}={by_hand}')}"
        )
    quoted = [part if is_list and _error(f"key={part}") is None else quote(os.path.expanduser(part)) for part in parts]
    return _argument(key, quoted, is_list)


def _spoken(value: str, key: str) -> str:
    """Return a text as a quoted string. One that is quoted for Hydra already, and null, stay as they are."""
    if "${" in value:
        raise UserError(f"{key} holds ${{, which begins a reference to another key, also in quotes. Leave it out.")
    if value == "null" or (value[:1] in ("'", '"') and _is_quoted(value)):
        return value
    return quote(value)


def _is_quoted(value: str) -> bool:
    try:
        return isinstance(OverridesParser.create().parse_override(f"key={value}").value(), (str, QuotedString))
    except HydraException:
        return False


def _is_list(value: str) -> bool:
    return value.startswith("[") and value.endswith("]")


def _parts(value: str) -> list[str]:
    """Return the entries of a list, or of a sweep; of a single value, itself."""
    return (value[1:-1] if _is_list(value) else value).split(",")


def _argument(key: str, parts: Sequence[str], is_list: bool) -> str:
    return f"{key}=[{','.join(parts)}]" if is_list else f"{key}={','.join(parts)}"


def _is_respelled(text: str, group: bool) -> bool:
    """Return whether Hydra reads a number, or true or false, of another spelling. group: of any spelling: it would fail."""
    value = OverridesParser.create().parse_override(f"key={text}").value()
    return isinstance(value, int | float) and (group or str(value) != text.strip())


@cache
def _is_group(key: str) -> bool:
    """Return whether a key chooses a file of conf/, as in `data=NAME`: no key of the config, or one with keys below it."""
    name = key.lstrip("+")
    kind = typing.get_type_hints(Config).get(name)
    return "." not in name and (kind is None or kind is Any or is_dataclass(kind) or typing.get_origin(kind) is dict)


@cache
def _is_text(key: str) -> bool:
    """Return whether the config holds a text, or a list of texts, at a key."""
    kind: Any = Config
    for name in key.lstrip("+").split("."):
        hints = typing.get_type_hints(kind) if is_dataclass(kind) else {}
        if name not in hints:
            return False
        kind = hints[name]
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (UnionType, typing.Union, list) else (kind,)
    return str in kinds or any(typing.get_origin(each) is list and str in typing.get_args(each) for each in kinds)


def _is_there(path: str) -> bool:
    """Return whether a text names a file or folder, or a new entry of a folder whose name has a comma: it is no sweep then."""
    folder = os.path.dirname(path)
    return bool(path) and (os.path.exists(path) or ("," in folder and os.path.isdir(folder)))


def _reads_as(argument: str, text: str) -> bool:
    """Return whether Hydra reads the value as this text. Numbers, true, false and null keep their meaning."""
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    value = override.value()
    if override.is_sweep_override() or "${" in text:
        return False
    return value is None or isinstance(value, bool) or str(value) == text


def _quoted_path(path: str, key: str) -> str:
    if "${" in path:
        raise UserError(
            f"{key}={path}: ${{ begins a reference to another key, also in quotes. Rename the file or folder."
        )
    return quote(path)


def _error(argument: str) -> str | None:
    """Return the error of Hydra's parser for an argument, in one line. None: it can be read."""
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException as error:
        lines = [
            line for line in str(error).splitlines() if line.strip() and not line.startswith(("See ", "Error parsing"))
        ]
        return lines[0].strip()
    return None


def _for_shell(argument: str) -> str:
    return f'"{argument}"' if not re.search(r'[$"`\\!]', argument) else "'" + argument.replace("'", "'\\''") + "'"
