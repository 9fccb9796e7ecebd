"""Lists held to the catalog: valid for any catalog, any tokenizer and any policy, and nothing else is left out."""

import string

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import examples
from test_lines import KINDS, LOADED, byte_level
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from convrec_r1.base.errors import UserError
from convrec_r1.data import Catalog
from convrec_r1.evaluate.metrics.list_quality import list_quality
from convrec_r1.lists import Item, format
from convrec_r1.matching import Folded, Normalised
from convrec_r1.rollout.constraint import Constraint, Vocabulary
from convrec_r1.rollout.constraint.vocabulary import _byte_of_letter

FOLDED, NORMALISED = Folded(), Normalised()


def load(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


# -- Any catalog: what is written is valid


LETTERS = st.one_of(
    st.sampled_from(["a", "b", "A", " ", "The ", "!", ".", "(", ")", "-", "1", "1995", "<think>", "1. ", '"']),
    st.sampled_from(["\u00e9", "e\u0301", "\u65e5\u672c", "\U0001f600", "\u00df", "\u0130", "\u200b"]),
    st.sampled_from(["\x0b", "\x0c", "\r", "\x85", "\u2028", "\u2029", "\x1c", "\t", "\n"]),
    st.characters(codec="utf-8", exclude_categories=["Cs"]),
)
TITLES = st.lists(LETTERS, min_size=1, max_size=5).map("".join).filter(str.strip)
ITEMS = st.lists(st.tuples(TITLES, st.sampled_from([None, 1994, 1995, 2020])), min_size=1, max_size=12)


@st.composite
def catalogs(draw):
    """Titles that begin others, and equal ones with other years or in another form, are common."""
    items = draw(ITEMS)
    for title, year in draw(st.lists(st.sampled_from(items), max_size=6)):
        more = draw(st.sampled_from(["x", " 2", "", "!", "\u0301"]))
        items.append(
            ((title + more).upper() if draw(st.booleans()) else title + more, draw(st.sampled_from([None, 1995, year])))
        )
    return Catalog(Item(*item) for item in items)


def write(constraint: Constraint, tokenizer, opening, seed: int, most: int = 2000) -> tuple[str, list[int]]:
    """Write a list as a random policy does, which likes some tokens much more than others. Return its text and tokens."""
    rng = np.random.default_rng(seed)
    taste = rng.normal(size=len(tokenizer) + 8) * rng.choice([0.1, 1, 5])
    state, ids = constraint.state(opening), []
    while not state.ended:
        tokens = state.allowed().tokens()
        assert len(tokens) == len(set(tokens.tolist())) > 0
        ids.append(int(tokens[np.argmax(taste[tokens] + rng.gumbel(size=len(tokens)))]))
        state.advance(ids[-1])
        assert len(ids) < most
    assert ids.pop() == tokenizer.eos_token_id
    return tokenizer.decode(ids, skip_special_tokens=False), ids


WRITTEN = [kind for kind in KINDS if kind != "thoughts"]


@pytest.mark.parametrize("kind", WRITTEN)
@settings(max_examples=examples(40), deadline=None)
@given(catalog=catalogs(), n=st.integers(1, 6), seed=st.integers(0, 1 << 30), data=st.data())
def test_every_list_is_valid(kind, catalog, n, seed, data):
    """Five lists of each catalog, 1,000 in all: judged by the metrics of the evaluation."""
    tokenizer, _ = LOADED[kind]
    match = data.draw(st.sampled_from([FOLDED, NORMALISED]))
    try:
        constraint = Constraint(catalog, match, Vocabulary.of(tokenizer, len(tokenizer) + 8, [tokenizer.eos_token_id]))
    except UserError:
        assume(False)
    some = st.lists(st.sampled_from(list(catalog)), max_size=3)
    for k in range(5):
        seen = [data.draw(st.sampled_from([str(item), item.title, item.title.upper()])) for item in data.draw(some)]
        part = data.draw(st.none() | some.map(set))
        exclude = data.draw(some)
        opening = constraint.opening(n, seen, exclude, None if part is None else constraint.subset(part))
        text, _ = write(constraint, tokenizer, opening, seed + k)
        quality = list_quality(text, seen, catalog, n, match)
        may = {match.item_key(item) for item in constraint.lines.items if part is None or item in part}
        may = {key for key in may if key[0] not in match.seen_keys(seen)} - {match.item_key(item) for item in exclude}
        assert quality["list/length"] == min(n, len(may)), text
        assert quality["list/seen"] == quality["list/duplicates"] == 0, text
        assert quality["catalog/valid"] == 1 or not may, text
        named = {match.item_key(item) for item in map(constraint_item(constraint), text.split("\n")) if item}
        assert named <= may
        assert len(named) == min(n, len(may))


def constraint_item(constraint: Constraint):
    """Line of a list -> item, by the lines to the letter."""
    by_line = {str(item): item for item in constraint.lines.items}
    return lambda line: by_line[line] if line else None


# -- Tokenizers that change or lack something


HEAT = Catalog([Item("Heat", 1995), Item("Am\u00e9lie", 2001), Item("Ame\u0301lie", 2001), Item("Heat 2", None)])


@pytest.mark.parametrize("normaliser", [normalizers.Lowercase(), normalizers.NFC(), normalizers.NFKD()])
def test_titles_are_written_to_the_letter_whatever_the_tokenizer_makes_of_texts(normaliser):
    tokenizer = byte_level()
    tokenizer.normalizer = normaliser
    loaded = load(tokenizer)
    constraint = Constraint(HEAT, FOLDED, Vocabulary.of(loaded, len(loaded), [loaded.eos_token_id]))
    for seed in range(20):
        text, _ = write(constraint, loaded, constraint.opening(4), seed)
        assert sorted(text.split("\n")) == sorted(map(str, HEAT))


def test_special_tokens_and_further_ends_never_come():
    """Of several ends the first one ends lists. Ids that the tokenizer does not have write nothing."""
    tokenizer, _ = LOADED["thoughts"]
    constraint = Constraint(
        HEAT, NORMALISED, Vocabulary.of(tokenizer, len(tokenizer) + 64, [tokenizer.eos_token_id, 65])
    )
    came: set[int] = set()
    for seed in range(30):
        text, ids = write(constraint, tokenizer, constraint.opening(4), seed)
        came |= set(ids)
        assert len(text.split("\n")) == 3, "both spellings are one item"
    assert not came & {65, *tokenizer.all_special_ids}
    assert max(came) < len(tokenizer)


def test_a_tokenizer_that_cannot_write_the_catalog(caplog):
    tokenizer = load(Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "Heat": 2, "A": 3}, unk_token="<s>")))
    vocabulary = Vocabulary.of(tokenizer, len(tokenizer), [1])
    with pytest.raises(UserError, match=r"can write no line of the catalog.*Use constraint=none"):
        Constraint(HEAT, FOLDED, vocabulary)
    kana = Catalog([*HEAT, Item("\u3042", 2000), Item("a\nb", 2000)])
    unigram, _ = LOADED["SentencePiece unigram"]
    constraint = Constraint(kana, FOLDED, Vocabulary.of(unigram, len(unigram), [unigram.eos_token_id]))
    assert {item.title for item in constraint.lines.items} <= {"Heat", "Heat 2", "Am\u00e9lie"}
    assert "items cannot be recommended" in caplog.text


