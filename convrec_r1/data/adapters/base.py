"""The interface of a dataset adapter: `data._target_` names a class that has it."""

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from convrec_r1.base.digest import files_in
from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.common import Role, merge_turns
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation, Dataset

_DIALOGUE = re.compile(r"here is the conversation:", re.IGNORECASE)
_SPEAKER = re.compile(r"(?:^|\s)(USER|SYSTEM):")


@runtime_checkable
class Adapter(Protocol):
    """Reads one published form of a dataset. A class of your own inherits this one and defines `load`.

    Its `__init__` takes what it needs of the following by name, and the keys of `data.options` as keyword arguments:

        path: Path | None      `data.path`
        catalog: Path | None   `data.catalog`
        n: int                 items in a list
        seed: int              `data.seed`
        sizes: dict            split -> wanted number of conversations; a split without a limit is not in it
        match: Matching        when two titles name the same item
        exclude_seen: bool     `data.exclude_seen`; false: items named before may be ground truths

    `__init__` opens no files: it also runs where only the metadata is wanted.
    """

    needs_path: ClassVar[bool] = True
    """Whether `data.path` must be given."""
    published_prompt_n: ClassVar[int | None] = None
    """Items that the prompts of the dataset ask for in their own words. None: it publishes no prompts."""

    simulated_teacher: ClassVar[bool] = False
    """Whether teacher=simulated knows the users: those of movieland."""

    @abstractmethod
    def load(self) -> Dataset:
        """Return the catalog and all three splits; an absent split is empty. Splits are cut to size afterwards.

        Log what is left out, with counts. Raises UserError with file and line for a malformed row.
        """
        ...

    def without_instruction(self, conversation: Conversation) -> Conversation:
        """Return a conversation with its published prompt (`has_instruction`) as plain turns, for `data.prompt=ours`.

        All messages stay but the system's, which are the instruction. In a user's message the instruction ends in "here is the
        conversation:"; turns after it, or in the first message, begin with USER: and SYSTEM:.
        """
        turns: list[tuple[Role, str]] = []
        for message in conversation.messages:
            text, role = message.content, message.role
            start = _DIALOGUE.search(text) if role == "user" else None
            if role == "user" and (start or not turns):
                first, *parts = _SPEAKER.split(text[start.end() :] if start else text)
                turns.append(("user", first))
                pairs = zip(parts[::2], parts[1::2], strict=True)
                turns.extend(("user" if who == "USER" else "assistant", said) for who, said in pairs)
            elif role != "system":
                turns.append((role, text))
        kept = merge_turns(turns) or tuple(message for message in conversation.messages if message.role != "system")
        return replace(conversation, messages=kept, has_instruction=False)

    def metadata(self) -> Path | Iterable[Mapping[str, Any]] | None:
        """Return what is known of the items for Stage 1: a file in a form of `distill.metadata`, or its rows. None: nothing."""
        return None


class FileAdapter(Adapter):
    """An adapter of files, whose catalog is a file too: `data.catalog`, or one beside or above `path` with a known name."""

    catalog_names: ClassVar[tuple[str, ...]] = ()
    """Names of a catalog file, the first one preferred."""

    def __init__(self, path: str | Path, catalog: str | Path | None = None) -> None:
        self.path = Path(path)
        self.catalog = Path(catalog) if catalog else None

    def stream(self) -> tuple[Catalog, Iterator[Conversation]]:
        """Return the catalog, and the conversations of `load` one by one, which need not be in memory together.

        The conversations of each split come in order; splits may alternate. Errors as those of `load`, some at the end.
        """
        data = self.load()
        return data.catalog, chain.from_iterable(data.splits.values())

    def sources(self) -> list[Path]:
        """Return the files that `load` reads. Raises UserError where there are none."""
        return self.with_catalog(files_in(self.path))

    def with_catalog(self, files: Iterable[Path]) -> list[Path]:
        """Return the files, and the catalog's."""
        catalog = self.catalog_file()
        return [*files, *([catalog] if catalog else [])]

    def metadata(self) -> Path | Iterable[Mapping[str, Any]] | None:
        return self.catalog_file()

    def catalog_file(self) -> Path | None:
        """Return the catalog's file, None if there is none."""
        if self.catalog:
            return self.catalog
        folder = self.path if self.path.is_dir() else self.path.parent
        places = [place / name for place in (folder, folder.resolve().parent) for name in self.catalog_names]
        return next((place for place in places if place.is_file()), None)

    def load_catalog(self) -> Catalog:
        """Read the catalog's file. Raises UserError where there is none."""
        file = self.catalog_file()
        if file is None:
            raise UserError(
                f"No catalog ({', '.join(self.catalog_names)}) beside {self.path} or in the folder above. Name it: "
                "data.catalog=FILE."
            )
        return Catalog.load(file)
