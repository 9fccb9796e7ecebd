"""Notes on a dataset: repeated ground truths, splits that share text, conversations that give the answer away."""

import re
from collections import defaultdict
from dataclasses import replace

from convrec_r1.data.schema import SPLITS, Conversation
from convrec_r1.lists import Item
from convrec_r1.matching import Matching


class Audit:
    """Counts over the conversations of a dataset, each seen once (`add`), and notes on them."""

    def __init__(self) -> None:
        self.truths: dict[Item, int] = {}
        """Each ground truth -> its number, in the order of appearance."""
        self._repeated = self._turns = self._said = self._told = 0
        # Hashes: texts of real data would fill the memory.
        self._clusters: defaultdict[str, set[int]] = defaultdict(set)
        self._texts: defaultdict[str, set[int]] = defaultdict(set)
        self._answers: defaultdict[str, set[int]] = defaultdict(set)

    def truths_once(self, conversation: Conversation, match: Matching) -> Conversation:
        """Return the conversation with each ground truth once. The repeated ones are counted."""
        truths = conversation.ground_truth
        if len(truths) > 1:
            unique: dict[tuple[str, int | None], Item] = {}
            for item in truths:
                unique.setdefault(match.item_key(item), item)
            if len(unique) < len(truths):
                self._repeated += len(truths) - len(unique)
                return replace(conversation, ground_truth=tuple(unique.values()))
        return conversation

    def add(self, conversation: Conversation, split: str) -> None:
        """Count a conversation of a split, as it is trained and evaluated on."""
        for item in conversation.ground_truth:
            self.truths.setdefault(item, len(self.truths))
        messages = conversation.messages
        self._clusters[split].add(hash(conversation.cluster))
        self._texts[split].add(text := hash(messages))
        self._answers[split].add(hash((text, frozenset(conversation.ground_truth))))
        if messages and not conversation.has_instruction:
            self._turns += 1
            if messages[-1].role == "assistant":
                self._said += 1
                self._told += any(_names(messages[-1].content, item.title) for item in conversation.ground_truth)

    def notes(self) -> list[str]:
        """Return a sentence for each kind of problem."""
        repeated = f"{self._repeated:,} ground truths are repeated in their conversation and count once."
        return [*([repeated] if self._repeated else []), *self.leaks(), *self.endings()]

    def leaks(self) -> list[str]:
        """Return a note on each two splits that share clusters, or conversations with the same text and the same truths."""
        notes = []
        for at, split in enumerate(SPLITS):
            for other in SPLITS[at + 1 :]:
                clusters, texts, answers = (
                    len(found[split] & found[other]) for found in (self._clusters, self._texts, self._answers)
                )
                if clusters or texts:
                    notes.append(
                        f"{other} shares {clusters:,} clusters and the text of {texts:,} conversations with {split} "
                        f"({answers:,} with the same ground truth). Unless these are mere greetings, results on {other} "
                        "are partly memory: give each cluster one split."
                    )
        return notes

    def endings(self) -> list[str]:
        """Return notes on conversations that end with the recommender's turn, and on those whose last turn names a truth."""
        if not self._said:
            return []
        notes = [
            f"{self._said:,} of {self._turns:,} conversations end with the recommender's turn, which a list would follow."
        ]
        if self._told:
            notes.append(
                f"{self._told:,} conversations end with the recommender naming a ground truth: cut that turn, it gives the "
                "answer away."
            )
        return notes


def _names(text: str, title: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(title.strip())}(?!\w)", text) is not None
