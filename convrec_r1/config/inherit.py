"""Options that task=eval takes over from the run that trained its checkpoint: n, data, instruction, limits, matching, model.

The command line wins over the run's config.yaml, which wins over the defaults. The file may be another person's: it is read as
plain values. Import paths are taken over only if a built-in choice has them. Options that let a model bring code are not.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from convrec_r1.base.errors import UserError
from convrec_r1.base.plugins import TARGET
from convrec_r1.config.files import conf_folder
from convrec_r1.config.schema import Config
from convrec_r1.run.checkpoints import run_of
from convrec_r1.run.folder import RunFolder
from convrec_r1.run.identity import flatten, within

TAKEN = (
    *("n", "seed", "data", "model", "match", "reward", "rollout.stop_at_n"),
    *(f"eval.{name}" for name in ("ks", "ideal", "constraint", "metric", "split", "every", "select", "patience")),
)
"""Sections and keys that are taken over."""
_LEFT = ("model.trust_remote_code", "model.attention", "data.demonstrations")
"""Keys in them that are not: the first two may run code, the last one is only for training."""
_FREE = ("model.template",)
"""Mappings whose keys are the user's."""
_GLOBAL = ("debug", "experiment", "scale", "recipe")
"""Groups whose choices set keys of several sections."""
_SHOWN = ("n", "data.name", "model.name", "model.max_prompt_length", "model.max_completion_length", "match._target_")


def inherit(cfg: DictConfig, overrides: Sequence[str], folders: Sequence[Path]) -> str | None:
    """Fill in `cfg` of task=eval from the run of its checkpoint, in place. Return a sentence for the log; None for other tasks.

    Args:
        cfg: the composed config.
        overrides: those of the command line, which win.
        folders: folders with YAML files of choices.
    Raises:
        UserError: the run's config.yaml cannot be read, or needs a class of the user's that the command does not name.
    """
    if cfg.task.name != "eval" or not cfg.checkpoint:
        return None
    run = run_of(str(cfg.checkpoint))
    stored = _stored(run) if run is not None else {}
    if run is None or stored.get("task.name") != "train":
        return (
            f"checkpoint={cfg.checkpoint} belongs to no training run: n={cfg.n}, data={cfg.data.name} and the limits of "
            f"model={cfg.model.name} are those of this command."
        )
    keys, groups = _given(overrides, folders)
    if {"n", "eval.ks"} & keys:
        keys.add("eval.metric")  # the run's may not exist at these cut-offs
    if "metrics" not in groups and not any(within(key, "metrics") for key in keys) and _foreign_metric(stored):
        keys.add("eval.metric")  # of a class that is not imported
    if "data" in groups and stored.get("data.domain") == cfg.data.domain:
        stored["instruction"] = stored.pop("data.instruction", cfg.data.instruction)  # the policy knows this one
    taken, overridden = [], []
    notes = _refuse_foreign(run, stored, groups)
    for name, value in stored.items():
        key = "data.instruction" if name == "instruction" else name
        if key in _LEFT or not any(within(key, part) for part in TAKEN):
            continue
        now = OmegaConf.select(cfg, key, default=None)
        if name.split(".")[0] in groups or any(within(key, k) or within(k, key) for k in keys):
            if _text(key, now) != _text(key, value) and (key in keys or key in _SHOWN):
                overridden.append(f"{_label(key)}={_text(key, now)} (there {_text(key, value)})")
        elif _has(cfg, key) or any(within(key, free) for free in _FREE):
            if isinstance(value, str) and "${" in value:
                raise UserError(
                    f"{RunFolder(run).config}: {key} holds ${{...}}, which is not resolved. Give {key} yourself."
                )
            OmegaConf.update(cfg, key, value, force_add=True)
            taken.append(key)
    shown = [f"{_label(key)}={_text(key, stored[key])}" for key in _SHOWN if key in taken]
    said = f"From {run}: {', '.join([*shown, 'instruction and scoring'])}" if taken else f"From {run}: nothing"
    return "; ".join([said, *([f"overridden: {', '.join(overridden)}"] if overridden else []), *notes]) + "."


