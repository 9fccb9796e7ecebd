"""The data card of distilled demonstrations: a table a stage, on the terminal and in card.md, and one figure."""

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
from convrec_r1.distill.config import TeacherConfig
from convrec_r1.distill.forecast import Forecast
from convrec_r1.distill.teachers.cost import Estimate, price
from convrec_r1.studies.labels import COLORS, TRAINED, VALIDATION
from convrec_r1.studies.markdown import plain, table

STAGES = {
    "as_said": "Teacher, as it said",
    "matched": "Teacher, matched",
    "remap": "Remap",
    "reflect": "+ Reflect",
    "adjust": "+ Adjust",
}
"""Every list that is measured, in the order they come about."""
_SEGMENT_COLORS = {"head": TRAINED, "mid": "#56B4E9", "tail": "#F0E442"}


def render(card: Mapping[str, Any]) -> str:
    """card.md."""
    teacher, asked = card["teacher"], card["asked"]
    lines = [
        f"# Demonstrations: {plain(card['distill'])}, {plain(card['data'])}",
        "",
        f"Teacher {plain(teacher['name'])} ({plain(str(teacher['model']))}), embedder {plain(card['embedder'])}; lists of "
        f"{card['n']} for "
        f"{_count(card['conversations']['train'], 'training conversation')}, measured on "
        f"{card['conversations']['held_out']:,} held-out ones. Made in {card['seconds']:.0f} s by ConvRec-R1 "
        f"{card['version']}.",
        "",
        "## What each stage's list is worth",
        "",
        *table(*_held_out(card)),
        "",
        *_held_out_notes(card),
        "",
        "## Whom the lists favour",
        "",
        *table(*_skew(card)),
        "",
        "Of the training conversations' lists, before and after each stage; the last row is what users wanted. Distance: total "
        "variation between how often items are listed and how often they are wanted.",
        "",
        "## What was asked",
        "",
        *table(*_asked(asked)),
        "",
        *(f"- {line}" for line in _facts(card)),
    ]
    return "\n".join(lines) + "\n"


def show(card: Mapping[str, Any]) -> None:
    """The stages on the terminal, in 80 characters."""
    header, rows = _held_out(card)
    if rows:
        k = card["ks"][-1]
        keep = ["stage", f"NDCG@{k}", "interval", f"Recall@{k}", "in catalog"]
        _show(*_columns(header, rows, keep), "Held-out conversations")
    header, rows = _skew(card)
    _show(
        *_columns(header, rows, ["stage", "head", "mid", "tail", "coverage", "Gini", "distance"]),
        "Whom the lists favour",
    )
    console.print(*_held_out_notes(card), *_facts(card), sep="\n", highlight=False)


def _columns(header: list[str], rows: list[list[str]], names: list[str]) -> tuple[list[str], list[list[str]]]:
    kept = [header.index(name) for name in names]
    return names, [[row[at] for at in kept] for row in rows]


def show_forecast(forecasts: Sequence[Forecast], cfg: TeacherConfig) -> None:
    """What would be asked, on the terminal."""
    header = ["question", "to ask", "answered", "tokens in", "tokens out", "cost"]
    rows = [
        [
            found.kind,
            f"{found.ahead.questions:,}",
            "not known" if found.answered is None else f"{found.answered:,}",
            *_ahead(found.ahead, cfg),
        ]
        for found in forecasts
    ]
    total = sum((found.ahead for found in forecasts), Estimate())
    rows.append(["all", f"{total.questions:,}", "", *_ahead(total, cfg)])
    _show(header, rows, f"What the teacher ({cfg.name}: {cfg.model}) would be asked")
    console.print(
        *(f"{found.kind}: {found.note}." for found in forecasts if found.note),
        "Tokens by this teacher's own rates where the cache holds 20 answers of a kind; else 4 characters a token.",
        *(["The cost is not known: give teacher.price_in and teacher.price_out."] if cfg.price_in is None else []),
        sep="\n",
        highlight=False,
    )


