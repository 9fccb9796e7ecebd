"""Load the dataset of a config: build the adapter, cut the splits to size, check that it can be trained on."""

import logging
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import overload

import numpy as np

from convrec_r1.base.digest import files_in, of_lines, of_rows
from convrec_r1.base.errors import UserError
from convrec_r1.base.plugins import TARGET, build, is_own
from convrec_r1.base.progress import bar
from convrec_r1.data.adapters.base import Adapter, FileAdapter
from convrec_r1.data.audit import Audit
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.config import DataConfig, PromptStyle
from convrec_r1.data.demonstrations import Neighbours, add_demonstrations
from convrec_r1.data.prepared import find_or_prepare, inputs_of
from convrec_r1.data.schema import SPLITS, Conversation, Dataset
from convrec_r1.data.stored import CATALOG, TRUTHS, Rows, Writers, demonstration_lines, encode, rows_of, write_items
from convrec_r1.lists import Item
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


def load_data(
    cfg: DataConfig, n: int, match: Matching = _FOLDED, *, need: Sequence[str] = SPLITS, kept: Path | None = None
) -> Dataset:
    """Return the dataset of `cfg`, cut to its sizes, with demonstrations of at most `n` items.

    Args:
        cfg: the options `data`.
        n: items in a list.
        match: when two titles name the same item.
        need: splits that must not be empty.
        kept: folder of prepared data (data/prepared.py). Large files are read once, and then from there. None: all
            conversations are read into memory.
    Raises:
        UserError: anything malformed in the files, an empty split of `need`, or a catalog that holds none of the ground
            truths (nothing could ever be rewarded).
    """
    adapter = make_adapter(cfg, n, match)
    data = None
    if kept is not None and isinstance(adapter, FileAdapter) and (found := inputs_of(adapter, cfg, n, match)):
        data = find_or_prepare(kept, found, partial(_write, adapter, cfg, n, match, need))
    if data is None:
        data = _read(adapter, cfg, n, match, need)
    else:
        _check_needed(data, cfg, need)  # of data that was prepared for a run that needs less
    sizes = ", ".join(f"{len(data[split]):,} {split}" for split in SPLITS)
    _log.info("Data %s: %s items; conversations: %s", cfg.name, f"{len(data.catalog):,}", sizes)
    return data


def _read(adapter: Adapter, cfg: DataConfig, n: int, match: Matching, need: Sequence[str]) -> Dataset:
    """Read all conversations into memory."""
    data = adapter.load()
    finish = Finish(adapter, cfg, match)
    splits = {}
    for split in SPLITS:
        rows = data[split]
        places = _cut(len(rows), cfg.sizes.get(split), cfg.seed)
        splits[split] = [finish(c, split) for c in (rows if places is None else (rows[place] for place in places))]
    data = Dataset(data.catalog, splits)
    _check_needed(data, cfg, need)
    finish.check(data.catalog)
    return add_demonstrations(data, n, match) if cfg.demonstrations == "neighbours" else data


def _write(
    adapter: FileAdapter, cfg: DataConfig, n: int, match: Matching, need: Sequence[str], folder: Path
) -> dict[str, str]:
    """Read the conversations one by one, and write them into a folder in the form of data/stored.py. Return the digests."""
    catalog, conversations = adapter.stream()
    finish = Finish(adapter, cfg, match)
    numbers = finish.audit.truths
    # Files that are read again here. A mapped file must never be written to, so each pass has a folder of its own.
    raw, listless = folder / "raw", folder / "listless"
    raw.mkdir()
    listless.mkdir()
    if cfg.sizes:  # how many there are of a split is known at the end of the files
        with Writers(raw, {}) as writers:
            for conversation in conversations:
                writers.add(conversation)
        cut = {split: rows_of(raw, split) for split in SPLITS}
        places = {split: _cut(len(rows), cfg.sizes.get(split), cfg.seed) for split, rows in cut.items()}
        parts = [rows if (at := places[split]) is None else rows.chosen(at) for split, rows in cut.items()]
        conversations = _counted(parts)
    derived = cfg.demonstrations == "neighbours"
    with Writers(folder, numbers, elsewhere={"train": listless} if derived else {}) as writers:
        for conversation in conversations:
            writers.add(finish(conversation, conversation.split))
    places_of = {split: listless if derived and split == "train" else folder for split in SPLITS}
    _check_needed(Dataset(catalog, {split: rows_of(places_of[split], split) for split in SPLITS}), cfg, need)
    finish.check(catalog)
    found = writers.digests
    if derived:
        train = rows_of(listless, "train")
        neighbours = Neighbours(train, catalog, n, match)
        with Writers(folder, numbers, only=["train"]) as writers, bar("Demonstrations", len(train)) as progress:
            for conversation in train:
                writers.add(neighbours(conversation))
                progress.advance()
    shutil.rmtree(raw)
    shutil.rmtree(listless)
    write_items(catalog, folder / CATALOG, catalog.metadata)
    write_items(numbers, folder / TRUTHS)
    lines = (line for split in ("train", "validation") for line in demonstration_lines(rows_of(folder, split)))
    return {"catalog": _of_catalog(catalog), **found, DEMONSTRATIONS: of_lines(lines)}


def _counted(parts: Sequence[Rows]) -> Iterator[Conversation]:
    """Yield the rows of all parts, with their progress."""
    with bar("Checking", sum(map(len, parts))) as progress:
        for conversation in chain.from_iterable(parts):
            yield conversation
            progress.advance()


