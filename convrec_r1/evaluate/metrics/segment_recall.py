"""Recall of head, mid and tail ground truths."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from convrec_r1.evaluate.metrics.base import Label, Labels, Lists, Metric
from convrec_r1.evaluate.popularity import SEGMENTS, Popularity
from convrec_r1.lists import Item


class SegmentRecall(Metric):
    """`recall_head@k`, `recall_mid@k`, `recall_tail@k` at the largest cut-off (see `segment_recall`)."""

    labels: ClassVar[Labels] = {
        f"recall_{part}@{{last}}": Label(f"Recall of {part} items, @{{last}}", "Reach") for part in SEGMENTS
    }  # as "recall_head@{last}"

    def per_list(self, lists: Lists) -> dict[str, np.ndarray]:
        k = max(lists.ks)
        values = {f"recall_{segment}@{k}": np.full(len(lists), np.nan) for segment in SEGMENTS}
        for at, conversation in enumerate(lists.conversations):
            found = segment_recall(lists.ranked[at], lists.hits[at], conversation.ground_truth, k, lists.popularity)
            for name, value in found.items():
                values[name][at] = value
        return values


def segment_recall(
    recommended: Sequence[Item | None],
    hits: Sequence[int] | np.ndarray,
    ground_truth: Sequence[Item],
    k: int,
    popularity: Popularity,
) -> dict[str, float]:
    """Return the recall of the ground truths of each popularity segment, within the first k ranks.

    A segment without ground truths in this conversation has no entry: its recall is 0/0. Ground truths outside the catalog
    have no segment.
    """
    ground_truth = popularity.match.distinct(ground_truth)
    segments = [popularity.segment(item) for item in ground_truth]
    hit = _truths_hit(recommended[:k], hits[:k], ground_truth, popularity)
    recalls = {}
    for segment in SEGMENTS:
        members = {at for at, of in enumerate(segments) if of == segment}
        if members:
            recalls[f"recall_{segment}@{k}"] = len(members & hit) / len(members)
    return recalls


def _truths_hit(
    recommended: Sequence[Item | None],
    hits: Sequence[int] | np.ndarray,
    ground_truth: Sequence[Item],
    popularity: Popularity,
) -> set[int]:
    """Return the indices of the ground truths that were hit, matched as in `reward.relevance`.

    From the top of the list, each hit takes the unused ground truth of its title with the nearest year, the first of equals.
    """
    match = popularity.match
    keys = [match.key(truth.title) for truth in ground_truth]
    used: set[int] = set()
    for item, hit in zip(recommended, hits, strict=False):
        if not hit or item is None:
            continue
        title, year = match.key(item.title), item.year
        candidates = [at for at, key in enumerate(keys) if at not in used and key == title]
        if candidates:
            used.add(min(candidates, key=lambda at: match.year_distance(year, ground_truth[at].year)))
    return used
