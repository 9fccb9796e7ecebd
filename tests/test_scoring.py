"""List quality, popularity and scoring, on a catalog small enough to count on one's fingers."""

import random

import pytest

from convrec_r1.base.errors import UserError
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation, Message
from convrec_r1.evaluate.list_quality import (
    catalog_coverage,
    catalog_indices,
    list_quality,
    mean_popularity_rank,
    parsed_lines,
    segment_recall,
)
from convrec_r1.evaluate.popularity import ItemIndex, Popularity
from convrec_r1.evaluate.scoring import Evaluation, score
from convrec_r1.lists import Item, format

ALPHA, BETA, GAMMA = Item("Alpha", 1991), Item("Beta", 1992), Item("Gamma", 1993)
DELTA, EPSILON, ZETA = Item("Delta", 1994), Item("Epsilon", 1995), Item("Zeta", 1996)
CATALOG = Catalog([ALPHA, BETA, GAMMA, DELTA, EPSILON, ZETA])


def conversation(name, truths, *, seen=(), split="test", cluster=None):
    return Conversation(
        id=name,
        cluster=cluster or name,
        messages=(Message("user", "What should I watch?"),),
        ground_truth=tuple(truths),
        seen=tuple(seen),
        split=split,
    )


# Alpha 1, Beta 4, Gamma 2, Delta 2 interactions; Epsilon and Zeta none. Nine in all, a third of them is three.
TRAIN = [
    conversation("t1", [BETA, GAMMA, Item("Elsewhere", 2000)], split="train"),
    conversation("t2", [Item("beta", 1992), DELTA], split="train"),
    conversation("t3", [BETA, GAMMA, ALPHA], split="train"),
    conversation("t4", [BETA, DELTA], split="train"),
]
POPULARITY = Popularity.from_conversations(TRAIN, CATALOG)


def test_popularity_by_hand():
    assert POPULARITY.counts.tolist() == [1, 4, 2, 2, 0, 0]
    assert POPULARITY.total == 9
    # Beta 4, then Gamma and Delta with 2 in catalog order, Alpha 1, the two unasked in catalog order
    assert POPULARITY.ranks.tolist() == [4, 1, 2, 3, 5, 6]
    # Before Beta 0 < 3: head. Before Gamma 4 < 6: mid. Before Delta 6, not < 6: tail, and all after it.
    segments = [POPULARITY.segment(item) for item in CATALOG]
    assert segments == ["tail", "head", "mid", "tail", "tail", "tail"]
    assert POPULARITY.rank(Item("  BETA ", 1992)) == 1
    assert POPULARITY.rank(Item("Beta", 1900)) is None
    assert POPULARITY.segment(Item("Elsewhere", 2000)) is None


def test_popularity_ignores_other_splits():
    leaky = [*TRAIN, conversation("x", [ZETA] * 50)]
    assert Popularity.from_conversations(leaky, CATALOG).counts.tolist() == POPULARITY.counts.tolist()


def test_popularity_baseline_leaves_out_what_was_seen():
    assert POPULARITY.recommend(conversation("c", []), 3) == [BETA, GAMMA, DELTA]
    assert POPULARITY.recommend(conversation("c", [], seen=["gamma"]), 3) == [BETA, DELTA, ALPHA]
    assert len(POPULARITY.recommend(conversation("c", [], seen=["gamma"]), 20)) == 5


def test_without_interactions_there_is_no_baseline():
    unknown = Popularity.from_conversations([], CATALOG)
    with pytest.raises(UserError, match="train split"):
        unknown.recommend(conversation("c", []), 3)
    assert unknown.segment(BETA) is None
    assert mean_popularity_rank([0, 1], unknown) is None
    metrics = score([format([BETA])], [conversation("c", [BETA])], CATALOG, unknown, n=3, ks=[3]).summary()
    assert not any(name.startswith(("popularity", "recall_")) for name in metrics)


def test_item_index_without_years():
    index = ItemIndex([Item("Salt"), Item("Heat", 1995), Item("It", 1990), Item("It", 2017)])
    assert index.find(Item("salt", 2010)) == 0  # the catalog has no year to disagree
    assert index.find(Item("Heat")) == 1
    assert index.find(Item("Heat", 1986)) is None
    assert index.find(Item("It")) is None  # two of that name
    assert index.find(Item("It", 2017)) == 3


def test_list_quality_by_hand():
    text = "Here you are:\n1. Alpha (1991)\n\nBeta (1992)\nbeta (1992)\nNowhere (2001)\nBeta (1992)\n"
    items = parsed_lines(text, CATALOG)
    assert items == [None, ALPHA, BETA, Item("beta", 1992), Item("Nowhere", 2001), BETA]
    assert list_quality(items, ["BETA"], CATALOG, 6) == {
        "catalog/valid": 4 / 6,
        "format/valid": 5 / 6,
        "format/complete": 1.0,
        "list/length": 6.0,
        "list/duplicates": 2.0,
        "list/seen": 3.0,
    }
    assert list_quality(items, [], CATALOG, 5)["format/complete"] == 0.0


