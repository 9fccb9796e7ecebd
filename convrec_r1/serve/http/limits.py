"""Limits of a request's contents, which the config sets."""

import logging
from typing import Any

from fastapi import Request

from convrec_r1.serve.http import bodies
from convrec_r1.serve.http.config import HttpConfig
from convrec_r1.serve.http.errors import ApiError

_log = logging.getLogger(__name__)
_SHOWN = 200
"""Characters of a message in the log."""


def check(asked: Any, cfg: HttpConfig) -> None:
    """Raise an ApiError (422) that names every limit which a request's body exceeds."""
    texts = _texts(asked.messages)
    seen, exclude = len(asked.seen), len(getattr(asked, "exclude", ()))
    n = getattr(asked, "n_items", None) or getattr(asked, "n", None) or 0
    longest = max(map(len, [*texts, getattr(asked, "where", None) or ""]))
    wrong = [
        f"{what} {number:,}, at most {most:,} (serve.{key})."
        for what, number, most, key in (
            ("messages:", len(texts), cfg.max_turns, "max_turns"),
            ("characters of a message:", longest, cfg.max_characters, "max_characters"),
            ("n:", n, cfg.max_n, "max_n"),
            ("seen:", seen, cfg.max_titles, "max_titles"),
            ("exclude:", exclude, cfg.max_titles, "max_titles"),
        )
        if number > most
    ]
    if not any(text.strip() for text in texts):
        wrong.append("messages: there is no text.")
    if wrong:
        raise ApiError(422, " ".join(wrong), "limit_exceeded")


def log(http: Request, asked: Any, cfg: HttpConfig) -> None:
    """Log a request, if the config asks for it. The log escapes control characters."""
    if cfg.log_requests:
        text = _texts(asked.messages)[-1]
        client = http.client.host if http.client else "?"
        _log.info("%s %s from %s: %s", http.method, http.url.path, client, " ".join(text[:_SHOWN].split()))


def _texts(messages: str | list[bodies.Turn] | list[bodies.ChatTurn]) -> list[str]:
    if isinstance(messages, str):
        return [messages]
    return [turn.text if isinstance(turn, bodies.ChatTurn) else turn.content for turn in messages]
