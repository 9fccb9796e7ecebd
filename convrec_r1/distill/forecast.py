"""What Stage 1 would ask of a teacher, and what that would take, before anything is asked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from convrec_r1.config.schema import Config
from convrec_r1.data.schema import Conversation, Dataset
from convrec_r1.distill import known
from convrec_r1.distill.metadata import key
from convrec_r1.distill.pipeline import asked_about
from convrec_r1.distill.questions import describe, judge, recommend
from convrec_r1.distill.teachers.base import Kind, Question
from convrec_r1.distill.teachers.cache import AnswerCache
from convrec_r1.distill.teachers.cost import Estimate, estimate

_SAMPLE = 200
"""Conversations whose questions for judgements are written out; the others are taken to be as long on average."""


@dataclass(frozen=True)
class Forecast:
    """Of one kind of question."""

    kind: Kind
    answered: int | None
    """Questions that the cache has answers to; None: that is not known before the lists are."""
    ahead: Estimate
    """The questions that would be asked."""
    note: str = ""


def forecast(cfg: Config, data: Dataset, cache: AnswerCache, identity: str) -> list[Forecast]:
    """Lists exactly; descriptions of the catalog's items exactly; judgements at most, without repairs."""
    conversations = asked_about(cfg, data)
    found = [_of_lists(cfg, conversations, cache, identity)]
    if cfg.distill.as_said:
        return found
    if cfg.distill.remap.enabled and cfg.distill.describe:
        found.append(_of_descriptions(cfg, data, cache, identity))
    if cfg.distill.reflect.enabled:
        found.append(_of_judgements(cfg, data, conversations, cache, identity))
    return found


def _of_lists(cfg: Config, conversations, cache: AnswerCache, identity: str) -> Forecast:
    questions = [recommend(c, cfg.n, cfg.data.instruction) for c in conversations]
    open_questions, answered = _open(questions, cache, identity)
    return Forecast("recommend", answered, estimate(open_questions, cache, identity))


def _of_descriptions(cfg: Config, data: Dataset, cache: AnswerCache, identity: str) -> Forecast:
    in_files = known.metadata(cfg)
    items = [item for item in data.catalog if key(item) not in in_files]
    batch = cfg.distill.describe_batch
    questions = [describe(items[start : start + batch], cfg.data.domain) for start in range(0, len(items), batch)]
    open_questions, answered = _open(questions, cache, identity)
    note = "and those for titles outside the catalog, which are known when the lists are"
    return Forecast("describe", answered, estimate(open_questions, cache, identity), note)


def _of_judgements(cfg: Config, data: Dataset, conversations, cache: AnswerCache, identity: str) -> Forecast:
    settings = cfg.distill.reflect
    # Without Remap only what the teacher named can be judged.
    size = min(settings.candidates, len(data.catalog), *([] if cfg.distill.remap.enabled else [cfg.n]))
    shown = list(data.catalog)[:size]

    def questions(of: Sequence[Conversation]) -> Iterator[Question]:
        for conversation in of:
            for start in range(0, size, settings.per_question):
                yield judge(conversation, shown[start : start + settings.per_question], cfg.data.domain)

    step = max(1, len(conversations) // _SAMPLE)
    sample = conversations[::step]
    one = estimate(questions(sample), cache, identity)
    times = settings.shuffles * len(conversations) / max(1, len(sample))
    ahead = Estimate(*(round(value * times) for value in (one.questions, one.prompt_tokens, one.completion_tokens)))
    return Forecast("judge", None, ahead, "at most; those answered before cost nothing, repairs come on top")


def _open(questions: Sequence[Question], cache: AnswerCache, identity: str) -> tuple[list[Question], int]:
    """The questions without an answer, each once, and the number of those with one."""
    unique = list(dict.fromkeys(questions))
    answers = cache.find(identity, unique)
    waiting = [question for question, answer in zip(unique, answers, strict=True) if answer is None]
    return waiting, len(unique) - len(waiting)
