"""The films of movieland: a table of facts that ships inside the package."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from convrec_r1.lists import Item

GENRES: tuple[str, ...] = (
    "action",
    "adventure",
    "animation",
    "comedy",
    "crime",
    "drama",
    "family",
    "fantasy",
    "horror",
    "musical",
    "mystery",
    "romance",
    "science fiction",
    "thriller",
    "war",
    "western",
)

THEMES: tuple[str, ...] = (
    "aliens",
    "animals",
    "big city",
    "class divide",
    "coming of age",
    "con artists",
    "conspiracy",
    "courtroom",
    "detectives",
    "dystopia",
    "family ties",
    "friendship",
    "gangsters",
    "ghosts",
    "grief",
    "heist",
    "hitmen",
    "journalism",
    "loneliness",
    "magic",
    "marriage",
    "memory",
    "monsters",
    "music",
    "obsession",
    "politics",
    "prison",
    "revenge",
    "road trip",
    "robots",
    "school",
    "serial killer",
    "show business",
    "small town",
    "space",
    "spies",
    "sports",
    "superheroes",
    "survival",
    "the sea",
    "time travel",
    "treasure hunt",
    "true story",
    "twist ending",
    "underdogs",
    "undercover",
    "vampires",
)


@dataclass(frozen=True, slots=True)
class Film:
    """One film. `popularity` runs from 1 to 100 and has a long tail: half of the films are below 10."""

    item: Item
    genres: tuple[str, ...]
    """One to three of GENRES, the foremost first."""
    director: str
    themes: tuple[str, ...]
    """Two to four of THEMES."""
    popularity: int


@cache
def load_films() -> tuple[Film, ...]:
    """Every film, in the order of the table (by title, articles left aside)."""
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
    """The films that may be recommended: every second one down the order of fame, the most famous first.

    The others are what a teacher knows and this catalog does not have.
    """
    films = load_films()
    by_fame = sorted(range(len(films)), key=lambda i: (-films[i].popularity, films[i].item.title))
    return tuple(films[i] for i in sorted(by_fame[::2]))
