"""What stands in the folder of a finished run, read back. Nothing here knows of other runs."""

import glob
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_jsonl
from convrec_r1.evaluate.scoring import Evaluation
from convrec_r1.rl.config import Stage
from convrec_r1.run.folder import RunFolder
from convrec_r1.run.identity import flatten, identity

BASELINES = ("popularity", "zero_shot", "sft")
_CHECKPOINT_DEPTH = 3  # RUN/checkpoints/last/policy: so many folders below the run's


class NotARun(Exception):
    """A folder that cannot be compared; the message says why, for the list of what was left out."""


@dataclass(frozen=True)
class Judged:
    """The evaluation of one policy."""

    evaluation: Evaluation
    digest: str
    """Of the file's content: the same where two runs share a policy."""

    @cached_property
    def conversations(self) -> tuple[tuple[str, str, int], ...]:
        """What was asked, in sorted order: id, cluster, number of ground truths."""
        return tuple(sorted((s.id, s.cluster, s.n_relevant) for s in self.evaluation.samples))


@dataclass(frozen=True)
class Run:
    """A finished run: what its folder holds."""

    path: Path
    config: dict[str, Any]
    """Dotted keys; all of them, as the run was started."""
    identity: dict[str, Any]
    """Dotted keys that make the policy what it is, `seed` left out."""
    seed: int
    algo: str
    """The algorithm's name; of an evaluated checkpoint that no run here explains, the checkpoint's."""
    summary: dict[str, Any]
    judged: Judged
    baselines: dict[str, Judged] = field(default_factory=dict)
    history: dict[str, list[tuple[int, dict[str, float]]]] = field(default_factory=dict)
    """By split: (step, values), steps in order, each once."""
    conversations: Path | None = None
    """The evaluated conversations, in the form that data=jsonl reads."""
    resumed: bool = False
    trained: bool = True
    """False: a checkpoint whose training is not known here (its seed says nothing then)."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def split(self) -> str:
        return self.config["eval.split"]

    @property
    def metric(self) -> str:
        """What the run itself goes by (Config.metric)."""
        n = self.config["n"]
        ks = sorted({k for k in self.config["eval.ks"] if k <= n}) or [n]
        return self.config.get("eval.metric") or f"ndcg@{10 if 10 in ks else ks[-1]}"

    @property
    def stopped(self) -> tuple[int | None, str] | None:
        """Where and why training ended before its last step; None: it did not."""
        entry = self.summary.get("stopped")
        if not entry:
            return None
        return (entry.get("step"), str(entry.get("why", ""))) if isinstance(entry, dict) else (None, str(entry))

    @property
    def collapses(self) -> list[str]:
        """What the collapse guard said of a run that went on (guard.action=warn), a text a limit and step."""
        stopped_for = (self.stopped or (None, ""))[1]
        told = [
            c
            for c in self.summary.get("collapses") or []
            if isinstance(c, dict) and str(c.get("why")) not in stopped_for
        ]
        return [f"step {c.get('step')}: {c.get('why')}" for c in told]

    def series(self, split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of one metric, where it was logged and is a number."""
        points = [(step, values[name]) for step, values in self.history.get(split, []) if name in values]
        steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
        finite = np.isfinite(values)
        return steps[finite].astype(int), values[finite]


