"""Read the folder of a finished run. No code that a file names is imported or run."""

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from convrec_r1.base.digest import of_file
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import fixed_part, read_jsonl
from convrec_r1.evaluate.config import EvalConfig, metric_in_effect, system_name
from convrec_r1.evaluate.scoring import Evaluation
from convrec_r1.run.checkpoints import run_of
from convrec_r1.run.folder import RunFolder
from convrec_r1.run.identity import SOURCES, flatten, identity

History = dict[str, pd.DataFrame]
"""Logged metrics by split: a row per step, a column per metric. NaN: not logged."""
EVALUATES = ("train", "eval", "score")
"""Tasks whose runs have an evaluation."""
_DECIDE_SCORES = (
    *("task.", "data.", "eval.", "match.", "metrics.", "reward.position", "baselines.", "score."),
    *("n", "lists", "name", "seed"),
)
"""Config keys, or prefixes of keys (with a dot at the end), that the scores of another system's lists depend on."""
_OF_EVALUATIONS = (
    *("task.", "data.", "eval.", "rollout.", "n"),
    *("model.max_prompt_length", "model.max_completion_length"),
)
"""Config keys of an evaluation that stand before those of the run that trained its checkpoint."""


class NotARun(Exception):
    """The folder holds no finished run. The message is the reason."""


@dataclass(frozen=True)
class Judged:
    """The evaluation of one policy."""

    evaluation: Evaluation
    digest: str = ""
    """Digest of the file: equal if two runs share the policy."""
    totals: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the whole set of lists, such as catalog/coverage."""

    @cached_property
    def conversations(self) -> tuple[tuple[str, str, int], ...]:
        """Id, cluster and number of ground truths of each conversation, sorted."""
        return tuple(sorted((s.id, s.cluster, s.n_relevant) for s in self.evaluation.samples))


@dataclass(frozen=True)
class Run:
    """A finished run, as read from its folder."""

    path: Path
    config: dict[str, Any]
    """The whole config, with dotted keys."""
    identity: dict[str, Any]
    """Config keys that the policy depends on, without `seed`."""
    seed: int
    algo: str
    """Name of the algorithm. If the training run of an evaluated checkpoint is not found: name of the checkpoint. Of lists that
    another system wrote (task=score): its name."""
    judged: Judged
    summary: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    """Digests of what the run was made from (tasks/inputs.py). Empty for runs of older versions."""
    baselines: dict[str, Judged] = field(default_factory=dict)
    history: History = field(default_factory=dict)
    conversations: Path | None = None
    """File of the evaluated conversations, in the format of data=jsonl."""
    resumed: bool = False
    trained: bool = True
    """False: a checkpoint of unknown training, or lists of another system. Ignore its seed."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def split(self) -> str:
        return self.config["eval.split"]

    @property
    def metric(self) -> str:
        """`eval.metric` of the run, or its default."""
        options = EvalConfig(ks=self.config["eval.ks"], metric=self.config.get("eval.metric"))
        return metric_in_effect(options, self.config["n"])

    @property
    def commit(self) -> str:
        """The commit of the code, with + for uncommitted changes."""
        return str(self.summary.get("git_sha") or "unknown")

    @property
    def data_digests(self) -> dict[str, Any]:
        """Digests of the splits and the catalog."""
        found = self.inputs.get("data")
        return found if isinstance(found, dict) else {}

    @property
    def labels(self) -> dict[str, dict[str, Any]]:
        """Labels of users' metrics, as plain values: reading a run needs no metric class."""
        found = self.summary.get("labels")
        return {str(k): v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}

    @property
    def stopped(self) -> tuple[int | None, str] | None:
        """Step and reason if training ended before its last step, else None."""
        entry = self.summary.get("stopped")
        if not entry:
            return None
        return (entry.get("step"), str(entry.get("why", ""))) if isinstance(entry, dict) else (None, str(entry))

    @property
    def collapses(self) -> list[str]:
        """Warnings of the collapse guard in a run that continued (guard.action=warn)."""
        reason = (self.stopped or (None, ""))[1]
        found = [c for c in self.summary.get("collapses") or [] if isinstance(c, dict)]
        return [f"step {c.get('step')}: {c.get('why')}" for c in found if str(c.get("why")) not in reason]

    @property
    def training_time(self) -> tuple[int | None, float | None]:
        """Last RL step, and the seconds of all RL steps, resumed starts included."""
        seconds = series(self.history, "train", "time/step")
        return (int(seconds.index[-1]), round(float(seconds.sum()), 3)) if len(seconds) else (None, None)


