"""Notes on a dataset: repeated ground truths, splits that share text, conversations that give the answer away."""

import re
from dataclasses import replace

from convrec_r1.data.schema import SPLITS, Conversation, Dataset
from convrec_r1.lists import Item
from convrec_r1.matching import Matching


def truths_once(data: Dataset, match: Matching) -> list[str]:
    """Keep each ground truth of a conversation once, in place. Return a note on how many were repeated."""
    repeated = 0
    for split in SPLITS:
        for at, conversation in enumerate(data[split]):
            if len(truths := conversation.ground_truth) > 1:
                unique: dict[tuple[str, int | None], Item] = {}
                for item in truths:
                    unique.setdefault(match.item_key(item), item)
                if len(unique) < len(truths):
                    repeated += len(truths) - len(unique)
                    data.splits[split][at] = replace(conversation, ground_truth=tuple(unique.values()))
    return [f"{repeated:,} ground truths are repeated in their conversation and count once."] if repeated else []


def leaks(data: Dataset) -> list[str]:
    """Return a note on each two splits that share clusters, or conversations with the same text and the same truths."""
    notes = []
    for at, split in enumerate(SPLITS):
        for other in SPLITS[at + 1 :]:
            clusters, texts, truths = (
                {key(c) for c in data[split]} & {key(c) for c in data[other]} for key in (_cluster, _text, _answer)
            )
            if clusters or texts:
                notes.append(
                    f"{other} shares {len(clusters):,} clusters and the text of {len(texts):,} conversations with {split} "
                    f"({len(truths):,} with the same ground truth). Unless these are mere greetings, results on {other} are "
                    "partly memory: give each cluster one split."
                )
    return notes


def _cluster(conversation: Conversation) -> str:
    return conversation.cluster


def _text(conversation: Conversation) -> int:
    return hash(conversation.messages)


def _answer(conversation: Conversation) -> int:
    return hash((conversation.messages, frozenset(conversation.ground_truth)))


def endings(data: Dataset) -> list[str]:
    """Return notes on conversations that end with the recommender's turn, and on those whose last turn names a truth."""
    last = [(c, c.messages[-1]) for split in SPLITS for c in data[split] if c.messages and not c.has_instruction]
    said = [(c, message.content) for c, message in last if message.role == "assistant"]
    told = sum(any(_names(text, item.title) for item in c.ground_truth) for c, text in said)
    notes = [
        f"{len(said):,} of {len(last):,} conversations end with the recommender's turn, which a list would follow."
    ]
    if told:
        notes.append(
            f"{told:,} conversations end with the recommender naming a ground truth: cut that turn, it gives the answer away."
        )
    return notes if said else []


def _names(text: str, title: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(title.strip())}(?!\w)", text) is not None
