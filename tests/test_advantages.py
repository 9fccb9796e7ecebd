"""Group-relative advantages and length shaping."""

import math

import pytest
import reference_objective as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from convrec_r1.rl import LengthShaping, group_advantages, overlong_penalty, per_token, shape_lengths
from convrec_r1.rl.config import Overlong

PAPER = LengthShaping(short_eos=-0.1, exact_eos=0.1, overflow=-0.1)

# ---------------------------------------------------------------------------------------------------------------------
# group advantages
# ---------------------------------------------------------------------------------------------------------------------


def test_sequence_advantages_by_hand():
    # Group 1: rewards 1 2 3 4, mean 2.5, unbiased variance (2.25 + .25 + .25 + 2.25) / 3 = 5/3, std 1.290994.
    # Group 2: rewards 0 0 0 2, mean 0.5, unbiased variance (.25 + .25 + .25 + 2.25) / 3 = 1, std 1.
    advantages = group_advantages(torch.tensor([1.0, 2, 3, 4, 0, 0, 0, 2]), 4)
    std = math.sqrt(5 / 3) + 1e-4
    expected = [-1.5 / std, -0.5 / std, 0.5 / std, 1.5 / std, *[-0.5 / 1.0001] * 3, 1.5 / 1.0001]
    assert advantages.tolist() == pytest.approx(expected, rel=1e-5)


def test_rank_advantages_by_hand():
    # Two completions, three ranks. Rank 0: rewards 1, 0: mean .5, unbiased std sqrt(.5) = .7071.
    # Rank 1: rewards 0, 0: nothing. Rank 2: rewards 1, 3: mean 2, std sqrt(2).
    advantages = group_advantages(torch.tensor([[1.0, 0, 1], [0, 0, 3]]), 2)
    a = 0.5 / (math.sqrt(0.5) + 1e-4)
    b = 1.0 / (math.sqrt(2) + 1e-4)
    assert advantages.shape == (2, 3)
    torch.testing.assert_close(advantages, torch.tensor([[a, 0, -b], [-a, 0, b]]))


def test_scale_none_leaves_the_division_out():
    assert group_advantages(torch.tensor([1.0, 2, 6, 5, 5, 8]), 3, scale="none").tolist() == [-2, -1, 3, -1, -1, 2]
    by_rank = group_advantages(torch.tensor([[1.0, 4], [3, 0]]), 2, scale="none")
    assert by_rank.tolist() == [[-1, 2], [1, -2]]


def test_groups_are_contiguous():
    """Completions of prompt 0 stand first: swapping two prompts swaps their advantages and nothing else."""
    first, second = torch.tensor([0.0, 1, 5]), torch.tensor([2.0, 2, 3])
    ahead = group_advantages(torch.cat([first, second]), 3)
    behind = group_advantages(torch.cat([second, first]), 3)
    assert torch.equal(ahead[:3], behind[3:])
    assert torch.equal(ahead[3:], behind[:3])


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, 1e6 + 0.1, -7.3, 1e-8])
@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_a_unit_without_variance_gets_exactly_zero(scale, value, size):
    rewards = torch.full((2 * size, 3), value)
    rewards[:, 1] = torch.arange(2 * size)  # the ranks beside it go on
    advantages = group_advantages(rewards, size, scale=scale)
    assert torch.equal(advantages[:, [0, 2]], torch.zeros(2 * size, 2))
    assert (advantages[:, 1].abs() > 0).any()
    assert torch.equal(group_advantages(torch.full((size,), value), size, scale=scale), torch.zeros(size))


@pytest.mark.parametrize("scale", ["std", "none"])
def test_a_group_of_one_gets_zero(scale):
    assert group_advantages(torch.tensor([3.0, -1, 0]), 1, scale=scale).tolist() == [0, 0, 0]
    assert group_advantages(torch.tensor([[3.0, 1], [2, 0]]), 1, scale=scale).tolist() == [[0, 0], [0, 0]]


def test_integer_rewards():
    assert group_advantages(torch.tensor([0, 1, 2]), 3, scale="none").tolist() == [-1, 0, 1]


