"""Ask the teacher for lists, and number the items in them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convrec_r1.data.schema import Conversation
from convrec_r1.distill.answers import recommended
from convrec_r1.distill.questions import recommend
from convrec_r1.distill.teachers.interview import Interview
from convrec_r1.lists import Item, fold, lines


@dataclass(frozen=True)
class RawLists:
    """The teacher's lists for M conversations."""

    texts: list[str]
    """[M] the answers, unchanged."""
    items: list[Item]
    """C_T: every item named, once (same folded title and year)."""
    lists: list[np.ndarray]
    """[M] places in `items`, best first, each once in a list."""

    def counts(self) -> dict[str, int]:
        """Return counts for the card: answers, answers without items, lines, items read, different items."""
        return {
            "answers": len(self.texts),
            "empty": sum(not len(ids) for ids in self.lists),
            "lines": sum(len(lines(text)) for text in self.texts),
            "entries": sum(map(len, self.lists)),
            "items": len(self.items),
        }


def ask_lists(interview: Interview, conversations: Sequence[Conversation], n: int, instruction: str) -> RawLists:
    """Ask for a list of `n` for each conversation. Of a longer list the first `n` items count."""
    answers = interview.ask([recommend(c, n, instruction) for c in conversations], "Teacher's lists")
    texts = [answer.text for answer in answers]
    numbers: dict[tuple[str, int | None], int] = {}
    items: list[Item] = []
    lists = []
    for text in texts:
        ids = []
        for item in recommended(text)[:n]:
            key = (fold(item.title), item.year)
            if key not in numbers:
                numbers[key] = len(items)
                items.append(item)
            ids.append(numbers[key])
        lists.append(np.array(ids, dtype=np.int64))
    return RawLists(texts, items, lists)
