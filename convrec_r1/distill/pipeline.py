"""Stage 1 from end to end: ask -> match -> remap -> reflect -> adjust -> choose (design section 8)."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from convrec_r1.base.progress import bar
from convrec_r1.config.schema import Config
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation, Dataset
from convrec_r1.distill import known
from convrec_r1.distill.adjust import Adjustment, cross_validate, fit_adjust
from convrec_r1.distill.answers import recommended
from convrec_r1.distill.config import RemapConfig
from convrec_r1.distill.describe import describe_items
from convrec_r1.distill.embedders.registry import make_embedder
from convrec_r1.distill.match import Matcher, Matches
from convrec_r1.distill.raw import RawLists, ask_lists
from convrec_r1.distill.reflect import JudgeCounts, reflect
from convrec_r1.distill.remap import RemapInputs, remap_block
from convrec_r1.distill.scores import ScoreStore
from convrec_r1.distill.teachers.interview import Interview
from convrec_r1.evaluate.popularity import ItemIndex, Popularity
from convrec_r1.lists import Item, fold
from convrec_r1.policy.prompts import dialogue

_log = logging.getLogger(__name__)

_REFLECT_BLOCK = 8
"""Blocks of scores whose candidates are judged together: their questions are in memory at a time."""


@dataclass
class Stage1:
    """What came of it: lists a stage, and the numbers for the data card."""

    conversations: list[Conversation]
    train: int
    """The first so many are training conversations, the others are held out."""
    raw: RawLists
    matches: Matches
    stages: dict[str, np.ndarray] = field(default_factory=dict)
    """[M, n] places in the catalog, best first, -1 where a list is shorter; the last one is the result."""
    metadata: dict[str, int] = field(default_factory=dict)
    judged: JudgeCounts | None = None
    adjustment: Adjustment | None = None
    adjust_table: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    candidates: np.ndarray | None = None
    """[M, N_r] places that were judged, -1 where there were fewer."""
    ratings: np.ndarray | None = None
    """[M, N_r] r of each."""
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    """What the scores of the last stage's lists are made of, [M, n] each (distill.scores): see `_parts`."""


def run(cfg: Config, data: Dataset, interview: Interview, scratch: Path) -> Stage1:
    """Stage 1 on the training conversations, and on those of the validation split that its stages are measured on.

    `scratch` holds the scores meanwhile. Raises UserError for what the teacher, the disk or a file of metadata refuses.
    """
    conversations = asked_about(cfg, data)
    clock = time.monotonic()
    raw = ask_lists(interview, conversations, cfg.n, cfg.data.instruction)
    popularity = Popularity.from_conversations(data["train"], data.catalog)
    matches = Matcher(data.catalog, popularity.counts, cfg.distill.match).match(raw.items)
    found = Stage1(conversations, len(data["train"]), raw, matches)
    found.seconds["teacher"] = time.monotonic() - clock
    seen = _seen(conversations, data.catalog)
    named = [_distinct(matches.index[ids]) for ids in raw.lists]
    found.stages["matched"] = _first_unseen(named, seen, cfg.n)
    if cfg.distill.as_said:
        return found
    inputs = _inputs(cfg, data.catalog, interview, found)
    size = len(data.catalog)
    with ScoreStore(scratch, len(conversations), size) as store:
        # Without Remap an item that the teacher did not name has no score: Reflect judges, and lists hold, what it named.
        only = None if cfg.distill.remap.enabled else named
        clock = time.monotonic()
        with bar("Remap", len(conversations)) as progress:
            for rows in blocks(len(conversations), cfg.distill.block):
                store.write(rows, remap_block(inputs, rows, cfg.distill.remap))
                progress.advance(len(rows))
        if cfg.distill.remap.enabled:
            found.stages["remap"] = store.top(cfg.n, exclude=seen)
        found.seconds["remap"] = time.monotonic() - clock
        if cfg.distill.reflect.enabled:
            clock = time.monotonic()
            _reflect(cfg, interview, found, list(data.catalog), store, seen, only)
            found.stages["reflect"] = store.top(cfg.n, exclude=seen, only=only)
            found.seconds["reflect"] = time.monotonic() - clock
        if cfg.distill.adjust.enabled:
            clock = time.monotonic()
            _adjust(cfg, data, store, found)
            assert found.adjustment is not None
            found.stages["adjust"] = store.top(
                cfg.n, exclude=seen, only=only, scale=found.adjustment.w, shift=found.adjustment.b
            )
            found.seconds["adjust"] = time.monotonic() - clock
        if cfg.distill.scores:
            found.parts = _parts(cfg, found, inputs, store)
    return found


