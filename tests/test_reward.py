"""Users' feedback as a reward: relevance of ranks, returns per rank and per sequence."""

import json
import math
from functools import cache
from pathlib import Path

import pytest
import reference_objective as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from convrec_r1.data import Catalog, Conversation
from convrec_r1.data.schema import Message
from convrec_r1.evaluate.popularity import Popularity
from convrec_r1.evaluate.scoring import score
from convrec_r1.lists import WHITESPACE, Item, lines, parse
from convrec_r1.matching import Folded, Normalised
from convrec_r1.reward import RankReward, rank_returns, relevance, sequence_reward
from convrec_r1.reward.config import RankRewardConfig, SequenceReward
from convrec_r1.reward.judge import Judge
from convrec_r1.rl import segment_ranks

SHARED = Path(__file__).parents[2] / "shared"

# ---------------------------------------------------------------------------------------------------------------------
# relevance
# ---------------------------------------------------------------------------------------------------------------------

CATALOG = Catalog(
    [
        Item("Heat", 1995),
        Item("Ronin", 1998),
        Item("Dune", 1984),
        Item("Dune", 2021),
        Item("Amour", 2012),
        *(Item("Twins", year) for year in range(1990, 2010)),
    ]
)


def rel(text: str, truth, *, seen=(), n=4, catalog=CATALOG, **options) -> list[int]:
    return relevance(text, truth, seen, catalog, n, **options)


def test_hits_stand_at_their_rank():
    text = "Ronin (1998)\nDune (2021)\nHeat (1995)\nAmour (2012)"
    assert rel(text, [("Heat", 1995), ("Ronin", 1998)]) == [1, 0, 1, 0]


def test_fewer_lines_than_ranks_are_filled_with_zeros():
    assert rel("Heat (1995)", [("Heat", 1995)], n=3) == [1, 0, 0]
    assert rel("", [("Heat", 1995)], n=3) == [0, 0, 0]
    assert rel("\n \n", [("Heat", 1995)], n=2) == [0, 0]


def test_lines_past_the_last_rank_earn_nothing():
    assert rel("Ronin (1998)\nDune (1984)\nHeat (1995)", [("Heat", 1995), ("Ronin", 1998)], n=2) == [1, 0]


def test_without_ground_truth_nothing_is_relevant():
    assert rel("Heat (1995)\nRonin (1998)", [], n=2) == [0, 0]


def test_case_and_white_space_are_folded():
    truth = [("  heat ", 1995), ("RONIN", 1998)]
    assert rel("1. HEAT (1995)\n2. ronin (1998)", truth, n=2) == [1, 1]


def test_a_ground_truth_pays_once():
    assert rel("Heat (1995)\nHeat (1995)\nheat (1995)", [("Heat", 1995)], n=3) == [1, 0, 0]


def test_a_ground_truth_that_is_listed_twice_pays_once():
    twice = [("Heat", 1995), ("heat ", "1995"), ("Heat", None)]
    assert rel("Heat (1995)\nHeat (1995)\nheat (1995)", twice, n=3) == [1, 0, 0]
    assert rel("Heat (1995)\nDune (2021)\nDune (1984)", [*twice, ("Dune", 1984), ("Dune", 2021)], n=3) == [1, 1, 1]
    matching = [("Heat", 1995), ("H\u00e9at!", 1995)]
    assert rel("Heat (1995)\nHeat (1995)", matching, n=2, match="normalised") == [1, 0]
    assert Normalised().distinct([Item("Heat", 1995), Item("Dune"), Item("Heat!", 1995), Item("HEAT")]) == [
        Item("Heat", 1995), Item("Dune"),
    ]  # fmt: skip


