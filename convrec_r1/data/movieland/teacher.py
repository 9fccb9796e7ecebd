"""A simulated black-box teacher with the faults of a real one, and demonstrations made from its lists."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Literal

import numpy as np

from convrec_r1.data.catalog import Catalog
from convrec_r1.data.movieland.films import catalog_films, load_films
from convrec_r1.data.movieland.taste import Facets, film_table
from convrec_r1.lists import Item, fold, parse_line

Order = Literal["famous_first", "best_first"]
"""How the teacher lists its choices: by popularity, or by the score it chose them by. Then relevance falls down the list, as it
does in the lists of real models."""

# The teacher chooses by affinity to the mentioned facets, by popularity (more than it should) and by chance.
_AFFINITY, _FAME, _NOISE = 2.0, 1.6, 0.5

# Shares of lines with a fault.
OFF_CATALOG_RATE = 0.06
WRONG_YEAR_RATE = 0.05
MISSING_YEAR_RATE = 0.04
REPEATS_SEEN_RATE = 0.03

_KNOWN_TITLES = {fold(film.item.title) for film in catalog_films()}
OFF_CATALOG: tuple[str, ...] = tuple(
    str(film.item) for film in load_films() if fold(film.item.title) not in _KNOWN_TITLES
)
"""Films that are not in the catalog, as `Title (Year)`."""


def raw_list(spoken: Facets, seen: Sequence[Item], n: int, rng: np.random.Generator) -> list[str]:
    """Return the teacher's answer to a conversation: `n` lines, best first, with faults at the rates above."""
    return _write(_ranking(spoken, seen, n, rng, "famous_first"), seen, n, rng)


def grounded(lines: Iterable[str], catalog: Catalog, n: int, *, next_choices: Iterable[str] = ()) -> tuple[Item, ...]:
    """Return the first `n` different catalog items of the lines, then of the teacher's next choices.

    The simple alternative to Remap-Reflect-Adjust: exact entries are kept, seen titles stay, and so does the teacher's bias.
    """
    kept: dict[tuple[str, int | None], Item] = {}
    for line in chain(lines, next_choices):
        if len(kept) >= n:
            break
        item = parse_line(line)
        if item is not None and item in catalog:
            kept.setdefault((fold(item.title), item.year), item)
    return tuple(kept.values())


def demonstrate(
    spoken: Facets,
    seen: Sequence[Item],
    catalog: Catalog,
    n: int,
    rng: np.random.Generator,
    order: Order = "famous_first",
) -> tuple[Item, ...]:
    """Return a demonstration: the teacher's list, grounded, and filled up to `n` from the rest of its ranking."""
    ranking = _ranking(spoken, seen, n, rng, order)
    lines = _write(ranking, seen, n, rng)
    return grounded(lines, catalog, n, next_choices=(str(item) for item in ranking[n:]))


def _ranking(spoken: Facets, seen: Sequence[Item], n: int, rng: np.random.Generator, listed: Order) -> list[Item]:
    """Return all films without a seen title: the teacher's `n` choices in the order `listed`, then the others by score."""
    table = film_table()
    score = _AFFINITY * table.affinity(spoken) + _FAME * table.fame + _NOISE * rng.normal(size=len(table))
    order = np.argsort(-score, kind="stable")
    order = order[~table.same_title(np.array([table.index[item] for item in seen], dtype=np.intp))[order]]
    if listed == "famous_first":
        chosen = order[:n]
        first = np.argsort(-table.fame[chosen], kind="stable")
        order = np.concatenate([chosen[first], order[n:]])
    return [table.films[index].item for index in order.tolist()]


def _write(ranking: Sequence[Item], seen: Sequence[Item], n: int, rng: np.random.Generator) -> list[str]:
    """Return the first `n` items as lines, each with at most one fault."""
    edges = np.cumsum((OFF_CATALOG_RATE, WRONG_YEAR_RATE, MISSING_YEAR_RATE, REPEATS_SEEN_RATE if seen else 0.0))
    lines = []
    for item, draw in zip(ranking[:n], rng.random(n), strict=False):
        if draw < edges[0]:
            lines.append(OFF_CATALOG[int(rng.integers(len(OFF_CATALOG)))])
        elif draw < edges[1] and item.year is not None:
            shift = int(rng.integers(1, 4)) * (1 if rng.random() < 0.5 else -1)
            lines.append(str(item._replace(year=item.year + shift)))
        elif draw < edges[2]:
            lines.append(item.title)
        elif draw < edges[3]:
            lines.append(str(seen[int(rng.integers(len(seen)))]))
        else:
            lines.append(str(item))
    return lines