def test_a_list_that_does_not_keep_to_the_constraint_is_refused():
    tokenizer, _ = LOADED["byte-level"]
    constraint = Constraint(HEAT, FOLDED, Vocabulary.of(tokenizer, len(tokenizer), [tokenizer.eos_token_id]))
    ids = tokenizer("Heat (1995)\nHeat (1995)", add_special_tokens=False)["input_ids"]
    with pytest.raises(ValueError, match="may not come after 1 lines"):
        list(constraint.replay(constraint.opening(2), ids))


def test_a_warning_where_completions_are_too_short():
    tokenizer, _ = LOADED["byte-level"]
    constraint = Constraint(HEAT, FOLDED, Vocabulary.of(tokenizer, len(tokenizer), [tokenizer.eos_token_id]))
    assert constraint.too_short(tokenizer, 2, 1000) is None
    assert "model.max_completion_length=5: n=2 lines" in str(constraint.too_short(tokenizer, 2, 5))


# -- Nothing else: at each step exactly the tokens with which some valid list goes on


@st.composite
def small_vocabularies(draw, texts: list[bytes]):
    """A tokenizer of a kind with single characters, and parts of the texts as further tokens; the bytes of each token."""
    kind = draw(st.sampled_from(["bytes", "SentencePiece BPE", "SentencePiece unigram"]))
    whole = b"\n".join(texts) + b"\n"
    cuts = st.tuples(st.integers(0, len(whole) - 1), st.integers(2, 7))
    parts = [whole[at : at + length] for at, length in draw(st.lists(cuts, max_size=14))]
    if kind != "bytes":
        parts = [part for part in parts if part.decode(errors="replace").encode() == part]
    return kind, sorted(set(parts))


