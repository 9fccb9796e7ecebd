"""Options of Stage 1: conf/teacher, conf/embedder, conf/distill."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class TeacherKind(Enum):
    simulated = "simulated"
    openai = "openai"
    vllm = "vllm"


class EmbedderKind(Enum):
    tfidf = "tfidf"
    sentence_transformers = "sentence_transformers"


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
