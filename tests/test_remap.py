"""Remap's scores against the literal formula, and the store that holds them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from support import examples

from convrec_r1.base.errors import UserError
from convrec_r1.distill import scores as scores_module
from convrec_r1.distill.config import RemapConfig
from convrec_r1.distill.remap import RemapInputs, position_weights, remap_block
from convrec_r1.distill.scores import ScoreStore, top_columns

MATCHED = RemapConfig(enabled=False)


def unit(vectors) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def by_the_formula(inputs: RemapInputs, row: int, cfg: RemapConfig) -> np.ndarray:
    """s = p^T (S_item + I_exact) + lambda s_context, matrix by matrix, in float64."""

    def full(vectors):
        return np.asarray(vectors.todense() if sparse.issparse(vectors) else vectors, dtype=np.float64)

    p = np.zeros(len(inputs.matches))
    for rank, item in enumerate(inputs.lists[row], start=1):
        p[item] = 1 / rank**0.5
    exact = np.zeros((len(inputs.matches), inputs.size))
    for item, place in enumerate(inputs.matches):
        if place >= 0:
            exact[item, place] = 1
    if not cfg.enabled:
        return p @ exact
    similarity = full(inputs.teacher) @ full(inputs.catalog).T
    context = full(inputs.conversations)[row] @ full(inputs.catalog).T
    return p @ (similarity + exact) + cfg.context_weight * context


def random_inputs(seed: int, conversations: int, items: int, named: int, width: int, kind: str) -> RemapInputs:
    generator = np.random.default_rng(seed)
    lists = [generator.permutation(named)[: generator.integers(0, min(named, 20) + 1)] for _ in range(conversations)]
    matches = np.where(generator.random(named) < 0.4, generator.integers(0, items, named), -1)
    vectors = []
    for rows in (items, named, conversations):
        values = unit(generator.standard_normal((rows, width)))
        if kind == "sparse":
            values = sparse.csr_array(unit(values * (generator.random(values.shape) < 0.3)))
        vectors.append(values)
    return RemapInputs(lists, matches, items, *vectors)


def test_position_weights_are_one_over_the_root_of_the_rank():
    assert position_weights(4) == pytest.approx([1, 0.70710678, 0.57735027, 0.5])
    assert position_weights(4).dtype == np.float32
    assert position_weights(0).shape == (0,)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_hand_worked_example(kind):
    """Two dimensions. Teacher's items: east (catalog item 0), and one at (0.6, 0.8) that the catalog lacks."""
    vectors = [
        unit([[1, 0], [0, 1], [-1, 0]]),
        unit([[1, 0], [0.6, 0.8]]),
        unit([[0, 1]]),
    ]
    if kind == "sparse":
        vectors = [sparse.csr_array(v) for v in vectors]
    inputs = RemapInputs([np.array([1, 0])], np.array([0, -1]), 3, *vectors)
    # First (0.6, 0.8) with weight 1, then east with weight 1/sqrt(2) = 0.7071; context north, lambda 0.5.
    expected = [
        0.6 + 0.70710678 * (1 + 1) + 0.5 * 0,
        0.8 + 0.70710678 * 0 + 0.5 * 1,
        -0.6 - 0.70710678 + 0.5 * 0,
    ]
    found = remap_block(inputs, range(1), RemapConfig(context_weight=0.5))
    assert found.dtype == np.float32
    assert found[0] == pytest.approx(expected, abs=1e-6)
    assert remap_block(inputs, range(1), MATCHED)[0] == pytest.approx([0.70710678, 0, 0])


@settings(max_examples=examples(60))
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 12), st.integers(1, 12), st.integers(1, 8),
    st.sampled_from(["dense", "sparse"]), st.sampled_from([0.0, 0.3, 1.0, 2.5]), st.booleans(),
)  # fmt: skip
def test_scores_equal_the_literal_formula(seed, conversations, items, named, width, kind, weight, enabled):
    inputs = random_inputs(seed, conversations, items, named, width, kind)
    cfg = RemapConfig(enabled=enabled, context_weight=weight)
    found = remap_block(inputs, range(conversations), cfg)
    for row in range(conversations):
        assert found[row] == pytest.approx(by_the_formula(inputs, row, cfg), abs=2e-5)


