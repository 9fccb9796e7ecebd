"""Options of Stage 1: conf/teacher, conf/embedder, conf/distill."""

from dataclasses import dataclass, field, is_dataclass
from typing import Any

from omegaconf import MISSING

from convrec_r1.base.options import option
from convrec_r1.policy.config import NO_THOUGHTS

_PRICE = "US dollars for a million tokens; null if it is not known."


@dataclass
class TeacherConfig:
    """The model that Stage 1 asks: options that every teacher has. A class of your own implements `teachers.base.Teacher`."""

    _target_: str = MISSING
    name: str = MISSING
    model: str | None = None
    """Its name, in reports and in the names of runs."""
    concurrency: int = option(16, least=1, identity=False)
    """Largest number of questions in flight."""
    requests_per_minute: float | None = option(None, above=0, identity=False)
    tokens_per_minute: float | None = option(None, above=0, identity=False)
    """Tokens of questions and answers together."""
    retries: int = option(6, least=0, identity=False)
    """Retries of a question after 429, 5xx, a timeout, a broken connection or a broken answer."""
    longest_wait: float = option(600.0, least=0, identity=False)
    """Longest wait that a teacher may ask for (Retry-After), in seconds. If it asks for more, the job ends and says so."""
    most_refused: float = option(0.1, least=0, most=1, identity=False)
    """Largest share of questions of a kind that may be refused or have no usable answer before the job ends. 1: all."""
    price_in: float | None = option(None, least=0, hint=_PRICE, identity=False)
    """US dollars for a million tokens of questions. null: costs are not estimated."""
    price_out: float | None = option(None, least=0, hint=_PRICE, identity=False)
    """US dollars for a million tokens of answers."""
    cache: str = option("${outputs}/teacher_cache", identity=False)
    """Folder of the answer cache. An answered question is never asked again."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of a class of your own: its keyword arguments."""


@dataclass
class SimulatedTeacherConfig(TeacherConfig):
    """teacher=simulated: answers about movieland offline."""

    _target_: str = "convrec_r1.distill.teachers.simulated.SimulatedTeacher"
    name: str = "simulated"
    model: str | None = "movieland"
    price_in: float | None = option(0.0, least=0, hint=_PRICE, identity=False)
    price_out: float | None = option(0.0, least=0, hint=_PRICE, identity=False)


@dataclass
class ChatTeacherConfig(TeacherConfig):
    """Options of teachers behind an OpenAI-compatible chat API."""

    temperature: float | None = 0.0
    """null: not sent, for models that refuse it."""
    limit_field: str = "max_tokens"
    """The API's name for the largest number of tokens of an answer. Newer OpenAI models: max_completion_tokens."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields added to every request, such as {reasoning_effort: low}."""
    template: dict[str, Any] = field(default_factory=dict)
    """Arguments of the chat template on the server, such as {enable_thinking: false}: the field chat_template_kwargs of each
    request, which vLLM and SGLang know. Empty: not sent."""
    extra_tokens: int = option(0, least=0)
    """Tokens allowed beyond the length of the answer, for models that think before they answer."""
    timeout: float = option(120.0, above=0, identity=False)
    """Seconds without a reply after which a request is retried."""


@dataclass
class OpenAITeacherConfig(ChatTeacherConfig):
    """teacher=openai: any OpenAI-compatible endpoint."""

    _target_: str = "convrec_r1.distill.teachers.openai.OpenAITeacher"
    name: str = "openai"
    base_url: str | None = None
    """http(s)://HOST/v1. null: OPENAI_BASE_URL, or OpenAI's own."""
    api_key_env: str = option("OPENAI_API_KEY", identity=False)
    """The environment variable that holds the key. The key itself is never in a config, a log or the cache."""


@dataclass
class VLLMTeacherConfig(ChatTeacherConfig):
    """teacher=vllm: a `vllm serve` of `model` (a Hub id or a folder), started on this machine or by Ray on several."""

    _target_: str = "convrec_r1.distill.teachers.vllm.VLLMTeacher"
    name: str = "vllm"
    concurrency: int = option(64, least=1, identity=False)
    price_in: float | None = option(0.0, least=0, hint=_PRICE, identity=False)
    price_out: float | None = option(0.0, least=0, hint=_PRICE, identity=False)
    template: dict[str, Any] = option(factory=lambda: dict(NO_THOUGHTS))
    date: str = "${model.date}"
    """Date that the chat template gets as today's, YYYY-MM-DD."""
    max_model_len: int | None = option(None, least=1)
    dtype: str = "auto"
    memory_fraction: float = option(0.9, above=0, most=1, identity=False)
    tensor_parallel_size: int = option(1, least=1, identity=False)
    workers: int = option(0, least=0, identity=False)
    """Ray actors that serve the model, on any node, with `tensor_parallel_size` GPUs each (cluster=ray). They share the
    questions; `concurrency` is that of all. 0: one server on this machine."""
    start_timeout: float = option(600.0, above=0, identity=False)
    """Seconds until the server must answer."""


