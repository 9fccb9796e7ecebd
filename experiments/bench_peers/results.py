"""From measured steps to ratios, a Markdown table and a figure."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from convrec_r1.base import draw
from convrec_r1.base.files import write_text

PEERS = ("trl", "ours")
PEERS_HERE, GROWTH_HERE, END = "<!-- bench-peers writes here -->", "<!-- bench-growth writes here -->", "<!-- end -->"
"""Marks in docs/speed.md."""
BUSY = 0.2
"""Cores that other processes may use. Threads that spin, as TRL's do, lose much more than that share to a busy neighbour."""
COLORS = {8: "#1f77b4", 16: "#d95f02"}


class Ratio(NamedTuple):
    """TRL's seconds over ours, in steps that took turns. Above 1: ours is faster."""

    middle: float
    """Ratio of the medians."""
    low: float
    high: float
    """Lowest and highest ratio of two steps of the same turn."""

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f}-{self.high:.2f})"


def name_of(tokens: int, group: int) -> str:
    """Return the name of a case, as in 500x8."""
    return f"{tokens}x{group}"


def parse_name(name: str) -> tuple[int, int]:
    """Return prompt length and G of a case.

    Raises:
        ValueError: it is not TOKENSxGROUP.
    """
    tokens, x, group = name.partition("x")
    if not (x and tokens.isdecimal() and group.isdecimal() and int(tokens) and int(group) > 1):
        raise ValueError(f"--cases {name}: a case is TOKENSxG, as in 500x8, with G of at least 2")
    return int(tokens), int(group)


def ratio(case: Mapping[str, Any], part: str = "seconds") -> Ratio:
    """Return TRL's seconds over ours. part: "seconds" for whole steps, "rollout" or "train"."""
    theirs, own = ([step[part] for step in case[peer]["steps"]] for peer in PEERS)
    pairs = [a / b for a, b in zip(theirs, own, strict=True)]
    return Ratio(statistics.median(theirs) / statistics.median(own), min(pairs), max(pairs))


def median(case: Mapping[str, Any], peer: str, part: str = "seconds") -> float:
    return statistics.median(step[part] for step in case[peer]["steps"])


def peak(case: Mapping[str, Any], peer: str) -> float:
    """Return the peak resident memory of a peer's process in MiB."""
    return max(step["peak_mib"] for step in case[peer]["steps"])


def disturbed(case: Mapping[str, Any]) -> bool:
    """Return whether other processes used more than `BUSY` cores during a step: the ratio says nothing then."""
    return any(step["others"] > BUSY for peer in PEERS for step in case[peer]["steps"])


def problem(case: Mapping[str, Any], expected_tokens: int) -> str | None:
    """Return why two peers of a case cannot be compared. None: they can."""
    for peer in PEERS:
        if not case[peer]["steps"]:
            return f"{peer} finished no measured step within the limit"
        sampled = {round(step["new_tokens"]) for step in case[peer]["steps"]}
        if sampled != {expected_tokens}:
            return f"{peer} sampled {sorted(sampled)} tokens a step instead of {expected_tokens}"
    if case["trl"]["threads"] != case["ours"]["threads"] or case["trl"]["torch"] != case["ours"]["torch"]:
        return "the two have other threads or another torch"
    return None


