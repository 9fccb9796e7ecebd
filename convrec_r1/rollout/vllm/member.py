"""One server of a fleet: its state, and how it is brought up."""

import logging
from collections import Counter
from collections.abc import Callable

from convrec_r1.rollout.config import VLLMServerConfig
from convrec_r1.rollout.vllm.agreement import Engine
from convrec_r1.rollout.vllm.process import LocalProcess
from convrec_r1.rollout.vllm.server import Server, ServerFault, ServerHung

_log = logging.getLogger(__name__)


class Member:
    """A server that is started here (`launch`) and restarted as needed, or one that runs already (`address`)."""

    def __init__(
        self,
        title: str,
        options: VLLMServerConfig,
        examine: Callable[[Server], Engine],
        counts: Counter[str],
        *,
        address: str = "",
        launch: Callable[[], LocalProcess] | None = None,
    ) -> None:
        """Start nothing yet.

        examine: returns a server's engine, or raises UserError for a server that does not fit the run.
        counts: "restarts" and "faults" are counted here.
        """
        self.title, self.options, self.examine, self.counts, self.launch = title, options, examine, counts, launch
        self.server = Server(address, timeout=options.request_timeout)  # of `launch`: replaced at each start
        self.process: LocalProcess | None = None
        self.engine: Engine | None = None  # None: to be examined
        self.ready = False  # has the newest weights, and has not failed since
        self.met = False  # has been ready before
        self.dropped = False
        self.faults = 0  # in a row
        self._suspect = self._closed = False

    @property
    def name(self) -> str:
        return f"{self.title} at {self.server.address}" if self.process else self.title

    def renew(self, patience: float, give: Callable[["Member"], None]) -> None:
        """Bring it up, examine it, and `give` it the newest weights. Raises ServerFault, and UserError if it does not fit.

        patience: seconds for a server that was not started here to come up.
        """
        if self.launch:
            patience = self.options.start_timeout
            if self.process and (self._suspect or (self.engine and not self.server.is_well())):
                self.process.stop()
            if not (self.process and self.process.alive()):
                self._start(self.launch)
        self.server.wait_until_up(patience, self._hopeless)
        self.engine = self.engine or self.examine(self.server)
        give(self)
        self.ready = self.met = True

    def failed(self, fault: ServerFault) -> None:
        """Note a fault. A server that was started here and hangs, or fails twice in a row, will be restarted."""
        self.ready = False
        self.faults += 1
        self.counts["faults"] += 1
        self._suspect = isinstance(fault, ServerHung) or self.faults > 1
        if not self.launch:
            self.engine = None  # another one may answer at its address next time

    def succeeded(self) -> None:
        self.faults, self._suspect = 0, False

    def stop(self) -> None:
        """Stop it for good."""
        self._closed = True
        if self.process:
            self.process.stop()

    def unusable(self, fault: ServerFault) -> str:
        """A message for a server that has never been ready."""
        if self.process:
            return f"{self.name} did not start: {fault}.{self._log_text()}"
        return f"{self.name} does not answer: {fault}. Start one there, or correct rollout.servers."

    def given_up(self, fault: ServerFault) -> str:
        """A message for a server that has been ready before."""
        times = f"{self.faults} failures in a row" if self.faults > 1 else "a failure"
        return f"{self.name} is given up after {times}: {fault}.{self._log_text()}"

    def _log_text(self) -> str:
        return f" Its log, {self.process.log}, says:\n{self.process.last_words()}" if self.process else ""

    def _start(self, launch: Callable[[], LocalProcess]) -> None:
        if self._closed:
            raise ServerFault("the run is over")
        if self.process:
            self.process.stop()  # what is left of its process group
            self.counts["restarts"] += 1
        self.process = launch()
        _log.info("%s is starting, which takes about a minute. Its log: %s", self.title, self.process.log)
        self.server = Server(self.process.address, timeout=self.options.request_timeout)
        self.engine, self._suspect = None, False

    def _hopeless(self) -> str | None:
        if self._closed:
            return "the run is over"
        return "its process ended" if self.process and not self.process.alive() else None
