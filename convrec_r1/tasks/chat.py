"""task=chat: talk to a policy on the terminal."""

import contextlib
import signal
import sys
from collections.abc import Iterator

from rich.text import Text

from convrec_r1.base.progress import console
from convrec_r1.base.signals import Interrupted
from convrec_r1.base.visible import visible
from convrec_r1.config.schema import Config
from convrec_r1.serve.chat import Chat
from convrec_r1.serve.request import Request
from convrec_r1.tasks.recommend import asked, open_recommender


def chat(cfg: Config) -> None:
    """Answer lines from standard input until its end, /quit, or Ctrl-C."""
    request = Request("", **asked(cfg))
    with open_recommender(cfg) as recommender:
        try:
            Chat(recommender, console, request).run(_lines())
        except Interrupted as interrupted:
            if interrupted.number != signal.SIGINT:
                raise
        console.print()


def _lines() -> Iterator[str]:
    """Yield lines from standard input. From a terminal they can be edited; from a file or a pipe they are shown."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # not on every system
            import readline  # noqa: F401  gives input() its editing and history
        while True:
            try:
                yield input("> ")
            except EOFError:
                return
    sys.stdin.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    for line in sys.stdin:
        console.print(Text(f"> {visible(line.rstrip())}"), soft_wrap=True)
        yield line
