"""The taste of a user, and how much they like each film."""

from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from convrec_r1.data.movieland.films import Film, catalog_films
from convrec_r1.data.movieland.words import GENRES, THEMES
from convrec_r1.lists import fold

Scores = NDArray[np.float64]
"""One number per film, in the order of the table."""

# Weights of the facets in the affinity: of the first and the second liked genre or theme, and so on.
_GENRE = (1.0, 0.7)
_THEME = (1.5, 1.1)
_DIRECTOR = 1.5
_DECADE = 1.0
_DECADE_FADE = 5.0
"""Years outside the decade after which its weight has fallen to 1/e."""
_DISLIKED = -1.5
_MIN_FILMS_OF_DIRECTOR = 3
"""Fewest films in the table of a director whom a user can like."""


@dataclass(frozen=True, slots=True)
class Facets:
    """A taste, or the part of it that the user mentions."""

    genres: tuple[str, ...] = ()
    themes: tuple[str, ...] = ()
    director: str | None = None
    decade: int | None = None
    """First year of it, such as 1980."""
    disliked: str | None = None
    """A genre."""


class FilmTable:
    """The films as arrays [F, ...]."""

    def __init__(self, films: tuple[Film, ...]) -> None:
        self.films = films
        self.index = {film.item: number for number, film in enumerate(films)}
        self.genres = np.array([[g in film.genres for g in GENRES] for film in films], dtype=np.float64)  # [F, genres]
        self.themes = np.array([[t in film.themes for t in THEMES] for film in films], dtype=np.float64)  # [F, themes]
        self.years = np.array([film.item.year for film in films], dtype=np.float64)
        fame = np.log([film.popularity for film in films])
        self.fame: Scores = (fame - fame.mean()) / fame.std()
        """Log popularity with mean 0 and standard deviation 1."""
        folded = [fold(film.item.title) for film in films]
        self.titles = np.array([folded.index(title) for title in folded])
        """[F], the same number for films with the same title: without a year, one Dune cannot be told from the other."""

    def __len__(self) -> int:
        return len(self.films)

    @cached_property
    def directors(self) -> dict[str, Scores]:
        """Director with enough films -> 1 for their films, 0 for others, [F]."""
        counts = Counter(film.director for film in self.films)
        return {
            name: np.array([film.director == name for film in self.films], dtype=np.float64)
            for name, count in counts.items()
            if count >= _MIN_FILMS_OF_DIRECTOR
        }

    def affinity(self, facets: Facets) -> Scores:
        """Return how much a user of this taste likes each film: a weighted sum over the facets, [F]."""
        score = np.zeros(len(self))
        for name, weight in zip(facets.genres, _GENRE, strict=False):
            score += weight * self.genres[:, GENRES.index(name)]
        for name, weight in zip(facets.themes, _THEME, strict=False):
            score += weight * self.themes[:, THEMES.index(name)]
        if facets.director is not None:
            score += _DIRECTOR * self.directors[facets.director]
        if facets.decade is not None:
            outside = np.maximum(np.maximum(facets.decade - self.years, self.years - (facets.decade + 9)), 0)
            score += _DECADE * np.exp(-((outside / _DECADE_FADE) ** 2))
        if facets.disliked is not None:
            score += _DISLIKED * self.genres[:, GENRES.index(facets.disliked)]
        return score

    def same_title(self, indices: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return whether each film has the title of one of `indices`, [F]."""
        return (self.titles[:, None] == self.titles[indices]).any(axis=1)


@cache
def film_table() -> FilmTable:
    return FilmTable(catalog_films())


def draw_without_replacement(scores: Scores, n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw `n` films without replacement, with probabilities softmax(scores) (Gumbel top-k). Return their indices."""
    return np.argsort(-(scores + rng.gumbel(size=len(scores))), kind="stable")[:n]
