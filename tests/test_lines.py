"""Lines in the tokens of real tokenizers: token ranks are the lines of the text, whatever the tokens hold."""

import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from convrec_r1 import lists
from convrec_r1.policy.tokens import TokenTables, token_tables
from convrec_r1.rl import list_lengths, segment_ranks
from convrec_r1.rollout.lines import LineCounter, thought_tokens

CORPUS = [
    f"{k}. Heat ({1990 + k})\nThe Film of {word} - yes\n\n \n  {word}\n"
    for k, word in enumerate(["Ronin", "Dune", "a b", "Éa"])
] * 4
SPECIALS = ["<s>", "</s>"]


def byte_level(*, splits: bool = True) -> Tokenizer:
    """As Qwen's and Llama 3's. splits=False: without rules, so that merges cross newlines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splits)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def llama2() -> Tokenizer:
    """SentencePiece BPE with byte fallback: spaces are pieces, a newline is the byte <0x0A>."""
    pieces = [
        "<unk>",
        *SPECIALS,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        "\u2581\u2581",
        "\u2581\u2581\u2581\u2581",
    ]
    pieces += [*string.ascii_letters, *"0123456789().-", "He", "at", "\u2581H", "\u2581Heat", "Heat", "on"]
    merges = [
        ("H", "e"),
        ("a", "t"),
        ("He", "at"),
        ("o", "n"),
        ("\u2581", "\u2581"),
        ("\u2581\u2581", "\u2581\u2581"),
        ("\u2581", "H"),
        ("\u2581", "Heat"),
    ]
    vocabulary = {piece: at for at, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def unigram() -> Tokenizer:
    """SentencePiece Unigram, with newlines in its pieces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = [*string.ascii_letters, *"0123456789().-", "\n", "\u2581", "\u00c9"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<unk>", *SPECIALS],
        unk_token="<unk>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def with_tokens(*more: str) -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in more])
    return tokenizer


KINDS = {
    "byte-level": byte_level(),
    "byte-level across lines": byte_level(splits=False),
    "SentencePiece with byte fallback": llama2(),
    "SentencePiece unigram": unigram(),
    "newlines and text": with_tokens(")\n", "\nHeat", "\n ", " \n", "at\nRo", "\n- "),
    "thoughts": with_tokens("<think>", "</think>"),
}


def loaded(kind: str) -> tuple[PreTrainedTokenizerFast, TokenTables]:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=KINDS[kind], bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )
    return tokenizer, token_tables(tokenizer, len(tokenizer) + 3, [tokenizer.eos_token_id])


LOADED = {kind: loaded(kind) for kind in KINDS}
PIECES = [
    "Heat",
    "Ronin (1998)",
    "1. Heat",
    "a",
    " ",
    "  ",
    "    ",
    "\n",
    "\n",
    "\n\n",
    " \n",
    "\n ",
    ")\n",
    "\n- ",
    "\u00c9a",
    "(19",
    "\t",
]


def expected_ranks(tokenizer, ids: list[int]) -> tuple[list[int | None], int]:
    """Lines before each token that is text without a newline, and lines of the whole, by the text alone."""

    def text(count: int) -> str:
        return tokenizer.decode(ids[:count], skip_special_tokens=False)

    found: list[int | None] = []
    for at in range(len(ids)):
        before, written = text(at), text(at + 1)[len(text(at)) :]
        plain = "\n" not in written and written.strip(lists.WHITESPACE)
        found.append(len(lists.lines(before.rpartition("\n")[0])) if plain else None)
    return found, len(lists.lines(text(len(ids))))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "thoughts"])
