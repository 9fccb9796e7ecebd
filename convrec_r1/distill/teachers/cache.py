"""Every answer a teacher ever gave, on disk by content: what was paid for once is never asked again."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from convrec_r1.base.errors import UserError
from convrec_r1.distill.teachers.base import Answer, Kind, Question

FORMAT = 1
"""Of the file, kept in its `user_version`. Another format is refused, never guessed at."""
_AT_A_TIME = 500
"""Keys in one query; SQLite takes 999 at least."""


class Usage(NamedTuple):
    """Sums over a teacher's answers of one kind, by which questions to come are estimated."""

    answers: int
    prompt_characters: int
    prompt_tokens: int
    expected_tokens: int
    """Of the answers, as their questions had it."""
    completion_tokens: int


class AnswerCache:
    """`folder`/answers.sqlite, a context manager. Several processes may use one at a time.

    An answer is found by who gave it (`Teacher.identity`), the question's messages and the limit of the answer. Each is
    committed when it comes, so that a process that is killed loses none. Questions and keys of the API are not stored.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "answers.sqlite"

    def __enter__(self) -> "AnswerCache":
        with self._explained():
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{self.path.parent}: {error.strerror}. Give teacher.cache=FOLDER.") from error
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")  # readers do not wait for the writer
            self._db.execute("PRAGMA synchronous=NORMAL")  # whole after kill -9; the last few may go with a power cut
            with FileLock(f"{self.path}.lock"):
                self._check_format()
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def find(self, identity: str, questions: Sequence[Question]) -> list[Answer | None]:
        """What `identity` answered to each of the questions, None where it was not asked yet."""
        keys = [_key(identity, question) for question in questions]
        found: dict[bytes, Answer] = {}
        with self._explained():
            for start in range(0, len(keys), _AT_A_TIME):
                part = keys[start : start + _AT_A_TIME]
                marks = ",".join("?" * len(part))
                rows = self._db.execute(
                    f"SELECT key, text, prompt_tokens, completion_tokens, cut_off FROM answers WHERE key IN ({marks})",
                    part,
                )
                found |= {key: Answer(text, read, written, bool(cut)) for key, text, read, written, cut in rows}
        return [found.get(key) for key in keys]

    def add(self, identity: str, question: Question, answer: Answer) -> None:
        """Keep an answer; the first to a question stays."""
        with self._explained():
            self._db.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    _key(identity, question), _digest(identity), question.kind, answer.text,
                    characters(question), answer.prompt_tokens,
                    question.expected_tokens, answer.completion_tokens, answer.cut_off,
                ),
            )  # fmt: skip

    def usage(self, identity: str, kind: Kind) -> Usage:
        with self._explained():
            (row,) = self._db.execute(
                "SELECT count(*), total(prompt_characters), total(prompt_tokens), total(expected_tokens), "
                "total(completion_tokens) FROM answers WHERE teacher = ? AND kind = ?",
                (_digest(identity), kind),
            )
        return Usage(*map(int, row))

    def asking(self, identity: str) -> FileLock:
        """To be held by whoever asks this teacher: two processes that want the same answer pay for it once."""
        return FileLock(f"{self.path}.{_digest(identity).hex()}.lock")

    def _check_format(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version == 0 and not tables:
            self._db.execute(
                "CREATE TABLE answers (key BLOB PRIMARY KEY, teacher BLOB, kind TEXT, text TEXT, prompt_characters INT, "
                "prompt_tokens INT, expected_tokens INT, completion_tokens INT, cut_off INT) WITHOUT ROWID"
            )
            self._db.execute("CREATE INDEX by_teacher ON answers (teacher, kind)")
            self._db.execute(f"PRAGMA user_version={FORMAT}")
        elif version != FORMAT:
            raise UserError(
                f"{self.path} is not a cache of answers that this version reads (format {version}, not {FORMAT}). Move it "
                "away, or give teacher.cache=FOLDER."
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path}: {error}. It holds the teacher's answers; if the disk has room and the file is damaged, move it "
                "away or give teacher.cache=FOLDER (what it holds is then asked again)."
            ) from error


def characters(question: Question) -> int:
    """Of all its messages."""
    return sum(len(message.content) for message in question.messages)


def _key(identity: str, question: Question) -> bytes:
    asked = [identity, [list(message) for message in question.messages], question.max_tokens]
    return blake2b(json.dumps(asked).encode(), digest_size=16).digest()


def _digest(identity: str) -> bytes:
    return blake2b(identity.encode(), digest_size=8).digest()
