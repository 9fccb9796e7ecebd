"""Adjust: the likelihood by hand and by differences, biases that were planted, strengths, and memory that decides nothing."""

import numpy as np
import pytest
import torch

from convrec_r1.base.errors import UserError
from convrec_r1.distill import adjust
from convrec_r1.distill.adjust import cross_validate, fit_adjust
from convrec_r1.distill.scores import ScoreStore


@pytest.fixture
def stored(tmp_path):
    stores = []

    def make(scores) -> ScoreStore:
        scores = np.asarray(scores, dtype=np.float32)
        stores.append(ScoreStore(tmp_path, *scores.shape))
        stores[-1].write(range(len(scores)), scores)
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def wanting(*places) -> list[np.ndarray]:
    return [np.array(wanted, dtype=np.int64) for wanted in places]


def objective(scores, truths, w, b, strength) -> float:
    """The formula of design section 8, term by term."""
    total = 0.0
    for s, wanted in zip(np.asarray(scores, dtype=np.float64), truths, strict=True):
        z = w * s + b
        for t in wanted:
            total -= z[t] - np.log(np.exp(z).sum())
    return total + strength * (((w - 1) ** 2).sum() + (b**2).sum())


def nll_and_gradient(read, pairs, w, b):
    by_w, by_b = (torch.zeros(len(w), dtype=torch.float64) for _ in range(2))
    nll = adjust._Pairs(read, pairs).nll(w, b, (by_w, by_b)).sum()
    return nll, torch.cat([by_w, by_b]).numpy()


def test_nll_and_gradient_on_one_conversation_by_hand(stored):
    """Scores ln 2 and 0, the second item is wanted: p = (2/3, 1/3), so -log p = ln 3; dz = (2/3, -2/3); dw = s dz."""
    store = stored([[np.log(2), 0]])
    pairs = adjust.Wanted.of(np.arange(1), wanting([1]), 2)
    nll, gradient = nll_and_gradient(store.read, pairs, np.ones(2), np.zeros(2))
    assert nll == pytest.approx(np.log(3), rel=1e-6)
    np.testing.assert_allclose(gradient, [np.log(2) * 2 / 3, 0, 2 / 3, -2 / 3], rtol=1e-6)


