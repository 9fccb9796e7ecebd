"""The adapter of dialogues: what the published forms of ReDial, INSPIRED and OpenDialKG have in common."""

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from convrec_r1.data.adapters.base import FileAdapter
from convrec_r1.data.adapters.common import check_id, present, split_by_hash
from convrec_r1.data.adapters.rows import Row, read_jsonl
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.faults import Faults, Notes
from convrec_r1.data.schema import SPLITS, Conversation, Dataset, Message, Split
from convrec_r1.lists import Item
from convrec_r1.matching import Matching

_log = logging.getLogger(__name__)


class DialogueAdapter(FileAdapter):
    """An adapter that makes a conversation of every turn of the recommender that names new items.

    `path` is a folder with `files`, or one of them. The named items are the ground truth, the items named before are the seen
    titles. There are no demonstrations. Left out, and counted in the log: items named before (a seen title earns no reward),
    items that are not in the catalog, turns left with no item, and turns before which nothing was said. With `exclude_seen`
    false, items named before are ground truths like others, and there are no seen titles.
    """

    files: ClassVar[Mapping[Split, Sequence[str]]]
    """Names of the file of each split. Of several the first that exists is read."""
    fills_splits: ClassVar[bool] = True
    """Whether a missing validation or test file is replaced by a tenth of the training dialogues, by a hash of their id."""
    report: ClassVar[str] = (
        "left out: {repeated} items named before, {foreign} not in the catalog, {none} rows with no item left, "
        "{mute} with no context"
    )
    """What the log says of `counts`."""

    def __init__(
        self, path: str | Path, match: Matching, catalog: str | Path | None = None, exclude_seen: bool = True
    ) -> None:
        super().__init__(path, catalog)
        self.match = match
        self.exclude_seen = exclude_seen
        self.counts: Counter[str] = Counter()
        """Numbers of what was left out, for `report`."""
        self.places: dict[str, str] = {}
        """Place of each id."""
        self.notes, self.faults = Notes(), Faults()

    def load(self) -> Dataset:
        """Raises UserError for a path without such files, a malformed row, and an id used twice."""
        self.counts.clear()
        self.places.clear()
        self.notes, self.faults = Notes(), Faults()
        read = self.read(self.split_files())
        missing: list[Split] = [split for split in SPLITS[1:] if split not in read] if self.fills_splits else []
        self.faults.check()
        catalog = self.make_catalog([row for rows in read.values() for row in rows])
        splits: dict[str, list[Conversation]] = {split: [] for split in SPLITS}
        for split, rows in read.items():
            for row in rows:
                with self.faults:
                    for found in self.conversations(row, catalog):
                        check_id(row, found.id, self.places)
                        place = split_by_hash(found.cluster, missing) if split == "train" else split
                        splits[place].append(replace(found, split=place))
        self.faults.check()
        self.notes.warn(_log, f"{self.path}:")
        number = sum(map(len, splits.values()))
        _log.info("%s: %d conversations; %s", type(self).__name__.lower(), number, self.report.format_map(self.counts))
        return Dataset(catalog, splits)

    def sources(self) -> list[Path]:
        return self.with_catalog(self.split_files().values())

    def split_files(self) -> dict[Split, Path]:
        """Return the files by split. A single file of another name counts as a training file."""
        if self.path.is_dir():
            return present(self.path, self.files)
        named: list[Split] = [split for split in SPLITS if self.path.name in self.files[split]]
        return {(named or SPLITS)[0]: self.path}

    def read(self, files: Mapping[Split, Path]) -> dict[Split, list[Row]]:
        """Return the rows of each split."""
        return {split: list(self.rows(file)) for split, file in files.items()}

    def rows(self, file: Path) -> Iterable[Row]:
        """Yield the rows of a file, each a dialogue or a turn."""
        return read_jsonl(file, self.notes, self.faults)

    def make_catalog(self, rows: Iterable[Row]) -> Catalog:
        """Return the catalog. rows: of all files, for a catalog of the items that they mention."""
        return self.load_catalog()

    @abstractmethod
    def conversations(self, row: Row, catalog: Catalog) -> Iterable[Conversation]:
        """Yield the conversations of a row: what `turn` returns for each turn of the recommender."""

    def turn(
        self,
        number: str | int,
        dialogue: str,
        messages: tuple[Message, ...],
        named: Iterable[Item],
        seen: Iterable[Item],
        catalog: Catalog,
        without: Collection[Item] = (),
    ) -> Iterator[Conversation]:
        """Yield the conversation of a turn, unless it is left out.

        Args:
            number: of the turn within the dialogue, for the id.
            dialogue: its id.
            messages: what was said before the turn.
            named: items that the recommender names.
            seen: items named before.
            without: items that are no ground truth ("disliked" in `counts`).
        """
        titles = {self.match.key(item.title): item.title for item in seen if self.exclude_seen}
        unique = {self.match.item_key(item): item for item in named}
        fresh = [item for (title, _), item in unique.items() if title not in titles]
        liked = [item for item in fresh if item not in without]
        truths = tuple(item for item in liked if catalog.find(item, self.match))
        foreign = len(liked) - len(truths)
        self.counts.update(repeated=len(unique) - len(fresh), disliked=len(fresh) - len(liked), foreign=foreign)
        if truths and messages:
            yield Conversation(f"{dialogue}-{number}", dialogue, messages, truths, tuple(titles.values()))
        elif truths:
            self.counts.update(mute=1, mute_items=len(truths))
        else:
            self.counts.update(none=1, all_foreign=foreign > 0)