def test_teachers_items_that_match_the_same_catalog_item_both_count():
    inputs = RemapInputs([np.array([0, 1, 2])], np.array([1, 0, 1]), 2)
    assert remap_block(inputs, range(1), MATCHED)[0] == pytest.approx([0.70710678, 1 + 0.57735027])


def test_an_empty_list_is_scored_by_its_context_alone():
    inputs = RemapInputs(
        [np.array([], dtype=np.int64), np.array([0])], np.array([-1]), 2,
        unit([[1, 0], [0, 1]]), unit([[1, 1]]), unit([[0, 1], [0, 1]]),
    )  # fmt: skip
    found = remap_block(inputs, range(2), RemapConfig())
    assert found[0] == pytest.approx([0, 1])
    assert found[1] == pytest.approx([0.70710678, 1.70710678])
    assert remap_block(inputs, range(2), MATCHED).tolist() == [[0, 0], [0, 0]]


def test_negative_similarity_stays_and_an_unknown_text_says_nothing():
    inputs = RemapInputs(
        [np.array([0, 1])], np.array([-1, -1]), 2,
        unit([[1, 0], [0, 0]]), unit([[-1, 0], [0, 0]]), unit([[0, 0]]),
    )  # fmt: skip
    assert remap_block(inputs, range(1), RemapConfig())[0].tolist() == [-1, 0]


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_block_scores_its_own_conversations(kind):
    inputs = random_inputs(5, 40, 301, 200, 96, kind)
    whole = remap_block(inputs, range(40), RemapConfig())
    np.testing.assert_allclose(remap_block(inputs, range(7, 20), RemapConfig()), whole[7:20], atol=1e-5)
    assert remap_block(inputs, range(0), RemapConfig()).shape == (0, 301)


def test_inputs_that_contradict_each_other_are_refused():
    vectors = unit([[1, 0]])
    with pytest.raises(ValueError, match="matches must lie in"):
        RemapInputs([np.array([0])], np.array([1]), 1)
    with pytest.raises(ValueError, match="of one kind"):
        RemapInputs([np.array([0])], np.array([0]), 1, vectors, vectors)
    with pytest.raises(ValueError, match="of one kind"):
        RemapInputs([np.array([0])], np.array([0]), 1, vectors, vectors, sparse.csr_array(vectors))
    with pytest.raises(ValueError, match="expected"):
        RemapInputs([np.array([0])], np.array([0]), 1, vectors, vectors, unit([[1, 0], [0, 1]]))
    with pytest.raises(ValueError, match="needs the vectors"):
        remap_block(RemapInputs([np.array([0])], np.array([0]), 1), range(1), RemapConfig())


# The store


def test_what_is_written_is_read_and_the_file_is_gone_afterwards(tmp_path):
    values = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    with ScoreStore(tmp_path / "new", 5, 3) as store:
        assert store.read(range(5)).tolist() == [[0, 0, 0]] * 5
        store.write(range(2, 5), values[2:])
        store.write([1, 0], values[[1, 0]])
        (file,) = (tmp_path / "new").iterdir()
        assert file.stat().st_size == 4 * 5 * 3
        assert np.array_equal(store.read(range(5)), values)
        assert np.array_equal(store.read(np.array([4, 0, 4])), values[[4, 0, 4]])
        assert store.read([]).shape == (0, 3)
        store.read(range(5))[:] = 7  # a copy
        assert np.array_equal(store.read(range(5)), values)
    assert not list((tmp_path / "new").iterdir())


def test_the_file_is_gone_after_a_failure_too(tmp_path):
    def fail(store: ScoreStore) -> None:
        store.write(range(1), np.ones((1, 3), dtype=np.float32))
        raise RuntimeError("something else went wrong")

    with pytest.raises(RuntimeError, match="something else"), ScoreStore(tmp_path, 2, 3) as store:
        fail(store)
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError) as error:
        ScoreStore(tmp_path, 2**40, 1024)
    assert "4194304.0 GiB on disk" in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "outputs=FOLDER" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_room_is_taken_at_once(tmp_path):
    with ScoreStore(tmp_path, 1000, 100):
        (file,) = tmp_path.iterdir()
        assert file.stat().st_blocks * 512 >= 4 * 1000 * 100


