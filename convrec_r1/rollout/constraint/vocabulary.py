"""What each token of a vocabulary writes, in bytes."""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from convrec_r1.policy.tokens import token_texts

Across = tuple[int, bytes]
"""A token that ends a line and writes more: its id, and what it writes after the newline."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BROKEN = "\ufffd"


class Pieces:
    """Tokens by what they write at one kind of place."""

    def __init__(self, written: Iterable[tuple[int, bytes]]) -> None:
        """written: (id, bytes) of the tokens. Bytes after a newline belong to the next line."""
        ids: dict[bytes, list[int]] = {}
        self.across: dict[bytes, list[Across]] = {}
        """By the bytes up to the first newline, with it."""
        self.prefixes: set[bytes] = set()
        """What tokens begin with: nothing else can be continued to a token."""
        for token, text in written:
            head, newline, tail = text.partition(b"\n")
            head += newline
            if tail:
                self.across.setdefault(head, []).append((token, tail))
            else:
                ids.setdefault(head, []).append(token)
            for k in range(len(head), -1, -1):
                if head[:k] in self.prefixes:  # then what it begins with is, too
                    break
                self.prefixes.add(head[:k])
        self.ids = {text: np.array(found, dtype=np.int32) for text, found in ids.items()}
        """By the bytes of those without text after a newline."""


class Vocabulary:
    """The tokens that can write text: special tokens and tokens whose bytes are not known are left out.

    A token may write other bytes at the beginning of a text than inside: SentencePiece drops a space there.
    """

    def __init__(self, inside: dict[int, bytes], first: dict[int, bytes], eos: int) -> None:
        """
        Args:
            inside: bytes of each token inside a text, by id.
            first: bytes of each token that begins a text. A token may write nothing there.
            eos: id of the token that ends a list.
        """
        self._inside, self._first, self.eos = inside, first if first != inside else inside, eos
        self._characters: dict[str, bool] = {}

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, size: int, eos_ids: Sequence[int]) -> "Vocabulary":
        """Read the vocabulary of a tokenizer.

        Args:
            tokenizer: byte-level, or SentencePiece with or without bytes as fallback.
            size: rows of the model's embedding. Ids from there on are left out.
            eos_ids: ids that end a completion. The first ends lists.
        """
        special = _special(tokenizer) | set(eos_ids)
        alone, pairs = token_texts(tokenizer, size)
        inside: dict[int, bytes] = {}
        first: dict[int, bytes] = {}
        for token, (begins, follows) in enumerate(zip(alone, pairs, strict=True)):
            if token in special:
                continue
            raw = _raw_bytes(tokenizer, token) if _BROKEN in follows or _BROKEN in begins else None
            if raw is None and _BROKEN in follows:
                continue
            if text := follows.encode() if raw is None else raw:
                inside[token] = text
                first[token] = begins.encode() if raw is None else raw
        return cls(inside, first, eos_ids[0])

    @cached_property
    def inside(self) -> Pieces:
        """Tokens by what they write inside a text."""
        return Pieces(self._inside.items())

    @cached_property
    def first(self) -> Pieces:
        """Tokens by what they write at the beginning of a text."""
        return self.inside if self._first is self._inside else Pieces(self._first.items())

    def __getstate__(self) -> dict[str, Any]:
        """Return the tokens without what is made of them when it is needed."""
        return {name: value for name, value in vars(self).items() if name not in ("inside", "first")}

    def for_text(self, text: bytes) -> "Vocabulary":
        """Return the vocabulary without tokens that could begin a character of `text` that no token ends.

        With a token for each byte there are none. Without, tokens that are parts of characters are left out.
        """
        if all(bytes([byte]) in self.inside.ids for byte in set(text)):
            return self
        whole = {token for token, written in self._inside.items() if _is_text(written)}
        inside, first = ({i: t for i, t in table.items() if i in whole} for table in (self._inside, self._first))
        return Vocabulary(inside, first, self.eos)

    def writes(self, text: bytes) -> bool:
        """Return whether every part of a text can be completed: there is a token for each of its characters, or its bytes."""
        return all(self._writes_character(character) for character in set(text.decode()))

    def _writes_character(self, character: str) -> bool:
        if character not in self._characters:
            written = character.encode()
            known = written in self.inside.ids or all(bytes([byte]) in self.inside.ids for byte in written)
            self._characters[character] = known
        return self._characters[character]

    def written(self, token: int, *, first: bool) -> bytes | None:
        """Return what a token writes. None: no text of a list. first: at the beginning of a text."""
        return (self._first if first else self._inside).get(token)


def _is_text(written: bytes) -> bool:
    try:
        written.decode()
    except UnicodeDecodeError:
        return False
    return True


def _special(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}


def _raw_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes | None:
    """Return the bytes of a token that is part of a character. None: they are not known."""
    name = str(tokenizer.convert_ids_to_tokens(token))
    if found := _BYTE.fullmatch(name):
        return bytes([int(found[1], 16)])
    table = _byte_of_letter()
    return bytes(table[letter] for letter in name) if name and all(letter in table for letter in name) else None


def _byte_of_letter() -> dict[str, int]:
    """Return the byte that each letter stands for in byte-level vocabularies: printable Latin-1 for itself, others from 256."""
    if not _LETTERS:
        shown = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), 256)]
        hidden = [byte for byte in range(256) if byte not in shown]
        _LETTERS.update({chr(byte): byte for byte in shown})
        _LETTERS.update({chr(256 + k): byte for k, byte in enumerate(hidden)})
    return _LETTERS


_LETTERS: dict[str, int] = {}
