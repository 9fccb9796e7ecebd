"""The model card: README.md of a published policy, made from the record of its run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedTokenizerBase

from convrec_r1.base.tables import Column, Table, plain
from convrec_r1.data.schema import Conversation, Message
from convrec_r1.evaluate.labels import LABELS
from convrec_r1.policy import templates
from convrec_r1.policy.prompts import chat
from convrec_r1.serve.hub.config import PublishConfig
from convrec_r1.serve.hub.trained import Trained
from convrec_r1.studies.numbers import NONE, p_value

_OWN = ("logger", "loggers", "kept", "compare", "cluster", "publish", "hub", "serve", "host", "port")
"""Sections and keys of a config that say where and how, and not what."""
_EXAMPLE = "I would like something new for tonight. What do you recommend?"
_QUALITY = ("catalog/valid", "list/duplicates", "list/seen")
_STAGE = {"sft": "Supervised fine-tuning (SFT) on demonstrations"}
FIGURE = "figures/run.png"


def render(run: Trained, name: str, options: PublishConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of README.md.

    Args:
        name: id on the Hub, or the folder's name.
        tokenizer: with its chat template.
    """
    settings, catalog = run.package.settings, options.catalog and run.package.catalog is not None
    environment = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8"))
    asked = chat(Conversation("", "", (Message("user", _EXAMPLE),), ()), settings.instruction.format(n=settings.n))
    known = templates.arguments(str(tokenizer.get_chat_template()), settings.template, settings.date)
    body = template.render(
        title=plain(options.title or name.rpartition("/")[2]),
        summary=_summary(run),
        results="\n".join(_results(run).markdown()),
        measured=_measured(run),
        sentences=_sentences(run),
        figure=FIGURE if (run.folder.path / FIGURE).is_file() else None,
        name=name,
        n=settings.n,
        held="each in the catalog, none twice, none seen" if catalog else "held to the catalog that you give",
        catalog_argument="" if catalog else ', catalog="catalog.csv"',
        example=_EXAMPLE,
        prompt=json.dumps(asked[0]["content"], ensure_ascii=False),
        arguments="".join(f", {key}={value!r}" for key, value in known.items() if not callable(value)),
        intended=_intended(run),
        limits=_limits(run, catalog=catalog),
        recipe="\n".join(_recipe(run).markdown()),
        license=_license(options),
    )
    return f"---\n{_metadata(run, name, options)}\n---\n\n{body}"


def _metadata(run: Trained, name: str, options: PublishConfig) -> str:
    """Return the YAML that the Hub reads."""
    values = run.summary["metrics"][run.system]
    data, split = run.config["data.name"], run.summary["split"]
    results = [
        EvalResult(
            task_type="text-generation", task_name="Conversational recommendation", dataset_type=data, dataset_name=data,
            dataset_split=split, metric_type=metric, metric_name=run.write.label(metric), metric_value=round(values[metric], 6),
        )
        for metric in run.summary["intervals"][run.system]
    ]  # fmt: skip
    card = ModelCardData(
        base_model=run.base_model,
        library_name="transformers",
        pipeline_tag="text-generation",
        license=options.license,
        datasets=list(options.datasets) or None,
        language=list(options.language) or None,
        tags=["convrec-r1", "recommendation", "conversational-recommendation", run.system.replace("_", "-")],
        model_name=name.rpartition("/")[2],
        eval_results=results or None,
    )
    place = "" if options.license else "\n# license: FILL IN, such as apache-2.0 (publish.license)"
    return card.to_yaml() + place


def _summary(run: Trained) -> str:
    settings, catalog = run.package.settings, run.package.catalog
    items = f"{len(catalog):,} {plain(settings.domain)}" if catalog is not None else plain(settings.domain)
    start = f"[{run.base_model}](https://huggingface.co/{run.base_model})" if run.base_model else _started_from(run)
    how = _STAGE.get(run.system, f"SFT, then {plain(run.label)}")
    return (
        f"It reads a conversation and answers with a ranked list of {settings.n} out of {items}, one `Title (Year)` a line. "
        f"{how} trained it on {plain(run.config['data.name'])}, from {start}. "
        f"It has {run.parameters() / 1e6:,.1f} million parameters."
    )


def _started_from(run: Trained) -> str:
    if run.config.get("model.source") == "tiny":
        return "random weights"
    return f"the model {plain(str(run.config.get('model.name')))}"


def _results(run: Trained) -> Table:
    """Return a row per system: the main metric and the widest recall with their intervals, and the quality of the lists."""
    metrics, intervals, write = run.summary["metrics"], run.summary["intervals"], run.write
    shown = list(
        dict.fromkeys([run.metric, *sorted((m for m in intervals[run.system] if m.startswith("recall@")), key=_k)[-1:]])
    )
    columns = [Column("")]
    for metric in shown:
        columns += [Column(write.label(metric)), Column("interval")]
    columns += [Column(name) for name in ("in catalog", "repeats", "seen")]
    rows = []
    for system, values in metrics.items():
        row = [LABELS.get(system, system)]
        for metric in shown:
            low, high = intervals[system].get(metric) or (None, None)
            span = NONE if low is None or high is None else write.span(low, high, metric)
            row += [write.number(values.get(metric), metric), span]
        rows.append([*row, *(write.number(values.get(name), name) for name in _QUALITY)])
    return Table(tuple(columns), rows, strong=len(rows) - 1)


