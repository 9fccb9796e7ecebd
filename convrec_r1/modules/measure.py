"""Measure the time and memory of the longest step of a run on the policy itself, and forecast the whole run.

Measuring changes nothing: weights and random state are the same afterwards, and gradients are cleared.
"""

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from convrec_r1.base.memory import release
from convrec_r1.policy import Policy, TokenBatch
from convrec_r1.rollout.base import RolloutEngine, Sampling
from convrec_r1.rollout.hf import HFEngine

DAY = 86_400
_MEMINFO, _STATM = Path("/proc/meminfo"), Path("/proc/self/statm")
_PROBE_PROMPT, _PROBE_TOKENS = 16, 5  # tokens of a prompt and of a completion with which sampling is timed on a CPU
_SHARES = (1 / 64, 1 / 16, 1 / 4, 1.0)  # lengths of the passes of one sequence, as shares of the longest
Result = TypeVar("Result")


@dataclass(frozen=True)
class Plan:
    """The work of a run, for one process. Lengths are in tokens."""

    prompt: int
    completion: int
    """`prompt`, `completion`: the longest that are allowed, for memory."""
    mean_prompt: int
    mean_completion: int
    """Means of the data, for time."""
    micro_batch: int
    """Completions in one forward and backward pass."""
    engine_batch: int
    """Sequences that the engine samples at a time."""
    sft_steps: int = 0
    sft_rows: int = 0
    """Sequences of one SFT step."""
    rl_steps: int = 0
    rl_rows: int = 0
    """Completions of one RL step."""
    learned: int = 1
    """Times that an RL step trains on each completion (algo.mu)."""
    scored: int = 0
    """Further forward passes over each completion: reference and old log-probs."""
    updates: int = 1
    """Optimizer updates of one RL step."""
    evaluated: int = 0
    """Completions of all evaluations together."""
    sharing: int = 1
    """Completions of one prompt in RL, where the policy reads the prompt once for them all."""

    def tokens(self, rows: int, share: float = 1.0) -> int:
        """Return the tokens of a pass over so many completions of RL. share: their lengths, as a share of the longest."""
        prompt, completion = self.lengths(share)
        return math.ceil(rows / self.sharing) * prompt + rows * completion

    def lengths(self, share: float) -> tuple[int, int]:
        """Return the tokens of a prompt and a completion of this share of the longest lengths."""
        return max(1, int(self.prompt * share)), max(1, int(self.completion * share))


@dataclass(frozen=True)
class StepCost:
    """What was measured with the longest sequences: seconds on this device, bytes of one process."""

    rows: int
    tokens: int
    """Completions of the largest pass that was measured, and its tokens. Fewer than planned if time or memory ran out."""
    forward: float
    learn: float
    """Seconds per token of a forward pass, and of forward and backward."""
    update: float
    """Seconds of an optimizer update."""
    prefill: float
    """Seconds per token of a prompt."""
    token: float
    token_row: float
    """Seconds to sample one more token: for all sequences together, and in addition for each."""
    peak: dict[str, int]
    """Bytes by phase, extrapolated to the plan's longest micro-batch."""
    held: int
    """Bytes between passes: weights, gradients, AdamW, reference; on a CPU also Python and its libraries."""
    available: int
    """Bytes that the process could have."""
    on_gpu: bool = False


