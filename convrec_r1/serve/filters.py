"""Conditions on items: `genre=comedy and (year>1990 or title="Twelve Monkeys")`.

    condition:   conditions joined by `and`, `or` (`and` binds stronger), `not`, parentheses
    comparison:  FIELD = VALUE   FIELD != VALUE   FIELD in [VALUE, VALUE]   year < <= > >= NUMBER
    VALUE:       a word, several words ("science fiction" also without quotes), or a text in single or double quotes

FIELD is title, year, or a field of the catalog's metadata. Texts are compared without case and white space (`lists.fold`). A
field with several values equals each of them; `!=` is `not ... =`. An item without the field, or without a year, meets no
comparison with it but `!=`.
"""

from __future__ import annotations

import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from convrec_r1.base.errors import UserError
from convrec_r1.data.catalog import Catalog
from convrec_r1.lists import Item, fold
from convrec_r1.serve.request import Fields

LONGEST = 10_000
"""Characters of a condition."""
DEEPEST = 50
"""Parentheses and `not` inside each other."""
ORDERS: dict[str, Callable[[int, int], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq, "!=": operator.ne,
}  # fmt: skip
_TOKEN = re.compile(
    r"""\s*(?:("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(<=|>=|!=|==|[=<>()\[\],])|([^\s<>=!()\[\],"']+|'|!))"""
)
_WORDS = ("and", "or", "not", "in")


class Token(NamedTuple):
    """A part of a condition."""

    kind: str
    """text: in quotes. sign. word."""
    text: str
    at: int
    """Place in the condition, from 0."""


class Condition(ABC):
    """A condition that items meet or do not meet."""

    @abstractmethod
    def meets(self, item: Item, fields: Fields) -> bool:
        """Return whether an item meets it. fields: by their names in small letters."""

    @abstractmethod
    def comparisons(self) -> Iterable[Comparison]:
        """Yield the comparisons in it."""

    @staticmethod
    def parse(text: str) -> Condition:
        """Read a condition. Raises UserError with the place where it cannot be read."""
        return _Parser(text).parse()

    def select(self, catalog: Catalog, fields: Mapping[Item, Fields]) -> frozenset[Item]:
        """Return the items of a catalog that meet the condition.

        Args:
            fields: what is known of the items.
        Raises:
            UserError: no item has a field of that name.
        """
        known = {name for values in fields.values() for name in values}
        for comparison in self.comparisons():
            if comparison.field not in ("title", "year") and comparison.field not in known:
                listed = ", ".join(["title", "year", *sorted(known)])
                raise comparison.error(f"the catalog has no field {comparison.field!r}; it has: {listed}")
        return frozenset(item for item in catalog if self.meets(item, fields.get(item, {})))


@dataclass(frozen=True)
class Comparison(Condition):
    """FIELD SIGN VALUES. Several values: one of them (`in`)."""

    field: str
    sign: str
    values: Sequence[str]
    where: str
    at: int

    def __post_init__(self) -> None:
        if self.field == "year":
            if wrong := [value for value in self.values if not re.fullmatch(r"-?\d{1,9}", value.strip())]:
                raise self.error(f"year is compared with a number, found {wrong[0]!r}")
        elif self.sign not in ("=", "!="):
            raise self.error(f"{self.field} {self.sign} is not known: only year has an order. Use =, != or in")

    def meets(self, item: Item, fields: Fields) -> bool:
        if self.field == "year":
            if item.year is None:
                return self.sign == "!="
            return any(ORDERS[self.sign](item.year, int(value)) for value in self.values)
        found = (item.title,) if self.field == "title" else fields.get(self.field, ())
        has = not {fold(value) for value in self.values}.isdisjoint(map(fold, found))
        return has if self.sign == "=" else not has

    def comparisons(self) -> Iterable[Comparison]:
        yield self

    def error(self, what: str) -> UserError:
        return _error(self.where, self.at, what)


@dataclass(frozen=True)
class Several(Condition):
    """All of some conditions, or any of them."""

    parts: Sequence[Condition]
    every: bool

    def meets(self, item: Item, fields: Fields) -> bool:
        return (all if self.every else any)(part.meets(item, fields) for part in self.parts)

    def comparisons(self) -> Iterable[Comparison]:
        for part in self.parts:
            yield from part.comparisons()


@dataclass(frozen=True)
class Not(Condition):
    """The opposite of a condition."""

    part: Condition

    def meets(self, item: Item, fields: Fields) -> bool:
        return not self.part.meets(item, fields)

    def comparisons(self) -> Iterable[Comparison]:
        return self.part.comparisons()


class _Parser:
    """Reads a condition by recursive descent, a method for each strength of binding."""

    def __init__(self, text: str) -> None:
        if not isinstance(text, str) or not text.strip():
            raise UserError('where is empty: give a condition, as where="genre=comedy and year>1990", or leave it out.')
        if len(text) > LONGEST:
            raise UserError(f"where has {len(text):,} characters; at most {LONGEST:,} are read.")
        self.text, self.place, self.depth = text, 0, 0
        self.tokens = list(_tokens(text))

    def parse(self) -> Condition:
        found = self.any()
        if (rest := self.next()) is not None:
            raise self.error("expected `and`, `or` or the end", rest)
        return found

    def any(self) -> Condition:
        parts = [self.all()]
        while self.takes("or"):
            parts.append(self.all())
        return parts[0] if len(parts) == 1 else Several(parts, every=False)

    def all(self) -> Condition:
        parts = [self.one()]
        while self.takes("and"):
            parts.append(self.one())
        return parts[0] if len(parts) == 1 else Several(parts, every=True)

    def one(self) -> Condition:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.error(f"more than {DEEPEST} parentheses and `not` inside each other", self.next())
        if self.takes("not"):
            found: Condition = Not(self.one())
        elif self.takes("("):
            found = self.any()
            self.needs(")")
        else:
            found = self.comparison()
        self.depth -= 1
        return found

    def comparison(self) -> Condition:
        token = self.next()
        if token is None or token.kind == "sign" or self.reserved(token):
            raise self.error("expected a field, such as year", token)
        self.place += 1
        field = token.text.casefold()
        if self.takes("in"):
            return Comparison(field, "=", self.listed(), self.text, token.at)
        sign = self.next()
        if sign is None or sign.text not in (*ORDERS, "==") or sign.kind != "sign":
            raise self.error(f"expected =, !=, <, <=, >, >= or `in` after {token.text}", sign)
        self.place += 1
        return Comparison(field, "=" if sign.text == "==" else sign.text, [self.value()], self.text, token.at)

    def listed(self) -> list[str]:
        self.needs("[")
        values = [self.value()]
        while self.takes(","):
            values.append(self.value())
        self.needs("]")
        return values

    def value(self) -> str:
        """Return a text in quotes, or the words up to the next sign, `and` or `or`."""
        token = self.next()
        if token is None or token.kind == "sign" or self.reserved(token):
            raise self.error("expected a value", token)
        self.place += 1
        words = [token.text]
        while token.kind == "word" and (more := self.next()) and more.kind == "word" and not self.reserved(more):
            words.append(more.text)
            self.place += 1
        return " ".join(words)

    def next(self) -> Token | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def reserved(self, token: Token) -> bool:
        return token.kind == "word" and token.text.casefold() in _WORDS

    def takes(self, text: str) -> bool:
        token = self.next()
        if token is None or token.kind == "text" or token.text.casefold() != text:
            return False
        self.place += 1
        return True

    def needs(self, text: str) -> None:
        if not self.takes(text):
            raise self.error(f"expected {text}", self.next())

    def error(self, what: str, token: Token | None) -> UserError:
        found = "the end" if token is None else repr(token.text)
        return _error(self.text, len(self.text) if token is None else token.at, f"{what}, found {found}")


def _tokens(text: str) -> Iterable[Token]:
    at = 0
    while text[at:].strip():
        found = _TOKEN.match(text, at)
        if found is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            raise _error(text, at, "a quote is not closed")
        quoted, sign, word = found.groups()
        if quoted is not None:
            yield Token("text", re.sub(r"\\(.)", r"\1", quoted[1:-1]), found.start(1))
        else:
            yield Token("sign" if sign else "word", sign or word, found.start(2 if sign else 3))
        at = found.end()


def _error(text: str, at: int, what: str) -> UserError:
    """Return an error that shows the place: some characters around it, with a mark."""
    before, after = text[max(0, at - 40) : at], text[at : at + 40]
    return UserError(f"where, character {at + 1}: {what}: {before}\u25b8{after}")
