"""List quality, popularity and scoring, on a catalog small enough to count on one's fingers."""

import json
import math
import random
from typing import ClassVar

import numpy as np
import pytest
from omegaconf import OmegaConf
from support import hydra_compose

from convrec_r1.base.errors import UserError
from convrec_r1.config.files import conf_folder
from convrec_r1.data import movieland
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation, Message
from convrec_r1.evaluate.baselines import build_baselines
from convrec_r1.evaluate.checks import problems
from convrec_r1.evaluate.labels import GROUPS, metric_label, metric_order, metric_style
from convrec_r1.evaluate.metrics import Label, Lists, Novelty, PopularityRank, all_labels, foreign_labels
from convrec_r1.evaluate.metrics.coverage import catalog_coverage
from convrec_r1.evaluate.metrics.diversity import Diversity
from convrec_r1.evaluate.metrics.gini import gini
from convrec_r1.evaluate.metrics.list_quality import list_quality, parsed_lines
from convrec_r1.evaluate.metrics.segment_recall import segment_recall
from convrec_r1.evaluate.popularity import ItemIndex, Popularity
from convrec_r1.evaluate.runner import Evaluator
from convrec_r1.evaluate.scoring import Evaluation, built_in, judge, score
from convrec_r1.lists import Item, format
from convrec_r1.matching import Folded, Normalised
from convrec_r1.rollout.base import Sampling

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
FOLDED = Folded()
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


def test_popularity_counts_an_item_once_a_conversation():
    """The reward knows one truth here, too (`Matching.distinct`)."""
    thrice = [conversation("t", [BETA, Item("BETA", 1992), Item("Beta", None), GAMMA], split="train")]
    assert Popularity.from_conversations(thrice, CATALOG).counts.tolist() == [0, 1, 1, 0, 0, 0]


def test_popularity_baseline_leaves_out_what_was_seen():
    assert POPULARITY.recommend(conversation("c", []), 3) == [BETA, GAMMA, DELTA]
    assert POPULARITY.recommend(conversation("c", [], seen=["gamma"]), 3) == [BETA, DELTA, ALPHA]
    assert len(POPULARITY.recommend(conversation("c", [], seen=["gamma"]), 20)) == 5


def test_without_interactions_there_is_no_baseline():
    unknown = Popularity.from_conversations([], CATALOG)
    with pytest.raises(UserError, match="train split"):
        unknown.recommend(conversation("c", []), 3)
    assert unknown.segment(BETA) is None
    assert np.isnan(PopularityRank().per_list(lists_of([ALPHA, BETA], popularity=unknown))["popularity/mean_rank"])
    assert np.isnan(Novelty().per_list(lists_of([ALPHA, BETA], popularity=unknown))["popularity/novelty"])
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
    assert list_quality(text, ["BETA (1992)"], CATALOG, 6) == {
        "catalog/valid": 4 / 6,
        "format/valid": 4 / 6,
        "format/complete": 1.0,
        "list/length": 6.0,
        "list/duplicates": 2.0,
        "list/seen": 3.0,
    }
    assert list_quality(text, [], CATALOG, 5)["format/complete"] == 0.0


@pytest.mark.parametrize(
    ("line", "valid"),
    [("Alpha (1991)", 1), ("Alpha (1991)\r", 1), ("1. Alpha (1991)", 0), ("**Alpha** (1991)", 0), ("Alpha (1991) - good", 0),
     ("Alpha", 0), ("Here you are:", 0), ("Nowhere (2001)", 1)],
)  # fmt: skip
def test_the_form_asked_for(line, valid):
    assert list_quality(line, [], CATALOG, 1)["format/valid"] == valid


@pytest.mark.parametrize(
    ("line", "valid"),
    [("Go", 1), ("1. Go", 0), ("- **Go**", 0), ("Here are ten games for you:", 0), ("I hope you like them, and have fun!", 0),
     ("Poker", 1), ("Hex (1942)", 1)],
)  # fmt: skip
def test_the_form_asked_for_where_items_have_no_year(line, valid):
    assert list_quality(line, [], Catalog([Item("Go"), Item("Hex", 1942)]), 1)["format/valid"] == valid


