"""Stage 1: demonstrations made once per teacher, data and recipe, found again by content, and shared by every run."""

import itertools
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from omegaconf import OmegaConf

from convrec_r1 import __version__, lists
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import point, read_json, write_json, write_jsonl, write_text
from convrec_r1.base.plugins import build
from convrec_r1.config.schema import Config
from convrec_r1.data import Dataset
from convrec_r1.data.load import fingerprint, load_data
from convrec_r1.data.schema import SPLITS
from convrec_r1.distill import card as cards
from convrec_r1.distill import export
from convrec_r1.distill.forecast import forecast
from convrec_r1.distill.pipeline import Stage1, demonstrations, run
from convrec_r1.distill.skew import skew, truths_skew
from convrec_r1.distill.teachers.base import Teacher
from convrec_r1.distill.teachers.cache import AnswerCache
from convrec_r1.distill.teachers.interview import Interview
from convrec_r1.distill.teachers.registry import make_teacher
from convrec_r1.evaluate.popularity import Popularity
from convrec_r1.evaluate.runner import Evaluator
from convrec_r1.evaluate.scoring import Evaluation
from convrec_r1.evaluate.statistics import cluster_bootstrap, holm, paired_cluster_bootstrap
from convrec_r1.matching import Matching
from convrec_r1.run.folder import RunFolder
from convrec_r1.run.identity import as_dict
from convrec_r1.run.tracker import Tracker, rewind

_log = logging.getLogger(__name__)

# What decides how a distillation is made, and not what it is.
_HOW = {"distill": ("block", "scores", "dry_run"), "embedder": ("device", "batch_size")}


def distill(cfg: Config, folder: RunFolder, tracker: Callable[[], Tracker]) -> dict[str, Any]:
    """task=distill: make (or find) the demonstrations of `cfg`, and show their card. Returns what belongs in summary.json."""
    data = load_data(cfg.data, cfg.n, build(cfg.match, "match", Matching), need=["train"])
    made = find_or_make(cfg, data)
    card = read_json(made / "card.json")
    cards.show(card)
    for name in ("dataset", "arrow"):
        point(folder.path / name, os.path.relpath(made / name, folder.path))
    folder.figures.mkdir(exist_ok=True)
    shutil.copyfile(made / "card.png", folder.figures / "card.png")
    write_text(folder.path / "report.md", cards.render(card) + "\n![Stages and popularity](figures/card.png)\n")
    rewind(folder.metrics, -1)  # of a run that was cut off behind this
    log = tracker()
    values = {
        f"distill/{stage}/{name}": value
        for stage, found in card["held_out"].items()
        for name, value in found["metrics"].items()
        if not name.startswith("rank/")
    }
    log.log(0, "distill", values)
    log.close({})
    return {"demonstrations": str(made), "card": card}


def training_data(cfg: Config, need: Sequence[str]) -> Dataset:
    """The dataset with the demonstrations that `data.demonstrations` asks for."""
    data = load_data(cfg.data, cfg.n, build(cfg.match, "match", Matching), need=need)
    source = cfg.data.demonstrations
    if source in ("published", "neighbours"):
        return data
    made = find_or_make(cfg, data) if source == "distilled" else Path(source).expanduser()
    return with_distilled(data, made / "dataset")


def with_distilled(data: Dataset, folder: Path) -> Dataset:
    """The dataset with the demonstrations in `folder` in place of its own; a conversation that has none there has none.

    Raises UserError where they belong to other conversations, or to none of these.
    """
    found = export.read_demonstrations(folder)
    splits, used = {}, 0
    for split in SPLITS:
        conversations = []
        for conversation in data[split]:
            made = found.get(conversation.id)
            if made is not None and made.messages != conversation.messages:
                raise UserError(
                    f"{folder}: the demonstration of {conversation.id} was made for another conversation of that id. Distil "
                    "this dataset again (task=distill), or choose the data it was made from."
                )
            used += made is not None
            conversations.append(replace(conversation, demonstration=made.demonstration if made else None))
        splits[split] = conversations
    if not used:
        raise UserError(
            f"{folder} has demonstrations for {len(found)} conversations, none of which is in this dataset."
        )
    _log.info("Demonstrations: %d of %d from %s", used, len(found), folder)
    return Dataset(data.catalog, splits)


