"""Simulated users with a latent taste: what they say, what they have seen, and what they like next."""

from dataclasses import dataclass, replace

import numpy as np

from convrec_r1.data.movieland.phrasing import compose
from convrec_r1.data.movieland.taste import Facets, FilmTable, draw_without_replacement, film_table
from convrec_r1.data.movieland.words import GENRES
from convrec_r1.data.schema import SPLITS, Message, Split
from convrec_r1.lists import Item

# Weights in the softmax logits of the films that a user has seen, and of those that they like next.
_SEEN_AFFINITY, _SEEN_FAME = 2.5, 0.8
_TRUTH_AFFINITY, _TRUTH_FAME, _TRUTH_NOISE = 3.0, 0.5, 0.3
_SECOND_CONVERSATION = 0.15
"""Share of users with two conversations: the same context, another draw of the ground truth."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation, with the user's taste and the part of it that they mention."""

    user: int
    messages: tuple[Message, ...]
    seen: tuple[Item, ...]
    taste: Facets
    spoken: Facets
    truth: tuple[Item, ...]


def simulate(split: Split, size: int, *, seed: int = 0) -> list[Sample]:
    """Return the first `size` conversations of a split.

    Each user has their own random generator, seeded by (seed, split, user). So a smaller split is a prefix of a larger one, and
    no split depends on the size of another.
    """
    table = film_table()
    samples: list[Sample] = []
    user = 0
    while len(samples) < size:
        samples.extend(_user(user, table, np.random.default_rng((seed, SPLITS.index(split), user))))
        user += 1
    return samples[:size]


def _user(user: int, table: FilmTable, rng: np.random.Generator) -> list[Sample]:
    taste = _taste(table, rng)
    spoken = _spoken(taste, rng)
    affinity = table.affinity(taste)
    count = 1 + int(rng.choice(3, p=(0.5, 0.35, 0.15)))
    seen = draw_without_replacement(_SEEN_AFFINITY * affinity + _SEEN_FAME * table.fame, count, rng)
    seen_items = tuple(table.films[i].item for i in seen)
    messages = compose(seen_items, spoken, rng)
    logits = _TRUTH_AFFINITY * affinity + _TRUTH_FAME * table.fame + _TRUTH_NOISE * rng.normal(size=len(table))
    logits[table.same_title(seen)] = -np.inf
    samples = []
    for _ in range(2 if rng.random() < _SECOND_CONVERSATION else 1):
        truth = draw_without_replacement(logits, int(rng.integers(3, 7)), rng)
        items = tuple(table.films[i].item for i in truth)
        samples.append(Sample(user, messages, seen_items, taste, spoken, items))
    return samples


def _taste(table: FilmTable, rng: np.random.Generator) -> Facets:
    """Draw a taste. Its facets come from one film, and perhaps a second genre and theme from another."""
    fame = np.exp(0.3 * table.fame)
    first, second = (table.films[i] for i in rng.choice(len(table), size=2, replace=False, p=fame / fame.sum()))
    genres = [first.genres[rng.integers(len(first.genres))]]
    themes = [first.themes[rng.integers(len(first.themes))]]
    draws = rng.random(5)
    if draws[0] < 0.4:
        genres.append(second.genres[0])
    if draws[1] < 0.5:
        themes.append(second.themes[rng.integers(len(second.themes))])
    disliked = GENRES[rng.integers(len(GENRES))]
    assert first.item.year is not None
    return Facets(
        genres=tuple(dict.fromkeys(genres)),
        themes=tuple(dict.fromkeys(themes)),
        director=first.director if draws[2] < 0.35 and first.director in table.directors else None,
        decade=max(first.item.year // 10 * 10, 1930) if draws[3] < 0.65 else None,
        disliked=disliked if draws[4] < 0.25 and disliked not in {*first.genres, *genres} else None,
    )


def _spoken(taste: Facets, rng: np.random.Generator) -> Facets:
    """Draw the part of a taste that the user mentions: one genre or theme at least."""
    said = rng.random(7)
    spoken = Facets(
        genres=tuple(genre for genre, p in zip(taste.genres, said[:2] < (0.85, 0.4), strict=False) if p),
        themes=tuple(theme for theme, p in zip(taste.themes, said[2:4] < (0.9, 0.5), strict=False) if p),
        director=taste.director if said[4] < 0.75 else None,
        decade=taste.decade if said[5] < 0.65 else None,
        disliked=taste.disliked if said[6] < 0.75 else None,
    )
    return spoken if spoken.genres or spoken.themes else replace(spoken, themes=taste.themes[:1])
