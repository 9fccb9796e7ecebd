"""Decoding with shared prompts: the same tokens as a loop over single rows without any cache."""

import copy
import functools
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_policy
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from convrec_r1.policy import Policy
from convrec_r1.policy.config import LoraConfig, ModelConfig
from convrec_r1.policy.load import prepare_for_training
from convrec_r1.rollout import decoding, layouts
from convrec_r1.rollout import hf as engines
from convrec_r1.rollout.base import Completion, Sampling
from convrec_r1.rollout.hf import HFEngine
from convrec_r1.rollout.lines import LineCounter, LineCounters, LineCutter
from convrec_r1.rollout.sampler import SeededSampler, _invert

pytestmark = pytest.mark.long

PROMPTS = [[5, 6, 7], [8, 9] * 20, [10, 11, 12, 13, 14, 15], [16], [300, 2, 4, 4, 90, 17]]


@functools.cache
def chatty(kv_heads: int = 2) -> Policy:
    """A policy of four heads, whose completions end and break lines at many tokens.

    In float64, so that rounding cannot move a number across the boundary of two tokens.
    """
    return often_ending(tiny_policy(seed=5, hidden_size=64, heads=4, kv_heads=kv_heads).double())


def often_ending(policy: Policy) -> Policy:
    ids = torch.arange(len(policy.eos))
    policy.eos, policy.newline = ids % 16 == 1, ids % 5 == 2
    policy.eos_ids = ids[policy.eos].tolist()
    return policy.eval()


@torch.no_grad()
def one_by_one(policy: Policy, prompt: list[int], seed: int, sampling: Sampling) -> Completion:
    """Sample without a cache, batch, shared code or vector: the whole row through the model for each token."""
    uniform = np.random.Generator(np.random.Philox(key=seed)).random(sampling.max_tokens)
    counter = LineCutter.of(policy).counter()
    ids: list[int] = []
    logprobs: list[float] = []
    lm = policy.causal_lm
    for u in uniform:
        logits = lm(torch.tensor([prompt + ids])).logits[0, -1].float()
        if sampling.temperature:
            logits /= sampling.temperature
        if sampling.temperature and sampling.top_k:
            logits[logits < logits.sort(descending=True).values[sampling.top_k - 1]] = -torch.inf
        if sampling.temperature and sampling.top_p < 1:
            order = logits.argsort(descending=True)
            before = logits[order].softmax(0).cumsum(0) - logits[order].softmax(0)
            logits[order[before >= sampling.top_p]] = -torch.inf
        p = logits.softmax(0).double()
        token = int((p.cumsum(0) > u * p.sum()).nonzero()[0]) if sampling.temperature else int(p.argmax())
        ids.append(token)
        logprobs.append(float(p[token].log()))
        if policy.eos[token] or counter.add(token) == sampling.max_lines:
            return Completion(np.array(ids), np.array(logprobs), "stop")
    return Completion(np.array(ids), np.array(logprobs), "length")


def check(policy: Policy, groups, prompts, seeds, sampling: Sampling) -> list[int]:
    """Compare with `one_by_one`. Return the lengths."""
    for prompt, seed, group in zip(prompts, seeds, groups, strict=True):
        assert len(group) == sampling.n
        for g, completion in enumerate(group):
            expected = one_by_one(policy, prompt, seed + g, sampling)
            assert completion.ids.tolist() == expected.ids.tolist()
            assert completion.finish_reason == expected.finish_reason
            assert (completion.ids.dtype, completion.logprobs.dtype) == (np.int64, np.float32)
            np.testing.assert_allclose(completion.logprobs, expected.logprobs, atol=2e-4)
    return [len(completion.ids) for group in groups for completion in group]


@settings(max_examples=8)
@given(
    kv_heads=st.sampled_from([1, 2, 4]),
    chosen=st.lists(st.sampled_from(range(len(PROMPTS))), min_size=1, max_size=5),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 1 << 40),
    sampling=st.builds(
        Sampling,
        n=st.integers(1, 5),
        temperature=st.sampled_from([1.0, 1.0, 0.7, 0]),
        top_p=st.sampled_from([1.0, 0.9]),
        top_k=st.sampled_from([0, 0, 20]),
        max_tokens=st.integers(1, 20),
        max_lines=st.sampled_from([None, 1, 3]),
    ),
)
def test_tokens_are_those_of_a_loop_without_cache(kv_heads, chosen, batch_size, seed, sampling):
    policy = chatty(kv_heads)
    prompts, seeds = [PROMPTS[i] for i in chosen], [seed + (k << 16) for k in range(len(chosen))]
    engine, told = HFEngine(policy, batch_size=batch_size), []
    groups = engine.generate(prompts, seeds, sampling, told.append)
    check(policy, groups, prompts, seeds, sampling)
    assert engine._bytes == 2 * 2 * kv_heads * 16 * 8, "keys and values, 2 layers, heads of 16, float64"
    assert sum(told) == len(chosen) * sampling.n


