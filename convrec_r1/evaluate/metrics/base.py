"""Interface of a metric: protocol, labels, and the scored lists that it reads."""

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
    """Name of a metric in tables and figures, and format of its values."""

    label: str
    """The name. It may have the fields of the metric's name: "NDCG@{k}"."""
    group: str = "Other"
    """Group in tables: one of labels.GROUPS."""
    percent: bool = False
    """True: a share, shown in %."""
    better: Literal["high", "low", "none"] = "high"
    """Direction of an improvement. `eval.metric` must have "high"."""
    digits: int = 4
    """Digits after the point."""
    per_list: bool = True
    """False: one value for the whole set of lists, without interval or test."""


Labels = Mapping[str, Label]
"""Labels by name. Names may have fields."""


@dataclass(frozen=True)
class Lists:
    """The scored lists of an evaluation, one per conversation: B lists of N ranks."""

    texts: Sequence[str]
    """[B]: texts as the policy wrote them."""
    lines: Sequence[Sequence[Item | None]]
    """[B]: all non-blank lines as items, also after rank N. None: the line is not an item."""
    ranked: Sequence[Sequence[Item | None]]
    """[B]: the items at the first N ranks. position=line: as `lines`. position=parsed: without None."""
    hits: np.ndarray
    """int [B, N]: 1 for a ground truth (`reward.relevance`)."""
    conversations: Sequence[Conversation]
    """[B]: messages, ground truths and seen titles."""
    catalog: Catalog
    """`catalog.metadata` has the tags of the items, if the dataset has tags."""
    popularity: Popularity
    """Popularity in the training conversations."""
    match: Matching
    """Rule for "the same item"."""
    n: int
    """Recommendations in a list (N)."""
    ks: Sequence[int]
    """Cut-offs of metrics "at k"."""

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def n_relevant(self) -> np.ndarray:
        """int [B]: number of ground truths of each conversation; one that is listed twice counts once."""
        return np.array([len(self.match.distinct(c.ground_truth)) for c in self.conversations], dtype=np.int64)

    @cached_property
    def found(self) -> list[list[Item | None]]:
        """[B]: the catalog entry at each rank of `ranked`. None: not in the catalog."""
        return [
            [None if item is None else self.catalog.find(item, self.match) for item in items] for items in self.ranked
        ]

    @cached_property
    def covered(self) -> list[list[int]]:
        """[B]: catalog indices of the distinct items at the first N ranks, in list order."""
        places = {item: at for at, item in enumerate(self.catalog)}
        return [list(dict.fromkeys(places[item] for item in items if item is not None)) for items in self.found]

    @cached_property
    def countable(self) -> np.ndarray:
        """int [B]: number of ranks with a catalog item that the user has not seen."""
        counts = []
        for items, conversation in zip(self.found, self.conversations, strict=True):
            seen = self.match.seen_keys(conversation.seen)
            counts.append(sum(item is not None and self.match.key(item.title) not in seen for item in items))
        return np.array(counts, dtype=np.int64)


@runtime_checkable
class Metric(Protocol):
    """A metric. Your own class inherits from this class, or has these three members.

    Config: an entry of `metrics`, a mapping with `_target_` and the keyword arguments of the class. The project passes `n`,
    `ks` and `ideal` (eval.ideal) to a class with parameters of these names.

        class Surprise(Metric):
            labels = {"surprise@{k}": Label("Surprise@{k}", better="high")}

            def per_list(self, lists):
                return {f"surprise@{k}": [...] for k in lists.ks}
    """

    labels: ClassVar[Labels]
    """Names of all values of the metric, with labels. Fields of a name: {k} each cut-off, {last} the largest cut-off, {n} the
    length of the list, {rank} 1 to n. summary.json stores the labels of users' metrics, so task=compare needs no class."""

    def per_list(self, lists: Lists) -> Mapping[str, ArrayLike]:
        """Return values of each list: name -> float [B]. NaN: not defined for this list.

        The value of a list must not depend on other lists: intervals and tests treat lists as samples. The value of the run
        is the mean over the lists that define the metric.
        """
        return {}

    def overall(self, samples: Sequence[Sample], catalog_size: int) -> Mapping[str, float]:
        """Return values of the whole set of lists: name -> number. NaN: not defined.

        Args:
            samples: At least one sample. The result must not depend on their order.
            catalog_size: Number of items in the catalog.
        """
        return {}


def names(labels: Mapping[str, Label], n: int, ks: Sequence[int]) -> dict[str, Label]:
    """Return `labels` with all fields filled in, for lists of `n` and cut-offs `ks`."""
    choices = {"k": ks, "last": [max(ks)], "n": [n], "rank": range(1, n + 1)}
    found = {}
    for name, label in labels.items():
        fields = [field for field in choices if f"{{{field}}}" in name]
        for value in choices[fields[0]] if fields else [None]:
            filled = {fields[0]: value} if fields else {}
            found[_fill(name, filled)] = label._replace(label=_fill(label.label, filled))
    return found


def find_label(labels: Mapping[str, Label], name: str) -> Label | None:
    """Return the label of a name without fields, or None. Names in `labels` may have fields."""
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