def measured(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cases that can be compared, by prompt length, then G."""
    cases = {name: case for name, case in result["cases"].items() if "problem" not in case}
    return dict(sorted(cases.items(), key=lambda item: parse_name(item[0])))


def table(result: Mapping[str, Any]) -> str:
    """Return a Markdown table of all cases, with notes on how they were measured."""
    settings, work = result["settings"], result["workload"]
    cases = measured(result)
    lines = [
        "| prompt | G | TRL, s | ours, s | TRL / ours | rollout | train | TRL, MiB | ours, MiB |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, case in cases.items():
        tokens, group = parse_name(name)
        theirs, own = (f"{median(case, peer):.2f}" for peer in PEERS)
        memory = " | ".join(f"{peak(case, peer):,.0f}" for peer in PEERS)
        parts = " | ".join(f"{ratio(case, part).middle:.2f}" for part in ("rollout", "train"))
        lines.append(f"| {tokens:,} | {group} | {theirs} | {own} | {ratio(case)} | {parts} | {memory} |")
    if cases:
        peer = result["peer"]
        lines += [
            "",
            f"Medians of {settings['repeats']} steps each, in turn, after {settings['warm_up']} to warm up; in brackets the "
            f"lowest and highest ratio of a turn. A step: {settings['prompts']} prompts, {settings['new_tokens']} tokens a "
            f"list. TRL {peer['trl']}, transformers {peer['transformers']}, {result['machine']}. Model: "
            f"{work['parameters'] / 1e6:.2f}M parameters, a vocabulary of {work['vocabulary']:,}; texts of {work['data']}. "
            "MiB: peak of the process.",
        ]
    short = {n: len(c["ours"]["steps"]) for n, c in cases.items() if len(c["ours"]["steps"]) < settings["repeats"]}
    lines += [
        f"\n{name}: {count} steps instead of {settings['repeats']}: the time limit." for name, count in short.items()
    ]
    lines += [f"\n{name}: no result, {case['problem']}." for name, case in result["cases"].items() if "problem" in case]
    busy = [name for name, case in cases.items() if disturbed(case)]
    lines += (
        [f"\nOther processes kept more than {BUSY} cores busy during steps of {', '.join(busy)}: measure again."]
        if busy
        else []
    )
    slower = [name for name, case in cases.items() if ratio(case).middle < 1]
    lines += [f"\nOurs is slower: {', '.join(slower)}."] if slower else []
    return "\n".join(lines) + "\n"


def figure(result: Mapping[str, Any], path: Path) -> Path:
    """Draw the ratios against the prompts' length: whole steps, rollouts and training."""
    cases = measured(result)
    with draw.style():
        drawn, grid = draw.panels(1, 3, (9.6, 3.3), sharey=True)
        for axes, (part, title) in zip(
            grid.flat, (("seconds", "Whole step"), ("rollout", "Rollout"), ("train", "Training")), strict=True
        ):
            for group in sorted({parse_name(name)[1] for name in cases}):
                _line(axes, cases, group, part)
            axes.axhline(1, color="#888888", linewidth=1)
            axes.set(title=title, xlabel="Tokens of a prompt", xscale="log")
            lengths = sorted({parse_name(name)[0] for name in cases})
            axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
            axes.minorticks_off()
        grid.flat[0].set_ylabel("TRL's seconds / ours")
        grid.flat[0].set_ylim(bottom=0)
        grid.flat[0].legend()
        return draw.save(drawn, path)


def _line(axes: Any, cases: Mapping[str, Any], group: int, part: str) -> None:
    own = [(parse_name(name)[0], ratio(case, part)) for name, case in cases.items() if parse_name(name)[1] == group]
    lengths, ratios = [tokens for tokens, _ in own], [r for _, r in own]
    errors = [[r.middle - min(r.low, r.middle) for r in ratios], [max(r.high, r.middle) - r.middle for r in ratios]]
    color = COLORS.get(group)
    axes.errorbar(
        lengths, [r.middle for r in ratios], yerr=errors, color=color, marker="o", capsize=3, label=f"G {group}"
    )


def write(result: Mapping[str, Any], out: Path) -> Sequence[Path]:
    """Write table and figure beside the JSON file `out`. Return their paths."""
    page = out.with_suffix(".md")
    write_text(page, table(result))
    return [page, figure(result, out.with_suffix(".png"))] if measured(result) else [page]


def insert(text: str, page: Path, mark: str = PEERS_HERE) -> None:
    """Put a text between `mark` and the next END of a page.

    Raises:
        ValueError: the page has no marks.
    """
    before, start, rest = page.read_text(encoding="utf-8").partition(mark)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{page} has no {mark} with {END} after it")
    write_text(page, f"{before}{mark}\n\n{text.strip()}\n\n{end}{after}")
