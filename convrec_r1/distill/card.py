"""The card of demonstrations: a table for each question about them, on the terminal and in card.md, and a figure."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box

from convrec_r1.base import draw
from convrec_r1.base.progress import console
from convrec_r1.base.tables import Column, Table, plain
from convrec_r1.distill.config import TeacherConfig
from convrec_r1.distill.forecast import Forecast
from convrec_r1.distill.teachers.cost import Estimate, price

STAGES = {
    "as_said": "Teacher, as it said",
    "matched": "Teacher, matched",
    "remap": "Remap",
    "reflect": "+ Reflect",
    "adjust": "+ Adjust",
    "wanted": "What users wanted",
}
"""Labels of the lists that are measured, in order; the last are the ground truths."""
_TEACHER, _OURS, _DASHED = "#999999", "#0072B2", "#D55E00"
_SEGMENTS = {"head": "#0072B2", "mid": "#56B4E9", "tail": "#F0E442"}
_FAVOUR = {
    "head": ("head", "{:.1%}"),
    "mid": ("mid", "{:.1%}"),
    "tail": ("tail", "{:.1%}"),
    "mean_rank": ("mean rank", "{:.0f}"),
    "coverage": ("coverage", "{:.1%}"),
    "gini": ("Gini", "{:.2f}"),
    "distance": ("distance", "{:.2f}"),
}
"""Statistic of popularity -> heading and format."""


def render(card: Mapping[str, Any]) -> str:
    """Return card.md."""
    teacher, counts = card["teacher"], card["conversations"]
    lines = [
        f"# Demonstrations: {plain(card['distill'])}, {plain(card['data'])}",
        "",
        f"Teacher {plain(teacher['name'])} ({plain(str(teacher['model']))}), embedder {plain(card['embedder'])}; lists of "
        f"{card['n']} for {counts['train']:,} training conversations, measured on {counts['held_out']:,} held-out ones. "
        f"Made in {card['seconds']:.0f} s by ConvRec-R1 {card['version']}.",
        "",
        "## What each stage's lists are worth",
        "",
        *_worth(card).markdown(),
        "",
        "  \n".join(_comparisons(card)),
        "",
        "## Which items the lists favour",
        "",
        *_favour(card).markdown(),
        "",
        "Lists of the training conversations before and after each stage; the last row is what users wanted. Distance: total "
        "variation between how often items are listed and how often they are wanted.",
        "",
        "## What was asked",
        "",
        *_asked(card).markdown(),
        "",
        *(f"- {line}" for line in _facts(card)),
    ]
    return "\n".join(lines) + "\n"


def show(card: Mapping[str, Any]) -> None:
    """Print the stages on the terminal, in 80 characters."""
    k = card["ks"][-1]
    _print(_worth(card).pick(f"NDCG@{k}", "interval", f"Recall@{k}", "in catalog"), "Held-out conversations")
    shown = ("head", "mid", "tail", "coverage", "Gini", "distance")
    _print(_favour(card).pick(*shown), "Which items the lists favour")
    console.print(*_comparisons(card), *_facts(card), sep="\n", highlight=False)


def show_forecast(forecasts: Sequence[Forecast], cfg: TeacherConfig) -> None:
    """Print what would be asked."""
    total = Estimate(*(sum(values) for values in zip(*(found.ahead for found in forecasts), strict=True)))
    known = [found.answered for found in forecasts if found.answered is not None]
    answered = sum(known) if len(known) == len(forecasts) else None
    rows = [
        [
            found.kind,
            f"{found.ahead.questions:,}",
            "not known" if found.answered is None else f"{found.answered:,}",
            f"{found.ahead.prompt_tokens:,}",
            f"{found.ahead.completion_tokens:,}",
            _dollars(price(found.ahead.prompt_tokens, found.ahead.completion_tokens, cfg)),
        ]
        for found in (*forecasts, *([Forecast("all", answered, total)] if len(forecasts) > 1 else []))
    ]
    table = _table(("question", "to ask", "answered", "tokens in", "tokens out", "cost"), rows)
    _print(table, f"What the teacher ({cfg.name}: {cfg.model}) would be asked")
    console.print(
        *(f"{found.kind}: {found.note}." for found in forecasts if found.note),
        "Tokens at this teacher's own rates if the cache holds 20 answers of a kind; else 4 characters a token.",
        *(["The cost is not known: give teacher.price_in and teacher.price_out."] if cfg.price_in is None else []),
        sep="\n",
        highlight=False,
    )


def figure(card: Mapping[str, Any], path: Path) -> None:
    """Draw two panels: what each stage's lists are worth, and which part of the catalog they list."""
    with draw.style():
        plot, axes = draw.panels(1, 2, (10, 3.4))
        _draw_worth(axes[0, 0], card["held_out"], card["metric"])
        _draw_favour(axes[0, 1], card["popularity"])
        draw.save(plot, path)


def _draw_worth(axes, held_out: Mapping[str, Any], metric: str) -> None:
    if not held_out:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no held-out conversations", ha="center", transform=axes.transAxes)
        return
    draw.bars(
        axes,
        [STAGES[name] for name in held_out],
        [found["metrics"][metric] for found in held_out.values()],
        [found["intervals"][metric] for found in held_out.values()],
        [_TEACHER if name in ("as_said", "matched") else _OURS for name in held_out],
        horizontal=True,
    )
    axes.set(title="Lists against what users went on to like", xlabel=f"{_name(metric)}, held-out conversations")


