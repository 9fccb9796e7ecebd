"""Baselines: what a trained policy has to beat. conf/baselines lists those that there are, eval.baselines chooses."""

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
    """What a baseline makes its lists from."""

    conversations: Sequence[Conversation]
    """[B] the conversations to answer. Their ground truths are the right answers: a baseline must not read them."""
    train: Sequence[Conversation]
    """The training conversations."""
    n: int
    """Recommendations in a list."""
    catalog: Catalog
    popularity: Popularity
    """Of the training conversations."""
    ask: Callable[[PolicyName], list[str] | None]
    """Return the greedy lists [B] of "base", the policy before any training, or "warm_start", the one that RL starts from.
    None if the run has no such policy. Called by every process of a run."""


@runtime_checkable
class Baseline(Protocol):
    """A baseline. One of your own inherits from this class, or has these two members.

    Config: an entry of `baselines`, a mapping with `_target_` and the class's own keyword arguments. Its lists are in
    eval/<split>.<name>.jsonl, and its values in summary.json and the report, under its name in `baselines`.
    """

    shared: bool = False
    """True: the lists depend on the data, the base model and the warm start alone, so runs of one warm start share them."""

    def lists(self, context: Context) -> Sequence[str] | None:
        """Return one list a conversation, [B] texts with one `Title (Year)` a line. None: this run has no such baseline."""
        ...


class MostPopular(Baseline):
    """The n items most often wanted in training that the user has not seen. None if no interactions are known."""

    def lists(self, context: Context) -> list[str] | None:
        if not context.popularity.total:
            return None
        return [format(context.popularity.recommend(c, context.n)) for c in context.conversations]


class ZeroShot(Baseline):
    """Greedy lists of the policy before any training."""

    shared = True

    def lists(self, context: Context) -> list[str] | None:
        return context.ask("base")


class WarmStarted(Baseline):
    """Greedy lists of the policy that RL starts from. None for a run without RL or without a warm start."""

    shared = True

    def lists(self, context: Context) -> list[str] | None:
        return context.ask("warm_start")


def build_baselines(nodes: Mapping[str, Any], chosen: Sequence[str] | None) -> dict[str, Baseline]:
    """Return the baselines called `chosen` of those that `nodes` (the config's `baselines`) define. None: all."""
    wanted = list(nodes) if chosen is None else chosen
    return {name: build(nodes[name], f"baselines.{name}", Baseline) for name in wanted}
