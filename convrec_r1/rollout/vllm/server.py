"""One vLLM server, as its HTTP API shows it."""

import asyncio
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
"""Seconds for an answer that costs the server nothing."""

# It tells of every request, and a rollout is made of hundreds.
logging.getLogger("httpx").setLevel(logging.WARNING)


class ServerFault(Exception):
    """A server that is gone, or an answer that is of no use. To ask again, here or elsewhere, may help."""


class ServerHung(ServerFault):
    """A server that is there and does not answer in time."""


class ServerAway(ServerFault):
    """A server that did not come up for as long as it was waited for."""


class Server:
    """Speaks to the server at `address`. Raises ServerFault where it fails, UserError where it refuses what was asked."""

    def __init__(self, address: str, *, timeout: float) -> None:
        """timeout: seconds for a group of completions, or for a set of weights."""
        self.address, self.timeout = address.rstrip("/"), timeout
        key = os.environ.get("VLLM_API_KEY")  # what vLLM itself takes its key from
        self._options = {
            "base_url": self.address,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            # A connection that stood idle may be closed just as it is used again, which looks like a server that failed.
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=0),
            "trust_env": "://127.0.0.1:" not in self.address,  # no proxy leads to this machine's own servers
        }
        self._http = httpx.Client(**self._options)

    def session(self) -> httpx.AsyncClient:
        """For `generate`, within one event loop."""
        return httpx.AsyncClient(**self._options, timeout=httpx.Timeout(None, connect=2 * PROBE))

    async def generate(
        self, session: httpx.AsyncClient, prompt: Sequence[int], sampling: dict[str, Any], version: str
    ) -> list[Completion]:
        """A prompt's whole group, every token of it from the weights called `version`.

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

    def start_update(self) -> None:
        """Open an update of the weights; one that was broken off is closed first, or the server would take no other."""
        try:
            self.post("/start_weight_update")
        except ServerFault:
            self.post("/finish_weight_update")
            self.post("/start_weight_update")

    def update(self, update_info: dict[str, Any], version: str) -> None:
        """Weights by the way of the server's transfer engine, `version` their name."""
        self.start_update()
        self.post("/update_weights", {"update_info": update_info})
        self.finish_update(version)

    def finish_update(self, version: str) -> None:
        """Close it, and have what was computed with older weights forgotten."""
        self.post("/finish_weight_update", {"weight_version": version})
        if not self.post("/reset_prefix_cache?reset_running_requests=true")["success"]:
            raise ServerFault("it would not forget what it had computed with older weights (/reset_prefix_cache)")

    def weight_version(self) -> str:
        return self.get("/weight_info")["weight_version"]

    def weight_sums(self) -> list[dict[str, int]]:
        """Sums of the bits of its weights, worker by worker."""
        return self.call_workers("weight_sums")

    def call_workers(self, method: str) -> list[Any]:
        return self.post("/collective_rpc", {"method": method})["results"]

    def wait_until_up(self, seconds: float, hopeless: Callable[[], str | None] = lambda: None) -> None:
        """Until it says that it is well; asked once at least.

        hopeless: why there is no point in waiting any longer, if there is none. Raises ServerFault then, and in the end
        ServerAway.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                self._ask("GET", "/health", timeout=PROBE)
                return
            except ServerFault as fault:
                if reason := hopeless():
                    raise ServerFault(reason) from fault
                if time.monotonic() >= end:
                    raise ServerAway(f"it is not up ({fault})") from fault
            time.sleep(0.3)

    def is_well(self) -> bool:
        try:
            self.wait_until_up(0)
        except ServerFault:
            return False
        return True

    def has(self, path: str) -> bool:
        """Whether there is something at `path`, which may take POST only."""
        try:
            return self._http.get(path, timeout=PROBE).status_code != 404
        except httpx.HTTPError as error:
            raise ServerFault(f"{path} gave no answer ({_name(error)})") from error

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._ask("POST", path, json=body or {})

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        try:
            options.setdefault("timeout", self.timeout)
            response = self._http.request(method, path, **options)
        except httpx.TimeoutException as error:
            raise ServerHung(f"{path} gave no answer in time") from error
        except httpx.HTTPError as error:
            raise ServerFault(f"{path} gave no answer ({_name(error)})") from error
        return self._answer(path, response)

    def _answer(self, path: str, response: httpx.Response) -> Any:
        if response.status_code >= 500:
            raise ServerFault(f"{path} failed with status {response.status_code}: {_message(response)}")
        if response.status_code >= 400:
            raise UserError(
                f"The vLLM server at {self.address} refuses {path} (status {response.status_code}): {_message(response)}"
            )
        try:
            return response.json() if response.content else None
        except ValueError as error:
            raise ServerFault(f"{path} broke off in the middle of its answer") from error


def read_group(answer: Any, n: int, version: str) -> list[Completion]:
    """The n completions of an answer from /inference/v1/generate. Raises ServerFault unless all are there and sound."""
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if [choice["index"] for choice in choices] != list(range(n)):
            raise ServerFault(f"{len(choices)} completions came back instead of {n}")
        return [_completion(choice, version) for choice in choices]
    except (KeyError, TypeError, ValueError) as error:
        raise ServerFault(f"an answer without what it must hold ({_name(error)})") from error


def _completion(choice: dict[str, Any], version: str) -> Completion:
    ids = np.asarray(choice["token_ids"], dtype=np.int64)
    logprobs = np.asarray([token["logprob"] for token in choice["logprobs"]["content"]], dtype=np.float32)
    if choice["finish_reason"] not in ("stop", "length"):
        raise ServerFault(f"a completion ended by {choice['finish_reason']!r}")
    if not len(ids) or len(ids) != len(logprobs) or logprobs.min() <= -9999:  # which stands for NaN
        raise ServerFault("a completion came without the log-probs of its tokens")
    versions = {span["version"] for span in choice["weight_versions"]}
    if versions != {version}:
        raise ServerFault(
            f"a completion was sampled from the weights {', '.join(sorted(versions))}, not from {version}: does another "
            "run use the same server?"
        )
    return Completion(ids, logprobs, choice["finish_reason"])


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _message(response: httpx.Response) -> str:
    """What an error's body says, however it says it."""
    try:
        body = response.json()
        return str(body["error"]["message"])[:1000]
    except (ValueError, KeyError, TypeError):
        return response.text[:300] or response.reason_phrase
