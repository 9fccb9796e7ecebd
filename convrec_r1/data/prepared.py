"""Prepared data: large files are read and checked once, and memory-mapped from then on.

outputs/prepared/<key>/ holds the conversations as a run trains and evaluates on them (data/stored.py), the catalog, and
prepared.json with what else reading the files gave: digests, and the notes that were logged. The key covers the contents of the
files, the options that decide what is read, the matching rule, and the code that reads. prepared.json is written last: a folder
without it is not complete, and is made again. evaluate/popularity.py adds popularity-<key>.npy: the counts of the training
split.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import convrec_r1
from convrec_r1.base.digest import of_code, of_file, of_value, stamp
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_json, write_json
from convrec_r1.base.locks import Timeout, locked
from convrec_r1.base.plugins import PACKAGE, TARGET, is_own, source_digests
from convrec_r1.data.adapters.base import FileAdapter
from convrec_r1.data.config import DataConfig
from convrec_r1.data.files import unreadable
from convrec_r1.data.schema import SPLITS, Dataset
from convrec_r1.data.stored import CATALOG, TRUTHS, read_catalog, read_items, rows_of
from convrec_r1.matching import Matching

_log = logging.getLogger(__name__)
MARK = "prepared.json"
"""Written last into a folder of prepared data."""
LEAST = 16 << 20
"""Bytes of files from which on they are prepared. Smaller ones are read into memory, which takes a second or two."""
_CODE = ("base/digest", "lists", "matching", "data")
"""Code that decides what is read."""
_STAMPS = "files.json"
"""Digests of files that were read before, with the stamps of the files."""
_SETTLED = 2_000_000_000
"""Nanoseconds after which a file that changes again has another time, on any file system."""


@dataclass(frozen=True)
class Inputs:
    """What prepared data is made from."""

    name: str
    """The dataset's."""
    path: str
    """`data.path`, for messages."""
    sources: list[tuple[str, Path]]
    """The files, each with its name in messages and ids."""
    options: dict[str, Any]
    """Everything else that the conversations depend on."""

    def stamps(self) -> list[tuple[int, int, int]]:
        """Return the stamp of each file."""
        return [stamp(file) for _, file in self.sources]


def inputs_of(adapter: FileAdapter, cfg: DataConfig, n: int, match: Matching) -> Inputs | None:
    """Return what prepared data would be made from. None: the data is small, or not all that it depends on is known.

    All of it is known for this package's own adapters of files, and for a matching rule that is a dataclass.
    """
    if not (is_own(type(adapter).__module__) and is_dataclass(match)):
        return None
    try:
        files = adapter.sources()
        if sum(file.stat().st_size for file in files) < LEAST:
            return None
    except (UserError, OSError):  # reading says what is wrong
        return None
    root = adapter.path if adapter.path.is_dir() else adapter.path.parent
    names = [file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name for file in files]
    neighbours = cfg.demonstrations == "neighbours"
    rule = type(match)
    options = {
        "adapter": [cfg._target_, cfg.options],
        "catalog": names[-1] if adapter.catalog_file() else None,
        "sizes": [cfg.sizes, cfg.seed] if cfg.sizes else None,
        "prompt": [cfg.prompt.value, cfg.exclude_seen],
        "neighbours": n if neighbours else None,
        "match": [repr(match), source_digests({TARGET: f"{rule.__module__}.{rule.__qualname__}"})],
        "code": of_code(*_CODE),
    }
    return Inputs(cfg.name, str(adapter.path), list(zip(names, files, strict=True)), options)


def find_or_prepare(kept: Path, inputs: Inputs, write: Callable[[Path], dict[str, str]]) -> Dataset | None:
    """Return prepared data, made if necessary. Of several processes one makes it, and the others wait.

    Args:
        kept: the folder of all prepared data.
        write: writes the files of a folder, and returns the digests of the dataset.
    Returns:
        None if `kept` cannot be written.
    """
    try:
        kept.mkdir(parents=True, exist_ok=True)
        with locked(kept / f"{_STAMPS}.lock"):
            key = _key(kept, inputs, remember=True)
    except OSError as error:
        key = _key(kept, inputs, remember=False)
        if (found := _open(kept / key, inputs)) is None:
            _log.warning(
                "%s cannot be written (%s), so the data is not prepared there: every process reads all of it into memory, "
                "each time. Set outputs=DIR to a folder that can be written.",
                kept,
                error.strerror or error,
            )
        return found
    folder = kept / key
    with _turn(folder):
        if (found := _open(folder, inputs)) is None:
            _log.info("Data %s: preparing it in %s, once for all runs.", inputs.name, folder)
            _prepare(folder, inputs, write)
            found = _open(folder, inputs, replay=False)
            assert found is not None
    return found


