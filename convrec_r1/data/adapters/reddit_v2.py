"""Reddit-v2 as processed and released with Rank-GRPO (Zhu et al., arXiv 2510.20150).

A folder with train/, validation/ and test/, each an arrow folder as `datasets.Dataset.save_to_disk` writes it, or with
the same rows as {split}.jsonl. Fields: `prompt` and `completion` (lists of {role, content}), `seen_titles`,
`groundtruth_with_release_year` ([[title, "year"], ...]), and in the JSONL form `sample_id`. One row for every user who
replied with recommendations: rows of one post share the prompt, and with it the cluster. The catalog is a pickled list
of (title, year), or a CSV file.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from convrec_r1 import lists
from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.common import (
    Role,
    by_split,
    check_id,
    digest,
    find_catalog,
    merge_turns,
    read_messages,
    split_files,
)
from convrec_r1.data.adapters.rows import Row, read_jsonl
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import SPLITS, Conversation, Dataset, Split
from convrec_r1.lists import Item

_log = logging.getLogger(__name__)
_DIALOGUE = re.compile(r"here is the conversation:", re.IGNORECASE)
_SPEAKER = re.compile(r"(?:^|\s)(USER|SYSTEM):")
CATALOG_NAMES = ("gt_catalog.pkl", "catalog.csv")


def load(path: str | Path, *, catalog_path: str | Path | None = None) -> Dataset:
    """Read the folder; of both forms, arrow comes first. A split that is not there is empty.

    Without `catalog_path`, gt_catalog.pkl or catalog.csv is taken from the folder or from the one above. The prompt is
    passed on as published, instruction included. Rows without any ground truth are left out and counted in the log.
    Raises UserError for a folder without splits, a malformed row, an id used twice, or no catalog.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(
            f"{path} is not a folder. data.path must name the folder that holds train, validation and test."
        )
    catalog_path = catalog_path or find_catalog(path, CATALOG_NAMES)
    if catalog_path is None:
        raise UserError(
            f"No catalog ({' or '.join(CATALOG_NAMES)}) in {path} or the folder above. Name it: data.catalog=FILE."
        )
    catalog = Catalog.load(catalog_path)
    counts: Counter[str] = Counter()
    places: dict[str, str] = {}
    conversations = []
    for split, number, row in _rows(path):
        conversation = _conversation(row, split, number)
        check_id(row, conversation.id, places)
        if not conversation.ground_truth:
            counts["empty"] += 1
            continue
        counts["without"] += conversation.demonstration is None
        counts["foreign"] += sum(item not in catalog for item in conversation.ground_truth)
        conversations.append(conversation)
    _log.info(
        "reddit_v2: %d conversations, %d without a demonstration; left out %d rows without ground truth; "
        "%d ground truths are not in the catalog",
        *(len(conversations), counts["without"], counts["empty"], counts["foreign"]),
    )
    return Dataset(catalog, by_split(conversations))


def _rows(path: Path) -> Iterator[tuple[Split, int, Row]]:
    folders: list[tuple[Split, Path]] = [
        (split, path / split) for split in SPLITS if (path / split / "state.json").is_file()
    ]
    if folders:
        for split, folder in folders:
            for number, row in enumerate(_read_arrow(folder), start=1):
                yield split, number, row
        return
    files = list(split_files(path))
    if not files:
        raise UserError(
            f"{path} holds neither arrow folders (train/state.json, ...) nor JSONL files (train.jsonl, ...). "
            "data.path must name the folder that holds train, validation and test."
        )
    for split, file in files:
        for number, row in enumerate(read_jsonl(file), start=1):
            yield split, number, row


def _read_arrow(folder: Path) -> Iterator[Row]:
    from datasets import load_from_disk  # takes seconds to import, and JSONL does without

    try:
        # As arrow has it: a column may call itself an image or a sound, which datasets would fetch from wherever it says.
        table: Any = load_from_disk(str(folder)).with_format("arrow")
        table.data.validate(full=True)  # a length that is wrong in the file would be followed out of it
        number = 0
        for batch in table.iter(batch_size=1000):
            for fields in batch.to_pylist():
                number += 1
                yield Row(fields, f"{folder.name}, row {number}")
    except UserError:
        raise
    except Exception as error:  # damaged files and foreign types raise nearly anything
        raise UserError(
            f"{folder} cannot be read as a saved dataset ({type(error).__name__}: {error}). Copy it again, whole."
        ) from error


def _conversation(row: Row, split: Split, number: int) -> Conversation:
    messages = read_messages(row, "prompt")
    return Conversation(
        id=row.text("sample_id", f"{split}-{number}"),
        cluster=digest("\x1e".join(f"{message.role}\x1f{message.content}" for message in messages)),
        messages=messages,
        ground_truth=row.items("groundtruth_with_release_year"),
        seen=row.titles("seen_titles"),
        demonstration=_demonstration(row),
        split=split,
        has_instruction=True,
    )


def _demonstration(row: Row) -> tuple[Item, ...] | None:
    """The list in the last message of `completion`; None where there is none, or nothing in it is an item."""
    if not row.array("completion", "a list of {role, content}", []):
        return None
    return tuple(lists.parse(read_messages(row, "completion")[-1].content)) or None


def without_instruction(conversation: Conversation) -> Conversation:
    """The dialogue of a published prompt, a turn a message, for prompts in our own words.

    A published prompt ends its instruction with a colon after "conversation" and marks turns with USER: and SYSTEM:.
    """
    text = conversation.messages[-1].content
    start = _DIALOGUE.search(text)
    parts = _SPEAKER.split(text[start.end() :] if start else text)
    turns: list[tuple[Role, str]] = [("user", parts[0])]
    turns.extend(
        ("user" if who == "USER" else "assistant", said) for who, said in zip(parts[1::2], parts[2::2], strict=True)
    )
    messages = merge_turns(turns) or conversation.messages
    return replace(conversation, messages=messages, has_instruction=False)
