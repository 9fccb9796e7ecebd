"""What a run needs: bytes of memory and disk, seconds a step. Formulas of the config and of the model's sizes alone.

Bytes are of one process; N below is the model's parameters. Constants that were counted in the code are explained where
they stand; tests/test_doctor.py holds what it can against real models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from convrec_r1.config.schema import Config
from convrec_r1.modules.config import GuardAction
from convrec_r1.policy.logprobs import CHUNK
from convrec_r1.rl.config import Stage
from convrec_r1.rollout.config import HFConfig, VLLMOptions

GIB = 1 << 30


@dataclass(frozen=True)
class Size:
    """A causal language model in numbers."""

    parameters: int
    """Adapters included."""
    trainable: int
    matrices: int
    """Weights that every token is multiplied by: the linear layers without the head."""
    layers: int
    hidden: int
    intermediate: int
    q: int
    """Attention heads times their dimensions."""
    kv: int
    """The same of keys (and of values)."""
    vocab: int
    unit: int
    """Parameters of the largest part that FSDP gathers at a time."""

    @property
    def head(self) -> int:
        return self.vocab * self.hidden


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt and of a completion."""

    prompt: int
    completion: int

    @property
    def both(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for. `held` all the time, each of `phases` in turn, the engine's beside them."""

    held: Mapping[str, int]
    phases: Mapping[str, Mapping[str, int]]
    engine: int = 0
    engine_sleeps: bool = False
    """The engine gives its memory back while the trainer trains."""

    @property
    def peak(self) -> int:
        return max(self.at(phase) for phase in self.phases)

    @property
    def worst(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=self.at)

    def at(self, phase: str) -> int:
        away = self.engine_sleeps and phase in ("training", "update")
        return sum(self.held.values()) + sum(self.phases[phase].values()) + (0 if away else self.engine)


@dataclass(frozen=True)
class Speed:
    """Of one device, measured (`speed.py`)."""

    flops: float
    """Of matrix products as the training makes them, a second."""
    bandwidth: float
    """Bytes read or written, a second."""
    token: float
    """Seconds to generate a token (of any number of sequences) with a layer that has next to nothing to compute."""
    layer: float
    """Seconds for such a layer's forward and backward pass."""


@dataclass(frozen=True)
class Seconds:
    """Of one step, by what it does; of evaluations, each; `total` of the run."""

    rollout: float
    train: float
    sft: float
    evaluation: float
    total: float

    @property
    def step(self) -> float:
        return self.rollout + self.train


def world(cfg: Config) -> int:
    return max(1, cfg.trainer.world)


def number_bytes(cfg: Config) -> tuple[int, int]:
    """Bytes of a weight, and of a number that is computed with it."""
    pure = cfg.model.dtype == "bfloat16" or cfg.trainer.precision == "bf16-true"
    return (2 if pure else 4), (2 if pure or "bf16" in cfg.trainer.precision else 4)


def rows_of_a_process(cfg: Config) -> int:
    """Completions that a process trains on in a step."""
    return max(1, cfg.rl.prompts_per_step * cfg.algo.group_size // world(cfg))


def micro_batch(cfg: Config) -> int:
    """Sequences in one forward and backward."""
    if cfg.algo.stage is Stage.sft:
        return min(cfg.trainer.pass_size, max(1, cfg.sft.batch_size // world(cfg)))
    return min(cfg.trainer.pass_size, ceil(rows_of_a_process(cfg) / max(1, cfg.algo.minibatches)))


def memory(size: Size, cfg: Config, lengths: Lengths, *, on_gpu: bool, engine: int = 0) -> Memory:
    """Of one process of the training that `cfg` ends with (RL, or SFT where that is all)."""
    _, compute = number_bytes(cfg)
    rows = micro_batch(cfg)
    phases = {
        "training": {
            "activations": activations(size, cfg, rows * lengths.both),
            "attention mask": rows * lengths.both**2 * (1 + compute),
            "logits": logits(size, cfg, rows * lengths.completion),
            "cast weights": cast_weights(size, cfg),
        },
        # Adam's arithmetic goes over all weights at once on a GPU, one after another on a CPU.
        "update": {"optimizer at work": size.trainable // shards(cfg) * number_bytes(cfg)[0] if on_gpu else 0},
    }
    if cfg.algo.stage is Stage.rl:
        if isinstance(cfg.rollout, HFConfig):
            rows = min(cfg.rollout.batch_size, rows_of_a_process(cfg))
            phases["sampling"] = sampling(size, cfg, rows, lengths, compute)
        if cfg.eval.every and isinstance(cfg.rollout, HFConfig):  # outside of autocast: at the weights' own precision
            rows = min(cfg.rollout.batch_size, ceil(cfg.eval.validation_size / world(cfg)))
            phases["evaluation"] = sampling(size, cfg, rows, lengths, number_bytes(cfg)[0])
    return Memory(held(size, cfg), phases, engine, getattr(cfg.rollout, "sleep", False))


def shards(cfg: Config) -> int:
    return world(cfg) if cfg.trainer.strategy == "fsdp" else 1


def held(size: Size, cfg: Config) -> dict[str, int]:
    """What stays from the first step to the last. Gradients do too: they are cleared when the next ones come."""
    weight, _ = number_bytes(cfg)
    parts = {
        "weights": size.parameters * weight // shards(cfg),
        "gradients": size.trainable * weight // shards(cfg),
        "AdamW": 2 * size.trainable * weight // shards(cfg),
    }
    if cfg.algo.stage is Stage.rl and cfg.algo.beta and not cfg.model.lora.enabled:
        # A frozen copy made before the strategy wraps the policy: whole on every device, in the dtype it was loaded in.
        parts["reference policy"] = size.parameters * (2 if cfg.model.dtype == "bfloat16" else 4)
    if world(cfg) > 1 and cfg.trainer.strategy in ("auto", "ddp"):
        parts["DDP buckets"] = size.trainable * weight
    if shards(cfg) > 1:
        parts["gathered layers"] = 2 * size.unit * number_bytes(cfg)[1]  # one in use, the next on its way
    return parts


def activations(size: Size, cfg: Config, tokens: int) -> int:
    """What the layers keep for the backward pass, of so many tokens.

    A layer keeps for each token, of width H: its two norms' input and normed input (in fp32 even under autocast), and what
    both give to the matrices; of width q: queries, keys and values (repeated to as many heads), the attention's result and
    its copy; of width I: gate, its activation, up, and their product. Checkpointed: its input, and one layer's all.
    """
    weight, compute = number_bytes(cfg)
    norms = 4 * size.hidden * weight
    layer = norms + (2 * size.hidden + 5 * size.q + 4 * size.intermediate) * compute
    last = 2 * size.hidden * weight  # the final norm
    if cfg.model.gradient_checkpointing:
        return tokens * (size.layers * size.hidden * weight + layer + last)
    return tokens * (size.layers * layer + last)


def logits(size: Size, cfg: Config, tokens: int) -> int:
    """The head's backward pass: a few matrices of [tokens, a chunk of the vocabulary], and the gradient of its weights."""
    weight, compute = number_bytes(cfg)
    chunk = min(size.vocab, CHUNK)
    return tokens * chunk * (2 * 4 + compute) + (0 if cfg.model.lora.enabled else size.head * weight)


def cast_weights(size: Size, cfg: Config) -> int:
    """Autocast keeps the weights in bf16 from the forward to the backward pass; FSDP casts what it gathers."""
    mixed = cfg.trainer.precision == "bf16-mixed" and cfg.model.dtype == "float32"
    return 2 * (size.matrices + size.head) if mixed and shards(cfg) == 1 else 0


def kv_cache(size: Size, rows: int, tokens: int, number: int) -> int:
    """Keys and values of `rows` sequences."""
    return 2 * size.layers * size.kv * rows * tokens * number


def sampling(size: Size, cfg: Config, rows: int, lengths: Lengths, number: int) -> dict[str, int]:
    """Hugging Face generate on `rows` sequences at a time. number: bytes of a computed one."""
    # The prompts go through the layers at once: the residual, a norm's result, gate, up and their product.
    prefill = rows * lengths.prompt * (2 * size.hidden + 3 * size.intermediate) * number
    mask = rows * lengths.both**2
    # The scores and their copy in fp32, log-probs, and two fp64 copies for the CDF: 28 bytes an entry.
    scores = rows * size.vocab * 28
    parts = {"KV cache": kv_cache(size, rows, lengths.both, number), "a pass of generate": max(prefill + mask, scores)}
    if shards(cfg) > 1:
        parts["whole weights"] = size.parameters * number_bytes(cfg)[0]
    return parts


def engine_memory(size: Size, cfg: Config, *, on_gpu: bool, device_total: int = 0) -> int:
    """Of one vLLM engine: the share of a GPU that it takes whatever the model, or weights and cache on a CPU."""
    rollout = cfg.rollout
    if not isinstance(rollout, VLLMOptions) or getattr(rollout, "servers", None):
        return 0
    if on_gpu and not rollout.kv_cache_gib:
        return int(rollout.memory_fraction * device_total)
    number = {"float32": 4, None: 2 if on_gpu else 4}.get(rollout.dtype, 2)
    weights = size.parameters * number // rollout.tensor_parallel_size
    if rollout.kv_cache_gib:
        return weights + int(rollout.kv_cache_gib * GIB)
    blocks = ceil(cfg.model.max_length / 128) * 128  # as rollout/vllm/options.py has it
    cache = kv_cache(size, rollout.max_num_seqs, blocks, number)
    return weights + min(max(cache, GIB // 16), 4 * GIB)


def checkpoint(size: Size, cfg: Config) -> int:
    """Bytes on disk of one checkpoint: the trainer's state (weights, AdamW's two moments), and the policy beside it."""
    weight, _ = number_bytes(cfg)
    return (2 * size.parameters + 2 * size.trainable) * weight


def disk(size: Size, cfg: Config) -> int:
    """Most that the run's checkpoints take at a time: those it keeps, the one being written, policies that are kept
    beside them (the best, the first that collapsed), and the warm start's."""
    policy = size.parameters * number_bytes(cfg)[0]
    beside = 0
    if cfg.algo.stage is Stage.rl:
        beside = bool(cfg.eval.every) + (cfg.guard.action is not GuardAction.none) + (cfg.warm_start == "sft")
    return (cfg.trainer.keep_checkpoints + 1) * checkpoint(size, cfg) + beside * policy


def seconds(size: Size, cfg: Config, speed: Speed, lengths: Lengths, *, sft_steps: int, test: int) -> Seconds:
    """test: conversations of the final evaluation. Lists are as long as `lengths` says."""
    rl = cfg.algo.stage is Stage.rl
    rollout = rollout_seconds(size, cfg, speed, lengths, rows_of_a_process(cfg)) if rl else 0.0
    train = training_seconds(size, cfg, speed, lengths) if rl else 0.0
    sft = sft_seconds(size, cfg, speed, lengths)
    steps = cfg.rl.steps if rl else 0
    warm = sft_steps if cfg.warm_start == "sft" or not rl else 0
    held_out = ceil(cfg.eval.validation_size / world(cfg))
    evaluation = rollout_seconds(size, cfg, speed, lengths, held_out, group=1)
    policies = 1 + ("zero_shot" in cfg.eval.baselines) + ("sft" in cfg.eval.baselines and rl and bool(cfg.warm_start))
    final = rollout_seconds(size, cfg, speed, lengths, ceil(test / world(cfg)), group=1)
    evaluations = 1 + ceil(steps / cfg.eval.every) if rl and cfg.eval.every else 0
    step = max(rollout, train) if cfg.rollout.overlap else rollout + train
    total = warm * sft + steps * step + evaluations * evaluation + policies * final
    return Seconds(rollout, train, sft, evaluation, total)


def rollout_seconds(
    size: Size, cfg: Config, speed: Speed, lengths: Lengths, rows: int, group: int | None = None
) -> float:
    """To sample `rows` completions, `group` a prompt. 2 FLOP a weight and token, or the time to read the weights."""
    rollout = cfg.rollout
    hf = not isinstance(rollout, VLLMOptions)
    weight, compute = number_bytes(cfg)
    width = rollout.max_num_seqs if isinstance(rollout, VLLMOptions) else getattr(rollout, "batch_size", 128)
    tokens = ceil(rows / width) * lengths.completion  # passes of generate, each a token of every sequence
    prompts = rows if hf else ceil(rows / (group or cfg.algo.group_size))  # vLLM reads a group's prompt once
    attention = 4 * size.layers * size.q
    prefill = prompts * lengths.prompt * (2 * size.matrices + attention * lengths.prompt / 2)
    decode = rows * lengths.completion * 2 * (size.matrices + size.head)
    # Without gradients autocast keeps no casts: a pass reads fp32, writes bf16, and reads that.
    weights = (size.matrices + size.head) * (8 if hf and compute < weight else compute)
    cache = kv_cache(size, rows, lengths.prompt + lengths.completion // 2, compute) * lengths.completion
    scores = rows * lengths.completion * size.vocab * 60  # the sampler's passes over fp32 and fp64 scores
    return (
        prefill / speed.flops
        + max(decode / speed.flops, tokens * weights / speed.bandwidth)
        + (cache + scores) / speed.bandwidth
        + tokens * size.layers * speed.token
    )


def training_seconds(size: Size, cfg: Config, speed: Speed, lengths: Lengths) -> float:
    """The forward and backward passes and the updates of one RL step."""
    algo, rows = cfg.algo, rows_of_a_process(cfg)
    passes = algo.mu * ceil(rows / micro_batch(cfg))
    forwards = (algo.mu if algo.beta else 0) + (algo.mu * algo.minibatches > 1)  # the reference, the old log-probs
    learned = algo.mu * _learn(size, cfg, speed, rows, lengths)
    looked = forwards * _look(size, rows, lengths) / speed.flops
    overhead = size.layers * (passes * speed.layer + forwards * ceil(rows / micro_batch(cfg)) * speed.layer / 3)
    return learned + looked + overhead + algo.mu * algo.minibatches * _update(size, cfg, speed)


def sft_seconds(size: Size, cfg: Config, speed: Speed, lengths: Lengths) -> float:
    rows = max(1, cfg.sft.batch_size // world(cfg))
    passes = ceil(rows / cfg.trainer.pass_size)
    return _learn(size, cfg, speed, rows, lengths) + passes * size.layers * speed.layer + _update(size, cfg, speed)


def _look(size: Size, rows: int, lengths: Lengths) -> float:
    """FLOP of a forward pass: 2 a weight and token, the head on completions only, and attention's two products."""
    tokens = rows * lengths.both
    attention = 4 * size.layers * size.q * lengths.both
    return tokens * (2 * size.matrices + attention) + rows * lengths.completion * 2 * size.head


def _learn(size: Size, cfg: Config, speed: Speed, rows: int, lengths: Lengths) -> float:
    """Seconds of forward and backward: 6 FLOP a weight and token, 4 where the weights are frozen (LoRA); a forward more
    where activations are checkpointed, and for the head, whose logits are computed again."""
    frozen, again = cfg.model.lora.enabled, cfg.model.gradient_checkpointing
    tokens = rows * lengths.both
    attention = (12 + 4 * again) * size.layers * size.q * lengths.both
    flops = tokens * (((4 if frozen else 6) + 2 * again) * size.matrices + attention)
    flops += rows * lengths.completion * (6 if frozen else 8) * size.head
    moved = 3 * activations(size, cfg, tokens)  # written, read, and gradients as large
    return flops / speed.flops + moved / speed.bandwidth


def _update(size: Size, cfg: Config, speed: Speed) -> float:
    """Clipping reads the gradients twice and writes them; AdamW reads four numbers a weight and writes three."""
    return 10 * size.trainable // shards(cfg) * number_bytes(cfg)[0] / speed.bandwidth
