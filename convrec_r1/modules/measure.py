"""Measure the time and memory of the longest step of a run on the policy itself.

Measuring changes nothing: weights and random state are the same afterwards, and gradients are cleared.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from convrec_r1.base.memory import release
from convrec_r1.modules.config import Optimizer
from convrec_r1.modules.forecast import DAY, Plan, StepCost, at_most, forecast, replacements, too_long
from convrec_r1.modules.memory import cache_bytes, free_memory, held_memory, peak_memory
from convrec_r1.modules.step import optimizer_maker
from convrec_r1.policy import Policy, TokenBatch
from convrec_r1.rollout.base import RolloutEngine, Sampling
from convrec_r1.rollout.hf import BatchSize, HFEngine

_PROBE_PROMPT, _PROBE_TOKENS = 16, 5  # tokens of a prompt and of a completion with which sampling is timed on a CPU
_SHARES = (1 / 64, 1 / 16, 1 / 4, 1.0)  # lengths of the passes of one sequence, as shares of the longest
Result = TypeVar("Result")


def measure(
    policy: Policy, engine: RolloutEngine, plan: Plan, *, bf16: bool = False, optimizer: Optimizer = Optimizer.adamw,
    beside: int = 0, budget: float = 30,
) -> StepCost:  # fmt: skip
    """Time forward, backward, an optimizer update and sampling, and read the peak memory.

    Passes grow from one short sequence to the plan's longest micro-batch, as far as time and memory allow. The rest is
    extrapolated by the number of tokens.

    Args:
        policy: on its device, ready for training.
        engine: samples from `policy`; it is synced first. Every process of a run must call this.
        bf16: compute under autocast, as trainer.precision=bf16-mixed does.
        optimizer: whose updates are measured.
        beside: bytes that training holds beside weights, gradients and this optimizer's moments, such as the reference.
        budget: seconds for passes and for sampling each. The smallest passes are made in any case.
    Raises:
        UserError: the optimizer is not available.
    """
    device, training = policy.device, policy.training
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        try:
            probe = _Probe(policy.train(), plan, optimizer)
            probe.learn(1, _SHARES[0])  # warm-up: libraries and kernels are loaded at their first use
            update, moved = probe.update()
            release()
            held = held_memory(device)
            available = held + free_memory(device)
            passes, more = probe.grow(budget, available - held)
            gradients = sum(p.grad.nbytes for p in policy.parameters() if p.grad is not None)
            policy.zero_grad(set_to_none=True)
            engine.sync(policy)
            prefill, token, token_row, sampling = probe.sampling(engine, budget)
            shares = not isinstance(engine, HFEngine) or engine.shares
        finally:
            policy.zero_grad(set_to_none=True)
            policy.train(training)
    held += beside
    # An update is made when activations are freed, and sampling when gradients are.
    peak = {"training": held + max(more, moved), "sampling": held - gradients + sampling}
    return StepCost(
        passes.rows, passes.tokens, passes.forward / passes.tokens, passes.both / passes.tokens, update, prefill, token,
        token_row, peak, held, available, on_gpu, shares,
    )  # fmt: skip


class _Pass(NamedTuple):
    """Completions, tokens, seconds of a forward pass, of forward and backward, and bytes that the latter takes."""

    rows: int
    tokens: int
    forward: float
    both: float
    bytes: int


class _Sampled(NamedTuple):
    """What was sampled, seconds per token of the completions and of the prompts, and bytes."""

    prompts: int
    n: int
    token: float
    prefill: float
    bytes: int

    @property
    def rows(self) -> int:
        """Completions."""
        return self.prompts * self.n


class _Probe:
    """Passes of random tokens through a policy."""

    def __init__(self, policy: Policy, plan: Plan, optimizer: Optimizer) -> None:
        self.policy, self.plan = policy, plan
        self.random = torch.Generator().manual_seed(0)
        trained = [p for p in policy.parameters() if p.requires_grad]
        options: Any = {"lr": 0.0, "weight_decay": 0.0}
        self.optimizer = optimizer_maker(optimizer, policy.device)(trained, **options)

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

    def update(self) -> tuple[float, int]:
        """Return seconds and bytes of an optimizer update that changes no weight: zero gradients, learning rate 0.

        The bytes are those of its intermediate results, beyond the moments.
        """
        self.optimizer.zero_grad(set_to_none=False)
        self.optimizer.step()  # allocates the moments
        with peak_memory(self.policy.device) as more:
            seconds = wall_time(self.optimizer.step, self.policy.device)
        return seconds, more[0]

    def grow(self, budget: float, free: int) -> tuple[_Pass, int]:
        """Measure growing passes. Return the largest one, and the bytes that the plan's micro-batch would take."""
        memory: list[tuple[int, int]] = []  # (tokens, bytes) of each pass

        def work(rows: int, share: float) -> _Pass:
            tokens = self.plan.tokens(rows, share)
            if len(memory) > 1 and 1.2 * _line(memory, tokens) > free:  # a CPU's process would be killed
                raise torch.OutOfMemoryError
            done = self.learn(rows, share)
            memory.append((done.tokens, done.bytes))
            return done

        sizes = [(1, share) for share in _SHARES] + _sizes(self.plan.micro_batch)[1:]
        largest = _grow(work, sizes, budget, least=2)[-1]  # a line needs two points
        return largest, _line(memory, self.plan.tokens(self.plan.micro_batch))

    def sampling(self, engine: RolloutEngine, budget: float) -> tuple[float, float, float, int]:
        """Return seconds per prompt token, per sampled token, in addition per sequence, and bytes of the plan's batches."""
        on_gpu = self.policy.device.type == "cuda"
        length = self.plan.prompt if on_gpu else min(self.plan.prompt, _PROBE_PROMPT)

        def work(rows: int, _: float) -> _Sampled:
            n = min(rows, self.plan.group)
            prompts = rows // n
            first, _ = self.generate(engine, prompts, n, length, 1)
            with peak_memory(self.policy.device) as more:
                whole, made = self.generate(engine, prompts, n, length, _PROBE_TOKENS)
            token = max(whole - first, 0.0) / max(made - 1, 1)
            return _Sampled(prompts, n, token, max(first - token, 0.0) / (prompts * length), more[0])

        points = _grow(work, _sizes(self.plan.engine_batch), budget, least=1)
        few, many = points[0], points[-1]
        per_row = max(0.0, many.token - few.token) / (many.rows - few.rows) if many.rows > few.rows else 0.0
        if isinstance(engine, HFEngine):
            most = self.largest(engine, many, length, budget / 4)
        else:  # other engines keep a cache of their own
            most = many.bytes * self.plan.engine_batch // many.rows
        return many.prefill, max(many.token - per_row * many.rows, 0.0), per_row, most

    def largest(self, engine: HFEngine, probe: "_Sampled", length: int, budget: float) -> int:
        """Return the bytes of the largest batch of the run: of RL, where G completions share a prompt, or of an evaluation.

        Keys and values are counted. What else the probe took (logits, activations) grows with the completions, and what
        reading prompts takes with their tokens.

        Args:
            probe, length: what was sampled, from prompts of so many tokens.
            budget: seconds for reading longer prompts.
        """

        def cache(prompts: int, n: int, prompt: int, tokens: int) -> tuple[BatchSize, int]:
            batch = engine.largest_batch(prompts, prompt, Sampling(n=n, max_tokens=tokens))
            each = cache_bytes(self.policy) if batch.token_bytes is None else batch.token_bytes
            return batch, each * (batch.prompts * prompt + batch.rows * tokens)

        plan, (small, kept) = self.plan, cache(probe.prompts, probe.n, length, _PROBE_TOKENS)
        besides = max(0, probe.bytes - kept) / small.rows
        points = self.reading(engine, budget) if length < plan.prompt else [(small.prefill, probe.bytes)]
        found = 0
        for rows, n in ((plan.rl_rows, plan.group), (plan.evaluated, 1)):
            if rows:
                batch, own = cache(max(1, min(rows // n, engine.batch_size)), n, plan.prompt, plan.completion)
                found = max(found, own + int(besides * batch.rows), _line(points, batch.prefill))
        return found

    def reading(self, engine: HFEngine, budget: float) -> list[tuple[int, int]]:
        """Return tokens of growing prompts, and the bytes that reading each takes, with its keys and values."""

        def work(_: int, share: float) -> tuple[int, int]:
            tokens, _ = self.plan.lengths(share)
            with peak_memory(self.policy.device) as more:
                self.generate(engine, 1, 1, tokens, 1)
            return tokens, more[0]

        return _grow(work, [(1, share) for share in _SHARES], budget, least=2)

    def generate(self, engine: RolloutEngine, prompts: int, n: int, length: int, tokens: int) -> tuple[float, int]:
        """Return the seconds of sampling at most `tokens` tokens `n` times for each prompt, and the tokens of the longest."""
        asked = self.ids(prompts, length).tolist()  # new ones: an engine may keep the prompts it has seen
        sampling, seeds = Sampling(n=n, max_tokens=tokens), list(range(0, prompts * n, n))
        made: list[Any] = []
        seconds = wall_time(lambda: made.extend(engine.generate(asked, seeds, sampling)), self.policy.device)
        return seconds, max(len(completion.ids) for group in made for completion in group)


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


def long_run_warning(policy: Policy, engine: RolloutEngine, plan: Plan, *, bf16: bool = False) -> str | None:
    """Return a warning if the run would take more than a day (`too_long`), else None.

    Measures only if a count of operations (`at_most`) does not rule that out: for small models this costs nothing.
    """
    on_gpu = policy.device.type == "cuda"
    parameters = sum(p.numel() for p in policy.parameters())
    layers = getattr(policy.causal_lm.config.get_text_config(), "num_hidden_layers", 1)
    if at_most(plan, parameters, layers, on_gpu=on_gpu) < DAY:
        return None
    cost = measure(policy, engine, plan, bf16=bf16)
    return too_long(forecast(cost, plan), replacements(cost, plan), on_gpu=on_gpu)


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
