"""What a metric is: its protocol, its labels, and the judged lists it is computed from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation
from convrec_r1.evaluate.popularity import Popularity
from convrec_r1.evaluate.sample import Sample
from convrec_r1.lists import Item
from convrec_r1.matching import Matching

_FIELD = re.compile(r"\\{(\w+)\\}")  # a field of a template after re.escape


class Label(NamedTuple):
    """How a metric is written in tables and figures, and how its values are read."""

    label: str
    """The name in plain text. It may hold the fields of the metric's name: "NDCG@{k}"."""
    group: str = "Other"
    """The part of a table that the metric stands in: one of labels.GROUPS."""
    percent: bool = False
    """A share, shown in %."""
    better: Literal["high", "low", "none"] = "high"
    """Which direction is an improvement. `eval.metric` must be one that is better the higher it is."""
    digits: int = 4
    """Digits after the point."""
    per_list: bool = True
    """False: one value for the whole set of lists, without interval and test."""


Labels = Mapping[str, Label]
"""A metric's names, which may have fields, and their labels."""


@dataclass(frozen=True)
class Lists:
    """The judged lists of an evaluation, one a conversation: B lists of N ranks."""

    texts: Sequence[str]
    """[B] what the policy wrote."""
    lines: Sequence[Sequence[Item | None]]
    """[B] every non-blank line as an item, None where it does not parse; lines past the N-th too."""
    ranked: Sequence[Sequence[Item | None]]
    """[B] the recommendation at each rank, at most N. position=line: as `lines`; position=parsed: without the None."""
    hits: np.ndarray
    """int [B, N]: 1 where the rank holds a ground truth (`reward.relevance`)."""
    conversations: Sequence[Conversation]
    """[B] with messages, ground_truth and seen titles."""
    catalog: Catalog
    """`catalog.metadata` holds the tags of its items, where the dataset has any."""
    popularity: Popularity
    """Of the training conversations; arrays in catalog order."""
    match: Matching
    """The rule for "the same item"."""
    n: int
    """N, the recommendations that were asked for."""
    ks: Sequence[int]
    """Cut-offs of metrics "at k"."""

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def n_relevant(self) -> np.ndarray:
        """int [B]: number of ground truths of each conversation."""
        return np.array([len(c.ground_truth) for c in self.conversations], dtype=np.int64)

    @cached_property
    def found(self) -> list[list[Item | None]]:
        """[B] the catalog's own entry at each rank of `ranked`, None where there is none."""
        return [
            [None if item is None else self.catalog.find(item, self.match) for item in items] for items in self.ranked
        ]

    @cached_property
    def covered(self) -> list[list[int]]:
        """[B] places in the catalog of the distinct items at the first N ranks, in the list's order."""
        places = {item: at for at, item in enumerate(self.catalog)}
        return [list(dict.fromkeys(places[item] for item in items if item is not None)) for items in self.found]

    @cached_property
    def countable(self) -> np.ndarray:
        """int [B]: ranks that could have been hits: an item of the catalog, and not of a title the user has seen."""
        counts = []
        for items, conversation in zip(self.found, self.conversations, strict=True):
            seen = {self.match.key(title) for title in conversation.seen}
            counts.append(sum(item is not None and self.match.key(item.title) not in seen for item in items))
        return np.array(counts, dtype=np.int64)


@runtime_checkable
class Metric(Protocol):
    """A metric. One of your own inherits from this class, or has these three members.

    Config: an entry of `metrics`, a mapping with `_target_` and the class's own keyword arguments. The project passes
    `n`, `ks` and `ideal` (eval.ideal) to a class that has parameters of these names.

        class Surprise(Metric):
            labels = {"surprise@{k}": Label("Surprise@{k}", better="high")}

            def per_list(self, lists):
                return {f"surprise@{k}": [...] for k in lists.ks}
    """

    labels: ClassVar[Labels]
    """Every name that the metric gives, and its label. Fields of a name: {k} every cut-off, {last} the largest cut-off,
    {n} the list's length, {rank} 1 to n. summary.json holds the labels of metrics from outside the package, so that
    task=compare needs no code of theirs."""

    def per_list(self, lists: Lists) -> Mapping[str, ArrayLike]:
        """Return values of each list: name -> float [B]. NaN: the metric is not defined for this list.

        A list's values must not depend on the other lists: means, intervals and tests treat them as samples. The mean over
        the lists in which a value is defined is the value of the run.
        """
        return {}

    def overall(self, samples: Sequence[Sample], catalog_size: int) -> Mapping[str, float]:
        """Return values of the whole set of lists: name -> number. NaN: not defined.

        Args:
            samples: at least one. They hold hits, items as places in the catalog, text and the values per list. Their order
                must change nothing.
            catalog_size: number of items in the catalog.
        """
        return {}


def names(labels: Mapping[str, Label], n: int, ks: Sequence[int]) -> dict[str, Label]:
    """Return every name that stands for `labels` in lists of `n` with cut-offs `ks`, and its label, fields filled in."""
    choices = {"k": ks, "last": [max(ks)], "n": [n], "rank": range(1, n + 1)}
    found = {}
    for name, label in labels.items():
        fields = [field for field in choices if f"{{{field}}}" in name]
        for value in choices[fields[0]] if fields else [None]:
            filled = {fields[0]: value} if fields else {}
            found[_fill(name, filled)] = label._replace(label=_fill(label.label, filled))
    return found


def find_label(labels: Mapping[str, Label], name: str) -> Label | None:
    """Return the label of a name in `labels`, whose names may have fields, or None."""
    if name in labels:
        return labels[name]
    for template, label in labels.items():
        if "{" in template and (match := re.fullmatch(_FIELD.sub(r"(?P<\1>\\d+)", re.escape(template)), name)):
            return label._replace(label=_fill(label.label, match.groupdict()))
    return None


def _fill(text: str, fields: Mapping[str, object]) -> str:
    for field, value in fields.items():
        text = text.replace(f"{{{field}}}", str(value))
    return text
