"""An HTTP server that speaks what the trainer asks of vLLM, for faults that the real one cannot be made to show."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from safetensors import safe_open

from convrec_r1.rollout.checksums import WeightSums
from convrec_r1.rollout.config import vllm_version

GENERATE = "/inference/v1/generate"
GETS = ("/health", "/version", "/weight_info")


def sampled(prompt: Sequence[int], seed: int, n: int, length: int = 4) -> list[list[int]]:
    """The completions that a fake server gives."""
    return [np.random.default_rng([seed + g, *prompt]).integers(3, 500, length).tolist() for g in range(n)]


class FakeVLLM:
    """Holds the weights of the last file it was given; `generate` draws tokens by chance, by seed and prompt alone.

    faults: done instead of answering properly, one a request for completions, until none is left.
    """

    def __init__(self, policy, *, faults: Sequence[str] = (), delay: float = 0.0, port: int = 0, **engine) -> None:
        self.policy, self.faults, self.delay = policy, list(faults), delay
        self.version, self.weight_version, self.sums = vllm_version() or "0.32.0", "default", {}
        self.missing: set[str] = set()
        self.shift = 0  # of the tokenizer's ids
        self.updating = False
        self.prompts: list[list[int]] = []  # of the groups that were answered properly
        self.given: list[str] = []  # names of the weights that came in
        self.on_generate: Callable[[], None] = lambda: None
        self.engine = {
            "model": policy.causal_lm.config.to_dict(),
            "dtype": "float32",
            "max_length": 256,
            "max_num_seqs": 8,
            "prompts_in_pieces": False,
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",
            "device": "cuda",
            "transfer": "convrec_file",
            **engine,
        }
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def forget(self) -> None:
        """As if it had been started again."""
        self.weight_version, self.sums, self.updating = "default", {}, False

    def answer(self, path: str, body: dict) -> tuple[int, object]:
        if path == "/health":
            return 200, None
        if path == "/version":
            return 200, {"version": self.version}
        if path == "/weight_info":
            return 200, {"weight_version": self.weight_version}
        if path == "/tokenize":
            ids = self.policy.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
            return 200, {"tokens": [token + self.shift for token in ids]}
        if path == "/collective_rpc":
            return 200, {"results": [self.engine if body["method"] == "describe_engine" else self.sums]}
        if path == "/start_weight_update":
            already, self.updating = self.updating, True
            return (500, {"error": {"message": "a weight update is already active"}}) if already else (200, {})
        if path == "/update_weights":
            self.load(**body["update_info"])
            return 200, {}
        if path == "/finish_weight_update":
            self.updating = False
            self.weight_version = body.get("weight_version", self.weight_version)
            self.given.append(self.weight_version)
            return 200, {}
        if path == "/reset_prefix_cache":
            return 200, {"success": True}
        return 404, {"detail": "Not Found"}

    def load(self, path: str, names: list[str]) -> None:
        sums = WeightSums()
        with safe_open(path, framework="pt") as file:
            for name in names:
                sums.add(name, file.get_tensor(name))
        self.sums = sums.by_layer()

    def group(self, body: dict) -> dict:
        sampling = body["sampling_params"]
        groups = sampled(body["token_ids"], sampling.get("seed", 0), sampling["n"])
        return {
            "choices": [
                {
                    "index": g,
                    "token_ids": ids,
                    "finish_reason": "length",
                    "logprobs": {"content": [{"token_id": token, "logprob": -1.5} for token in ids]},
                    "weight_versions": [{"version": self.weight_version, "start": 0, "end": len(ids)}],
                }
                for g, ids in enumerate(groups)
            ]
        }

    def next_fault(self) -> str | None:
        with self._lock:
            return self.faults.pop(0) if self.faults else None

    def _handler(fake) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path in fake.missing:
                    self.reply(404, {"detail": "Not Found"})
                else:
                    self.reply(*fake.answer(path, {}) if path in GETS else (405, {"detail": "Method Not Allowed"}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                path = self.path.partition("?")[0]
                if path == GENERATE:
                    self.generate(body)
                else:
                    self.reply(*fake.answer(path, body))

            def generate(self, body: dict) -> None:
                fake.on_generate()
                time.sleep(fake.delay)
                if max(body["token_ids"]) >= fake.engine["model"]["vocab_size"]:
                    self.reply(400, {"error": {"message": "a token is out of vocabulary"}})
                    return
                fault, group = fake.next_fault(), fake.group(body)
                if fault is None:
                    fake.prompts.append(body["token_ids"])
                    self.reply(200, group)
                elif fault == "status 500":
                    self.reply(500, {"error": {"message": "the engine hiccuped"}})
                elif fault == "reset":
                    self.close_connection = True
                    self.connection.shutdown(2)
                elif fault == "truncated":
                    self.reply(200, json.dumps(group)[:-40])
                elif fault == "hang":
                    time.sleep(3)
                else:
                    spoil(group, fault)
                    self.reply(200, group)

            def reply(self, status: int, content: object) -> None:
                data = (
                    b"" if content is None else (content if isinstance(content, str) else json.dumps(content)).encode()
                )
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_) -> None:
                pass

        return Handler


def spoil(group: dict, fault: str) -> None:
    choice = group["choices"][-1]
    if fault == "other weights":
        choice["weight_versions"].append({"version": "older", "start": 2, "end": 4})
    elif fault == "one missing":
        group["choices"].pop()
    elif fault == "one twice":
        choice["index"] = 0
    elif fault == "aborted":
        choice["finish_reason"] = "abort"
    elif fault == "no log-probs":
        choice["logprobs"]["content"][1]["logprob"] = -9999.0
    elif fault == "another shape":
        del choice["token_ids"]
    else:
        raise ValueError(fault)
