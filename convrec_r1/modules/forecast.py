"""Forecast the time of a run from one measured step, and warn of a run of more than a day."""

import math
from dataclasses import dataclass

DAY = 86_400


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
    group: int = 1
    """Completions of one prompt that are sampled together in RL (G)."""
    rounds: int = 0
    """Rounds in which groups of an RL step are replaced at most (algo.dynamic_sampling)."""

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
    """Bytes between passes: weights, gradients, moments, reference; on a CPU also Python and its libraries."""
    available: int
    """Bytes that the process could have."""
    on_gpu: bool = False
    shares: bool = True
    """Whether the engine reads a prompt once for its completions."""


def forecast(cost: StepCost, plan: Plan) -> dict[str, float]:
    """Return the seconds of a run by phase, for sequences of the plan's mean lengths.

    Groups that are replaced are not part of it: how many is known in the run only. `replacements` says how many at most.
    """
    tokens = plan.mean_prompt + plan.mean_completion

    def sample(rows: int, sharing: int) -> float:
        a_token = math.ceil(rows / plan.engine_batch) * cost.token + rows * cost.token_row
        return rows / sharing * plan.mean_prompt * cost.prefill + plan.mean_completion * a_token

    learn = plan.learned * cost.learn + plan.scored * cost.forward
    packed = plan.rl_rows * (plan.mean_prompt / plan.sharing + plan.mean_completion)
    return {
        "SFT": plan.sft_steps * (plan.sft_rows * tokens * cost.learn + cost.update),
        "sampling": plan.rl_steps * sample(plan.rl_rows, plan.group if cost.shares else 1),
        "training": plan.rl_steps * (packed * learn + plan.updates * cost.update),
        "evaluation": sample(plan.evaluated, 1),
    }


def replacements(cost: StepCost, plan: Plan) -> float:
    """Return the seconds that replacing groups takes at most: all groups, in all rounds of all steps."""
    return plan.rounds * forecast(cost, plan)["sampling"]


def at_most(plan: Plan, parameters: int, layers: int, *, on_gpu: bool) -> float:
    """Return an upper bound of the seconds of a run: its operations at a speed that devices exceed."""
    tokens = plan.prompt + plan.completion
    passes = plan.sft_steps * plan.sft_rows + plan.rl_steps * plan.rl_rows * (plan.learned + plan.scored)
    rounds = plan.rl_steps * (1 + plan.rounds)
    sampled = rounds * plan.rl_rows + plan.evaluated
    batches = rounds * math.ceil(plan.rl_rows / plan.engine_batch) + plan.evaluated / plan.engine_batch
    operations = (8 * passes + 4 * sampled) * tokens * parameters
    calls = batches * plan.completion * layers * 0.003
    return operations / (5e12 if on_gpu else 1e10) + calls


def too_long(seconds: dict[str, float], more: float = 0.0, *, on_gpu: bool) -> str | None:
    """Return a warning for a forecast of more than a day: how long, by phase, and what to change. Else None.

    more: seconds that replacing groups takes at most.
    """
    total = sum(seconds.values())
    if total + more <= DAY:
        return None
    phases = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items() if value)
    change = "more GPUs (trainer.devices), rollout=vllm" if on_gpu else "a GPU (trainer=gpu)"
    return (
        f"This run would take about {duration(total)} on {'this GPU' if on_gpu else 'this CPU'}: {phases}. "
        f"{more_of(more)}To shorten it: "
        f"{change}, a smaller model (model=), fewer steps (recipe=, rl.steps, sft.epochs), or fewer completions per step "
        "(rl.prompts_per_step, algo.group_size)."
    )


def more_of(seconds: float) -> str:
    """Return a sentence about the seconds of `replacements`, with a space after it. Empty if there are none."""
    said = f"Replacing groups that teach nothing (algo.dynamic_sampling) takes up to {duration(seconds)} more. "
    return said if seconds else ""


def duration(seconds: float) -> str:
    """Return seconds in words, with two digits: an estimate has no more."""
    for unit, many in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * many:
            return f"{seconds / many:.2g} {unit}" if seconds < 100 * many else f"{seconds / many:,.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s"