def _key(kept: Path, inputs: Inputs, *, remember: bool) -> str:
    """Return the key of prepared data. Files that have not changed since they were last looked at are not read again."""
    known: dict[str, list[Any]] = {}
    with contextlib.suppress(OSError, ValueError):
        known = read_json(kept / _STAMPS)
    before, contents = dict(known), []
    for name, file in inputs.sources:
        place, now = str(file.absolute()), list(stamp(file))
        *then, digest = known.get(place) or [None]
        if then != now:
            try:
                digest = of_file(file)
            except OSError as error:
                raise unreadable(file, error) from error
            known.pop(place, None)
            if time.time_ns() - now[1] > _SETTLED:
                known[place] = [*now, digest]
        contents.append([name, digest])
    if remember and known != before:
        write_json(kept / _STAMPS, known)
    return of_value({"files": contents, **inputs.options})


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. Say so when another process has it."""
    lock = f"{folder}.lock"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, timeout=0.5))
        except Timeout:
            _log.info("Another process prepares this data in %s: waiting for it.", folder)
            stack.enter_context(locked(lock))
        yield


def _prepare(folder: Path, inputs: Inputs, write: Callable[[Path], dict[str, str]]) -> None:
    started = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)  # of a killed process
    try:
        folder.mkdir()
        stamps = inputs.stamps()
        with _heard() as said:
            digests = write(folder)
        if inputs.stamps() != stamps:
            raise UserError(
                f"{inputs.path}: its files have changed while they were read. Start again when they are whole."
            )
        rows = {split: len(rows_of(folder, split)) for split in SPLITS}
        files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        about = {
            "version": convrec_r1.__version__, "data": inputs.name, "path": inputs.path, "rows": rows, "digests": digests,
            "said": said, "files": files, "seconds": round(time.monotonic() - started, 1),
        }  # fmt: skip
        write_json(folder / MARK, about)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(
            f"The prepared data cannot be written to {folder}: {error.strerror or error}. It takes about as much as the files "
            "of data.path. Make room (task=kept lists what can be deleted), or set outputs=DIR."
        ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    size = sum(files.values()) / 2**20
    _log.info("Prepared in %.0f s, %s MiB. task=kept lists and deletes it.", time.monotonic() - started, f"{size:,.0f}")


def _open(folder: Path, inputs: Inputs, *, replay: bool = True) -> Dataset | None:
    """Return the prepared data in a folder, None if it is not complete. replay: log the notes that reading the files gave."""
    about: dict[str, Any] = {}
    try:
        about = read_json(folder / MARK)
        cut = [name for name, size in about["files"].items() if (folder / name).stat().st_size != size]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        cut = [MARK]
    if cut:
        _log.warning("%s is damaged (%s): the data is prepared again.", folder, ", ".join(cut))
        return None
    truths, _ = read_items(folder / TRUTHS)
    splits = {split: rows_of(folder, split, truths) for split in SPLITS}
    data = Dataset(read_catalog(folder / CATALOG), splits, digests=dict(about["digests"]), folder=folder)
    if replay:
        for name, level, message in about["said"]:
            # The files may have been moved since.
            logging.getLogger(name).log(level, "%s", message.replace(about["path"], inputs.path))
        _log.info("Data %s: prepared before, in %s", inputs.name, folder)
    return data


@contextlib.contextmanager
def _heard() -> Iterator[list[tuple[str, int, str]]]:
    """Collect what the data room logs meanwhile, as [logger, level, message]: later runs are told the same.

    Everything is collected, also in a process that is to print errors only.
    """
    said: list[tuple[str, int, str]] = []
    package, room = logging.getLogger(PACKAGE), logging.getLogger(f"{PACKAGE}.data")

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append((record.name, record.levelno, record.getMessage()))
            if package.isEnabledFor(record.levelno):
                package.handle(record)

    listener, level, propagate = Listener(), room.level, room.propagate
    room.addHandler(listener)
    room.setLevel(logging.INFO)
    room.propagate = False
    try:
        yield said
    finally:
        room.removeHandler(listener)
        room.setLevel(level)
        room.propagate = propagate
