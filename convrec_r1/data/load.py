"""Load the dataset of a config: build the adapter, cut the splits to size, check that it can be trained on."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from convrec_r1.base.digest import files_in, of_rows, slots
from convrec_r1.base.errors import UserError
from convrec_r1.base.plugins import TARGET, build, is_own
from convrec_r1.data.adapters.base import Adapter, FileAdapter
from convrec_r1.data.audit import endings, leaks, truths_once
from convrec_r1.data.config import DataConfig, PromptStyle
from convrec_r1.data.demonstrations import add_demonstrations
from convrec_r1.data.schema import SPLITS, Conversation, Dataset
from convrec_r1.matching import Folded, Matching, catalog_notes

_log = logging.getLogger(__name__)
_FOLDED = Folded()
DEMONSTRATIONS = "demonstrations"
"""Name among the digests of a dataset."""


def make_adapter(cfg: DataConfig, n: int, match: Matching) -> Adapter:
    """Build the adapter that `data._target_` names. Raises UserError where that cannot be done."""
    node = {TARGET: cfg._target_, **cfg.options}
    given = {"path": _path(cfg.path), "catalog": _path(cfg.catalog), "n": n, "seed": cfg.seed, "sizes": cfg.sizes}
    given["exclude_seen"] = cfg.exclude_seen
    if clash := sorted(given.keys() & cfg.options.keys()):
        raise UserError(f"data.options.{clash[0]} stands beside data.options: set data.{clash[0]}.")
    return build(node, "data", Adapter, **given, match=match)


def load_data(cfg: DataConfig, n: int, match: Matching = _FOLDED, *, need: Sequence[str] = SPLITS) -> Dataset:
    """Return the dataset of `cfg`, cut to its sizes, with demonstrations of at most `n` items.

    Args:
        cfg: the options `data`.
        n: items in a list.
        match: when two titles name the same item.
        need: splits that must not be empty.
    Raises:
        UserError: anything malformed in the files, an empty split of `need`, or a catalog that holds none of the ground
            truths (nothing could ever be rewarded).
    """
    adapter = make_adapter(cfg, n, match)
    data = adapter.load()
    data = Dataset(data.catalog, {split: _cut(data[split], cfg.sizes.get(split), cfg.seed) for split in SPLITS})
    doubled = truths_once(data, match)
    if empty := [split for split in need if not data[split]]:
        raise UserError(
            f"data={cfg.name}: no conversations in the split {', '.join(empty)} of {cfg.path}. "
            "Add the missing file, or rows with that split, to data.path."
        )
    _check_catalog(data, cfg, match)
    for note in catalog_notes(data.catalog, match):
        _log.warning("Catalog: %s", note)
    if cfg.prompt is PromptStyle.ours:  # our own instruction is put before the dialogue later
        for split in SPLITS:
            data.splits[split] = [adapter.without_instruction(c) if c.has_instruction else c for c in data[split]]
    for note in (*doubled, *leaks(data), *endings(data)):
        _log.warning("Data %s: %s", cfg.name, note)
    if not cfg.exclude_seen:
        for split in SPLITS:
            data.splits[split] = [replace(c, seen=()) for c in data[split]]
    if cfg.demonstrations == "neighbours":
        data = add_demonstrations(data, n, match)
    sizes = ", ".join(f"{len(data[split]):,} {split}" for split in SPLITS)
    _log.info("Data %s: %s items; conversations: %s", cfg.name, f"{len(data.catalog):,}", sizes)
    return data


def digests(data: Dataset) -> dict[str, str]:
    """Return digests of the catalog with its metadata, of each split, and of the demonstrations to train on.

    They cover everything that is read from a dataset, and are computed once for it.
    """
    known = vars(data).get("_digests")
    if known is None:
        known = vars(data)["_digests"] = _digests(data)
    return dict(known)


def _digests(data: Dataset) -> dict[str, str]:
    catalog = ([item, sorted(data.catalog.metadata.get(item, ()))] for item in data.catalog)
    found = {"catalog": of_rows(catalog)}
    for split in SPLITS:
        found[split] = of_rows(slots(c, without=["demonstration"]) for c in data.splits.get(split, ()))
    shown = (c for split in ("train", "validation") for c in data.splits.get(split, ()))
    return found | {DEMONSTRATIONS: of_rows([c.id, c.demonstration] for c in shown)}


def files_of(adapter: Adapter) -> list[Path] | None:
    """Return the files that an adapter may read. None: not known, as for a class of the user's."""
    if isinstance(adapter, FileAdapter) and is_own(type(adapter).__module__):
        catalog = adapter.catalog_file()
        beside = (file for file in adapter.path.parent.glob("*") if file.is_file())
        files = files_in(adapter.path) if adapter.path.is_dir() else beside
        return sorted({*files, *([catalog] if catalog else [])})
    return [] if not adapter.needs_path and is_own(type(adapter).__module__) else None


def _path(path: str | None) -> Path | None:
    return Path(path).expanduser() if path else None


def _cut(conversations: list[Conversation], size: int | None, seed: int) -> list[Conversation]:
    """Return `size` conversations chosen by `seed`, in their order. A smaller choice is part of a larger one."""
    if size is None or size >= len(conversations):
        return conversations
    chosen = np.sort(np.random.default_rng(seed).permutation(len(conversations))[:size])
    return [conversations[i] for i in chosen]


def sample(conversations: Sequence[Conversation], size: int, seed: int) -> list[Conversation]:
    """Return `size` conversations of as many clusters as possible, in their order. Files hold rows of one context side by side.

    One conversation of each cluster is drawn before the second of any, by `seed`. A smaller choice is part of a larger one.
    """
    if size >= len(conversations):
        return list(conversations)
    drawn: Counter[str] = Counter()
    order = []
    for place in np.random.default_rng(seed).permutation(len(conversations)):
        cluster = conversations[place].cluster
        drawn[cluster] += 1
        order.append((drawn[cluster], len(order), place))
    return [conversations[place] for place in sorted(place for *_, place in sorted(order)[:size])]


def _check_catalog(data: Dataset, cfg: DataConfig, match: Matching) -> None:
    truths = {item for split in SPLITS for c in data[split] for item in c.ground_truth}
    found = sum(data.catalog.find(item, match) is not None for item in truths)
    if not found:
        example = ", ".join(map(str, list(truths)[:3]))
        raise UserError(
            f"data={cfg.name}: none of the {len(truths)} ground truths (such as {example}) is in the catalog of "
            f"{len(data.catalog)} items (such as {', '.join(map(str, list(data.catalog)[:3]))}), so no list could earn "
            "a reward. Check that data.catalog belongs to data.path, and that titles and years are written alike."
        )
    if found < len(truths) / 2:
        _log.warning("Only %d of %d ground truths are in the catalog: the rest can never be hit.", found, len(truths))


def with_demonstrations(conversations: Sequence[Conversation], n: int, name: str) -> list[Conversation]:
    """Return the conversations with a demonstration, cut to `n`. Raises UserError if there is none."""
    usable = [replace(c, demonstration=c.demonstration[:n]) for c in conversations if c.demonstration]
    if not usable:
        raise UserError(
            f"data={name}: no training conversation has a demonstration, so there is nothing to imitate. Set "
            "data.demonstrations=neighbours to derive them from the training ground truths, or warm_start=null."
        )
    return usable
