"""Option dataclasses: bounds and meaning stand at the field, and checks, run identity and the command line read them there.

steps: int = option(3000, least=1)
retries: int = option(3, least=0, identity=False)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from math import isnan
from typing import Any

KEY = "option"


@dataclass(frozen=True)
class Bounds:
    """What an option's value may be, and whether it is part of a run's identity."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    hint: str = ""
    identity: bool = True

    def problem(self, key: str, value: Any) -> str | None:
        """A sentence about a value out of bounds. None if it is within. None values and "???" are not judged."""
        if value is None or value == "???":
            return None
        hint = f" {self.hint}" if self.hint else ""
        if isinstance(value, float) and isnan(value):
            return f"{key}=nan is not a number."
        if self.choices and value not in self.choices:
            return f"{key}={value}: choose one of {', '.join(map(str, self.choices))}.{hint}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        wanted = [
            f"{words} {limit:g}"
            for words, limit, fits in (
                ("at least", self.least, lambda x, y: x >= y),
                ("above", self.above, lambda x, y: x > y),
                ("at most", self.most, lambda x, y: x <= y),
                ("below", self.below, lambda x, y: x < y),
            )
            if limit is not None and not fits(value, limit)
        ]
        return f"{key}={value}: must be {' and '.join(wanted)}.{hint}" if wanted else None


def option(
    default: Any = MISSING,
    *,
    factory: Any = MISSING,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: Sequence[Any] = (),
    hint: str = "",
    identity: bool = True,
) -> Any:
    """A dataclass field with bounds. Elements of lists and values of mappings are held to them one by one.

    Args:
        default, factory: as in `dataclasses.field`.
        least, above, most, below: limits of a number; `least` and `most` are allowed values themselves.
        choices: the allowed values; null is allowed wherever the type has it.
        hint: a sentence for the error message: what to do.
        identity: False for an option that says where or how fast a run works, and not what it computes. Runs that differ
            in such options alone are the same run.
    """
    bounds = Bounds(least, above, most, below, tuple(choices), hint, identity)
    given = {"default": default} if factory is MISSING else {"default_factory": factory}
    return field(**given, metadata={KEY: bounds})


def walk(options: Any, prefix: str = "") -> Iterator[tuple[str, Any, Bounds]]:
    """Dotted key, value and bounds of every option in a tree of option dataclasses, mappings and lists."""
    if is_dataclass(options) and not isinstance(options, type):
        for f in fields(options):
            yield from _walk_value(f"{prefix}{f.name}", getattr(options, f.name), f.metadata.get(KEY, Bounds()))
    elif isinstance(options, Mapping):
        for name, value in options.items():
            yield from _walk_value(f"{prefix}{name}", value, Bounds())


def _walk_value(key: str, value: Any, bounds: Bounds) -> Iterator[tuple[str, Any, Bounds]]:
    if (is_dataclass(value) and not isinstance(value, type)) or isinstance(value, Mapping):
        yield from walk(value, f"{key}.")
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _walk_value(key, entry, bounds)
    else:
        yield key, value, bounds


def out_of_bounds(options: Any, prefix: str = "") -> list[str]:
    """A sentence for every option whose value is out of its bounds, or NaN."""
    found = (bounds.problem(key, value) for key, value, bounds in walk(options, prefix))
    return list(dict.fromkeys(sentence for sentence in found if sentence))
