"""Parser and matcher on what GPT-4 and GPT-3.5 really answered: how much is read, how much is in two catalogs, what is not.

    python experiments/real_teacher_answers.py            # reads ../shared/data, writes experiments/real_answers/

The 456 answers, to contexts of INSPIRED, are those of "Large Language Models as Zero-Shot Conversational Recommenders"
(CIKM 2023).
"""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np

from convrec_r1.base.files import write_json
from convrec_r1.data.catalog import Catalog
from convrec_r1.distill.answers import recommended
from convrec_r1.distill.match import HOWS, Matcher
from convrec_r1.lists import Item, lines, parse
from convrec_r1.matching import Folded

ROOT = Path(__file__).parent
SHARED = ROOT.parents[1] / "shared" / "data"
OUT = ROOT / "real_answers"
MODELS = ("gpt-4", "gpt-3.5-turbo")


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


if __name__ == "__main__":
    main()
