"""Option dataclasses whose fields declare their bounds and whether they are part of a run's identity.

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
    """The allowed values of an option, and whether it is part of a run's identity. Arguments: see `option`."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    hint: str = ""
    identity: bool = True

    def problem(self, key: str, value: Any) -> str | None:
        """Return a message if `value` is out of bounds, else None. None and "???" (not set yet) are never out of bounds."""
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
    """Return a dataclass field with bounds. The bounds apply to each element of a list and each value of a mapping.

    Args:
        default: default value, as in `dataclasses.field`.
        factory: function that makes the default value, as `default_factory` in `dataclasses.field`.
        least: lowest number allowed.
        above: numbers must be greater than this.
        most: highest number allowed.
        below: numbers must be less than this.
        choices: allowed values. None is allowed as well if the type has it.
        hint: a sentence for the error message that says what to do.
        identity: False for an option that changes where or how fast a run computes, not what. Runs that differ only in such
            options are the same run.
    """
    bounds = Bounds(least, above, most, below, tuple(choices), hint, identity)
    given = {"default": default} if factory is MISSING else {"default_factory": factory}
    return field(**given, metadata={KEY: bounds})


def walk(options: Any, prefix: str = "") -> Iterator[tuple[str, Any, Bounds]]:
    """Yield dotted key, value and bounds of each option in a tree of option dataclasses, mappings and lists."""
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
    """Return a message for each option that is out of bounds or NaN."""
    found = (bounds.problem(key, value) for key, value, bounds in walk(options, prefix))
    return list(dict.fromkeys(sentence for sentence in found if sentence))
