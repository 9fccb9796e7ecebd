"""One pass over a prompt for all its lists: the same numbers as one pass for each, in every model that allows it."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_policy
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from convrec_r1.modules.config import PassLimit
from convrec_r1.modules.microbatches import micro_batches
from convrec_r1.policy import TokenBatch
from convrec_r1.policy.attention import NAME
from convrec_r1.policy.config import LoraConfig, ModelConfig
from convrec_r1.policy.load import prepare_for_training
from convrec_r1.policy.packed import SHARE, SHORT, Packed, similar
from convrec_r1.policy.policy import Policy

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 8, "vocab_size": 512, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}  # fmt: skip
lengths = st.integers(1, 9)
groups = st.lists(st.tuples(st.integers(0, 9), st.lists(lengths, min_size=1, max_size=4)), min_size=1, max_size=4)


def batch_of(shape, seed: int = 0, top: int = 500) -> TokenBatch:
    """Prompts and completions of random tokens. shape: (prompt's length, completions' lengths) of each group."""
    g = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[int]:
        return torch.randint(2, top, (n,), generator=g).tolist()

    prompts, lists = [draw(n) for n, _ in shape], [draw(n) for _, group in shape for n in group]
    batch = TokenBatch.collate(prompts, lists, 0)
    batch.owner = torch.tensor([i for i, (_, group) in enumerate(shape) for _ in group])
    return batch


def results(policy: Policy, batch: TokenBatch, *, packs: bool):
    """Log-probs, entropy, and the gradients of a loss in which each token has a weight of its own."""
    policy.packs = packs
    weights = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(1))
    logps, entropy = policy(batch)
    trained = [p for p in policy.parameters() if p.requires_grad]
    return logps, entropy, torch.autograd.grad((logps * weights).sum(), trained)


def assert_same(policy: Policy, batch: TokenBatch, tolerance: float = 2e-5) -> None:
    theirs, ours = results(policy, batch, packs=False), results(policy, batch, packs=True)
    for a, b in zip((*ours[:2], *ours[2]), (*theirs[:2], *theirs[2]), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=1e-4)


@pytest.fixture(scope="module")
def tiny() -> Policy:
    return tiny_policy()


@settings(max_examples=40)
@given(shape=groups, seed=st.integers(0, 99))
def test_logprobs_entropy_and_gradients_are_those_of_a_pass_for_each_list(tiny, shape, seed):
    assert tiny.packs
    assert_same(tiny, batch_of(shape, seed))


@settings(max_examples=20)
@given(shape=groups, seed=st.integers(0, 99))
def test_lists_of_all_lengths_stand_in_rectangles_of_their_own(tiny, shape, seed):
    """The same with lists of up to 81 tokens, some many times as long as others."""
    shape = [(prompt, [length**2 for length in group]) for prompt, group in shape]
    assert_same(tiny, batch_of(shape, seed))


@given(st.lists(st.integers(1, 1024), max_size=40))
def test_rectangles_waste_little(lengths):
    lengths = sorted(lengths, reverse=True)
    runs = similar(lengths)
    assert [row for run in runs for row in range(len(lengths))[run]] == list(range(len(lengths)))
    for run in runs:
        longest, shortest = lengths[run][0], lengths[run][-1]
        assert max(shortest, SHORT) >= SHARE * longest
    assert all(lengths[after.start] < lengths[run.start] for run, after in itertools.pairwise(runs))
    assert len(runs) <= 13, "each is a call of SDPA"


LISTS = [(7, [3, 5, 1]), (4, [6]), (11, [2, 9])]


def model_of(kind: str, **more) -> Policy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CONFIG_MAPPING[kind](**(SMALL | more))
        return Policy(AutoModelForCausalLM.from_config(config), tiny_policy().tokenizer)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma", "phi3", "smollm3", "olmo2", "granite"])
def test_common_models_read_a_prompt_once(kind):
    policy = model_of(kind)
    assert policy.packs
    assert_same(policy, batch_of(LISTS))


@pytest.mark.parametrize(
    ("kind", "more", "packs"),
    [
        ("gemma2", {}, False),  # soft caps
        ("granite", {"logits_scaling": 4.0}, False),
        ("gpt_neox", {"rotary_pct": 1.0}, True),
        ("qwen3", {"attn_implementation": "eager"}, False),
        ("qwen3", {"attention_dropout": 0.1}, False),
        ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 64, "max_position_embeddings": 64}, True),
    ],
)
def test_other_models_give_the_right_numbers_too(kind, more, packs):
    policy = model_of(kind, **more).eval()
    assert policy.packs is packs
    batch = batch_of(LISTS)
    logps, _ = policy(batch)
    for row, owner in enumerate(batch.owner):
        prompt = batch.prompt_ids[owner][batch.prompt_mask[owner].bool()]
        completion = batch.completion_ids[row][batch.mask[row].bool()]
        logits = policy.causal_lm(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]
        torch.testing.assert_close(logps[row, : len(completion)], expected, atol=2e-5, rtol=1e-4)


def test_a_sliding_window_that_is_longer_than_the_rows_does_not_matter():
    policy = model_of("mistral", sliding_window=16)
    short, long = batch_of([(7, [9, 3])]), batch_of([(9, [9, 3])])
    assert Packed(short).longest == 16
    assert policy.packs
    assert_same(policy, short)
    assert policy._packed(long) is None, "the window cuts off the prompt's first tokens"
    assert_same(policy, long)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_adapters_and_gradient_checkpointing(checkpointing, lora):
    cfg = ModelConfig(name="tiny", gradient_checkpointing=checkpointing, lora=LoraConfig(enabled=lora, rank=4))
    policy = prepare_for_training(tiny_policy(), cfg, seed=0)
    for name, p in policy.named_parameters():  # adapters start at 0, where some gradients vanish
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.02, generator=torch.Generator().manual_seed(0))
    assert policy.packs
    assert_same(policy, batch_of(LISTS))


def test_bfloat16_and_autocast(tiny):
    batch = batch_of(LISTS)
    exact = tiny(batch)[0].detach()
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = tiny(batch)
    low, _ = copy.deepcopy(tiny).to(torch.bfloat16)(batch)
    for logps in (mixed, low):
        assert 0 < float((logps - exact).abs().max()) < 0.1


def test_a_prompt_is_read_once_without_padding(tiny, monkeypatch):
    tiny.packs = True
    decoder = tiny.causal_lm.get_decoder()
    real, seen = decoder.forward, []
    monkeypatch.setattr(decoder, "forward", lambda *a, **given: seen.append(given["input_ids"]) or real(*a, **given))
    batch = batch_of(LISTS)
    tiny(batch)
    (ids,) = seen
    assert ids.shape == (1, 7 + 4 + 11 + 3 + 5 + 1 + 6 + 2 + 9)


def test_the_attention_is_not_written_into_saved_models(tiny, tmp_path):
    assert tiny.causal_lm.config._attn_implementation == NAME
    tiny.save(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()


@given(
    shape=groups, seed=st.integers(0, 99), packs=st.booleans(), sequences=st.none() | st.integers(1, 5),
    tokens=st.none() | st.integers(1, 60), share=st.floats(0.1, 1),
)  # fmt: skip
def test_passes_hold_each_completion_once_and_stay_within_their_limit(shape, seed, packs, sequences, tokens, share):
    batch = batch_of(shape, seed)
    every = torch.randperm(len(batch.mask), generator=torch.Generator().manual_seed(seed))
    rows = every[: max(1, round(share * len(every)))]
    limit = PassLimit(sequences, tokens)
    parts = micro_batches(batch, rows, limit, packs=packs)
    assert sorted(torch.cat(parts).tolist()) == sorted(rows.tolist())
    prompts, lists = batch.prompt_lengths, batch.mask.sum(-1)
    for part in parts:
        whole = {int(batch.owner[row]): int(prompts[row]) for row in part}
        size = sum(whole.values()) + int(lists[part].sum())
        size = size if packs else len(part) * int((prompts + lists)[part].max())
        assert len(part) == 1 or (sequences is None or len(part) <= sequences)
        assert len(part) == 1 or (tokens is None or size <= tokens)
        if packs:  # a prompt is cut only where the part holds nothing else and was full
            for owner in whole:
                shared = [other for other in parts if owner in batch.owner[other].tolist()]
                assert len(shared) == 1 or len({int(o) for p in shared[:-1] for o in batch.owner[p]}) <= 2
    count = min(len(rows), len(parts) + 2)
    more = micro_batches(batch, rows, limit, packs=packs, count=count)
    assert len(more) == max(count, len(parts))
    assert sorted(torch.cat(more).tolist()) == sorted(rows.tolist())
    assert all(len(part) for part in more)


def test_padding_within_passes_is_small():
    """Of real lengths: prompts of 60 to 2,000 tokens, lists of 80 to 200. Linear layers see none of it."""
    g = torch.Generator().manual_seed(0)
    shape = [
        (int(torch.randint(60, 2000, (), generator=g)), torch.randint(80, 200, (8,), generator=g).tolist())
        for _ in range(48)
    ]
    batch = batch_of(shape)
    parts = micro_batches(batch, torch.arange(len(batch.mask)), PassLimit(tokens=8192), packs=True)
    whole = [batch.rows(part) for part in parts]
    real = sum(int(b.prompt_mask.sum() + b.mask.sum()) for b in whole)
    assert sum(len(Packed(b)) for b in whole) == real, "linear layers"
    assert sum(b.prompt_mask.numel() for b in whole) < 1.1 * sum(int(b.prompt_mask.sum()) for b in whole), "attention"
    assert len(parts) <= 1.25 * real / 8192
