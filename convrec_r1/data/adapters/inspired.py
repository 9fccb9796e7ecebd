"""INSPIRED (Hayati et al. 2020, "INSPIRED: Toward Sociable Recommendation Dialog Systems", EMNLP) as published.

Tab-separated files train.tsv, dev.tsv and test.tsv with a header, one utterance a row, the rows of a dialogue together:
`dialog_id`, `utt_id`, `speaker` (SEEKER or RECOMMENDER), `text`, `movies` (films that the annotators found in the text:
"Title (Year); Title (Year)") and `movie_dict` (a Python dict literal {"Title (Year)": index}: the dialogue's films, repeated
in each of its rows). Other columns are not read.
"""

import ast
import csv
import logging
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.base import FileAdapter
from convrec_r1.data.adapters.common import (
    Role,
    by_split,
    check_id,
    merge_turns,
    present,
    split_by_hash,
    titles,
    unseen,
)
from convrec_r1.data.adapters.rows import Row, describe, encodable, one_line, open_text, split_title
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation, Dataset, Split
from convrec_r1.lists import Item
from convrec_r1.matching import Matching

_log = logging.getLogger(__name__)
FILES: dict[Split, str] = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
_COLUMNS = ("dialog_id", "utt_id", "speaker", "text", "movies", "movie_dict")
_ROLES: dict[str, Role] = {"SEEKER": "user", "RECOMMENDER": "assistant"}


class Inspired(FileAdapter):
    """data=inspired: a folder with some of the files above, or a single file, at `path`.

    A conversation is made for every turn of the recommender that names films for the first time. They are its ground truth;
    films named before are its seen titles. A film counts as named if it stands in `movies` and in `movie_dict`.

    Splits: if the training file is missing, dev.tsv takes its place. A missing validation or test file is replaced by a
    tenth of the training dialogues, by a hash of their id. A file of another name counts as a training file.
    Catalog: `catalog`, or else all films of `movie_dict` in the files.
    Left out, and counted in the log: dialogues whose `movie_dict` is not a Python literal (the published dev.tsv has one),
    films found in the text that are not in `movie_dict`, films named before, films that are not in the catalog, and films
    recommended before anything was said. There are no demonstrations.
    """

    def __init__(self, path: str | Path, match: Matching, catalog: str | Path | None = None) -> None:
        super().__init__(path, catalog)
        self.match = match
        self.counts: Counter[str] = Counter()

    def load(self) -> Dataset:
        """Raises UserError for missing files, a file without the columns, and a malformed row."""
        files = _files(self.path)
        missing: list[Split] = [split for split in ("validation", "test") if split not in files]
        dialogues: list[tuple[Split, list[Row], dict[str, Item]]] = []
        for split, file in files.items():
            for rows, films in self._dialogues(file):
                dialogues.append((split, rows, films))
        if self.catalog_file() is None:
            catalog = Catalog(film for _, _, films in dialogues for film in films.values())
        else:
            catalog = self.load_catalog()
        places: dict[str, str] = {}
        conversations = []
        for split, rows, films in dialogues:
            name = rows[0].text("dialog_id")
            check_id(rows[0], name, places)
            place: Split = split_by_hash(name, missing) if split == "train" else split
            conversations += self._conversations(rows, name, films, catalog, place)
        _log.info(
            "inspired: %d conversations; left out: %d dialogues without a readable movie_dict; films: %d not in movie_dict, "
            "%d named before, %d not in the catalog, %d before anything was said",
            len(conversations),
            *(self.counts[key] for key in ("unreadable", "unconfirmed", "repeated", "foreign", "no context")),
        )
        return Dataset(catalog, by_split(conversations))

    def _dialogues(self, file: Path) -> Iterator[tuple[list[Row], dict[str, Item]]]:
        """The rows of each dialogue, and its films by the names they have in the file."""
        for _, group in groupby(_rows(file), key=lambda row: row.text("dialog_id")):
            rows = list(group)
            films = _film_names(rows[0])
            if films is None:
                _log.warning("%s: movie_dict is not a Python literal; the dialogue is left out", rows[0].where)
                self.counts["unreadable"] += 1
            else:
                yield rows, {name: split_title(one_line(name)) for name in films}

    def _conversations(
        self, rows: list[Row], name: str, films: dict[str, Item], catalog: Catalog, split: Split
    ) -> Iterator[Conversation]:
        said: list[tuple[Role, str]] = []
        seen: list[Item] = []
        for role, turn in groupby(rows, key=_role):
            utterances = list(turn)
            named = [film for row in utterances for film in self._named(row, films)]
            if role == "assistant":
                fresh, repeated = unseen(named, seen, self.match)
                truths = tuple(item for item in fresh if catalog.find(item, self.match))
                self.counts["repeated"] += repeated
                self.counts["foreign"] += len(fresh) - len(truths)
                context = merge_turns(said)
                if truths and not context:
                    self.counts["no context"] += len(truths)
                elif truths:
                    number = utterances[0].text("utt_id")
                    yield Conversation(f"{name}-{number}", name, context, truths, titles(seen, self.match), split=split)
            said.extend((role, _text(row)) for row in utterances)
            seen += named

    def _named(self, row: Row, films: dict[str, Item]) -> list[Item]:
        names = [part.strip() for part in row.fields["movies"].split(";") if part.strip()]
        self.counts["unconfirmed"] += sum(part not in films for part in names)
        return [films[part] for part in names if part in films]


def _files(path: Path) -> dict[Split, Path]:
    if not path.is_dir():
        split: Split = "test" if path.name == FILES["test"] else "train"
        return {split: path}
    found = present(path, FILES)
    if not found:
        raise UserError(f"{path} holds none of {', '.join(FILES.values())}. Check data.path.")
    if "train" not in found and "validation" in found:
        found["train"] = found.pop("validation")
    return found


def _rows(file: Path) -> Iterator[Row]:
    cells = csv.reader(open_text(file), delimiter="\t", strict=True)
    header: list[str] | None = None
    try:
        for values in cells:
            where = f"{file.name}, line {cells.line_num}"
            if header is None:
                header = values
                if absent := [name for name in _COLUMNS if name not in header]:
                    raise UserError(f"{where}: the header has no column {absent[0]}; found {', '.join(header)[:120]}.")
            elif len(values) != len(header):
                raise UserError(
                    f"{where}: {len(values)} cells, the header has {len(header)}. Copy the file again, whole."
                )
            else:
                yield Row(dict(zip(header, map(encodable, values), strict=True)), where)
    except csv.Error as error:
        raise UserError(f"{file.name}, line {cells.line_num}: not valid tab-separated text ({error}).") from None
    if header is None:
        raise UserError(f"{file} is empty. It must have a header and one utterance a row.")


def _role(row: Row) -> Role:
    speaker = row.fields["speaker"]
    if speaker not in _ROLES:
        raise row.error(f'"speaker" must be SEEKER or RECOMMENDER, found {describe(speaker)}.')
    return _ROLES[speaker]


def _text(row: Row) -> str:
    return row.fields["text"].replace("QUOTATION_MARK", '"')


def _film_names(row: Row) -> list[str] | None:
    """The keys of `movie_dict`, or None if it cannot be read. Never evaluated as code."""
    try:
        films = ast.literal_eval(row.fields["movie_dict"].strip() or "{}")
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(films, dict) or not all(isinstance(name, str) for name in films):
        raise row.error(f'"movie_dict" must be a dict {{"Title (Year)": index}}, found {describe(films)}.')
    return [encodable(name) for name in films if name.strip()]