def series(history: History, split: str, name: str) -> pd.Series:
    """Return the finite values of one metric by step."""
    frame = history.get(split)
    if frame is None or name not in frame:
        return pd.Series(dtype=float)
    return frame.loc[np.isfinite(frame[name].to_numpy()), name]


def find_runs(patterns: str | Sequence[str] | None) -> list[Path]:
    """Return the folders that `patterns` match, each once, in order. A folder of runs is replaced by its runs.

    Raises:
        UserError: A pattern matches no folder, or there are no patterns.
    """
    if not patterns:
        raise UserError("task=compare needs runs=PATTERN, such as runs='outputs/study/*', or a list of patterns.")
    found: dict[Path, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(str(pattern)).expanduser()
        fixed = fixed_part(path)  # names of folders may contain wildcards
        rest = str(Path(glob.escape(str(fixed)), path.relative_to(fixed)))
        matches = [path] if path.is_dir() else [Path(match) for match in sorted(glob.glob(rest, recursive=True))]
        folders = [match for match in matches if match.is_dir()]
        if not folders:
            raise UserError(f"runs={pattern}: no such folder (relative to {Path.cwd()}).")
        for folder in folders:
            inner = [] if RunFolder(folder).config.exists() else sorted(c.parent for c in folder.glob("*/config.yaml"))
            found |= dict.fromkeys(inner or [folder])
    return list(found)


class Reader:
    """Reader of run folders. It parses an evaluation that several runs share once."""

    def __init__(self) -> None:
        self._judged: dict[str, Judged] = {}

    def read(self, path: Path) -> Run:
        """Read one run.

        Raises:
            NotARun: The folder holds no finished run.
            UserError: A file is damaged; the message names the file and the line.
        """
        folder = RunFolder(path)
        config, evaluated = _finished(folder)
        split, summary = config["eval.split"], _summary(folder.summary)
        is_training = config["task.name"] == "train"
        made, decided = _origin(config)
        system = config["algo.name"] if is_training else _system(config)
        found = sorted(folder.eval.glob(f"{glob.escape(split)}.*.jsonl"))
        files = {file.name[len(split) + 1 : -len(".jsonl")]: file for file in found}
        files.pop("conversations", None)
        judged = self.judged(evaluated, _totals(summary, system))
        if not judged.evaluation.samples:
            raise NotARun(f"its evaluation, eval/{split}.jsonl, has no conversations")
        conversations = folder.eval / f"{split}.conversations.jsonl"
        return Run(
            path=path,
            config=config,
            identity=_identity(decided),
            seed=decided["seed"],
            algo=made["algo.name"] if made is not None else system,
            judged=judged,
            summary=summary,
            inputs=_inputs(path if is_training else run_of(str(config.get("checkpoint")))),
            baselines={name: self.judged(file, _totals(summary, name)) for name, file in files.items()},
            history=read_history(folder.metrics),
            conversations=conversations if conversations.exists() else None,
            resumed=folder.log.exists() and " Resuming " in folder.log.read_text(encoding="utf-8", errors="replace"),
            trained=made is not None,
        )

    def judged(self, path: Path, totals: Mapping[str, float]) -> Judged:
        """Read an evaluation. UserError if it holds a conversation twice."""
        digest = of_file(path)
        if digest not in self._judged:
            evaluation = Evaluation.read_jsonl(path)
            ids = [sample.id for sample in evaluation.samples]
            if len(set(ids)) < len(ids):
                twice = next(name for name in ids if ids.count(name) > 1)
                raise UserError(f"{path}: the conversation {twice} occurs more than once.")
            self._judged[digest] = Judged(evaluation, digest, totals)
        return self._judged[digest]


def read_history(path: Path) -> History:
    """Read metrics.jsonl. Of two records of one step the later one counts: a resumed run repeats steps.

    Raises:
        UserError: A line is not a record of metrics. The message gives its number.
    """
    found: dict[str, dict[int, dict[str, float]]] = {}
    for number, record in enumerate(read_jsonl(path), start=1):
        try:
            values = {str(name): float(value) for name, value in dict(record["values"]).items()}
            found.setdefault(str(record["split"]), {}).setdefault(int(record["step"]), {}).update(values)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}, line {number}: not a record of metrics ({error!r}).") from error
    return {split: pd.DataFrame.from_dict(steps, orient="index").sort_index() for split, steps in found.items()}


