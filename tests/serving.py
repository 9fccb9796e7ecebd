"""What tests of the server share: a small policy with its package, sessions, and servers on real sockets."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from support import tiny_policy

from convrec_r1.data import movieland
from convrec_r1.rollout.config import HFConfig
from convrec_r1.serve.config import ServeConfig
from convrec_r1.serve.http.app import make_app
from convrec_r1.serve.http.feedback import Feedback
from convrec_r1.serve.http.server import Listening, listen
from convrec_r1.serve.http.service import Served, Service
from convrec_r1.serve.load import load_session
from convrec_r1.serve.package import Package, Settings, write_package
from convrec_r1.serve.session import Session

N = 5
LONG = {"messages": "Anything at all", "n": 60}
"""A request whose list takes half a second at least."""


def write_policy(folder: Path, seed: int = 0) -> Path:
    """Write a policy of random weights with movieland's films beside it, as task=publish would."""
    tiny_policy(seed).save(folder)
    catalog = movieland.load(seed=0, n_items=60, sizes={"train": 4, "validation": 1, "test": 1}).catalog
    fields = {item: {"genre": tuple(sorted(tags))} for item, tags in catalog.metadata.items()}
    settings = Settings(n=N, max_prompt_length=512, max_completion_length=64, domain="films")
    write_package(folder, Package(settings, catalog, fields))
    return folder


def open_session(folder: Path, limit: int = 256) -> Session:
    return load_session(folder, engine=HFConfig(), device="cpu", limit=limit)


@dataclass
class Running:
    """A server on a real socket."""

    service: Service
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def wait(self, condition: Callable[[], object], seconds: float = 10) -> None:
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it took too long"
            time.sleep(0.005)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way, in the server and in the engines."""
        return not self.service.under_way and not any(m.session.unanswered for m in self.service.models.values())


@contextlib.contextmanager
def running(*models: Served, key: str | None = None, **options) -> Iterator[Running]:
    """Serve models. options: of `ServeConfig`. The sessions stay open."""
    cfg = ServeConfig(**options)
    feedback = Feedback(Path(cfg.feedback), cfg.max_feedback) if cfg.feedback else None
    service = Service(cfg, feedback)
    service.open(models)
    listener = listen("127.0.0.1", 0)
    with Listening(make_app(service, key=key), listener, service):
        yield Running(service, listener.getsockname()[1])
    if feedback is not None:
        feedback.close()


def post(path: str, body: object, *, close: bool = True) -> bytes:
    """The bytes of a request."""
    content = json.dumps(body).encode()
    last = "Connection: close\r\n" if close else ""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n{last}\r\n"
    return head.encode() + content


def read_all(connection: socket.socket) -> bytes:
    """What a server sends until it closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def in_thread(call: Callable[[], object]) -> Callable[[], object]:
    """Begin a call. Returns a function that waits for its value."""
    values: list[object] = []
    thread = threading.Thread(target=lambda: values.append(call()))
    thread.start()

    def value() -> object:
        thread.join(60)
        assert values, "the call failed"
        return values[0]

    return value