def _k(metric: str) -> int:
    return int(metric.partition("@")[2])


def _measured(run: Trained) -> str:
    return (
        f"{run.summary['conversations']:,} conversations, {run.summary['split']} split of {plain(run.config['data.name'])}. "
        f"Lists of {run.package.settings.n}, greedy decoding, seed {run.summary['seed']}. Intervals: "
        f"{run.config['eval.level']:.0%}, bootstrap over clusters of conversations. Repeats and seen: items of a list."
    )


def _sentences(run: Trained) -> list[str]:
    """Return a sentence for each difference from a baseline, and the run's own notes."""
    write, found = run.write, []
    for d in run.summary["paired"]:
        metric = d["metric"]
        text = f"{run.label} {chr(0x2212)} {LABELS.get(d['against'], d['against'])}, {write.label(metric)}: "
        text += write.signed(d["mean"], metric)
        if d["low"] is not None and d["high"] is not None:
            text += f" ({write.span(d['low'], d['high'], metric, signs=True)})"
        if d.get("p_holm") is not None:
            text += f", p = {p_value(d['p_holm'])} (Holm)".replace("= <", "<")
        found.append(plain(text))
    return [*found, *map(plain, run.summary.get("notes") or [])]


def _intended(run: Trained) -> str:
    domain = plain(run.package.settings.domain)
    return (
        f"Ranked recommendations of {domain} in a conversation, out of the catalog that it was trained on. It answers with "
        "titles only, so it cannot explain, chat or answer questions. Use it as one source of candidates in a product that "
        "checks what it shows, or as a baseline in research."
    )


def _limits(run: Trained, *, catalog: bool) -> list[str]:
    """Return what the policy cannot do, as far as its run shows it."""
    found = [
        _freedom(run),
        "It knows the items of its catalog only. New items need new training, or they are not recommended.",
        "Results are of logged conversations: an item that nobody asked for counts as wrong, even if a user had liked it. They "
        "are no measure of users' satisfaction.",
        f"One training with seed {run.summary['seed']}: the intervals tell how sure the results are on other conversations, "
        "not how another training would end.",
        "It repeats the preferences of its data: popular items, and the tastes of the people in it.",
    ]
    if run.config.get("data._target_") == "convrec_r1.data.movieland.Movieland":
        found.insert(0, "Its conversations are simulated (movieland): the results say nothing about people.")
    if not catalog:
        found.append("The catalog is not published with it: give your own, with titles as they are written there.")
    return found


def _freedom(run: Trained) -> str:
    """Return what its lists are without the constraint, as far as that was measured."""
    values, rate = run.summary["metrics"][run.system], "catalog/valid"
    if run.config.get("eval.constraint", "none") != "none":
        return "The results are of lists that were held to the catalog. With transformers alone they may leave it."
    return (
        f"Without the constraint, {run.write.number(values.get(rate), rate)} of its lines were in the catalog, with "
        f"{values.get('list/duplicates', 0):.2f} repeats and {values.get('list/seen', 0):.2f} seen items in a list. With "
        "ConvRec-R1's constraint (the default of `Recommender`) there are none."
    )


def _recipe(run: Trained) -> Table:
    """Return what made the policy: key and value."""
    config = run.config
    rows: list[tuple[str, Any]] = [
        ("algorithm", run.label),
        ("data", config["data.name"]),
        ("model", config["model.name"]),
        ("seed", config["seed"]),
    ]
    if config.get("model.lora.enabled"):
        rows.append(("LoRA", f"rank {config['model.lora.rank']}, alpha {config['model.lora.alpha']}; merged"))
    rows += [(f"SFT: {key}", config.get(f"sft.{key}")) for key in ("lr", "epochs", "steps", "batch_size")]
    if run.system != "sft":
        rows += [
            ("reward", config.get("reward.name") or str(config.get("reward._target_")).rpartition(".")[2]),
            ("RL: steps", run.summary.get("steps")),
            ("RL: lr", config.get("rl.lr")),
            ("RL: prompts a step", config.get("rl.prompts_per_step")),
            ("RL: lists a prompt", config.get("algo.group_size")),
            ("RL: clip range", f"{config.get('algo.clip_low')}, {config.get('algo.clip_high')}"),
            ("RL: weight of KL", config.get("algo.beta")),
        ]
    rows += [
        ("ConvRec-R1", f"{run.summary.get('version')}, commit {run.summary.get('git_sha') or 'unknown'}"),
        ("published with", f"transformers {version('transformers')}, torch {version('torch')}"),
    ]
    shown = [[key, str(value)] for key, value in rows if value is not None]
    return Table((Column("key"), Column("value", text=True)), shown)


def _license(options: PublishConfig) -> str:
    if options.license:
        return f"{plain(options.license)}. The licences of the base model and of the data apply too."
    return (
        "**To be filled in**: the licence of these weights, here and as `license:` in the head of this file. It must fit the "
        "licences of the base model and of the data."
    )


def training_config(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's config without what belongs to the machine that trained it.

    Of an absolute path its last part stays, and addresses of servers are left out; so are the sections of `_OWN`.
    """
    return {str(key): _public(value) for key, value in tree.items() if key not in _OWN}


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _public(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_public(entry) for entry in value]
    if isinstance(value, str) and "://" in value:
        return "(address)"
    if isinstance(value, str) and (value.startswith(("/", "~", "\\\\")) or value[1:3] in (":\\", ":/")):
        return value.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return value