def measure(
    policy: Policy, engine: RolloutEngine, plan: Plan, *, bf16: bool = False, reference: bool = False, budget: float = 30
) -> StepCost:  # fmt: skip
    """Time forward, backward, an optimizer update and sampling, and read the peak memory.

    Passes grow from one short sequence to the plan's longest micro-batch, as far as time and memory allow. The rest is
    extrapolated by the number of tokens.

    Args:
        policy: on its device, ready for training.
        engine: samples from `policy`; it is synced first. Every process of a run must call this.
        bf16: compute under autocast, as trainer.precision=bf16-mixed does.
        reference: the run also holds a frozen copy of the policy.
        budget: seconds for passes and for sampling each. The smallest passes are made in any case.
    """
    device, training = policy.device, policy.training
    on_gpu = device.type == "cuda"
    copies = sum(p.numel() * p.element_size() for p in policy.parameters()) if reference else 0
    with torch.random.fork_rng([device] if on_gpu else []), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        try:
            probe = _Probe(policy.train(), plan)
            probe.learn(1, _SHARES[0])  # warm-up: libraries and kernels are loaded at their first use
            update = probe.update()
            held = held_memory(device)
            available = held + free_memory(device)
            passes, more = probe.grow(budget, available - held)
            policy.zero_grad(set_to_none=True)
            engine.sync(policy)
            prefill, token, token_row, sampling = probe.sampling(engine, budget)
        finally:
            policy.zero_grad(set_to_none=True)
            policy.train(training)
    rows, tokens, forward, both, _ = passes
    held += copies
    return StepCost(
        rows, tokens, forward / tokens, both / tokens, update, prefill, token, token_row,
        {"training": held + more, "sampling": held + sampling}, held, available, on_gpu,
    )  # fmt: skip


class _Pass(NamedTuple):
    """Completions, tokens, seconds of a forward pass, of forward and backward, and bytes that the latter takes."""

    rows: int
    tokens: int
    forward: float
    both: float
    more: int


class _Probe:
    """Passes of random tokens through a policy."""

    def __init__(self, policy: Policy, plan: Plan) -> None:
        self.policy, self.plan = policy, plan
        self.random = torch.Generator().manual_seed(0)
        trained = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0, fused=True)

    def ids(self, *shape: int) -> Tensor:
        vocabulary = min(len(self.policy.tokenizer), self.policy.head_weight.shape[0])
        return torch.randint(vocabulary, shape, generator=self.random)

    def learn(self, rows: int, share: float) -> _Pass:
        """Measure a pass of `rows` completions and their prompts, of this share of the longest lengths."""
        long, wide = self.plan.lengths(share)
        prompt, completion = self.ids(math.ceil(rows / self.plan.sharing), long), self.ids(rows, wide)
        owner = torch.arange(rows) // self.plan.sharing
        batch = TokenBatch(prompt, torch.ones_like(prompt), owner, completion, torch.ones_like(completion))
        batch = batch.to(self.policy.device)
        with torch.no_grad():
            forward = wall_time(lambda: self.policy.score(batch), self.policy.device)
        with peak_memory(self.policy.device) as more:
            both = wall_time(lambda: self.policy.score(batch)[0].sum().backward(), self.policy.device)
        return _Pass(rows, self.plan.tokens(rows, share), forward, both, more[0])

    def update(self) -> float:
        """Return seconds of an optimizer update that changes no weight: zero gradients, learning rate 0."""
        self.optimizer.zero_grad(set_to_none=False)
        self.optimizer.step()  # allocates the moments
        return wall_time(self.optimizer.step, self.policy.device)

    def grow(self, budget: float, free: int) -> tuple[_Pass, int]:
        """Measure growing passes. Return the largest one, and the bytes that the plan's micro-batch would take."""
        memory: list[tuple[int, int]] = []  # (tokens, bytes) of each pass

        def work(rows: int, share: float) -> _Pass:
            tokens = self.plan.tokens(rows, share)
            if len(memory) > 1 and 1.2 * _line(memory, tokens) > free:  # a CPU's process would be killed
                raise torch.OutOfMemoryError
            done = self.learn(rows, share)
            memory.append((done.tokens, done.more))
            return done

        sizes = [(1, share) for share in _SHARES] + _sizes(self.plan.micro_batch)[1:]
        largest = _grow(work, sizes, budget, least=2)[-1]  # a line needs two points
        return largest, _line(memory, self.plan.tokens(self.plan.micro_batch))

    def sampling(self, engine: RolloutEngine, budget: float) -> tuple[float, float, float, int]:
        """Return seconds per prompt token, per sampled token, in addition per sequence, and bytes for the plan's batch."""
        on_gpu = self.policy.device.type == "cuda"
        prompt = self.plan.prompt if on_gpu else min(self.plan.prompt, _PROBE_PROMPT)

        def work(rows: int, _: float) -> tuple[int, float, float, int]:
            first, _ = self.generate(engine, rows, prompt, 1)
            with peak_memory(self.policy.device) as more:
                whole, made = self.generate(engine, rows, prompt, _PROBE_TOKENS)
            token = max(whole - first, 0.0) / max(made - 1, 1)
            return rows, token, max(first - token, 0.0) / (rows * prompt), more[0]

        points = _grow(work, _sizes(self.plan.engine_batch), budget, least=1)
        (few, fast, _, _), (many, slow, prefill, more) = points[0], points[-1]
        per_row = max(0.0, slow - fast) / (many - few) if many > few else 0.0
        bytes_at_most = more * self.plan.engine_batch // many
        if isinstance(engine, HFEngine):  # other engines keep a cache of their own
            rest = self.plan.prompt - prompt + self.plan.completion
            bytes_at_most += cache_bytes(self.policy) * self.plan.engine_batch * rest
        return prefill, max(slow - per_row * many, 0.0), per_row, bytes_at_most

    def generate(self, engine: RolloutEngine, rows: int, prompt: int, tokens: int) -> tuple[float, int]:
        """Return the seconds of sampling at most `tokens` tokens for `rows` prompts, and the tokens of the longest."""
        prompts = self.ids(rows, prompt).tolist()  # new ones: an engine may keep the prompts it has seen
        sampling = Sampling(max_tokens=tokens)
        made: list[Any] = []
        seeds = list(range(rows))
        seconds = wall_time(lambda: made.extend(engine.generate(prompts, seeds, sampling)), self.policy.device)
        return seconds, max(len(group[0].ids) for group in made)