def test_scores_that_are_no_numbers_and_places_that_are_none_are_refused(tmp_path):
    with ScoreStore(tmp_path, 2, 2) as store:
        for value in (np.nan, np.inf):
            with pytest.raises(ValueError, match="finite"):
                store.write(range(1), np.array([[0, value]], dtype=np.float32))
            with pytest.raises(ValueError, match="finite"):
                store.add(np.array([0]), np.array([0]), np.array([value]))
        with pytest.raises(IndexError):
            store.read([1, 2])
        for row, column in ((2, 0), (0, 2)):
            with pytest.raises(IndexError):
                store.add(np.array([row]), np.array([column]), np.array([1.0]))


def test_additions_go_where_they_belong_and_repeated_places_get_them_all(tmp_path, monkeypatch):
    monkeypatch.setattr(scores_module, "_AT_A_TIME", 6)  # blocks of two rows
    with ScoreStore(tmp_path, 5, 3) as store:
        store.write(range(5), np.ones((5, 3), dtype=np.float32))
        store.add(np.array([4, 0, 4, 1]), np.array([2, 0, 2, 1]), np.array([0.5, 2, 0.25, -1]))
        expected = np.ones((5, 3))
        expected[4, 2], expected[0, 0], expected[1, 1] = 1.75, 3, 0
        assert store.read(range(5)).tolist() == expected.tolist()
        store.add(np.array([], dtype=np.int64), np.array([], dtype=np.int64), np.array([]))
        assert store.read(range(5)).tolist() == expected.tolist()


def test_ties_stand_in_catalog_order_and_what_is_left_out_is_never_chosen():
    scores = np.array(
        [
            [1, 3, 3, 3, 2],
            [0, 0, -0.0, 0, 0],
            [-np.inf, 5, -np.inf, -np.inf, -np.inf],
            [-np.inf] * 5,
        ],
        dtype=np.float32,
    )
    assert top_columns(scores, 2).tolist() == [[1, 2], [0, 1], [1, -1], [-1, -1]]
    assert top_columns(scores, 5).tolist() == [[1, 2, 3, 4, 0], [0, 1, 2, 3, 4], [1, -1, -1, -1, -1], [-1] * 5]
    assert top_columns(scores, 7)[0].tolist() == [1, 2, 3, 4, 0, -1, -1]
    assert top_columns(scores, 0).shape == (4, 0)
    assert top_columns(scores[:0], 3).shape == (0, 3)


@settings(max_examples=examples(60))
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))
def test_the_best_are_those_of_a_stable_sort_in_blocks_of_any_size(tmp_path_factory, seed, rows, columns, k):
    generator = np.random.default_rng(seed)
    values = generator.integers(-2, 3, (rows, columns)).astype(np.float32)  # many ties
    exclude = [generator.permutation(columns)[: generator.integers(0, columns + 1)] for _ in range(rows)]
    only = [generator.permutation(columns)[: generator.integers(0, columns + 1)] for _ in range(rows)]
    scale, shift = generator.integers(0, 3, columns) / 2, generator.integers(-1, 2, columns)
    for kept, changed in ((None, False), (only, True)):
        expected = np.full((rows, k), -1)
        for row in range(rows):
            final = values[row] * scale + shift if changed else values[row]
            order = [c for c in np.argsort(-final, kind="stable") if c not in exclude[row]]
            order = [c for c in order if kept is None or c in kept[row]][:k]
            expected[row, : len(order)] = order
        options = {"scale": scale, "shift": shift} if changed else {}
        with pytest.MonkeyPatch.context() as patch:
            for size in (1, 3 * columns, 2**23):
                patch.setattr(scores_module, "_AT_A_TIME", size)
                with ScoreStore(tmp_path_factory.getbasetemp(), rows, columns) as store:
                    store.write(range(rows), values)
                    assert store.top(k, exclude=exclude, only=kept, **options).tolist() == expected.tolist()