def test_an_empty_list_is_worth_nothing():
    assert set(list_quality(" \n\n", ["Beta"], CATALOG, 3).values()) == {0.0}


def lists_of(*lists, catalog=CATALOG, popularity=POPULARITY, match=FOLDED, n=6) -> Lists:
    """Judged lists of these items, without ground truths."""
    asked = [conversation(f"l{at}", []) for at in range(len(lists))]
    texts = [items if isinstance(items, str) else format(items) for items in lists]
    return judge(texts, asked, catalog, popularity, n=n, ks=[n], match=match, position="line")


def test_coverage_and_popularity_rank():
    items = [BETA, Item("beta", 1992), Item("Nowhere", 2001), ALPHA]
    judged = lists_of("Sure!\n" + format(items), [])
    assert judged.covered == [[1, 0], []]
    assert catalog_coverage([judged.covered[0], [1, 2]], 6) == 0.5
    # Popularity finds Heat without a year; the catalog does not list it, so it is not covered.
    mixed = Catalog([Item("Salt"), Item("Heat", 1995)])
    assert lists_of("Heat\nSalt", catalog=mixed, popularity=Popularity(mixed, [1, 1])).covered == [[0]]
    assert catalog_coverage([], 6) == 0.0
    ranks = PopularityRank().per_list(judged)["popularity/mean_rank"]
    assert ranks[0] == 2.5  # ranks 1 and 4
    assert np.isnan(ranks[1])


def test_gini_by_hand():
    assert gini(np.array([2, 2, 2])) == 0.0
    assert gini(np.array([0, 0, 5, 0])) == 0.75  # (C - 1) / C: one item takes all
    # Sorted 0, 1, 3; weights -2, 0, 2: (0 + 0 + 6) / (3 * 4)
    assert gini(np.array([3, 0, 1])) == 0.5
    # Alpha 1, Beta 2, Gamma 1 lists of 6 items; repeats in a list count once. 0 0 0 1 1 2: (1 + 3 + 10) / (6 * 4)
    texts = [format([ALPHA, BETA, BETA]), format([BETA, GAMMA])]
    asked = [conversation("a", [ALPHA]), conversation("b", [ALPHA])]
    summary = score(texts, asked, CATALOG, POPULARITY, n=3, ks=[3]).summary()
    assert summary["catalog/gini"] == pytest.approx(14 / 24)
    nothing = score(["", ""], asked, CATALOG, POPULARITY, n=3, ks=[3]).summary()
    assert "catalog/gini" not in nothing


def test_novelty_by_hand():
    # Of nine interactions Alpha has 1, Beta 4; Zeta has none and counts as 1.
    values = Novelty().per_list(lists_of([BETA, ALPHA], [ZETA, BETA, BETA], [Item("Nowhere", 2001)]))
    novelty = values["popularity/novelty"]
    assert novelty[0] == pytest.approx((math.log2(9 / 4) + math.log2(9)) / 2)
    assert novelty[1] == pytest.approx((math.log2(9) + math.log2(9 / 4)) / 2)
    assert np.isnan(novelty[2])


def test_diversity_by_hand():
    tags = {ALPHA: ["drama", "war"], BETA: ["drama"], GAMMA: ["comedy"], DELTA: ["war", "drama"]}
    catalog = Catalog(CATALOG, metadata=tags)
    lists = lists_of([ALPHA, BETA, GAMMA], [ALPHA, DELTA], [BETA, ZETA], [BETA, BETA], catalog=catalog)
    values = Diversity().per_list(lists)["list/diversity"]
    # Alpha-Beta share 1 of 2 tags, Gamma shares none: (1/2 + 1 + 1) / 3
    assert values[0] == pytest.approx(2.5 / 3)
    assert values[1] == 0.0
    assert np.isnan(values[2:]).all()  # Zeta has no tags; one distinct item
    assert np.isnan(Diversity().per_list(lists_of([ALPHA, BETA]))["list/diversity"]).all()


