"""The catalog constraint of a run: a catalog, a vocabulary, and a rule for "the same item"."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from convrec_r1.base.errors import UserError
from convrec_r1.data.catalog import Catalog
from convrec_r1.lists import Item
from convrec_r1.matching import Matching, unnameable
from convrec_r1.rollout.constraint.lines import CatalogLines, Opening, Subset
from convrec_r1.rollout.constraint.state import ListState
from convrec_r1.rollout.constraint.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from convrec_r1.policy import Policy

_log = logging.getLogger(__name__)
_MEASURED = 2000
"""Lines whose tokens are counted."""


class Constraint:
    """Holds lists to a catalog: n lines, each an item of the catalog, none twice, none that the user has seen."""

    def __init__(self, catalog: Catalog, match: Matching, vocabulary: Vocabulary) -> None:
        """
        Args:
            match: rule for "the same item", for repeats and for seen titles.
        Raises:
            UserError: no item of the catalog can be written.
        """
        self.match = match
        lost = set(unnameable(catalog)) | {item for item in catalog if "\n" in str(item)}
        self.lines = CatalogLines((item for item in catalog if item not in lost), vocabulary, match.item_key)
        if not len(self.lines):
            raise UserError(
                "constraint=catalog: the model's tokenizer can write no line of the catalog (it lacks the newline, or the "
                "characters of the titles). Use constraint=none, or another model."
            )
        if left_out := [*sorted(lost, key=str), *self.lines.unwritable]:
            examples = ", ".join(repr(str(item)) for item in left_out[:3])
            _log.warning(
                "constraint=catalog: %d items cannot be recommended (%s): no list names them.", len(left_out), examples
            )

    @classmethod
    def of(cls, catalog: Catalog, match: Matching, policy: Policy) -> Constraint:
        """Return the constraint for the lists of a policy. Arguments and errors as above."""
        size = policy.head_weight.shape[0]
        return cls(catalog, match, Vocabulary.of(policy.tokenizer, size, policy.eos_ids))

    def __getstate__(self) -> dict[str, Any]:
        """Return the constraint without what is made of it when it is needed."""
        return {name: value for name, value in vars(self).items() if name != "_by_title"}

    def opening(
        self, n: int, seen: Collection[str] = (), exclude: Iterable[Item] = (), subset: Subset | None = None
    ) -> Opening:
        """Return what a list may hold.

        Args:
            n: lines. A list has fewer if fewer items are open.
            seen: titles that the user has seen. Every item with such a title is closed.
            exclude: more items that are closed, with all that are the same.
            subset: the part of the catalog that the list may take its items from. None: all of it.
        """
        closed: set[int] = set()
        for title in self.match.seen_keys(seen):
            closed.update(self._by_title.get(title, ()))
        keys = {self.match.item_key(item) for item in exclude}
        for title, year in keys:
            closed.update(line for line in self._by_title.get(title, ()) if self.lines.items[line].year == year)
        return Opening(n, tuple(sorted(closed)), subset)

    def subset(self, items: Collection[Item]) -> Subset:
        """Return the part of the catalog that holds these items. Others than the catalog's do not count."""
        return Subset((line for line, item in enumerate(self.lines.items) if item in items), len(self.lines))

    def state(self, opening: Opening) -> ListState:
        """Return the state of a list that begins."""
        return ListState(self.lines, opening)

    def replay(self, opening: Opening, ids: Sequence[int]):
        """Yield the tokens that might have come at each token of a list.

        Raises:
            ValueError: the list does not keep to the constraint.
        """
        state = self.state(opening)
        for token in ids:
            yield state.allowed()
            state.advance(int(token))

    def too_short(self, tokenizer: PreTrainedTokenizerBase, n: int, limit: int) -> str | None:
        """Return a warning if the usual list is longer than a completion may be: it is cut off before its last line.

        n: lines of a list. limit: tokens of a completion (model.max_completion_length).
        """
        some = self.lines.texts[:: max(1, len(self.lines) // _MEASURED)]
        sizes = [len(ids) for ids in tokenizer([text.decode() for text in some], add_special_tokens=False)["input_ids"]]
        usual = n * sum(sizes) / len(sizes)
        if usual <= limit:
            return None
        enough = n * int(np.quantile(sizes, 0.95))
        return (
            f"model.max_completion_length={limit}: n={n} lines of the catalog take about {usual:.0f} tokens, so most lists end "
            f"before their last line. Use model.max_completion_length={enough}, or a lower n."
        )

    @cached_property
    def _by_title(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for line, item in enumerate(self.lines.items):
            found.setdefault(self.match.key(item.title), []).append(line)
        return found
