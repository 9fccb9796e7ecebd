"""task=serve under load, and for ten minutes of good, slow, broken and huge requests.

python experiments/bench_serve.py                  # requests a second and latency -> bench_serve.json ("load")
python experiments/bench_serve.py --soak 10        # minutes of mixed requests     -> bench_serve.json ("soak")

The model is model=tiny with random weights, held to movieland's catalog, n=20. A bare `vllm serve` of the same model is asked
the same prompts for as many tokens. Each client sends its next request when the last one is answered. Clients run on the same
cores as the server. Everything stays on the loopback interface.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from convrec_r1.base.files import read_json, write_json

OUT = Path(__file__).with_suffix(".json")
CLIENTS = (1, 16, 64)
N = 20
SAID = ("I loved Alien.", "A comedy for a rainy Sunday", "Something like Heat, but newer", "My kids are five and eight",
        "Black and white, and French", "Surprise me", "A war film that is not about war")  # fmt: skip


def write_policy(folder: Path) -> str:
    """Write model=tiny with random weights and its package. Return the instruction."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    import convrec_r1.cli  # noqa: F401  registers the schema
    from convrec_r1.config.files import conf_folder
    from convrec_r1.config.parts import base_policy, dataset, matching
    from convrec_r1.data.load import make_adapter
    from convrec_r1.serve.fields import fields_of
    from convrec_r1.serve.package import Package, settings_of, write_package

    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        tree = compose("config", overrides=["logger=none", "match=normalised", f"n={N}", f"outputs={folder.parent}"])
    OmegaConf.resolve(tree)
    cfg: Any = OmegaConf.to_object(tree)
    data = dataset(cfg)
    base_policy(cfg, data).save(folder)
    settings = settings_of(OmegaConf.to_container(tree))  # pyright: ignore[reportArgumentType]
    fields = fields_of(data.catalog, make_adapter(cfg.data, cfg.n, matching(cfg)), "movieland")
    write_package(folder, Package(settings, data.catalog, fields))
    return settings.instruction.format(n=N)


@contextlib.contextmanager
def server(*command: str, path: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Start a server on a free port (PORT in its command). Yield its URL and process once `path` answers 200."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    arguments = [part.replace("PORT", str(port)) for part in command]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=log, stderr=log, start_new_session=True)
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(url + path).status_code == 200:
                        break
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(log.read().decode(errors="replace")[-3000:])
                time.sleep(0.5)
            yield url, process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def ours(folder: Path, engine: str):
    more = ["rollout.kv_cache_gib=0.5"] if engine == "vllm" else []
    return server(
        *("convrec_r1", "task=serve", f"checkpoint={folder}", "port=PORT", f"rollout={engine}", "trainer=cpu"), *more,
        path="/health",
    )  # fmt: skip


def bare_vllm(folder: Path):
    return server(
        *("vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", "policy"),
        *("--port", "PORT", "--host", "127.0.0.1", "--dtype", "float32"),
        path="/health",
    )


async def load(ask: Callable[[httpx.AsyncClient, int], Awaitable[int]], clients: int, requests: int) -> dict[str, Any]:
    """Send `requests` requests in all from `clients` clients. ask: sends one; returns its tokens."""
    seconds: list[float] = []
    tokens = 0
    numbers = iter(range(requests))

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal tokens
        for number in numbers:
            started = time.perf_counter()
            written = await ask(http, number)
            tokens += written
            seconds.append(time.perf_counter() - started)

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(timeout=300, limits=limits) as http:
        started = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(clients)))
        whole = time.perf_counter() - started
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {
        "clients": clients, "requests": requests, "requests_s": round(requests / whole, 2),
        "p50_ms": round(1000 * cuts[9]), "p95_ms": round(1000 * cuts[18]), "tokens_s": round(tokens / whole),
    }  # fmt: skip


