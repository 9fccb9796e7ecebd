"""Stage 1 from end to end: ask -> match -> remap -> reflect -> adjust -> choose (Stage 1 of arXiv 2510.20150)."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from convrec_r1.base.plugins import build
from convrec_r1.base.progress import bar
from convrec_r1.cluster.blocks import LOOP, Blocks
from convrec_r1.data.adapters.base import Adapter
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.config import DataConfig
from convrec_r1.data.load import make_adapter
from convrec_r1.data.schema import Conversation, Dataset
from convrec_r1.distill.adjust import Adjustment, Validated, cross_validate, fit_adjust
from convrec_r1.distill.answers import recommended
from convrec_r1.distill.config import DistillConfig, RemapConfig
from convrec_r1.distill.embedders.base import Embedder
from convrec_r1.distill.match import Matcher, Matches
from convrec_r1.distill.metadata import described_metadata, key, known_metadata
from convrec_r1.distill.questions import recommend
from convrec_r1.distill.reflect import JudgeCounts, reflect
from convrec_r1.distill.remap import RemapInputs, remap_block, remap_rows
from convrec_r1.distill.scores import ScoreStore, blocks
from convrec_r1.distill.teachers.interview import Interview
from convrec_r1.evaluate.popularity import ItemIndex, Popularity
from convrec_r1.lists import Item
from convrec_r1.matching import Matching
from convrec_r1.policy.prompts import dialogue

_log = logging.getLogger(__name__)

_BLOCK = 1024
"""Conversations whose scores are computed together."""


@dataclass(frozen=True)
class Setup:
    """What decides the demonstrations, besides the teacher and the dataset."""

    distill: DistillConfig
    embedder: Any
    """A node with `_target_`."""
    data: DataConfig
    match: Any
    """A node with `_target_`: the rule for "the same item"."""
    n: int
    """Items in a list."""

    @cached_property
    def matching(self) -> Matching:
        return build(self.match, "match", Matching)

    @property
    def adapter(self) -> Adapter:
        return make_adapter(self.data, self.n, self.matching)


@dataclass(frozen=True)
class RawLists:
    """The teacher's lists for M conversations."""

    texts: list[str]
    """[M] the answers, unchanged."""
    items: list[Item]
    """C_T: every item named, once (same folded title and year)."""
    lists: list[np.ndarray]
    """[M] places in `items`, best first, each once in a list."""


@dataclass
class Stage1:
    """Lists of each stage, and the numbers for the card."""

    conversations: list[Conversation]
    train: int
    """Number of training conversations, which come first; the others are held out."""
    raw: RawLists
    matches: Matches
    stages: dict[str, np.ndarray] = field(default_factory=dict)
    """[M, n] places in the catalog, best first, -1 after the last. The last stage is the result."""
    metadata: dict[str, int] = field(default_factory=dict)
    judged: JudgeCounts | None = None
    adjustment: Adjustment | None = None
    adjust_table: list[Validated] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    candidates: np.ndarray | None = None
    """[M, N_r] places that were judged, -1 after the last."""
    ratings: np.ndarray | None = None
    """[M, N_r] r of each."""
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    """Parts of the scores of the last stage's lists, [M, n] each (distill.scores): see `_parts`."""

    @property
    def chosen(self) -> np.ndarray:
        """The lists of the last stage."""
        return list(self.stages.values())[-1]

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[stage] = time.monotonic() - start


