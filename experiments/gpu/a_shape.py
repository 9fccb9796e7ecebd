"""Item A: trainer=gpu and rollout=hf at the shape of Qwen2.5-0.5B, with random weights.

    python experiments/gpu/a_shape.py OUT [--dry] [--seconds 600]

Steps: the whole job (debug=smoke); steps of 48 x 8 lists with prompts of 1,000 tokens and lists of 200; log-probs and gradients
with a shared prompt and without; the chunked head and the plain one; five steps killed and resumed.
"""

import argparse
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from common import SHAPES, Recorder, job, long_conversations, machine, metrics, shape_folder, start_job

H100_BF16 = 989e12
"""Dense bf16 operations a second, by the vendor's datasheet (H100 SXM and H200)."""


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--dry", action="store_true", help="small sizes, on a CPU")
    arguments.add_argument("--seconds", type=float, default=600)
    given = arguments.parse_args()
    scratch = Path(tempfile.mkdtemp())
    size = Size(dry=given.dry)
    record = Recorder(given.out / "a_shape.jsonl", seconds=given.seconds)
    record.step("machine", 60, machine)
    record.step("model", 60, lambda _: {"files": len(list(shape_folder(size.shape, scratch / "model").iterdir()))})
    record.step("smoke", 200, lambda limit: smoke(size, scratch, limit))
    record.step("step", 200, lambda limit: big_step(size, scratch, limit))
    record.step("shared prompt", 60, lambda _: shared_prompt(size, scratch))
    record.step("head", 40, lambda _: head(size))
    record.step("killed and resumed", 240, lambda limit: killed(size, scratch, limit))
    record.step(
        "step, micro_tokens 32768", 120, lambda limit: big_step(size, scratch, limit, micro_tokens=32_768, steps=2)
    )


class Size:
    """The sizes of the measurement, or those of a dry run."""

    def __init__(self, *, dry: bool) -> None:
        self.shape = "dry" if dry else "qwen2.5-0.5b"
        self.trainer = "cpu" if dry else "gpu"
        self.device = "cpu" if dry else "cuda"
        self.prompts, self.prompt, self.list = (4, 200, 12) if dry else (48, 1000, 200)
        self.group = 8
        self.sft_steps = 20 if dry else 300

    def model(self, scratch: Path) -> list[str]:
        return [
            "model=hub",
            f"model.name={self.shape}",
            f"model.path={scratch / 'model'}",
            f"trainer={self.trainer}",
            "rollout=hf",
        ]


def smoke(size: Size, scratch: Path, limit: float) -> dict[str, Any]:
    found = job([*size.model(scratch), "debug=smoke"], scratch / "runs", limit, name="smoke")
    values = [row["values"] for row in metrics(scratch / "runs", "smoke")]
    return found | {
        "steps": len(values),
        "reward": [v["reward"] for v in values],
        "lines": precision(scratch / "runs/smoke.log"),
    }


def precision(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if "bf16" in line or "rollout" in line][:4]


def big_step(size: Size, scratch: Path, limit: float, *, micro_tokens: int = 8192, steps: int = 3) -> dict[str, Any]:
    """Return seconds by part, memory and MFU of the last step."""
    data = long_conversations(scratch / "data", size.prompts * 2, 6 if size.trainer == "cpu" else 60)
    name = f"step{micro_tokens}"
    found = job(
        [
            *size.model(scratch), "data=jsonl", f"data.path={data}", f"data.catalog={data / 'catalog.json'}", "warm_start=null",
            "n=20", f"model.max_prompt_length={size.prompt}", f"model.max_completion_length={size.list}", "baselines=[]",
            f"rl.steps={steps}", f"rl.prompts_per_step={size.prompts}", f"algo.group_size={size.group}", "eval.every=1000",
            "guard.action=none", f"trainer.micro_tokens={micro_tokens}", f"rollout.batch_size={size.prompts * size.group}",
        ],
        scratch / "runs", limit, name=name,
    )  # fmt: skip
    values = [row["values"] for row in metrics(scratch / "runs", name)]
    if not values:
        return found
    last = values[-1]
    parts = [{k: round(v, 3) for k, v in row.items() if k.startswith("time/")} for row in values]
    flops = operations(size, last["completions/mean_length"])
    return found | {
        "parts": parts, "mean_length": last["completions/mean_length"], "tokens_per_second": last["tokens_per_second"],
        "sampled_against_scored": [row["sampling/sampling_logp_difference/mean"] for row in values],
        "train_flops": flops, "mfu": round(flops / last["time/train"] / H100_BF16, 3),
    }  # fmt: skip


def operations(size: Size, length: float) -> float:
    """Return the floating-point operations of training on a step's lists, as if every prompt were scored for each list.

    6 per weight and token for the policy, 2 for the reference; attention: 12 (and 4) times width times half the length. The
    head counts for the tokens of lists only.
    """
    s = SHAPES[size.shape]
    width, layers, heads = s["hidden_size"], s["num_hidden_layers"], s["num_attention_heads"]
    kv = width // heads * s["num_key_value_heads"]
    body = layers * (2 * width * width + 2 * width * kv + 3 * width * s["intermediate_size"])
    rows, whole = size.prompts * size.group, size.prompt + length
    attention = layers * width * whole * whole / 2
    return rows * (8 * body * whole + 8 * s["vocab_size"] * width * length + 16 * attention)


