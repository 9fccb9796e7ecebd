"""Client of one vLLM server's HTTP API."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np

from convrec_r1.base.errors import UserError
from convrec_r1.rollout.base import Completion

GENERATE = "/inference/v1/generate"
PROBE = 5.0
"""Timeout in seconds of requests that cost the server nothing."""

# httpx logs every request, and a rollout makes hundreds.
logging.getLogger("httpx").setLevel(logging.WARNING)


class ServerFault(Exception):
    """A server that is gone, or an answer that cannot be used. A retry, here or elsewhere, may help."""


class ServerHung(ServerFault):
    """A server that does not answer in time."""


class ServerAway(ServerFault):
    """A server that did not come up in time."""


class Server:
    """Client of the server at `address`. Raises ServerFault where it fails, UserError where it refuses a request."""

    def __init__(self, address: str, *, timeout: float) -> None:
        """timeout: seconds for a group of completions, or for a set of weights."""
        self.address, self.timeout = address.rstrip("/"), timeout
        key = os.environ.get("VLLM_API_KEY")  # vLLM's own variable
        self._options = {
            "base_url": self.address,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            # No idle connections: one that is closed just as it is used again looks like a failed server.
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=0),
            "trust_env": "://127.0.0.1:" not in self.address,  # no proxy for this machine's own servers
        }
        self._http = httpx.Client(**self._options)

    def session(self) -> httpx.AsyncClient:
        """A client for `generate`, within one event loop."""
        return httpx.AsyncClient(**self._options, timeout=httpx.Timeout(None, connect=2 * PROBE))

    async def generate(
        self, session: httpx.AsyncClient, prompt: Sequence[int], sampling: dict[str, Any], version: str
    ) -> list[Completion]:
        """Sample a prompt's whole group, every token from the weights called `version`.

        sampling: by the names of `vllm.SamplingParams`.
        """
        body = {"token_ids": list(prompt), "sampling_params": sampling}
        try:
            async with asyncio.timeout(self.timeout):
                response = await session.post(GENERATE, json=body)
        except TimeoutError as error:
            raise ServerHung(f"no completions within {self.timeout:g} s (rollout.request_timeout)") from error
        except httpx.HTTPError as error:
            raise ServerFault(f"the connection broke ({_name(error)})") from error
        return read_group(self._answer(GENERATE, response), sampling["n"], version)

    def update(self, update_info: dict[str, Any], version: str) -> None:
        """Have it load weights through its transfer engine, call them `version`, and drop what older ones computed."""
        try:
            self.post("/start_weight_update")
        except ServerFault:  # an earlier update was interrupted; the server takes no other before that is closed
            self.post("/finish_weight_update")
            self.post("/start_weight_update")
        self.post("/update_weights", {"update_info": update_info})
        self.post("/finish_weight_update", {"weight_version": version})
        if not self.post("/reset_prefix_cache?reset_running_requests=true")["success"]:
            raise ServerFault("it did not drop its cache of older weights (/reset_prefix_cache)")

    def weight_version(self) -> str:
        return self.get("/weight_info")["weight_version"]

    def call_workers(self, method: str) -> list[Any]:
        """Call a method of `worker.WeightSync`. Return each worker's answer."""
        return self.post("/collective_rpc", {"method": method})["results"]

    def wait_until_up(self, seconds: float, hopeless: Callable[[], str | None] = lambda: None) -> None:
        """Wait until it reports that it is well. Asks at least once.

        Args:
            seconds: to wait at most.
            hopeless: returns why waiting is pointless, or None.
        Raises:
            ServerAway: it is not up after `seconds`.
            ServerFault: waiting is pointless.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                self.get("/health", PROBE)
                return
            except ServerFault as fault:
                if reason := hopeless():
                    raise ServerFault(reason) from fault
                if time.monotonic() >= end:
                    raise ServerAway(f"it is not up ({fault})") from fault
            time.sleep(0.3)

    def is_well(self) -> bool:
        with contextlib.suppress(ServerFault):
            self.wait_until_up(0)
            return True
        return False

    def has(self, path: str) -> bool:
        """Whether it has the route `path`, which may take POST only."""
        try:
            return self._http.get(path, timeout=PROBE).status_code != 404
        except httpx.HTTPError as error:
            raise ServerFault(f"{path} gave no answer ({_name(error)})") from error

    def get(self, path: str, timeout: float | None = None) -> Any:
        return self._ask("GET", path, timeout)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._ask("POST", path, json=body or {})

    def _ask(self, method: str, path: str, timeout: float | None = None, **content: Any) -> Any:
        try:
            response = self._http.request(method, path, timeout=timeout or self.timeout, **content)
        except httpx.TimeoutException as error:
            raise ServerHung(f"{path} gave no answer in time") from error
        except httpx.HTTPError as error:
            raise ServerFault(f"{path} gave no answer ({_name(error)})") from error
        return self._answer(path, response)

    def _answer(self, path: str, response: httpx.Response) -> Any:
        status = response.status_code
        if status >= 500:
            raise ServerFault(f"{path} failed with status {status}: {_message(response)}")
        if status >= 400:
            raise UserError(f"The vLLM server at {self.address} refuses {path} (status {status}): {_message(response)}")
        try:
            return response.json() if response.content else None
        except ValueError as error:
            raise ServerFault(f"{path} broke off in the middle of its answer") from error


def read_group(answer: Any, n: int, version: str) -> list[Completion]:
    """Read the n completions of an answer from `GENERATE`. Raises ServerFault unless all are complete."""
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if [choice["index"] for choice in choices] != list(range(n)):
            raise ServerFault(f"{len(choices)} completions came back instead of {n}")
        return [_completion(choice, version) for choice in choices]
    except (KeyError, TypeError, ValueError) as error:
        raise ServerFault(f"an answer with parts missing ({_name(error)})") from error


def _completion(choice: dict[str, Any], version: str) -> Completion:
    ids = np.asarray(choice["token_ids"], dtype=np.int64)
    logprobs = np.asarray([token["logprob"] for token in choice["logprobs"]["content"]], dtype=np.float32)
    if choice["finish_reason"] not in ("stop", "length"):
        raise ServerFault(f"a completion ended by {choice['finish_reason']!r}")
    if not len(ids) or len(ids) != len(logprobs) or logprobs.min() <= -9999:  # vLLM's value for NaN
        raise ServerFault("a completion came without the log-probs of its tokens")
    versions = {span["version"] for span in choice["weight_versions"]}
    if versions != {version}:
        raise ServerFault(
            f"a completion was sampled from the weights {', '.join(sorted(versions))}, not from {version}: does another run "
            "use the same server?"
        )
    return Completion(ids, logprobs, choice["finish_reason"])


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _message(response: httpx.Response) -> str:
    """The message of an error response, whatever its form."""
    try:
        return str(response.json()["error"]["message"])[:1000]
    except (ValueError, KeyError, TypeError):
        return response.text[:300] or response.reason_phrase
