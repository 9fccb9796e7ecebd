"""Demonstrations as files: a dataset that data=jsonl reads, and arrow folders in the form that Reddit-v2 is released in."""

import csv
import pickle
import shutil
from pathlib import Path

from convrec_r1 import lists
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import replacing
from convrec_r1.data.adapters import jsonl
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import SPLITS, Conversation, Dataset
from convrec_r1.policy.prompts import chat


def write_dataset(data: Dataset, folder: Path) -> None:
    """Every split as {split}.jsonl and the catalog as catalog.csv: `data=jsonl data.path=FOLDER` reads it."""
    for split in SPLITS:
        if data[split]:
            jsonl.dump(data[split], folder / f"{split}.jsonl")
    with replacing(folder / "catalog.csv") as scratch, scratch.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["title", "year"])
        rows.writerows((item.title, "" if item.year is None else item.year) for item in data.catalog)


def write_arrow(data: Dataset, folder: Path, instruction: str) -> None:
    """Conversations with a demonstration as one arrow folder a split, and gt_catalog.pkl: what the public Rank-GRPO code
    loads, and `data=reddit_v2 data.prompt=published` too.

    `instruction`, its {n} filled in, opens each prompt that is not a published one already.
    """
    from datasets import Dataset as ArrowDataset
    from datasets import Features, List, Value, disable_progress_bars, enable_progress_bars

    message = List({"content": Value("string"), "role": Value("string")})
    features = Features(
        prompt=message,
        completion=message,
        seen_titles=List(Value("string")),
        groundtruth_with_release_year=List(List(Value("string"))),
    )
    disable_progress_bars()
    try:
        for split in SPLITS:
            rows = [_row(c, instruction) for c in data[split] if c.demonstration]
            shutil.rmtree(folder / split, ignore_errors=True)
            if rows:
                ArrowDataset.from_list(rows, features=features).save_to_disk(str(folder / split))
    finally:
        enable_progress_bars()
    with replacing(folder / "gt_catalog.pkl") as scratch, scratch.open("wb") as file:
        pickle.dump(_catalog(data.catalog), file, protocol=4)


def read_demonstrations(folder: Path) -> dict[str, Conversation]:
    """Conversations with their demonstrations, by id, of what `write_dataset` wrote."""
    files = [folder / f"{split}.jsonl" for split in ("train", "validation") if (folder / f"{split}.jsonl").is_file()]
    if not files:
        raise UserError(f"{folder} holds no demonstrations (train.jsonl). Name the folder of a task=distill run.")
    return {c.id: c for file in files for c in jsonl.read(file) if c.demonstration}


def _row(conversation: Conversation, instruction: str) -> dict:
    assert conversation.demonstration is not None
    return {
        "prompt": chat(conversation, instruction),
        "completion": [{"content": lists.format(conversation.demonstration), "role": "assistant"}],
        "seen_titles": list(conversation.seen),
        "groundtruth_with_release_year": [[title, _year(year)] for title, year in conversation.ground_truth],
    }


def _catalog(catalog: Catalog) -> list[tuple[str, int | None]]:
    return [(item.title, item.year) for item in catalog]


def _year(year: int | None) -> str:
    return "" if year is None else str(year)
