"""ReDial (Li et al. 2018, "Towards Deep Conversational Recommendations") as published, and as cut into turns by iEvaLM.

Dialogue files (train_data.jsonl, valid_data.jsonl, test_data.jsonl; or dialogues.jsonl): `messages` of `text` with @id
and `senderWorkerId`, `movieMentions` {id: "Title (Year)"}, and both workers' answers on every film, where `liked` says
what the *seeker* thinks of it: 0 no, 1 yes, 2 not said. The initiator seeks, the respondent recommends.
Turn files (test_turns.jsonl): `dialog_id`, `turn_id`, `context` [text] with the seeker first, `entity` named in the
context, `rec` ["Title (Year)"]. A row with `rec` is a turn, any other a dialogue.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.base import FileAdapter
from convrec_r1.data.adapters.common import Role, by_split, check_id, merge_turns, split_by_hash, titles, unseen
from convrec_r1.data.adapters.rows import Row, describe, one_line, read_jsonl, split_title
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation, Dataset, Split
from convrec_r1.lists import Item
from convrec_r1.matching import Matching

_log = logging.getLogger(__name__)
_MENTION = re.compile(r"@(\d+)")
FILES: dict[Split, tuple[str, ...]] = {
    "train": ("train_data.jsonl", "dialogues.jsonl"),
    "validation": ("valid_data.jsonl",),
    "test": ("test_data.jsonl", "test_turns.jsonl"),
}


class Redial(FileAdapter):
    """data=redial: a folder with the files above, or a single file, at `path`.

    A validation or test file that is missing is replaced by dialogues of the training file, a tenth each, chosen by a
    hash of the dialogue's id. A file of another name counts as a training file. Catalog: `catalog`, or movies.jsonl
    beside or above the data, or else every film that the files mention. Left out, and counted in the log: films
    recommended again or that share their title with one named before (a seen title never pays), films the seeker
    disliked, films that are not in the catalog, conversations left with no film, and recommendations before anything
    was said. There are no demonstrations.
    """

    catalog_names = ("movies.jsonl",)

    def __init__(self, path: str | Path, match: Matching, catalog: str | Path | None = None) -> None:
        super().__init__(path, catalog)
        self.match = match
        self.counts: Counter[str] = Counter()

    def load(self) -> Dataset:
        """Raises UserError for a path without such files, a malformed row, an id used twice, or no films at all."""
        rows = {split: list(read_jsonl(file)) for split, file in _files(self.path).items()}
        catalog = self._catalog(row for group in rows.values() for row in group)
        missing: list[Split] = [split for split in ("validation", "test") if split not in rows]
        places: dict[str, str] = {}
        conversations = []
        for file_split, group in rows.items():
            for row in group:
                for found in self._turn(row, catalog) if _is_turn(row) else self._dialogue(row):
                    check_id(row, found.id, places)
                    ground_truth = tuple(item for item in found.ground_truth if catalog.find(item, self.match))
                    self.counts["foreign"] += len(found.ground_truth) - len(ground_truth)
                    if not ground_truth:
                        self.counts["left with none"] += 1
                        continue
                    split = split_by_hash(found.cluster, missing) if file_split == "train" else file_split
                    conversations.append(replace(found, ground_truth=ground_truth, split=split))
        _log.info(
            "redial: %d conversations; ground truths left out: %d named before, %d disliked, %d not in the catalog; "
            "conversations left out: %d with no ground truth in the catalog, %d with no context",
            len(conversations),
            *(self.counts[key] for key in ("repeated", "disliked", "foreign", "left with none", "no context")),
        )
        return Dataset(catalog, by_split(conversations))

    def _catalog(self, rows: Iterable[Row]) -> Catalog:
        if self.catalog_file() is not None:
            return self.load_catalog()
        catalog = Catalog(film for row in rows for film in _films(row))
        if not len(catalog):
            raise UserError(f"{self.path} mentions no films, so there is no catalog. Name one: data.catalog=FILE.")
        return catalog

    def _dialogue(self, row: Row) -> Iterator[Conversation]:
        """A conversation for every turn of the recommender that brings up films anew."""
        mentions = _mentions(row)
        disliked = {mentions[key] for key in _disliked(row) if key in mentions}
        dialogue = row.text("conversationId")
        said: list[tuple[Role, str]] = []
        seen: list[Item] = []
        for number, (role, texts) in enumerate(_turns(row)):
            named = [mentions[key] for text in texts for key in _MENTION.findall(text) if key in mentions]
            if role == "assistant":
                fresh = self._fresh(named, seen)
                liked = tuple(item for item in fresh if item not in disliked)
                self.counts["disliked"] += len(fresh) - len(liked)
                if liked and not said:
                    self.counts["no context"] += 1
                elif liked:
                    shown = titles(seen, self.match)
                    yield Conversation(f"{dialogue}-{number}", dialogue, merge_turns(said), liked, shown)
            said.extend(
                (role, _MENTION.sub(lambda found: str(mentions.get(found[1], found[0])), text)) for text in texts
            )
            seen += named

    def _turn(self, row: Row, catalog: Catalog) -> Iterator[Conversation]:
        """The one conversation of a row in iEvaLM's form, if it recommends films anew."""
        context = row.array("context", "a list of texts")
        if not all(isinstance(text, str) for text in context):
            raise row.error('"context" must be a list of texts; something else is in it.')
        dialogue = row.text("dialog_id")
        # Entities are films with their year, films without one, and people, genres and mere words.
        seen = [i for i in _listed(row, "entity") if i.year is not None or catalog.find(i, self.match)]
        fresh = self._fresh(_listed(row, "rec"), seen)
        messages = merge_turns(("assistant" if number % 2 else "user", text) for number, text in enumerate(context))
        if fresh and not messages:
            self.counts["no context"] += 1
        elif fresh:
            shown = titles(seen, self.match)
            yield Conversation(f"{dialogue}-{row.text('turn_id')}", dialogue, messages, fresh, shown)

    def _fresh(self, items: Iterable[Item], seen: Iterable[Item]) -> tuple[Item, ...]:
        fresh, repeated = unseen(items, seen, self.match)
        self.counts["repeated"] += repeated
        return fresh


