"""Tokens -> ranks: which line of the list a token writes."""

import pytest
import reference_objective as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from convrec_r1.rl import list_lengths, segment_ranks

EOS, PAD = "<eos>", "<pad>"


def encode(rows: list[list[str]]):
    """Rows of text pieces (EOS and PAD are specials; PAD is off the mask) -> ids, mask, newline, blank, eos tables.

    Shorter rows are padded on the right. The vocabulary is whatever the rows hold.
    """
    width = max(len(row) for row in rows)
    rows = [row + [PAD] * (width - len(row)) for row in rows]
    vocabulary = sorted({piece for row in rows for piece in row} | {EOS, PAD})
    ids = torch.tensor([[vocabulary.index(piece) for piece in row] for row in rows]).reshape(len(rows), width)
    mask = torch.tensor([[piece != PAD for piece in row] for row in rows]).reshape(len(rows), width)
    newline = torch.tensor(["\n" in piece for piece in vocabulary])
    blank = torch.tensor([not piece.strip() for piece in vocabulary])
    eos = torch.tensor([piece == EOS for piece in vocabulary])
    return ids, mask, newline, blank, eos


def ranks_of(*pieces: str) -> list[int]:
    ids, mask, newline, blank, _ = encode([list(pieces)])
    return segment_ranks(ids, mask, newline, blank)[0].tolist()


CASES = {
    # name: (pieces, ranks, number of lines)
    "one line": (["A", " (1", "999)"], [0, 0, 0], 1),
    "newline token ends its rank": (["A", "\n", "B", "\n", "C"], [0, 0, 1, 1, 2], 3),
    "newline inside a token": (["A", ")\n", "B", ")\n", "C"], [0, 0, 1, 1, 2], 3),
    "newline inside the only token of a line": (["A\n", "B\n", "C\n"], [0, 1, 2], 3),
    "two newlines in one token close one rank": (["A", "\n\n", "B"], [0, 0, 1], 2),
    "text and two newlines in one token": (["A", ")\n\n", "B"], [0, 0, 1], 2),
    "two newline tokens: the blank line goes with the next rank": (["A", "\n", "\n", "B"], [0, 0, 1, 1], 2),
    "many blank lines between": (
        ["A", "\n", "\n", " \n", "\t", "\r\n", "B", "\n", "C"],
        [0, 0, 1, 1, 1, 1, 1, 1, 2],
        3,
    ),
    "blank line in front": (["\n", "A", "\n", "B"], [0, 0, 0, 1], 2),
    "blank lines in front": (["\n\n", " ", "\n", "A", "\n", "B"], [0, 0, 0, 0, 0, 1], 2),
    "blank lines behind": (["A", "\n", "B", "\n", "\n", "\n"], [0, 0, 1, 1, 2, 2], 2),
    "spaces are no text": ([" ", " ", "\n", "A"], [0, 0, 0, 0], 1),
    "spaces before the newline": (["A", "  ", "\n", "B"], [0, 0, 0, 1], 2),
    "spaces after the newline": (["A", "\n", "  ", "B"], [0, 0, 1, 1], 2),
    "carriage return before the newline": (["A", "\r\n", "B", "\r", "\n", "C"], [0, 0, 1, 1, 1, 2], 3),
    "EOS after text belongs to that rank": (["A", "\n", "B", EOS], [0, 0, 1, 1], 2),
    "EOS after a newline opens the next rank": (["A", "\n", "B", "\n", EOS], [0, 0, 1, 1, 2], 2),
    "EOS after blank lines": (["A", "\n", "\n", "\n", EOS], [0, 0, 1, 1, 1], 1),
    "EOS after spaces": (["A", " ", EOS], [0, 0, 0], 1),
    "empty completion": ([EOS], [0], 0),
    "blank completion": (["\n", "  ", "\n\n", EOS], [0, 0, 0, 0], 0),
    "blank completion without EOS": ([" ", "\n", "\n"], [0, 0, 0], 0),
    "right padding": (["A", "\n", "B", PAD, PAD], [0, 0, 1, -1, -1], 2),
    "left padding": ([PAD, PAD, "A", "\n", "B"], [-1, -1, 0, 0, 1], 2),
    "padding on both sides": ([PAD, "A", "\n", "B", EOS, PAD], [-1, 0, 0, 1, 1, -1], 2),
    "hole in the mask": (["A", PAD, "\n", PAD, "B"], [0, -1, 0, -1, 1], 2),
    "nothing but padding": ([PAD, PAD], [-1, -1], 0),
}


@pytest.mark.parametrize(("pieces", "ranks", "_length"), CASES.values(), ids=CASES.keys())
def test_hand_worked_segmentation(pieces, ranks, _length):
    assert ranks_of(*pieces) == ranks


