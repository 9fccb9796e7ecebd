"""OpenDialKG (Moon et al. 2019, ACL) as cut into turns by iEvaLM (Wang et al. 2023, EMNLP): films and books.

A folder with {train,valid,test}.jsonl and items.jsonl. A row: `dialog_id`, `turn_id`, `context` (texts of the two speakers in
turn, the user's last), `entity` (names in the context: items, people, genres) and `rec` (names of the recommended items).
A row of items.jsonl: `name`, and where known `year`, `genre`, `actor`, `director`, `writer`.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from convrec_r1.data.adapters.common import alternating
from convrec_r1.data.adapters.dialogues import DialogueAdapter
from convrec_r1.data.adapters.rows import Row, read_jsonl
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import SPLITS, Conversation, Split
from convrec_r1.data.values import one_line
from convrec_r1.lists import Item


class OpenDialKG(DialogueAdapter):
    """data=opendialkg: the folder above at `path`.

    Titles stand without years: the dialogues name none, and a quarter of the items has none. Catalog: `catalog`, or
    items.jsonl in the folder. Left out as well: rows whose dialogue is also in a later split. The published split is by
    turn; here test goes before validation, and validation before training.
    """

    files: ClassVar = {"train": ("train.jsonl",), "validation": ("valid.jsonl",), "test": ("test.jsonl",)}
    catalog_names = ("items.jsonl",)
    report = DialogueAdapter.report.replace(
        "left out:", "left out: {held_out} rows whose dialogue is in a later split,"
    )

    def metadata(self) -> Path | Iterator[Mapping[str, Any]] | None:
        file = self.catalog_file()
        return file if self.catalog or file is None else _items(file)

    def read(self, files: Mapping[Split, Path]) -> dict[Split, list[Row]]:
        rows = super().read(files)
        later: set[str] = set()
        for split in reversed(SPLITS):
            found = {row.text("dialog_id") for row in rows.get(split, ())}
            kept = [row for row in rows.get(split, ()) if row.text("dialog_id") not in later]
            if split in rows:
                self.counts["held_out"] += len(rows[split]) - len(kept)
                rows[split] = kept
            later |= found
        return rows

    def make_catalog(self, rows: Iterable[Row]) -> Catalog:
        file = self.catalog_file()
        if self.catalog or file is None:
            return self.load_catalog()
        return Catalog(Item(fields["title"]) for fields in _items(file))

    def conversations(self, row: Row, catalog: Catalog) -> Iterator[Conversation]:
        recommended, named = (
            [Item(one_line(name)) for name in row.titles(key) if name.strip()] for key in ("rec", "entity")
        )
        seen = [item for item in named if catalog.find(item, self.match)]
        messages = alternating(row.titles("context"))
        return self.turn(row.text("turn_id"), row.text("dialog_id"), messages, recommended, seen, catalog)


def _items(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of items.jsonl, without years."""
    for row in read_jsonl(file):
        fields = {key: value for key, value in row.fields.items() if key not in ("name", "year", "title")}
        yield {"title": one_line(row.text("name")), **fields}