def shared_prompt(size: Size, scratch: Path) -> dict[str, Any]:
    """Time log-probs and gradients of two groups, their prompts scored for each list and once a group."""
    import torch

    from convrec_r1.policy.batch import TokenBatch
    from convrec_r1.policy.config import ModelConfig
    from convrec_r1.policy.load import load_policy

    policy = load_policy(scratch / "model", ModelConfig(name="shape")).to(size.device).train()
    draw = torch.Generator().manual_seed(0)
    vocabulary = SHAPES[size.shape]["vocab_size"]
    groups = 2
    prompts = torch.randint(vocabulary, (groups, size.prompt), generator=draw).to(size.device)
    lists = torch.randint(vocabulary, (groups * size.group, size.list), generator=draw).to(size.device)
    owner = torch.arange(groups, device=size.device).repeat_interleave(size.group)
    batch = TokenBatch(prompts, torch.ones_like(prompts), owner, lists, torch.ones_like(lists))

    def score(*, packs: bool) -> torch.Tensor:
        policy.packs = packs
        return policy(batch)[0]

    result: dict[str, Any] = {"groups": groups, "lists": len(lists), "prompt": size.prompt, "list": size.list}
    kept = {}
    for name, packs in (("each", False), ("once", True)):
        seconds, peak = [], 0
        for _ in range(4):
            policy.zero_grad()
            synchronize(size)
            if size.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = time.monotonic()
            with torch.autocast(size.device, torch.bfloat16, enabled=size.device == "cuda"):
                logps = score(packs=packs)
            (-logps.sum() / logps.numel()).backward()
            synchronize(size)
            seconds.append(time.monotonic() - start)
            peak = torch.cuda.max_memory_allocated() if size.device == "cuda" else 0
        gradient = torch.cat([p.grad.flatten().float() for p in policy.parameters() if p.grad is not None])
        kept[name] = logps.detach(), gradient
        result |= {f"{name}_s": [round(x, 4) for x in seconds], f"{name}_peak_gib": round(peak / 2**30, 2)}
    (a, grad_a), (b, grad_b) = kept["each"], kept["once"]
    result["logps_max_difference"] = float((a - b).abs().max())
    result["gradient_relative_difference"] = float((grad_a - grad_b).norm() / grad_a.norm())
    result["ratio"] = round(min(result["each_s"][1:]) / min(result["once_s"][1:]), 2)
    return result


def head(size: Size) -> dict[str, Any]:
    """Time the head in chunks of the vocabulary and whole, for the list tokens of a micro-batch of 16."""
    import torch

    from convrec_r1.policy.logprobs import token_logprobs

    shape = SHAPES[size.shape]
    tokens = 16 * size.list
    torch.manual_seed(0)
    hidden = torch.randn(tokens, shape["hidden_size"], device=size.device)
    weight = 0.02 * torch.randn(shape["vocab_size"], shape["hidden_size"], device=size.device)
    targets = torch.randint(shape["vocab_size"], (tokens,), device=size.device)

    def chunked(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return token_logprobs(h, w, targets, 1.0)[0]

    def plain(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        logits = (h @ w.T).float()
        return torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]

    result: dict[str, Any] = {"tokens": tokens}
    for name, function in (("chunked", chunked), ("plain", plain)):
        seconds, peak = [], 0.0
        for _ in range(6):
            h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
            synchronize(size)
            before = 0
            if size.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            start = time.monotonic()
            with torch.autocast(size.device, torch.bfloat16, enabled=size.device == "cuda"):
                logps = function(h, w)
            logps.sum().backward()
            synchronize(size)
            seconds.append(time.monotonic() - start)
            if size.device == "cuda":
                peak = (torch.cuda.max_memory_allocated() - before) / 2**30
        result |= {f"{name}_s": [round(x, 5) for x in seconds], f"{name}_peak_gib": round(peak, 2)}
    return result


def synchronize(size: Size) -> None:
    import torch

    if size.device == "cuda":
        torch.cuda.synchronize()


def killed(size: Size, scratch: Path, limit: float) -> dict[str, Any]:
    """Compare five undisturbed steps of the tiny model on movieland with five that are killed with -9 after the third."""
    end = time.monotonic() + limit
    run = [
        f"trainer={size.trainer}", "rollout=hf", f"sft.steps={size.sft_steps}", "rl.steps=5", "trainer.checkpoint_every=1",
        "baselines=[]", "eval.every=1000", "data.test_size=50",
    ]  # fmt: skip
    whole = job(run, scratch / "runs", limit / 2, name="whole")
    process = start_job(run, scratch / "runs", name="killed")
    while process.poll() is None and len(metrics(scratch / "runs", "killed")) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = len(metrics(scratch / "runs", "killed"))
    resumed = job(run, scratch / "runs", end - time.monotonic(), name="killed")
    pairs = zip(metrics(scratch / "runs", "whole"), metrics(scratch / "runs", "killed"), strict=False)
    steps = []
    for a, b in pairs:
        keys = [k for k in a["values"] if not k.startswith("time/") and k != "tokens_per_second"]
        apart = {k: abs(a["values"][k] - b["values"].get(k, float("nan"))) for k in keys}
        steps.append({"step": a["step"], "different": {k: d for k, d in apart.items() if d}})
    return {"whole": whole, "steps_before_kill": before, "resumed": resumed, "steps": steps}


if __name__ == "__main__":
    main()
