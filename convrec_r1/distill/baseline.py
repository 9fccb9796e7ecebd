"""The teacher as a baseline: its own lists for the evaluation split, as the paper's row of GPT-4o."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convrec_r1.data.config import DataConfig
from convrec_r1.data.schema import Conversation
from convrec_r1.distill.config import TeacherConfig, label
from convrec_r1.distill.forecast import Forecast
from convrec_r1.distill.questions import recommend
from convrec_r1.distill.teachers.base import Question, Teacher, make_teacher
from convrec_r1.distill.teachers.cache import AnswerCache
from convrec_r1.distill.teachers.cost import estimate, in_words
from convrec_r1.distill.teachers.interview import Counts, Interview
from convrec_r1.evaluate.baselines import Baseline, Context


class TeacherLists(Baseline):
    """The teacher's answers, unchanged, to the question that Stage 1 asks: `data.instruction` and the conversation.

    Answers are in the cache of Stage 1: what was answered before costs nothing.
    """

    def __init__(self, teacher: TeacherConfig, data: DataConfig) -> None:
        """teacher: whom to ask.  data: instruction, and the seed and sizes that a simulated teacher needs."""
        self.teacher, self.data = teacher, data
        self.asked: dict[str, Any] | None = None

    def lists(self, context: Context) -> list[str]:
        """Return the answers [B]. Raises UserError as `Interview.ask`; the same command then asks only the rest."""
        questions = self._questions(context.conversations, context.n)
        with AnswerCache(Path(self.teacher.cache)) as cache, Interview(self._made(), cache, self.teacher) as interview:
            answers = interview.ask(questions, f"Lists of {label(self.teacher)}")
        self.asked = self._account(interview.counts)
        return [answer.text for answer in answers]

    def forecast(self, conversations: Sequence[Conversation], n: int) -> Forecast:
        """Estimate what `lists` would ask. Nothing is asked or started."""
        identity, questions = self._made().identity, list(dict.fromkeys(self._questions(conversations, n)))
        with AnswerCache(Path(self.teacher.cache)) as cache:
            answers = cache.find(identity, questions)
            waiting = [question for question, answer in zip(questions, answers, strict=True) if answer is None]
            ahead = estimate(waiting, cache, identity)
        return Forecast("recommend", len(questions) - len(waiting), ahead)

    def _account(self, counts: Counts) -> dict[str, Any]:
        """Return what was asked, for summary.json, with a sentence for reports (note)."""
        asked = counts.as_dict()
        kind = asked["kinds"]["recommend"]
        words = in_words(kind["prompt_tokens"], kind["completion_tokens"], self.teacher)
        now = "" if kind["cost_now"] is None else f" (${kind['cost_now']:.2f} of it now)"
        refused = f", {kind['refused']} refused, which count as empty lists" if kind["refused"] else ""
        note = (
            f"Teacher: {label(self.teacher)}. {kind['asked']:,} questions asked, {kind['from_cache']:,} answered before"
            f"{refused}; {words}{now}."
        )
        return {"teacher": label(self.teacher), "note": note, **asked}

    def _questions(self, conversations: Sequence[Conversation], n: int) -> list[Question]:
        return [recommend(conversation, n, self.data.instruction) for conversation in conversations]

    def _made(self) -> Teacher:
        return make_teacher(self.teacher, seed=self.data.seed, sizes=self.data.sizes)