def test_the_gradient_is_that_of_the_formula():
    """By central differences; several ground truths, one of them twice over, and conversations without any."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(7, 5)).astype(np.float32)
    truths = wanting([0], [1, 2], [], [4], [3, 3], [0, 1, 2, 3, 4], [])
    w, b = rng.normal(1, 0.3, 5), rng.normal(0, 0.3, 5)
    pairs = adjust.Wanted.of(np.arange(7), truths, 5)
    nll, gradient = nll_and_gradient(scores.__getitem__, pairs, w, b)
    assert nll == pytest.approx(objective(scores, truths, w, b, 0), rel=1e-6)
    x, step = np.concatenate([w, b]), 1e-5
    for at in range(10):
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        difference = objective(scores, truths, up[:5], up[5:], 0) - objective(scores, truths, down[:5], down[5:], 0)
        assert gradient[at] == pytest.approx(difference / (2 * step), abs=2e-5)
    np.testing.assert_allclose(adjust._Pairs(scores.__getitem__, pairs).nll(w, b).sum(), nll, rtol=1e-6)


def test_two_items_without_scores_have_the_biases_that_calculus_says(stored):
    """With s = 0 only b matters, and by symmetry b = (x, -x). Of 100 conversations 80 want the first item:

    100 sigmoid(2x) - 80 + 2 strength x = 0  (the derivative by b_0), solved here by bisection.
    """
    strength = 0.5
    low, high = 0.0, 3.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if 100 / (1 + np.exp(-2 * middle)) - 80 + 2 * strength * middle < 0 else (low, middle)
        )
    found = fit_adjust(stored(np.zeros((100, 2))), range(100), wanting(*[[0]] * 80, *[[1]] * 20), strength)
    np.testing.assert_allclose(found.b, [low, -low], atol=1e-5)
    np.testing.assert_allclose(found.w, 1, atol=1e-6)
    share = 1 / (1 + np.exp(-2 * low))
    assert found.nll == pytest.approx(-(0.8 * np.log(share) + 0.2 * np.log(1 - share)), abs=1e-5)
    assert found.converged


def test_planted_biases_are_recovered(stored):
    """Ground truths drawn from softmax(w* s + b*): the more of them, the nearer; and better than leaving scores as they are."""
    rng = np.random.default_rng(1)
    items = 12
    w, b = rng.uniform(0.5, 2.0, items), rng.normal(0, 1.0, items)
    b -= b.mean()  # a constant in b changes nothing

    def sample(size: int):
        scores = rng.normal(size=(size, items)).astype(np.float32)
        noisy = w * scores + b + rng.gumbel(size=scores.shape)  # whose argmax is a draw from the softmax
        return scores, wanting(*noisy.argmax(axis=1)[:, None])

    errors = []
    for size in (500, 20_000):
        scores, truths = sample(size)
        found = fit_adjust(stored(scores), range(size), truths, 0.01)
        errors.append((np.abs(found.w - w).mean(), np.abs(found.b - found.b.mean() - b).mean()))
        assert found.converged
    assert errors[1][0] < 0.04
    assert errors[1][1] < 0.04
    assert np.all(np.array(errors[1]) < np.array(errors[0]) / 3), "forty times the data: about a sixth of the error"
    scores, truths = sample(5000)
    pairs = adjust.Wanted.of(np.arange(5000), truths, items)
    left_out = adjust._Pairs(scores.__getitem__, pairs).nll(found.w, found.b).mean()
    assert left_out < adjust._Pairs(scores.__getitem__, pairs).nll(np.ones(items), np.zeros(items)).mean() - 0.3


def test_the_stronger_the_regulariser_the_less_changes(stored):
    rng = np.random.default_rng(2)
    store, truths = stored(rng.normal(size=(200, 6))), wanting(*rng.integers(0, 3, (200, 1)))
    away = []
    for strength in (0.01, 1, 100, 1e6):
        found = fit_adjust(store, range(200), truths, strength)
        away.append(((found.w - 1) ** 2).sum() + (found.b**2).sum())
    assert away == sorted(away, reverse=True)
    assert away[-1] < 1e-6


def test_only_the_rows_that_are_given_count(stored):
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(60, 4)).astype(np.float32)
    truths = wanting(*rng.integers(0, 4, (60, 1)))
    part = fit_adjust(stored(scores[20:50]), range(30), truths[20:50], 0.1)
    found = fit_adjust(stored(scores), range(20, 50), truths[20:50], 0.1)
    np.testing.assert_array_equal(found.b, part.b)


def test_memory_decides_nothing(stored, monkeypatch):
    rng = np.random.default_rng(4)
    scores, truths = rng.normal(size=(300, 7)), wanting(*rng.integers(0, 7, (300, 2)))
    whole = fit_adjust(stored(scores), range(300), truths, 0.1)
    monkeypatch.setattr(adjust, "_AT_A_TIME", 7 * 13)
    parts = fit_adjust(stored(scores), range(300), truths, 0.1)
    np.testing.assert_allclose(parts.w, whole.w, atol=1e-7)
    np.testing.assert_allclose(parts.b, whole.b, atol=1e-7)
    monkeypatch.setattr(adjust, "_PRECISE", 0)
    rounded = fit_adjust(stored(scores), range(300), truths, 0.1)
    np.testing.assert_allclose(rounded.w, whole.w, atol=2e-3)
    np.testing.assert_allclose(rounded.b, whole.b, atol=2e-3)


def test_without_ground_truths_scores_stay_as_they_are(stored):
    found = fit_adjust(stored(np.ones((3, 4))), range(3), wanting([], [], []), 0.01)
    np.testing.assert_array_equal(found.w, 1)
    np.testing.assert_array_equal(found.b, 0)
    assert np.isnan(found.nll)


def validate(store, truths, strengths, clusters=None, **changes):
    size = len(truths)
    settings = {
        "folds": 5,
        "clusters": clusters or [str(row) for row in range(size)],
        "cv_size": 5000,
        "seed": 0,
    } | changes
    return cross_validate(store, range(size), truths, strengths, **settings)


def test_cross_validation_holds_back_where_little_is_known_and_lets_go_where_much_is(stored):
    rng = np.random.default_rng(5)
    few = validate(stored(rng.normal(size=(40, 30))), wanting(*rng.integers(0, 30, (40, 1))), [0.001, 100.0])
    assert few.best == 100.0, "what users want is noise here: to learn it does harm"
    biased = wanting(*(rng.random((2000, 1)) < 0.9).astype(int))
    many = validate(stored(rng.normal(size=(2000, 5))), biased, [100_000.0, 0.01])
    assert many.best == 0.01
    assert [row.strength for row in many.table] == [100_000.0, 0.01]
    assert many.table[1].nll < many.table[0].nll - 0.5
    assert 0 < many.table[1].se < 0.1


def test_a_user_is_never_predicted_from_the_same_user(stored):
    """Each user wants one item, again and again, and no item is wanted by two: nothing known of others helps, and what is
    learned from them misleads."""
    users = np.repeat(np.arange(20), 5)
    store, truths = stored(np.zeros((100, 20))), wanting(*users[:, None])
    apart = validate(store, truths, [0.1])
    together = validate(store, truths, [0.1], clusters=[str(user) for user in users])
    assert together.table[0].nll > apart.table[0].nll + 1


def test_cross_validation_is_seeded_and_cut_by_whole_users(stored):
    rng = np.random.default_rng(6)
    store, truths = stored(rng.normal(size=(400, 5))), wanting(*rng.integers(0, 5, (400, 1)))
    clusters = [str(row // 4) for row in range(400)]
    few = {"clusters": clusters, "cv_size": 40}
    assert validate(store, truths, [1.0], **few) == validate(store, truths, [1.0], **few)
    assert validate(store, truths, [1.0], **few) != validate(store, truths, [1.0], **few, seed=1)
    assert (
        validate(store, truths, [1.0], **few).table[0].se
        > validate(store, truths, [1.0], clusters=clusters).table[0].se
    )


def test_too_few_users_to_cross_validate(stored):
    with pytest.raises(UserError, match=r"distill\.adjust\.folds=5.*have 2\. Give distill\.adjust\.strength"):
        validate(stored(np.zeros((4, 3))), wanting([0], [1], [], []), [0.1])


def test_the_standard_error_by_hand():
    """Three conversations of two users: nll 2 and 4 of the first (one ground truth each), 3 of the other (one).

    mean = 9/3 = 3; deviations 6 - 3*2 = 0 and 3 - 3 = 0: se 0. With 4, 4 and 1: mean 3, deviations 2 and -2,
    se = sqrt(2/1 * 8) / 3 = 4/3.
    """
    clusters, counts = np.array([0, 0, 1]), np.array([1, 1, 1])
    assert adjust._mean(np.array([2.0, 4.0, 3.0]), counts, clusters) == pytest.approx((3, 0))
    assert adjust._mean(np.array([4.0, 4.0, 1.0]), counts, clusters) == pytest.approx((3, 4 / 3))