def test_movieland_has_genres():
    data = movieland.load(n_items=3, sizes={"train": 1, "validation": 1, "test": 1})
    assert data.catalog.metadata.keys() == set(data.catalog)


def test_another_rule_for_the_same_item_reaches_every_metric():
    catalog = Catalog([Item("The Matrix", 1999), ALPHA])
    popularity = Popularity.from_conversations(
        [conversation("t", [Item("Matrix, The", 1999)], split="train")], catalog, Normalised()
    )
    assert popularity.counts.tolist() == [1, 0]
    asked = [conversation("c", [Item("MATRIX", 1999)], seen=["alpha!"])]
    text = ["Matrix, The (1999)\nThe Matrix (1999)\nAlpha (1991)"]
    summary = score(text, asked, catalog, popularity, n=3, ks=[1], match=Normalised()).summary()
    assert summary["recall@1"] == summary["recall_head@1"] == summary["catalog/valid"] == 1.0
    assert summary["list/duplicates"] == summary["list/seen"] == 1.0
    assert summary["catalog/coverage"] == 1.0
    folded = score(text, asked, catalog, popularity, n=3, ks=[1]).summary()
    assert folded["recall@1"] == folded["list/duplicates"] == folded["list/seen"] == 0.0


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
    assert summary["hit_rate@1"] == 0.25
    assert summary["hit_rate@3"] == 0.75
    # c1: (1 + 2/3) / 2; c2: 1/2; c3: (1/2) / 2
    assert summary["ap@3"] == pytest.approx((5 / 6 + 1 / 2 + 1 / 4 + 0) / 4)
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
        *("hit_rate@1", "hit_rate@3", "ap@3", "catalog/gini", "popularity/novelty"),
    }


def test_positions_of_parsed_lines():
    # Without the remark, Zeta stands at 1 and Gamma within the first three
    evaluation = scored(position="parsed")
    assert evaluation.samples[2].hits == (1, 0, 1)
    assert evaluation.samples[2].metrics["format/valid"] == 0.75
    assert evaluation.summary()["recall_mid@3"] == 1.0


def test_options_reach_the_metrics():
    assert scored(match=Folded(0)).samples[2].hits == (0, 0, 0)
    assert scored(metrics=built_in("paper")).samples[0].metrics["ndcg@3"] == pytest.approx(1.5 / 1.6309298, abs=1e-6)
    # One recommendation that counts and two ground truths: paper holds it to one hit, standard to two
    short = [*TEXTS[:2], "Sure!\nZeta (1996)", ""]
    assert scored(short, metrics=built_in("paper")).samples[2].metrics["ndcg@3"] == pytest.approx(0.6309298, abs=1e-6)
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


class Given:
    """A metric that is no subclass, and gives what it is told to."""

    labels: ClassVar = {
        "given@{k}": Label("Given@{k}", "Ranking"),
        "given/rank/{rank}": Label("At {rank}", better="low"),
    }

    def __init__(self, **values):
        self.values = values

    def per_list(self, lists):
        return self.values

    def overall(self, samples, catalog_size):
        return {"given/lists": len(samples), "given/nothing": math.nan}


def test_a_metric_from_outside():
    evaluation = scored(metrics={"own": Given(some=[1, np.nan, 3, np.nan])})
    assert evaluation.summary() == {"some": 2.0, "given/lists": 4.0}
    assert [sample.metrics for sample in evaluation.samples] == [{"some": 1.0}, {}, {"some": 3.0}, {}]


@pytest.mark.parametrize(
    ("values", "message"),
    [([1.0, 2.0], r"metrics.own: some has shape \(2,\)"), ([1, 2, 3, math.inf], "metrics.own: some is infinite")],
)
def test_values_that_cannot_be_right_name_their_metric(values, message):
    with pytest.raises(UserError, match=message):
        scored(metrics={"own": Given(some=values)})


