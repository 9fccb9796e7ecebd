"""Options of task=serve: part of the section `serve`. Where it listens is `host` and `port`."""

from dataclasses import dataclass, field
from importlib.util import find_spec

from convrec_r1.base.options import option

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Hosts that only this machine reaches."""
KEY = "CONVREC_R1_API_KEY"
"""Environment variable with the key that requests must bring."""


@dataclass
class HttpConfig:
    """The HTTP server of task=serve. Sizes in bytes, times in seconds."""

    compare: str | None = None
    """A second checkpoint, served beside `checkpoint`: a run's folder, a policy's folder or a Hub id."""
    timeout: float = option(60.0, above=0)
    """From a request's arrival to the end of its list. Then it gets 504."""
    read_timeout: float = option(10.0, above=0)
    """Until the headers of a request have arrived, and again until its body has: 408."""
    write_timeout: float = option(10.0, above=0)
    """That a client may take nothing of what was sent to it. Then the connection is closed."""
    drain: float = option(30.0, least=0)
    """After SIGTERM or Ctrl-C, for what is under way."""
    connections: int = option(1024, least=1)
    """Open at a time. Others are closed at once."""
    max_body: int = option(262_144, least=1024)
    """Of a request's body: 413."""
    max_turns: int = option(100, least=1)
    """Messages of a conversation."""
    max_characters: int = option(8_000, least=1)
    """Of a message, and of a filter."""
    max_titles: int = option(2_000, least=1)
    """In `seen` and `exclude`, each."""
    max_n: int = option(100, least=1)
    """Recommendations that a request may ask for."""
    hosts: list[str] = field(default_factory=list)
    """Names by which requests may call the server (header Host), `*.` for any subdomain. Empty: those of this machine if only
    it can reach the server, else any."""
    cors: list[str] = field(default_factory=list)
    """Origins whose pages may call the server, such as https://shop.example. Empty: none but its own page."""
    feedback: str | None = None
    """File for thumbs, in the form of data=jsonl. null: thumbs are not taken."""
    max_feedback: int = option(1 << 30, least=1024)
    """Size of that file. Then thumbs get 503."""
    log_requests: bool = False
    """Log each request with the newest message of its conversation."""


def problems() -> list[str]:
    """Return a sentence if packages of the server are missing."""
    missing = [name for name in ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client") if not find_spec(name)]
    return [f"task=serve needs {', '.join(missing)}. Run `pip install 'convrec-r1[serve]'`."] if missing else []