def test_an_empty_list_is_worth_nothing():
    assert set(list_quality(parsed_lines(" \n\n", CATALOG), ["Beta"], CATALOG, 3).values()) == {0.0}


def test_coverage_and_popularity_rank():
    mine = catalog_indices([BETA, None, Item("beta", 1992), Item("Nowhere", 2001), ALPHA], CATALOG, POPULARITY)
    assert mine == [1, 0]
    assert catalog_coverage([mine, [1, 2]], 6) == 0.5
    # Popularity knows which item Heat without a year must be, the catalog does not list it: not covered.
    mixed = Catalog([Item("Salt"), Item("Heat", 1995)])
    assert catalog_indices([Item("Heat"), Item("Salt")], mixed, Popularity(mixed, [1, 1])) == [0]
    assert catalog_coverage([], 6) == 0.0
    assert mean_popularity_rank(mine, POPULARITY) == 2.5  # ranks 1 and 4
    assert mean_popularity_rank([], POPULARITY) is None


def test_segment_recall_by_hand():
    truths = [BETA, DELTA, ALPHA, Item("Elsewhere", 2000)]  # head, tail, tail, none
    assert segment_recall([DELTA, ZETA, BETA], [1, 0, 1], truths, 3, POPULARITY) == {
        "recall_head@3": 1.0,
        "recall_tail@3": 0.5,
    }
    assert segment_recall([DELTA, ZETA, BETA], [1, 0, 1], truths, 2, POPULARITY)["recall_head@2"] == 0.0


def test_segment_recall_gives_a_hit_to_the_truth_nearest_in_year():
    old, new = Item("It", 1990), Item("It", 1992)
    popularity = Popularity([old, new, ALPHA, BETA], [9, 0, 0, 0])  # old is head, new is tail
    assert segment_recall([Item("It", 1992)], [1], [old, new], 1, popularity) == {
        "recall_head@1": 0.0,
        "recall_tail@1": 1.0,
    }
    # 1991 is as near to both and takes the first; 1990 then gets the one that is left.
    both = segment_recall([Item("It", 1991), Item("It", 1990)], [1, 1], [old, new], 2, popularity)
    assert both == {"recall_head@2": 1.0, "recall_tail@2": 1.0}


# Four conversations, two of them one cluster, n = 3.
CONVERSATIONS = [
    conversation("c1", [BETA, DELTA], cluster="x"),
    conversation("c2", [ALPHA], cluster="x", seen=["Gamma"]),
    conversation("c3", [GAMMA, Item("Zeta", 1998)]),
    conversation("c4", [EPSILON]),
]
TEXTS = [
    "Beta (1992)\nAlpha (1991)\nDelta (1994)",  # hits at 1 and 3
    "Gamma (1993)\nAlpha (1991)",  # seen, then a hit at 2; too short
    "Sure!\nZeta (1996)\nZeta (1996)\nGamma (1993)",  # rank 1 is no item; hit at 2; Gamma comes too late
    "",
]


def scored(texts=TEXTS, conversations=CONVERSATIONS, **options):
    return score(texts, conversations, CATALOG, POPULARITY, n=3, ks=[1, 3], **options)


