"""Rollouts: seeded, independent of batching, with the log-probs they were sampled with."""

import re
import sys

import numpy as np
import pytest
import torch

from convrec_r1.base.errors import UserError
from convrec_r1.policy import TokenBatch
from convrec_r1.rollout import config as rollout_config
from convrec_r1.rollout.base import SEEDS_APART, Sampling, make_engine, prompt_seed
from convrec_r1.rollout.batch import make_batch
from convrec_r1.rollout.config import (
    Correction,
    HFConfig,
    RolloutConfig,
    VLLMConfig,
    choose_engine,
    problems,
)
from convrec_r1.rollout.hf import HFEngine
from convrec_r1.rollout.sampler import SeededSampler

pytestmark = pytest.mark.long

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14, 15], [16]]
SEEDS = [prompt_seed(0, 0, i) for i in range(4)]


def same(a, b) -> bool:
    return all(
        np.array_equal(x.ids, y.ids)
        and np.allclose(x.logprobs, y.logprobs, atol=1e-4)
        and x.finish_reason == y.finish_reason
        for g, h in zip(a, b, strict=True)
        for x, y in zip(g, h, strict=True)
    )


def test_a_rollout_hangs_on_seeds_alone(policy):
    sampling = Sampling(n=3, max_tokens=12)
    whole = HFEngine(policy, batch_size=64).generate(PROMPTS, SEEDS, sampling)
    for batch_size in (1, 2, 5):
        assert same(HFEngine(policy, batch_size=batch_size).generate(PROMPTS, SEEDS, sampling), whole)
    backwards = HFEngine(policy, batch_size=5).generate(PROMPTS[::-1], SEEDS[::-1], sampling)[::-1]
    assert same(backwards, whole)
    other = HFEngine(policy, batch_size=64).generate(PROMPTS, [s + SEEDS_APART for s in SEEDS], sampling)
    assert not same(other, whole)
    # The G samples of one prompt differ: the policy is random, twelve tokens of several hundred kinds never repeat.
    assert len({tuple(c.ids) for c in whole[0]}) == 3


def test_the_global_random_state_plays_no_part(policy):
    sampling = Sampling(n=2, max_tokens=8)
    engine = HFEngine(policy, batch_size=8)
    torch.manual_seed(1)
    first = engine.generate(PROMPTS, SEEDS, sampling)
    torch.manual_seed(2)
    assert same(engine.generate(PROMPTS, SEEDS, sampling), first)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_the_trainer_computes(policy, temperature):
    policy.temperature = temperature
    groups = HFEngine(policy, batch_size=4).generate(
        PROMPTS, SEEDS, Sampling(n=2, max_tokens=10, temperature=temperature)
    )
    completions = [c for group in groups for c in group]
    batch = TokenBatch.collate(
        [p for p in PROMPTS for _ in range(2)], [c.ids.tolist() for c in completions], policy.pad_id
    )
    logps, _ = policy(batch)
    for row, completion in zip(logps, completions, strict=True):
        np.testing.assert_allclose(row[: len(completion.ids)].detach(), completion.logprobs, atol=1e-4)


def test_samples_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    draws = 20_000
    sampler = SeededSampler(range(draws), Sampling(max_tokens=1), torch.device("cpu"))
    picked, logprobs = sampler.draw(probabilities.log().repeat(draws, 1), 0)
    counts = torch.bincount(picked, minlength=4) / draws
    # Four standard errors of the commonest token
    torch.testing.assert_close(counts, probabilities, atol=4 * 0.5 / draws**0.5, rtol=0)
    torch.testing.assert_close(logprobs, probabilities.log()[picked])


def test_top_k_and_top_p_cut_and_their_logprobs_are_of_the_cut_distribution(policy):
    for sampling in (Sampling(n=4, max_tokens=6, top_k=2), Sampling(n=4, max_tokens=6, top_p=0.02)):
        groups = HFEngine(policy, batch_size=8).generate(PROMPTS, SEEDS, sampling)
        logprobs = np.concatenate([c.logprobs for group in groups for c in group])
        assert logprobs.max() <= 1e-6
        # Of 500 tokens that are nearly alike two are left: log-probs near log(1/2), far from log(1/500).
        if sampling.top_k:
            assert logprobs.min() > np.log(0.2)


