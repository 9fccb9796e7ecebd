"""INSPIRED or ReDial as prepared for "Large Language Models as Zero-Shot Conversational Recommenders" (He et al., CIKM 2023).

A folder with test.jsonl, entity2id.json and item_ids.json. A row of test.jsonl: `dialog_id`, `turn_id`, `context` (texts of the
two speakers in turn, the user's last), `rec` (ids of the recommended items) and `prev_entity` (ids of what was named before).
entity2id.json: DBpedia address -> id, such as "<http://dbpedia.org/resource/Heat_(1995_film)>". item_ids.json: the ids of the
items that may be recommended.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.common import alternating
from convrec_r1.data.adapters.dialogues import DialogueAdapter
from convrec_r1.data.adapters.rows import Row
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.files import read_json
from convrec_r1.data.schema import Conversation
from convrec_r1.data.values import describe, encodable, one_line
from convrec_r1.lists import Item

_NAME = re.compile(r"<?(?:https?://dbpedia\.org/resource/)?(.+?)>?")
_QUALIFIER = re.compile(  # (film), (1995 film), (season 1), (Bishop Briggs song); not (First Sequence)
    r"(.+) \((?:[a-z0-9][^()]*|[^()]*\b(?:film|TV|series|song|album|novel|special|band|singer|programme)\b[^()]*)\)"
)


class CIKM23(DialogueAdapter):
    """data=cikm23: the folder above at `path`.

    Titles stand without years, as most addresses have none. Items with the same title are one. Catalog: `catalog`, or the
    items of item_ids.json. The data are published for testing; train.jsonl and valid.jsonl are read if they exist.
    """

    files: ClassVar = {"train": ("train.jsonl",), "validation": ("valid.jsonl",), "test": ("test.jsonl",)}
    fills_splits = False

    def sources(self) -> list[Path]:
        folder = self.path if self.path.is_dir() else self.path.parent
        return [*super().sources(), folder / "entity2id.json", folder / "item_ids.json"]

    def make_catalog(self, rows: Iterable[Row]) -> Catalog:
        """Raises UserError for a malformed entity2id.json or item_ids.json."""
        folder = self.path if self.path.is_dir() else self.path.parent
        self.names = _names(read_json(folder / "entity2id.json"))
        items = read_json(folder / "item_ids.json")
        if not isinstance(items, list) or not items:
            raise UserError(f"item_ids.json: it must be a list of ids, found {describe(items)}.")
        self.items = set(_known(items, self.names, "item_ids.json"))
        return self.load_catalog() if self.catalog else Catalog(self.names[number] for number in sorted(self.items))

    def conversations(self, row: Row, catalog: Catalog) -> Iterator[Conversation]:
        recommended, before = (
            _known(row.array(key, "a list of ids", []), self.names, f'{row.where}: "{key}"')
            for key in ("rec", "prev_entity")
        )
        named = [self.names[number] for number in recommended]
        seen = [self.names[number] for number in before if number in self.items]
        messages = alternating(row.titles("context"))
        return self.turn(row.text("turn_id"), row.text("dialog_id"), messages, named, seen, catalog)


def _names(table: Any) -> dict[int, Item]:
    """Return id -> item of every entity."""
    if not isinstance(table, dict):
        raise UserError(f"entity2id.json: it must be an object {{address: id}}, found {describe(table)}.")
    names = {}
    for address, number in table.items():
        if type(number) is not int:  # true is an int, too
            shown = json.dumps(address)[:80]
            raise UserError(f"entity2id.json, entry {shown}: the id must be a whole number, found {describe(number)}.")
        if not (name := title(address)):
            raise UserError(f"entity2id.json: the entry of id {number} has no name.")
        names[number] = Item(name)
    return names


def _known(ids: list[Any], names: Mapping[int, Item], where: str) -> list[int]:
    """Return the ids. UserError for one that is not in `names`."""
    for number, value in enumerate(ids, start=1):
        if type(value) is not int or value not in names:
            raise UserError(f"{where}, entry {number}: {describe(value)} is not an id of entity2id.json.")
    return ids


def title(address: str) -> str:
    """Return the title in a DBpedia address: <http://dbpedia.org/resource/Heat_(1995_film)> is Heat."""
    found = _NAME.fullmatch(address.strip())
    name = one_line(encodable(unquote(found[1] if found else address)).replace("_", " "))
    qualified = _QUALIFIER.fullmatch(name)
    return qualified[1] if qualified else name
