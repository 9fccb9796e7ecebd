"""Ranking metrics: values worked out by hand, agreement with trec_eval, and the edge cases that are promised."""

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from convrec_r1.evaluate import ranking_metrics
from convrec_r1.evaluate.metrics.average_precision import average_precision
from convrec_r1.evaluate.metrics.ranking import checked, per_list_metrics

# 1 / log2(rank + 1): 1, 0.6309, 0.5, 0.4307, 0.3869
LIST = [0, 1, 0, 1, 0]


def test_by_hand():
    metrics = ranking_metrics(LIST, 3, [1, 2, 5])

    # DCG@5 = 0.6309 + 0.4307 = 1.0616; three ground truths: IDCG@5 = 1 + 0.6309 + 0.5 = 2.1309
    assert metrics["ndcg@5"] == pytest.approx(1.0616063 / 2.1309298, abs=1e-6)
    # DCG@2 = 0.6309; only two of the three ground truths fit: IDCG@2 = 1.6309
    assert metrics["ndcg@2"] == pytest.approx(0.6309298 / 1.6309298, abs=1e-6)
    assert metrics["ndcg@1"] == 0.0
    assert metrics["recall@1"] == 0.0
    assert metrics["recall@2"] == pytest.approx(1 / 3)
    assert metrics["recall@5"] == pytest.approx(2 / 3)
    assert metrics["mrr"] == 0.5
    assert set(metrics) == {"ndcg@1", "ndcg@2", "ndcg@5", "recall@1", "recall@2", "recall@5", "mrr"}
    assert all(type(value) is float for value in metrics.values())


def test_paper_variant_does_not_hold_a_short_list_to_more_than_it_could_hold():
    # Three ground truths, two recommendations, the first a hit. Paper: the ideal of two places, 1 + 0.6309
    assert ranking_metrics([1, 0], 3, [5], ideal="paper")["ndcg@5"] == pytest.approx(1 / 1.6309298, abs=1e-6)
    # Standard: the ideal of three hits, 1 + 0.6309 + 0.5
    assert ranking_metrics([1, 0], 3, [5])["ndcg@5"] == pytest.approx(1 / 2.1309298, abs=1e-6)
    # Five places of which only one counts: the ideal is 1
    assert ranking_metrics(LIST, 3, [5], ideal="paper", lengths=[1])["ndcg@5"] == pytest.approx(1.0616063, abs=1e-6)
    # A list long enough: the same as standard
    assert ranking_metrics(LIST, 3, [1, 2, 5], ideal="paper") == ranking_metrics(LIST, 3, [1, 2, 5])
    assert ranking_metrics([1, 0], 3, [5], ideal="paper")["recall@5"] == pytest.approx(1 / 3)  # recall knows no ideal


def test_a_short_list_is_followed_by_misses():
    short, padded = ranking_metrics([1, 0], 4, [5, 20]), ranking_metrics([1] + [0] * 19, 4, [5, 20])
    assert short == padded
    assert short["recall@20"] == 0.25


def test_a_hit_past_every_k_counts_for_mrr_alone():
    metrics = ranking_metrics([0, 0, 0, 1], 1, [3])
    assert metrics == {"ndcg@3": 0.0, "recall@3": 0.0, "mrr": 0.25}


@pytest.mark.parametrize("ideal", ["standard", "paper"])
@pytest.mark.parametrize(("relevance", "n_relevant"), [([0, 0, 0], 0), ([1, 0, 0], 0), ([0, 0, 0], 2), ([], 2)])
def test_nothing_to_find_or_nothing_found_is_zero(relevance, n_relevant, ideal):
    assert set(ranking_metrics(relevance, n_relevant, [1, 5], ideal=ideal).values()) == {0.0}


def test_a_perfect_list_is_exactly_one():
    metrics = ranking_metrics([1] * 7 + [0] * 13, 7, [5, 10, 20])
    assert [metrics[f"ndcg@{k}"] for k in (5, 10, 20)] == [1.0, 1.0, 1.0]
    assert metrics["recall@5"] == pytest.approx(5 / 7)


