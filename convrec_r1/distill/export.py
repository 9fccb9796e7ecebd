"""Write demonstrations: as a dataset for data=jsonl, and as arrow folders in the published form of Reddit-v2."""

import pickle
import shutil
from pathlib import Path

import pandas as pd

from convrec_r1 import lists
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import replacing
from convrec_r1.data.adapters import jsonl
from convrec_r1.data.schema import SPLITS, Conversation, Dataset
from convrec_r1.policy.prompts import chat


def write_dataset(data: Dataset, folder: Path) -> None:
    """Write every split as {split}.jsonl and the catalog as catalog.csv: `data=jsonl data.path=FOLDER` reads them."""
    for split in SPLITS:
        if data[split]:
            jsonl.dump(data[split], folder / f"{split}.jsonl")
    with replacing(folder / "catalog.csv") as scratch:
        pd.DataFrame(data.catalog, columns=["title", "year"], dtype=object).to_csv(
            scratch, index=False, lineterminator="\r\n"
        )


def write_arrow(data: Dataset, folder: Path, instruction: str) -> None:
    """Write conversations with a demonstration as one arrow folder a split, and gt_catalog.pkl: the public Rank-GRPO code
    and `data=reddit_v2 data.prompt=published` load them.

    `instruction`, with {n} filled in, starts each prompt that is not a published one.
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
        pickle.dump([tuple(item) for item in data.catalog], file, protocol=4)


def read_demonstrations(folder: Path) -> dict[str, Conversation]:
    """Return the conversations with demonstrations that `write_dataset` wrote, by id."""
    files = [folder / f"{split}.jsonl" for split in ("train", "validation") if (folder / f"{split}.jsonl").is_file()]
    if not files:
        raise UserError(f"{folder} has no demonstrations (train.jsonl). Give the folder of a task=distill run.")
    return {c.id: c for file in files for c in jsonl.read(file) if c.demonstration}


def _row(conversation: Conversation, instruction: str) -> dict:
    return {
        "prompt": chat(conversation, instruction),
        "completion": [{"content": lists.format(conversation.demonstration or ()), "role": "assistant"}],
        "seen_titles": list(conversation.seen),
        "groundtruth_with_release_year": [[title, str(year or "")] for title, year in conversation.ground_truth],
    }
