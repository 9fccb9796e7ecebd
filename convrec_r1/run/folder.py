"""outputs/<study>/<run>/: what a run leaves behind, and what it finds there when it is started again."""

import contextlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from enum import Enum
from hashlib import blake2b
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from convrec_r1 import __version__
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import write_json, write_text

# Keys that say where a run works and how it is recorded, not what it computes: runs that differ in these alone are the same.
NOT_IDENTITY = ("version", "git_sha", "outputs", "study", "fresh", "logger", "hydra", "runs", "compare")
_NESTED = {
    "rollout": ("servers", "start", "transfer_folder", "start_timeout", "request_timeout", "retries", "checksum_every"),
    "teacher": ("api_key_env", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout", "retries", "price_in",
                "price_out", "cache", "memory_fraction", "tensor_parallel_size", "start_timeout"),
    "embedder": ("device", "batch_size"),
    "distill": ("block", "dry_run"),
    "guard": ("nonfinite", "nonfinite_patience"),  # so that a run that stopped may go on and skip
}  # fmt: skip
STAGE_1 = ("teacher", "embedder", "distill")
"""Sections that say something about those runs only that ask a teacher."""
NOT_IDENTITY_NESTED = tuple(f"{section}.{key}" for section, keys in _NESTED.items() for key in keys)


class State(Enum):
    new = "new"
    interrupted = "interrupted"
    complete = "complete"


class RunFolder:
    """Paths of one run. `begin` decides whether there is something to do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.summary = path / "summary.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.eval = path / "eval"
        self.rollouts = path / "rollouts"
        self.figures = path / "figures"
        self.faults = path / "faults"
        self.log = path / "run.log"

    def state(self) -> State:
        if not self.config.exists():
            return State.new
        return State.complete if self.summary.exists() else State.interrupted

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While the block lasts no other process has the folder; the lock goes with the process, however that ends.

        Raises UserError if another one has it.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"Another process is at this run: {self.path}. Two would write into each other's files. Wait for it or stop "
                "it; another folder (hydra.run.dir=DIR) makes another run."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def begin(self, cfg: DictConfig, git_sha: str | None = None) -> State:
        """Claim the folder for `cfg`. Returns what was found: a new, an interrupted or a complete run of this config.

        config.yaml of a new run starts with the version of the package and its commit.

        Raises UserError if the folder holds a run of another config.
        """
        if cfg.fresh:
            self.clear()
        state = self.state()
        if state is State.new:
            code = OmegaConf.create({"version": __version__, "git_sha": git_sha})
            write_text(self.config, OmegaConf.to_yaml(code) + OmegaConf.to_yaml(cfg, resolve=True))
            return state
        changed = differences(
            OmegaConf.to_container(OmegaConf.load(self.config)),
            as_dict(cfg, resolve=True),
        )
        if changed:
            listed = "\n".join(f"  {key}: {before} there, {now} now" for key, before, now in changed[:10])
            raise UserError(
                f"{self.path} holds a run of another config:\n{listed}\n"
                "Choose another folder (hydra.run.dir=DIR), or fresh=true to start over and lose that run."
            )
        return state

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json, last of all: a folder that has it holds a finished run."""
        write_json(self.summary, {"status": "complete", "version": __version__, **summary})

    def clear(self) -> None:
        """Remove what a run wrote here, and nothing else."""
        for file in (self.summary, self.config, self.metrics, self.log):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.eval, self.rollouts, self.figures, self.faults):
            shutil.rmtree(folder, ignore_errors=True)
        for extra in ("report.md", "metrics.csv", "dataset", "arrow"):  # the last two are links
            (self.path / extra).unlink(missing_ok=True)

    def discard_if_empty(self, outputs: Path) -> None:
        """Hydra makes the folder before the config is checked; one in which nothing was written goes away again, and
        so do the folders above it up to `outputs`, if they are empty. Nothing above `outputs` is touched."""
        root = outputs.absolute()
        path = self.path.absolute()
        with contextlib.suppress(OSError):
            path.rmdir()
            while path != root and root in path.parents:
                path = path.parent
                path.rmdir()


def differences(before: Any, now: Any) -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ between two configs, identity keys only."""
    a, b = identity(before), identity(now)
    return [(key, a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)]


def identity(cfg: Any) -> dict[str, Any]:
    """Dotted keys and values that make a run what it is, of a config as a tree or with dotted keys."""
    flat = flatten(cfg)
    asks = flat.get("task.name") == "distill" or flat.get("data.demonstrations") == "distilled"
    left_out = NOT_IDENTITY if asks else (*NOT_IDENTITY, *STAGE_1)
    return {
        key: value
        for key, value in flat.items()
        if key.split(".")[0] not in left_out and key not in NOT_IDENTITY_NESTED
    }


def run_name(*, _root_: DictConfig) -> str:
    """`${run_name:}`: readable parts first, then a digest of all that makes the run what it is."""
    # `outputs` is no part of a name, but others refer to it.
    plain = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key not in NOT_IDENTITY or key == "outputs"])
    values = as_dict(plain, resolve=True)
    digest = blake2b(json.dumps(identity(values), sort_keys=True, default=str).encode(), digest_size=4).hexdigest()
    stage = values["algo"].get("name", "?")
    parts = (
        [stage, values["reward"].get("name", "?")] if values["task"]["name"] == "train" and stage != "sft" else [stage]
    )
    if values["task"]["name"] != "train":
        parts = [values["task"]["name"], Path(str(values.get("checkpoint"))).name]
    if values["task"]["name"] == "distill":
        parts = ["distill", values["distill"].get("name", "?"), values["teacher"].get("model") or "?"]
        parts += [values["embedder"].get("name", "?"), values["data"].get("name", "?"), digest]
        return _joined(parts)
    parts += [values["model"].get("name", "?"), values["data"].get("name", "?"), f"s{values['seed']}", digest]
    return _joined(parts)


def _joined(parts: list[str]) -> str:
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", str(part).rsplit("/", 1)[-1]) for part in parts)


def run_dir(*, _root_: DictConfig) -> str:
    """`${run_dir:}`: outputs/<study>/<run name>; of a comparison, comparison/ beside the runs that it compares."""
    if _root_.task.name == "compare" and _root_.runs:
        patterns = [_root_.runs] if isinstance(_root_.runs, str) else list(_root_.runs)
        beside = os.path.commonpath([os.path.dirname(os.path.abspath(str(pattern))) for pattern in patterns])
        fixed = itertools.takewhile(lambda part: not re.search(r"[*?[]", part), Path(beside).parts)
        return str(Path(*fixed) / "comparison")
    return f"{study_dir(_root_=_root_)}/{run_name(_root_=_root_)}"


def study_dir(*, _root_: DictConfig) -> str:
    """`${study_dir:}`: outputs/<study>. A study is one folder's name: UserError for a path, before anything is made."""
    study = str(_root_.study)
    if study in ("", ".", "..") or re.search(r"[/\\\x00-\x1f\x7f]", study):
        raise UserError(
            f"study={study!r} is no name of a folder: give a plain one; outputs=DIR says where studies stand."
        )
    return f"{_root_.outputs}/{study}"


def as_dict(cfg: DictConfig, *, resolve: bool = False) -> dict[str, Any]:
    """A config's mapping as plain values, enums by their names; what is missing stays "???"."""
    values = OmegaConf.to_container(cfg, resolve=resolve, enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A config with dotted keys."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {key: value for name, sub in tree.items() for key, value in flatten(sub, f"{prefix}{name}.").items()}