def test_completions_that_end_leave_the_batch_and_prompts_with_them(monkeypatch):
    """With room for one more token at a time, and prompts that are read one by one: what moves the buffers most."""
    monkeypatch.setattr(layouts, "_COLUMNS", 1)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 8)
    rows, prompts = [], []
    inner = decoding.Decode._attend

    def attend(self, layer, query, key, value, scale):
        rows.append(len(query))
        prompts.append(self.cache.prompts)
        assert self.cache.prompt[layer][0].shape[0] == self.cache.prompts
        return inner(self, layer, query, key, value, scale)

    monkeypatch.setattr(decoding.Decode, "_attend", attend)
    policy, sampling, seeds = chatty(), Sampling(n=6, max_tokens=40), [p << 16 for p in range(5)]
    engine = HFEngine(policy, batch_size=64)
    engine._check()
    rows.clear()
    prompts.clear()
    lengths = check(policy, engine.generate(PROMPTS, seeds, sampling), PROMPTS, seeds, sampling)
    assert len(set(lengths)) > 5, "lists must end at different times for any of this to mean something"
    assert rows[0] == 30
    assert rows == sorted(rows, reverse=True)
    assert prompts[0] == 5 > prompts[-1]
    assert sum(rows) / 2 < 1.3 * sum(n - 1 for n in lengths), "rows that have ended are computed for a few tokens only"


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_one_prompt_alone(kv_heads):
    policy, sampling = chatty(kv_heads), Sampling(n=5, max_tokens=20)
    engine = HFEngine(policy, batch_size=64)
    check(policy, engine.generate(PROMPTS[2:3], [7], sampling), PROMPTS[2:3], [7], sampling)


def test_a_gpu_looks_less_often(monkeypatch):
    """Rows that have ended are computed further until somebody looks. Their tokens do not count."""
    policy, sampling, seeds = chatty(), Sampling(n=6, max_tokens=40, max_lines=4), [p << 16 for p in range(5)]
    monkeypatch.setattr(decoding, "_check_every", lambda device: 16)
    check(policy, HFEngine(policy, batch_size=64).generate(PROMPTS, seeds, sampling), PROMPTS, seeds, sampling)


def test_groups_stay_together_within_the_limits(monkeypatch):
    engine, sampling = HFEngine(chatty(), batch_size=10), Sampling(n=4, max_tokens=8)
    engine._check()
    lengths = [len(p) for p in PROMPTS]
    parts = list(engine._batches(lengths, sampling))
    assert [[p for p, _ in part] for part in parts] == [[3] * 4 + [0] * 4, [2] * 4 + [4] * 4, [1] * 4]
    engine.batch_size = 3
    assert [len(part) for part in engine._batches(lengths, sampling)] == [3, 1] * 5
    engine.batch_size = 64
    assert len(list(engine._batches(lengths, sampling))) == 1
    # Two prompts of 6 tokens and eight completions of 8: 76 tokens.
    monkeypatch.setattr(engines, "_CACHE_BYTES", 80 * engine._bytes)
    assert [len(part) for part in engine._batches(lengths, sampling)] == [8, 8, 4]


@pytest.mark.parametrize("thoughts", [False, True])
@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 11), min_size=9, max_size=9), min_size=1, max_size=6))
def test_lines_of_many_rows_are_counted_as_those_of_one(thoughts, rows):
    policy = copy.copy(tiny_policy())
    bits = torch.arange(12)
    policy.newline, policy.blank, policy.opens = (
        bits % 2 == 1,
        bits // 2 % 2 == 1,
        (bits // 4 % 2 == 1) & (bits % 2 == 1),
    )
    policy.thought = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 1, -1, 1, -1], dtype=torch.int8) * thoughts
    many, cut = LineCounters(policy, len(rows)), LineCutter.of(policy)
    ones: list[LineCounter] = [cut.counter() for _ in rows]
    kept = list(range(len(rows)))
    for at in range(9):
        counts = many.add(torch.tensor([rows[i][at] for i in kept])).tolist()
        assert counts == [ones[i].add(rows[i][at]) for i in kept]
        if at == 4 and len(rows) > 2:
            kept = kept[1::2]
            many.keep(torch.tensor(range(1, len(rows), 2)))


