"""An OpenAI-compatible endpoint on loopback that misbehaves as it is told: HTTP and sockets are real, the model is rules."""

import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SLOW = 1.5
"""Seconds that a slow answer takes; more than the time-out of the tests."""

Plan = Callable[[str, int], str | dict | None]
"""(question, how often it was asked before) -> what goes wrong with it, or fields of the choice. None: nothing."""


class FakeOpenAI:
    """A context manager. `asked` counts requests and `delivered` whole answers, by the text of the question."""

    def __init__(
        self,
        plan: Plan = lambda question, times: None,
        *,
        pace: float = 0.0,
        retry_after: str = "0.1",
        schemas: bool = True,
    ) -> None:
        """pace: seconds that each answer takes.  schemas: whether it takes `response_format`, or refuses it with 400."""
        self.plan, self.pace, self.retry_after, self.schemas = plan, pace, retry_after, schemas
        self.asked: Counter[str] = Counter()
        self.delivered: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.keys: set[str] = set()
        self.times: list[float] = []
        """When each request came."""
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        owner = self

        class Handler(_Handler):
            fake = owner

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "FakeOpenAI":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address) -> None:
        pass  # clients that leave are part of the tests


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeOpenAI

    def log_message(self, format: str, *args) -> None:
        pass

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = "\n".join(message["content"] for message in body["messages"])
        with fake.lock:
            fake.times.append(time.monotonic())
            times = fake.asked[question]
            fake.asked[question] += 1
            fake.bodies.append(body)
            fake.keys.add(self.headers.get("Authorization", ""))
            fake.under_way += 1
            fake.most_under_way = max(fake.most_under_way, fake.under_way)
            fault = fake.plan(question, times)
            if "response_format" in body and not fake.schemas:
                fault = "400"
            if isinstance(fault, str):
                fake.faults[fault] += 1
        try:
            time.sleep(fake.pace)
            self._reply(question, fault, "response_format" in body)
        finally:
            with fake.lock:
                fake.under_way -= 1

    def _reply(self, question: str, fault: str | dict | None, as_json: bool) -> None:
        content = completion(question, as_json)
        if isinstance(fault, dict):
            content["choices"][0] |= fault
        whole = json.dumps(content).encode()
        match fault:
            case None | dict():
                self._send(200, whole)
                with self.fake.lock:
                    self.fake.delivered[question] += 1
            case "429":
                self._send(429, _error("slow down"), retry_after=self.fake.retry_after)
            case "quota":
                self._send(429, _error("no money left", code="insufficient_quota"))
            case "slow":
                time.sleep(SLOW)
                self._send(200, whole)
            case "truncated":  # the JSON breaks off, HTTP does not notice
                self._send(200, whole[: len(whole) // 2])
            case "hung up":  # HTTP notices
                self._send(200, whole[: len(whole) // 2], length=len(whole))
                self.close_connection = True
            case "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            case "no choices":
                self._send(200, json.dumps({"id": "x", "object": "chat.completion", "choices": []}).encode())
            case "page":
                self._send(200, b"<html>Please log in</html>", kind="text/html")
            case "moderated":
                self._send(403, _error("Your input was flagged by the moderation of the provider"))
            case "401":
                self._send(401, _error(f"no such key: {self.headers['Authorization'].removeprefix('Bearer ')}"))
            case status:
                self._send(int(status), _error(f"status {status} it is"))

    def _send(
        self, status: int, body: bytes, *, length: int | None = None, kind="application/json", retry_after=""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def completion(question: str, as_json: bool = False) -> dict:
    text = reply(question)
    if as_json:
        lines = text.splitlines()
        items = {"items": [json.loads(line) for line in lines]} if text.startswith("{") else None
        text = json.dumps(items or {n: int(score) for n, score in (line.split(": ") for line in lines)})
    usage = {"prompt_tokens": len(question) // 4, "completion_tokens": len(text) // 4, "total_tokens": 0}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "fake", "choices": [choice], "usage": usage}


def reply(question: str) -> str:
    """What Stage 1's questions want to hear: scores by the number of letters, descriptions made of the title."""
    listed = re.findall(r"^(\d+)\. (.+)$", question, re.MULTILINE)
    if "Score -2" in question:
        return "\n".join(f"{number}: {len(title) % 5 - 2}" for number, title in listed)
    if question.startswith("Describe each"):
        return "\n".join(
            json.dumps({"item": int(number), "genres": ["drama"], "keywords": title.lower().split(), "plot": title})
            for number, title in listed
        )
    films = ["Heat (1995)", "Alien (1979)", "Jaws (1975)", "Moana (2016)", "Unheard Of (2001)"]
    first = len(question) % len(films)
    return "\n".join(f"{n}. {film}" for n, film in enumerate([*films[first:], *films[:first]], start=1))


def _error(message: str, code: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": code, "code": code}}).encode()
