"""Metadata of items that is at hand: in a file that the config names, in the dataset's own, or in movieland's table."""

import logging
from pathlib import Path

from convrec_r1.base.errors import UserError
from convrec_r1.base.plugins import build
from convrec_r1.config.schema import Config
from convrec_r1.data.adapters.rows import Row
from convrec_r1.data.load import make_adapter
from convrec_r1.distill.metadata import Key, Metadata, key, metadata_of, read_metadata
from convrec_r1.matching import Matching

_log = logging.getLogger(__name__)


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
    else:
        path = make_adapter(cfg.data, cfg.n, build(cfg.match, "match", Matching)).metadata()
        if path is None or isinstance(path, Path):
            found = _that_say_something(_read(path)) if path else {}
        else:
            rows = (metadata_of(Row(dict(fields), f"{cfg.data.name}, item {k}")) for k, fields in enumerate(path, 1))
            found = _that_say_something({key(item.item): item for item in rows})
            path = f"data={cfg.data.name}"
    if found:
        _log.info("Metadata: %d items from %s", len(found), path)
    return found


def _read(path: Path) -> dict[Key, Metadata]:
    """Of a catalog's file, which need not be one of metadata: titles alone are a catalog too."""
    try:
        return read_metadata(path)
    except UserError as error:
        _log.info("No metadata in the catalog's file (%s)", error)
        return {}


def _that_say_something(found: dict[Key, Metadata]) -> dict[Key, Metadata]:
    return {name: item for name, item in found.items() if item.genres or item.keywords or item.people or item.plot}