def test_greedy_takes_the_likeliest_token_each_time(policy):
    (group,) = HFEngine(policy, batch_size=1).generate([PROMPTS[0]], [0], Sampling(temperature=0, max_tokens=6))
    ids = list(PROMPTS[0])
    for token in group[0].ids:
        assert int(policy.causal_lm(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(int(token))


def test_completions_end_at_eos_or_at_the_limit(policy):
    with torch.no_grad():  # make EOS likely: its embedding is what hidden states point to
        policy.head.weight.mul_(0.0)
    groups = HFEngine(policy, batch_size=32).generate(PROMPTS, SEEDS, Sampling(n=60, max_tokens=100))
    completions = [c for group in groups for c in group]
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for c in completions:
        ends = np.flatnonzero(c.ids == policy.tokenizer.eos_token_id)
        assert len(c.ids) == len(c.logprobs)
        if c.finish_reason == "stop":
            assert ends.tolist() == [len(c.ids) - 1]
        else:
            assert len(c.ids) == 100
            assert not len(ends)


def test_evaluation_mode_is_left_as_it_was(policy):
    policy.train()
    HFEngine(policy, batch_size=4).generate(PROMPTS, SEEDS, Sampling(max_tokens=2))
    assert policy.training
    assert all(p.requires_grad for p in policy.parameters())


def test_progress_counts_completions(policy):
    told = []
    HFEngine(policy, batch_size=3).generate(PROMPTS, SEEDS, Sampling(n=2, max_tokens=2), on_progress=told.append)
    assert sum(told) == 8


def test_seeds_are_spaced_and_bounded():
    seeds = {prompt_seed(r, s, p) for r in range(4) for s in range(20) for p in range(20)}
    assert len(seeds) == 1600
    assert all(0 <= seed < 2**62 and seed % SEEDS_APART == 0 for seed in seeds)
    assert prompt_seed(1, 2, 3) == prompt_seed(1, 2, 3)


def test_a_batch_lines_ranks_up_with_lines(policy):
    tokenizer = policy.tokenizer
    texts = ["Heat (1995)\nAlien (1979)", "\nHeat (1995)\n\nAlien (1979)\n", ""]
    from convrec_r1.rollout.base import Completion

    group = []
    for text in texts:
        ids = np.array([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
        group.append(Completion(ids, np.full(len(ids), -1.0, dtype=np.float32), "stop"))
    batch = make_batch([[5, 6]], [group], policy)
    assert batch.lengths.tolist() == [2, 2, 0]
    assert batch.mask.sum(-1).tolist() == [len(c.ids) for c in group]
    assert batch.is_eos.sum(-1).tolist() == [1, 1, 1]
    assert (batch.sampled_logps[batch.mask.bool()] == -1).all()
    for i, text in enumerate(texts):
        for k, line in enumerate(line for line in text.split("\n") if line):
            of_rank = batch.tokens.completion_ids[i][batch.ranks[i] == k].tolist()
            assert policy.text([t for t in of_rank if t != tokenizer.eos_token_id]).strip("\n") == line


@pytest.mark.parametrize("thought", ["<think>\nRonin (1998)\n</think>\n", "Ronin (1998)?\n\nNo.\n</think>\n\n"])
def test_thoughts_hold_no_ranks(policy, thought):
    """Their tokens go with the rank that follows, as those of blank lines do."""
    from convrec_r1.rollout.base import Completion

    tokenizer = policy.tokenizer
    texts = [
        f"{thought}Heat (1995)\nAlien (1979)",
        "Heat (1995)\nAlien (1979)",
        "Heat (1995)\n<think>\nAlien (1979)\nRonin",
    ]
    rows = [np.array(tokenizer(text)["input_ids"]) for text in texts]
    group = [Completion(ids, np.zeros(len(ids), dtype=np.float32), "length") for ids in rows]
    batch = make_batch([[5, 6]], [group], policy)
    assert batch.lengths.tolist() == [2, 2, 1]
    last = len(tokenizer("Alien (1979)")["input_ids"])
    for i in range(2):
        ranks = batch.ranks[i][batch.mask[i].bool()].tolist()
        assert ranks == [0] * (len(ranks) - last) + [1] * last
    assert batch.tokens.completion_ids.max() < len(policy.blank)


ENGINE = """
from concurrent.futures import Future

import numpy as np
from convrec_r1.rollout.base import Completion

class Parrot:
    def __init__(self, policy, word, times=1):
        self.policy, self.word, self.times = policy, word, times

    def generate(self, prompts, seeds, sampling, on_progress=None):
        ids = np.full(self.times, self.word)
        said = Completion(ids, np.zeros(self.times, np.float32), "length")
        return [[said] * sampling.n for _ in prompts]

    def submit(self, prompts, seeds, sampling):
        done = Future()
        done.set_result(self.generate(prompts, seeds, sampling))
        return done

    def sync(self, policy):
        self.policy = policy

    def close(self):
        pass

class Mute:
    def sync(self, policy):
        pass
"""


@pytest.fixture
def own_engine(tmp_path, monkeypatch):
    """Options of an engine in a file of a user's."""
    (tmp_path / "parrots.py").write_text(ENGINE)
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str = "Parrot", **options) -> RolloutConfig:
        return RolloutConfig(_target_=f"parrots.{name}", options=options)

    yield make
    sys.modules.pop("parrots", None)


def test_an_engine_of_a_users(own_engine, policy):
    engine = make_engine(own_engine(word=7, times=2), policy, max_length=64)
    assert engine.policy is policy, "the policy itself, not a copy"
    ((completion, _),) = engine.generate([[5]], [0], Sampling(n=2))
    assert completion.ids.tolist() == [7, 7]
    cfg = own_engine(word=7)
    assert cfg.correction_in_effect is Correction.truncate
    cfg.overlap = 1
    assert problems(cfg, accelerator="cpu", world=1) == []
    cfg.workers = 2
    (wrong,) = problems(cfg, accelerator="cpu", world=1, ray=True)
    assert "Parrot cannot sample in a worker, because it has no method load" in wrong
    cfg.workers = 0
    cfg.top_p = 0.9
    (wrong,) = problems(cfg, accelerator="cpu", world=1)
    assert "every ratio would be too small" in wrong


def test_what_is_wrong_with_an_engine_of_a_users_is_said(own_engine, policy):
    with pytest.raises(UserError, match=r"rollout\.loud: parrots\.Parrot takes no such option; it takes: word, times"):
        make_engine(own_engine(word=7, loud=True), policy, max_length=64)
    with pytest.raises(UserError, match="not a RolloutEngine, which has: close, generate, sync"):
        make_engine(own_engine("Mute"), policy, max_length=64)
    for name in ("Absent", "Mute"):
        cfg = own_engine(name)
        cfg.overlap = 1
        (wrong,) = problems(cfg, accelerator="cpu", world=1)
        assert ("cannot be imported" if name == "Absent" else "Mute is none") in wrong


def test_the_policy_itself_samples_with_hf(policy):
    cfg = HFConfig(batch_size=3)
    engine = make_engine(cfg, policy, max_length=64)
    assert isinstance(engine, HFEngine)
    assert (engine.policy is policy, engine.batch_size) == (True, 3)
    assert cfg.correction_in_effect is Correction.none


@pytest.mark.parametrize(
    ("installed", "gpu", "chosen", "why"),
    [
        (True, True, VLLMConfig, "rollout=vllm: vLLM .* is installed and a GPU is available"),
        (True, False, HFConfig, "rollout=hf: no GPU is used"),
        (False, True, HFConfig, "rollout=hf: vLLM for GPUs is not installed"),
    ],
)
def test_auto_takes_vllm_where_it_can(monkeypatch, installed, gpu, chosen, why):
    monkeypatch.setattr(rollout_config, "vllm_for_gpus", lambda: installed)
    cfg, sentence = choose_engine(RolloutConfig(temperature=0.7, stop_at_n=True), gpu=gpu)
    assert type(cfg) is chosen
    assert (cfg.temperature, cfg.stop_at_n, cfg._target_) == (0.7, True, chosen()._target_)
    assert re.match(why, sentence)
    assert choose_engine(VLLMConfig(sleep=True))[0] == VLLMConfig(sleep=True), "what was chosen stays"
