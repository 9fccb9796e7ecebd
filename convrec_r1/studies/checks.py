"""Check that runs can be compared, and write notes on the limits of a comparison."""

from collections.abc import Sequence
from typing import Any

from convrec_r1.base.digest import of_file
from convrec_r1.base.errors import UserError
from convrec_r1.studies.naming import ABSENT, text
from convrec_r1.studies.run_files import Run
from convrec_r1.studies.systems import System

# Keys of the scoring rules. A paired test needs equal values.
SCORING = (
    *("eval.split", "n", "eval.ideal", "reward.position"),
    *("match._target_", "match.year_tolerance", "reward.year_tolerance"),  # older versions: reward.year_tolerance
)
_DEFAULTS = {"reward.position": "line"}
"""Values of absent keys: a user's reward need not have them."""
_DATA = ("data.name", "data.adapter", "data._target_", "data.path", "data.seed")
_FEW_CLUSTERS = 60


def check_comparable(runs: Sequence[Run]) -> None:
    """Raise UserError unless all runs were evaluated on the same conversations and scored by the same rules."""
    size = f"data.{runs[0].split}_size"
    files = [run.conversations for run in runs if run.conversations]
    complete = len(files) == len(runs)
    contents = [of_file(file) for file in files] if complete else [""] * len(runs)
    # Simulated conversations of another seed have the same ids, so without the conversations the data keys are compared.
    keys = (*SCORING, *(() if complete else (*(key for key in _DATA if key != "data.path"), size)))
    groups: dict[tuple, list[Run]] = {}
    for run, content in zip(runs, contents, strict=True):
        settings = tuple(repr(_value(run, key)) for key in keys)
        judged = run.judged
        groups.setdefault((settings, judged.conversations, judged.evaluation.catalog_size, content), []).append(run)
    if len(groups) == 1:
        return
    listed = "\n".join(f"  - {line}" for line in _differences([members[0] for members in groups.values()], size))
    sizes = ", ".join(f"{len(members)} as {members[0].name}" for members in groups.values())
    raise UserError(
        "These runs were not evaluated alike. A paired test needs the same conversations and the same scoring rules:\n"
        f"{listed}\nCompare each group separately ({sizes}), or evaluate again with task=eval."
    )


def _value(run: Run, key: str) -> Any:
    return run.config.get(key, _DEFAULTS.get(key, ABSENT))


def _differences(runs: Sequence[Run], size: str) -> list[str]:
    """Return a sentence for each difference between runs that were not evaluated alike."""
    first, *others = runs
    lines = []
    for key in (*SCORING, *_DATA, size):
        values = {text(_value(run, key)): run.name for run in runs}
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
            lines.append(f"conversations of {first.name} and {other.name} have equal ids and different contents")
    return lines


def notes_on(systems: Sequence[System], baseline: System, n_clusters: int) -> list[str]:
    """Return notes on the limits of a study: few seeds or conversations, runs that ended early, different code."""
    notes = []
    single = [s.label for s in systems if len(s.seeds) == 1]
    if single:
        notes.append(
            f"Trained with one seed only: {', '.join(single)}. Their results hold for these policies and not for the "
            "algorithm: another seed may give another result."
        )
    unpaired = [
        s.label for s in systems if s is not baseline and s.seeds and baseline.seeds and s.seeds != baseline.seeds
    ]
    if unpaired:
        notes.append(
            f"Seeds differ from those of {baseline.label}: {', '.join(unpaired)}. Their seeds are compared as independent "
            "samples, not in pairs."
        )
    if n_clusters < _FEW_CLUSTERS:
        notes.append(
            f"{n_clusters} independent conversations (clusters) are few: intervals are too narrow and p-values too small "
            "(with 20, 95 % intervals cover the truth in about 93 of 100 cases, and a test at 5 % rejects wrongly in 8)."
        )
    runs = [
        (f"{system.label}, seed {run.seed}" if run.trained else system.label, run)
        for system in systems
        for run in system.runs
    ]
    for name, run in runs:
        if run.stopped:
            step, why = run.stopped
            notes.append(f"{name}: training ended {'early' if step is None else f'at step {step}'} ({why}).")
    if collapsed := [name for name, run in runs if run.collapses]:
        notes.append(f"The collapse guard warned, and training continued: {'; '.join(collapsed)} (see Runs).")
    notes += dict.fromkeys(str(note) for _, run in runs for note in run.summary.get("notes") or ())
    notes += _unequal_inputs(runs)
    for name, run in runs:
        lists = run.summary.get("lists")
        told = lists.get("notes") if isinstance(lists, dict) else None
        notes += [f"{name}: {note}" for note in told if isinstance(note, str)] if isinstance(told, list) else []
    commits = {run.commit for _, run in runs}
    if len(commits) > 1:
        notes.append(f"The runs used {len(commits)} different commits of the code.")
    if any(commit.endswith("+") for commit in commits):
        notes.append("Some runs used code with uncommitted changes (a commit with +).")
    return notes


def _unequal_inputs(runs: Sequence[tuple[str, Run]]) -> list[str]:
    """Return notes on runs that were made from other training data or by other code than the first ones."""
    notes = []
    for what, of in (
        ("training data", lambda run: [run.data_digests.get(part) for part in ("catalog", "train", "demonstrations")]),
        ("code", lambda run: run.inputs.get("code")),
    ):
        groups: dict[str, list[str]] = {}
        for name, run in runs:
            if run.data_digests:
                groups.setdefault(repr(of(run)), []).append(name)
        if len(groups) > 1:
            listed = "; ".join(", ".join(names) for names in groups.values())
            notes.append(f"The runs were made from different {what}, each group from its own: {listed}.")
    return notes
