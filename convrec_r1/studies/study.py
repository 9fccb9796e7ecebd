"""Group finished runs into the systems of a study. Runs that differ only in their seed are one system."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convrec_r1.base.errors import UserError
from convrec_r1.data import Conversation
from convrec_r1.data.adapters import jsonl
from convrec_r1.evaluate.labels import LABELS
from convrec_r1.studies.checks import check_comparable, notes_on
from convrec_r1.studies.naming import name_systems
from convrec_r1.studies.numbers import Writer
from convrec_r1.studies.run_files import Judged, NotARun, Reader, Run, keys_of
from convrec_r1.studies.systems import Study, System, make_replicate

_log = logging.getLogger(__name__)

# Config keys, or prefixes of keys (with a dot at the end), that a baseline depends on. Runs that differ only in other keys
# share the baseline.
_DATA = (
    "data.name",
    "data._target_",
    "data.options.",
    "data.path",
    "data.catalog",
    "data.seed",
    "data.train_size",
    "n",
)
_DECIDES = {
    "popularity": (*_DATA, "match."),
    "teacher": ("data.", "n", "match.", "teacher."),
    "zero_shot": ("data.", "n", "model.", "match."),
    "sft": (
        *("data.", "n", "model.", "match.", "sft.", "warm_start", "rollout.temperature", "trainer.precision"),
        *("teacher.", "embedder.", "distill."),  # in the identity only if demonstrations are distilled
    ),
}


@dataclass
class _Draft:
    """A system under construction."""

    kind: str
    config: dict[str, Any]
    judged: dict[int | None, Judged] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)


def read_study(paths: Sequence[Path], *, baseline: str | None = None, metric: str | None = None) -> Study:
    """Read the runs in `paths` and group them into systems.

    Args:
        paths: Run folders. Those without a finished run are listed in `Study.left_out`.
        baseline: Label or algorithm of a system. None: grpo, else sft, else the first system.
        metric: Metric of the report. None: `eval.metric` of the runs.

    Raises:
        UserError: There are fewer than two systems, the runs were evaluated on different conversations or by different rules,
            the baseline or metric does not exist, or a file is damaged.
    """
    runs, left_out = _read(paths)
    if not runs:
        listed = "".join(f"\n  {path}: {reason}" for path, reason in left_out)
        raise UserError(f"There is no finished run to compare in {len(paths)} folders:{listed}")
    check_comparable(runs)
    drafts, kept, duplicates = _group(runs)
    notes = _add_baselines(drafts, kept)
    if len(drafts) < 2:
        raise UserError(
            f"A comparison needs two systems: the {len(runs)} finished runs differ only in their seed and have no "
            "baselines. Add runs with another algorithm or config."
        )
    ids, clusters, _ = zip(*runs[0].judged.conversations, strict=True)
    systems = _systems(list(drafts.values()), ids)
    chosen = _metric(metric, runs, systems, notes)
    compared_with = _baseline(baseline, systems)
    return Study(
        systems=systems,
        baseline=compared_with,
        metric=chosen,
        ids=ids,
        clusters=np.unique(np.array(clusters), return_inverse=True)[1],
        split=runs[0].split,
        n=runs[0].config["n"],
        left_out=(*left_out, *duplicates),
        notes=(*notes, *notes_on(systems, compared_with, len(set(clusters)))),
        conversations=_conversations(runs),
        write=Writer({name: label for run in runs for name, label in run.labels.items()}),
    )


def _read(paths: Sequence[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    reader, runs, left_out = Reader(), [], []
    for path in paths:
        try:
            runs.append(reader.read(path))
        except NotARun as reason:
            left_out.append((path, str(reason)))
    return runs, left_out


def _group(runs: Sequence[Run]) -> tuple[dict[tuple, _Draft], list[Run], list[tuple[Path, str]]]:
    """Return drafts of systems, the runs in them, and the runs left out because another has the same config and seed."""
    drafts: dict[tuple, _Draft] = {}
    kept, left_out = [], []
    for run in runs:
        is_sft = run.trained and run.config.get("algo.stage") == "sft" and run.config["task.name"] == "train"
        kind = "sft" if is_sft else run.algo
        draft = _draft(drafts, kind, _deciding("sft", run.identity) if is_sft else run.identity)
        seed = run.seed if run.trained else None
        if seed in draft.judged:
            twin = next(other for other in draft.runs if not other.trained or other.seed == seed)
            left_out.append((run.path, f"the same config and seed as {twin.name}"))
            continue
        draft.judged[seed] = run.judged
        draft.runs.append(run)
        kept.append(run)
    return drafts, kept, left_out


def _add_baselines(drafts: dict[tuple, _Draft], runs: Sequence[Run]) -> list[str]:
    """Add the baselines of `runs` to the drafts. Return a note for each baseline with unequal lists in runs that share it."""
    unequal: dict[str, list[str]] = {}
    names = {name: None for run in runs for name in run.baselines}
    for name in [*(name for name in _DECIDES if name in names), *(name for name in names if name not in _DECIDES)]:
        brought = [run for run in runs if name in run.baselines]
        # A user's baseline counts as not trained if its lists are equal for all seeds.
        same = name not in _DECIDES and len({run.baselines[name].digest for run in brought}) == 1
        for run in brought:
            draft = _draft(drafts, name, _deciding(name, run.identity))
            fixed = same or name in ("popularity", "teacher")
            fixed = fixed or (name == "zero_shot" and run.config.get("model.source") != "tiny")
            known = draft.judged.setdefault(None if fixed else run.seed, run.baselines[name])
            if known.digest != run.baselines[name].digest:
                unequal.setdefault(name, []).append(run.name)
    return [
        f"{LABELS.get(name, name)}: the lists of {found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''} "
        "differ from those of another run with the same baseline. The report uses the first lists that were found."
        for name, found in unequal.items()
    ]


def _draft(drafts: dict[tuple, _Draft], kind: str, config: dict[str, Any]) -> _Draft:
    key = kind, tuple(sorted((name, repr(value)) for name, value in config.items()))
    return drafts.setdefault(key, _Draft(kind, config))


def _deciding(name: str, config: dict[str, Any]) -> dict[str, Any]:
    starts = _DECIDES.get(name, ("data.", "n", "match.", f"baselines.{name}.", f"eval.baselines.{name}.", "sources."))
    return keys_of(config, starts)


def _systems(drafts: Sequence[_Draft], ids: Sequence[str]) -> tuple[System, ...]:
    """Return the systems in the order of LABELS, then by name."""
    kinds = list(LABELS)
    found = []
    for name, draft in zip(name_systems([d.kind for d in drafts], [d.config for d in drafts]), drafts, strict=True):
        seeds = sorted(draft.judged, key=lambda seed: (seed is not None, seed or 0))
        replicates = tuple(make_replicate(seed, draft.judged[seed], ids) for seed in seeds)
        runs = tuple(sorted(draft.runs, key=lambda run: run.seed))
        found.append(System(name, draft.kind, draft.config, replicates, runs))
    return tuple(sorted(found, key=lambda s: (kinds.index(s.kind) if s.kind in kinds else len(kinds), s.label)))


def _metric(wanted: str | None, runs: Sequence[Run], systems: Sequence[System], notes: list[str]) -> str:
    own = Counter(run.metric for run in runs)
    chosen = wanted or own.most_common(1)[0][0]
    if not wanted and len(own) > 1:
        notes.append(
            f"The runs have different values of eval.metric ({', '.join(sorted(own))}). The most frequent is used: {chosen}."
        )
    shared = set.intersection(*(system.metrics for system in systems if system.runs))
    if chosen not in shared:
        known = ", ".join(sorted(name for name in shared if not name.startswith("rank/")))
        raise UserError(f"compare.metric={chosen}: not measured in every run. Choose one of {known}.")
    return chosen


def _baseline(wanted: str | None, systems: Sequence[System]) -> System:
    """Return the system with this label, else with this algorithm. Case is ignored if no label is equal."""
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
                f"compare.baseline={wanted}: {len(found)} systems have this name. Choose one of them by its label: {listed}."
            )
    listed = "; ".join(f"{s.label} ({s.kind})" if s.kind != s.label else s.label for s in systems)
    raise UserError(f"compare.baseline={wanted}: no system has this name. Choose one of: {listed}.")


def _conversations(runs: Sequence[Run]) -> dict[str, Conversation] | None:
    """Return the conversations by id, from the first run with a readable file of them. None if there is no such run."""
    # The dataset is not loaded again: the config of another user's run must not be able to run code.
    for run in runs:
        if run.conversations:
            try:
                return {c.id: c for c in jsonl.read(run.conversations)}
            except UserError as error:
                _log.warning("Conversations of %s cannot be read: %s", run.name, error)
    return None
