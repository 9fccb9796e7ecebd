"""Reddit-v2 as processed and released with Rank-GRPO (Zhu et al., arXiv 2510.20150).

A folder with train/, validation/ and test/, each an arrow folder as `datasets.Dataset.save_to_disk` writes it, or with
the same rows as {split}.jsonl. Fields: `prompt` and `completion` (lists of {role, content}), `seen_titles`,
`groundtruth_with_release_year` ([[title, "year"], ...]), and in the JSONL form `sample_id`. One row for every user who
replied with recommendations: rows of one post share the prompt, and with it the cluster. The catalog is a pickled list
of (title, year), or a CSV file.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from convrec_r1 import lists
from convrec_r1.base.digest import files_in
from convrec_r1.base.errors import UserError
from convrec_r1.base.progress import Bar, bar
from convrec_r1.data.adapters.base import FileAdapter
from convrec_r1.data.adapters.common import JSONL, by_split, check_id, digest, present, read_messages
from convrec_r1.data.adapters.rows import Row, read_rows
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.faults import Faults, Notes
from convrec_r1.data.schema import SPLITS, Conversation, Dataset, Split
from convrec_r1.lists import Item
from convrec_r1.matching import Matching

_log = logging.getLogger(__name__)
ARROW: dict[Split, tuple[str, ...]] = {split: (f"{split}/state.json",) for split in SPLITS}
"""A file of each arrow folder."""
_LARGE = 50_000
"""Rows of a folder whose reading shows its progress."""


class RedditV2(FileAdapter):
    """data=reddit_v2: the folder at `path`. If it has both forms, the arrow folders are read.

    Catalog: `catalog`, or gt_catalog.pkl or catalog.csv in the folder or the one above. The published prompt stays whole,
    with its instruction. Rows without any ground truth are left out.
    """

    published_prompt_n = 20
    catalog_names = ("gt_catalog.pkl", "catalog.csv")

    def __init__(self, path: str | Path, match: Matching, catalog: str | Path | None = None) -> None:
        super().__init__(path, catalog)
        self.match = match

    def load(self) -> Dataset:
        """Raises UserError for a folder without splits, a malformed row, an id used twice, or no catalog."""
        catalog, conversations = self.stream()
        return Dataset(catalog, by_split(conversations))

    def stream(self) -> tuple[Catalog, Iterator[Conversation]]:
        if not self.path.is_dir():
            raise UserError(
                f"{self.path} is not a folder. data.path must name the folder that holds train, validation and test."
            )
        catalog = self.load_catalog()
        return catalog, self._conversations(catalog)

    def sources(self) -> list[Path]:
        arrow = _is_arrow(self.path)
        found = present(self.path, ARROW if arrow else JSONL).values()
        return self.with_catalog(part for file in found for part in (files_in(file.parent) if arrow else [file]))

    def _conversations(self, catalog: Catalog) -> Iterator[Conversation]:
        counts: Counter[str] = Counter()
        places: dict[str, str] = {}
        notes, faults = Notes(), Faults()
        for split, number, row in _rows(self.path, notes, faults):
            with faults:
                conversation = _conversation(row, split, number, notes)
                check_id(row, conversation.id, places)
                if not conversation.ground_truth:
                    counts["empty"] += 1
                    continue
                counts["read"] += 1
                counts["without"] += conversation.demonstration is None
                counts["foreign"] += sum(catalog.find(item, self.match) is None for item in conversation.ground_truth)
                yield conversation
        faults.check()
        notes.warn(_log, f"{self.path}:")
        _log.info(
            "reddit_v2: %d conversations, %d without a demonstration; left out %d rows without ground truth; "
            "%d ground truths are not in the catalog",
            *(counts["read"], counts["without"], counts["empty"], counts["foreign"]),
        )


def _is_arrow(path: Path) -> bool:
    return any((path / split / "state.json").is_file() for split in SPLITS)


def _rows(path: Path, notes: Notes, faults: Faults) -> Iterator[tuple[Split, int, Row]]:
    """Yield (split, number from 1, row)."""
    arrow = _is_arrow(path)
    for split, file in present(path, ARROW if arrow else JSONL).items():
        rows = _read_arrow(file.parent) if arrow else read_rows(file, "a file of conversations", notes, faults)
        for number, row in enumerate(rows, start=1):
            yield split, number, row


def _read_arrow(folder: Path) -> Iterator[Row]:
    from datasets import load_from_disk  # takes seconds to import, and JSONL does without

    try:
        # As arrow has it: a column may call itself an image or a sound, which datasets would fetch from wherever it says.
        table: Any = load_from_disk(str(folder)).with_format("arrow")
        table.data.validate(full=True)  # a length that is wrong in the file would be followed out of it
        number = 0
        with bar(f"Reading {folder.name}", len(table)) if len(table) > _LARGE else nullcontext(Bar()) as progress:
            for batch in table.iter(batch_size=1000):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(fields, f"{folder.name}, row {number}")
                progress.advance(len(batch))
    except UserError:
        raise
    except Exception as error:  # damaged files and foreign types raise nearly anything
        raise UserError(
            f"{folder} cannot be read as a saved dataset ({type(error).__name__}: {error}). Copy it again, whole."
        ) from error


def _conversation(row: Row, split: Split, number: int, notes: Notes) -> Conversation:
    messages = read_messages(row, "prompt", notes, complete=True)
    return Conversation(
        id=row.text("sample_id", f"{split}-{number}"),
        cluster=digest("\x1e".join(f"{message.role}\x1f{message.content}" for message in messages)),
        messages=messages,
        ground_truth=row.items("groundtruth_with_release_year"),
        seen=row.seen("seen_titles"),
        demonstration=_demonstration(row),
        split=split,
        has_instruction=True,
    )


def _demonstration(row: Row) -> tuple[Item, ...] | None:
    """Return the list in the last message of `completion`. None if there is no message or no item."""
    if not row.array("completion", "a list of {role, content}", []):
        return None
    text = read_messages(row, "completion")[-1].content
    return tuple(item for line in lists.lines(text) if (item := lists.parse_line(line)) is not None) or None
