"""Lists that are held to the catalog while they are written: which tokens may come next (design: docs/constraint.md)."""

from convrec_r1.rollout.constraint.catalog import Constraint
from convrec_r1.rollout.constraint.held import Choices, HeldLists
from convrec_r1.rollout.constraint.lines import CatalogLines, Node, Opening, Subset
from convrec_r1.rollout.constraint.state import ListState, TokenSet
from convrec_r1.rollout.constraint.vocabulary import Vocabulary

__all__ = [
    "CatalogLines",
    "Choices",
    "Constraint",
    "HeldLists",
    "ListState",
    "Node",
    "Opening",
    "Subset",
    "TokenSet",
    "Vocabulary",
]