def ask_for_n(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Set `serve.n` to the command line's n, in place. Without one the policy's own counts, and not the default."""
    if "n" in _given(overrides, [])[0]:
        cfg.serve.n = cfg.n


def read_by_run(cfg: Config) -> bool:
    """Return whether the run of `cfg.checkpoint` was made from the dataset of `cfg`. False without such a run."""
    run = run_of(str(cfg.checkpoint))
    stored = _stored(run) if run is not None else {}
    return bool(stored) and all(
        stored.get(f"data.{key}") == getattr(cfg.data, key) for key in ("_target_", "path", "seed")
    )


def config_folders(runtime: Any) -> list[Path]:
    """Return the folders of YAML files that Hydra composed a config from. runtime: `hydra.runtime`."""
    sources = OmegaConf.select(runtime, "config_sources", default=None) or () if runtime is not None else ()
    return [conf_folder(), *(Path(s.path) for s in sources if s.schema == "file" and s.path)]


def _stored(run: Path) -> dict[str, Any]:
    """Return the run's config as plain values with dotted keys."""
    file = RunFolder(run).config
    try:
        tree = OmegaConf.to_container(OmegaConf.load(file))
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not the config of a run ({str(error).splitlines()[0]}).") from error
    return flatten(tree)


def _refuse_foreign(run: Path, stored: dict[str, Any], groups: set[str]) -> list[str]:
    """Remove a reward that is a user's class from `stored`. Return a note on it.

    Raises UserError for users' classes of data and match, which decide every number.
    """
    notes = []
    for section in ("data", "match", "reward"):
        path = stored.get(f"{section}.{TARGET}")
        if section in groups or path is None or path in _built_in(section):
            continue
        if section != "reward":
            raise UserError(
                f"{run} has {section}.{TARGET}={path}, and code is imported only if the command itself names it: give "
                f"{section}=NAME, as in the run's own command (with its --config-dir)."
            )
        notes.append(f"its reward {path} is not imported: this command's reward decides which lines hold ranks")
        for key in [key for key in stored if within(key, section)]:
            del stored[key]
    return notes


def _foreign_metric(stored: dict[str, Any]) -> bool:
    """Return whether the run's `eval.metric` is a value of a user's class."""
    from convrec_r1.evaluate.metrics import BUILT_IN, find_label  # imported late: takes time

    metric = stored.get("eval.metric")
    return bool(metric) and not any(find_label(kind.labels, str(metric)) for kind in BUILT_IN)


@functools.cache
def _built_in(group: str) -> frozenset[str]:
    """Return the import paths of the built-in choices of a group."""
    files = [OmegaConf.load(file) for file in (conf_folder() / group).glob("*.yaml")]
    store, schemas = ConfigStore.instance(), f"schema/{group}"
    typed = [store.load(f"{schemas}/{name}").node for name in store.list(schemas)] if "schema" in store.repo else []
    nodes = [*files, *(OmegaConf.select(node, group, default=None) for node in files), *typed]
    named = [node for node in nodes if isinstance(node, DictConfig) and _has(node, TARGET)]
    return frozenset(str(node[TARGET]) for node in named if not OmegaConf.is_missing(node, TARGET))


def _given(overrides: Sequence[str], folders: Sequence[Path]) -> tuple[set[str], set[str]]:
    """Return the keys that the command line sets, and the sections for which it makes a choice."""
    keys, groups = set(), set()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        name = override.key_or_group
        if not any((folder / name).is_dir() for folder in folders):
            keys.add(name)
        elif name in _GLOBAL:
            for content in _contents(folders, name, str(override.value())):
                for entry in filter(lambda entry: isinstance(entry, dict), content.pop("defaults", [])):
                    groups |= {key.removeprefix("override ").lstrip("/") for key in entry}
                keys |= set(flatten(content))
        else:
            groups.add(name.split("/")[0])
    return keys, groups


def _contents(folders: Sequence[Path], group: str, choice: str) -> Iterator[dict[str, Any]]:
    for file in dict.fromkeys(folder / group / f"{choice}.yaml" for folder in folders):
        if file.is_file():
            content = OmegaConf.to_container(OmegaConf.load(file))
            yield {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _has(cfg: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent, default=None) if parent else cfg
    return isinstance(node, DictConfig) and name in node._content  # pyright: ignore[reportOperatorIssue]


def _label(key: str) -> str:
    return key.removesuffix(".name").removesuffix(f".{TARGET}")


def _text(key: str, value: Any) -> str:
    """Return a value as the command line has it; of a built-in class, the choice."""
    section, _, last = key.rpartition(".")
    if last == TARGET and value in _built_in(section):
        return value.rsplit(".", 1)[-1].lower()
    return "null" if value is None else str(getattr(value, "name", value))