@settings(max_examples=examples(150), deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=12))
def test_token_ranks_are_the_lines_of_the_text(kind, pieces):
    tokenizer, tables = LOADED[kind]
    ids = tokenizer("".join(pieces), add_special_tokens=False)["input_ids"]
    row = torch.tensor(ids)[None]
    ranks = segment_ranks(row, torch.ones_like(row), tables.newline, tables.blank, tables.opens)
    length = list_lengths(row, ranks, tables.blank, tables.eos, tables.opens)
    expected, lines = expected_ranks(tokenizer, ids)
    assert [r for r, e in zip(ranks[0].tolist(), expected, strict=True) if e is not None] == [
        e for e in expected if e is not None
    ]
    assert length.tolist() == [lines]
    counter = LineCounter(
        tables.newline.tolist(), tables.blank.tolist(), tables.opens.tolist(), tables.thought.tolist()
    )
    closed = [counter.add(token) for token in ids]
    assert closed[-1] == lines - counter.text
    assert [0, *closed[:-1]] == ranks[0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_lone_blank_is_blank(kind):
    """SentencePiece decodes a lone piece of one space to nothing."""
    tokenizer, tables = LOADED[kind]
    space, newline = (tokenizer("A" + text, add_special_tokens=False)["input_ids"][-1] for text in (" ", "\n"))
    assert tables.blank[space]
    assert not tables.newline[space]
    assert tables.newline[newline]
    assert tables.blank[newline]
    assert not tables.blank[tokenizer.eos_token_id]
    assert not tables.blank[tokenizer("A", add_special_tokens=False)["input_ids"][-1]]
    assert tables.blank[-3:].all()  # ids that the tokenizer does not have write nothing


THOUGHTS = [
    "<think>\nmaybe Ronin\n</think>\n",
    "<think></think>",
    "x\ny\n</think>\n\n",
    "<think>\n1. a\n\n2. b</think>",
]


@pytest.mark.parametrize(
    "kind", ["thoughts", "byte-level", "byte-level across lines", "SentencePiece with byte fallback"]
)
@pytest.mark.parametrize("thought", THOUGHTS)
def test_thoughts_hold_no_ranks_in_the_tokens(kind, thought):
    """Whether their marks are tokens of their own or text."""
    tokenizer, tables = LOADED[kind]
    ids = tokenizer(f"{thought}Heat\n\nRonin (1998)", add_special_tokens=False)["input_ids"]
    hidden = thought_tokens(ids, lambda part: tokenizer.decode(part, skip_special_tokens=False))
    shown = [token for at, token in enumerate(ids) if at not in hidden]
    assert lists.lines(tokenizer.decode(ids)) == ["Heat", "Ronin (1998)"]
    row = torch.tensor(shown)[None]
    ranks = segment_ranks(row, torch.ones_like(row), tables.newline, tables.blank, tables.opens)[0]
    words = [
        tokenizer.decode([token for token, rank in zip(shown, ranks.tolist(), strict=True) if rank == k]).split()
        for k in range(2)
    ]
    assert "".join(words[0] + words[1]).replace(">", "") == "HeatRonin(1998)"
    assert "Heat" in "".join(words[0])
    if kind == "thoughts":  # then engines that stop at a line count none either
        counter = LineCounter(
            *(table.tolist() for table in (tables.newline, tables.blank, tables.opens, tables.thought))
        )
        assert [counter.add(token) for token in ids][-1] == 1
        assert tables.thought.count_nonzero() == 2


def test_thoughts_that_never_end_leave_nothing():
    tokenizer, _ = LOADED["byte-level"]
    ids = tokenizer("Heat\n<think>\nRonin\nDune", add_special_tokens=False)["input_ids"]
    hidden = thought_tokens(ids, tokenizer.decode)
    assert tokenizer.decode([token for at, token in enumerate(ids) if at not in hidden]).strip("\n <") == "Heat"
    assert thought_tokens(tokenizer("Heat\nRonin", add_special_tokens=False)["input_ids"], tokenizer.decode) == []


@pytest.mark.parametrize("kind", ["byte-level", "SentencePiece with byte fallback"])
def test_thoughts_may_break_off_at_a_letter_of_several_tokens(kind):
    tokenizer, _ = LOADED[kind]
    ids = tokenizer("Heat\n<think>\u3042\u4e16", add_special_tokens=False)["input_ids"]
    assert thought_tokens(ids, tokenizer.decode)[-3:] == [*range(len(ids) - 3, len(ids))]
