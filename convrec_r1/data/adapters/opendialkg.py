"""OpenDialKG (Moon et al. 2019, ACL) as cut into turns by iEvaLM (Wang et al. 2023, EMNLP): films and books.

A folder with {train,valid,test}.jsonl and items.jsonl. A row: `dialog_id`, `turn_id`, `context` (texts of the two speakers in
turn, the user's last), `entity` (names in the context: items, people, genres) and `rec` (names of the recommended items).
A row of items.jsonl: `name`, and where known `year`, `genre`, `actor`, `director`, `writer`.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.base import FileAdapter
from convrec_r1.data.adapters.common import alternating, by_split, check_id, present, split_by_hash, titles, unseen
from convrec_r1.data.adapters.rows import Row, one_line, read_jsonl
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation, Dataset, Split
from convrec_r1.lists import Item
from convrec_r1.matching import Matching

_log = logging.getLogger(__name__)
FILES: dict[Split, str] = {"train": "train.jsonl", "validation": "valid.jsonl", "test": "test.jsonl"}


class OpenDialKG(FileAdapter):
    """data=opendialkg: the folder above at `path`.

    Titles stand without years: the dialogues name none, and a quarter of the items has none.
    Catalog: `catalog`, or items.jsonl in the folder.
    Splits: a missing validation or test file is replaced by a tenth of the dialogues of train.jsonl, by a hash of their id.
    Left out, and counted in the log: rows whose dialogue is also in a later split (the published split is by turn: test
    goes before validation, validation before training), items named before (`entity`), items that are not in the catalog,
    rows left with no item, and rows in which nothing was said. There are no demonstrations.
    """

    catalog_names = ("items.jsonl",)

    def __init__(self, path: str | Path, match: Matching, catalog: str | Path | None = None) -> None:
        super().__init__(path, catalog)
        self.match = match
        self.counts: Counter[str] = Counter()

    def metadata(self) -> Path | Iterator[Mapping[str, Any]] | None:
        if self.catalog or self.catalog_file() is None:
            return self.catalog
        return self._items()

    def load(self) -> Dataset:
        """Raises UserError for a missing file, a malformed row, and an id used twice."""
        files = present(self.path, FILES)
        if not files:
            raise UserError(f"{self.path} holds none of {', '.join(FILES.values())}. Check data.path.")
        if self.catalog or self.catalog_file() is None:
            catalog = self.load_catalog()
        else:
            catalog = Catalog(Item(fields["title"]) for fields in self._items())
        rows = {split: list(read_jsonl(file)) for split, file in files.items()}
        missing: list[Split] = [split for split in ("validation", "test") if split not in rows]
        places: dict[str, str] = {}
        held_out: set[str] = set()
        conversations = []
        for split in ("test", "validation", "train"):
            dialogues = set()
            for row in rows.get(split, ()):
                dialogues.add(row.text("dialog_id"))
                found = self._conversation(row, catalog)
                if found is None:
                    continue
                check_id(row, f"{split}:{found.id}", places)
                if found.cluster in held_out:
                    self.counts["held out"] += 1
                    continue
                place = split_by_hash(found.cluster, missing) if split == "train" else split
                conversations.append(replace(found, split=place))
            held_out |= dialogues
        _log.info(
            "opendialkg: %d conversations; left out: %d rows whose dialogue is in a later split, %d items named before, %d not "
            "in the catalog, %d rows with no item left, %d with no context",
            len(conversations),
            *(self.counts[key] for key in ("held out", "repeated", "foreign", "none left", "no context")),
        )
        return Dataset(catalog, by_split(conversations))

    def _conversation(self, row: Row, catalog: Catalog) -> Conversation | None:
        dialogue = row.text("dialog_id")
        messages = alternating(row.titles("context"))
        named = (Item(one_line(name)) for name in row.titles("entity") if name.strip())
        seen = [item for item in named if catalog.find(item, self.match)]
        recommended = (Item(one_line(name)) for name in row.titles("rec") if name.strip())
        fresh, repeated = unseen(recommended, seen, self.match)
        truths = tuple(item for item in fresh if catalog.find(item, self.match))
        self.counts["repeated"] += repeated
        self.counts["foreign"] += len(fresh) - len(truths)
        if not truths or not messages:
            self.counts["no context" if truths else "none left"] += 1
            return None
        name = f"{dialogue}-{row.text('turn_id')}"
        return Conversation(name, dialogue, messages, truths, titles(seen, self.match))

    def _items(self) -> Iterator[Mapping[str, Any]]:
        """The rows of items.jsonl, without years."""
        file = self.catalog_file()
        assert file is not None
        for row in read_jsonl(file):
            yield {"title": one_line(row.text("name"))} | {
                key: value for key, value in row.fields.items() if key not in ("name", "year", "title")
            }
