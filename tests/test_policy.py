"""The policy: log-probs, entropy, token tables, prompts, LoRA, saving."""

import copy
from types import SimpleNamespace

import pytest
import torch
from support import tiny_policy

from convrec_r1.base.errors import UserError
from convrec_r1.data import Conversation, Message, movieland
from convrec_r1.lists import Item, format, parse
from convrec_r1.policy import PromptEncoder, TokenBatch, load_policy
from convrec_r1.policy.batch import pad_rows
from convrec_r1.policy.config import LoraConfig, ModelConfig, ModelSource
from convrec_r1.policy.load import prepare_for_training
from convrec_r1.policy.logprobs import token_logprobs
from convrec_r1.policy.prompts import PLAIN_TEMPLATE, dialogue, shorten
from convrec_r1.policy.tokens import token_tables

DATA = movieland.load(seed=0, n_items=5, sizes={"train": 40, "validation": 1, "test": 1})


def batch_of(policy, rows: int = 4, seed: int = 0) -> TokenBatch:
    g = torch.Generator().manual_seed(seed)
    top = len(policy.tokenizer)

    def draw(low, high):
        return torch.randint(2, top, (int(torch.randint(low, high, (), generator=g)),), generator=g).tolist()

    return TokenBatch.collate([draw(3, 12) for _ in range(rows)], [draw(1, 9) for _ in range(rows)], policy.pad_id)


def plain_logprobs(policy, batch: TokenBatch, temperature: float = 1.0):
    """Row by row, without padding, from full logits: the slow way."""
    logps, entropies = [], []
    for i in range(len(batch.mask)):
        prompt = batch.prompt_ids[i][batch.prompt_mask[i].bool()]
        completion = batch.completion_ids[i][batch.mask[i].bool()]
        ids = torch.cat([prompt, completion])[None]
        log_p = torch.log_softmax(policy.causal_lm(ids).logits[0, len(prompt) - 1 : -1].float() / temperature, -1)
        logps.append(log_p.gather(1, completion[:, None])[:, 0])
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return logps, entropies


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("fused", [True, False])
def test_logprobs_and_entropy_equal_those_of_full_logits(policy, temperature, fused):
    policy.temperature, policy.fused_head = temperature, fused
    batch = batch_of(policy)
    logps, entropy = policy(batch)
    expected, expected_entropy = plain_logprobs(policy, batch, temperature)
    for i, (row, bits) in enumerate(zip(expected, expected_entropy, strict=True)):
        on = batch.mask[i].bool()
        torch.testing.assert_close(logps[i][on], row, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(entropy[i][on], bits, atol=2e-5, rtol=1e-5)
        assert (logps[i][~on] == 0).all()


def test_the_chunked_head_gives_the_gradients_of_the_plain_one(policy):
    batch = batch_of(policy)
    weights = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(1))

    def gradients():
        return torch.autograd.grad((policy(batch)[0] * weights).sum(), list(policy.parameters()))

    policy.fused_head = True
    fused = gradients()
    policy.fused_head = False
    for a, b in zip(fused, gradients(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("block", [(5, 1), (1, 7), (2, 50), (3, 20), (8, 64)])
def test_blocks_of_tokens_and_vocabulary_change_nothing(block):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 8, generator=g, dtype=torch.float64).float().requires_grad_()
    weight = torch.randn(50, 8, generator=g).requires_grad_()
    targets = torch.tensor([0, 49, 6, 7, 25])
    logps, entropy = token_logprobs(hidden, weight, targets, 0.5, block)
    log_p = torch.log_softmax(hidden @ weight.T / 0.5, -1)
    torch.testing.assert_close(logps, log_p[range(5), targets], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, -(log_p.exp() * log_p).sum(-1), atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(logps.square().sum(), [hidden, weight])
    theirs = torch.autograd.grad(log_p[range(5), targets].square().sum(), [hidden, weight])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_head_that_is_not_plain_is_noticed(policy):
    """A model that caps or scales its logits after the head must not go through the chunked one."""

    class Capped(torch.nn.Module):
        def __init__(self, lm):
            super().__init__()
            self.lm = lm

        def __getattr__(self, name):
            if name == "lm":
                return super().__getattr__(name)
            return getattr(self._modules["lm"], name)

        def forward(self, **inputs):
            return SimpleNamespace(logits=torch.tanh(self.lm(**inputs).logits * 50))

    assert policy._find_ways() == (True, True)
    policy.lm = Capped(policy.lm)
    assert policy._find_ways() == (False, False)


def test_padding_of_the_batch_changes_no_row(policy):
    batch = batch_of(policy, rows=6)
    whole, _ = policy(batch)
    for i in range(6):
        alone, _ = policy(batch.rows(torch.tensor([i])))
        torch.testing.assert_close(whole[i, : alone.shape[1]], alone[0], atol=2e-5, rtol=1e-5)


def test_rows_are_scored_without_padding_before_them_and_without_a_mask(policy, monkeypatch):
    """On an H200, cuDNN's attention gave NaN gradients where padding on the left left rows that attend to nothing
    (experiments/gpu/h200.md)."""
    batch = batch_of(policy)
    policy.packs = False
    seen = []
    decoder = policy.causal_lm.get_decoder()
    real = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda *args, **inputs: seen.append(inputs) or real(*args, **inputs))
    policy(batch)
    (inputs,) = seen
    assert inputs.get("attention_mask") is None
    assert inputs["input_ids"].shape[1] == int((batch.prompt_mask.sum(-1) + batch.mask.sum(-1)).max())
    for row, ids in enumerate(inputs["input_ids"]):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row].bool()]
        completion = batch.completion_ids[row][batch.mask[row].bool()]
        assert ids[: len(prompt) + len(completion)].tolist() == [*prompt.tolist(), *completion.tolist()]