def test_scores_by_hand():
    evaluation = scored()
    assert [sample.hits for sample in evaluation.samples] == [(1, 0, 1), (0, 1, 0), (0, 1, 0), (0, 0, 0)]
    assert [sample.n_relevant for sample in evaluation.samples] == [2, 1, 2, 1]
    summary = evaluation.summary()
    assert summary["recall@1"] == pytest.approx((1 / 2 + 0 + 0 + 0) / 4)
    assert summary["recall@3"] == pytest.approx((1 + 1 + 1 / 2 + 0) / 4)
    # c1: (1 + .5) / 1.6309; c2: .6309 / 1; c3: .6309 / 1.6309
    assert summary["ndcg@3"] == pytest.approx((1.5 / 1.6309298 + 0.6309298 + 0.6309298 / 1.6309298) / 4, abs=1e-6)
    assert summary["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 2 + 0) / 4)
    assert [summary[f"rank/{k}/hit"] for k in (1, 2, 3)] == [0.25, 0.5, 0.25]
    assert summary["catalog/valid"] == pytest.approx((1 + 1 + 3 / 4 + 0) / 4)
    assert summary["format/valid"] == pytest.approx((1 + 1 + 3 / 4 + 0) / 4)
    assert summary["format/complete"] == 0.25
    assert summary["list/length"] == pytest.approx((3 + 2 + 4 + 0) / 4)
    assert summary["list/duplicates"] == 0.25
    assert summary["list/seen"] == 0.25
    # Within the first three ranks: Beta, Alpha, Delta, Gamma, Zeta of six
    assert summary["catalog/coverage"] == pytest.approx(5 / 6)
    # c1: ranks 1, 4, 3; c2: 2, 4; c3: 6; c4 has no item and no say
    assert summary["popularity/mean_rank"] == pytest.approx((8 / 3 + 3 + 6) / 3)
    assert summary["recall_head@3"] == 1.0  # c1's Beta, the only popular ground truth
    assert summary["recall_mid@3"] == 0.0  # c3's Gamma
    # c1's Delta, c2's Alpha, c4's Epsilon; c3's Zeta is in the catalog only with another year
    assert summary["recall_tail@3"] == pytest.approx((1 + 1 + 0) / 3)
    assert summary.keys() == {
        *("ndcg@1", "ndcg@3", "recall@1", "recall@3", "mrr", "rank/1/hit", "rank/2/hit", "rank/3/hit"),
        *("catalog/valid", "catalog/coverage", "format/valid", "format/complete", "popularity/mean_rank"),
        *("list/length", "list/duplicates", "list/seen", "recall_head@3", "recall_mid@3", "recall_tail@3"),
    }


def test_positions_of_parsed_lines():
    # Without the remark, Zeta stands at 1 and Gamma within the first three
    evaluation = scored(position="parsed")
    assert evaluation.samples[2].hits == (1, 0, 1)
    assert evaluation.samples[2].metrics["format/valid"] == 0.75
    assert evaluation.summary()["recall_mid@3"] == 1.0


def test_options_reach_the_metrics():
    assert scored(year_tolerance=0).samples[2].hits == (0, 0, 0)
    assert scored(ideal="paper").samples[0].metrics["ndcg@3"] == pytest.approx(1.5 / 1.6309298, abs=1e-6)
    # One recommendation that counts and two ground truths: paper holds it to one hit, standard to two
    short = [*TEXTS[:2], "Sure!\nZeta (1996)", ""]
    assert scored(short, ideal="paper").samples[2].metrics["ndcg@3"] == pytest.approx(0.6309298, abs=1e-6)
    assert scored(short).samples[2].metrics["ndcg@3"] == pytest.approx(0.6309298 / 1.6309298, abs=1e-6)


def test_order_and_batches_change_nothing():
    generator = random.Random(0)
    items = [*CATALOG, Item("Nowhere", 2001)]
    conversations = [
        conversation(f"r{k}", generator.sample(list(CATALOG), generator.randint(0, 4)), seen=["Epsilon"])
        for k in range(60)
    ]
    texts = [format(generator.choices(items, k=generator.randint(0, 5))) for _ in conversations]
    whole = scored(texts, conversations)
    order = generator.sample(range(60), 60)
    shuffled = scored([texts[k] for k in order], [conversations[k] for k in order])
    assert shuffled.summary() == whole.summary()
    assert list(shuffled.summary()) == list(whole.summary())
    parts = [scored(texts[at : at + 7], conversations[at : at + 7]) for at in range(0, 60, 7)]
    assert Evaluation.concat(parts) == whole


def test_jsonl_round_trip(tmp_path):
    evaluation = scored(["Beta (1992)\nAmélie “2” (2001)\u2028\r\nX", *TEXTS[1:]])
    path = tmp_path / "eval" / "test.jsonl"
    evaluation.write_jsonl(path)
    assert Evaluation.read_jsonl(path) == evaluation
    assert Evaluation.read_jsonl(path).summary() == evaluation.summary()
    assert [file.name for file in path.parent.iterdir()] == ["test.jsonl"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "test.jsonl"
    evaluation = scored()
    evaluation.write_jsonl(path)
    before = path.read_bytes()
    evaluation.samples[-1].metrics["mrr"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        evaluation.write_jsonl(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["test.jsonl"]


@pytest.mark.parametrize("line", ["{}", "[1]", "{", '{"catalog_size": 3, "hits": [], "covered": [], "id": "a"}'])
def test_a_broken_record_is_named(tmp_path, line):
    path = tmp_path / "test.jsonl"
    scored().write_jsonl(path)
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"test\.jsonl, line 5"):
        Evaluation.read_jsonl(path)


def test_values_for_the_statistics():
    values, clusters, ids = scored().values("recall_tail@3")
    assert values.tolist() == [1.0, 1.0, 0.0]
    assert clusters == ["x", "x", "c4"]
    assert ids == ["c1", "c2", "c4"]


def test_an_evaluation_without_samples():
    empty = scored([], [])
    assert len(empty) == 0
    assert empty.summary() == {}


def test_texts_and_conversations_must_match():
    with pytest.raises(ValueError, match="one text per conversation"):
        scored(TEXTS[:2])
