"""Demonstrations of Stage 1: made once for each teacher, dataset and setup, found again by content, shared by all runs."""

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from convrec_r1.base.digest import of_code, of_files, of_model, of_rows, of_value
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import write_json, write_jsonl, write_text
from convrec_r1.base.locks import locked
from convrec_r1.base.options import walk
from convrec_r1.base.plugins import TARGET, plain, source_digests
from convrec_r1.cluster.blocks import LOOP, Blocks
from convrec_r1.data import Dataset
from convrec_r1.data.load import DEMONSTRATIONS, digests
from convrec_r1.data.schema import Conversation
from convrec_r1.data.stored import Rows
from convrec_r1.distill import card as cards
from convrec_r1.distill import export
from convrec_r1.distill.config import TeacherConfig
from convrec_r1.distill.forecast import Forecast, forecast
from convrec_r1.distill.measure import Measure, adjusted_items, card_values, evaluate_stages, score_parts
from convrec_r1.distill.pipeline import Setup, demonstrations, run
from convrec_r1.distill.teachers.base import Teacher, make_teacher
from convrec_r1.distill.teachers.cache import AnswerCache
from convrec_r1.distill.teachers.interview import Interview
from convrec_r1.evaluate.popularity import Popularity

_log = logging.getLogger(__name__)

CODE = ("base/draw", "lists", "matching", "data", "policy/prompts", "evaluate/popularity", "distill")
"""Code that decides the demonstrations."""


def find_or_make(
    setup: Setup, teacher: TeacherConfig, data: Dataset, measure: Measure, outputs: Path, each: Blocks = LOOP
) -> Path:
    """Return outputs/distilled/<key>/ with the demonstrations, made if necessary. Concurrent runs make them once.

    It holds dataset/ (data=jsonl), arrow/ (the published form of Reddit-v2), held_out/ (each stage's lists), card.json,
    card.md and card.png, and with distill.scores=true scores.jsonl.
    """
    asked = _teacher(setup, teacher)
    folder = outputs / "distilled" / key(setup, teacher, data, asked.identity)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(f"{folder}.lock"):
        if _is_complete(folder, setup):
            _log.info("Demonstrations: using %s", folder)
        else:
            _log.info("Demonstrations: making %s", folder)
            _make(setup, teacher, asked, data, measure, folder, each)
    return folder


def estimate(setup: Setup, teacher: TeacherConfig, data: Dataset, outputs: Path) -> list[Forecast]:
    """Estimate the questions that `find_or_make` would ask. Nothing is asked, started or written. Empty: already made."""
    asked = _teacher(setup, teacher)
    folder = outputs / "distilled" / key(setup, teacher, data, asked.identity)
    if _is_complete(folder, setup):
        _log.info("These demonstrations exist, nothing would be asked: %s", folder)
        return []
    with AnswerCache(Path(teacher.cache)) as cache:
        return forecast(setup, data, cache, asked.identity)


def with_distilled(data: Dataset, folder: Path) -> Dataset:
    """Return the dataset with the demonstrations in `folder` in place of its own.

    Raises UserError if they belong to other conversations.
    """
    found = export.read_demonstrations(folder)
    lists = {name: conversation.demonstration or () for name, conversation in found.items()}
    splits: dict[str, Sequence[Conversation]] = {}
    used = 0
    for split, conversations in data.splits.items():
        prepared = isinstance(conversations, Rows)
        names = conversations.ids if prepared else [conversation.id for conversation in conversations]
        places = [place for place, name in enumerate(names) if name in found]
        for place in places:
            if found[names[place]].messages != conversations[place].messages:
                raise UserError(
                    f"{folder}: the demonstration of {names[place]} was made for another conversation of that id. Distil "
                    "this dataset again (task=distill), or choose the data it was made from."
                )
        splits[split] = (
            conversations.with_lists(lists)
            if prepared
            else [replace(conversation, demonstration=lists.get(conversation.id)) for conversation in conversations]
        )
        used += len(places)
    if not used:
        raise UserError(
            f"{folder} has demonstrations for {len(found)} conversations, none of which is in this dataset."
        )
    _log.info("Demonstrations: %d of %d from %s", used, len(found), folder)
    same = {name: digest for name, digest in data.digests.items() if name != DEMONSTRATIONS}
    return replace(data, splits=splits, digests=same)