def _finished(folder: RunFolder) -> tuple[dict[str, Any], Path]:
    """Return config and evaluation file of a finished run. NotARun for other folders."""
    if not folder.config.exists():
        raise NotARun("not the folder of a run: it has no config.yaml")
    config = _config(folder.config)
    task, split = config.get("task.name"), config.get("eval.split")
    if task not in EVALUATES:
        raise NotARun(f"a run of task={task}, which has no evaluation to compare")
    if not folder.summary.exists():
        raise NotARun("not finished: it has no summary.json")
    evaluated = folder.eval / f"{split}.jsonl"
    if not evaluated.exists():
        raise NotARun(f"its evaluation, eval/{split}.jsonl, is missing")
    return config, evaluated


def _config(path: Path) -> dict[str, Any]:
    """Return the config of a run as plain values with dotted keys."""
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
    if config.get("task.name") in EVALUATES:
        needed |= {"algo.name": str, "eval.split": str, "n": int, "eval.ks": list}
    for key, kind in needed.items():
        if not isinstance(config.get(key), kind):
            raise UserError(f"{path}: not the config of a run: {key} is {config.get(key)!r}.")
    return config


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config keys that the policy depends on, without the seed."""
    # The recorded digests of users' code are used: computing them would import the packages that the file names.
    recorded = {SOURCES: None, **config}
    return {key: value for key, value in identity(recorded).items() if key not in ("seed", SOURCES)}


def keys_of(config: dict[str, Any], starts: Sequence[str]) -> dict[str, Any]:
    """Return the keys of a config that `starts` names: whole keys, or prefixes with a dot at the end."""
    return {k: v for k, v in config.items() if any(k == s or (s.endswith(".") and k.startswith(s)) for s in starts)}


def _system(config: dict[str, Any]) -> str:
    """Return what a run of task=eval or task=score calls the system that it judged."""
    if config["task.name"] == "score":
        return system_name(config.get("lists"), config.get("name"))
    return Path(str(config.get("checkpoint"))).name


def _origin(config: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return the config of the training run that made the lists (None: not known), and the config that decides the lists."""
    if config["task.name"] == "train":
        return config, config
    if config["task.name"] == "score":
        return None, keys_of(config, _DECIDE_SCORES)
    made = _checkpoint_config(config)
    return made, config if made is None else made


def _checkpoint_config(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the config of the run that trained a checkpoint, with the settings of the evaluation. None: not found."""
    run = run_of(str(config.get("checkpoint")))
    made = _config(RunFolder(run).config) if run is not None else None
    if made is None or made["task.name"] != "train":
        return None
    return made | keys_of(config, _OF_EVALUATIONS)


def _inputs(run: Path | None) -> dict[str, Any]:
    file = RunFolder(run).inputs if run is not None else None
    return _summary(file) if file is not None and file.exists() else {}


def _summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file ({error}).") from error
    if not isinstance(summary, dict):
        raise UserError(f"{path}: not a record of a run.")
    return summary


def _totals(summary: Mapping[str, Any], system: str) -> dict[str, float]:
    """Return the metrics of a system in summary.json."""
    metrics = summary.get("metrics")
    found = metrics.get(system) if isinstance(metrics, dict) else None
    return {k: float(v) for k, v in found.items() if isinstance(v, (int, float))} if isinstance(found, dict) else {}
