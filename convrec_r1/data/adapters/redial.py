"""ReDial (Li et al. 2018, "Towards Deep Conversational Recommendations") as published, and as cut into turns by iEvaLM.

Files of dialogues: train_data.jsonl or dialogues.jsonl, valid_data.jsonl, test_data.jsonl. A row: `messages` (`text`, with
films as @id, and `senderWorkerId`), `movieMentions` (id -> "Title (Year)"), and the answers of both workers on every film, in
which `liked` is the opinion of the seeker: 0 no, 1 yes, 2 not said. The initiator seeks, the respondent recommends.
Files of turns: test_turns.jsonl. A row: `dialog_id`, `turn_id`, `context` (texts of the two speakers in turn, the seeker's
first), `entity` (names in the context) and `rec` (the recommended films). A row with `rec` is a turn.
"""

import re
from collections.abc import Iterable, Iterator
from typing import ClassVar
from urllib.parse import unquote

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.common import Role, merge_turns
from convrec_r1.data.adapters.dialogues import DialogueAdapter
from convrec_r1.data.adapters.rows import Row
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.items import split_title
from convrec_r1.data.schema import Conversation
from convrec_r1.data.values import describe, one_line
from convrec_r1.lists import Item

_MENTION = re.compile(r"@(\d+)")


class Redial(DialogueAdapter):
    """data=redial: a folder with the files above, or a single file, at `path`.

    Catalog: `catalog`, or movies.jsonl beside or above the data, or all films that the files mention. Left out as well: films
    that the seeker disliked.
    """

    files: ClassVar = {
        "train": ("train_data.jsonl", "dialogues.jsonl"),
        "validation": ("valid_data.jsonl",),
        "test": ("test_data.jsonl", "test_turns.jsonl"),
    }
    catalog_names = ("movies.jsonl",)
    report = (
        "ground truths left out: {repeated} named before, {disliked} disliked, {foreign} not in the catalog; "
        "conversations left out: {all_foreign} with no ground truth in the catalog, {mute} with no context"
    )

    def make_catalog(self, rows: Iterable[Row]) -> Catalog:
        if self.catalog_file():
            return self.load_catalog()
        catalog = Catalog(film for row in rows for film in _films(row))
        if not len(catalog):
            raise UserError(f"{self.path} mentions no films, so there is no catalog. Name one: data.catalog=FILE.")
        return catalog

    def conversations(self, row: Row, catalog: Catalog) -> Iterator[Conversation]:
        return self._turn(row, catalog) if _is_turn(row) else self._dialogue(row, catalog)

    def _dialogue(self, row: Row, catalog: Catalog) -> Iterator[Conversation]:
        mentions = _mentions(row)
        disliked = {mentions[key] for key in _disliked(row) if key in mentions}
        dialogue = row.text("conversationId")
        said: list[tuple[Role, str]] = []
        seen: list[Item] = []
        for number, (role, texts) in enumerate(_turns(row)):
            named = [mentions[key] for text in texts for key in _MENTION.findall(text) if key in mentions]
            if role == "assistant":
                yield from self.turn(number, dialogue, merge_turns(said), named, seen, catalog, disliked)
            said.extend(
                (role, _MENTION.sub(lambda found: str(mentions.get(found[1], found[0])), text)) for text in texts
            )
            seen += named

    def _turn(self, row: Row, catalog: Catalog) -> Iterator[Conversation]:
        context = row.array("context", "a list of texts")
        if not all(isinstance(text, str) for text in context):
            raise row.error('"context" must be a list of texts; something else is in it.')
        # Entities are films with their year, films without one, and people, genres and mere words.
        seen = [i for i in _listed(row, "entity") if i.year is not None or catalog.find(i, self.match)]
        messages = merge_turns(("assistant" if number % 2 else "user", text) for number, text in enumerate(context))
        return self.turn(row.text("turn_id"), row.text("dialog_id"), messages, _listed(row, "rec"), seen, catalog)


def _is_turn(row: Row) -> bool:
    return "rec" in row.fields


def _films(row: Row) -> list[Item]:
    """Return the films that a row mentions. An entity without a year may be something else."""
    if not _is_turn(row):
        return list(_mentions(row).values())
    return [*(item for item in _listed(row, "entity") if item.year is not None), *_listed(row, "rec")]


def _turns(row: Row) -> list[tuple[Role, list[str]]]:
    """Return the messages with text. Consecutive messages of one worker are one turn."""
    seeker = row.text("initiatorWorkerId")
    turns: list[tuple[Role, list[str]]] = []
    for message in row.array("messages", "a list of {text, senderWorkerId}"):
        if not isinstance(message, dict) or "senderWorkerId" not in message:
            raise row.error(f'"messages" must be a list of {{text, senderWorkerId}}, found {describe(message)} in it.')
        text = message.get("text") or ""
        if not isinstance(text, str):
            raise row.error(f'"text" of a message must be a string, found {describe(text)}.')
        role: Role = "user" if str(message["senderWorkerId"]) == seeker else "assistant"
        if text.strip() and turns and turns[-1][0] == role:
            turns[-1][1].append(text)
        elif text.strip():
            turns.append((role, [text]))
    return turns


def _listed(row: Row, key: str) -> list[Item]:
    return [split_title(one_line(name)) for name in row.titles(key) if name.strip()]


def _mentions(row: Row) -> dict[str, Item]:
    """Return id -> film. Some titles are null, many have double spaces, some a percent-encoded question mark."""
    films = {}
    for key, name in _table(row, "movieMentions").items():
        if isinstance(name, str) and name.strip():
            films[key] = split_title(one_line(unquote(name)))
        elif name is not None and not isinstance(name, str):
            raise row.error(f'"movieMentions", film {key}: the title must be a string, found {describe(name)}.')
    return films


def _disliked(row: Row) -> set[str]:
    """Return the ids of films that the seeker did not like, in the answers of either worker."""
    answers = [*_table(row, "initiatorQuestions").items(), *_table(row, "respondentQuestions").items()]
    return {key for key, answer in answers if isinstance(answer, dict) and answer.get("liked") == 0}


def _table(row: Row, key: str) -> dict:
    """Return an object. An empty one is published as an empty list."""
    value = row.get(key, (dict, list), "an object by film id", {})
    if isinstance(value, list) and value:
        raise row.error(f'"{key}" must be an object by film id, found {describe(value)}.')
    return value if isinstance(value, dict) else {}
