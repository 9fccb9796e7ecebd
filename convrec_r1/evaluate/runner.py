"""Sample greedy lists from a policy and score them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from convrec_r1.base import processes
from convrec_r1.base.errors import UserError
from convrec_r1.base.progress import bar
from convrec_r1.data import Catalog, Conversation
from convrec_r1.data.adapters.jsonl import dump
from convrec_r1.evaluate.baselines import Baseline, Context, PolicyName
from convrec_r1.evaluate.metrics import Metric
from convrec_r1.evaluate.popularity import Popularity
from convrec_r1.evaluate.scoring import Evaluation, score
from convrec_r1.matching import Matching
from convrec_r1.reward.rank import Position
from convrec_r1.rollout.base import RolloutEngine, Sampling

if TYPE_CHECKING:  # they import transformers, which takes seconds
    from convrec_r1.policy import Policy, PromptEncoder
    from convrec_r1.rollout.constraint import Constraint, Opening


@dataclass(frozen=True)
class Evaluator:
    """Scores policies and baselines on conversations."""

    catalog: Catalog
    popularity: Popularity
    n: int
    """Recommendations in a list."""
    ks: Sequence[int]
    """Cut-offs."""
    greedy: Sampling
    """Sampling options, with temperature 0."""
    match: Matching
    """Rule for "the same item"."""
    position: Position
    """Rank of a line that is not an item (`reward.relevance`)."""
    metrics: Mapping[str, Metric]
    baselines: Mapping[str, Baseline]

    def texts(
        self,
        policy: Policy,
        engine: RolloutEngine,
        encoder: PromptEncoder,
        conversations: Sequence[Conversation],
        title: str,
        constraint: Constraint | None = None,
    ) -> list[str]:
        """Return a greedy list of `policy` for each conversation. Each process samples a share; all processes get all lists.

        Args:
            title: text of the progress bar.
            constraint: that lists are held to (eval.constraint). The engine has it, too. None: nothing.
        """
        engine.sync(policy)
        rank, world = processes.in_group()
        share = conversations[rank::world]
        openings = None if constraint is None else [constraint.opening(self.n, c.seen) for c in share]
        texts = greedy_lists(policy, engine, [encoder.prompt(c) for c in share], self.greedy, title, openings)
        return _interleave(processes.gather(texts), len(conversations))

    def policy(
        self,
        policy: Policy,
        engine: RolloutEngine,
        encoder: PromptEncoder,
        conversations: Sequence[Conversation],
        title: str,
        constraint: Constraint | None = None,
    ) -> Evaluation:
        """Score the greedy lists of `policy`; arguments as in `texts`."""
        texts = self.texts(policy, engine, encoder, conversations, title, constraint)
        return self.score(texts, conversations)

    def baseline(
        self,
        name: str,
        conversations: Sequence[Conversation],
        train: Sequence[Conversation],
        ask: Callable[[PolicyName], list[str] | None] = lambda policy: None,
    ) -> Evaluation | None:
        """Score the lists of a baseline. None: the baseline is not defined for this run.

        Args:
            name: Key in `baselines`.
            conversations, train, ask: See `Context`.

        Raises:
            UserError: The number of lists is not that of the conversations.
        """
        context = Context(conversations, train, self.n, self.catalog, self.popularity, ask)
        lists = self.baselines[name].lists(context)
        if lists is None:
            return None
        if len(lists) != len(conversations):
            raise UserError(f"baselines.{name}: found {len(lists)} lists for {len(conversations)} conversations.")
        return self.score(lists, conversations)

    def score(self, texts: Sequence[str], conversations: Sequence[Conversation]) -> Evaluation:
        """Score the k-th text as the answer to the k-th conversation."""
        return score(
            texts,
            conversations,
            self.catalog,
            self.popularity,
            n=self.n,
            ks=self.ks,
            match=self.match,
            position=self.position,
            metrics=self.metrics,
        )

    def read(self, path: Path) -> Evaluation:
        """Read an evaluation with the metrics of this evaluator."""
        return Evaluation.read_jsonl(path, self.metrics)


def write_asked(conversations: Sequence[Conversation], path: Path) -> None:
    """Write the evaluated conversations in the format of data=jsonl, for reports."""
    dump((replace(conversation, demonstration=None) for conversation in conversations), path)


def greedy_lists(
    policy: Policy,
    engine: RolloutEngine,
    prompts: Sequence[list[int]],
    greedy: Sampling,
    title: str,
    openings: Sequence[Opening] | None = None,
) -> list[str]:
    """Return the greedy list of each prompt. Equal prompts are sampled once, unless their lists may hold other items.

    openings: what the list of each prompt may hold. None: lists are held to nothing.
    """
    asked = list(zip(map(tuple, prompts), openings or [None] * len(prompts), strict=True))
    unique = list(dict.fromkeys(asked))
    held = {} if openings is None else {"openings": [opening for _, opening in unique if opening]}
    with bar(title, len(unique)) as progress:
        groups = engine.generate(
            [prompt for prompt, _ in unique], [0] * len(unique), greedy, on_progress=progress.advance, **held
        )
    answers = {one: policy.text(group[0].ids.tolist()) for one, group in zip(unique, groups, strict=True)}
    return [answers[one] for one in asked]


def _interleave(parts: list[list[str]], total: int) -> list[str]:
    """Return the items of `parts[rank] = all[rank::world]` in the order of `all`."""
    return [parts[i % len(parts)][i // len(parts)] for i in range(total)]