def _sizes(most: int) -> list[tuple[int, float]]:
    """Return (1, 1.0), (4, 1.0), (16, 1.0), ... and (most, 1.0)."""
    sizes = [1]
    while sizes[-1] < most:
        sizes.append(min(sizes[-1] * 4, most))
    return [(rows, 1.0) for rows in sizes]


def _grow(
    work: Callable[[int, float], Result], sizes: Sequence[tuple[int, float]], budget: float, *, least: int
) -> list[Result]:
    """Return `work(rows, share)` for growing sizes, while time (`budget`, seconds) and memory last.

    The first `least` sizes are measured in any case.
    """
    started = time.perf_counter()
    rate = 0.0  # seconds per row of the longest length, as in the last measurement
    results: list[Result] = []
    for rows, share in sizes:
        before = time.perf_counter()
        if len(results) >= least and before - started + rate * rows * share > budget:
            break
        try:
            results.append(work(rows, share))
        except torch.OutOfMemoryError:
            if not results:
                raise
            break
        rate = (time.perf_counter() - before) / (rows * share)
    return results


def forecast(cost: StepCost, plan: Plan) -> dict[str, float]:
    """Return the seconds of a run by phase, for sequences of the plan's mean lengths."""
    tokens = plan.mean_prompt + plan.mean_completion

    def sample(rows: int, sharing: int) -> float:
        a_token = math.ceil(rows / plan.engine_batch) * cost.token + rows * cost.token_row
        return rows / sharing * plan.mean_prompt * cost.prefill + plan.mean_completion * a_token

    learn = plan.learned * cost.learn + plan.scored * cost.forward
    packed = plan.rl_rows * (plan.mean_prompt / plan.sharing + plan.mean_completion)
    return {
        "SFT": plan.sft_steps * (plan.sft_rows * tokens * cost.learn + cost.update),
        "sampling": plan.rl_steps * sample(plan.rl_rows, plan.sharing),
        "training": plan.rl_steps * (packed * learn + plan.updates * cost.update),
        "evaluation": sample(plan.evaluated, 1),
    }


