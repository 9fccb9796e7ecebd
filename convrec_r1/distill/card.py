"""The card of demonstrations: a table for each question about them, on the terminal and in card.md, and a figure."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from rich import box
from rich.table import Table

from convrec_r1.base.files import replacing
from convrec_r1.base.progress import console
from convrec_r1.base.visible import visible
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
_SPECIAL = re.compile(r"[\\`*<>|&]|\](?=[(\[:])")

Rows = list[dict[str, str]]
"""A table: heading -> cell in each row. The first column is text, the others are numbers."""


def render(card: Mapping[str, Any]) -> str:
    """Return card.md."""
    teacher, counts = card["teacher"], card["conversations"]
    lines = [
        f"# Demonstrations: {_plain(card['distill'])}, {_plain(card['data'])}",
        "",
        f"Teacher {_plain(teacher['name'])} ({_plain(str(teacher['model']))}), embedder {_plain(card['embedder'])}; lists of "
        f"{card['n']} for {counts['train']:,} training conversations, measured on {counts['held_out']:,} held-out ones. "
        f"Made in {card['seconds']:.0f} s by ConvRec-R1 {card['version']}.",
        "",
        "## What each stage's lists are worth",
        "",
        *_markdown(_worth(card)),
        "",
        "  \n".join(_comparisons(card)),
        "",
        "## Which items the lists favour",
        "",
        *_markdown(_favour(card)),
        "",
        "Lists of the training conversations before and after each stage; the last row is what users wanted. Distance: total "
        "variation between how often items are listed and how often they are wanted.",
        "",
        "## What was asked",
        "",
        *_markdown(_asked(card)),
        "",
        *(f"- {line}" for line in _facts(card)),
    ]
    return "\n".join(lines) + "\n"


def show(card: Mapping[str, Any]) -> None:
    """Print the stages on the terminal, in 80 characters."""
    k = card["ks"][-1]
    _print(_worth(card), "Held-out conversations", ["stage", f"NDCG@{k}", "interval", f"Recall@{k}", "in catalog"])
    _print(
        _favour(card),
        "Which items the lists favour",
        ["stage", "head", "mid", "tail", "coverage", "Gini", "distance"],
    )
    console.print(*_comparisons(card), *_facts(card), sep="\n", highlight=False)


def show_forecast(forecasts: Sequence[Forecast], cfg: TeacherConfig) -> None:
    """Print what would be asked."""
    total = Estimate(*(sum(values) for values in zip(*(found.ahead for found in forecasts), strict=True)))
    shown = [*forecasts, Forecast("all", None, total)]  # pyright: ignore[reportArgumentType]  # a kind for the sum
    rows = [
        {
            "question": found.kind,
            "to ask": f"{found.ahead.questions:,}",
            "answered": "not known" if found.answered is None else f"{found.answered:,}",
            "tokens in": f"{found.ahead.prompt_tokens:,}",
            "tokens out": f"{found.ahead.completion_tokens:,}",
            "cost": _dollars(price(found.ahead.prompt_tokens, found.ahead.completion_tokens, cfg)),
        }
        for found in shown
    ]
    _print(rows, f"What the teacher ({cfg.name}: {cfg.model}) would be asked", list(rows[0]))
    console.print(
        *(f"{found.kind}: {found.note}." for found in forecasts if found.note),
        "Tokens at this teacher's own rates if the cache holds 20 answers of a kind; else 4 characters a token.",
        *(["The cost is not known: give teacher.price_in and teacher.price_out."] if cfg.price_in is None else []),
        sep="\n",
        highlight=False,
    )


def figure(card: Mapping[str, Any], path: Path) -> None:
    """Draw two panels: what each stage's lists are worth, and which part of the catalog they list."""
    look: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold"}
    with plt.rc_context(look):
        plot, (worth, favour) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
        if card["held_out"]:
            _draw_worth(worth, card["held_out"], card["metric"])
        else:
            worth.set_axis_off()
            worth.text(0.5, 0.5, "no held-out conversations", ha="center", transform=worth.transAxes)
        _draw_favour(favour, card["popularity"])
        with replacing(path) as scratch:
            plot.savefig(scratch, format="png", dpi=150)
        plt.close(plot)