def test_the_ideal_list_counts_such_a_truth_once():
    """In the reward's NDCG as in the evaluation's."""
    conversation = Conversation(
        "a", "a", (Message("user", "Like Ronin?"),), (Item("Heat", 1995), Item("heat", 1995)), (), None, "test"
    )
    options = RankRewardConfig(name="ndcg", sequence=SequenceReward.ndcg)
    found = Judge(CATALOG, RankReward(options), 3, Folded())(["Heat (1995)"], [conversation], torch.device("cpu"))
    assert found.reward.tolist() == [1.0]
    scored = score(["Heat (1995)"], [conversation], CATALOG, Popularity(CATALOG, [9, *[0] * 24]), n=3, ks=[3])
    assert scored.samples[0].n_relevant == 1
    assert {name: scored.samples[0].metrics[name] for name in ("ndcg@3", "recall@3", "recall_head@3")} == {
        "ndcg@3": 1.0, "recall@3": 1.0, "recall_head@3": 1.0,
    }  # fmt: skip


def test_an_item_off_the_catalog_earns_nothing_and_uses_nothing_up():
    """Heat (1996) is within two years of the truth, but no such item exists."""
    assert rel("Heat (1996)\nHeat (1995)\nOld Boy (2003)", [("Heat", 1995), ("Old Boy", 2003)], n=3) == [0, 1, 0]


@pytest.mark.parametrize("seen", [["Heat"], ["  HEAT"], ("x", "heat"), {"Heat"}])
def test_a_seen_title_earns_nothing(seen):
    assert rel("Heat (1995)\nRonin (1998)", [("Heat", 1995), ("Ronin", 1998)], seen=seen, n=2) == [0, 1]


def test_a_seen_title_may_be_written_with_its_year():
    assert rel("Heat (1995)\nRonin (1998)", [("Heat", 1995), ("Ronin", 1998)], seen=["heat  (1995)"], n=2) == [0, 1]


def test_thoughts_hold_no_ranks():
    text = "<think>\nRonin (1998), or\n1. Dune (2021)\n</think>\n\nHeat (1995)\nRonin (1998)"
    assert rel(text, [("Heat", 1995), ("Dune", 2021)], n=3) == [1, 0, 0]


def test_a_seen_title_is_seen_whatever_its_year():
    assert rel("Dune (1984)\nDune (2021)", [("Dune", 2021), ("Dune", 1984)], seen=["Dune"], n=2) == [0, 0]


@pytest.mark.parametrize(("year", "hit"), [(1992, 0), (1993, 1), (1994, 1), (1995, 1), (1996, 1), (1997, 1), (1998, 0)])
def test_years_may_differ_by_two(year, hit):
    assert rel("Heat (1995)", [("Heat", year)], n=1) == [hit]


def test_year_tolerance_is_configurable():
    assert rel("Heat (1995)", [("Heat", 1996)], n=1, year_tolerance=0) == [0]
    assert rel("Heat (1995)", [("Heat", 1995)], n=1, year_tolerance=0) == [1]
    assert rel("Heat (1995)", [("Heat", 1990)], n=1, year_tolerance=5) == [1]


def test_the_same_title_of_two_years_is_two_items():
    truth = [("Dune", 2021)]
    assert rel("Dune (1984)\nDune (2021)", truth, n=2) == [0, 1]
    assert rel("Dune (2021)\nDune (1984)", [*truth, ("Dune", 1984)], n=2) == [1, 1]


def test_the_ground_truth_nearest_in_year_is_used_up():
    # Twins (2001) matches 1999 and 2001, and takes 2001; Twins (1998) still finds 1999.
    for truth in ([("Twins", 1999), ("Twins", 2001)], [("Twins", 2001), ("Twins", 1999)]):
        assert rel("Twins (2001)\nTwins (1998)\nTwins (2000)", truth, n=3) == [1, 1, 0]


@pytest.mark.parametrize("year", ["1995", 1995, None, ""])
def test_years_of_the_ground_truth_may_be_text_or_missing(year):
    assert rel("Heat (1995)", [("Heat", year)], n=1) == [1]