def at_most(plan: Plan, parameters: int, layers: int, *, on_gpu: bool) -> float:
    """Return an upper bound of the seconds of a run: its operations at a speed that devices exceed."""
    tokens = plan.prompt + plan.completion
    passes = plan.sft_steps * plan.sft_rows + plan.rl_steps * plan.rl_rows * (plan.learned + plan.scored)
    sampled = plan.rl_steps * plan.rl_rows + plan.evaluated
    batches = plan.rl_steps * math.ceil(plan.rl_rows / plan.engine_batch) + plan.evaluated / plan.engine_batch
    operations = (8 * passes + 4 * sampled) * tokens * parameters
    calls = batches * plan.completion * layers * 0.003
    return operations / (5e12 if on_gpu else 1e10) + calls


def long_run_warning(policy: Policy, engine: RolloutEngine, plan: Plan, *, bf16: bool = False) -> str | None:
    """Return a warning if the run would take more than a day (`too_long`), else None.

    Measures only if a count of operations (`at_most`) does not rule that out: for small models this costs nothing.
    """
    on_gpu = policy.device.type == "cuda"
    parameters = sum(p.numel() for p in policy.parameters())
    layers = getattr(policy.causal_lm.config.get_text_config(), "num_hidden_layers", 1)
    if at_most(plan, parameters, layers, on_gpu=on_gpu) < DAY:
        return None
    seconds = forecast(measure(policy, engine, plan, bf16=bf16), plan)
    return too_long(seconds, on_gpu=on_gpu)


def too_long(seconds: dict[str, float], *, on_gpu: bool) -> str | None:
    """Return a warning for a forecast of more than a day: how long, by phase, and what to change. Else None."""
    total = sum(seconds.values())
    if total <= DAY:
        return None
    phases = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items() if value)
    change = "more GPUs (trainer.devices), rollout=vllm" if on_gpu else "a GPU (trainer=gpu)"
    return (
        f"This run would take about {duration(total)} on {'this GPU' if on_gpu else 'this CPU'}: {phases}. To shorten it: "
        f"{change}, a smaller model (model=), fewer steps (recipe=, rl.steps, sft.epochs), or fewer completions per step "
        "(rl.prompts_per_step, algo.group_size)."
    )


def duration(seconds: float) -> str:
    """Return seconds in words, with two digits: an estimate has no more."""
    for unit, many in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * many:
            return f"{seconds / many:.2g} {unit}" if seconds < 100 * many else f"{seconds / many:,.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s"


def size(number: float) -> str:
    """Return bytes in words."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free: of the GPU, or of the machine within the container's limit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if _MEMINFO.exists():
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError):  # no limit, or no control group
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free


def held_memory(device: torch.device) -> int:
    """Return the bytes that this process holds on the GPU, or of RAM. 0 on systems without /proc."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    pages = _STATM.read_text().split()[1] if _STATM.exists() else 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Yield a list. At the end of the block it gets the peak bytes of the block, beyond those held before it."""
    found: list[int] = []
    if device.type == "cpu":  # what was freed and is kept for reuse would hide what the block takes
        release()
    before = held_memory(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.append(max(0, torch.cuda.max_memory_allocated(device) - before))
        return
    highest, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            highest[0] = max(highest[0], held_memory(device))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found.append(max(highest[0], held_memory(device)) - before)


@torch.no_grad()
def cache_bytes(policy: Policy) -> int:
    """Return the bytes of keys and values for each token of a sequence."""
    with policy.inference():
        ids = torch.zeros(1, 4, dtype=torch.long, device=policy.device)
        lm: Any = policy.causal_lm
        cache = lm(input_ids=ids, use_cache=True).past_key_values
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) // 4


def _line(points: list[tuple[int, int]], x: int) -> int:
    """Return y at x on the line through the last two of `points`, which rises and does not fall below the last."""
    x1, y1 = points[-1]
    x0, y0 = points[-2] if len(points) > 1 else (0, 0)
    return int(y1 + max(0, y1 - y0) / (x1 - x0) * max(0, x - x1)) if x1 > x0 else y1


def wall_time(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that `work` takes, with what it leaves to a GPU."""
    finish(device)
    start = time.perf_counter()
    work()
    finish(device)
    return time.perf_counter() - start


def finish(device: torch.device) -> None:
    """Wait for what a GPU still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
