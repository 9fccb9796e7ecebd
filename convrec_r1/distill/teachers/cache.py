"""Cache of a teacher's answers on disk, keyed by content: a question that was paid for is never asked again."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from hashlib import blake2b
from pathlib import Path

from convrec_r1.base.errors import UserError
from convrec_r1.base.locks import locked
from convrec_r1.distill.answers import unusable
from convrec_r1.distill.teachers.base import Answer, Kind, Question

_AT_A_TIME = 500
"""Keys in one query; SQLite allows at least 999."""
_ENOUGH = 20
"""Answers from which a teacher's own rates are used."""
_CHARACTERS_PER_TOKEN = 4.0
"""Of English text with common tokenizers: used until then."""


class AnswerCache:
    """`folder`/answers.sqlite, a context manager. Several processes may use it at once.

    The key is the teacher (`Teacher.identity`), the question's messages and the limit of the answer. Each answer is
    committed when it arrives: a killed process loses none. Questions and API keys are not stored.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "answers.sqlite"

    def __enter__(self) -> "AnswerCache":
        with self._explained():
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{self.path.parent}: {error.strerror}. Give teacher.cache=FOLDER.") from error
            # Two processes that change the journal's mode at the same time would not wait for each other.
            with locked(f"{self.path}.lock"):
                self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
                self._db.execute("PRAGMA journal_mode=WAL")  # readers do not wait for the writer
                # Whole after kill -9; the last few answers may be lost in a power cut.
                self._db.execute("PRAGMA synchronous=NORMAL")
                # cut_off is unused: the format stays, so that answers of older versions are found.
                self._db.execute(
                    "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, teacher BLOB, kind TEXT, text TEXT, "
                    "prompt_characters INT, prompt_tokens INT, expected_tokens INT, completion_tokens INT, cut_off INT) "
                    "WITHOUT ROWID"
                )
                self._db.execute("CREATE INDEX IF NOT EXISTS by_teacher ON answers (teacher, kind)")
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def find(self, identity: str, questions: Sequence[Question]) -> list[Answer | None]:
        """Return the answer of `identity` to each question. None: no usable one (older versions kept others too)."""
        keys = [_key(identity, question) for question in questions]
        found: dict[bytes, Answer] = {}
        with self._explained():
            for start in range(0, len(keys), _AT_A_TIME):
                part = keys[start : start + _AT_A_TIME]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, text, prompt_tokens, completion_tokens FROM answers WHERE key IN ({marks})"
                found |= {key: Answer(*row) for key, *row in self._db.execute(query, part)}
        answers = [found.get(key) for key in keys]
        return [
            answer if answer is not None and not unusable(question.kind, answer.text) else None
            for question, answer in zip(questions, answers, strict=True)
        ]

    def add(self, identity: str, question: Question, answer: Answer) -> None:
        """Store an answer. The first usable one to a question stays."""
        if self.find(identity, [question]) != [None]:
            return
        row = (
            _key(identity, question), _digest(identity), question.kind, answer.text, characters(question),
            answer.prompt_tokens, question.expected_tokens, answer.completion_tokens,
        )  # fmt: skip
        with self._explained():
            self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)", row)

    def rates(self, identity: str, kind: Kind) -> tuple[float, float]:
        """Return tokens a character of this teacher's questions, and tokens of its answers by those expected.

        Of the answers of this kind, if there are enough of them.
        """
        with self._explained():
            ((answers, characters, prompt, expected, completion),) = self._db.execute(
                "SELECT count(*), total(prompt_characters), total(prompt_tokens), total(expected_tokens), "
                "total(completion_tokens) FROM answers WHERE teacher = ? AND kind = ?",
                (_digest(identity), kind),
            )
        if answers < _ENOUGH:
            return 1 / _CHARACTERS_PER_TOKEN, 1.0
        return prompt / max(1, characters), completion / max(1, expected)

    def asking(self, identity: str, timeout: float = -1) -> AbstractContextManager[None]:
        """Return the lock to hold while asking this teacher: two processes never pay for the same answer."""
        return locked(f"{self.path}.{_digest(identity).hex()}.lock", timeout)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path}: {error}. It holds the teacher's answers. If the disk has room and the file is damaged, move it "
                "away or give teacher.cache=FOLDER; its questions are then asked again."
            ) from error


def characters(question: Question) -> int:
    """Return the length of all its messages."""
    return sum(len(message.content) for message in question.messages)


def _key(identity: str, question: Question) -> bytes:
    asked = [identity, [list(message) for message in question.messages], question.max_tokens]
    return blake2b(json.dumps(asked).encode(), digest_size=16).digest()


def _digest(identity: str) -> bytes:
    return blake2b(identity.encode(), digest_size=8).digest()