def _ahead(ahead: Estimate, cfg: TeacherConfig) -> list[str]:
    cost = price(ahead.prompt_tokens, ahead.completion_tokens, cfg)
    return [f"{ahead.prompt_tokens:,}", f"{ahead.completion_tokens:,}", _dollars(cost)]


def figure(card: Mapping[str, Any], path: Path) -> Path:
    """Two panels: what each stage's lists are worth, and which part of the catalog they name."""
    held_out, popularity = card["held_out"], card["popularity"]
    with plt.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold"}
    ):
        plot, (worth, favour) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
        if held_out:
            _worth(worth, held_out, card["metric"])
        else:
            worth.set_axis_off()
            worth.text(0.5, 0.5, "no held-out conversations", ha="center", transform=worth.transAxes)
        _favour(favour, popularity)
        with replacing(path) as scratch:
            plot.savefig(scratch, format="png", dpi=150)
        plt.close(plot)
    return path


def _worth(axes, held_out: Mapping[str, Any], metric: str) -> None:
    names = list(held_out)
    means = np.array([held_out[name]["metrics"][metric] for name in names])
    bounds = [held_out[name]["intervals"][metric] for name in names]
    low = np.array([m if b[0] is None else b[0] for m, b in zip(means, bounds, strict=True)])
    high = np.array([m if b[1] is None else b[1] for m, b in zip(means, bounds, strict=True)])
    places = np.arange(len(names))[::-1]
    colors = [COLORS["popularity"] if name in ("as_said", "matched") else TRAINED for name in names]
    axes.barh(places, means, xerr=np.maximum([means - low, high - means], 0), color=colors, capsize=3, height=0.65)
    for place, mean, end in zip(places, means, high, strict=True):
        axes.annotate(f"{mean:.3f}", (end, place), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, [STAGES[name] for name in names])
    stem, _, k = metric.partition("@")
    axes.set(title="Lists against what users went on to like", xlabel=f"{stem.upper()}@{k}, held-out conversations")
    axes.margins(x=0.12)


def _favour(axes, popularity: Mapping[str, Any]) -> None:
    shown = {name: found for name, found in popularity.items() if "head" in found}
    places = np.arange(len(shown))[::-1]
    left = np.zeros(len(shown))
    for segment, color in _SEGMENT_COLORS.items():
        shares = np.array([found[segment] for found in shown.values()])
        axes.barh(places, shares, left=left, color=color, height=0.65, label=segment)
        left += shares
    wanted = shown.get("wanted")
    if wanted:
        for edge in (wanted["head"], wanted["head"] + wanted["mid"]):
            axes.axvline(edge, color=VALIDATION, linewidth=1, linestyle="--")
    axes.set_yticks(places, [_stage(name) for name in shown])
    axes.set(
        title="Share of head, mid and tail items", xlabel="share of the entries; dashed: what users wanted", xlim=(0, 1)
    )
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, -0.42))


def _stage(name: str) -> str:
    return STAGES.get(name, "What users wanted")