def _files(path: Path) -> dict[Split, Path]:
    if not path.is_dir():  # a missing file is reported when it is read
        for split, names in FILES.items():
            if path.name in names:
                return {split: path}
        return {"train": path}
    found: dict[Split, Path] = {}
    for split, names in FILES.items():
        file = next((path / name for name in names if (path / name).is_file()), None)
        if file is not None:
            found[split] = file
    if not found:
        names = ", ".join(name for names in FILES.values() for name in names)
        raise UserError(f"{path} holds none of {names}. Check data.path.")
    return found


def _is_turn(row: Row) -> bool:
    return "rec" in row.fields


def _films(row: Row) -> list[Item]:
    """Every film that a row mentions for certain."""
    if not _is_turn(row):
        return list(_mentions(row).values())
    return [*(item for item in _listed(row, "entity") if item.year is not None), *_listed(row, "rec")]


def _turns(row: Row) -> list[tuple[Role, list[str]]]:
    """The messages that hold text, those that one worker sent in a row together."""
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
    """Films by id. Some titles are null; many hold double spaces, some a percent-encoded question mark."""
    films = {}
    for key, name in _table(row, "movieMentions").items():
        if isinstance(name, str) and name.strip():
            films[key] = split_title(one_line(unquote(name)))
        elif name is not None and not isinstance(name, str):
            raise row.error(f'"movieMentions", film {key}: the title must be a string, found {describe(name)}.')
    return films


def _disliked(row: Row) -> set[str]:
    """Ids of films that the seeker did not like, as either worker has it."""
    answers = [*_table(row, "initiatorQuestions").items(), *_table(row, "respondentQuestions").items()]
    return {key for key, answer in answers if isinstance(answer, dict) and answer.get("liked") == 0}


def _table(row: Row, key: str) -> dict:
    """An object; an empty one is published as an empty list."""
    value = row.get(key, (dict, list), "an object by film id", {})
    if isinstance(value, list) and value:
        raise row.error(f'"{key}" must be an object by film id, found {describe(value)}.')
    return value if isinstance(value, dict) else {}
