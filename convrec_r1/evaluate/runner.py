"""Ask a policy for its lists, greedily, and score them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
from convrec_r1.policy import Policy, PromptEncoder
from convrec_r1.reward.rank import Position
from convrec_r1.rollout.base import RolloutEngine, Sampling


@dataclass(frozen=True)
class Evaluator:
    """Scores policies and baselines on conversations, in the same way every time."""

    catalog: Catalog
    popularity: Popularity
    n: int
    """Recommendations in a list."""
    ks: Sequence[int]
    """Cut-offs."""
    greedy: Sampling
    """How lists are asked for; temperature 0."""
    match: Matching
    """The rule for "the same item"."""
    position: Position
    """Which rank a line has (`reward.relevance`)."""
    metrics: Mapping[str, Metric]
    baselines: Mapping[str, Baseline]

    def texts(
        self,
        policy: Policy,
        engine: RolloutEngine,
        encoder: PromptEncoder,
        conversations: Sequence[Conversation],
        title: str,
    ) -> list[str]:
        """Return one greedy list of `policy` a conversation. Of several processes each samples a share; all get the whole.

        title: for the progress bar.
        """
        engine.sync(policy)
        rank, world = processes.in_group()
        prompts = [encoder.prompt(c) for c in conversations[rank::world]]
        texts = greedy_lists(policy, engine, prompts, self.greedy, title)
        return _interleave(processes.gather(texts), len(conversations))

    def policy(
        self,
        policy: Policy,
        engine: RolloutEngine,
        encoder: PromptEncoder,
        conversations: Sequence[Conversation],
        title: str,
    ) -> Evaluation:
        """Score the greedy lists of `policy`; arguments as in `texts`."""
        return self.score(self.texts(policy, engine, encoder, conversations, title), conversations)

    def baseline(
        self,
        name: str,
        conversations: Sequence[Conversation],
        train: Sequence[Conversation],
        ask: Callable[[PolicyName], list[str] | None] = lambda policy: None,
    ) -> Evaluation | None:
        """Score the lists of a baseline. None: there is no such baseline in this run.

        Args:
            name: its key in `baselines`.
            conversations, train, ask: see `Context`.
        Raises:
            UserError: not one list a conversation.
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
        """Read an evaluation that this evaluator made."""
        return Evaluation.read_jsonl(path, self.metrics)


def write_asked(conversations: Sequence[Conversation], path: Path) -> None:
    """Write the evaluated conversations beside the answers, in the form of data=jsonl: a report needs no other data."""
    dump([replace(conversation, demonstration=None) for conversation in conversations], path)


def greedy_lists(
    policy: Policy, engine: RolloutEngine, prompts: Sequence[list[int]], greedy: Sampling, title: str
) -> list[str]:
    """Return the most likely list of each prompt. Equal prompts (samples of one cluster) are sampled once."""
    unique = list(dict.fromkeys(map(tuple, prompts)))
    with bar(title, len(unique)) as progress:
        groups = engine.generate(unique, [0] * len(unique), greedy, on_progress=progress.advance)
    answers = {prompt: policy.text(group[0].ids.tolist()) for prompt, group in zip(unique, groups, strict=True)}
    return [answers[tuple(prompt)] for prompt in prompts]


def _interleave(parts: list[list[str]], total: int) -> list[str]:
    """Undo `[rank::world]`."""
    return [parts[i % len(parts)][i // len(parts)] for i in range(total)]
