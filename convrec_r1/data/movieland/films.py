"""The films of movieland, from films.csv in this package."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from convrec_r1.lists import Item


@dataclass(frozen=True, slots=True)
class Film:
    """A film."""

    item: Item
    genres: tuple[str, ...]
    """One to three, the main one first."""
    director: str
    themes: tuple[str, ...]
    """Two to four."""
    popularity: int
    """1 to 100, with a long tail: half of the films are below 10."""


@cache
def load_films() -> tuple[Film, ...]:
    """Return all films, by title without its article."""
    text = files("convrec_r1.data.movieland").joinpath("films.csv").read_text(encoding="utf-8")
    return tuple(
        Film(
            item=Item(row["title"], int(row["year"])),
            genres=tuple(row["genres"].split("|")),
            director=row["director"],
            themes=tuple(row["themes"].split("|")),
            popularity=int(row["popularity"]),
        )
        for row in csv.DictReader(text.splitlines())
    )


@cache
def catalog_films() -> tuple[Film, ...]:
    """Return the films that may be recommended: every second one by popularity, the most popular included.

    The teacher also knows the others.
    """
    films = load_films()
    by_fame = sorted(range(len(films)), key=lambda i: (-films[i].popularity, films[i].item.title))
    return tuple(films[i] for i in sorted(by_fame[::2]))
