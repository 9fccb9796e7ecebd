"""Metadata of items that is at hand: in a file that the config names, in the dataset's own, or in movieland's table."""

import logging
from pathlib import Path

from convrec_r1.base.errors import UserError
from convrec_r1.config.schema import Config
from convrec_r1.data.adapters import jsonl, reddit_v2, redial
from convrec_r1.data.adapters.common import find_catalog
from convrec_r1.data.config import DataConfig
from convrec_r1.data.movieland.films import catalog_films
from convrec_r1.distill.metadata import Key, Metadata, key, read_metadata

_log = logging.getLogger(__name__)

_CATALOGS = {
    "jsonl": jsonl.CATALOG_NAMES,
    "redial": redial.CATALOG_NAMES,
    "reddit_v2": reddit_v2.CATALOG_NAMES,
}


def metadata(cfg: Config) -> dict[Key, Metadata]:
    """What is known of items beside title and year, by `metadata.key`; items of which nothing is known are not in it.

    `distill.metadata` where it is given, and it alone; else the catalog's file where its rows say more than title and year, as
    ReDial's movies.jsonl does; else, for movieland, its table. Raises UserError for a file that is named and cannot be read.
    """
    if cfg.distill.metadata:
        path = Path(cfg.distill.metadata).expanduser()
        found = _that_say_something(read_metadata(path))
        if not found:
            raise UserError(f"distill.metadata={path}: no item has genres, keywords, people or a plot.")
    elif cfg.data.adapter == "movieland":
        # Of the catalog's films only: what the teacher names beside them is for the teacher to describe.
        films = [
            Metadata(*film.item, genres=film.genres, keywords=film.themes, people=(film.director,))
            for film in catalog_films()
        ]
        return {key(film.item): film for film in films}
    else:
        path = _own_file(cfg.data)
        found = _that_say_something(_read(path)) if path else {}
    if found:
        _log.info("Metadata: %d items from %s", len(found), path)
    return found


def _own_file(cfg: DataConfig) -> Path | None:
    if cfg.catalog:
        return Path(cfg.catalog).expanduser()
    return find_catalog(Path(str(cfg.path)).expanduser(), _CATALOGS[cfg.adapter])


def _read(path: Path) -> dict[Key, Metadata]:
    """Of a catalog's file, which need not be one of metadata: titles alone are a catalog too."""
    try:
        return read_metadata(path)
    except UserError as error:
        _log.info("No metadata in the catalog's file (%s)", error)
        return {}


def _that_say_something(found: dict[Key, Metadata]) -> dict[Key, Metadata]:
    return {name: item for name, item in found.items() if item.genres or item.keywords or item.people or item.plot}
