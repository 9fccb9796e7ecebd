"""Baselines for a trained policy. conf/baselines defines them, eval.baselines chooses among them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from convrec_r1.base.plugins import build
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation
from convrec_r1.evaluate.popularity import Popularity
from convrec_r1.lists import format

PolicyName = Literal["base", "warm_start"]


@dataclass(frozen=True)
class Context:
    """Inputs of a baseline."""

    conversations: Sequence[Conversation]
    """[B]: conversations to answer. A baseline must not read their ground truths."""
    train: Sequence[Conversation]
    """The training conversations."""
    n: int
    """Recommendations in a list."""
    catalog: Catalog
    popularity: Popularity
    """Popularity in the training conversations."""
    ask: Callable[[PolicyName], list[str] | None]
    """Return the greedy lists [B] of "base" (the policy before training) or "warm_start" (the policy that RL starts from).
    None: the run has no such policy. Every process of a run must call it."""


@runtime_checkable
class Baseline(Protocol):
    """A baseline. Your own class inherits from this class, or has these two members.

    Config: an entry of `baselines`, a mapping with `_target_` and the keyword arguments of the class. The key of the entry
    names the baseline in eval/<split>.<name>.jsonl, summary.json and the report.
    """

    shared: bool = False
    """True: the lists depend only on data, base model and warm start, so runs with one warm start share them."""

    def lists(self, context: Context) -> Sequence[str] | None:
        """Return a list per conversation: [B] texts with one `Title (Year)` per line. None: not defined for this run."""
        ...


class MostPopular(Baseline):
    """The n most frequent ground truths of training that the user has not seen. None without ground truths."""

    def lists(self, context: Context) -> list[str] | None:
        if not context.popularity.total:
            return None
        return [format(context.popularity.recommend(c, context.n)) for c in context.conversations]


class ZeroShot(Baseline):
    """Greedy lists of the policy before training."""

    shared = True

    def lists(self, context: Context) -> list[str] | None:
        return context.ask("base")


class WarmStarted(Baseline):
    """Greedy lists of the policy that RL starts from. None: no RL or no warm start."""

    shared = True

    def lists(self, context: Context) -> list[str] | None:
        return context.ask("warm_start")


ON_REQUEST = ("teacher",)
"""Baselines that cost money: made only where eval.baselines names them."""


def chosen_baselines(nodes: Mapping[str, Any], chosen: Sequence[str] | None) -> list[str]:
    """Return `chosen`, or if it is None the names in `nodes`, the config's `baselines`, without those of ON_REQUEST."""
    return [name for name in nodes if name not in ON_REQUEST] if chosen is None else list(chosen)


def build_baselines(nodes: Mapping[str, Any], chosen: Sequence[str] | None, **given: Any) -> dict[str, Baseline]:
    """Build the baselines in effect. given: what the project passes to classes with parameters of these names."""
    names = chosen_baselines(nodes, chosen)
    return {name: build(nodes[name], f"baselines.{name}", Baseline, **given) for name in names}
