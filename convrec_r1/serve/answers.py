"""Answer a JSON Lines file of requests. An interrupted job resumes: lines that are answered are not asked again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convrec_r1.base.digest import of_value
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_jsonl
from convrec_r1.base.locks import Timeout, locked
from convrec_r1.base.progress import bar
from convrec_r1.data.entries import read_entries
from convrec_r1.data.faults import Faults, Notes
from convrec_r1.serve.filters import Condition
from convrec_r1.serve.recommender import Recommender
from convrec_r1.serve.request import Request, as_messages
from convrec_r1.serve.session import Reply

KEYS = ("id", "message", "messages", "n", "seen", "exclude", "where", "temperature", "top_p", "top_k", "seed")
"""Keys of a line. Others are ignored: a file of data=jsonl can be read."""


@dataclass(frozen=True)
class Asked:
    """A line of the input."""

    id: str
    request: Request
    digest: str
    """Of the request and the policy."""


def read_requests(file: Path, common: Mapping[str, Any], policy: str) -> list[Asked]:
    """Read a file of requests.

    Args:
        common: options of `Request` for lines that do not have them. `seen` and `exclude` are added to a line's own.
        policy: what tells the policy from others, as part of the digests.
    Raises:
        UserError: the first ten lines that are no requests, or an id that stands twice.
    """
    faults, notes = Faults(), Notes()
    asked: dict[str, Asked] = {}
    for number, (row, where) in enumerate(read_entries(file, "a file of requests", notes, faults), start=1):
        try:
            one = _asked(row, f"line-{number}", common, policy)
            if one.id in asked:
                raise UserError(f"the id {one.id!r} was used before.")
            asked[one.id] = one
        except UserError as error:
            faults.add(f"{where}: {str(error).removeprefix('request: ')}")
    faults.check()
    if not asked:
        raise UserError(f"{file} has no lines.")
    return list(asked.values())


def answer_file(recommender: Recommender, asked: list[Asked], output: Path) -> int:
    """Add the answers to `output`, in the order of the requests. Return how many there were already.

    Raises:
        UserError: `output` holds answers to other requests, or another process writes to it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(output.with_name(f".{output.name}.lock"), timeout=0):
            done = _answered(output, asked)
            with bar("Recommending", len(asked), done) as progress, output.open("ab") as file:
                for one, reply in _replies(recommender, asked[done:]):
                    _append(file, _row(one, reply))
                    progress.advance()
            return done
    except Timeout:
        raise UserError(f"Another process writes to {output}. Wait for it, or choose another output.") from None
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}.") from error


def _asked(row: Any, name: str, common: Mapping[str, Any], policy: str) -> Asked:
    if not isinstance(row, dict):
        raise UserError(
            'a line must be an object, as {"message": "..."} or {"messages": [{"role": "user", "content": "..."}]}.'
        )
    given = {key: row[key] for key in KEYS if row.get(key) is not None}
    identifier = str(given.pop("id", name))
    if ("message" in given) == ("messages" in given):
        raise UserError('a line needs "message" or "messages", one of both.')
    messages = given.pop("message", None) or given.pop("messages", None)
    for key in ("seen", "exclude"):
        own = given.get(key, [])
        if not isinstance(own, list) or not all(isinstance(entry, (str, list)) for entry in own):
            raise UserError(f'"{key}" must be a list of titles.')
        own = [entry if isinstance(entry, str) else _title(entry) for entry in own]
        given[key] = [*own, *common.get(key, ())]
    request = Request(messages, **{**common, **given})
    as_messages(request.messages)
    if request.where is not None:
        Condition.parse(request.where)
    return Asked(identifier, request, of_value([policy, asdict(request)]))


def _title(entry: list[Any]) -> str:
    """Return [title, year] as `Title (Year)`."""
    if len(entry) != 2 or not isinstance(entry[0], str) or not isinstance(entry[1], (int, type(None))):
        raise UserError(f"an item must be a title or [title, year], found {json.dumps(entry)[:60]}.")
    return entry[0] if entry[1] is None else f"{entry[0]} ({entry[1]})"


def _answered(output: Path, asked: list[Asked]) -> int:
    """Return how many requests are answered, and remove a last line that was cut off."""
    rows = read_jsonl(output)
    for number, (row, one) in enumerate(zip(rows, asked, strict=False), start=1):
        if not isinstance(row, dict) or row.get("request") != one.digest:
            raise UserError(
                f"{output}, line {number}: not an answer to {one.id} of this input, policy and options. Choose another output, "
                "or delete it."
            )
    if len(rows) > len(asked):
        raise UserError(
            f"{output} has {len(rows)} answers, and the input {len(asked)} requests. Choose another output."
        )
    if output.exists():
        with output.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    return len(rows)


def _replies(recommender: Recommender, asked: list[Asked]) -> Iterator[tuple[Asked, Reply]]:
    """Yield the requests with their complete replies, in order. As many as the session takes are under way."""
    ahead = recommender.session.limit
    replies: list[Reply] = []
    try:
        for place, one in enumerate(asked):
            while len(replies) < min(len(asked), place + ahead):
                replies.append(recommender.session.submit(asked[len(replies)].request))
            try:
                replies[place].result()
            except UserError as error:
                raise UserError(f"{one.id}: {error}") from None
            yield one, replies[place]
    finally:
        for reply in replies:
            reply.cancel()


def _row(one: Asked, reply: Reply) -> dict[str, Any]:
    found = [recommendation.as_dict() for recommendation in reply.result()]
    return {"id": one.id, "recommendations": found, "notes": reply.notes, "request": one.digest}


def _append(file: Any, row: dict[str, Any]) -> None:
    """Add a line with one write, so that a killed process leaves at most a last line without its newline."""
    file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
    file.flush()
    os.fsync(file.fileno())
