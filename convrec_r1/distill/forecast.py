"""Estimate what Stage 1 would ask of a teacher, before anything is asked."""

from collections.abc import Sequence
from dataclasses import dataclass

from convrec_r1.data.schema import Dataset
from convrec_r1.distill.metadata import ask_about, key, known_metadata
from convrec_r1.distill.pipeline import Setup, asked_about, conversations_only
from convrec_r1.distill.questions import judge, recommend
from convrec_r1.distill.scores import blocks
from convrec_r1.distill.teachers.base import Question
from convrec_r1.distill.teachers.cache import AnswerCache
from convrec_r1.distill.teachers.cost import Estimate, estimate

_SAMPLE = 200
"""Conversations whose questions for ratings are written out; the others are taken to be as long on average."""


@dataclass(frozen=True)
class Forecast:
    """Questions of one kind."""

    kind: str
    answered: int | None
    """Questions with a cached answer. None: not known before the lists are."""
    ahead: Estimate
    """Questions still to ask."""
    note: str = ""


def forecast(setup: Setup, data: Dataset, cache: AnswerCache, identity: str) -> list[Forecast]:
    """Estimate lists and descriptions of the catalog's items exactly, ratings at most and without repairs."""
    cfg, domain, conversations = setup.distill, setup.data.domain, asked_about(setup.distill, data)

    def exactly(kind: str, questions: Sequence[Question], note: str = "") -> Forecast:
        unique = list(dict.fromkeys(questions))
        answers = cache.find(identity, unique)
        waiting = [question for question, answer in zip(unique, answers, strict=True) if answer is None]
        return Forecast(kind, len(unique) - len(waiting), estimate(waiting, cache, identity), note)

    found = [exactly("recommend", [recommend(c, setup.n, setup.data.instruction) for c in conversations])]
    if cfg.as_said:
        return found
    if cfg.remap.enabled and cfg.describe:
        in_files = known_metadata(cfg.metadata, setup.adapter, setup.data.name)
        items = [item for item in data.catalog if key(item) not in in_files]
        questions = [question for _, question in ask_about(items, domain, cfg.describe_batch)]
        note = "and those for titles outside the catalog, which are not known before the lists are"
        found.append(exactly("describe", questions, note))
    if cfg.reflect.enabled:
        # Without Remap only the teacher's own items are judged.
        size = min(cfg.reflect.candidates, len(data.catalog), *([] if cfg.remap.enabled else [setup.n]))
        items = list(data.catalog)
        sample = conversations_only(setup.adapter, conversations[:: max(1, len(conversations) // _SAMPLE)])
        parts = blocks(size, cfg.reflect.per_question)
        questions = (judge(c, items[part.start : part.stop], domain) for c in sample for part in parts)
        times = cfg.reflect.shuffles * len(conversations) / max(1, len(sample))
        ahead = Estimate(*(round(value * times) for value in estimate(questions, cache, identity)))
        found.append(Forecast("judge", None, ahead, "at most; cached answers cost nothing, repairs are extra"))
    return found