def test_ground_truth_may_be_an_iterator_and_is_left_as_it_was():
    truth = [["Heat", "1995"], ["Ronin", "1998"]]
    assert rel("Heat (1995)\nHeat (1995)", iter(truth), n=2) == [1, 0]
    assert truth == [["Heat", "1995"], ["Ronin", "1998"]]


TEXT_WITH_REMARKS = "Sure! Here you go:\n\n1. Heat (1995)\n2. Ronin\n \n3. Dune (2021)\n"


def test_a_line_that_does_not_parse_holds_its_rank():
    truth = [("Heat", 1995), ("Ronin", 1998), ("Dune", 2021)]
    assert rel(TEXT_WITH_REMARKS, truth, n=5) == [0, 1, 0, 1, 0]
    assert rel(TEXT_WITH_REMARKS, truth, n=5, position="line") == [0, 1, 0, 1, 0]
    assert rel(TEXT_WITH_REMARKS, truth, n=3) == [0, 1, 0]


def test_or_is_dropped_as_by_the_public_code():
    truth = [("Heat", 1995), ("Ronin", 1998), ("Dune", 2021)]
    assert rel(TEXT_WITH_REMARKS, truth, n=5, position="parsed") == [1, 1, 0, 0, 0]
    assert rel(TEXT_WITH_REMARKS, truth, n=1, position="parsed") == [1]


def test_an_item_off_the_catalog_holds_its_rank_in_both_positions():
    for position in ("line", "parsed"):
        assert rel("Nothing Such (1990)\nHeat (1995)", [("Heat", 1995)], n=2, position=position) == [0, 1]


def test_an_unknown_position_is_an_error():
    with pytest.raises(ValueError, match="position"):
        rel("Heat (1995)", [], position="rank")


def test_no_ranks_no_relevance():
    assert rel("Heat (1995)", [("Heat", 1995)], n=0) == []


def test_a_catalog_without_years():
    catalog = Catalog([Item("Chess"), Item("Go"), Item("Hex")])
    text = "1. go\n2. **Chess**\n3. Poker\n4. Go"
    assert rel(text, [("Go", None), ("Chess", None), ("Poker", None)], catalog=catalog) == [1, 1, 0, 0]
    assert rel(text, [("Go", None), ("Chess", None)], catalog=catalog, seen=["chess"]) == [1, 0, 0, 0]
    assert rel("Hex\nGo", [("Go", 1995)], catalog=catalog, n=2) == [0, 1]  # one side without a year: the title decides


def test_a_catalog_with_years_has_no_item_without_one():
    assert rel("Heat\nRonin (1998)", [("Heat", 1995), ("Ronin", 1998)], n=2) == [0, 1]
    assert rel("Heat\nRonin (1998)", [("Heat", None), ("Ronin", 1998)], n=2, position="parsed") == [1, 0]


def test_a_catalog_with_and_without_years():
    catalog = Catalog([Item("Heat", 1995), Item("Go")])
    truth = [("Heat", 1995), ("Go", None)]
    assert rel("Heat\nGo\nHeat (1995)", truth, catalog=catalog, n=3) == [0, 1, 1]


# ---------------------------------------------------------------------------------------------------------------------
# the k-th line's relevance belongs to the k-th rank of the tokens
# ---------------------------------------------------------------------------------------------------------------------


def rank_texts(text: str) -> list[str]:
    """The text of each rank, where every character is a token. A rank of blank characters alone is none."""
    characters = sorted(set(text))
    ids = torch.tensor([[characters.index(c) for c in text]], dtype=torch.long)
    newline = torch.tensor([c == "\n" for c in characters])
    blank = torch.tensor([c in WHITESPACE for c in characters])
    ranks = segment_ranks(ids, torch.ones_like(ids), newline, blank)[0].tolist()
    texts = ["".join(c for c, r in zip(text, ranks, strict=True) if r == k) for k in range(max(ranks, default=-1) + 1)]
    return [line for line in texts if line.strip(WHITESPACE)]