def asker(url: str, instruction: str, tokens: int | None):
    """Return a function that asks for a list. tokens: of bare vLLM, how many it must write. None: ours."""

    async def ask(http: httpx.AsyncClient, number: int) -> int:
        said = f"{SAID[number % len(SAID)]} {number}"
        if tokens is None:
            body: dict[str, Any] = {"messages": [{"role": "user", "content": said}]}
        else:
            content = f"{instruction}\nUser: {said}"
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": tokens, "ignore_eos": True}
        body |= {"model": None} if tokens is None else {"model": "policy"}
        answer = await http.post(f"{url}/v1/chat/completions", json={**body, "temperature": 0})
        answer.raise_for_status()
        return answer.json()["usage"]["completion_tokens"]

    return ask


def measure_load(folder: Path, instruction: str, requests: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    engines = ["hf", "vllm"] if importlib.util.find_spec("vllm") else ["hf"]
    tokens = 100
    for name in [*engines, *(["bare vllm"] if "vllm" in engines else [])]:
        opened = bare_vllm(folder) if name == "bare vllm" else ours(folder, name)
        ask_tokens = tokens if name == "bare vllm" else None
        with opened as (url, _):
            ask = asker(url, instruction, ask_tokens)
            asyncio.run(load(ask, 8, 16))  # compiles, fills caches
            rows = [asyncio.run(load(ask, clients, max(requests, 2 * clients))) for clients in CLIENTS]
        results[name] = rows
        if name == "hf":
            tokens = round(rows[-1]["tokens_s"] / rows[-1]["requests_s"])
            results["tokens_a_list"] = tokens
        for row in rows:
            print(name, row, flush=True)
    return results


# Ten minutes of mixed requests.


class Soak:
    """Counts what came back, by kind of request."""

    def __init__(self, url: str) -> None:
        self.url, self.port = url, int(url.rsplit(":", 1)[1])
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.seconds: list[float] = []
        self.draw = random.Random(0)

    async def good(self, http: httpx.AsyncClient) -> None:
        """A list, a stream or a chat, which must be complete."""
        n, started = self.draw.randint(1, N), time.perf_counter()
        said = [{"role": "user", "content": f"{self.draw.choice(SAID)} {self.draw.random()}"}]
        kind = self.draw.choice(["list", "stream", "chat"])
        if kind == "chat":
            answer = await http.post(f"{self.url}/v1/chat/completions", json={"messages": said, "n_items": n})
            found = len(answer.json()["items"]) if answer.status_code == 200 else -1
        else:
            body = {"messages": said, "n": n, "stream": kind == "stream", "temperature": self.draw.choice([0, 1])}
            answer = await http.post(f"{self.url}/v1/recommendations", json=body)
            found = answer.text.count('"rank":')
        self.seconds.append(time.perf_counter() - started)
        self.counts[f"good {kind} {answer.status_code}"] += 1
        if answer.status_code != 200 or found != n:
            self.wrong.append(f"{kind}: {answer.status_code}, {found} of {n}: {answer.text[:200]}")

    async def refused(self, http: httpx.AsyncClient) -> None:
        """A request that must be answered with 4xx."""
        content = self.draw.choice([
            b"{", b"[" * 50_000, b"\xff\xfe", b"null", b'{"messages": 5}', b'{"messages": "\\ud800"}',
            b'{"messages": "a", "n": 1e999}',
            json.dumps({"messages": "a" * 9000}).encode(), json.dumps({"messages": "a", "where": "genre=" * 50}).encode(),
            json.dumps({"messages": [{"role": "user", "content": "a"}] * 200}).encode(), b"a" * 2_000_000,
        ])  # fmt: skip
        with contextlib.suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            # Of a huge body the server closes the connection before it is sent.
            answer = await http.post(
                f"{self.url}/v1/recommendations", content=content, headers={"Content-Type": "application/json"}
            )
            self.counts[f"refused {answer.status_code}"] += 1
            if not 400 <= answer.status_code < 500:
                self.wrong.append(f"refused: {answer.status_code} for {content[:60]!r}")

    async def rude(self, _: httpx.AsyncClient) -> None:
        """A client that is slow, leaves, or speaks no HTTP."""
        kind = self.draw.choice(["leaves", "slow", "nonsense", "huge header", "largest"])
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        body = json.dumps({"messages": "x " * 3000 if kind == "largest" else "x", "n": N, "stream": True}).encode()
        kept = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        whole = f"POST /v1/recommendations HTTP/1.1\r\nHost: 127.0.0.1\r\n{kept}".encode() + body
        with contextlib.suppress(ConnectionError):
            match kind:
                case "leaves" | "largest":
                    writer.write(whole)
                    await asyncio.sleep(self.draw.random() / 5)
                case "slow":
                    for at in range(0, len(whole), 30):
                        writer.write(whole[at : at + 30])
                        await asyncio.sleep(2.5)
                        if reader.at_eof():
                            break
                case "nonsense":
                    writer.write(self.draw.randbytes(5000))
                    await asyncio.wait_for(reader.read(), 30)
                case "huge header":
                    writer.write(b"GET / HTTP/1.1\r\nX: " + b"a" * 1_000_000)
                    await asyncio.wait_for(reader.read(), 30)
        self.counts[f"rude {kind}"] += 1
        writer.transport.abort()

    async def others(self, http: httpx.AsyncClient) -> None:
        """The other paths."""
        path = self.draw.choice(
            ["/v1/models", "/v1/catalog?query=the", "/health", "/metrics", "/openapi.json", "/docs"]
        )
        answer = await http.get(self.url + path)
        self.counts[f"other {answer.status_code}"] += 1
        if answer.status_code != 200:
            self.wrong.append(f"{path}: {answer.status_code}")

    async def run(self, minutes: float, process: subprocess.Popen) -> dict[str, Any]:
        end, memory = time.monotonic() + 60 * minutes, []
        limits = httpx.Limits(max_connections=64)

        async def repeat(kind: Callable[[httpx.AsyncClient], Awaitable[None]], pause: float) -> None:
            async with httpx.AsyncClient(timeout=120, limits=limits) as http:
                while time.monotonic() < end and process.poll() is None:
                    await kind(http)
                    await asyncio.sleep(pause * self.draw.random())

        async def watch() -> None:
            while time.monotonic() < end and process.poll() is None:
                memory.append(resident_mib(process.pid))
                await asyncio.sleep(10)

        workers = [*[(self.good, 0.2)] * 4, *[(self.refused, 0.5)] * 2, *[(self.rude, 0.5)] * 6, (self.others, 0.5)]
        await asyncio.gather(watch(), *(repeat(*worker) for worker in workers))
        async with httpx.AsyncClient() as http:
            health = (await http.get(f"{self.url}/health")).json()["status"]
            left = (await http.get(f"{self.url}/metrics")).text
        cuts = statistics.quantiles(self.seconds, n=20, method="inclusive")
        return {
            "minutes": minutes, "health": health, "crashed": process.poll() is not None,
            "good": len(self.seconds), "wrong": len(self.wrong), "examples": self.wrong[:5],
            "p50_ms": round(1000 * cuts[9]), "p95_ms": round(1000 * cuts[18]),
            "still_running": [line for line in left.splitlines() if line.startswith("convrec_r1_running")],
            "rss_mib": memory, "rss_mib_after_a_minute": memory[min(6, len(memory) - 1)], "rss_mib_at_the_end": memory[-1],
            "files_open": len(list(Path(f"/proc/{process.pid}/fd").iterdir())), "counts": dict(sorted(self.counts.items())),
        }  # fmt: skip


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * 4096 / 2**20, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--soak", type=float, help="minutes of mixed requests, in place of the load")
    parser.add_argument("--engine", default="hf", help="of the soak: hf or vllm")
    parser.add_argument("--requests", type=int, default=200, help="at each number of clients")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench_serve_"))
    try:
        instruction = write_policy(folder)
        if arguments.soak:
            with ours(folder, arguments.engine) as (url, process):
                soak = asyncio.run(Soak(url).run(arguments.soak, process))
            found = {f"soak_{arguments.engine}": soak}
            print({key: value for key, value in soak.items() if key != "rss_mib"})
        else:
            found = {"load": measure_load(folder, instruction, arguments.requests)}
    finally:
        shutil.rmtree(folder)
    machine = {"machine": f"{platform.machine()}, Python {platform.python_version()}"}
    write_json(OUT, (read_json(OUT) if OUT.exists() else {}) | machine | found)


if __name__ == "__main__":
    main()