@pytest.mark.parametrize(("rows", "size"), [(5, 2), (4, 3), (3, 4), (4, 0), (4, -2)])
def test_a_batch_that_does_not_divide_into_groups_is_an_error(rows, size):
    with pytest.raises(ValueError, match="group"):
        group_advantages(torch.zeros(rows), size)


def test_an_unknown_scale_is_an_error():
    with pytest.raises(ValueError, match="scale"):
        group_advantages(torch.zeros(4), 2, scale="batch")


@settings(max_examples=examples(100))
@given(st.data())
def test_group_advantages_equal_the_slow_reference(data):
    prompts, size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    ranks, scale = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(["std", "none"]))
    reward = st.integers(-8, 8).map(lambda x: x / 4)
    rows = data.draw(st.lists(st.lists(reward, min_size=ranks, max_size=ranks), min_size=prompts * size,
                              max_size=prompts * size))  # fmt: skip
    expected = torch.tensor(slow.group_advantages(rows, size, scale))
    torch.testing.assert_close(group_advantages(torch.tensor(rows), size, scale=scale), expected, rtol=1e-5, atol=1e-6)
    column = [row[0] for row in rows]
    expected = torch.tensor(slow.group_advantages(column, size, scale))
    torch.testing.assert_close(
        group_advantages(torch.tensor(column), size, scale=scale), expected, rtol=1e-5, atol=1e-6
    )


# ---------------------------------------------------------------------------------------------------------------------
# spreading over tokens
# ---------------------------------------------------------------------------------------------------------------------


def test_sequence_advantages_reach_every_token_of_the_mask():
    ranks = torch.tensor([[0, 0, 1, 5, -1], [-1, 0, -1, 1, 2]])
    spread = per_token(torch.tensor([2.0, -3.0]), ranks, 2)
    assert spread.tolist() == [[2, 2, 2, 2, 0], [0, -3, 0, -3, -3]]


def test_rank_advantages_reach_their_rank_and_the_overflow_bin_gets_none():
    ranks = torch.tensor([[0, 0, 1, 2, 3, -1], [-1, 0, 0, 0, 1, 1]])
    spread = per_token(torch.tensor([[1.0, 2.0], [-4.0, 0.5]]), ranks, 2)
    assert spread.tolist() == [[1, 1, 2, 0, 0, 0], [0, -4, -4, -4, 0.5, 0.5]]


# ---------------------------------------------------------------------------------------------------------------------
# length shaping: N = 2; tokens "A \n B \n ..." one text token a line
# ---------------------------------------------------------------------------------------------------------------------