def test_blank_lines_take_a_rank_where_nothing_counts_as_blank():
    """As in the public code (algo.count_blank_lines): every newline token ends a rank."""
    ids, mask, newline, blank, _ = encode([["A", "\n", "\n", "B", " ", "\n\n", "C", EOS]])
    assert segment_ranks(ids, mask, newline, torch.zeros_like(blank))[0].tolist() == [0, 0, 1, 2, 2, 2, 3, 3]
    assert segment_ranks(ids, mask, newline, blank)[0].tolist() == [0, 0, 1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(("pieces", "_ranks", "length"), CASES.values(), ids=CASES.keys())
def test_hand_worked_list_length(pieces, _ranks, length):
    ids, mask, newline, blank, eos = encode([pieces])
    assert list_lengths(ids, segment_ranks(ids, mask, newline, blank), blank, eos).tolist() == [length]


def test_ranks_count_up_without_bound():
    pieces = [piece for k in range(50) for piece in (f"Film {k}", "\n")]
    assert ranks_of(*pieces) == [k for k in range(50) for _ in range(2)]


def test_cases_batched_with_padding_give_the_same_ranks():
    """All cases in one batch, padded on the right to the longest."""
    ids, mask, newline, blank, eos = encode([pieces for pieces, _, _ in CASES.values()])
    ranks = segment_ranks(ids, mask, newline, blank)
    assert ranks.shape == ids.shape
    assert ranks.dtype == torch.long
    for row, (_, expected, _) in zip(ranks.tolist(), CASES.values(), strict=True):
        assert row == expected + [-1] * (len(row) - len(expected))
    assert list_lengths(ids, ranks, blank, eos).tolist() == [length for _, _, length in CASES.values()]


def test_newlines_off_the_mask_count_for_nothing():
    ids = torch.tensor([[0, 1, 0, 1, 0, 1]])  # A \n A \n A \n
    newline, blank = torch.tensor([False, True]), torch.tensor([False, True])
    assert segment_ranks(ids, torch.tensor([[0, 0, 1, 1, 1, 0]]), newline, blank).tolist() == [[-1, -1, 0, 0, 1, -1]]
    assert segment_ranks(ids, torch.tensor([[1, 0, 1, 0, 1, 1]]), newline, blank).tolist() == [[0, -1, 0, -1, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_mask_of_any_dtype(dtype):
    ids, mask, newline, blank, _ = encode([[PAD, "A", "\n", "B", PAD]])
    assert segment_ranks(ids, mask.to(dtype), newline, blank).tolist() == [[-1, 0, 0, 1, -1]]


def test_a_batch_without_token_columns():
    ids = torch.zeros(2, 0, dtype=torch.long)
    table = torch.zeros(3, dtype=torch.bool)
    ranks = segment_ranks(ids, torch.zeros(2, 0), table, table)
    assert ranks.shape == (2, 0)
    assert list_lengths(ids, ranks, table, table).tolist() == [0, 0]


@st.composite
def completions(draw):
    """Pieces of every kind (text, blank, newline, text with a newline at its end), perhaps an EOS, perhaps padding."""
    row = draw(st.lists(st.sampled_from(["A", " ", "\n", "A\n", PAD]), max_size=12))
    return [PAD] * draw(st.integers(0, 2)) + row + draw(st.sampled_from([[], [EOS], [EOS, PAD, PAD]])) or [PAD]


@settings(max_examples=examples(200))
@given(st.lists(completions(), min_size=1, max_size=4))
def test_segmentation_equals_the_state_machine(rows):
    ids, mask, newline, blank, eos = encode(rows)
    ranks = segment_ranks(ids, mask, newline, blank)
    lengths = list_lengths(ids, ranks, blank, eos)
    for i in range(len(rows)):
        tokens = [(bool(newline[t]), bool(blank[t])) for t in ids[i]]
        assert ranks[i].tolist() == slow.segment(tokens, mask[i].tolist())
        assert lengths[i] == slow.list_length(tokens, mask[i].tolist(), eos[ids[i]].tolist())


@settings(max_examples=examples(100))
@given(st.lists(st.sampled_from(["A", "B ", " ", "\n", "C\n", "\n\n", " \n"]), max_size=14))
def test_text_of_a_rank_is_a_line_of_the_text(pieces):
    """Pieces of rank k, put together, are the k-th line that is not blank: tokens and text agree."""
    lines = [line.strip() for line in "".join(pieces).split("\n") if line.strip()]
    ranks = ranks_of(*pieces) if pieces else []
    texts = [
        "".join(p for p, r in zip(pieces, ranks, strict=True) if r == k) for k in range(max(ranks, default=-1) + 1)
    ]
    assert [text.strip() for text in texts if text.strip()] == lines