def dry_run(cfg: Config) -> None:
    """Say what Stage 1 would ask, and what that would cost. Nothing is asked, started or made."""
    data = load_data(cfg.data, cfg.n, build(cfg.match, "match", Matching), need=["train"])
    teacher = make_teacher(cfg)
    made = _folder(cfg, data, teacher)
    if _is_whole(made, cfg):
        _log.info("These demonstrations are made already, nothing would be asked: %s", made)
        return
    with AnswerCache(Path(cfg.teacher.cache)) as cache:
        cards.show_forecast(forecast(cfg, data, cache, teacher.identity), cfg.teacher)


def distilled_key(cfg: Config, data: Dataset, identity: str) -> str:
    """A digest of all that decides the demonstrations."""

    def plain(section: str) -> dict[str, Any]:
        values = as_dict(OmegaConf.structured(getattr(cfg, section)))
        return {key: value for key, value in values.items() if key not in _HOW[section]}

    asked = {split: [replace(c, demonstration=None) for c in data[split]] for split in ("train", "validation")}
    parts = {
        "version": __version__,
        "teacher": identity,
        "distill": plain("distill"),
        "embedder": plain("embedder") if cfg.distill.remap.enabled and not cfg.distill.as_said else None,
        "data": fingerprint(Dataset(data.catalog, asked)),
        "held_out": [asdict(c) for c in asked["validation"]],
        "instruction": [cfg.data.instruction, cfg.data.domain],
        "n": cfg.n,
        "seed": cfg.data.seed,
    }
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def find_or_make(cfg: Config, data: Dataset) -> Path:
    """outputs/distilled/<key>/ of this config, made if need be. Runs that start together make it once."""
    teacher = make_teacher(cfg)
    folder = _folder(cfg, data, teacher)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if _is_whole(folder, cfg):
            _log.info("Demonstrations: using %s", folder)
        else:
            _log.info("Demonstrations: making %s", folder)
            _make(cfg, data, teacher, folder)
    return folder


def _folder(cfg: Config, data: Dataset, teacher: Teacher) -> Path:
    return Path(cfg.outputs) / "distilled" / distilled_key(cfg, data, teacher.identity)


def _is_whole(folder: Path, cfg: Config) -> bool:
    return (folder / "card.json").exists() and (not cfg.distill.scores or (folder / "scores.jsonl").exists())


def _make(cfg: Config, data: Dataset, teacher: Teacher, folder: Path) -> None:
    started = time.monotonic()
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    scratch.mkdir(parents=True)
    with AnswerCache(Path(cfg.teacher.cache)) as cache, Interview(teacher, cache, cfg.teacher) as interview:
        found = run(cfg, data, interview, scratch)
    shutil.rmtree(scratch)
    made = demonstrations(found, data, cfg.n, as_said=cfg.distill.as_said)
    export.write_dataset(made, folder / "dataset")
    export.write_arrow(made, folder / "arrow", cfg.data.instruction.format(n=cfg.n))
    popularity = Popularity.from_conversations(data["train"], data.catalog)
    evaluations = _evaluate(cfg, found, data, popularity)
    for stage, evaluation in evaluations.items():
        evaluation.write_jsonl(folder / "held_out" / f"{stage}.jsonl")
    if found.adjustment is not None:
        write_jsonl(folder / "adjust.jsonl", _adjusted(found, data, popularity))
    if cfg.distill.scores:
        write_jsonl(folder / "scores.jsonl", _scores(found, data))
    card = _card(cfg, found, popularity, evaluations, interview.counts.as_dict(), time.monotonic() - started)
    write_text(folder / "card.md", cards.render(card))
    cards.figure(card, folder / "card.png")
    write_json(folder / "card.json", card)  # last of all: a folder that has it is whole


def _evaluate(cfg: Config, found: Stage1, data: Dataset, popularity: Popularity) -> dict[str, Evaluation]:
    """Each stage's lists of the held-out conversations, scored as a policy's lists are."""
    held_out = found.conversations[found.train :]
    if not held_out:
        return {}
    evaluator = Evaluator(cfg, data.catalog, popularity)
    items = list(data.catalog)
    texts = {"as_said": found.raw.texts[found.train :]}
    for stage, places in found.stages.items():
        texts[stage] = [lists.format(items[at] for at in row if at >= 0) for row in places[found.train :]]
    return {stage: evaluator.score(written, held_out) for stage, written in texts.items()}