def key(setup: Setup, teacher: TeacherConfig, data: Dataset, identity: str) -> str:
    """Return a digest of everything that decides the demonstrations; `identity` is the teacher's."""
    embeds = setup.distill.remap.enabled and not setup.distill.as_said
    nodes = {"teacher": {TARGET: teacher._target_}, "match": plain(setup.match)}
    nodes |= {"embedder": plain(setup.embedder)} if embeds else {}
    contents = digests(data)
    parts = {
        "code": of_code(*CODE),
        "teacher": identity,
        # `scores` adds a file to the folder, and changes nothing in it.
        "distill": [pair for pair in _identity_options(setup.distill) if pair[0] != "scores"],
        "match": _identity_options(setup.match),
        "embedder": _identity_options(setup.embedder) if embeds else None,
        "contents": read_besides(setup, embeds=embeds),
        "sources": source_digests(nodes),
        "data": [contents[name] for name in ("catalog", "train", "validation")],
        "instruction": [setup.data.instruction, setup.data.domain],
        "n": setup.n,
        "seed": setup.data.seed,
    }
    return of_value(parts)


def read_besides(setup: Setup, *, embeds: bool = True) -> dict[str, str]:
    """Return digests of the other inputs of Stage 1: the items' metadata and the embedder's model."""
    source = Path(setup.distill.metadata).expanduser() if setup.distill.metadata else setup.adapter.metadata()
    metadata = of_files(source) if isinstance(source, Path) else of_rows(source or ())
    model = plain(setup.embedder)
    found = {"metadata": metadata}
    if embeds and model.get("model"):
        found["embedder"] = of_model(str(model["model"]), model.get("revision"))
    return found


def _identity_options(options: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name, value, bounds in walk(options) if bounds.identity]


def _teacher(setup: Setup, teacher: TeacherConfig) -> Teacher:
    sizes = {"train": setup.data.train_size, "validation": setup.data.validation_size}
    return make_teacher(teacher, seed=setup.data.seed, sizes=sizes)


def _is_complete(folder: Path, setup: Setup) -> bool:
    return (folder / "card.json").exists() and (not setup.distill.scores or (folder / "scores.jsonl").exists())


def _make(
    setup: Setup,
    cfg: TeacherConfig,
    teacher: Teacher,
    data: Dataset,
    measure: Measure,
    folder: Path,
    each: Blocks,
) -> None:
    started = time.monotonic()
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)  # of a killed run
    scratch.mkdir(parents=True)
    with AnswerCache(Path(cfg.cache)) as cache, Interview(teacher, cache, cfg) as interview:
        found = run(setup, data, interview, scratch, each)
    shutil.rmtree(scratch)
    made = demonstrations(found, data, setup.n, as_said=setup.distill.as_said)
    export.write_dataset(made, folder / "dataset")
    export.write_arrow(made, folder / "arrow", setup.data.instruction.format(n=setup.n))
    popularity = Popularity.in_training(data, setup.matching)
    evaluations = evaluate_stages(found, data, measure)
    for stage, evaluation in evaluations.items():
        evaluation.write_jsonl(folder / "held_out" / f"{stage}.jsonl")
    if found.adjustment is not None:
        write_jsonl(folder / "adjust.jsonl", adjusted_items(found.adjustment, popularity))
    if setup.distill.scores:
        write_jsonl(folder / "scores.jsonl", score_parts(found, data))
    values = card_values(setup, cfg, found, popularity, evaluations, measure)
    card = {**values, "asked": interview.counts.as_dict(), "seconds": time.monotonic() - started}
    write_text(folder / "card.md", cards.render(card))
    cards.figure(card, folder / "card.png")
    write_json(folder / "card.json", card)  # last: a folder with it is complete
