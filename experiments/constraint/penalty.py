"""A reward that takes something off for lines that are no recommendation: repeats, and lines outside the catalog."""

from dataclasses import dataclass

import torch

from convrec_r1.lists import read
from convrec_r1.matching import Folded
from convrec_r1.reward import JudgedLists, Returns
from convrec_r1.reward.config import RankRewardConfig
from convrec_r1.reward.rank import RankReward


@dataclass
class Options(RankRewardConfig):
    """Options of `Penalised`, besides those of the paper's reward."""

    name: str = "penalised"
    penalty: float = 0.5
    """Taken off the return of each rank whose line repeats an earlier one or is not in the catalog, and off the list's."""


class Penalised(RankReward):
    """The paper's reward, minus a penalty for each line that repeats an earlier one or is not in the catalog."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.penalty = options.penalty

    def __call__(self, lists: JudgedLists) -> Returns:
        plain = super().__call__(lists)
        n = lists.relevance.shape[1]
        bad = torch.tensor([wasted(text, lists, n) for text in lists.texts], device=plain.ranks.device)  # [B, N]
        return Returns(plain.ranks - self.penalty * bad, plain.lists - self.penalty * bad.sum(-1))


def wasted(text: str, lists: JudgedLists, n: int) -> list[float]:
    """Return 1 for each of the first `n` ranks that repeats an earlier one or is not in the catalog, otherwise 0: [N]."""
    rule, known = Folded(), lists.catalog
    named: set[tuple[str, int | None]] = set()
    result = [0.0] * n
    for rank, item in enumerate(read(text, known, year_required=not known.has_yearless)[:n]):
        key = None if item is None or item not in known else rule.item_key(item)
        result[rank] = float(key is None or key in named)
        if key is not None:
            named.add(key)
    return result
