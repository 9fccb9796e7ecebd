"""Demonstrations for data that has none: the ground truths, then what other conversations name beside them."""

from collections import Counter, defaultdict
from dataclasses import replace

from convrec_r1.data.schema import Conversation, Dataset
from convrec_r1.lists import Item
from convrec_r1.matching import Matching


def add_demonstrations(data: Dataset, n: int, match: Matching) -> Dataset:
    """Give every training conversation without a demonstration a list of up to `n` catalog items.

    First its own ground truths; then items by how often other training conversations name them together with what this one
    names (as ground truth or as a seen title), divided by the square root of their count so that popular items do not fill
    every list; then the most frequent items. Seen titles are left out.
    """

    def truths(conversation: Conversation) -> list[Item]:
        found = (data.catalog.find(item, match) for item in conversation.ground_truth)
        return [item for item in found if item is not None]

    def named(conversation: Conversation) -> list[Item]:
        """Return the catalog items that it names, each once. A seen title counts if only one item has it."""
        titled = (data.catalog.titled(title, match) for title in conversation.seen)
        return list(dict.fromkeys([*truths(conversation), *(items[0] for items in titled if len(items) == 1)]))

    baskets = [named(c) for c in data["train"]]
    counts = Counter(item for basket in baskets for item in basket)
    together: dict[Item, Counter[Item]] = defaultdict(Counter)
    for basket in baskets:
        for item in basket:
            together[item].update(other for other in basket if other != item)
    popular = sorted(counts, key=lambda item: (-counts[item], str(item)))

    def demonstration(conversation: Conversation, basket: list[Item]) -> tuple[Item, ...] | None:
        scores: Counter[Item] = Counter()
        for item in basket:
            scores.update(together[item])
        near = sorted(scores, key=lambda item: (-scores[item] / counts[item] ** 0.5, str(item)))
        seen = match.seen_keys(conversation.seen)
        chosen = dict.fromkeys([*truths(conversation), *near, *popular])
        return tuple([item for item in chosen if match.key(item.title) not in seen][:n]) or None

    pairs = zip(data["train"], baskets, strict=True)
    lists = [c if c.demonstration else replace(c, demonstration=demonstration(c, basket)) for c, basket in pairs]
    return Dataset(data.catalog, {**data.splits, "train": lists})
