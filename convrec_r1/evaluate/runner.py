"""Ask a policy for its lists, greedily, and score them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from convrec_r1.base import processes
from convrec_r1.base.plugins import build
from convrec_r1.base.progress import bar
from convrec_r1.config.schema import Config
from convrec_r1.data import Catalog, Conversation
from convrec_r1.data.adapters.jsonl import dump
from convrec_r1.evaluate.popularity import Popularity
from convrec_r1.evaluate.scoring import Evaluation, score
from convrec_r1.lists import format
from convrec_r1.matching import Matching
from convrec_r1.policy import Policy, PromptEncoder
from convrec_r1.rollout.base import RolloutEngine, Sampling


class Evaluator:
    """Scores policies and baselines on conversations, the same way every time."""

    def __init__(self, cfg: Config, catalog: Catalog, popularity: Popularity) -> None:
        self.cfg, self.catalog, self.popularity = cfg, catalog, popularity
        self.match = build(cfg.match, "match", Matching)

    def policy(
        self,
        policy: Policy,
        engine: RolloutEngine,
        encoder: PromptEncoder,
        conversations: Sequence[Conversation],
        title: str,
    ) -> Evaluation:
        """One greedy list of `policy` a conversation. Of several processes each takes its share, and all get the whole."""
        engine.sync(policy)
        rank, world = processes.in_group()
        greedy = Sampling(
            temperature=0,
            max_tokens=self.cfg.model.max_completion_length,
            max_lines=self.cfg.max_lines,
        )
        prompts = [encoder.prompt(c) for c in conversations[rank::world]]
        texts = greedy_lists(policy, engine, prompts, greedy, title)
        if world > 1:
            texts = _interleave(processes.gather(texts), len(conversations))
        return self.score(texts, conversations)

    def most_popular(self, conversations: Sequence[Conversation]) -> Evaluation:
        return self.score([format(self.popularity.recommend(c, self.cfg.n)) for c in conversations], conversations)

    def score(self, texts: Sequence[str], conversations: Sequence[Conversation]) -> Evaluation:
        reward = self.cfg.reward
        return score(
            texts, conversations, self.catalog, self.popularity, n=self.cfg.n, ks=self.cfg.ks,
            position=reward.position.value, match=self.match,
            ideal=self.cfg.eval.ideal,  # pyright: ignore[reportArgumentType]  # a string, which config/checks.py has checked
        )  # fmt: skip


def write_asked(conversations: Sequence[Conversation], path: Path) -> None:
    """What was asked, in the form of data=jsonl, beside the answers: a report then needs the data no more."""
    dump([replace(conversation, demonstration=None) for conversation in conversations], path)


def greedy_lists(
    policy: Policy, engine: RolloutEngine, prompts: Sequence[list[int]], greedy: Sampling, title: str
) -> list[str]:
    """The most likely list of each prompt. Prompts that are the same (samples of one cluster) are asked once."""
    unique = list(dict.fromkeys(map(tuple, prompts)))
    with bar(title, len(unique)) as progress:
        groups = engine.generate(unique, [0] * len(unique), greedy, on_progress=progress.advance)
    answers = {prompt: policy.text(group[0].ids.tolist()) for prompt, group in zip(unique, groups, strict=True)}
    return [answers[tuple(prompt)] for prompt in prompts]


def _interleave(parts: list[list[str]], total: int) -> list[str]:
    """Undo `[rank::world]`."""
    return [parts[i % len(parts)][i // len(parts)] for i in range(total)]
