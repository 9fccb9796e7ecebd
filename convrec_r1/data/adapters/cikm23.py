"""INSPIRED or ReDial as prepared for "Large Language Models as Zero-Shot Conversational Recommenders" (He et al., CIKM 2023).

A folder with test.jsonl, entity2id.json and item_ids.json. A row of test.jsonl: `dialog_id`, `turn_id`, `context` (texts of the
two speakers in turn, the user's last), `rec` (ids of the recommended items) and `prev_entity` (ids of what was named before).
entity2id.json: DBpedia address -> id, such as "<http://dbpedia.org/resource/Heat_(1995_film)>". item_ids.json: the ids of the
items that may be recommended.
"""

import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.base import FileAdapter
from convrec_r1.data.adapters.common import alternating, by_split, check_id, present, titles, unseen
from convrec_r1.data.adapters.rows import Row, describe, encodable, parse_json, read_jsonl, unreadable
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation, Dataset, Split
from convrec_r1.lists import Item
from convrec_r1.matching import Matching

_log = logging.getLogger(__name__)
FILES: dict[Split, str] = {"train": "train.jsonl", "validation": "valid.jsonl", "test": "test.jsonl"}
_NAME = re.compile(r"<?(?:https?://dbpedia\.org/resource/)?(.+?)>?")
_QUALIFIER = re.compile(  # (film), (1995 film), (season 1), (Bishop Briggs song); not (First Sequence)
    r"(.+) \((?:[a-z0-9][^()]*|[^()]*\b(?:film|TV|series|song|album|novel|special|band|singer|programme)\b[^()]*)\)"
)


class CIKM23(FileAdapter):
    """data=cikm23: the folder above at `path`.

    Titles stand without years, as most addresses have none. Items with the same title are one.
    Catalog: `catalog`, or the items of item_ids.json. Ground truth: the items of `rec`.
    Splits: the data are published for testing; train.jsonl and valid.jsonl are read if they are there.
    Left out, and counted in the log: items named before (`prev_entity`), items that are not in the catalog, rows left with no
    item, and rows in which nothing was said. There are no demonstrations.
    """

    def __init__(self, path: str | Path, match: Matching, catalog: str | Path | None = None) -> None:
        super().__init__(path, catalog)
        self.match = match

    def metadata(self) -> Path | None:
        return self.catalog

    def load(self) -> Dataset:
        """Raises UserError for a missing file, a malformed row, an id that is not in entity2id.json, and an id used twice."""
        files = present(self.path, FILES)
        if not files:
            raise UserError(
                f"{self.path} holds none of {', '.join(FILES.values())}. data.path must name the folder of one dataset."
            )
        names = _names(self.path / "entity2id.json")
        items = _item_ids(self.path / "item_ids.json", names)
        catalog = Catalog.load(self.catalog) if self.catalog else Catalog(names[number] for number in sorted(items))
        counts: Counter[str] = Counter()
        places: dict[str, str] = {}
        conversations = []
        for split, file in files.items():
            for row in read_jsonl(file):
                found = self._conversation(row, split, names, items, catalog, counts)
                if found is not None:
                    check_id(row, found.id, places)
                    conversations.append(found)
        _log.info(
            "cikm23: %d conversations; %d items of %d ids; left out: %d items named before, %d not in the catalog, %d rows "
            "with no item left, %d with no context",
            *(len(conversations), len(catalog), len(items)),
            *(counts[key] for key in ("repeated", "foreign", "none left", "no context")),
        )
        return Dataset(catalog, by_split(conversations))

    def _conversation(
        self, row: Row, split: Split, names: dict[int, Item], items: set[int], catalog: Catalog, counts: Counter[str]
    ) -> Conversation | None:
        dialogue = row.text("dialog_id")
        messages = alternating(row.titles("context"))
        seen = [names[number] for number in _ids(row, "prev_entity", names) if number in items]
        fresh, repeated = unseen([names[number] for number in _ids(row, "rec", names)], seen, self.match)
        truths = tuple(item for item in fresh if catalog.find(item, self.match))
        counts["repeated"] += repeated
        counts["foreign"] += len(fresh) - len(truths)
        if not truths or not messages:
            counts["no context" if truths else "none left"] += 1
            return None
        name = f"{dialogue}-{row.text('turn_id')}"
        return Conversation(name, dialogue, messages, truths, titles(seen, self.match), split=split)


def _read(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes(), path.name)
    except OSError as error:
        raise unreadable(path, error) from error


def _names(path: Path) -> dict[int, Item]:
    """Id -> item of every entity."""
    table = _read(path)
    if not isinstance(table, dict):
        raise UserError(f"{path.name}: it must be an object {{address: id}}, found {describe(table)}.")
    names = {}
    for address, number in table.items():
        if not isinstance(number, int) or isinstance(number, bool):
            shown = json.dumps(address)[:80]
            raise UserError(f"{path.name}, entry {shown}: the id must be a whole number, found {describe(number)}.")
        if not (name := title(address)):
            raise UserError(f"{path.name}: the entry of id {number} has no name.")
        names[number] = Item(name)
    return names


def _item_ids(path: Path, names: dict[int, Item]) -> set[int]:
    values = _read(path)
    if not isinstance(values, list) or not values:
        raise UserError(f"{path.name}: it must be a list of ids, found {describe(values)}.")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, int) or isinstance(value, bool) or value not in names:
            raise UserError(f"{path.name}, entry {number}: {describe(value)} is not an id of entity2id.json.")
    return set(values)


def _ids(row: Row, key: str, names: dict[int, Item]) -> list[int]:
    values = row.array(key, "a list of ids", [])
    for number, value in enumerate(values, start=1):
        if not isinstance(value, int) or isinstance(value, bool) or value not in names:
            raise row.error(f'"{key}", entry {number}: {describe(value)} is not an id of entity2id.json.')
    return values


def title(address: str) -> str:
    """Return the title in a DBpedia address: <http://dbpedia.org/resource/Heat_(1995_film)> is Heat."""
    found = _NAME.fullmatch(address.strip())
    name = " ".join(encodable(unquote(found[1] if found else address)).replace("_", " ").split())
    qualified = _QUALIFIER.fullmatch(name)
    return qualified[1] if qualified else name
