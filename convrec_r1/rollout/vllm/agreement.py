"""Check that a vLLM server fits the run: its version, engine, model and tokenizer."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from packaging.version import InvalidVersion, Version

from convrec_r1.base.errors import UserError
from convrec_r1.policy import Policy
from convrec_r1.policy.weights import tied_head
from convrec_r1.rollout.config import vllm_version
from convrec_r1.rollout.vllm.options import BACKEND, NEEDED, SERVER, UNTIED, flags
from convrec_r1.rollout.vllm.server import GENERATE, Server, ServerFault

OLDEST = (0, 32)
"""First release whose answers name the weights that their tokens were sampled from."""
CONFIG = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_theta")  # fmt: skip
"""Keys of a model's config that its weights depend on. Compared where both sides have them."""
ROUTES = {
    "/collective_rpc": "VLLM_SERVER_DEV_MODE=1",
    "/start_weight_update": "VLLM_SERVER_DEV_MODE=1",
    GENERATE: "--enable-scale-out",
}
"""What a server must answer to, and what it is started with to do so."""
PROBES = (
    "Title (1999)\n",
    "Amélie (2001)\n千と千尋の神隠し (2001)",
    "  two  spaces\t\r\n\n",
    "don't — “quote” 🎬",
    "system\nuser",
)
"""Texts that server and policy must tokenize alike."""


@dataclass(frozen=True)
class Engine:
    """A server's engine, as its workers describe it (`worker.WeightSync.describe_engine`)."""

    model: dict[str, Any]
    dtype: str
    max_length: int
    max_num_seqs: int
    prompts_in_pieces: bool
    logprobs_mode: str
    generation_config: str
    device: str
    transfer: str | None

    @property
    def tied(self) -> bool:
        """Whether head and embeddings share their weights."""
        return bool(self.model.get("tie_word_embeddings"))


def examine(server: Server, policy: Policy, *, max_length: int) -> Engine:
    """Return the server's engine. max_length: upper limit of prompt and completion together, in tokens.

    Raises:
        UserError: the server cannot sample for this run. Lists what is wrong, with a command that starts one that can.
        ServerFault: it failed to answer.
    """
    try:
        version = Version(server.get("/version")["version"])
    except (KeyError, TypeError, InvalidVersion):
        raise UserError(f"What answers at {server.address} is no vLLM server. Correct rollout.servers.") from None
    engine, own = None, vllm_version()
    if version.release[:2] < OLDEST:
        wrong = [f"it is vLLM {version}; {OLDEST[0]}.{OLDEST[1]} or newer is needed."]
    elif own and version.release[:2] != Version(own).release[:2]:
        wrong = [f"it is vLLM {version}; here {own} is installed. Use the same release on both sides."]
    elif missing := [path for path in ROUTES if not server.has(path)]:
        wrong = [f"it has no {path}: start it with {ROUTES[path]}." for path in missing]
    elif engine := _describe(server):
        wrong = [*_engine(engine, max_length), *_model(engine, policy), *_tokenizer(server, policy)]
    else:
        wrong = ["it was started without this project's worker (--worker-extension-cls)."]
    if wrong or engine is None:
        raise UserError(
            f"The vLLM server at {server.address} does not fit this run:\n"
            + "\n".join(f"  - {line}" for line in wrong)
            + f"\nWhere this project is installed, this starts one that does:\n  {_command(max_length)}"
        )
    return engine


def _describe(server: Server) -> Engine | None:
    """None: its workers have no such method."""
    try:
        return Engine(**server.call_workers("describe_engine")[0])
    except ServerFault:
        if server.is_well():
            return None
        raise


def _engine(engine: Engine, max_length: int) -> Iterator[str]:
    for flag, found, wanted in (
        ("--weight-transfer-config", engine.transfer, BACKEND),
        ("--logprobs-mode", engine.logprobs_mode, NEEDED["logprobs_mode"]),
        ("--generation-config", engine.generation_config, NEEDED["generation_config"]),
    ):
        if found != wanted:
            yield f"its {flag} is {found}; the run needs {wanted}."
    if engine.max_length < max_length:
        yield (
            f"it takes {engine.max_length} tokens of prompt and completion (--max-model-len); the run needs {max_length} "
            "(model.max_prompt_length + model.max_completion_length)."
        )
    if engine.device == "cpu" and engine.prompts_in_pieces:
        yield "on CPUs it cannot seed prompts that it prefills in pieces (--no-enable-chunked-prefill)."
    if engine.device == "cpu" and engine.tied:
        how = shlex.join(flags({"hf_overrides": UNTIED}))
        yield f"on CPUs a head that shares the embeddings' weights keeps its first ones ({how})."


def _model(engine: Engine, policy: Policy) -> Iterator[str]:
    ours, theirs = _sizes(policy.causal_lm.config.to_dict()), _sizes(engine.model)
    for key in CONFIG:
        if key in ours and key in theirs and ours[key] != theirs[key]:
            yield f"its model has {key}={theirs[key]}; the policy's has {ours[key]}."
    if engine.tied and not tied_head(policy):
        yield "its model's head and embeddings share their weights; the policy's do not."


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    flat = {**config, **(config.get("rope_parameters") or {})}
    return {key: flat[key] for key in CONFIG if flat.get(key) is not None}


def _tokenizer(server: Server, policy: Policy) -> Iterator[str]:
    for text in PROBES:
        answer = server.post("/tokenize", {"prompt": text, "add_special_tokens": False})
        theirs, ours = answer["tokens"], policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        if theirs != ours:
            yield f"its tokenizer reads {text!r} as {theirs[:12]}; the policy's reads {ours[:12]}."
            return


def _command(max_length: int) -> str:
    everywhere = flags({"model": "MODEL", "max_model_len": max_length, **SERVER, **NEEDED})
    on_cpu = flags({"enable_chunked_prefill": False, "hf_overrides": UNTIED})
    return (
        f"VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server {shlex.join(everywhere)}\n"
        f"on CPUs also with\n  {shlex.join(on_cpu)}"
    )