def run(setup: Setup, data: Dataset, interview: Interview, scratch: Path, each: Blocks = LOOP) -> Stage1:
    """Run Stage 1 on the training conversations and on the held-out ones.

    Args:
        setup: what decides the demonstrations.
        data: the dataset.
        interview: asks the teacher.
        scratch: folder that holds the scores meanwhile.
        each: how blocks of conversations are scored: one after another, or on the nodes of a cluster.
    Raises:
        UserError: problems with the teacher, the disk or a metadata file.
    """
    cfg, n, items = setup.distill, setup.n, list(data.catalog)
    conversations = asked_about(cfg, data)
    start = time.monotonic()
    raw = _ask_lists(interview, conversations, n, setup.data.instruction)
    popularity = Popularity.in_training(data, setup.matching)
    matches = Matcher(items, popularity.counts, setup.matching, cfg.match.fuzzy).match(raw.items)
    found = Stage1(conversations, len(data["train"]), raw, matches)
    found.seconds["teacher"] = time.monotonic() - start
    heard = conversations_only(setup.adapter, conversations)
    seen = _seen(conversations, items, setup.matching)
    named = [pd.unique(places[places >= 0]) for places in (matches.index[ids] for ids in raw.lists)]
    found.stages["matched"] = lists = np.full((len(named), n), -1, dtype=np.int64)
    for row, (places, excluded) in enumerate(zip(named, seen, strict=True)):
        kept = places[~np.isin(places, excluded)][:n]
        lists[row, : len(kept)] = kept
    if cfg.as_said:
        return found
    with found.timed("metadata and embeddings"):
        inputs = _inputs(setup, items, interview, found, heard)
    # Without Remap, items that the teacher did not name have no score, and are neither judged nor listed.
    only = None if cfg.remap.enabled else named
    with ScoreStore(scratch, len(conversations), len(items)) as store:
        with found.timed("remap"), bar("Remap", len(conversations)) as progress:
            spans = blocks(len(conversations), _BLOCK)
            for rows, scores in zip(spans, each.map(remap_rows, spans, inputs, cfg.remap), strict=True):
                store.write(rows, scores)
                progress.advance(len(rows))
        if cfg.remap.enabled:
            found.stages["remap"] = store.top(n, exclude=seen)
        if cfg.reflect.enabled:
            with found.timed("reflect"):
                shown = found.candidates = store.top(cfg.reflect.candidates, exclude=seen, only=only)
                about = {"domain": setup.data.domain, "seed": setup.data.seed}
                found.ratings, found.judged = reflect(interview, heard, shown, items, cfg.reflect, **about)
                row, column = np.nonzero(shown >= 0)
                store.add(row, shown[row, column], cfg.reflect.gamma * found.ratings[row, column])
                found.stages["reflect"] = store.top(n, exclude=seen, only=only)
        if cfg.adjust.enabled:
            with found.timed("adjust"):
                found.adjustment = fitted = _adjust(setup, data.catalog, store, found, each)
                found.stages["adjust"] = store.top(n, exclude=seen, only=only, scale=fitted.w, shift=fitted.b)
        if cfg.scores:
            found.parts = _parts(cfg.remap, found, inputs, store)
    return found


def asked_about(cfg: DistillConfig, data: Dataset) -> list[Conversation]:
    """Return the training conversations, then the held-out ones."""
    return [*data["train"], *data["validation"][: cfg.held_out]]


def conversations_only(adapter: Adapter, conversations: Sequence[Conversation]) -> list[Conversation]:
    """Return the conversations without published instructions: what Remap embeds and the judge reads.

    An instruction is the same in every prompt, and its words (movie, conversation) would draw the same items to all of them.
    """
    heard = [adapter.without_instruction(c) if c.has_instruction else c for c in conversations]
    uncut = sum(c.has_instruction and c.messages == h.messages for c, h in zip(conversations, heard, strict=True))
    if uncut:
        _log.warning(
            "%d published prompts are used whole as context: where the instruction ends is not known. Separate it with the "
            "words `Here is the conversation:`, or give the turns as messages, without has_instruction.",
            uncut,
        )
    return heard


def demonstrations(found: Stage1, data: Dataset, n: int, *, as_said: bool) -> Dataset:
    """Return the dataset with the last stage's lists as demonstrations (as_said: the teacher's own first n items).

    Conversations without a list, and those that were not asked about, have no demonstration.
    """
    items = list(data.catalog)
    made: dict[str, tuple[Item, ...]] = {}
    for conversation, text, chosen in zip(found.conversations, found.raw.texts, found.chosen, strict=True):
        made[conversation.id] = tuple(recommended(text)[:n] if as_said else [items[at] for at in chosen if at >= 0])
    splits = {
        split: [replace(c, demonstration=made.get(c.id) or None) for c in conversations]
        for split, conversations in data.splits.items()
    }
    return Dataset(data.catalog, splits)


def _ask_lists(interview: Interview, conversations: Sequence[Conversation], n: int, instruction: str) -> RawLists:
    """Ask for a list of `n` for each conversation, and number the items. Of a longer list the first `n` items count."""
    answers = interview.ask([recommend(c, n, instruction) for c in conversations], "Teacher's lists")
    named = [recommended(answer.text)[:n] for answer in answers]
    items: dict[tuple[str, int | None], Item] = {}
    for item in chain.from_iterable(named):
        items.setdefault(key(item), item)
    place = {name: at for at, name in enumerate(items)}
    lists = [np.array([place[key(item)] for item in listed], dtype=np.int64) for listed in named]
    return RawLists([answer.text for answer in answers], list(items.values()), lists)


