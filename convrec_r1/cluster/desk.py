"""What the command's process and the training processes under Ray tell each other, through one actor.

Ray Train runs training in threads of processes on any node: no signal reaches them, and what they print goes to files of Ray.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class End(Enum):
    """How a run under Ray Train ended."""

    done = "done"
    """`value`: what the first process returned."""
    wrong = "wrong"
    """`value`: the message of a UserError."""
    interrupted = "interrupted"
    """`value`: (number of the signal, message)."""
    fault = "fault"
    """`value`: the traceback of an internal error that happened twice in a row."""


@dataclass
class News:
    """What has happened since the command's process last asked."""

    text: str = ""
    """What the training processes have printed."""
    deferring: bool = False
    """Whether a signal now waits for the end of a step. False: nothing is trained, and the run may end at once."""
    end: tuple[End, Any] | None = None


@dataclass
class Death:
    """Why a group of training processes ended."""

    reasons: dict[int, str] = field(default_factory=dict)
    """Rank -> what happened to the process."""
    lost: bool = False
    """Whether a process or its node died, other than by an exception in Python."""

    def __str__(self) -> str:
        first = (f"process {rank}: {reason.splitlines()[0][:300]}" for rank, reason in sorted(self.reasons.items()))
        return "; ".join(first).rstrip(".")


class Desk:
    """Becomes an actor. Its methods take a moment each."""

    def __init__(self, retries: int) -> None:
        """retries: times that the group may restart."""
        self.retries = retries
        self._news = News()
        self._signal = 0
        self._deaths: list[Death] = []

    # -- the command's process ---------------------------------------------------------------------------------------------

    def news(self, number: int) -> News:
        """Hand over a signal (0: none), and return what has happened."""
        self._signal = number
        news, self._news = self._news, News("", self._news.deferring, self._news.end)
        return news

    def deaths(self) -> list[Death]:
        """Return why earlier groups ended."""
        return self._deaths

    # -- the training processes --------------------------------------------------------------------------------------------

    def begin(self) -> tuple[bool, Death | None, int]:
        """Return whether the run has ended already, and if this is a restart: why, and the number of the restart."""
        self._news.deferring = False
        return self._news.end is not None, self._deaths[-1] if self._deaths else None, len(self._deaths)

    def say(self, text: str) -> None:
        """Take what a process prints."""
        self._news.text += text

    def poll(self, deferring: bool | None) -> int:
        """Return the signal that the run got; 0: none, or it is for the first process.

        deferring: of the first process, see `News`. None: another process asks.
        """
        if deferring is None:
            return 0
        self._news.deferring = deferring
        return self._signal

    def end(self, how: End, value: Any) -> None:
        """Record how the run ended. The first process to know decides; a summary is of the first process."""
        if self._news.end is None:
            self._news.end = (how, value)

    # -- Ray Train's controller --------------------------------------------------------------------------------------------

    def died(self, death: Death) -> None:
        """Record why the group ended. An exception that comes again after a restart is no accident: the run ends."""
        before = self._deaths[-1] if self._deaths else None
        self._deaths.append(death)
        if before and not death.lost and not before.lost:
            known = {reason.partition("\n")[0] for reason in before.reasons.values()}
            again = [reason for reason in death.reasons.values() if reason.partition("\n")[0] in known]
            if again:
                self.end(End.fault, again[0])
        restarts = len(self._deaths)
        if self._news.end is None and restarts <= self.retries:
            self._news.text += f"The training processes ended: {death}. They restart ({restarts} of {self.retries}).\n"
