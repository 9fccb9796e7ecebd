"""Movieland's teacher: knows all films, hears what was said, and answers as a black-box model does, with its faults.

It gets the subjects of questions, not their words, and answers in words, which are read as a real teacher's are. Its rates of
faults are chosen, not measured on any model; they stand here and in data/movieland/teacher.py.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b

import numpy as np

from convrec_r1.data.movieland.films import Film, load_films
from convrec_r1.data.movieland.simulator import Sample
from convrec_r1.data.movieland.taste import Facets, film_table
from convrec_r1.data.movieland.teacher import raw_list
from convrec_r1.distill.questions import Describe, Judge, Recommend
from convrec_r1.distill.teachers.base import Answer, Question
from convrec_r1.lists import Item, fold

# A judgement is what was said of a film's kind, in standard deviations over the catalog, with the judge's noise on it; films
# that are shown first are judged a little better.
_SHARPNESS, _NOISE, _FIRST_SHOWN = 0.9, 0.6, 0.4

# Share of lines of a judgement or description that cannot be read, and of judgements that are prose throughout.
_BROKEN_LINE, _PROSE = 0.02, 0.01


class SimulatedTeacher:
    """Answers about the conversations of `samples`, by their ids. The same question has the same answer, ever."""

    def __init__(self, samples: Mapping[str, Sample], seed: int) -> None:
        self._samples = samples
        self.identity = f"simulated movieland, seed {seed}, version 1"

    async def answer(self, question: Question) -> Answer:
        words = "\x1e".join(f"{message.role}\x1f{message.content}" for message in question.messages)
        digest = blake2b(f"{self.identity}\x1e{words}".encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "big"))
        match question.subject:
            case Recommend(conversation, n):
                sample = self._samples[conversation.id]
                lines = raw_list(sample.spoken, sample.seen, n, rng)
                text = "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))
            case Describe(items):
                text = "\n".join(_description(number, item, rng) for number, item in enumerate(items, start=1))
            case Judge(conversation, candidates):
                text = _judgement(self._samples[conversation.id].spoken, candidates, rng)
            case other:
                raise TypeError(f"the simulated teacher cannot answer {type(other).__name__}")
        return Answer(text, len(words) // 4, len(text) // 4)

    async def close(self) -> None:
        pass


def _judgement(spoken: Facets, candidates: tuple[Item, ...], rng: np.random.Generator) -> str:
    if rng.random() < _PROSE:
        return "These all look interesting, it depends on the mood of the evening!"
    table = film_table()
    affinity = table.affinity(spoken)
    affinity = (affinity - affinity.mean()) / (affinity.std() or 1.0)
    place = np.linspace(1.0, 0.0, len(candidates))  # of being shown: first to last
    felt = _SHARPNESS * affinity[[table.index[item] for item in candidates]]
    felt = felt + _FIRST_SHOWN * place + _NOISE * rng.normal(size=len(candidates))
    scores = np.clip(np.rint(felt), -2, 2).astype(int).tolist()
    broken = rng.random(len(candidates)) < _BROKEN_LINE
    return "\n".join(
        f"{number}: {'maybe' if unclear else score}"
        for number, (score, unclear) in enumerate(zip(scores, broken, strict=True), start=1)
    )


def _description(number: int, item: Item, rng: np.random.Generator) -> str:
    if rng.random() < _BROKEN_LINE:
        return f"{number}. {item}: not sure about this one"
    film = _nearest(item)
    fields: dict[str, object] = {"item": number, "genres": [], "keywords": [], "plot": item.title}
    if film is not None:
        plot = f"A {film.genres[0]} film by {film.director} about {' and '.join(film.themes)}."
        fields |= {"genres": list(film.genres), "keywords": list(film.themes), "plot": plot}
    return json.dumps(fields, ensure_ascii=False)


def _nearest(item: Item) -> Film | None:
    """The film of that title whose year is nearest: the teacher does not notice a wrong year."""
    films = [film for film in load_films() if fold(film.item.title) == fold(item.title)]
    return min(films, key=lambda film: abs((film.item.year or 0) - (item.year or 0)), default=None)
