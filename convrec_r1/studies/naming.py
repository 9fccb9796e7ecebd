"""Names of systems, made from the config keys in which they differ."""

from collections.abc import Sequence
from typing import Any

from convrec_r1.evaluate.labels import LABELS
from convrec_r1.studies.numbers import short

Config = dict[str, Any]
ABSENT = "absent"
"""Value shown for a key that a config does not have. Configs of older versions lack keys."""

# Prefixes of config keys, in the order in which names prefer them.
_TELLING = (
    "algo.",
    "reward.",
    "rl.",
    "distill.name",
    "model.name",
    "data.name",
    "warm_start",
    "n",
    "rollout.",
    "model.",
    "data.",
    "sft.",
    "guard.",
)
_LONGEST = 32


def name_systems(kinds: Sequence[str], configs: Sequence[Config]) -> list[str]:
    """Return a unique name for each system.

    A name is the algorithm, then the reward in parentheses if systems of this algorithm have different rewards, then as few
    `key=value` pairs as are needed to make it unique.

    Args:
        kinds: Algorithm or baseline of each system.
        configs: Config of each system: dotted keys, without the seed.
    """
    names = [LABELS.get(kind, kind) for kind in kinds]
    for rows in _groups(names):
        rewards = {i: choice(configs[i], "reward") for i in rows}
        if len(set(rewards.values())) > 1:
            for i, reward in rewards.items():
                names[i] += f" ({reward})"
    for rows in _groups(names):
        keys = telling_keys([configs[i] for i in rows])
        names_of_keys = _short_keys(keys)
        for i in rows:
            names[i] += "".join(f", {names_of_keys[key]}={text(configs[i].get(key, ABSENT))}" for key in keys)
    # Long values may be cut to equal texts, and a checkpoint may have the name of an algorithm.
    while same := _groups(names):
        for rows in same:
            for number, i in enumerate(rows, start=1):
                names[i] += f" #{number}"
    return names


def choice(config: Config, section: str) -> str:
    """Return the choice in a section of a config: its `name`, else the class of its `_target_`."""
    target = str(config.get(f"{section}._target_", ABSENT)).rsplit(".", 1)[-1]
    return text(config.get(f"{section}.name", target))


def differing_keys(configs: Sequence[Config]) -> list[str]:
    """Return the keys with different values in `configs`, sorted."""
    keys = sorted({key for config in configs for key in config})
    return [key for key in keys if len({_value(config, key) for config in configs}) > 1]


def telling_keys(configs: Sequence[Config]) -> list[str]:
    """Return differing keys that together distinguish all `configs`, chosen greedily."""
    candidates = sorted(differing_keys(configs), key=_telling)
    chosen: list[str] = []

    def apart(keys: list[str]) -> int:
        return len({tuple(_value(config, key) for key in keys) for config in configs})

    while candidates and apart(chosen) < apart(candidates + chosen):
        best = max(candidates, key=lambda key: apart([*chosen, key]))
        chosen.append(best)
        candidates.remove(best)
    return chosen


def text(value: Any, longest: int = _LONGEST) -> str:
    """Return a config value as text of at most `longest` characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return short("[" + ", ".join(map(text, value)) + "]", longest)
    return short(f"{value:g}" if isinstance(value, float) else str(value), longest)


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return a short form of each key: `model` for model.name, `mu` for algo.mu; the whole key if two keys have one form."""
    last = {key: key.removesuffix(".name").rsplit(".", 1)[-1] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


def _value(config: Config, key: str) -> str:
    """Return a value as text for comparison. 1 differs from True, and a missing key from the text "absent"."""
    return repr(config[key]) if key in config else ABSENT


def _telling(key: str) -> tuple:
    place = next((i for i, prefix in enumerate(_TELLING) if key.startswith(prefix)), len(_TELLING))
    return place, not key.endswith(".name"), key


def _groups(names: Sequence[str]) -> list[list[int]]:
    """Return the indices of each name that occurs more than once."""
    places: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        places.setdefault(name, []).append(i)
    return [rows for rows in places.values() if len(rows) > 1]
