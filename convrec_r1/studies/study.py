"""Runs side by side: those that differ in their seed alone are one system, and so are the baselines they brought."""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from convrec_r1.base.errors import UserError
from convrec_r1.data import Conversation
from convrec_r1.data.adapters import jsonl
from convrec_r1.data.config import DataConfig
from convrec_r1.data.load import load_data
from convrec_r1.evaluate.labels import LABELS
from convrec_r1.evaluate.metrics.coverage import catalog_coverage
from convrec_r1.evaluate.scoring import Evaluation
from convrec_r1.studies.naming import ABSENT, differing_keys, name_systems, text
from convrec_r1.studies.run_files import BASELINES, Judged, NotARun, Reader, Run, is_sft

_log = logging.getLogger(__name__)

# What decides how a list is scored: a paired test needs these to be equal.
SCORING = ("eval.split", "n", "eval.ideal", "reward.position", "match._target_", "match.year_tolerance")
# What decides each baseline, by the start of the key. All else may differ between runs that share it.
_DECIDES = {
    "popularity": ("data.name", "data.adapter", "data.path", "data.catalog", "data.seed", "data.train_size", "n"),
    "zero_shot": ("data.", "n", "model."),
    "sft": (
        "data.", "n", "model.", "sft.", "warm_start", "rollout.temperature", "trainer.precision",
        "teacher.", "embedder.", "distill.",  # where a run asked a teacher: else they are no part of its identity
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Replicate:
    """One policy of a system, on the conversations of the study, in their order."""

    seed: int | None
    """None: nothing was trained, so there is no seed to speak of."""
    evaluation: Evaluation
    values: dict[str, np.ndarray]
    """By metric, `rank/<k>/hit` among them: a value a conversation [M], nan where the metric is not defined."""
    coverage: float
    """catalog/coverage, which no single conversation has."""
    order: np.ndarray
    """[M]: place of each conversation in `evaluation`."""

    def sample(self, at: int):
        """The sample of the study's conversation number `at`."""
        return self.evaluation.samples[self.order[at]]


@dataclass(frozen=True)
class System:
    """A way of training, run with one or several seeds; or a baseline."""

    label: str
    kind: str
    """Name of the algorithm or the baseline."""
    config: dict[str, Any]
    """Dotted keys that decide it, without the seed."""
    replicates: tuple[Replicate, ...]
    runs: tuple[Run, ...] = ()
    """Those that trained it; none for a baseline that other runs brought."""

    @property
    def is_baseline(self) -> bool:
        return not self.runs

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(r.seed for r in self.replicates if r.seed is not None)

    @property
    def fixed(self) -> bool:
        """No training went into it, so another training could not have come out differently."""
        return not self.seeds

    @property
    def metrics(self) -> set[str]:
        return {name for replicate in self.replicates for name in replicate.values}

    def values(self, metric: str) -> np.ndarray:
        """[S, M]: a row a seed, a column a conversation; nan where the metric is not defined."""
        size = len(self.replicates[0].order)
        missing = np.full(size, np.nan)
        return np.stack([replicate.values.get(metric, missing) for replicate in self.replicates])


@dataclass(frozen=True)
class LeftOut:
    path: Path
    reason: str


@dataclass(frozen=True)
class Study:
    """Everything that is compared. `systems`: baselines first, then what was trained."""

    systems: tuple[System, ...]
    baseline: System
    """The one that others are held against."""
    metric: str
    ids: tuple[str, ...]
    """Of the conversations, M."""
    clusters: np.ndarray
    """[M]: number of each conversation's cluster."""
    split: str
    n: int
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    """What a reader should know before trusting the numbers."""
    conversations: dict[str, Conversation] | None
    """By id; None where they are not to be found any more."""

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for system in self.systems for run in system.runs)

    @property
    def trained(self) -> tuple[System, ...]:
        return tuple(system for system in self.systems if system.runs)

    @property
    def commits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(run.summary.get("git_sha") or "unknown") for run in self.runs))

    @property
    def metrics(self) -> set[str]:
        return set().union(*(system.metrics for system in self.systems))

    @property
    def config_differences(self) -> list[tuple[str, list[str]]]:
        """Keys in which the trained systems differ, each with a text a system."""
        configs = [system.config for system in self.trained]
        return [(key, [text(c.get(key, ABSENT), 60) for c in configs]) for key in differing_keys(configs)]