@dataclass
class TfidfConfig:
    """embedder=tfidf"""

    _target_: str = "convrec_r1.distill.embedders.tfidf.TfidfEmbedder"
    name: str = "tfidf"
    max_features: int = option(50_000, least=1)
    """Largest size of the vocabulary."""
    ngrams: int = option(2, least=1)
    """Largest number of words in a feature."""


@dataclass
class SentenceTransformersConfig:
    """embedder=sentence-transformers"""

    _target_: str = "convrec_r1.distill.embedders.sentence.SentenceEmbedder"
    name: str = "sentence-transformers"
    model: str | None = "sentence-transformers/all-MiniLM-L6-v2"
    """A Hub id or a folder."""
    revision: str | None = None
    device: str | None = option(None, identity=False)
    """null: a GPU if there is one."""
    batch_size: int = option(64, least=1, identity=False)
    conversation_prompt: str = ""
    """Text before each conversation, for models that distinguish queries and documents."""
    item_prompt: str = ""
    """Text before each item."""


@dataclass
class MatchConfig:
    """Matching of the teacher's titles to the catalog, on top of the rule `match`."""

    fuzzy: float = option(92.0, least=0)
    """Similarity of two titles, 0 to 100, from which they are the same. Above 100: no fuzzy matching."""


@dataclass
class RemapConfig:
    enabled: bool = True
    """false: scores come only from the teacher's own items in the catalog."""
    context_weight: float = 1.0
    """lambda."""


@dataclass
class ReflectConfig:
    enabled: bool = True
    candidates: int = option(100, least=1)
    """N_r: the items with the highest scores, which the teacher judges."""
    gamma: float = 0.5
    shuffles: int = option(1, least=1)
    """Orders in which the candidates are shown. Ratings are averaged over them."""
    per_question: int = option(100, least=1)
    """Candidates in one question. Small models need fewer."""
    repairs: int = option(1, least=0)
    """Times that unreadable ratings are asked for again."""


@dataclass
class AdjustConfig:
    enabled: bool = True
    strength: float | None = option(None, above=0)
    """Weight of the regulariser. null: the best of `strengths` by cross-validation. The paper's is 0.01."""
    strengths: list[float] = option(factory=lambda: [0.01, 0.1, 1.0, 10.0, 100.0], above=0)
    folds: int = option(5, least=2)
    cv_size: int = option(5000, least=2)
    """Largest number of training conversations in the cross-validation."""


@dataclass
class DistillConfig:
    """Stage 1: Remap-Reflect-Adjust. See conf/distill."""

    name: str = MISSING
    as_said: bool = False
    """true: demonstrations are the teacher's lists unchanged, items outside the catalog included."""
    match: MatchConfig = field(default_factory=MatchConfig)
    remap: RemapConfig = field(default_factory=RemapConfig)
    reflect: ReflectConfig = field(default_factory=ReflectConfig)
    adjust: AdjustConfig = field(default_factory=AdjustConfig)
    metadata: str | None = None
    """A file of items' metadata, in any form of a catalog. null: the dataset's own if it has any, else the teacher is asked."""
    describe: bool = True
    """Ask the teacher about items without metadata. false: they have their title and year only."""
    describe_batch: int = option(20, least=1)
    """Items in one such question."""
    held_out: int | None = option(None, least=0)
    """Validation conversations on which the stages are measured. null: all."""
    scores: bool = False
    """Keep the parts of the score of each listed item (scores.jsonl)."""
    dry_run: bool = option(False, identity=False)
    """Estimate questions and cost, and ask nothing."""


def label(node: Any) -> str:
    """Return what reports call a teacher or embedder: its name and model, else its class."""
    values = vars(node) if is_dataclass(node) else dict(node or {})
    name = values.get("name") or str(values.get("_target_", "?")).rsplit(".", 1)[-1]
    return " ".join(filter(None, [name, values.get("model")]))