def test_token_tables_know_newlines_blanks_and_ends(policy):
    tokenizer = policy.tokenizer
    newline, blank, _, eos, _ = token_tables(tokenizer, policy.head.weight.shape[0], policy.eos_ids)
    for i in range(len(tokenizer)):
        text = tokenizer.decode([i], skip_special_tokens=False)
        if i not in tokenizer.all_special_ids:
            assert newline[i] == ("\n" in text)
            assert blank[i] == (text.strip(" \t\r\n\f\v") == "")
    assert eos.nonzero().flatten().tolist() == [tokenizer.eos_token_id]
    assert not blank[tokenizer.eos_token_id]
    # Half of a character of several bytes is text, not white space.
    half = tokenizer.convert_tokens_to_ids("Ã")
    assert not blank[half]


def test_reference_stays_where_it_was(policy):
    batch = batch_of(policy)
    reference = policy.reference()
    before = policy(batch)[0].detach()
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.05 * torch.randn_like(p))
    torch.testing.assert_close(reference(batch), before)
    assert (policy(batch)[0] - before).abs().max() > 1e-3
    assert not any("reference" in name for name in policy.state_dict())


def test_lora_trains_adapters_only_and_its_reference_is_the_base(policy, tmp_path):
    batch = batch_of(policy)
    base = policy(batch)[0].detach()
    cfg = ModelConfig(name="x", lora=LoraConfig(enabled=True, rank=4, alpha=8))
    policy = prepare_for_training(policy, cfg, seed=0)
    trainable = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    torch.testing.assert_close(policy(batch)[0], base, atol=1e-5, rtol=1e-5)
    reference = policy.reference()
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        policy(batch)[0].sum().neg().backward()
        optimizer.step()
    moved = policy(batch)[0].detach()
    assert (moved - base).abs().max() > 1e-3
    torch.testing.assert_close(reference(batch), base, atol=1e-5, rtol=1e-5)
    # What is saved is a plain model with the adapters merged in; the live one keeps them.
    policy.save(tmp_path)
    torch.testing.assert_close(load_policy(tmp_path, ModelConfig(name="x"))(batch)[0], moved, atol=1e-4, rtol=1e-4)
    assert policy.has_lora


def test_saved_and_loaded_policies_are_the_same(policy, tmp_path):
    batch = batch_of(policy)
    policy.save(tmp_path)
    loaded = load_policy(tmp_path, ModelConfig(name="x"))
    assert torch.equal(loaded(batch)[0], policy(batch)[0])
    assert loaded.eos_ids == policy.eos_ids
    # transformers rebuilds tokenizers by model type when it loads them: it must come to the same one.
    texts = [f"{dialogue(c)}\n{format(c.demonstration)}\n" for c in DATA["train"]] + [
        "Ünïcode 漢字 (1999)\n\n 12 Angry Men"
    ]
    assert any(len(policy.tokenizer(text)["input_ids"]) < len(text) / 3 for text in texts), "merges must come into play"
    for text in texts:
        assert loaded.tokenizer(text)["input_ids"] == policy.tokenizer(text)["input_ids"]
        assert loaded.text(loaded.tokenizer(text)["input_ids"]) == text
    assert (tmp_path / "model.safetensors").exists()