@dataclass
class _Draft:
    """A system while its runs are gathered."""

    kind: str
    config: dict[str, Any]
    judged: dict[int | None, Judged] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)


def read_study(paths: Sequence[Path], *, baseline: str | None = None, metric: str | None = None) -> Study:
    """Read and group the runs in `paths`; folders that hold no finished run are listed in `left_out`.

    baseline: a system's label or algorithm; None: grpo, else sft, else the first.  metric: None: the runs' own.
    UserError where nothing can be compared, where runs were evaluated on different conversations or by different rules,
    for an unknown baseline or metric, and for a damaged file.
    """
    runs, left_out = _read(paths)
    if not runs:
        listed = "".join(f"\n  {entry.path}: {entry.reason}" for entry in left_out)
        raise UserError(f"There is no finished run to compare in {len(paths)} folders:{listed}")
    _check_comparable(runs)
    notes: list[str] = []
    drafts, duplicates = _group(runs, notes)
    left_out += duplicates
    if len(drafts) < 2:
        raise UserError(
            f"One system is no comparison: the {len(runs)} finished runs differ in their seed alone and bring no "
            "baselines. Name runs of another algorithm or config beside them."
        )
    ids, clusters, _ = zip(*runs[0].judged.conversations, strict=True)
    names = name_systems([draft.kind for draft in drafts], [draft.config for draft in drafts])
    systems = tuple(
        sorted(
            (
                System(
                    label=name,
                    kind=draft.kind,
                    config=draft.config,
                    replicates=tuple(
                        _replicate(seed, draft.judged[seed], ids)
                        for seed in sorted(draft.judged, key=lambda seed: (seed is not None, seed or 0))
                    ),
                    runs=tuple(sorted(draft.runs, key=lambda run: run.seed)),
                )
                for name, draft in zip(names, drafts, strict=True)
            ),
            key=_order,
        )
    )
    chosen = _metric(metric, runs, systems, notes)
    held_against = _baseline(baseline, systems)
    return Study(
        systems=systems,
        baseline=held_against,
        metric=chosen,
        ids=ids,
        clusters=np.unique(np.array(clusters), return_inverse=True)[1],
        split=runs[0].split,
        n=runs[0].config["n"],
        left_out=tuple(left_out),
        notes=(*notes, *_notes(systems, held_against, len(set(clusters)))),
        conversations=_conversations(runs, ids),
    )


def _read(paths: Sequence[Path]) -> tuple[list[Run], list[LeftOut]]:
    reader, runs, left_out = Reader(), [], []
    for path in paths:
        try:
            runs.append(reader.read(path))
        except NotARun as reason:
            left_out.append(LeftOut(path, str(reason)))
    return runs, left_out


def _check_comparable(runs: Sequence[Run]) -> None:
    """UserError unless all runs were asked about the same conversations and scored by the same rules."""
    split = runs[0].split
    files = [run.conversations.read_bytes() if run.conversations else None for run in runs]
    kept = [file for file in files if file is not None]
    if len(kept) == len(files):
        contents = [blake2b(file, digest_size=16).hexdigest() for file in kept]
        data: tuple[str, ...] = ()
    else:
        # The ids alone do not tell: simulated conversations of another seed go by the same.
        contents = [""] * len(runs)
        data = ("data.name", "data.adapter", "data.seed", f"data.{split}_size")

    def signature(run: Run, content: str) -> tuple:
        keys = {key: run.config.get(key, ABSENT) for key in (*SCORING, *data)}
        return (tuple(map(repr, keys.values())), run.judged.conversations, run.judged.evaluation.catalog_size, content)

    groups: dict[tuple, list[Run]] = {}
    for run, content in zip(runs, contents, strict=True):
        groups.setdefault(signature(run, content), []).append(run)
    if len(groups) == 1:
        return
    first, *others = (members[0] for members in groups.values())
    lines = []
    for key in (*SCORING, "data.name", "data.adapter", "data.path", "data.seed", f"data.{split}_size"):
        values = {text(run.config.get(key, ABSENT)): run.name for run in (first, *others)}
        if len(values) > 1:
            lines.append(f"{key}: " + "; ".join(f"{value} in {name}" for value, name in values.items()))
    for other in others:
        a, b = (set(run.judged.conversations) for run in (first, other))
        if a != b:
            lines.append(
                f"{len(a)} conversations in {first.name}, {len(b)} in {other.name}, {len(a & b)} the same in both"
            )
        elif first.judged.evaluation.catalog_size != other.judged.evaluation.catalog_size:
            lines.append(f"the catalogs of {first.name} and {other.name} have different sizes")
        elif not lines:
            lines.append(f"conversations of {first.name} and {other.name} have the same ids and other contents")
    sizes = ", ".join(f"{len(members)} as {members[0].name}" for members in groups.values())
    raise UserError(
        "These runs were not evaluated alike, and a paired test needs the same conversations, scored by the same rules:\n"
        + "\n".join(f"  - {line}" for line in lines)
        + f"\nCompare each kind for itself ({sizes}), or evaluate anew with task=eval."
    )


