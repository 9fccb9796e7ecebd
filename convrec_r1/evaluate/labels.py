"""Names and looks of systems and metrics, the same in every table and figure."""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from convrec_r1.evaluate.metrics import BUILT_IN, Label, find_label

LABELS = {
    "popularity": "Popularity", "zero_shot": "Zero-shot", "sft": "SFT", "grpo": "GRPO", "dr_grpo": "Dr.GRPO", "gspo": "GSPO",
    "rank_grpo": "Rank-GRPO", "dapo": "DAPO", "rank_grpo_reference": "Rank-GRPO (public code)",
}  # fmt: skip

# Okabe and Ito's palette: told apart with any colour vision. Its yellow is too pale for a line on white.
COLORS = {"popularity": "#999999", "zero_shot": "#E69F00", "sft": "#009E73"}
TRAINED = "#0072B2"
"""The one system that a run trained."""
VALIDATION = "#D55E00"
_SERIES = (TRAINED, "#D55E00", "#CC79A7", "#56B4E9", "#000000")
Line = Literal["-", "--", "-.", ":"]
_LINES: tuple[Line, ...] = get_args(Line)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


class Style(NamedTuple):
    """How a system is drawn: colours first, then another line for each round through them."""

    color: str
    line: Line
    marker: str


def styles(kinds: list[str]) -> list[Style]:
    """A style a system, from its kind: a baseline's name, or "" for what has no colour of its own.

    The first of each baseline has the colour it has in every report; all others go through the palette in order.
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
"""Parts of a table of metrics, in order."""
_BUILT_IN = {template: label for metric in BUILT_IN for template, label in metric.labels.items()}
_PLACES = {re.split(r"@|/\{", template)[0]: place for place, template in enumerate(_BUILT_IN)}


def metric_style(name: str, foreign: Mapping[str, Any] | None = None) -> Label:
    """Return the label of a metric. A name that is not known is its own label.

    foreign: labels of metrics from outside the package, as summary.json holds them under "labels".
    """
    if own := find_label(_BUILT_IN, name):
        return own
    entry = (foreign or {}).get(name)
    if not isinstance(entry, Mapping):
        return Label(name)
    default = Label(name, "Other")
    # A file may hold anything: a field of another type counts as absent.
    known = {f: entry[f] for f in Label._fields if type(entry.get(f)) is type(getattr(default, f))}
    label = default._replace(**known)
    group = label.group if label.group in GROUPS else "Other"
    return label._replace(group=group, digits=min(max(label.digits, 0), 12))


def metric_label(name: str, foreign: Mapping[str, Any] | None = None) -> str:
    """Return how the metric is called in tables and figures."""
    return metric_style(name, foreign).label


def metric_order(name: str, foreign: Mapping[str, Any] | None = None) -> tuple:
    """Return a sort key that puts metrics into reading order: by group, then as in BUILT_IN, then by k as a number."""
    group = GROUPS.index(metric_style(name, foreign).group)
    stem, _, k = name.partition("@")
    if name.startswith("rank/"):
        stem, k = "rank", name.split("/")[1]
    return group, _PLACES.get(stem, len(_PLACES)), stem, int(k) if k.isdigit() else 0, name
