"""Demonstrations for data that has none: the ground truths, then what other conversations name beside them."""

from collections import Counter, defaultdict
from dataclasses import replace

from convrec_r1.data.schema import Conversation, Dataset
from convrec_r1.lists import Item, fold


def add_demonstrations(data: Dataset, n: int) -> Dataset:
    """Give every training conversation without a demonstration a list of up to `n` catalog items.

    First its own ground truths; then items ranked by how often other training conversations name them together with
    what this one names (as ground truth or as a seen title), divided by the square root of their overall count so that
    favourites do not fill every list; then the most frequent items. Seen titles are left out.
    """
    train = data["train"]
    by_title: dict[str, list[Item]] = defaultdict(list)
    for item in data.catalog:
        by_title[fold(item.title)].append(item)
    baskets = [_basket(c, data, by_title) for c in train]
    counts = Counter(item for basket in baskets for item in basket)
    together: dict[Item, Counter[Item]] = defaultdict(Counter)
    for basket in baskets:
        for item in basket:
            together[item].update(other for other in basket if other != item)
    popular = [item for item, _ in sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0])))]
    lists = [
        c if c.demonstration else replace(c, demonstration=_fill(c, basket, data, together, counts, popular, n))
        for c, basket in zip(train, baskets, strict=True)
    ]
    return Dataset(data.catalog, {**data.splits, "train": lists})


def _basket(conversation: Conversation, data: Dataset, by_title: dict[str, list[Item]]) -> list[Item]:
    """Catalog items that a conversation names, each once. A seen title stands for its item where only one bears it."""
    seen = [by_title[fold(title)][0] for title in conversation.seen if len(by_title.get(fold(title), ())) == 1]
    return list(dict.fromkeys([*(t for t in conversation.ground_truth if t in data.catalog), *seen]))


def _fill(conversation, basket, data, together, counts, popular, n) -> tuple[Item, ...] | None:
    scores: Counter[Item] = Counter()
    for item in basket:
        scores.update(together[item])
    near = sorted(scores, key=lambda item: (-scores[item] / counts[item] ** 0.5, str(item)))
    truths = [item for item in conversation.ground_truth if item in data.catalog]
    seen = {fold(title) for title in conversation.seen}
    chosen = [item for item in dict.fromkeys([*truths, *near, *popular]) if fold(item.title) not in seen]
    return tuple(chosen[:n]) or None
