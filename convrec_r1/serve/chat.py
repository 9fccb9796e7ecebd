"""A conversation with a policy on a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import write_text
from convrec_r1.base.visible import visible
from convrec_r1.lists import Item
from convrec_r1.serve.recommender import Recommender
from convrec_r1.serve.request import Recommendation, Request

HELP = (
    ("/more", "more recommendations for the same conversation"),
    ("/seen TITLE", "I have seen it (several: TITLE; TITLE). Without a title: what is left out"),
    ("/where CONDITION", "such as genre=comedy and year>1990. Without a condition: all items again"),
    ("/why", "the last list with its scores: log-probs of the lines"),
    ("/n NUMBER", "length of the lists"),
    ("/new", "begin a new conversation"),
    ("/save FILE", "write the conversation as JSON"),
    ("/help", "this text"),
    ("/quit", "end (also Ctrl-D)"),
)


@dataclass
class Talk:
    """What was said so far."""

    messages: list[dict[str, str]] = field(default_factory=list)
    lists: list[list[Recommendation]] = field(default_factory=list)
    """One for each answer, in order."""
    seen: list[str] = field(default_factory=list)
    turn: int = 0
    """Lists that answer the newest message."""

    @property
    def shown(self) -> list[Recommendation]:
        """All recommendations so far. They are not made again, as titles that were named earn nothing in training."""
        return [one for each in self.lists for one in each]


class Chat:
    """Reads lines and answers them. Lines that begin with / are commands."""

    def __init__(self, recommender: Recommender, console: Console, request: Request) -> None:
        """request: options of every request; its messages do not count."""
        self.recommender, self.console, self.request = recommender, console, request
        self.talk = Talk(seen=list(request.seen))
        self.commands: dict[str, Callable[[str], None]] = {
            "more": self.more, "seen": self.seen, "where": self.where, "why": self.why, "n": self.length, "new": self.new,
            "save": self.save, "help": self.help,
        }  # fmt: skip

    def run(self, lines: Iterator[str]) -> None:
        """Answer lines until there are no more, or /quit."""
        self.say("Tell me what you like. /help lists the commands.")
        for line in lines:
            line = line.strip()
            if line in ("/quit", "/exit", "/q"):
                return
            try:
                self.take(line)
            except UserError as error:
                self.say(str(error), "red")

    def take(self, line: str) -> None:
        """Answer one line. Raises UserError for a command that cannot be followed."""
        if not line:
            return
        if not line.startswith("/"):
            self.answer([*self.talk.messages, {"role": "user", "content": line}])
            return
        name, _, rest = line[1:].partition(" ")
        if name not in self.commands:
            raise UserError(f"/{name} is no command. /help lists them.")
        self.commands[name](rest.strip())

    def answer(self, messages: list[dict[str, str]], number: int = 0) -> None:
        """Show a list as it is written, and take it into the conversation. number: items before it that answer the same."""
        exclude = [*self.request.exclude, *(one.item or Item(one.title, one.year) for one in self.talk.shown)]
        request = replace(self.request, messages=messages, seen=tuple(self.talk.seen), exclude=tuple(exclude))
        reply = self.recommender.session.submit(request)
        found: list[Recommendation] = []
        try:
            for one in reply:
                found.append(one)
                self.show(number + len(found), one)
        finally:
            reply.cancel()
        for note in reply.notes:
            self.say(note, "yellow")
        self.talk.messages = messages
        if found:
            self.talk.lists.append(found)
            self.talk.turn = self.talk.turn + 1 if number else 1
            self.talk.messages = [*messages, {"role": "assistant", "content": ", ".join(map(str, found))}]

    def more(self, _: str) -> None:
        if not self.talk.lists:
            raise UserError("There is no list yet: tell me what you like.")
        if self.talk.messages[-1]["role"] == "user":
            raise UserError("No items are left for this conversation.")
        *before, last = self.talk.messages
        shown = len(self.talk.lists)
        self.answer(before, number=sum(map(len, self.talk.lists[-self.talk.turn :])))
        added = f", {self.talk.messages[-1]['content']}" if len(self.talk.lists) > shown else ""
        self.talk.messages = [*before, last | {"content": last["content"] + added}]

    def seen(self, titles: str) -> None:
        named = [title.strip() for title in titles.split(";") if title.strip()]
        for title in named:
            if not self.recommender.session.planner.knows(title):
                self.say(f"Not in the catalog: {title}.", "yellow")
            elif title not in self.talk.seen:
                self.talk.seen.append(title)
        self.say(f"Seen: {'; '.join(self.talk.seen) or 'nothing'}.")

    def where(self, condition: str) -> None:
        if not condition:
            self.request = replace(self.request, where=None)
            self.say("All items count.")
            return
        count = self.recommender.session.planner.count(condition)
        self.request = replace(self.request, where=condition)
        self.say(f"{count:,} items meet it.")

    def why(self, _: str) -> None:
        if not self.talk.lists:
            raise UserError("There is no list yet: tell me what you like.")
        self.console.print(table(self.talk.lists[-1]))

    def length(self, number: str) -> None:
        if not number.isdecimal() or int(number) < 1:
            raise UserError("/n takes a number of at least 1, as /n 5.")
        self.request = replace(self.request, n=int(number))
        self.say(f"Lists have {int(number)} items.")

    def new(self, _: str) -> None:
        self.talk = Talk(seen=self.talk.seen)
        self.say("A new conversation. What you have seen is kept.")

    def save(self, name: str) -> None:
        if not name:
            raise UserError("/save takes the name of a file, as /save talk.json.")
        path = Path(name).expanduser()
        if path.exists():
            raise UserError(f"{path} exists: choose another name.")
        lists = [[one.as_dict() for one in each] for each in self.talk.lists]
        content: dict[str, Any] = {"messages": self.talk.messages, "seen": self.talk.seen, "lists": lists}
        try:
            write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
        self.say(f"Saved in {path}.")

    def help(self, _: str) -> None:
        for command, what in HELP:
            self.say(f"  {command:<18} {what}")

    def show(self, number: int, one: Recommendation) -> None:
        line = Text(f"{number:>3}. {visible(str(one))}")
        if one.item is None:
            line.append("  not in the catalog", "yellow")
        self.console.print(line, soft_wrap=True)

    def say(self, text: str, style: str = "dim") -> None:
        self.console.print(Text(visible(text), style), soft_wrap=True)


def table(found: list[Recommendation]) -> Table:
    """Return a list with scores, and the first field of the metadata."""
    field = next((name for one in found for name in one.metadata), "")
    made = Table("", "item", "score", field, box=None, header_style="dim")
    made.columns[2].justify = "right"
    for one in found:
        known = ", ".join(one.metadata.get(field, ()))
        item = Text(visible(str(one)))
        if one.item is None:
            item.append("  not in the catalog", "yellow")
        made.add_row(str(one.rank), item, f"{one.score:.2f}", Text(visible(known), "dim"))
    return made