def _inputs(
    setup: Setup, items: list[Item], interview: Interview, found: Stage1, heard: Sequence[Conversation]
) -> RemapInputs:
    """Embed the catalog's items, the teacher's items and the conversations as `heard`: without instructions."""
    cfg, index = setup.distill, found.matches.index
    if not cfg.remap.enabled:
        return RemapInputs(found.raw.lists, index, len(items))
    in_files = known_metadata(cfg.metadata, setup.adapter, setup.data.name)
    # A teacher's item that matches a catalog item has its metadata, with whatever year the teacher gave.
    foreign = [item for item, at in zip(found.raw.items, index, strict=True) if at < 0]
    wanted = list(dict.fromkeys([*items, *foreign]))
    texts = {item: in_files[key(item)].text() for item in wanted if key(item) in in_files}
    from_files = len(texts)
    if cfg.describe:
        unknown = [item for item in wanted if item not in texts]
        answered = described_metadata(interview, unknown, domain=setup.data.domain, batch=cfg.describe_batch)
        texts |= {item: metadata.text() for item, metadata in answered.items()}
    found.metadata = {"file": from_files, "teacher": len(texts) - from_files, "none": len(wanted) - len(texts)}
    embedder = build(setup.embedder, "embedder", Embedder)
    # Rows: the catalog's items, then the foreign ones, in the order of the teacher's items.
    vectors, conversations = embedder.embed(
        [texts.get(item) or str(item) for item in (*items, *foreign)], [dialogue(c) for c in heard]
    )
    rows = np.where(index >= 0, index, len(items) + np.cumsum(index < 0) - 1)
    return RemapInputs(found.raw.lists, index, len(items), vectors[: len(items)], vectors[rows], conversations)


def _adjust(setup: Setup, catalog: Catalog, store: ScoreStore, found: Stage1, each: Blocks) -> Adjustment:
    cfg, train, places = setup.distill.adjust, found.conversations[: found.train], ItemIndex(catalog, setup.matching)
    truths = [
        np.array([at for at in dict.fromkeys(map(places.find, c.ground_truth)) if at is not None], dtype=np.int64)
        for c in train
    ]
    strength = cfg.strength
    if strength is None:
        strength, found.adjust_table = cross_validate(
            store,
            range(found.train),
            truths,
            cfg.strengths,
            folds=cfg.folds,
            clusters=[c.cluster for c in train],
            cv_size=cfg.cv_size,
            seed=setup.data.seed,
            each=each,
        )
    return fit_adjust(store, range(found.train), truths, strength, each)


def _seen(conversations: Sequence[Conversation], items: Sequence[Item], match: Matching) -> list[np.ndarray]:
    """Return for each conversation the places of the catalog items with a seen title."""
    by_title: dict[str, list[int]] = {}
    for at, item in enumerate(items):
        by_title.setdefault(match.key(item.title), []).append(at)
    return [
        np.array(sorted({at for title in match.seen_keys(c.seen) for at in by_title.get(title, ())}), dtype=np.int64)
        for c in conversations
    ]


def _parts(cfg: RemapConfig, found: Stage1, inputs: RemapInputs, store: ScoreStore) -> dict[str, np.ndarray]:
    """Return the parts of the scores of the last stage's lists, [M, n] each, 0 after the last item:

    similarity  p^T S_item          exact  p^T I_exact        context  lambda s_context
    rating      r (0: not judged)   score  s after Reflect    final    w * s + b
    """
    chosen, adjusted = found.chosen, found.adjustment
    names = ("similarity", "exact", "context", "rating", "score", "final")
    parts = {name: np.zeros(chosen.shape, dtype=np.float32) for name in names}
    without_lists = replace(inputs, lists=[np.empty(0, dtype=np.int64)] * len(inputs.lists))
    for rows in blocks(len(chosen), _BLOCK):
        part = slice(rows.start, rows.stop)
        row, column = np.nonzero(chosen[part] >= 0)
        place = chosen[part][row, column]
        exact = remap_block(inputs, rows, RemapConfig(enabled=False))[row, place]
        score = store.read(rows)[row, place]
        values = {"exact": exact, "score": score}
        values["final"] = score if adjusted is None else adjusted.w[place] * score + adjusted.b[place]
        if cfg.enabled:
            values["context"] = remap_block(without_lists, rows, cfg)[row, place]
            values["similarity"] = remap_block(inputs, rows, cfg)[row, place] - exact - values["context"]
        if found.candidates is not None and found.ratings is not None:
            judged = found.candidates[part][row] == place[:, None]  # [items listed, N_r]
            values["rating"] = (judged * found.ratings[part][row]).sum(axis=1)
        for name, value in values.items():
            parts[name][part][row, column] = value
    return parts