def _draw_favour(axes, popularity: Mapping[str, Any]) -> None:
    shown = {name: found for name, found in popularity.items() if "head" in found}
    places = np.arange(len(shown))[::-1]
    left = np.zeros(len(shown))
    for segment, color in _SEGMENTS.items():
        shares = np.array([found[segment] for found in shown.values()])
        axes.barh(places, shares, left=left, color=color, height=0.65, label=segment)
        left += shares
    if wanted := shown.get("wanted"):
        for edge in (wanted["head"], wanted["head"] + wanted["mid"]):
            axes.axvline(edge, color=_DASHED, linewidth=1, linestyle="--")
    axes.set_yticks(places, [STAGES[name] for name in shown])
    axes.set(
        title="Share of head, mid and tail items", xlabel="share of entries; dashed: what users wanted", xlim=(0, 1)
    )
    axes.grid(visible=False, axis="y")
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, -0.42))


def _worth(card: Mapping[str, Any]) -> Table:
    names = [f"{stem}@{k}" for stem in ("ndcg", "recall") for k in card["ks"]]
    rows = []
    for stage, found in card["held_out"].items():
        values, (low, high) = found["metrics"], found["intervals"][card["metric"]]
        rows.append(
            [
                STAGES[stage],
                *(f"{values[name]:.4f}" for name in names),
                "" if low is None else f"{low:.3f}-{high:.3f}",
                f"{values['catalog/valid']:.1%}",
                f"{values['list/seen']:.2f}",
                f"{values['list/length']:.1f}",
            ]
        )
    return _table(("stage", *map(_name, names), "interval", "in catalog", "seen", "lines"), rows)


def _comparisons(card: Mapping[str, Any]) -> list[str]:
    if not card["held_out"]:
        return ["No held-out conversations: the validation split is empty."]
    metric = _name(card["metric"])
    notes = [f"Interval: {metric}, {card['level']:.0%}, cluster bootstrap."]
    for step in card["paired"]:
        text = f"{metric}, {STAGES[step['stage']]} - {STAGES[step['against']]}: {step['mean']:+.4f}"
        if step["low"] is not None:
            text += f" [{step['low']:+.4f}, {step['high']:+.4f}], p = {step['p_holm']:.4f} (Holm)"
        notes.append(text)
    return notes


def _favour(card: Mapping[str, Any]) -> Table:
    rows = [
        [STAGES[stage], *(form.format(found[key]) if key in found else "" for key, (_, form) in _FAVOUR.items())]
        for stage, found in card["popularity"].items()
    ]
    return _table(("stage", *(heading for heading, _ in _FAVOUR.values())), rows)


def _asked(card: Mapping[str, Any]) -> Table:
    counted = ("asked", "from_cache", "refused", "prompt_tokens", "completion_tokens")
    rows = [
        [kind, *(f"{found[key]:,}" for key in counted), _dollars(found["cost_now"]), _dollars(found["cost"])]
        for kind, found in card["asked"]["kinds"].items()
    ]
    return _table(
        (
            "question",
            "asked",
            "from cache",
            "refused or unusable",
            "tokens in",
            "tokens out",
            "cost, now",
            "cost, in all",
        ),
        rows,
    )


def _facts(card: Mapping[str, Any]) -> list[str]:
    raw, matches = card["raw"], card["matches"]
    facts = [
        f"Teacher's lists: {raw['entries']:,} entries in {raw['lines']:,} lines, {raw['items']:,} different items, "
        f"{raw['empty']} answers without any.",
        f"Entries by how they match the catalog: {', '.join(f'{how} {share:.1%}' for how, share in matches.items())}.",
    ]
    if described := card["metadata"]:
        facts.append(
            f"Metadata: {described['file']:,} items from a file, {described['teacher']:,} from the teacher, "
            f"{described['none']:,} without any."
        )
    if judged := card["reflect"]:
        share = judged["unread"] / max(1, judged["candidates"])
        facts.append(
            f"Ratings: {judged['candidates']:,} asked for, {judged['repaired']:,} read after a repair, {judged['unread']:,} "
            f"never read and so 0 ({share:.2%})."
        )
    if adjusted := card["adjust"]:
        how = "cross-validated" if adjusted["table"] else "given"
        spread = {name: ", ".join(f"{value:.2f}" for value in adjusted[name]) for name in "wb"}
        facts.append(
            f"Adjust: strength {adjusted['strength']:g} ({how}), {adjusted['iterations']} iterations; w {spread['w']}, "
            f"b {spread['b']} (5th, 50th, 95th percentile)."
        )
        if not adjusted.get("converged", True):  # cards before 0.2 do not say
            facts.append(
                "Adjust did not converge: w and b are those of its last iteration, not the optimum. Give a larger "
                "distill.adjust.strength, or more conversations."
            )
        facts += [
            f"Adjust, strength {row['strength']:g}: {row['nll']:.4f} +- {row['se']:.4f} nats a held-out ground truth"
            + ("" if row.get("converged", True) else ", not converged in every fold")
            for row in adjusted["table"]
        ]
    if refused := sum(found["refused"] for found in card["asked"]["kinds"].values()):
        facts.append(
            f"Refused, or answered with nothing usable: {refused:,} questions. They count as answered with nothing."
        )
    if retried := card["asked"]["retries"]:
        facts.append("Retries: " + ", ".join(f"{count:,} after {cause}" for cause, count in retried.items()) + ".")
    return facts


def _name(metric: str) -> str:
    stem, _, k = metric.partition("@")
    return f"{ {'ndcg': 'NDCG', 'recall': 'Recall'}.get(stem, stem) }@{k}"


def _dollars(value: float | None) -> str:
    return "not known" if value is None else f"${value:.2f}"


def _table(headings: Iterable[str], rows: Sequence[Sequence[str]]) -> Table:
    return Table(tuple(map(Column, headings)), rows)


def _print(table: Table, title: str) -> None:
    if table.rows:
        console.print(table.rich(title, box=box.SIMPLE, pad_edge=False))
