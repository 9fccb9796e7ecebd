"""What tells systems apart, from their configs alone: short names, and the keys in which they differ."""

from collections.abc import Sequence
from typing import Any

from convrec_r1.evaluate.labels import LABELS

Config = dict[str, Any]
ABSENT = "absent"
"""Stands for a key that a config lacks, as those of older versions do."""

# Of the keys that tell two systems apart, those that say most come first.
_TELLING = (
    "algo.", "reward.", "rl.", "distill.name", "model.name", "data.name", "warm_start", "n", "rollout.", "model.", "data.",
    "sft.", "guard.",
)  # fmt: skip
_LONGEST = 32


def name_systems(kinds: Sequence[str], configs: Sequence[Config]) -> list[str]:
    """A name a system, no two the same: the algorithm; its reward in parentheses where that differs among systems of
    the algorithm; then as few keys as tell the rest apart.

    kinds: an algorithm or a baseline (its name in LABELS, or any other text).  configs: dotted keys without the seed.
    """
    names = [LABELS.get(kind, kind) for kind in kinds]
    for rows in _groups(names):
        if len({configs[i].get("reward.name", ABSENT) for i in rows}) > 1:
            for i in rows:
                names[i] += f" ({text(configs[i].get('reward.name', ABSENT))})"
    for rows in _groups(names):
        keys = telling_keys([configs[i] for i in rows])
        short = short_names(keys)
        for i in rows:
            names[i] += "".join(f", {short[key]}={text(configs[i].get(key, ABSENT))}" for key in keys)
    # Two values may be shortened to the same text, and a checkpoint may have the name of an algorithm.
    while same := _groups(names):
        for rows in same:
            for place, i in enumerate(rows, start=1):
                names[i] += f" #{place}"
    return names


def differing_keys(configs: Sequence[Config]) -> list[str]:
    """Keys that have not the same value in all of `configs`, in sorted order."""
    keys = sorted({key for config in configs for key in config})
    return [key for key in keys if any(_value(c, key) != _value(configs[0], key) for c in configs)]


def telling_keys(configs: Sequence[Config]) -> list[str]:
    """A few of the differing keys, enough to tell all of `configs` apart (if they differ at all)."""
    candidates = sorted(differing_keys(configs), key=_telling)
    chosen: list[str] = []

    def apart(keys: list[str]) -> int:
        return len({tuple(_value(config, key) for key in keys) for config in configs})

    while candidates and apart(chosen) < apart(candidates + chosen):
        best = max(candidates, key=lambda key: apart([*chosen, key]))
        chosen.append(best)
        candidates.remove(best)
    return chosen


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Keys as people call them: `model` for model.name, `mu` for algo.mu, in full where that would be ambiguous."""
    last = {key: key.removesuffix(".name").rsplit(".", 1)[-1] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


def text(value: Any, longest: int = _LONGEST) -> str:
    """A config value in a few characters."""
    if value is None or isinstance(value, bool):
        written = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, float):
        written = f"{value:g}"
    elif isinstance(value, list):
        written = "[" + ", ".join(text(entry) for entry in value) + "]"
    else:
        written = " ".join(str(value).split())
    return written if len(written) <= longest else written[: longest - 1] + "…"


def _value(config: Config, key: str) -> str:
    """For comparison: 1 and True, and a missing key and the word for it, are not the same."""
    return repr(config[key]) if key in config else ABSENT


def _telling(key: str) -> tuple:
    place = next((i for i, prefix in enumerate(_TELLING) if key.startswith(prefix)), len(_TELLING))
    return place, not key.endswith(".name"), key


def _groups(names: Sequence[str]) -> list[list[int]]:
    """Places of each name that is used more than once."""
    places: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        places.setdefault(name, []).append(i)
    return [rows for rows in places.values() if len(rows) > 1]
