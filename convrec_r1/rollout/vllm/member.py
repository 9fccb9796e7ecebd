"""A server of the pool: how it stands, and how it is brought to where it can be asked."""

import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future

from convrec_r1.rollout.config import RolloutConfig
from convrec_r1.rollout.vllm.agreement import Engine
from convrec_r1.rollout.vllm.process import LocalProcess
from convrec_r1.rollout.vllm.server import Server, ServerFault, ServerHung

_log = logging.getLogger(__name__)


class Member:
    """One that is started here (`launch`), as often as it takes, or one that runs already (`address`)."""

    def __init__(
        self,
        title: str,
        cfg: RolloutConfig,
        examine: Callable[[Server], Engine],
        counts: Counter[str],
        *,
        address: str = "",
        launch: Callable[[], LocalProcess] | None = None,
    ) -> None:
        """examine: a server's engine, or a UserError for a server that does not fit the run.

        counts: has "restarts" and "faults" added to.
        """
        self.counts = counts
        self.title, self.cfg, self.examine, self.address, self.launch = title, cfg, examine, address, launch
        self.process: LocalProcess | None = None
        self.server: Server | None = None
        self.engine: Engine | None = None  # None: it is to be examined
        self.ready = False  # has the newest weights, and has not failed since
        self.met = False  # has been ready before
        self.dropped = False
        self.faults = 0  # in a row
        self.renewal: Future[None] | None = None  # the last one, while it is under way
        self.awaited = True  # False: a renewal that waits for it is to give up
        self._suspect = self._closed = False

    @property
    def known_server(self) -> Server:
        """Of a member that has been renewed."""
        assert self.server is not None
        return self.server

    @property
    def known_engine(self) -> Engine:
        """Of a member that has been renewed, and not failed since."""
        assert self.engine is not None
        return self.engine

    @property
    def name(self) -> str:
        return f"{self.title} at {self.server.address}" if self.launch and self.server else self.title

    def renew(self, patience: float, give: Callable[["Member"], None]) -> None:
        """Up, examined, and given weights. Raises ServerFault, and UserError for a server that does not fit.

        patience: seconds for a server that is not ours to come up.
        """
        if self.launch:
            if self.process and (self._suspect or (self.engine and not self.known_server.is_well())):
                self.process.stop()
            if not (self.process and self.process.alive()):
                self._start()
        elif self.engine is None:
            self.server = Server(self.address, timeout=self.cfg.request_timeout)
        self.known_server.wait_until_up(self.cfg.start_timeout if self.launch else patience, self._hopeless)
        if self.engine is None:
            self.engine = self.examine(self.known_server)
        give(self)
        self.ready = self.met = True

    def failed(self, fault: ServerFault) -> None:
        """Note a fault. A server of ours that hangs, or fails again and again, will be started again."""
        self.ready = False
        self.faults += 1
        self.counts["faults"] += 1
        self._suspect = isinstance(fault, ServerHung) or self.faults > 1
        if not self.launch:
            self.engine = None  # it may come back as another

    def succeeded(self) -> None:
        self.faults, self._suspect = 0, False

    def stop(self) -> None:
        """For good."""
        self._closed = True
        if self.process:
            self.process.stop()

    def _start(self) -> None:
        if self._closed:
            raise ServerFault("the run is over")
        if self.process:
            self.process.stop()  # whatever is left of it
            self.counts["restarts"] += 1
        assert self.launch is not None
        self.process = self.launch()
        _log.info("%s is starting, which takes about a minute. Its log: %s", self.title, self.process.log)
        self.server = Server(self.process.address, timeout=self.cfg.request_timeout)
        self.engine, self._suspect = None, False

    def _hopeless(self) -> str | None:
        if self._closed:
            return "the run is over"
        if self.process and not self.process.alive():
            return "its process ended"
        if not self.awaited:
            return "it is still away"
        return None
