"""Movieland: the built-in dataset of real films, simulated users and a simulated teacher.

It needs no network, takes seconds to generate, and depends on the seed only.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast, get_args

import numpy as np

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.base import Adapter
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.movieland.films import catalog_films
from convrec_r1.data.movieland.simulator import Sample, simulate
from convrec_r1.data.movieland.teacher import Order, demonstrate
from convrec_r1.data.schema import SPLITS, Conversation, Dataset, Split

SIZES: dict[str, int] = {"train": 2500, "validation": 200, "test": 600}
"""Conversations of each split, unless asked for otherwise."""

_TEACHER = 1
"""Part of the teacher's seeds, so that they differ from those of the users."""


class Movieland(Adapter):
    """data=movieland: needs no files."""

    needs_path = False
    simulated_teacher = True

    def __init__(
        self, n: int, seed: int = 0, sizes: Mapping[str, int] | None = None, teacher: str = "famous_first"
    ) -> None:
        """teacher: order of the demonstrations (`data.options.teacher`). Raises UserError for an unknown one."""
        if teacher not in get_args(Order):
            raise UserError(f"data.options.teacher={teacher}: choose {' or '.join(get_args(Order))}.")
        self.n, self.seed, self.sizes = n, seed, sizes
        self.teacher: Order = cast(Order, teacher)

    def load(self) -> Dataset:
        return load(seed=self.seed, n_items=self.n, sizes=self.sizes, teacher=self.teacher)

    def metadata(self) -> Iterable[Mapping[str, Any]]:
        """Return the catalog's films. Other films that the teacher names are described by the teacher."""
        for film in catalog_films():
            yield {
                "title": film.item.title,
                "year": film.item.year,
                "genres": list(film.genres),
                "keywords": list(film.themes),
                "people": [film.director],
            }


def load(
    *, seed: int = 0, n_items: int = 10, sizes: Mapping[str, int] | None = None, teacher: Order = "famous_first"
) -> Dataset:
    """Generate the dataset. Splits share no user, and demonstrations have `n_items` items.

    A smaller split is a prefix of a larger one with the same seed. sizes: split -> conversations, default `SIZES`. The two
    conversations of a user (the same context, other ground truth) have the same cluster.
    """
    films = catalog_films()
    catalog = Catalog((film.item for film in films), metadata={film.item: film.genres for film in films})
    if not 1 <= n_items <= len(catalog) // 2:
        raise UserError(f"n={n_items}: movieland has lists of 1 to {len(catalog) // 2} items.")
    wanted = {**SIZES, **(sizes or {})}
    splits: dict[str, list[Conversation]] = {}
    for split in SPLITS:
        samples = simulate(split, wanted[split], seed=seed)
        splits[split] = [
            _conversation(number, sample, split, catalog, n_items, seed, teacher)
            for number, sample in enumerate(samples)
        ]
    return Dataset(catalog, splits)


def load_samples(*, seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, Sample]:
    """Return conversation id -> the sample that `load` with the same arguments makes it from, for the simulated teacher."""
    wanted = {**SIZES, **(sizes or {})}
    return {
        _id(split, number): sample
        for split in SPLITS
        for number, sample in enumerate(simulate(split, wanted[split], seed=seed))
    }


def _id(split: Split, number: int) -> str:
    return f"movieland-{split}-{number:05d}"


def _conversation(
    number: int, sample: Sample, split: Split, catalog: Catalog, n_items: int, seed: int, teacher: Order
) -> Conversation:
    rng = np.random.default_rng((seed, SPLITS.index(split), number, _TEACHER))
    return Conversation(
        id=_id(split, number),
        cluster=f"movieland-{split}-user-{sample.user:05d}",
        messages=sample.messages,
        ground_truth=sample.truth,
        seen=tuple(item.title for item in sample.seen),
        demonstration=demonstrate(sample.spoken, sample.seen, catalog, n_items, rng, teacher),
        split=split,
    )
