"""Config -> dataset: choose the adapter, cut to size, and refuse what could not be trained on."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from convrec_r1.base.errors import UserError
from convrec_r1.data import movieland
from convrec_r1.data.adapters import jsonl, reddit_v2, redial
from convrec_r1.data.config import DataConfig, PromptStyle
from convrec_r1.data.demonstrations import add_demonstrations
from convrec_r1.data.schema import SPLITS, Conversation, Dataset

_log = logging.getLogger(__name__)

_READERS = {"reddit_v2": reddit_v2.load, "redial": redial.load, "jsonl": jsonl.load}


def load_data(cfg: DataConfig, n: int, *, need: Sequence[str] = SPLITS) -> Dataset:
    """The dataset of `cfg`, cut to its sizes, with demonstrations of at most `n` items.

    Raises UserError for anything malformed in the files, for a split of `need` that is empty, and for a catalog that
    holds none of the ground truths (nothing could ever be rewarded).
    """
    sizes: dict[str, int | None] = {
        "train": cfg.train_size, "validation": cfg.validation_size, "test": cfg.test_size,
    }  # fmt: skip
    if cfg.adapter == "movieland":
        given = {split: size for split, size in sizes.items() if size is not None}
        data = movieland.load(seed=cfg.seed, n_items=n, sizes={**movieland.SIZES, **given})
    else:
        path = _path(cfg.path)
        assert path is not None  # config/checks.py: an adapter that reads files has a data.path
        data = _READERS[cfg.adapter](path, catalog_path=_path(cfg.catalog))
        data = Dataset(data.catalog, {split: _cut(data[split], sizes[split], cfg.seed) for split in SPLITS})
    _check_splits(data, need, cfg)
    _check_catalog(data, cfg)
    if cfg.prompt is PromptStyle.ours:
        splits = {split: [_plain(c) for c in data[split]] for split in SPLITS}
        data = Dataset(data.catalog, splits)
    if cfg.demonstrations == "neighbours":
        data = add_demonstrations(data, n)
    _log.info(
        "Data %s: %d items; conversations: %s", cfg.name, len(data.catalog),
        ", ".join(f"{len(data[split]):,} {split}" for split in SPLITS),
    )  # fmt: skip
    return data


def fingerprint(data: Dataset) -> str:
    """A digest of the catalog and the training conversations: what a warm start learns from."""
    digest = hashlib.blake2b(digest_size=16)
    for item in data.catalog:
        digest.update(json.dumps(item).encode())
    for conversation in data["train"]:
        digest.update(json.dumps(asdict(conversation), sort_keys=True).encode())
    return digest.hexdigest()


def _path(path: str | None) -> Path | None:
    return Path(path).expanduser() if path else None


def _cut(conversations: list[Conversation], size: int | None, seed: int) -> list[Conversation]:
    """`size` conversations chosen by `seed`, in their order; a smaller choice is part of a larger one."""
    if size is None or size >= len(conversations):
        return conversations
    chosen = np.sort(np.random.default_rng(seed).permutation(len(conversations))[:size])
    return [conversations[i] for i in chosen]


def _plain(conversation: Conversation) -> Conversation:
    """The dialogue alone, where a dataset publishes whole prompts; our own instruction is put before it later."""
    return reddit_v2.without_instruction(conversation) if conversation.has_instruction else conversation


def _check_splits(data: Dataset, need: Sequence[str], cfg: DataConfig) -> None:
    empty = [split for split in need if not data[split]]
    if empty:
        raise UserError(
            f"data={cfg.name}: no conversations in the split {', '.join(empty)} of {cfg.path}. "
            "Add the missing file, or rows with that split, to data.path."
        )


def _check_catalog(data: Dataset, cfg: DataConfig) -> None:
    truths = {item for split in SPLITS for c in data[split] for item in c.ground_truth}
    found = sum(item in data.catalog for item in truths)
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
    """Those that the warm start can learn from, demonstrations cut to `n`. Raises UserError where there are none."""
    usable = [replace(c, demonstration=c.demonstration[:n]) for c in conversations if c.demonstration]
    if not usable:
        raise UserError(
            f"data={name}: no training conversation has a demonstration, so there is nothing to imitate. Set "
            "data.demonstrations=neighbours to derive them from the training ground truths, or warm_start=null."
        )
    return usable