def find_runs(patterns: str | Iterable[str]) -> list[Path]:
    """The folders that `patterns` name, each once, in order. A folder that holds runs stands for these.

    UserError for a pattern that matches no folder.
    """
    if not patterns:
        raise UserError("task=compare needs runs=PATTERN, as in runs='outputs/study/*', or a list of such.")
    found: dict[Path, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(str(pattern)).expanduser()
        # A folder may have the name that a pattern would have.
        matches = [path] if path.is_dir() else [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        folders = [match for match in matches if match.is_dir()]
        if not folders:
            raise UserError(f"runs={pattern}: no such folder (from {Path.cwd()}).")
        for folder in folders:
            inner = [] if RunFolder(folder).config.exists() else sorted(c.parent for c in folder.glob("*/config.yaml"))
            found |= dict.fromkeys(inner or [folder])
    return list(found)


class Reader:
    """Reads run folders; an evaluation that several runs share is parsed once."""

    def __init__(self) -> None:
        self._judged: dict[str, Judged] = {}

    def read(self, path: Path) -> Run:
        """NotARun for a folder that holds no finished run; UserError, naming file and line, for a damaged file."""
        folder = RunFolder(path)
        if not folder.config.exists():
            raise NotARun("not the folder of a run: it has no config.yaml")
        config = _config(folder.config)
        task, split = config.get("task.name"), config.get("eval.split")
        if task not in ("train", "eval"):
            raise NotARun(f"a run of task={task}, which leaves no policy or evaluation to compare")
        if not folder.summary.exists():
            raise NotARun("not finished: it has no summary.json")
        if not (folder.eval / f"{split}.jsonl").exists():
            raise NotARun(f"its evaluation, eval/{split}.jsonl, is gone")
        judged = self.judged(folder.eval / f"{split}.jsonl")
        if not judged.evaluation.samples:
            raise NotARun(f"its evaluation, eval/{split}.jsonl, has no conversations")
        made = config if task == "train" else _checkpoint_config(config)
        baselines = {
            name: self.judged(file)
            for name in BASELINES
            if task == "train" and (file := folder.eval / f"{split}.{name}.jsonl").exists()
        }
        conversations = folder.eval / f"{split}.conversations.jsonl"
        known = made is not None
        return Run(
            path=path,
            config=config,
            identity=_identity(made if made is not None else config),
            seed=(made if made is not None else config)["seed"],
            algo=made["algo.name"] if made is not None else Path(str(config.get("checkpoint"))).name,
            summary=_summary(folder.summary),
            judged=judged,
            baselines=baselines,
            history=_history(folder.metrics),
            conversations=conversations if conversations.exists() else None,
            resumed=folder.log.exists() and " Resuming " in folder.log.read_text(encoding="utf-8", errors="replace"),
            trained=known,
        )

    def judged(self, path: Path) -> Judged:
        digest = blake2b(path.read_bytes(), digest_size=16).hexdigest()
        if digest not in self._judged:
            evaluation = Evaluation.read_jsonl(path)
            ids = [sample.id for sample in evaluation.samples]
            if len(set(ids)) < len(ids):
                twice = next(name for name in ids if ids.count(name) > 1)
                raise UserError(f"{path}: the conversation {twice} is in it more than once.")
            self._judged[digest] = Judged(evaluation, digest)
        return self._judged[digest]


def is_sft(config: dict[str, Any]) -> bool:
    return config.get("algo.stage") == Stage.sft.value


def _config(path: Path) -> dict[str, Any]:
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not YAML ({getattr(error, 'problem', None) or error}).") from error
    except (OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not the config of a run ({error}).") from error
    config = flatten(tree) if isinstance(tree, dict) else {}
    needed = {"task.name": str, "seed": int}
    if config.get("task.name") in ("train", "eval"):
        needed |= {"algo.name": str, "eval.split": str, "n": int, "eval.ks": list}
    for key, kind in needed.items():
        if not isinstance(config.get(key), kind):
            raise UserError(f"{path}: not the config of a run: {key} is {config.get(key)!r}.")
    return config


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in identity(config).items() if key != "seed"}


def _checkpoint_config(config: dict[str, Any]) -> dict[str, Any] | None:
    """The config that made the checkpoint of an evaluation, evaluated as that evaluation says; None: not to be found."""
    path = Path(str(config.get("checkpoint"))).expanduser()
    for folder in [path, *list(path.parents)[:_CHECKPOINT_DEPTH]]:
        if (file := RunFolder(folder).config).exists():
            made = _config(file)
            if made["task.name"] != "train":
                return None
            own = {k: v for k, v in config.items() if k == "n" or k.startswith(("task.", "data.", "eval.", "rollout."))}
            return made | own
    return None


def _summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file ({error}).") from error
    if not isinstance(summary, dict):
        raise UserError(f"{path}: not the summary of a run.")
    return summary


def _history(path: Path) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """Records by split and step. Of two at one step the later counts: a run that went on computed it again."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for number, record in enumerate(read_jsonl(path), start=1):
        try:
            step, split, values = int(record["step"]), str(record["split"]), dict(record["values"])
            found.setdefault(split, {}).setdefault(step, {}).update(
                {name: float(value) for name, value in values.items()}
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}, line {number}: not a record of metrics ({error!r}).") from error
    return {split: sorted(steps.items()) for split, steps in found.items()}