class Finish:
    """Makes a conversation what a run trains and evaluates on, and counts what is to be told about all of them."""

    def __init__(self, adapter: Adapter, cfg: DataConfig, match: Matching) -> None:
        self.adapter, self.cfg, self.match = adapter, cfg, match
        self.audit = Audit()

    def __call__(self, conversation: Conversation, split: str) -> Conversation:
        conversation = self.audit.truths_once(conversation, self.match)
        if self.cfg.prompt is PromptStyle.ours and conversation.has_instruction:
            conversation = self.adapter.without_instruction(conversation)  # our own is put before the dialogue later
        self.audit.add(conversation, split)
        return conversation if self.cfg.exclude_seen else replace(conversation, seen=())

    def check(self, catalog: Catalog) -> None:
        """Log notes on all conversations. Raises UserError for a catalog without any ground truth."""
        _check_catalog(self.audit.truths, catalog, self.cfg, self.match)
        for note in catalog_notes(catalog, self.match):
            _log.warning("Catalog: %s", note)
        for note in self.audit.notes():
            _log.warning("Data %s: %s", self.cfg.name, note)


def _check_needed(data: Dataset, cfg: DataConfig, need: Sequence[str]) -> None:
    if empty := [split for split in need if not data[split]]:
        raise UserError(
            f"data={cfg.name}: no conversations in the split {', '.join(empty)} of {cfg.path}. "
            "Add the missing file, or rows with that split, to data.path."
        )


def digests(data: Dataset) -> dict[str, str]:
    """Return digests of the catalog with its metadata, of each split, and of the demonstrations to train on.

    They cover everything that is read from a dataset, and are computed once for it. Those of prepared data are read.
    """
    known = data.digests
    if "catalog" not in known:
        known["catalog"] = _of_catalog(data.catalog)
    for split in SPLITS:
        if split not in known:
            known[split] = of_lines(map(encode, data.splits.get(split, ())))
    if DEMONSTRATIONS not in known:
        parts = (data.splits.get(split, ()) for split in ("train", "validation"))
        known[DEMONSTRATIONS] = of_lines(line for rows in parts for line in demonstration_lines(rows))
    return {name: known[name] for name in ("catalog", *SPLITS, DEMONSTRATIONS)}


def _of_catalog(catalog: Catalog) -> str:
    return of_rows([item, sorted(catalog.metadata.get(item, ()))] for item in catalog)


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


def _cut(rows: int, size: int | None, seed: int) -> np.ndarray | None:
    """Return the places of `size` rows chosen by `seed`, in order; None: all. A smaller choice is part of a larger one."""
    if size is None or size >= rows:
        return None
    return np.sort(np.random.default_rng(seed).permutation(rows)[:size])


def sample(conversations: Sequence[Conversation], size: int, seed: int) -> list[Conversation]:
    """Return `size` conversations of as many clusters as possible, in their order. Files hold rows of one context side by side.

    One conversation of each cluster is drawn before the second of any, by `seed`. A smaller choice is part of a larger one.
    """
    if size >= len(conversations):
        return list(conversations)
    clusters = conversations.clusters if isinstance(conversations, Rows) else [c.cluster for c in conversations]
    drawn: Counter[str] = Counter()
    order = []
    for place in np.random.default_rng(seed).permutation(len(conversations)):
        cluster = clusters[place]
        drawn[cluster] += 1
        order.append((drawn[cluster], len(order), place))
    return [conversations[place] for place in sorted(place for *_, place in sorted(order)[:size])]


def _check_catalog(truths: Collection[Item], catalog: Catalog, cfg: DataConfig, match: Matching) -> None:
    found = sum(catalog.find(item, match) is not None for item in truths)
    if not found:
        example = ", ".join(map(str, list(truths)[:3]))
        raise UserError(
            f"data={cfg.name}: none of the {len(truths)} ground truths (such as {example}) is in the catalog of "
            f"{len(catalog)} items (such as {', '.join(map(str, list(catalog)[:3]))}), so no list could earn "
            "a reward. Check that data.catalog belongs to data.path, and that titles and years are written alike."
        )
    if found < len(truths) / 2:
        _log.warning("Only %d of %d ground truths are in the catalog: the rest can never be hit.", found, len(truths))


@overload
def shown(conversations: Rows) -> Rows: ...
@overload
def shown(conversations: Sequence[Conversation]) -> Sequence[Conversation]: ...
def shown(conversations: Sequence[Conversation]) -> Sequence[Conversation]:
    """Return the conversations with a demonstration."""
    if isinstance(conversations, Rows):
        return conversations.chosen(np.flatnonzero(conversations.demonstrated))
    return [c for c in conversations if c.demonstration]


def with_demonstrations(conversations: Sequence[Conversation], n: int, name: str) -> Sequence[Conversation]:
    """Return the conversations with a demonstration, cut to `n`. Raises UserError if there is none."""

    def cut(conversation: Conversation) -> Conversation:
        return replace(conversation, demonstration=(conversation.demonstration or ())[:n])

    if isinstance(conversations, Rows):
        usable = shown(conversations).changed(cut)
    else:
        usable = [cut(c) for c in shown(conversations)]
    if not usable:
        raise UserError(
            f"data={name}: no training conversation has a demonstration, so there is nothing to imitate. Set "
            "data.demonstrations=neighbours to derive them from the training ground truths, or warm_start=null."
        )
    return usable
