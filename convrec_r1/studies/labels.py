"""Names and looks of systems and metrics, the same in every table and figure."""

from typing import Literal, NamedTuple, get_args

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


class Metric(NamedTuple):
    """How a metric is written. `percent`: a share, shown in %. `group`: the part of a table it belongs to."""

    label: str
    group: str
    percent: bool = False


GROUPS = ("Ranking", "Reach", "Lists", "Other", "Ranks")
_NAMED = {
    "mrr": Metric("MRR", "Ranking"),
    "popularity/mean_rank": Metric("Popularity rank of items, mean", "Reach"),
    "catalog/coverage": Metric("Catalog coverage", "Reach", True),
    "catalog/valid": Metric("Lines in the catalog", "Lists", True),
    "format/valid": Metric("Lines that parse", "Lists", True),
    "format/complete": Metric("Lists of exactly n lines", "Lists", True),
    "list/length": Metric("Lines per list", "Lists"),
    "list/duplicates": Metric("Repeats per list", "Lists"),
    "list/seen": Metric("Seen titles per list", "Lists"),
}
_STEMS = {"ndcg": "NDCG", "recall": "Recall"}
_SEGMENTS = {f"recall_{part}": f"Recall of {part} items" for part in ("head", "mid", "tail")}


def metric_style(name: str) -> Metric:
    """How the metric of this name is written; a name that is not known stays as it is."""
    stem, _, k = name.partition("@")
    if name in _NAMED:
        return _NAMED[name]
    if k and stem in _STEMS:
        return Metric(f"{_STEMS[stem]}@{k}", "Ranking")
    if k and stem in _SEGMENTS:
        return Metric(f"{_SEGMENTS[stem]}, @{k}", "Reach")
    if name.startswith("rank/") and name.endswith("/hit"):
        return Metric(f"Hits at rank {name.split('/')[1]}", "Ranks", True)
    return Metric(name, "Other")


def metric_label(name: str) -> str:
    return metric_style(name).label


def metric_order(name: str) -> tuple:
    """Sorts metrics as people read them: by group, as they are listed above, and by k as a number."""
    group = GROUPS.index(metric_style(name).group)
    stem, _, k = name.partition("@")
    if name.startswith("rank/"):
        stem, k = "rank", name.split("/")[1]
    known = [*_STEMS, *_SEGMENTS, *_NAMED]
    return group, known.index(stem) if stem in known else len(known), stem, int(k) if k.isdigit() else 0, name
