"""Which keys of a config make a run what it is. Runs that differ in other keys alone are the same run.

A field of an options dataclass that says where or how fast a run works is declared with `option(..., identity=False)`; a whole
section can be declared so too. Everything else counts, a user's plug-in with the digest of its source file.
"""

from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from convrec_r1.base.options import KEY
from convrec_r1.base.plugins import source_digests

LEFT_OUT = "not_identity"
"""Key of config.yaml with what `left_out` returned: a reader of the file needs no dataclasses."""
RECORDS = ("version", "git_sha", "hydra", LEFT_OUT)
"""Keys of config.yaml that record circumstances."""
STAGE_1 = ("teacher", "embedder", "distill")
"""Sections that count only for runs that ask a teacher."""
SOURCES = "sources"
"""Key of config.yaml with the digests of users' source files."""


def left_out(cfg: DictConfig) -> set[str]:
    """Return the dotted keys of `cfg`, sections or single keys, that its dataclasses declare as not part of the identity."""
    found: set[str] = set()

    def visit(node: DictConfig, prefix: str) -> None:
        schema = OmegaConf.get_type(node)
        tagged = fields(schema) if isinstance(schema, type) and is_dataclass(schema) else ()
        no_identity = {f.name for f in tagged if KEY in f.metadata and not f.metadata[KEY].identity}
        for name in node:
            key = f"{prefix}{name}"
            if name in no_identity:
                found.add(key)
                continue
            inner = node._get_node(name)
            if isinstance(inner, DictConfig) and not (
                inner._is_none() or inner._is_missing() or inner._is_interpolation()
            ):
                visit(inner, f"{key}.")

    visit(cfg, "")
    return found


def with_sources(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plain config of this command with the digests of users' source files, under `sources`.

    Only for the config of this command: what a run's folder names is not looked for.
    """
    digests = source_digests(values)
    return {SOURCES: digests, **values} if digests else dict(values)


def identity(values: Mapping[str, Any], without: Collection[str] | None = None) -> dict[str, Any]:
    """Return dotted key -> value of everything in a plain config that makes the run what it is.

    Args:
        values: the config as a tree or with dotted keys.
        without: what `left_out` returned for it. None: what config.yaml says of itself.
    """
    flat = flatten(dict(values))
    asks = flat.get("task.name") == "distill" or flat.get("data.demonstrations") == "distilled"
    left = (values.get(LEFT_OUT) or ()) if without is None else without
    listed = "teacher" in (flat.get("eval.baselines") or ())  # its lists are a baseline
    skipped = {*left, *RECORDS, *(() if asks else STAGE_1[1:] if listed else STAGE_1)}
    return {key: value for key, value in flat.items() if not any(within(key, section) for section in skipped)}


def differences(before: Any, now: Any, without: Collection[str]) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, value before, value now) of every identity key that differs between two plain configs."""
    a, b = identity(before, without), identity(now, without)
    return [(key, a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)]


def as_dict(cfg: DictConfig, *, resolve: bool = False) -> dict[str, Any]:
    """Return a config's mapping as plain values, enums by their names; what is missing stays "???"."""
    values = OmegaConf.to_container(cfg, resolve=resolve, enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return a tree of mappings with dotted keys. An empty mapping has none."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {key: value for name, sub in tree.items() for key, value in flatten(sub, f"{prefix}{name}.").items()}


def within(key: str, section: str) -> bool:
    """Return whether a dotted key is `section` or in it."""
    return key == section or key.startswith(f"{section}.")