def _group(runs: Sequence[Run], notes: list[str]) -> tuple[list[_Draft], list[LeftOut]]:
    """Systems of the runs, then those of their baselines. A run of an identity and seed that was there is left out."""
    drafts: dict[tuple, _Draft] = {}
    left_out: list[LeftOut] = []
    kept: list[Run] = []
    for run in runs:
        kind = "sft" if run.trained and is_sft(run.config) and run.config["task.name"] == "train" else run.algo
        config = _deciding("sft", run.identity) if kind == "sft" else run.identity
        draft = drafts.setdefault(_key(kind, config), _Draft(kind, config))
        seed = run.seed if run.trained else None
        if seed in draft.judged:
            twin = next(other for other in draft.runs if not other.trained or other.seed == seed)
            left_out.append(LeftOut(run.path, f"the same config and seed as {twin.name}"))
            continue
        draft.judged[seed] = run.judged
        draft.runs.append(run)
        kept.append(run)
    others: defaultdict[str, list[str]] = defaultdict(list)
    for name in BASELINES:
        for run in kept:
            if name not in run.baselines:
                continue
            config = _deciding(name, run.identity)
            draft = drafts.setdefault(_key(name, config), _Draft(name, config))
            untrained = name == "popularity" or (name == "zero_shot" and config.get("model.source") != "tiny")
            seed = None if untrained else run.seed
            known = draft.judged.setdefault(seed, run.baselines[name])
            if known.digest != run.baselines[name].digest:
                others[name].append(run.name)
    for name, names in others.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        notes.append(
            f"{LABELS[name]} of {names[0]}{more} wrote other lists than that of a run which should share it; the first one "
            "found is shown."
        )
    return list(drafts.values()), left_out


def _deciding(name: str, config: dict[str, Any]) -> dict[str, Any]:
    starts = _DECIDES[name]
    return {k: v for k, v in config.items() if any(k == s or (s.endswith(".") and k.startswith(s)) for s in starts)}


def _key(kind: str, config: dict[str, Any]) -> tuple:
    return kind, tuple(sorted((key, repr(value)) for key, value in config.items()))


def _order(system: System) -> tuple:
    """Baselines first, algorithms in the order of LABELS, then by name."""
    kinds = list(LABELS)
    return kinds.index(system.kind) if system.kind in kinds else len(kinds), system.label


def _replicate(seed: int | None, judged: Judged, ids: Sequence[str]) -> Replicate:
    evaluation = judged.evaluation
    places = {sample.id: at for at, sample in enumerate(evaluation.samples)}
    order = np.array([places[name] for name in ids])
    samples = [evaluation.samples[at] for at in order]
    values: dict[str, np.ndarray] = {}
    for at, sample in enumerate(samples):
        for name, value in sample.metrics.items():
            if name not in values:
                values[name] = np.full(len(samples), np.nan)
            values[name][at] = value
    ranks = max(len(sample.hits) for sample in samples)
    hits = np.zeros((len(samples), ranks))
    for at, sample in enumerate(samples):
        hits[at, : len(sample.hits)] = sample.hits
    values |= {f"rank/{k + 1}/hit": hits[:, k] for k in range(ranks)}
    coverage = catalog_coverage((sample.covered for sample in samples), evaluation.catalog_size)
    return Replicate(seed, evaluation, values, coverage, order)