def asked_about(cfg: Config, data: Dataset) -> list[Conversation]:
    """The training conversations, then those that the stages are measured on."""
    return [*data["train"], *data["validation"][: cfg.distill.held_out]]


def demonstrations(found: Stage1, data: Dataset, n: int, *, as_said: bool) -> Dataset:
    """The dataset with the last stage's lists as demonstrations (as_said: the teacher's own first n items, whatever they are).

    A conversation without a list keeps none. Those that were not asked about have none either: no other list gets among them.
    """
    items = list(data.catalog)
    chosen = list(found.stages.values())[-1]
    made: dict[str, tuple[Item, ...]] = {}
    for row, conversation in enumerate(found.conversations):
        listed = recommended(found.raw.texts[row])[:n] if as_said else [items[at] for at in chosen[row] if at >= 0]
        made[conversation.id] = tuple(listed)
    splits = {
        split: [replace(c, demonstration=made.get(c.id) or None) for c in conversations]
        for split, conversations in data.splits.items()
    }
    return Dataset(data.catalog, splits)


def blocks(total: int, size: int) -> list[range]:
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def _inputs(cfg: Config, catalog: Catalog, interview: Interview, found: Stage1) -> RemapInputs:
    """Vectors of the catalog's items, the teacher's items and the conversations."""
    items = list(catalog)
    if not cfg.distill.remap.enabled:
        return RemapInputs(found.raw.lists, found.matches.index, len(items))
    clock = time.monotonic()
    in_files = known.metadata(cfg)
    # A teacher's item that is one of the catalog's has that one's metadata, whatever the year it was given.
    foreign = [item for item, at in zip(found.raw.items, found.matches.index, strict=True) if at < 0]
    wanted = list(dict.fromkeys([*items, *foreign]))
    texts = {item: in_files[key].text() for item in wanted if (key := (fold(item.title), item.year)) in in_files}
    from_files = len(texts)
    if cfg.distill.describe:
        unknown = [item for item in wanted if item not in texts]
        answered = describe_items(interview, unknown, domain=cfg.data.domain, batch=cfg.distill.describe_batch)
        texts |= {item: metadata.text() for item, metadata in answered.items()}
    found.metadata = {"file": from_files, "teacher": len(texts) - from_files, "none": len(wanted) - len(texts)}
    texts |= {item: str(item) for item in wanted if item not in texts}
    embedder = make_embedder(cfg.embedder)
    of_catalog = [texts[item] for item in items]
    of_teacher = [
        of_catalog[at] if at >= 0 else texts[item]
        for item, at in zip(found.raw.items, found.matches.index.tolist(), strict=True)
    ]
    embedder.fit([*of_catalog, *(texts[item] for item in foreign)])
    inputs = RemapInputs(
        found.raw.lists,
        found.matches.index,
        len(items),
        catalog=embedder.items(of_catalog),
        teacher=embedder.items(of_teacher),
        conversations=embedder.conversations([dialogue(c) for c in found.conversations]),
    )
    found.seconds["metadata and embeddings"] = time.monotonic() - clock
    return inputs


def _reflect(cfg: Config, interview: Interview, found: Stage1, items, store: ScoreStore, seen, only) -> None:
    """Add gamma r to the scores of each conversation's candidates."""
    conversations, settings = found.conversations, cfg.distill.reflect
    parts = blocks(len(conversations), _REFLECT_BLOCK * cfg.distill.block)
    found.judged = JudgeCounts()
    found.candidates = candidates = store.top(settings.candidates, exclude=seen, only=only)
    found.ratings = np.zeros(candidates.shape, dtype=np.float32)
    for number, rows in enumerate(parts, start=1):
        title = f"Reflect {number}/{len(parts)}" if len(parts) > 1 else "Reflect"
        part = slice(rows.start, rows.stop)
        judged, counted = reflect(
            interview, conversations[part], candidates[part], items, settings,
            domain=cfg.data.domain, seed=cfg.data.seed, title=title,
        )  # fmt: skip
        found.judged.add(counted)
        found.ratings[part] = judged
        row, column = np.nonzero(candidates[part] >= 0)
        store.add(row + rows.start, candidates[part][row, column], settings.gamma * judged[row, column])


