"""INSPIRED (Hayati et al. 2020, "INSPIRED: Toward Sociable Recommendation Dialog Systems", EMNLP) as published.

Tab-separated files train.tsv, dev.tsv and test.tsv with a header, one utterance a row, the rows of a dialogue together:
`dialog_id`, `utt_id`, `speaker` (SEEKER or RECOMMENDER), `text`, `movies` (films that the annotators found in the text:
"Title (Year); Title (Year)") and `movie_dict` (a Python dict literal {"Title (Year)": index}: the dialogue's films, repeated
in each of its rows). Other columns are not read.
"""

import ast
import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from convrec_r1.data.adapters.common import Role, check_id, merge_turns
from convrec_r1.data.adapters.dialogues import DialogueAdapter
from convrec_r1.data.adapters.rows import Row
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.items import split_title
from convrec_r1.data.schema import Conversation, Split
from convrec_r1.data.tables import read_table
from convrec_r1.data.values import describe, encodable, one_line
from convrec_r1.lists import Item

_log = logging.getLogger(__name__)
_COLUMNS = ("dialog_id", "utt_id", "speaker", "text", "movies", "movie_dict")
_ROLES: dict[str, Role] = {"SEEKER": "user", "RECOMMENDER": "assistant"}


class Inspired(DialogueAdapter):
    """data=inspired: a folder with some of the files above, or a single file, at `path`.

    A film counts as named if it stands in `movies` and in `movie_dict`. Catalog: `catalog`, or all films of `movie_dict`.
    If the training file is missing, dev.tsv takes its place. Left out as well: dialogues whose `movie_dict` is not a Python
    literal (the published dev.tsv has one), and films found in the text that are not in `movie_dict`.
    """

    files: ClassVar = {"train": ("train.tsv",), "validation": ("dev.tsv",), "test": ("test.tsv",)}
    report = (
        "left out: {unreadable} dialogues without a readable movie_dict; films: {unconfirmed} not in movie_dict, "
        "{repeated} named before, {foreign} not in the catalog, {mute_items} before anything was said"
    )

    def split_files(self) -> dict[Split, Path]:
        found = super().split_files()
        if "train" not in found and "validation" in found:
            found["train"] = found.pop("validation")
        return found

    def rows(self, file: Path) -> Iterator[Row]:
        """Yield a row for each dialogue: `name`, `rows` (its utterances), `films` (name in the file -> item)."""
        utterances = (Row(*found) for found in read_table(file, self.notes, columns=_COLUMNS, delimiter="\t"))
        for name, group in groupby(utterances, key=lambda row: row.text("dialog_id")):
            rows = list(group)
            films = _film_names(rows[0])
            if films is None:
                _log.warning("%s: movie_dict is not a Python literal; the dialogue is left out", rows[0].where)
                self.counts["unreadable"] += 1
                continue
            check_id(rows[0], name, self.places)
            items = {film: split_title(one_line(film)) for film in films}
            yield Row({"name": name, "rows": rows, "films": items}, rows[0].where)

    def make_catalog(self, rows: Iterable[Row]) -> Catalog:
        if self.catalog_file():
            return self.load_catalog()
        return Catalog(film for row in rows for film in row.fields["films"].values())

    def conversations(self, row: Row, catalog: Catalog) -> Iterator[Conversation]:
        said: list[tuple[Any, str]] = []
        seen: list[Item] = []
        for role, turn in groupby(row.fields["rows"], key=_role):
            utterances = list(turn)
            named = [film for utterance in utterances for film in self._named(utterance, row.fields["films"])]
            if role == "assistant":
                number = utterances[0].text("utt_id")
                yield from self.turn(number, row.fields["name"], merge_turns(said), named, seen, catalog)
            said += [(role, utterance.fields["text"].replace("QUOTATION_MARK", '"')) for utterance in utterances]
            seen += named

    def _named(self, row: Row, films: Mapping[str, Item]) -> list[Item]:
        names = [part.strip() for part in row.fields["movies"].split(";") if part.strip()]
        self.counts["unconfirmed"] += sum(part not in films for part in names)
        return [films[part] for part in names if part in films]


def _role(row: Row) -> Role:
    speaker = row.fields["speaker"]
    if speaker not in _ROLES:
        raise row.error(f'"speaker" must be SEEKER or RECOMMENDER, found {describe(speaker)}.')
    return _ROLES[speaker]


def _film_names(row: Row) -> list[str] | None:
    """The keys of `movie_dict`, or None if it cannot be read. Never evaluated as code."""
    try:
        films = ast.literal_eval(row.fields["movie_dict"].strip() or "{}")
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(films, dict) or not all(isinstance(name, str) for name in films):
        raise row.error(f'"movie_dict" must be a dict {{"Title (Year)": index}}, found {describe(films)}.')
    return [encodable(name) for name in films if name.strip()]