@settings(max_examples=examples(300))
@given(st.text(st.sampled_from(list("ab(1) \t\r\v\f\n\u00a0\u2028\u3000\x1c\x85")), min_size=1, max_size=30))
def test_ranks_of_characters_are_the_lines_of_the_text(text):
    assert [t.strip(WHITESPACE) for t in rank_texts(text)] == [line.strip(WHITESPACE) for line in lines(text)]


_entries = st.sampled_from(["Heat (1995)", "2) Ronin (1998)", "**Dune (2021)**", "Dune (1984)", "Sure:", "Amour (2012)",
                            "Nothing Such (1990)", "\u00a0", "(1995)", "Heat"])  # fmt: skip
_gaps = st.text(st.sampled_from(list(" \t\r\n")), max_size=4)


@settings(max_examples=examples(200))
@given(st.lists(_entries, min_size=1, max_size=7, unique=True), st.lists(_gaps, min_size=8, max_size=8))
def test_the_relevance_of_a_line_belongs_to_the_rank_of_its_tokens(entries, gaps):
    """Blank lines in front, between and behind; each rank's relevance is that of its own tokens' text."""
    text = gaps[0] + "".join(f"{entry}{gap}\n{gap}" for entry, gap in zip(entries, gaps[1:], strict=False))
    truth = [("Heat", 1995), ("Dune", 2021), ("Ronin", 1999)]
    n = 5
    found = rel(text, truth, n=n)
    alone = [rel(line, truth, n=1)[0] for line in rank_texts(text)]
    assert found == (alone + [0] * n)[:n]
    assert sum(alone) == len({"Heat (1995)", "2) Ronin (1998)", "**Dune (2021)**"} & set(entries))


# ---------------------------------------------------------------------------------------------------------------------
# returns
# ---------------------------------------------------------------------------------------------------------------------

RELEVANCE = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 1]])


def test_exp_inf_pays_each_rank_its_own_relevance():
    returns = rank_returns(RELEVANCE, "exp_inf")
    assert torch.equal(returns, RELEVANCE)
    returns[0, 0] = 9
    assert RELEVANCE[0, 0] == 1  # a copy


def test_log_decay_by_hand():
    # Discounts 1 / log2(2, 3, 4) = 1, 0.63093, 0.5; each rank earns its own and all later ones, at *their* discounts.
    expected = [[1.5, 0.5, 0.5], [0, 0, 0], [1.13093, 1.13093, 0.5]]
    torch.testing.assert_close(rank_returns(RELEVANCE, "log_decay"), torch.tensor(expected), rtol=0, atol=1e-5)


def test_exp_by_hand():
    # Gamma 2: a hit j - k ranks on pays 2 ** -(j - k).
    expected = [[1.25, 0.5, 1], [0, 0, 0], [0.75, 1.5, 1]]
    torch.testing.assert_close(rank_returns(RELEVANCE, "exp", gamma=2.0), torch.tensor(expected))


def test_exp_at_its_limits():
    """Gamma 1 counts the hits still to come; Gamma to infinity is exp_inf."""
    assert rank_returns(RELEVANCE, "exp", gamma=1).tolist() == [[2, 1, 1], [0, 0, 0], [2, 2, 1]]
    assert torch.equal(rank_returns(RELEVANCE, "exp", gamma=math.inf), RELEVANCE)
    long = torch.ones(1, 100)
    torch.testing.assert_close(rank_returns(long, "exp", gamma=1e9), rank_returns(long, "exp_inf"))


def test_returns_of_plain_lists():
    returns = rank_returns([[1, 0, 1]], "log_decay")
    assert returns.shape == (1, 3)
    assert returns.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "gamma", "message"),
    [("exp", None, "gamma"), ("exp", 0.5, "gamma"), ("exp", -1, "gamma"), ("linear", None, "linear")],
)
def test_wrong_returns_are_an_error(kind, gamma, message):
    with pytest.raises(ValueError, match=message):
        rank_returns(RELEVANCE, kind, gamma)