def test_the_same_seed_makes_the_same_tiny_model():
    torch.manual_seed(123)
    state = torch.get_rng_state()
    a, b, c = tiny_policy(seed=1), tiny_policy(seed=1), tiny_policy(seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))
    assert a.tokenizer.get_vocab() == b.tokenizer.get_vocab()


@pytest.mark.parametrize("path", ["nobody/no-such-model", "NOT A VALID ID!"])
def test_a_model_that_cannot_be_reached_says_what_to_do(path):
    with pytest.raises(UserError, match="not on the Hub"):
        load_policy(path, ModelConfig(name="x"))


def test_a_folder_that_is_no_model_says_so(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="without a causal language model"):
        load_policy(tmp_path, ModelConfig(name="x"))


def conversation(*texts: str, **more) -> Conversation:
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(texts))
    return Conversation(id="c", cluster="c", messages=messages, ground_truth=(Item("Heat", 1995),), **more)


def test_prompts_carry_instruction_and_turns(policy):
    encoder = PromptEncoder(policy.tokenizer, "Give {n} films.", 7, 256)
    text = policy.tokenizer.decode(encoder.prompt(conversation("I like Heat.", "Why?", "The city.")))
    assert text == "User: Give 7 films.\nUser: I like Heat.\nRecommender: Why?\nUser: The city.\nAssistant:\n"


def test_published_prompts_are_passed_on_untouched(policy):
    encoder = PromptEncoder(policy.tokenizer, "Give {n} films.", 7, 256)
    published = conversation("Reply with 20. USER: hi", has_instruction=True)
    assert policy.tokenizer.decode(encoder.prompt(published)) == "User: Reply with 20. USER: hi\nAssistant:\n"


def test_a_tokenizer_without_chat_template_gets_the_plain_one(policy):
    policy.tokenizer.chat_template = None
    PromptEncoder(policy.tokenizer, "x", 1, 16)
    assert policy.tokenizer.chat_template == PLAIN_TEMPLATE


def test_completions_read_back_as_the_items(policy):
    items = [Item("Heat", 1995), Item("Amélie", 2001)]
    ids = PromptEncoder(policy.tokenizer, "x", 2, 16).completion(items)
    assert ids[-1] == policy.tokenizer.eos_token_id
    assert parse(policy.text(ids)) == items


def test_long_prompts_lose_their_middle():
    assert shorten(list(range(10)), 10) == list(range(10))
    assert shorten(list(range(20)), 8) == [0, 1, 14, 15, 16, 17, 18, 19]


def test_rows_are_padded_left_or_right():
    ids, mask = pad_rows([[1, 2], [3]], 0, left=True)
    assert ids.tolist() == [[1, 2], [0, 3]]
    assert mask.tolist() == [[1, 1], [0, 1]]
    ids, mask = pad_rows([[1, 2], []], 9)
    assert ids.tolist() == [[1, 2], [9, 9]]
    assert mask.tolist() == [[1, 1], [0, 0]]


def test_text_keeps_special_tokens_visible_but_for_the_last_eos(policy):
    eos = policy.tokenizer.eos_token_id
    ids = policy.tokenizer("Heat (1995)\n")["input_ids"]
    assert policy.text([*ids, eos]) == "Heat (1995)\n"
    assert policy.text([*ids, policy.pad_id, eos]) == "Heat (1995)\n<|pad|>"


def test_bf16_autocast_stays_near_fp32(policy):
    batch = batch_of(policy)
    exact = policy(batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough = copy.deepcopy(policy)(batch)[0]
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.1, rtol=0.05)


def test_tiny_source_is_about_a_million_parameters():
    policy = tiny_policy(vocab_size=2048, hidden_size=128, intermediate_size=384, layers=4, heads=4, kv_heads=2)
    # The corpus of this test fills less than 2,048 ids; the layers alone are 0.79M.
    assert 0.8e6 < sum(p.numel() for p in policy.parameters()) < 1.1e6
    assert ModelSource.tiny.value == "tiny"