def _card(cfg, found: Stage1, popularity, evaluations, asked, seconds: float) -> dict[str, Any]:
    options = {"n_resamples": cfg.eval.resamples, "level": cfg.eval.level}
    train = slice(0, found.train)
    named = [found.matches.index[ids] for ids in found.raw.lists[: found.train]]
    popular = {"matched": skew(np.concatenate(named) if named else np.empty(0, dtype=np.int64), popularity)}
    popular |= {stage: skew(places[train], popularity) for stage, places in found.stages.items() if stage != "matched"}
    adjustment = found.adjustment
    return {
        "version": __version__,
        "distill": cfg.distill.name,
        "data": cfg.data.name,
        "n": cfg.n,
        "ks": cfg.ks,
        "metric": cfg.metric,
        "level": cfg.eval.level,
        "teacher": {"name": cfg.teacher.name, "model": cfg.teacher.model},
        "embedder": " ".join(filter(None, [cfg.embedder.name, cfg.embedder.model])) if cfg.distill.remap.enabled else "none",
        "conversations": {"train": found.train, "held_out": len(found.conversations) - found.train},
        "seconds": seconds,
        "stages": found.seconds,
        "raw": found.raw.counts(),
        "matches": found.matches.shares(np.concatenate(found.raw.lists) if found.raw.lists else np.empty(0, dtype=np.int64)),
        "metadata": found.metadata,
        "reflect": asdict(found.judged) if found.judged else None,
        "adjust": adjustment and {
            "strength": adjustment.strength,
            "table": found.adjust_table,
            "iterations": adjustment.iterations,
            "w": np.percentile(adjustment.w, [5, 50, 95]).tolist(),
            "b": np.percentile(adjustment.b, [5, 50, 95]).tolist(),
        },
        "popularity": {**popular, "wanted": truths_skew(popularity)},
        "held_out": {
            stage: {"metrics": (summary := evaluation.summary()), "intervals": _intervals(evaluation, summary, cfg, options)}
            for stage, evaluation in evaluations.items()
        },
        "paired": _steps(evaluations, cfg.metric, options),
        "asked": asked,
    }  # fmt: skip


def _intervals(
    evaluation: Evaluation, summary: dict[str, float], cfg: Config, options
) -> dict[str, list[float | None]]:
    found = {}
    for name in (f"{stem}@{k}" for stem in ("ndcg", "recall") for k in cfg.ks):
        values, clusters, _ = evaluation.values(name)
        interval = cluster_bootstrap(values, clusters, **options)
        found[name] = [_finite(interval.low), _finite(interval.high)]
    return found


def _steps(evaluations: dict[str, Evaluation], metric: str, options) -> list[dict[str, Any]]:
    """Each stage against the one before it, on the same conversations; p-values after Holm."""
    names = list(evaluations)
    steps = []
    for before, stage in itertools.pairwise(names):
        a, clusters, _ = evaluations[stage].values(metric)
        b, _, _ = evaluations[before].values(metric)
        found = paired_cluster_bootstrap(a, b, clusters, **options)
        steps.append({"stage": stage, "against": before} | {k: _finite(v) for k, v in found._asdict().items()})
    tested = [step for step in steps if step["p_value"] is not None]
    for step, p in zip(tested, holm([step["p_value"] for step in tested]) if tested else [], strict=True):
        step["p_holm"] = float(p)
    return steps


def _adjusted(found: Stage1, data: Dataset, popularity: Popularity) -> list[dict[str, Any]]:
    assert found.adjustment is not None
    return [
        {"title": item.title, "year": item.year, "wanted": int(count), "w": float(w), "b": float(b)}
        for item, count, w, b in zip(
            data.catalog, popularity.counts, found.adjustment.w, found.adjustment.b, strict=True
        )
    ]


def _scores(found: Stage1, data: Dataset) -> Iterator[dict[str, Any]]:
    """A row a conversation: the items of its last list, and what each one's score is made of."""
    items = list(data.catalog)
    stage, chosen = list(found.stages.items())[-1]
    for row, conversation in enumerate(found.conversations):
        named = found.matches.index[found.raw.lists[row]].tolist()
        listed = [
            {
                "item": str(items[place]),
                "teacher_rank": named.index(place) + 1 if place in named else None,
                **{name: round(float(values[row, column]), 5) for name, values in found.parts.items()},
            }
            for column, place in enumerate(chosen[row].tolist())
            if place >= 0
        ]
        wanted = [str(item) for item in conversation.ground_truth]
        yield {"id": conversation.id, "split": conversation.split, "stage": stage, "wanted": wanted, "list": listed}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
