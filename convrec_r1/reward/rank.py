"""The paper's reward: relevance of each rank, returns of ranks, reward of a list."""

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from convrec_r1.data.catalog import Catalog
from convrec_r1.lists import Item, read
from convrec_r1.matching import YEAR_TOLERANCE, Matching, as_matching
from convrec_r1.reward.base import JudgedLists, Returns
from convrec_r1.reward.config import RankRewardConfig

Position = Literal["line", "parsed"]


def relevance(
    text: str,
    ground_truth: Iterable[tuple[str, int | str | None]],
    seen: Collection[str],
    catalog: Catalog,
    n: int,
    *,
    year_tolerance: int = YEAR_TOLERANCE,
    position: Position = "line",
    match: Literal["folded", "normalised"] | Matching = "folded",
) -> list[int]:
    """Return the relevance of each of the first `n` ranks of a list: [N], each 0 or 1.

    A rank is relevant if its item is in the catalog, the user has not seen its title, and it matches a ground truth that no
    earlier rank has used. Of several matching ground truths, the one with the nearest year is used. A ground truth that is
    listed twice is one. Missing ranks are 0.

    Args:
        text: a list as a policy wrote it, one item a line. Thoughts are no part of it (`lists.strip_thoughts`).
        ground_truth: (title, year) of the relevant items; a year may be text, "" or None. None matches any year.
        seen: titles the user has seen; an item with such a title is never relevant, whatever its year. A year after a
            title is left out.
        catalog: items that may be recommended; a line must have the exact year of its catalog item.
        n: number of ranks.
        year_tolerance: largest difference of years that matches. A `match` given as an object has its own.
        position: "line": a line that is not an item holds its rank with relevance 0, so that the k-th entry belongs to
            the k-th rank of `rl.segment_ranks`. "parsed": such lines are dropped, as the public Rank-GRPO code does.
        match: when titles are the same: "folded" (case and white space: the paper's rule), "normalised" (also accents,
            punctuation and articles), or a rule of your own.
    Raises:
        ValueError: unknown `position` or `match`.
    """
    if position not in ("line", "parsed"):
        raise ValueError(f'position must be "line" or "parsed", found {position!r}')
    rule = as_matching(match, year_tolerance)
    # If all catalog items have a year, a line without a year is not an item.
    items = read(text, catalog, year_required=not catalog.has_yearless)
    if position == "parsed":
        items = [item for item in items if item is not None]
    seen_titles = rule.seen_keys(seen)
    truths = (Item(title, None if known in (None, "") else int(known)) for title, known in ground_truth)
    open_truths: dict[str, list[int | None]] = {}
    for truth in rule.distinct(truths):
        open_truths.setdefault(rule.key(truth.title), []).append(truth.year)
    result = [0] * n
    for rank, item in enumerate(items[:n]):
        if item is None or catalog.find(item, rule) is None:
            continue
        title = rule.key(item.title)
        years = open_truths.get(title)
        if title in seen_titles or not years:
            continue
        year = item.year
        nearest = min(years, key=lambda other: rule.year_distance(year, other))
        if rule.years_match(year, nearest):
            years.remove(nearest)
            result[rank] = 1
    return result


def rank_returns(
    relevance: Num[Tensor, "batch ranks"] | Sequence[Sequence[float]], kind: str, gamma: float | None = None
) -> Float[Tensor, "batch ranks"]:
    """Return the return of each rank, [B, N] from relevance [B, N] (arXiv 2510.20150, section 3.3).

    exp_inf:    r_k = rel_k                                    the paper's exp with Gamma to infinity: no return to go
    log_decay:  r_k = sum_{j>=k} rel_j / log2(j+1)             j counts from 1; r_1 is the list's DCG
    exp:        r_k = sum_{j>=k} rel_j / Gamma^(j-k)           Gamma >= 1

    Raises ValueError for an unknown kind, or for `exp` without a Gamma of at least 1.
    """
    rel = torch.as_tensor(relevance, dtype=torch.float32)  # [B, N]
    n = rel.shape[-1]
    if kind == "exp_inf":
        return rel.clone()
    if kind == "log_decay":
        gains = rel / torch.log2(torch.arange(2, n + 2, dtype=rel.dtype, device=rel.device))
        return gains.flip(-1).cumsum(-1).flip(-1)
    if kind == "exp":
        if gamma is None or gamma < 1:
            raise ValueError(f"rank_returns of kind 'exp' needs gamma >= 1, found {gamma}")
        k = torch.arange(n, device=rel.device)
        gap = (k[:, None] - k[None, :]).to(rel.dtype)  # [N, N]: j - k, row j, column k
        discount = torch.where(gap >= 0, float(gamma) ** -gap.clamp(min=0), 0.0)
        return rel @ discount
    raise ValueError(f"unknown kind of rank returns {kind!r}: choose exp_inf, log_decay or exp")


def sequence_reward(
    relevance: Num[Tensor, "batch ranks"], n_relevant: Int[Tensor, " batch"], kind: str = "dcg"
) -> Float[Tensor, " batch"]:
    """Return the reward of each list, [B] from relevance [B, N] and the number of ground truths [B].

    dcg: sum_k rel_k / log2(k+1);  ndcg: dcg / dcg of a list with min(N, n_relevant) hits in front;
    hits: sum_k rel_k. The reward is 0 without ground truths.
    """
    rel = torch.as_tensor(relevance, dtype=torch.float32)
    discount = 1.0 / torch.log2(torch.arange(2, rel.shape[-1] + 2, dtype=rel.dtype, device=rel.device))  # [N]
    if kind == "hits":
        return rel.sum(-1)
    dcg = rel @ discount
    if kind == "dcg":
        return dcg
    if kind == "ndcg":
        ideal = torch.cat([discount.new_zeros(1), discount.cumsum(0)])  # [N+1]: ideal DCG by number of hits
        best = ideal[torch.as_tensor(n_relevant, device=rel.device).clamp(max=rel.shape[-1])]
        return torch.where(best > 0, dcg / best.clamp(min=1e-12), 0.0)
    raise ValueError(f"unknown sequence reward {kind!r}: choose dcg, ndcg or hits")


class RankReward:
    """The paper's reward (arXiv 2510.20150, section 3.3): `rank_returns` of each rank, `sequence_reward` of each list."""

    def __init__(self, options: RankRewardConfig) -> None:
        self.options = options
        self.position: Position = options.position.value

    def __call__(self, lists: JudgedLists) -> Returns:
        options = self.options
        return Returns(
            rank_returns(lists.relevance, options.kind.value, options.gamma),
            sequence_reward(lists.relevance, lists.n_relevant, options.sequence.value),
        )