def build_small(kind: str, parts: list[bytes]) -> Tokenizer:
    specials = ["<unk>", "<s>", "</s>"]
    if kind == "bytes":
        letter = {byte: letter for letter, byte in _byte_of_letter().items()}
        pieces = ["".join(letter[b] for b in part) for part in [*(bytes([b]) for b in range(256)), *parts]]
        tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(dict.fromkeys(specials + pieces))}, []))
        tokenizer.decoder = decoders.ByteLevel()
    else:
        pieces = [part.decode().replace(" ", "\u2581") for part in parts]
        letters = [*string.ascii_letters, *string.digits, *"()-.!\n\u00e9", "\u2581"]
        if kind == "SentencePiece BPE":
            every = dict.fromkeys([*specials, *(f"<0x{b:02X}>" for b in range(256)), *letters, *pieces])
            every.pop("\n")
            model = models.BPE({p: i for i, p in enumerate(every)}, [], unk_token="<unk>", byte_fallback=True)
            tokenizer = Tokenizer(model)
            tokenizer.decoder = decoders.Sequence(
                [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            )
        else:
            tokenizer = Tokenizer(models.Unigram([(p, -1.0) for p in dict.fromkeys([*specials, *letters, *pieces])], 0))
            tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens(specials)
    return tokenizer


SMALL_TITLES = st.text("ab \u00e9A", min_size=1, max_size=3).filter(lambda t: t == t.strip() != "")


@settings(max_examples=examples(60), deadline=None)
@given(
    items=st.lists(st.tuples(SMALL_TITLES, st.sampled_from([None, None, 1990])), min_size=1, max_size=4),
    n=st.integers(1, 3),
    match=st.sampled_from([FOLDED, NORMALISED]),
    data=st.data(),
)
def test_exactly_what_some_valid_list_goes_on_with_is_allowed(items, n, match, data):
    catalog = Catalog(Item(*item) for item in items)
    texts = [str(item).encode() for item in catalog]
    kind, parts = data.draw(small_vocabularies(texts))
    tokenizer = load(build_small(kind, parts))
    vocabulary = Vocabulary.of(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    constraint = Constraint(catalog, match, vocabulary)
    closed = data.draw(st.lists(st.sampled_from(list(catalog)), max_size=1))
    valid = valid_lists(list(constraint.lines.items), {match.item_key(i) for i in closed}, n, match)
    state, ids = constraint.state(constraint.opening(n, exclude=closed)), []
    names = [str(name) for name in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    tables = [{i: piece_bytes(kind, name, first) for i, name in enumerate(names)} for first in (True, False)]
    begun = beginnings(valid, {text for text in tables[1].values() if text})
    done = b""
    while not state.ended:
        table = tables[bool(ids)]
        expected = {i for i, text in table.items() if text is not None and done + text in begun}
        if done in valid:
            expected = expected if done else set()  # without an open item EOS comes at once
            expected.add(tokenizer.eos_token_id)
        allowed = state.allowed().tokens().tolist()
        assert sorted(allowed) == sorted(expected), (done, [names[i] for i in set(allowed) ^ expected])
        ids.append(data.draw(st.sampled_from(sorted(allowed))))
        state.advance(ids[-1])
        done += b"" if state.ended else table[ids[-1]]
    assert done in valid
    assert tokenizer.decode(ids[:-1]).encode() == done


def valid_lists(items, closed, n, match) -> set[bytes]:
    """The finished lists, by trying every order of every choice of items."""
    found: set[bytes] = set()

    def grow(lines: list[Item]) -> None:
        keys = closed | {match.item_key(item) for item in lines}
        more = [item for item in items if match.item_key(item) not in keys]
        if len(lines) == n or not more:
            found.add(format(lines).encode())
            return
        for item in more:
            grow([*lines, item])

    grow([])
    return found


def piece_bytes(kind: str, name: str, first: bool) -> bytes | None:
    """What a piece writes by the rules of its tokenizer. None: no text."""
    if name in ("<unk>", "<s>", "</s>"):
        return None
    if kind == "bytes":
        return bytes(_byte_of_letter()[letter] for letter in name)
    if name.startswith("<0x"):
        text = bytes([int(name[3:5], 16)])
    else:
        text = name.replace("\u2581", " ").encode()
    if first:
        text = text.removeprefix(b" ") if kind == "SentencePiece BPE" else text.replace(b" ", b"")
    return text


def beginnings(valid: set[bytes], inside: set[bytes]) -> set[bytes]:
    """What finished lists begin with where pieces can write the rest."""
    found: set[bytes] = set()
    for text in valid:
        ends = {len(text)}
        for at in reversed(range(len(text))):
            if any(text.startswith(piece, at) and at + len(piece) in ends for piece in inside):
                ends.add(at)
        found |= {text[:at] for at in ends}
    return found
