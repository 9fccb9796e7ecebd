"""Movieland's simulated teacher: knows all films and what a user said, and answers with the faults of a real model.

It gets the subject of a question, not its words, and answers in text that is read like a real teacher's. Its error rates are
chosen, not measured on a model; they stand here and in data/movieland/teacher.py.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b

import numpy as np

from convrec_r1.data.movieland import load_samples
from convrec_r1.data.movieland.films import Film, load_films
from convrec_r1.data.movieland.taste import Facets, film_table
from convrec_r1.data.movieland.teacher import raw_list
from convrec_r1.distill.config import SimulatedTeacherConfig
from convrec_r1.distill.questions import Describe, Judge, Recommend
from convrec_r1.distill.teachers.base import Answer, Question
from convrec_r1.lists import Item, fold

# A rating is the affinity of the film to what was said, in standard deviations over the catalog, plus noise. Films that are
# shown first are rated a little higher.
_SHARPNESS, _NOISE, _FIRST_SHOWN = 0.9, 0.6, 0.4

# Share of unreadable lines in ratings and descriptions, and of ratings that are prose throughout.
_BROKEN_LINE, _PROSE = 0.02, 0.01


class SimulatedTeacher:
    """Answers about movieland's conversations, by their ids. The same question always has the same answer."""

    def __init__(self, options: SimulatedTeacherConfig, seed: int, sizes: Mapping[str, int | None]) -> None:
        """seed, sizes: of the conversations, as in `data.seed` and `data.train_size`; None: the default size."""
        del options  # its schema; there is nothing to choose
        given = {split: size for split, size in sizes.items() if size is not None}
        self._samples = load_samples(seed=seed, sizes=given)
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
    place = np.linspace(1.0, 0.0, len(candidates))  # from first to last shown
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