def _draw_worth(axes, held_out: Mapping[str, Any], metric: str) -> None:
    means = np.array([found["metrics"][metric] for found in held_out.values()])
    bounds = np.array([found["intervals"][metric] for found in held_out.values()], dtype=float)  # None: nan
    bounds = np.where(np.isnan(bounds), means[:, None], bounds)
    errors = np.maximum([means - bounds[:, 0], bounds[:, 1] - means], 0)
    places = np.arange(len(means))[::-1]
    colors = [_TEACHER if name in ("as_said", "matched") else _OURS for name in held_out]
    axes.barh(places, means, xerr=errors, color=colors, capsize=3, height=0.65)
    for place, mean, end in zip(places, means, bounds[:, 1], strict=True):
        axes.annotate(f"{mean:.3f}", (end, place), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, [STAGES[name] for name in held_out])
    axes.set(title="Lists against what users went on to like", xlabel=f"{_name(metric)}, held-out conversations")
    axes.margins(x=0.12)


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
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, -0.42))


def _worth(card: Mapping[str, Any]) -> Rows:
    rows = []
    for stage, found in card["held_out"].items():
        values, (low, high) = found["metrics"], found["intervals"][card["metric"]]
        names = [f"{stem}@{k}" for stem in ("ndcg", "recall") for k in card["ks"]]
        rows.append(
            {"stage": STAGES[stage]}
            | {_name(name): f"{values[name]:.4f}" for name in names}
            | {
                "interval": "" if low is None else f"{low:.3f}-{high:.3f}",
                "in catalog": f"{values['catalog/valid']:.1%}",
                "seen": f"{values['list/seen']:.2f}",
                "lines": f"{values['list/length']:.1f}",
            }
        )
    return rows


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


def _favour(card: Mapping[str, Any]) -> Rows:
    formats = {
        "head": "{:.1%}", "mid": "{:.1%}", "tail": "{:.1%}", "mean_rank": "{:.0f}", "coverage": "{:.1%}", "gini": "{:.2f}",
        "distance": "{:.2f}",
    }  # fmt: skip
    headings = {"mean_rank": "mean rank", "gini": "Gini"}
    return [
        {"stage": STAGES[stage]}
        | {headings.get(key, key): f.format(found[key]) if key in found else "" for key, f in formats.items()}
        for stage, found in card["popularity"].items()
    ]


def _asked(card: Mapping[str, Any]) -> Rows:
    return [
        {
            "question": kind,
            "asked": f"{found['asked']:,}",
            "from cache": f"{found['from_cache']:,}",
            "tokens in": f"{found['prompt_tokens']:,}",
            "tokens out": f"{found['completion_tokens']:,}",
            "cost, now": _dollars(found["cost_now"]),
            "cost, in all": _dollars(found["cost"]),
        }
        for kind, found in card["asked"]["kinds"].items()
    ]


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
        facts += [
            f"Adjust, strength {row['strength']:g}: {row['nll']:.4f} +- {row['se']:.4f} nats a held-out ground truth"
            for row in adjusted["table"]
        ]
    if retried := card["asked"]["retries"]:
        facts.append("Retries: " + ", ".join(f"{count:,} after {cause}" for cause, count in retried.items()) + ".")
    return facts


def _name(metric: str) -> str:
    stem, _, k = metric.partition("@")
    return f"{ {'ndcg': 'NDCG', 'recall': 'Recall'}.get(stem, stem) }@{k}"


def _dollars(value: float | None) -> str:
    return "not known" if value is None else f"${value:.2f}"


def _markdown(rows: Rows) -> list[str]:
    if not rows:
        return []
    table = [list(rows[0]), ["---", *["--:"] * (len(rows[0]) - 1)], *(row.values() for row in rows)]
    return ["| " + " | ".join(map(_plain, cells)) + " |" for cells in table]


def _plain(text: str) -> str:
    """Escape what Markdown would interpret."""
    return _SPECIAL.sub(r"\\\g<0>", visible(" ".join(text.split())))


def _print(rows: Rows, title: str, columns: Sequence[str]) -> None:
    if not rows:
        return
    shown = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for number, name in enumerate(columns):
        shown.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*(row[name] for name in columns))
    console.print(shown)