def test_a_batch_gives_the_means_of_its_lists():
    lists, truths = [[1, 0, 0], [0, 0, 1], [0, 0, 0]], [1, 2, 0]
    singles = [ranking_metrics(one, count, [1, 3]) for one, count in zip(lists, truths, strict=True)]
    batch = ranking_metrics(lists, truths, [1, 3])
    assert batch == pytest.approx({name: np.mean([single[name] for single in singles]) for name in batch})
    # (1 + 0 + 0) / 3, and recall@3 (1 + 1/2 + 0) / 3
    assert batch["recall@1"] == pytest.approx(1 / 3)
    assert batch["recall@3"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("relevance", "n_relevant", "ks", "message"),
    [
        ([1, 1], 1, [5], "more hits"),
        ([0.5, 0], 1, [5], "0 or 1"),
        ([1, 0], -1, [5], "whole numbers"),
        ([1, 0], 1.5, [5], "whole numbers"),
        ([1, 0], 1, [0], "at least 1"),
        ([[1, 0], [0, 1]], [1, 1, 1], [5], "one per list"),
        ([[[1]]], 1, [5], "shape"),
        (np.zeros((0, 5)), [], [5], "at least one list"),
    ],
)
def test_input_that_cannot_be_right_is_refused(relevance, n_relevant, ks, message):
    with pytest.raises(ValueError, match=message):
        ranking_metrics(relevance, n_relevant, ks)


def test_an_unknown_ideal_is_refused():
    with pytest.raises(ValueError, match="best"):
        ranking_metrics([1], 1, [1], ideal="best")


def test_agrees_with_trec_eval():
    """200 random lists against pytrec_eval: ndcg_cut, recall, recip_rank and map_cut, list by list."""
    generator = np.random.default_rng(0)
    ks = [1, 2, 3, 5, 10, 15, 20, 30]
    judged, runs, relevance, n_relevant = {}, {}, [], []
    for query in range(200):
        documents = generator.permutation(60)
        # More or fewer truths than ranks, and lists shorter than the largest k.
        truths = set(generator.choice(60, size=generator.integers(1, 30), replace=False).tolist())
        ranked = documents[: generator.integers(1, 31)].tolist()
        judged[str(query)] = {str(document): 1 for document in truths}
        runs[str(query)] = {str(document): float(-rank) for rank, document in enumerate(ranked)}
        hits = [int(document in truths) for document in ranked]
        relevance.append(hits + [0] * (30 - len(hits)))
        n_relevant.append(len(truths))
    cuts = ",".join(map(str, ks))
    measures = {f"ndcg_cut.{cuts}", f"recall.{cuts}", "recip_rank", "map_cut.30"}
    theirs = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(runs)
    ours = per_list_metrics(relevance, n_relevant, ks)
    names = {f"ndcg@{k}": f"ndcg_cut_{k}" for k in ks} | {f"recall@{k}": f"recall_{k}" for k in ks}
    for name, their_name in (names | {"mrr": "recip_rank"}).items():
        expected = [theirs[str(query)][their_name] for query in range(200)]
        np.testing.assert_allclose(ours[name], expected, atol=1e-12, err_msg=name)
    expected = [theirs[str(query)]["map_cut_30"] for query in range(200)]
    np.testing.assert_allclose(average_precision(*checked(relevance, n_relevant)), expected, atol=1e-12)


@given(
    st.lists(st.integers(0, 1), max_size=25), st.integers(0, 5), st.lists(st.integers(1, 30), min_size=1, max_size=4)
)
def test_properties(relevance, missed, ks):
    n_relevant = sum(relevance) + missed
    standard = ranking_metrics(relevance, n_relevant, ks)
    paper = ranking_metrics(relevance, n_relevant, ks, ideal="paper")
    for k in ks:
        assert 0.0 <= standard[f"ndcg@{k}"] <= paper[f"ndcg@{k}"] <= 1.0
        assert 0.0 <= standard[f"recall@{k}"] <= 1.0
    # Moving a hit one rank up never costs anything.
    for at in range(1, len(relevance)):
        if relevance[at] and not relevance[at - 1]:
            moved = [*relevance]
            moved[at - 1], moved[at] = 1, 0
            better = ranking_metrics(moved, n_relevant, ks)
            assert all(better[name] >= standard[name] - 1e-12 for name in standard)


def test_a_list_does_not_depend_on_its_batch():
    generator = np.random.default_rng(1)
    relevance = (generator.random((50, 20)) < 0.2).astype(int)
    n_relevant = relevance.sum(axis=1) + generator.integers(0, 4, 50)
    whole = per_list_metrics(relevance, n_relevant, [5, 20])
    for at in range(50):
        alone = per_list_metrics(relevance[at : at + 1], n_relevant[at : at + 1], [5, 20])
        assert all(alone[name][0] == whole[name][at] for name in whole)
