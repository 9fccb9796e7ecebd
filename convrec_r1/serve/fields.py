"""Named fields of a catalog's items, such as genre, for filters and answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.base import Adapter
from convrec_r1.data.catalog import Catalog
from convrec_r1.distill.metadata import Key, Metadata, key, known_metadata, read_metadata
from convrec_r1.lists import Item
from convrec_r1.serve.request import Fields


def fields_of(catalog: Catalog, adapter: Adapter, dataset: str) -> dict[Item, Fields]:
    """Return what a dataset knows of its items: genre, keyword and person, as Stage 1 reads them; else tag.

    dataset: its name, for messages.
    """
    return _fields(catalog, known_metadata(None, adapter, dataset))


def read_catalog(file: Path) -> tuple[Catalog, dict[Item, Fields]]:
    """Read a catalog's file, with the fields that `distill.metadata` knows. Errors as `Catalog.load`."""
    catalog = Catalog.load(file)
    try:
        known = read_metadata(file)
    except UserError:  # titles alone, or columns that mean something else
        known = {}
    return catalog, _fields(catalog, known)


def _fields(catalog: Catalog, known: Mapping[Key, Metadata]) -> dict[Item, Fields]:
    found: dict[Item, Fields] = {}
    for item in catalog:
        named: dict[str, tuple[str, ...]] = {}
        if (data := known.get(key(item))) is not None:
            named = {"genre": data.genres, "keyword": data.keywords, "person": data.people}
        if not any(named.values()):
            named = {"tag": tuple(sorted(catalog.metadata.get(item, ())))}
        if named := {name: values for name, values in named.items() if values}:
            found[item] = named
    return found
