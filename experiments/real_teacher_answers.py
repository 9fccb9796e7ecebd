"""What GPT-4 and GPT-3.5 really answered: how much of it is read, what is in two catalogs, and what the lists are worth.

    python experiments/real_teacher_answers.py            # reads ../shared/data, writes experiments/real_answers/

The 456 answers, to contexts of INSPIRED, are those of "Large Language Models as Zero-Shot Conversational Recommenders"
(CIKM 2023). They are scored by task=score with and without the titles that a conversation names already, beside the most
popular films of INSPIRED's development dialogues. The commands are printed and stand in scores.md; the runs stay in
outputs/real_answers/.
"""

import csv
import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from convrec_r1.base import draw
from convrec_r1.base.files import read_json, write_json, write_jsonl, write_text
from convrec_r1.base.tables import Column, Table
from convrec_r1.data.adapters.cikm23 import CIKM23
from convrec_r1.data.adapters.inspired import Inspired
from convrec_r1.data.adapters.jsonl import dump
from convrec_r1.data.catalog import Catalog
from convrec_r1.distill.answers import recommended
from convrec_r1.distill.match import HOWS, Matcher
from convrec_r1.lists import Item, lines, parse
from convrec_r1.matching import Folded, Normalised

ROOT = Path(__file__).parent
SHARED = ROOT.parents[1] / "shared" / "data"
OUT = ROOT / "real_answers"
MODELS = ("gpt-4", "gpt-3.5-turbo")
NAMES = {"gpt-3.5-turbo": "GPT-3.5", "gpt-4": "GPT-4"}
SEEN = {"excluded": True, "counted": False}
"""What becomes of titles that the conversation names already -> data.exclude_seen."""
METRICS = ("ndcg@5", "ndcg@10", "ndcg@20", "recall@5", "recall@10", "recall@20")
QUALITY = {"catalog/valid": "in catalog", "list/seen": "seen", "list/duplicates": "repeats", "list/length": "lines"}
RUNS = Path("outputs/real_answers")