def _adjust(cfg: Config, data: Dataset, store: ScoreStore, found: Stage1) -> None:
    settings = cfg.distill.adjust
    train = range(found.train)
    places = ItemIndex(data.catalog)
    truths = [
        np.array([at for item in c.ground_truth if (at := places.find(item)) is not None], dtype=np.int64)
        for c in found.conversations[: found.train]
    ]
    strength = settings.strength
    if strength is None:
        clusters = [c.cluster for c in found.conversations[: found.train]]
        validated = cross_validate(
            store, train, truths, settings.strengths,
            folds=settings.folds, clusters=clusters, cv_size=settings.cv_size, seed=cfg.data.seed,
        )  # fmt: skip
        strength, found.adjust_table = validated.best, [asdict(row) for row in validated.table]
    found.adjustment = fit_adjust(store, train, truths, strength)


def _seen(conversations: Sequence[Conversation], catalog: Catalog) -> list[np.ndarray]:
    """Places of the catalog items that carry a title the user has seen, for each conversation."""
    by_title: dict[str, list[int]] = {}
    for at, item in enumerate(catalog):
        by_title.setdefault(fold(item.title), []).append(at)
    return [
        np.array(sorted({at for title in c.seen for at in by_title.get(fold(title), ())}), dtype=np.int64)
        for c in conversations
    ]


def _distinct(places: np.ndarray) -> np.ndarray:
    """The places that are in the catalog, in order, each once."""
    return np.array(list(dict.fromkeys(places[places >= 0].tolist())), dtype=np.int64)


def _first_unseen(named: Sequence[np.ndarray], seen: Sequence[np.ndarray], n: int) -> np.ndarray:
    lists = np.full((len(named), n), -1, dtype=np.int64)
    for row, (places, excluded) in enumerate(zip(named, seen, strict=True)):
        kept = places[~np.isin(places, excluded)][:n]
        lists[row, : len(kept)] = kept
    return lists


def _parts(cfg: Config, found: Stage1, inputs: RemapInputs, store: ScoreStore) -> dict[str, np.ndarray]:
    """For the items of the last stage's lists, [M, n] each, 0 where a list is shorter:

    similarity  p^T S_item          exact  p^T I_exact        context  lambda s_context
    rating      r (0: not judged)   score  s after Reflect    final    w * s + b
    """
    chosen = list(found.stages.values())[-1]
    names = ("similarity", "exact", "context", "rating", "score", "final")
    parts = {name: np.zeros(chosen.shape, dtype=np.float32) for name in names}
    off = RemapConfig(enabled=False)
    silent = replace(inputs, lists=[np.empty(0, dtype=np.int64)] * len(inputs.lists))  # their context alone has a say
    for rows in blocks(len(chosen), cfg.distill.block):
        part = slice(rows.start, rows.stop)
        row, column = np.nonzero(chosen[part] >= 0)
        place = chosen[part][row, column]
        found_here = {"exact": remap_block(inputs, rows, off)[row, place], "score": store.read(rows)[row, place]}
        if cfg.distill.remap.enabled:
            found_here["context"] = remap_block(silent, rows, cfg.distill.remap)[row, place]
            whole = remap_block(inputs, rows, cfg.distill.remap)[row, place]
            found_here["similarity"] = whole - found_here["exact"] - found_here["context"]
        if found.candidates is not None and found.ratings is not None:
            rated = np.zeros((len(rows), store.columns), dtype=np.float32)
            judged, at = np.nonzero(found.candidates[part] >= 0)
            rated[judged, found.candidates[part][judged, at]] = found.ratings[part][judged, at]
            found_here["rating"] = rated[row, place]
        adjusted = found.adjustment
        score = found_here["score"]
        found_here["final"] = score if adjusted is None else adjusted.w[place] * score + adjusted.b[place]
        for name, values in found_here.items():
            parts[name][part][row, column] = values
    return parts
