"""Metadata of items that no file describes: the teacher is asked, items of the catalog and titles outside it alike."""

from collections.abc import Sequence

from convrec_r1.distill.answers import descriptions
from convrec_r1.distill.metadata import Metadata
from convrec_r1.distill.questions import describe
from convrec_r1.distill.teachers.interview import Interview
from convrec_r1.lists import Item


def describe_items(interview: Interview, items: Sequence[Item], *, domain: str, batch: int) -> dict[Item, Metadata]:
    """What the teacher says of each item; one that it says nothing readable about, asked twice, is missing.

    `batch` items share a question. Those that were not answered are asked about once more, in questions of their own.
    """
    found: dict[Item, Metadata] = {}
    for title in ("Describing items", "Describing items, again"):
        open_items = [item for item in items if item not in found]
        if not open_items:
            break
        groups = [open_items[start : start + batch] for start in range(0, len(open_items), batch)]
        answers = interview.ask([describe(group, domain) for group in groups], title)
        for group, answer in zip(groups, answers, strict=True):
            for number, fields in descriptions(answer.text, len(group)).items():
                item = group[number - 1]
                found[item] = Metadata(title=item.title, year=item.year, **fields)
    return found