def _held_out(card: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    ks, metric = card["ks"], card["metric"]
    ranking = [f"{stem}@{k}" for stem in ("ndcg", "recall") for k in ks]
    written = [
        f"{name.split('@')[0].upper() if name.startswith('ndcg') else 'Recall'}@{name.split('@')[1]}"
        for name in ranking
    ]
    header = ["stage", *written, "interval", "in catalog", "seen", "lines"]
    rows = []
    for name, found in card["held_out"].items():
        low, high = found["intervals"][metric]
        values = found["metrics"]
        rows.append(
            [
                STAGES[name],
                *(f"{values[key]:.4f}" for key in ranking),
                "" if low is None else f"{low:.3f}-{high:.3f}",
                f"{values['catalog/valid']:.1%}",
                f"{values['list/seen']:.2f}",
                f"{values['list/length']:.1f}",
            ]
        )
    return header, rows


def _held_out_notes(card: Mapping[str, Any]) -> list[str]:
    if not card["held_out"]:
        return ["No held-out conversations: the validation split is empty."]
    stem, _, k = card["metric"].partition("@")
    notes = [f"Interval: of {stem.upper()}@{k}, {card['level']:.0%}, cluster bootstrap."]
    for step in card["paired"]:
        who = f"{STAGES[step['stage']]} - {STAGES[step['against']]}"
        text = f"{stem.upper()}@{k}, {who}: {step['mean']:+.4f}"
        if step["low"] is not None:
            text += f" [{step['low']:+.4f}, {step['high']:+.4f}], p = {step['p_holm']:.4f} (Holm)"
        notes.append(text)
    return ["  \n".join(notes)]


def _skew(card: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["stage", "head", "mid", "tail", "mean rank", "coverage", "Gini", "distance"]
    percent = ("head", "mid", "tail")
    rows = []
    for name, found in card["popularity"].items():
        cells = [f"{found[key]:.1%}" if key in found else "" for key in percent]
        cells += [
            f"{found['mean_rank']:.0f}" if "mean_rank" in found else "",
            f"{found['coverage']:.1%}" if "coverage" in found else "",
            f"{found['gini']:.2f}" if "gini" in found else "",
        ]
        cells.append(f"{found['distance']:.2f}" if "distance" in found else "")
        rows.append([_stage(name), *cells])
    return header, rows


def _asked(asked: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["question", "asked", "answered before", "tokens in", "tokens out", "cost, now", "cost, in all"]
    rows = []
    for kind, found in asked["kinds"].items():
        rows.append(
            [
                kind,
                f"{found['asked']:,}",
                f"{found['from_cache']:,}",
                f"{found['prompt_tokens']:,}",
                f"{found['completion_tokens']:,}",
                _dollars(found["cost_now"]),
                _dollars(found["cost"]),
            ]
        )
    return header, rows


def _facts(card: Mapping[str, Any]) -> list[str]:
    raw, matches = card["raw"], card["matches"]
    facts = [
        f"Teacher's lists: {raw['entries']:,} entries in {raw['lines']:,} lines, {raw['items']:,} different items, "
        f"{raw['empty']} answers without any.",
        "Entries by how they were matched to the catalog: "
        + ", ".join(f"{how} {share:.1%}" for how, share in matches.items())
        + ".",
    ]
    if described := card["metadata"]:
        facts.append(
            f"Metadata: {described['file']:,} items from a file, {described['teacher']:,} from the teacher, "
            f"{described['none']:,} have their title alone."
        )
    if judged := card["reflect"]:
        facts.append(
            f"Judgements: {judged['candidates']:,} wanted, {judged['repaired']:,} read after a repair, {judged['unread']:,} "
            f"never read and so 0 ({judged['unread'] / max(1, judged['candidates']):.2%})."
        )
    if adjusted := card["adjust"]:
        how = "cross-validated" if adjusted["table"] else "given"
        facts.append(
            f"Adjust: strength {adjusted['strength']:g} ({how}), {adjusted['iterations']} iterations; w "
            f"{_spread(adjusted['w'])}, b {_spread(adjusted['b'])} (5th, 50th, 95th percentile)."
        )
        facts += [
            f"Adjust, strength {row['strength']:g}: {row['nll']:.4f} +- {row['se']:.4f} nats a held-out ground truth"
            for row in adjusted["table"]
        ]
    if retried := card["asked"]["retries"]:
        facts.append("Asked again: " + ", ".join(f"{count:,} after {cause}" for cause, count in retried.items()) + ".")
    return facts


def _spread(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _dollars(value: float | None) -> str:
    return "not known" if value is None else f"${value:.2f}"


def _show(header: list[str], rows: list[list[str]], title: str) -> None:
    shown = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for i, name in enumerate(header):
        shown.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
