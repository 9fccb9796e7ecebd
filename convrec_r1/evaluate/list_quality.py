"""What a list is like, apart from its hits: is it in the catalog, well formed, free of repeats, and of which items?"""

from collections.abc import Collection, Iterable, Sequence

from convrec_r1.data.catalog import Catalog
from convrec_r1.evaluate.popularity import SEGMENTS, Popularity
from convrec_r1.lists import Item, fold, lines, parse_line


def parsed_lines(text: str, catalog: Catalog) -> list[Item | None]:
    """Each non-blank line as an item, None where it is not one. As `reward.relevance` reads them: a line without a
    year is an item only if the catalog has items without."""
    year_required = not catalog.has_yearless
    return [parse_line(line, year_required=year_required) for line in lines(text)]


def list_quality(items: Sequence[Item | None], seen: Collection[str], catalog: Catalog, n: int) -> dict[str, float]:
    """Quality of one list of parsed lines (None: a line that is no item), of which `n` were asked for.

    catalog/valid    share of the lines that are items of the catalog; a line that does not parse is not
    format/valid     share of the lines that parse
    format/complete  1 if the list has exactly `n` lines, whatever they say, otherwise 0
    list/length      number of lines
    list/duplicates  number of items (folded title, year) that an earlier line has named already: A A A B counts 2
    list/seen        number of items whose title (folded) the user has seen; each repeat counts again

    All lines count, those past the n-th too: a list that never ends is a fault to be seen. Blank lines are no lines.
    An empty list has shares of 0.
    """
    parsed = [item for item in items if item is not None]
    seen_titles = {fold(title) for title in seen}
    in_catalog = sum(item in catalog for item in parsed)
    distinct = {(fold(item.title), item.year) for item in parsed}
    return {
        "catalog/valid": in_catalog / len(items) if items else 0.0,
        "format/valid": len(parsed) / len(items) if items else 0.0,
        "format/complete": float(len(items) == n),
        "list/length": float(len(items)),
        "list/duplicates": float(len(parsed) - len(distinct)),
        "list/seen": float(sum(fold(item.title) in seen_titles for item in parsed)),
    }


def catalog_indices(recommended: Iterable[Item | None], catalog: Catalog, popularity: Popularity) -> list[int]:
    """Places in the catalog of the distinct items of a list that are in it, in the list's order."""
    found = (popularity.index(item) for item in recommended if item is not None and item in catalog)
    return list(dict.fromkeys(at for at in found if at is not None))


def catalog_coverage(indices: Iterable[Iterable[int]], catalog_size: int) -> float:
    """Share of the catalog that appears in at least one list: |union of the lists' items| / |catalog|; 0 if empty.

    Aggregate diversity as in Ge, Delgado-Battenfeld and Jannach, RecSys 2010. It grows with the number of lists, so
    only runs over the same conversations compare.
    """
    distinct = {at for per_list in indices for at in per_list}
    return len(distinct) / catalog_size if catalog_size else 0.0


def mean_popularity_rank(indices: Sequence[int], popularity: Popularity) -> float | None:
    """Mean rank of a list's distinct catalog items by popularity (1: most popular; low means a bias to the popular).

    None, not 0, if the list has no catalog item or no interactions are known.
    """
    if not indices or not popularity.total:
        return None
    return float(popularity.ranks[list(indices)].mean())


def segment_recall(
    recommended: Sequence[Item | None],
    hits: Sequence[int],
    ground_truth: Sequence[Item],
    k: int,
    popularity: Popularity,
) -> dict[str, float]:
    """`recall_head@k`, `recall_mid@k`, `recall_tail@k`: recall among the ground truths of each popularity segment.

    A segment without a ground truth in this conversation has no entry (its recall is 0/0): the mean over
    conversations is then over those that have one. Ground truths outside the catalog belong to no segment.
    """
    segments = [popularity.segment(item) for item in ground_truth]
    hit = _truths_hit(recommended[:k], hits[:k], ground_truth)
    recalls = {}
    for segment in SEGMENTS:
        members = {at for at, of in enumerate(segments) if of == segment}
        if members:
            recalls[f"recall_{segment}@{k}"] = len(members & hit) / len(members)
    return recalls


def _truths_hit(recommended: Sequence[Item | None], hits: Sequence[int], ground_truth: Sequence[Item]) -> set[int]:
    """Which ground truths the hits belong to: down the list, each hit uses up the unused one of its title that is
    nearest in year, the first of equals. `reward.relevance` matches the same way, but tells only where it matched."""
    used: set[int] = set()
    for item, hit in zip(recommended, hits, strict=False):
        if not hit or item is None:
            continue
        title, year = fold(item.title), item.year
        candidates = [at for at, truth in enumerate(ground_truth) if at not in used and fold(truth.title) == title]
        if candidates:
            used.add(min(candidates, key=lambda at: _years_apart(year, ground_truth[at].year)))
    return used


def _years_apart(a: int | None, b: int | None) -> int:
    return 0 if a is None or b is None else abs(a - b)