def _metric(wanted: str | None, runs: Sequence[Run], systems: Sequence[System], notes: list[str]) -> str:
    own = Counter(run.metric for run in runs)
    chosen = wanted or own.most_common(1)[0][0]
    if not wanted and len(own) > 1:
        notes.append(
            f"The runs go by different metrics ({', '.join(sorted(own))}); {chosen}, the most frequent, is used."
        )
    shared = set.intersection(*(system.metrics for system in systems if system.runs))
    if chosen not in shared:
        known = ", ".join(sorted(name for name in shared if not name.startswith("rank/")))
        raise UserError(f"compare.metric={chosen}: not measured in every run. Choose one of {known}.")
    return chosen


def _baseline(wanted: str | None, systems: Sequence[System]) -> System:
    """By label first, then by algorithm, without regard to case."""
    if wanted is None:
        return next((s for kind in ("grpo", "sft") for s in systems if s.kind == kind), systems[0])
    tests: tuple[Callable[[System], bool], ...] = (
        lambda s: s.label == wanted,
        lambda s: s.label.casefold() == wanted.casefold(),
        lambda s: s.kind.casefold() == wanted.casefold(),
    )
    for test in tests:
        found = [system for system in systems if test(system)]
        if len(found) == 1:
            return found[0]
        if found:
            listed = "; ".join(system.label for system in found)
            raise UserError(
                f"compare.baseline={wanted}: there are {len(found)} such systems. Name one of them: {listed}."
            )
    listed = "; ".join(f"{s.label} ({s.kind})" if s.kind != s.label else s.label for s in systems)
    raise UserError(f"compare.baseline={wanted}: no such system. There are: {listed}.")


def _notes(systems: Iterable[System], baseline: System, n_clusters: int) -> list[str]:
    systems = list(systems)
    notes = []
    single = [s.label for s in systems if len(s.seeds) == 1]
    if single:
        notes.append(
            f"Trained with one seed only: {', '.join(single)}. What is said of these holds for the policies at hand, not for "
            "their way of training: another seed may give another result."
        )
    unpaired = [
        s.label for s in systems if s is not baseline and s.seeds and baseline.seeds and s.seeds != baseline.seeds
    ]
    if unpaired:
        notes.append(
            f"Seeds other than {baseline.label}'s: {', '.join(unpaired)}. Their seeds are compared as independent groups, "
            "not in pairs."
        )
    if n_clusters < 60:
        notes.append(
            f"{n_clusters} independent conversations (clusters) are few: intervals are too narrow and p-values too small "
            "(with 20, 95 % intervals cover the truth in about 93 of 100 cases, and a test at 5 % rejects wrongly in 8)."
        )
    for system in systems:
        for run in system.runs:
            if run.stopped:
                step, why = run.stopped
                where = "early" if step is None else f"at step {step}"
                notes.append(f"{system.label}, seed {run.seed}: training ended {where} ({why}).")
    collapsed = [f"{s.label}, seed {run.seed}" for s in systems for run in s.runs if run.collapses]
    if collapsed:
        notes.append(f"The collapse guard spoke up, and training went on: {'; '.join(collapsed)} (see Runs).")
    commits = {str(run.summary.get("git_sha") or "unknown") for system in systems for run in system.runs}
    if len(commits) > 1:
        notes.append(f"The runs were made by {len(commits)} commits of the code.")
    if any(commit.endswith("+") for commit in commits):
        notes.append("Some runs were made by a working tree with uncommitted changes (a commit with +).")
    return notes


def _conversations(runs: Sequence[Run], ids: Sequence[str]) -> dict[str, Conversation] | None:
    """What was asked: as a run kept it, or from the data of its config, as far as that is still there."""
    for run in runs:
        if run.conversations:
            try:
                return {c.id: c for c in jsonl.read(run.conversations)}
            except UserError as error:
                _log.warning("Conversations could not be read back: %s", error)
    run = runs[0]
    keys = {key.removeprefix("data."): value for key, value in run.config.items() if key.startswith("data.")}
    try:
        cfg = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), keys))
        assert isinstance(cfg, DataConfig)
        asked = {c.id: c for c in load_data(cfg, run.config["n"], need=[run.split])[run.split]}
    except Exception as error:  # whatever ails old data, the numbers do not depend on it
        _log.warning("The conversations are not shown: %s", error)
        return None
    truths = {name: n for name, _, n in run.judged.conversations}
    if any(name not in asked or len(asked[name].ground_truth) != truths[name] for name in ids):
        _log.warning("The conversations are not shown: the data at hand are not those that were evaluated.")
        return None
    return asked