@pytest.mark.parametrize("size", [5, 2048, 5000, 40_000])
def test_a_large_vocabulary_is_searched_in_blocks(size):
    """The draws are those of one sum over all, in float64, with tokens that are impossible or very rare among them."""
    generator = torch.Generator().manual_seed(size)
    p = torch.softmax(6 * torch.randn(400, size, generator=generator), -1)
    p[:, torch.randperm(size, generator=generator)[: size // 2]] = 0.0
    p[:10] = 0.0
    p[:10, -1] = 1.0
    u = torch.rand(400, 1, generator=generator, dtype=torch.float64)
    u[:2], u[2:4] = 0.0, 1 - 2**-53
    cdf = p.double().cumsum(-1)
    expected = torch.searchsorted(cdf, u * cdf[:, -1:], right=True).clamp(max=size - 1)
    drawn = _invert(p, u)
    assert bool((p.gather(1, drawn) > 0).all())
    assert int((drawn != expected).sum()) <= (2 if size > 2048 else 0)  # numbers within rounding of a boundary


def with_model(lm) -> Policy:
    return often_ending(Policy(lm.double(), tiny_policy().tokenizer))


SIZES = {"vocab_size": 500, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}


def models():
    yield "bias in the head", with_model(biased(LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)))), True
    yield "window", with_model(MistralForCausalLM(MistralConfig(**SIZES, **HEADS, sliding_window=10))), False
    yield "wide window", with_model(MistralForCausalLM(MistralConfig(**SIZES, **HEADS, sliding_window=99))), True
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 500, "eos_token_id": 1, "bos_token_id": None}
    yield "dropout in attention", with_model(GPT2LMHeadModel(GPT2Config(**gpt2))), False


def biased(lm):
    lm.lm_head = torch.nn.Linear(32, 500, bias=True)
    return lm


@pytest.mark.parametrize("name", ["bias in the head", "window", "wide window", "dropout in attention"])
def test_other_models_and_those_that_cannot(name, caplog):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy, shared = next((policy, shared) for label, policy, shared in models() if label == name)
    engine, sampling, seeds = HFEngine(policy, batch_size=64), Sampling(n=3, max_tokens=12, max_lines=2), [1 << 16] * 5
    engines._say_once.cache_clear()  # of other tests in this process
    with caplog.at_level(logging.WARNING):
        groups = engine.generate(PROMPTS, seeds, sampling)
        engine.generate(PROMPTS[:1], seeds[:1], sampling)
        HFEngine(policy, batch_size=64).generate(PROMPTS[:1], seeds[:1], sampling)
    check(policy, groups, PROMPTS, seeds, sampling)
    said = [record.message for record in caplog.records if "attention of its own kind" in record.message]
    assert len(said) == (0 if shared else 1)
    assert (engine._bytes is not None) is (name != "dropout in attention")


def test_fallback_and_lora(caplog):
    policy = chatty()
    seeds, sampling = [p << 16 for p in range(5)], Sampling(n=3, max_tokens=25, max_lines=3, temperature=0.8)
    engine = HFEngine(policy, batch_size=6)
    engine._check()
    engine._bytes = None  # what a model gets that takes no layouts
    check(policy, engine.generate(PROMPTS, seeds, sampling), PROMPTS, seeds, sampling)
    lora = ModelConfig(name="tiny", lora=LoraConfig(enabled=True, rank=4, alpha=64))
    adapted = prepare_for_training(copy.deepcopy(policy), lora, seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    groups = HFEngine(adapted, batch_size=64).generate(PROMPTS, seeds, sampling)
    assert adapted.training
    adapted.eval()
    check(adapted, groups, PROMPTS, seeds, sampling)
    assert not all(
        np.array_equal(groups[i][0].ids, one_by_one(policy, PROMPTS[i], seeds[i], sampling).ids) for i in range(5)
    )


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bf16(how):
    """Log-probs are those of the trainer's forward pass, as close as bf16 allows."""
    policy = copy.deepcopy(chatty())
    policy = policy.to(torch.bfloat16 if how == "weights" else torch.float32)
    sampling = Sampling(n=4, max_tokens=12)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"), torch.no_grad():
        groups = HFEngine(policy, batch_size=64).generate(PROMPTS, [p << 16 for p in range(5)], sampling)
        worst = []
        for prompt, group in zip(PROMPTS, groups, strict=True):
            for c in group:
                logits = policy.causal_lm(torch.tensor([[*prompt, *c.ids.tolist()]])).logits[0, len(prompt) - 1 : -1]
                logps = torch.log_softmax(logits.float(), -1).gather(1, torch.from_numpy(c.ids)[:, None])[:, 0]
                worst.append(float((logps - torch.from_numpy(c.logprobs)).abs().mean()))
    assert np.mean(worst) < 0.05


def test_the_sampler_keeps_each_rows_numbers():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    whole, part = (SeededSampler(range(6), Sampling(max_tokens=4), torch.device("cpu")) for _ in range(2))
    part.keep(torch.tensor([1, 4]))
    for at in range(4):
        assert whole.draw(logits, at)[0][[1, 4]].tolist() == part.draw(logits[[1, 4]], at)[0].tolist()