def answers(model: str) -> list[str]:
    rows = (SHARED / "llm_outputs" / f"inspired_{model}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["response"] for row in rows]


def inspired() -> list[Item]:
    """The films of cikm23/inspired, which are DBpedia's entities: Die_Hard, Bronson_(film), Fargo_(1996_film)."""
    folder = SHARED / "cikm23" / "inspired"
    entities = json.loads((folder / "entity2id.json").read_text())
    wanted = set(json.loads((folder / "item_ids.json").read_text()))
    names = [name for name, number in entities.items() if number in wanted]
    found = []
    for name in names:
        title = name.removeprefix("<http://dbpedia.org/resource/").removesuffix(">").replace("_", " ")
        title, _, kind = title.removesuffix(")").partition(" (")
        year = re.match(r"\d{4}", kind)
        found.append(Item(title.strip(), int(year[0]) if year else None))
    return list(dict.fromkeys(found))


def strict(text: str) -> int:
    """Lines that Stage 2's reward would read: `Title (Year)` alone."""
    return sum(slot is not None and slot.year is not None for slot in parse(text))


def study(model: str, catalogs: dict[str, list[Item]]) -> tuple[dict, dict[str, list[tuple[Item, str, str, int]]]]:
    texts = answers(model)
    lists = [recommended(text) for text in texts]
    entries = [item for found in lists for item in found]
    result = {
        "answers": len(texts),
        "answers_with_a_list": float(np.mean([len(found) > 0 for found in lists])),
        "answers_with_20_items": float(np.mean([len(found) == 20 for found in lists])),
        "lines": sum(len(lines(text)) for text in texts),
        "entries": len(entries),
        "entries_with_a_year": float(np.mean([item.year is not None for item in entries])),
        "lines_that_the_reward_would_read": sum(map(strict, texts)),
        "different_items": len(set(entries)),
    }
    looked_at = {}
    for name, catalog in catalogs.items():
        unique = list(Counter(entries).items())
        matches = Matcher(catalog, np.zeros(len(catalog)), Folded(), 92).match([item for item, _ in unique])
        times = np.array([count for _, count in unique])
        result[name] = {how: float(times[matches.how == how].sum() / times.sum()) for how in HOWS}
        looked_at[name] = [
            (item, str(how), str(catalog[at]) if at >= 0 else "", count)
            for (item, count), how, at in zip(unique, matches.how, matches.index, strict=True)
        ]
    return result, looked_at


def write_inputs(folder: Path) -> None:
    """Write the test conversations with their catalog, INSPIRED's development dialogues to count, and the answers."""
    for name, exclude in SEEN.items():
        test = CIKM23(SHARED / "cikm23" / "inspired", Normalised(), exclude_seen=exclude).load()
        known = Inspired(SHARED / "inspired", Normalised(), exclude_seen=exclude).load()
        counted = [replace(c, split="train") for conversations in known.splits.values() for c in conversations]
        bare = [replace(c, ground_truth=tuple(Item(item.title) for item in c.ground_truth)) for c in counted]
        dump(bare, folder / name / "train.jsonl")
        dump(test["test"], folder / name / "test.jsonl")
        write_json(folder / name / "catalog.json", [{"title": item.title} for item in test.catalog])
    rows = (SHARED / "cikm23" / "inspired" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    ids = ["{dialog_id}-{turn_id}".format_map(json.loads(row)) for row in rows]
    for model in MODELS:
        texts = answers(model)
        write_jsonl(folder / f"{model}.jsonl", [{"id": i, "text": t} for i, t in zip(ids, texts, strict=True)])


def scores() -> None:
    """Score the answers and write scores.csv, scores.md and scores.png."""
    write_inputs(RUNS / "inputs")
    commands, found, notes = [], [], []
    for seen in SEEN:
        study = RUNS / seen
        for model, name in NAMES.items():
            data = ["data=jsonl", "data.name=inspired", f"data.path={RUNS}/inputs/{seen}", "n=20", "match=normalised"]
            lists = [
                f"lists={RUNS}/inputs/{model}.jsonl",
                f"name={name}",
                f"hydra.run.dir={study}/{model}",
                "fresh=true",
            ]
            commands.append(run("task=score", *lists, *data))
        commands.append(run("task=compare", f"runs={study}/gpt-*", "compare.baseline=popularity"))
        table = pd.read_csv(study / "comparison" / "metrics.csv")
        table.insert(0, "seen_titles", seen)
        found.append(table)
        summary = read_json(study / "gpt-4" / "summary.json")
        notes.append((seen, summary["conversations"], pd.read_csv(study / "comparison" / "differences.csv")))
    table = pd.concat(found)
    kept = table[table["metric"].isin([*METRICS, *QUALITY])]
    write_text(OUT / "scores.csv", kept.to_csv(index=False, lineterminator="\n"))
    write_text(OUT / "scores.md", described(kept, notes, commands))
    figure(kept, {seen: count for seen, count, _ in notes})


def run(*arguments: str) -> str:
    """Run a command of ConvRec-R1 and return it."""
    command = shlex.join(["python", "-m", "convrec_r1", *arguments])
    print(command, flush=True)
    subprocess.run([sys.executable, "-m", "convrec_r1", *arguments], check=True)
    return command


def described(table: pd.DataFrame, notes: list[tuple[str, int, pd.DataFrame]], commands: list[str]) -> str:
    lines = ["# Real answers of GPT-4 and GPT-3.5 on INSPIRED", "", "![NDCG@20 and Recall@20](scores.png)", ""]
    for seen, count, differences in notes:
        part = table[table["seen_titles"] == seen].set_index(["system", "metric"])
        rows = []
        for system in dict.fromkeys(part.index.get_level_values("system")):
            values = [part.loc[(system, metric)] for metric in METRICS]
            cells = [f"{v['mean']:.3f} ({v['low']:.3f} to {v['high']:.3f})" for v in values]
            rows.append([system, *cells, *(f"{part.loc[(system, name)]['mean']:.2f}" for name in QUALITY)])
        heading = [name.replace("ndcg", "NDCG").replace("recall", "Recall") for name in METRICS]
        lines += [f"## Titles named before: {seen} ({count} conversations)", ""]
        lines += Table(tuple(map(Column, ("", *heading, *QUALITY.values()))), rows).markdown()
        chosen = differences[differences["metric"] == "ndcg@20"]
        lines += [""] + [
            f"- NDCG@20, {d.system} minus {d.baseline}: {d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f}), "
            f"p = {d.p_holm:.3g} (Holm)"
            for d in chosen.itertuples()
        ]
        lines.append("")
    lines += [
        "Intervals: 95 %, bootstrap over dialogues. Seen: titles of a list that the conversation names already; where they are",
        "counted there are none, as they are titles like all others. Popularity: of INSPIRED's development dialogues.",
        "",
        *(f"    {command}" for command in commands),
    ]
    return "\n".join(lines) + "\n"


def figure(table: pd.DataFrame, counts: dict[str, int]) -> None:
    colors = {"Popularity": "#999999", "GPT-3.5": "#56B4E9", "GPT-4": "#0072B2"}
    with draw.style():
        plot, grid = draw.panels(2, 2, (9, 5.2), sharey="row")
        for row, metric in zip(grid, ("ndcg@20", "recall@20"), strict=True):
            for axes, (seen, count) in zip(row, counts.items(), strict=True):
                part = table[(table["seen_titles"] == seen) & (table["metric"] == metric)].set_index("system")
                part = part.loc[list(colors)]
                bounds = list(zip(part["low"], part["high"], strict=True))
                draw.bars(axes, list(colors), list(part["mean"]), bounds, list(colors.values()))
                axes.set(title=f"Titles named before: {seen} ({count})" if metric == "ndcg@20" else "")
                axes.set_ylabel(metric.replace("ndcg", "NDCG").replace("recall", "Recall"))
        draw.save(plot, OUT / "scores.png")


def main() -> None:
    catalogs = {"redial": list(Catalog.load(SHARED / "redial" / "movies.jsonl")), "inspired": inspired()}
    found = {"catalogs": {name: len(items) for name, items in catalogs.items()}}
    OUT.mkdir(exist_ok=True)
    for model in MODELS:
        found[model], looked_at = study(model, catalogs)
        for name, rows in looked_at.items():
            with (OUT / f"{model}_{name}.csv").open("w", newline="", encoding="utf-8") as file:
                written = csv.writer(file)
                written.writerow(["title", "year", "how", "matched", "times"])
                # What was matched by guess, and what was not matched: the most frequent first.
                rows = [row for row in rows if row[1] in ("fuzzy", "year", "none")]
                for item, how, matched, times in sorted(rows, key=lambda row: (row[1], -row[3], row[0].title)):
                    written.writerow([item.title, item.year or "", how, matched, times])
    write_json(OUT / "summary.json", found)
    print(json.dumps(found, indent=1))
    scores()


if __name__ == "__main__":
    main()