SHAPES = {
    # name: (ranks, position of the EOS or None, lines, what is added to each token)
    "short, no newline before EOS": ([0, 0], 1, 1, [0, -0.1]),  # A <eos>
    "short, newline before EOS": ([0, 0, 1], 2, 1, [0, 0, -0.1]),  # A \n <eos>
    "exact, no newline before EOS": ([0, 0, 1, 1], 3, 2, [0, 0, 0, 0.1]),  # A \n B <eos>
    "exact, newline before EOS": ([0, 0, 1, 1, 2], 4, 2, [0, 0, 0, 0, 0.1]),  # A \n B \n <eos>
    "overlong, no newline before EOS": ([0, 0, 1, 1, 2, 2], 5, 3, [0, 0, 0, 0, -0.1, -0.1]),  # A \n B \n C <eos>
    "overlong, newline before EOS": (  # A \n B \n C \n <eos>
        [0, 0, 1, 1, 2, 2, 3], 6, 3, [0, 0, 0, 0, -0.1, -0.1, -0.1],
    ),
    "overlong, truncated": ([0, 0, 1, 1, 2, 2, 3], None, 4, [0, 0, 0, 0, -0.1, -0.1, -0.1]),
    "short, truncated": ([0, 0], None, 1, [0, 0]),  # A \n
    "exact, truncated": ([0, 0, 1], None, 2, [0, 0, 0]),  # A \n B
    "empty": ([0], 0, 0, [-0.1]),  # <eos>
    "padding on both sides": ([-1, 0, 0, 1, 1, -1], 4, 2, [0, 0, 0, 0, 0.1, 0]),
    "exact, a blank line before EOS": (  # A \n B \n \n <eos>: the second newline stands past rank N
        [0, 0, 1, 1, 2, 2], 5, 2, [0, 0, 0, 0, -0.1, 0.1],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("ranks", "eos", "lines", "shift"), SHAPES.values(), ids=SHAPES.keys())
def test_length_shaping_by_hand(ranks, eos, lines, shift):
    is_eos = torch.zeros(1, len(ranks), dtype=torch.bool)
    if eos is not None:
        is_eos[0, eos] = True
    base = torch.arange(1.0, len(ranks) + 1)[None]
    shaped = shape_lengths(base, torch.tensor([ranks]), is_eos, torch.tensor([lines]), 2, PAPER)
    torch.testing.assert_close(shaped - base, torch.tensor([shift], dtype=torch.float32))
    assert slow.length_shift(ranks, is_eos[0].tolist(), lines, 2) == pytest.approx(shift)


def test_length_shaping_is_configurable():
    shaping = LengthShaping(short_eos=-1.0, exact_eos=2.0, overflow=-3.0)
    ranks = torch.tensor([[0, 0, -1, -1], [0, 1, 1, -1], [0, 1, 2, 2]])
    is_eos = torch.tensor([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).bool()
    shaped = shape_lengths(torch.zeros(3, 4), ranks, is_eos, torch.tensor([1, 2, 3]), 2, shaping)
    assert shaped.tolist() == [[0, -1, 0, 0], [0, 0, 2, 0], [0, 0, -3, -3]]


def test_padding_that_is_the_eos_token_earns_nothing():
    """Many tokenizers pad with EOS: only the one on the mask is the end of the list."""
    ranks = torch.tensor([[0, 0, -1, -1]])
    is_eos = torch.tensor([[False, True, True, True]])
    shaped = shape_lengths(torch.zeros(1, 4), ranks, is_eos, torch.tensor([1]), 2, PAPER)
    torch.testing.assert_close(shaped, torch.tensor([[0, -0.1, 0, 0]]))


@settings(max_examples=examples(100))
@given(st.data())
def test_length_shaping_equals_the_slow_reference(data):
    pieces = data.draw(st.lists(st.sampled_from(["text", "blank", "newline", "text+newline"]), max_size=10))
    ended, n = data.draw(st.booleans()), data.draw(st.integers(1, 4))
    tokens = [("newline" in piece, piece in ("blank", "newline")) for piece in pieces] + [(False, False)] * ended
    tokens = tokens or [(False, True)]
    is_eos = [False] * (len(tokens) - ended) + [True] * ended
    mask = [True] * len(tokens)
    ranks, length = slow.segment(tokens, mask), slow.list_length(tokens, mask, is_eos)
    shaped = shape_lengths(
        torch.zeros(1, len(tokens)), torch.tensor([ranks]), torch.tensor([is_eos]), torch.tensor([length]), n,
        PAPER,
    )  # fmt: skip
    assert shaped[0].tolist() == pytest.approx(slow.length_shift(ranks, is_eos, length, n))


# ---------------------------------------------------------------------------------------------------------------------
# soft overlong punishment
# ---------------------------------------------------------------------------------------------------------------------


def test_overlong_punishment_by_hand():
    """DAPO's own lengths: L_max 20,480, L_cache 4,096."""
    lengths = torch.tensor([0, 16384, 16385, 18432, 20480, 20481, 40000])
    expected = [0, 0, -1 / 4096, -0.5, -1, -1, -1]
    assert overlong_penalty(lengths, 20480, Overlong(cache=0.2)).tolist() == pytest.approx(expected)
    assert overlong_penalty(lengths, 9, Overlong(cache=0.2, max_length=20480)).tolist() == pytest.approx(expected)


def test_without_a_cache_no_length_is_punished():
    assert overlong_penalty(torch.tensor([0, 5, 10, 11]), 10, Overlong()).tolist() == [0, 0, 0, 0]
