"""What a policy needs beside its weights to recommend: how it is asked, and its catalog.

A run has it in RUN/package/, a published policy beside its weights. `convrec_r1.json` holds the settings, `catalog.jsonl` an
item a line, as {"title", "year", "metadata": {field: [value]}}. Both are plain JSON: reading them runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from convrec_r1 import __version__
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_json, write_json, write_jsonl
from convrec_r1.base.plugins import TARGET, build, is_own, plain
from convrec_r1.data.catalog import Catalog
from convrec_r1.lists import Item
from convrec_r1.matching import Matching
from convrec_r1.policy.config import DATE, NO_THOUGHTS
from convrec_r1.serve.request import Fields

SETTINGS, CATALOG = "convrec_r1.json", "catalog.jsonl"
FORMAT = 1
"""Version of the files. A reader refuses a later one."""


@dataclass(frozen=True)
class Settings:
    """How a policy was asked in training."""

    n: int = 20
    """Recommendations in a list."""
    instruction: str = (
        "You are a recommender. Read the conversation below and reply with {n} recommendations, best first. Write one item a "
        "line as Title (Year), or only the title where there is no year, and nothing else."
    )
    template: Mapping[str, Any] = field(default_factory=lambda: dict(NO_THOUGHTS))
    """`model.template`."""
    date: str = DATE
    """`model.date`."""
    max_prompt_length: int = 2048
    max_completion_length: int = 1024
    match: Mapping[str, Any] = field(default_factory=lambda: {TARGET: "convrec_r1.matching.Normalised"})
    """Rule for "the same item": `_target_` and options."""
    domain: str = "items"
    """What the items are, in the plural."""

    def matching(self) -> Matching:
        """Build the rule. Raises UserError for a class that is not this package's: a file must not name code to run."""
        path = str(self.match.get(TARGET))
        if not is_own(path):
            raise UserError(f"The rule for the same item is {path}, your own class: give it as match=RULE.")
        return build(self.match, "match", Matching)


def settings_of(config: Mapping[str, Any]) -> Settings:
    """Return the settings in the config of a run, as plain values."""
    data, model = config["data"], config["model"]
    return Settings(
        n=config["n"], instruction=data["instruction"], template=model["template"], date=model["date"],
        max_prompt_length=model["max_prompt_length"], max_completion_length=model["max_completion_length"],
        match=config["match"], domain=data["domain"],
    )  # fmt: skip


@dataclass(frozen=True)
class Package:
    """The settings of a policy, its catalog, and what is known of the items."""

    settings: Settings
    catalog: Catalog | None = None
    fields: Mapping[Item, Fields] = field(default_factory=dict)


def write_package(folder: Path, package: Package) -> None:
    """Write a package into a folder. The settings come last: a folder that has them is complete."""
    if package.catalog is not None:
        rows = ({"title": i.title, "year": i.year, "metadata": package.fields.get(i, {})} for i in package.catalog)
        write_jsonl(folder / CATALOG, rows)
    settings = asdict(package.settings) | {"match": plain(package.settings.match)}
    write_json(folder / SETTINGS, {"format": FORMAT, "version": __version__, **settings})


def read_package(folder: Path) -> Package | None:
    """Return the package in a folder, None if there is none. Raises UserError for files that cannot be read."""
    file = folder / SETTINGS
    if not file.is_file():
        return None
    try:
        content = read_json(file)
        number = content.pop("format")
        if number != FORMAT:
            raise UserError(f"{file} has format {number}, and this version of convrec-r1 reads {FORMAT}: update it.")
        known = {name: content[name] for name in Settings.__dataclass_fields__ if name in content}
        settings = Settings(**known)
        settings.instruction.format(n=settings.n)
        if not (isinstance(settings.n, int) and settings.n > 0 and isinstance(settings.match, dict)):
            raise ValueError("n or match")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError) as error:
        raise UserError(f"{file}: not the settings of a policy ({error}). Write it again, or copy it again.") from error
    catalog, fields = _read_catalog(folder / CATALOG) if (folder / CATALOG).is_file() else (None, {})
    return Package(settings, catalog, fields)


def _read_catalog(file: Path) -> tuple[Catalog, dict[Item, Fields]]:
    items, fields = [], {}
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}  # genres repeat
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                item = Item(row["title"], row["year"])
                items.append(item)
                if row.get("metadata"):
                    named = {name: tuple(values) for name, values in row["metadata"].items()}
                    fields[item] = {name: shared.setdefault(values, values) for name, values in named.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"{file}, line {len(items) + 1}: not an item of a catalog ({error}). Copy the file again."
        ) from error
    return Catalog(
        items, {item: [v for values in named.values() for v in values] for item, named in fields.items()}
    ), fields