def test_two_metrics_of_one_name_are_refused():
    with pytest.raises(UserError, match=r"metrics\.a and metrics.b both give some"):
        scored(metrics={"a": Given(some=[0] * 4), "b": Given(some=[0] * 4)})


def test_labels_of_a_metric_from_outside_are_plain_values():
    found = foreign_labels({"own": Given(), **built_in()}, 2, [1, 2])
    assert list(found) == ["given@1", "given@2", "given/rank/1", "given/rank/2"]
    assert found["given@2"]["label"] == "Given@2"
    assert found["given/rank/1"]["better"] == "low"
    stored = json.loads(json.dumps(found))
    assert metric_label("given@2", stored) == "Given@2"
    assert metric_label("given@2") == "given@2"
    assert metric_style("given@2", stored).group == "Ranking"


def test_built_in_labels_and_their_order():
    assert metric_label("ndcg@10") == "NDCG@10"
    assert metric_label("rank/3/hit") == "Hits at rank 3"
    assert metric_label("recall_tail@20") == "Recall of tail items, @20"
    assert metric_label("unheard/of") == "unheard/of"
    names = ["rank/10/hit", "rank/2/hit", "catalog/valid", "mrr", "recall@5", "ndcg@10", "ndcg@5", "mine"]
    assert sorted(names, key=metric_order) == [
        "ndcg@5", "ndcg@10", "recall@5", "mrr", "catalog/valid", "mine", "rank/2/hit", "rank/10/hit",
    ]  # fmt: skip


def test_each_name_that_is_given_has_a_label():
    named = all_labels(built_in(), 3, [1, 3])
    assert scored().summary().keys() <= named.keys()
    assert not {label.group for label in named.values()} - set(GROUPS)


def test_the_popularity_baseline_and_one_from_outside():
    class Silent:
        shared = False

        def lists(self, context):
            return context.ask("base")

    chosen = build_baselines(OmegaConf.load(conf_folder() / "baselines" / "default.yaml"), ["popularity"])
    evaluator = Evaluator(
        CATALOG,
        POPULARITY,
        3,
        [1, 3],
        Sampling(temperature=0),
        Folded(),
        "line",
        built_in(),
        {**chosen, "own": Silent()},
    )
    found = evaluator.baseline("popularity", CONVERSATIONS, TRAIN)
    assert found.samples[0].text == format([BETA, GAMMA, DELTA])
    assert evaluator.baseline("own", CONVERSATIONS, TRAIN) is None
    assert evaluator.baseline("own", CONVERSATIONS, TRAIN, lambda which: TEXTS) == scored()
    with pytest.raises(UserError, match=r"baselines\.own: found 1 lists for 4"):
        evaluator.baseline("own", CONVERSATIONS, TRAIN, lambda which: TEXTS[:1])


def test_a_users_metric_and_baseline_join_the_built_in_ones(tmp_path):
    for group, target in (("metrics", "test_scoring.Given"), ("baselines", "test_scoring.Given")):
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(f"own: {{_target_: {target}}}\n")
    where = f"hydra.searchpath=[file://{tmp_path}]"
    composed = hydra_compose(where, "metrics=[default,mine]", "baselines=[default,mine]", "eval.metric=given@5")
    assert composed.metrics.own._target_ == "test_scoring.Given"
    assert list(composed.baselines) == ["popularity", "zero_shot", "sft", "teacher", "own"]
    cfg = OmegaConf.to_object(composed)
    assert problems(cfg.eval, cfg.n, cfg.metrics, cfg.baselines, reinforces=True) == []
    cfg.eval.metric = "given/rank/1"  # better the lower it is
    (wrong,) = problems(cfg.eval, cfg.n, cfg.metrics, cfg.baselines, reinforces=True)
    assert "given@10" in wrong
    cfg.metrics["own"]["_target_"] = "test_scoring.Gone"
    (wrong,) = problems(cfg.eval, cfg.n, cfg.metrics, cfg.baselines, reinforces=True)
    assert wrong.startswith("metrics.own._target_=test_scoring.Gone: cannot be imported")