@settings(max_examples=examples(60))
@given(st.lists(st.integers(0, 1), min_size=1, max_size=25), st.sampled_from([1.0, 1.3, 2.0, 10.0]))
def test_returns_equal_sums_written_out(row, gamma):
    relevance = torch.tensor([row], dtype=torch.float32)
    ranks = range(len(row))
    log_decay = [slow.dcg(row, start=k) for k in ranks]
    exp = [sum(row[j] / gamma ** (j - k) for j in range(k, len(row))) for k in ranks]
    assert rank_returns(relevance, "log_decay")[0].tolist() == pytest.approx(log_decay, abs=1e-5)
    assert rank_returns(relevance, "exp", gamma)[0].tolist() == pytest.approx(exp, abs=1e-5)
    assert sequence_reward(relevance, torch.tensor([3])).tolist() == pytest.approx([slow.dcg(row)], abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# sequence rewards
# ---------------------------------------------------------------------------------------------------------------------


def test_dcg_by_hand():
    assert sequence_reward(RELEVANCE, torch.tensor([2, 2, 2])).tolist() == pytest.approx([1.5, 0, 1.13093], abs=1e-5)
    assert torch.equal(sequence_reward(RELEVANCE, torch.tensor([2, 2, 2]), "dcg"),
                       sequence_reward(RELEVANCE, torch.tensor([9, 1, 0])))  # fmt: skip


def test_hits_by_hand():
    assert sequence_reward(RELEVANCE, torch.tensor([2, 2, 2]), "hits").tolist() == [2, 0, 2]


def test_ndcg_by_hand():
    # The ideal list has min(N, n_relevant) hits in front: 2 -> 1.63093; 5 -> all three ranks, 2.13093; 0 -> pays 0.
    rows = RELEVANCE[[0, 0, 1, 1]]
    reward = sequence_reward(rows, torch.tensor([2, 5, 2, 0]), "ndcg")
    assert reward.tolist() == pytest.approx([1.5 / 1.63093, 1.5 / 2.13093, 0, 0], abs=1e-5)
    perfect = sequence_reward(torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 1, 1]]), torch.tensor([1, 2, 8]), "ndcg")
    assert perfect.tolist() == pytest.approx([1, 1, 1])


def test_an_unknown_sequence_reward_is_an_error():
    with pytest.raises(ValueError, match="mrr"):
        sequence_reward(RELEVANCE, torch.tensor([1, 1, 1]), "mrr")


# ---------------------------------------------------------------------------------------------------------------------
# the values of the public Rank-GRPO code
# ---------------------------------------------------------------------------------------------------------------------


@cache
def golden() -> tuple[list[dict], Catalog]:
    cases, catalog = SHARED / "golden" / "reference_rewards.jsonl", SHARED / "data" / "reddit_v2" / "gt_catalog.pkl"
    for path in (cases, catalog):
        if not path.exists():
            pytest.skip(f"no reference values of the public code at {path}")
    return [json.loads(line) for line in cases.read_text(encoding="utf-8").splitlines()], Catalog.load(catalog)


def test_golden_cases_parse_as_in_the_public_code():
    cases, _ = golden()
    assert len(cases) == 200
    for number, case in enumerate(cases):
        assert parse(case["text"]) == [Item(*item) for item in case["parsed"]], number


def test_golden_relevance_and_returns():
    cases, catalog = golden()
    hits = 0
    for number, case in enumerate(cases):
        found = relevance(case["text"], case["ground_truth"], case["seen_titles"], catalog, case["n"],
                          position="parsed")  # fmt: skip
        assert found == case["exp_inf"], number
        assert rank_returns([found], "exp_inf")[0].tolist() == case["exp_inf"], number
        assert rank_returns([found], "log_decay")[0].tolist() == pytest.approx(case["log_decay"], abs=1e-6), number
        hits += sum(found)
    assert hits > 100  # the cases say something
