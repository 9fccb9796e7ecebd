"""Demonstrations for data that has none: the ground truths, then what other conversations name beside them."""

from collections import Counter, defaultdict
from dataclasses import replace

from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation, Dataset
from convrec_r1.lists import Item
from convrec_r1.matching import Matching


def add_demonstrations(data: Dataset, n: int, match: Matching) -> Dataset:
    """Give every training conversation without a demonstration a list of up to `n` catalog items.

    First its own ground truths; then items ranked by how often other training conversations name them together with
    what this one names (as ground truth or as a seen title), divided by the square root of their overall count so that
    favourites do not fill every list; then the most frequent items. Seen titles are left out.
    """
    train = data["train"]
    baskets = [_basket(c, data.catalog, match) for c in train]
    counts = Counter(item for basket in baskets for item in basket)
    together: dict[Item, Counter[Item]] = defaultdict(Counter)
    for basket in baskets:
        for item in basket:
            together[item].update(other for other in basket if other != item)
    popular = [item for item, _ in sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0])))]
    lists = [
        c
        if c.demonstration
        else replace(c, demonstration=_fill(c, basket, data.catalog, match, together, counts, popular, n))
        for c, basket in zip(train, baskets, strict=True)
    ]
    return Dataset(data.catalog, {**data.splits, "train": lists})


def _truths(conversation: Conversation, catalog: Catalog, match: Matching) -> list[Item]:
    """Ground truths that the catalog has, as it spells them."""
    found = (catalog.find(item, match) for item in conversation.ground_truth)
    return [item for item in found if item is not None]


def _basket(conversation: Conversation, catalog: Catalog, match: Matching) -> list[Item]:
    """Catalog items that a conversation names, each once. A seen title stands for its item where only one bears it."""
    titled = (catalog.titled(title, match) for title in conversation.seen)
    seen = [items[0] for items in titled if len(items) == 1]
    return list(dict.fromkeys([*_truths(conversation, catalog, match), *seen]))


def _fill(conversation, basket, catalog, match, together, counts, popular, n) -> tuple[Item, ...] | None:
    scores: Counter[Item] = Counter()
    for item in basket:
        scores.update(together[item])
    near = sorted(scores, key=lambda item: (-scores[item] / counts[item] ** 0.5, str(item)))
    seen = {match.key(title) for title in conversation.seen}
    named = dict.fromkeys([*_truths(conversation, catalog, match), *near, *popular])
    chosen = [item for item in named if match.key(item.title) not in seen]
    return tuple(chosen[:n]) or None
