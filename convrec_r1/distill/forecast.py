"""Estimate what Stage 1 would ask of a teacher, before anything is asked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from convrec_r1.data.schema import Conversation, Dataset
from convrec_r1.distill.metadata import key, known_metadata
from convrec_r1.distill.pipeline import Setup, asked_about
from convrec_r1.distill.questions import describe, judge, recommend
from convrec_r1.distill.teachers.base import Kind, Question
from convrec_r1.distill.teachers.cache import AnswerCache
from convrec_r1.distill.teachers.cost import Estimate, estimate

_SAMPLE = 200
"""Conversations whose questions for ratings are written out; the others are taken to be as long on average."""


@dataclass(frozen=True)
class Forecast:
    """Questions of one kind."""

    kind: Kind
    answered: int | None
    """Questions with a cached answer. None: not known before the lists are."""
    ahead: Estimate
    """Questions still to ask."""
    note: str = ""


def forecast(setup: Setup, data: Dataset, cache: AnswerCache, identity: str) -> list[Forecast]:
    """Estimate lists and descriptions of the catalog's items exactly, ratings at most and without repairs."""
    cfg, conversations = setup.distill, asked_about(setup.distill, data)
    lists = [recommend(c, setup.n, setup.data.instruction) for c in conversations]
    waiting, answered = _open(lists, cache, identity)
    found = [Forecast("recommend", answered, estimate(waiting, cache, identity))]
    if cfg.as_said:
        return found
    if cfg.remap.enabled and cfg.describe:
        in_files = known_metadata(cfg.metadata, setup.adapter, setup.data.name)
        items = [item for item in data.catalog if key(item) not in in_files]
        step = cfg.describe_batch
        groups = [describe(items[at : at + step], setup.data.domain) for at in range(0, len(items), step)]
        waiting, answered = _open(groups, cache, identity)
        note = "and those for titles outside the catalog, which are not known before the lists are"
        found.append(Forecast("describe", answered, estimate(waiting, cache, identity), note))
    if cfg.reflect.enabled:
        found.append(_of_ratings(setup, data, conversations, cache, identity))
    return found


def _of_ratings(
    setup: Setup, data: Dataset, conversations: Sequence[Conversation], cache: AnswerCache, identity: str
) -> Forecast:
    cfg = setup.distill.reflect
    # Without Remap only the teacher's own items are judged.
    size = min(cfg.candidates, len(data.catalog), *([] if setup.distill.remap.enabled else [setup.n]))
    shown = list(data.catalog)[:size]
    sample = conversations[:: max(1, len(conversations) // _SAMPLE)]

    def questions() -> Iterator[Question]:
        for conversation in sample:
            for start in range(0, size, cfg.per_question):
                yield judge(conversation, shown[start : start + cfg.per_question], setup.data.domain)

    times = cfg.shuffles * len(conversations) / max(1, len(sample))
    ahead = Estimate(*(round(value * times) for value in estimate(questions(), cache, identity)))
    return Forecast("judge", None, ahead, "at most; cached answers cost nothing, repairs are extra")


def _open(questions: Sequence[Question], cache: AnswerCache, identity: str) -> tuple[list[Question], int]:
    """Return the questions without an answer, each once, and the number of those with one."""
    unique = list(dict.fromkeys(questions))
    answers = cache.find(identity, unique)
    waiting = [question for question, answer in zip(unique, answers, strict=True) if answer is None]
    return waiting, len(unique) - len(waiting)
