"""Names and styles of systems and metrics, for all tables and figures."""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from convrec_r1.evaluate.metrics import BUILT_IN, Label, find_label

LABELS = {
    "popularity": "Popularity", "zero_shot": "Zero-shot", "teacher": "Teacher", "sft": "SFT", "grpo": "GRPO",
    "dr_grpo": "Dr.GRPO", "gspo": "GSPO", "rank_grpo": "Rank-GRPO", "dapo": "DAPO",
    "rank_grpo_reference": "Rank-GRPO (public code)",
}  # fmt: skip

# Palette of Okabe and Ito, for all types of colour vision, without yellow: it is too pale for a line on white. The teacher's
# is Tol's wine.
COLORS = {"popularity": "#999999", "zero_shot": "#E69F00", "teacher": "#882255", "sft": "#009E73"}
TRAINED = "#0072B2"
"""Colour of the trained system in the figures of one run."""
VALIDATION = "#D55E00"
_SERIES = (TRAINED, "#D55E00", "#CC79A7", "#56B4E9", "#000000")
Line = Literal["-", "--", "-.", ":"]
_LINES: tuple[Line, ...] = get_args(Line)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


class Style(NamedTuple):
    """Colour, line and marker of a system."""

    color: str
    line: Line
    marker: str


def styles(kinds: list[str]) -> list[Style]:
    """Return a style for each system.

    kinds: a baseline's name, or "". The first system of each baseline has the baseline's colour. All others take the colours of
    the palette in order, with another line style each time the palette repeats.
    """
    found, taken, used = [], 0, set()
    for kind in kinds:
        if kind in COLORS and kind not in used:
            used.add(kind)
            found.append(Style(COLORS[kind], "-", "."))
        else:
            turn, color = divmod(taken, len(_SERIES))
            found.append(Style(_SERIES[color], _LINES[turn % len(_LINES)], _MARKERS[taken % len(_MARKERS)]))
            taken += 1
    return found


GROUPS = ("Ranking", "Reach", "Lists", "Other", "Ranks")
"""Groups of metrics in a table, in order."""
_BUILT_IN = {template: label for metric in BUILT_IN for template, label in metric.labels.items()}
_PLACES = {re.split(r"@|/\{", template)[0]: place for place, template in enumerate(_BUILT_IN)}


def metric_style(name: str, foreign: Mapping[str, Any] | None = None) -> Label:
    """Return the label of a metric. The label of an unknown metric is its name.

    foreign: labels of users' metrics, as in summary.json under "labels".
    """
    if own := find_label(_BUILT_IN, name):
        return own
    entry = (foreign or {}).get(name)
    if not isinstance(entry, Mapping):
        return Label(name)
    default = Label(name, "Other")
    # The file is not trusted: a field with another type counts as absent.
    known = {f: entry[f] for f in Label._fields if type(entry.get(f)) is type(getattr(default, f))}
    label = default._replace(**known)
    group = label.group if label.group in GROUPS else "Other"
    return label._replace(group=group, digits=min(max(label.digits, 0), 12))


def metric_label(name: str, foreign: Mapping[str, Any] | None = None) -> str:
    """Return the name of a metric in tables and figures."""
    return metric_style(name, foreign).label


def metric_order(name: str, foreign: Mapping[str, Any] | None = None) -> tuple:
    """Return a sort key for metrics: by group, then as in BUILT_IN, then by k as a number."""
    group = GROUPS.index(metric_style(name, foreign).group)
    stem, _, k = name.partition("@")
    if name.startswith("rank/"):
        stem, k = "rank", name.split("/")[1]
    return group, _PLACES.get(stem, len(_PLACES)), stem, int(k) if k.isdigit() else 0, name
