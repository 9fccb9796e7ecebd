"""Importance weights of the trainer against the sampler: by hand, and against a slow reference."""

import math

import pytest
import reference_objective as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples
from torch import Tensor

from convrec_r1.rl import importance_weights

KINDS = ("none", "truncate", "mask")
UNITS = ("token", "rank", "sequence")
COMBINATIONS = [(kind, unit) for kind in KINDS for unit in UNITS]
RATIO, ACTIVE = "sampling/importance_sampling_ratio", "sampling/correction_active"

# ---------------------------------------------------------------------------------------------------------------------
# (a) an example worked out by hand: B = 2, T = 5, N = 2, low 0.7, high 1.3
#
#                               token 0   token 1   token 2   token 3       token 4
#   completion 0  rank             0         0         1      2 (overflow)  3 (overflow)
#                 old / sampled   3.0       0.6      0.25     1.25          2.5
#   completion 1  rank             0         1        pad      pad           pad
#                 old / sampled  0.75       1.0
#
#   of ranks      completion 0: 3 * 0.6 = 1.8, 0.25, overflow 1.25 * 2.5 = 3.125; completion 1: 0.75, 1
#   of sequences  completion 0: 1.8 * 0.25 * 3.125 = 1.40625; completion 1: 0.75
# ---------------------------------------------------------------------------------------------------------------------

HAND_RATIOS = torch.tensor([[3.0, 0.6, 0.25, 1.25, 2.5], [0.75, 1.0, 9.0, 9.0, 9.0]], dtype=torch.float64)
HAND_MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
HAND_RANKS = torch.tensor([[0, 0, 1, 2, 3], [0, 1, -1, -1, -1]])

HAND_WEIGHTS = {
    ("none", "token"): [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]],
    ("none", "rank"): [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]],
    ("none", "sequence"): [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]],
    ("truncate", "token"): [[1.3, 0.6, 0.25, 1.25, 1.3], [0.75, 1, 0, 0, 0]],  # 3 and 2.5 are above 1.3
    ("truncate", "rank"): [[1.3, 1.3, 0.25, 1.3, 1.3], [0.75, 1, 0, 0, 0]],  # 1.8 and 3.125 are; nothing is lifted
    ("truncate", "sequence"): [[1.3, 1.3, 1.3, 1.3, 1.3], [0.75, 0.75, 0, 0, 0]],  # 1.40625 is
    ("mask", "token"): [[0, 0, 0, 1.25, 0], [0.75, 1, 0, 0, 0]],  # 0.6 and 0.25 are below 0.7
    ("mask", "rank"): [[0, 0, 0, 0, 0], [0.75, 1, 0, 0, 0]],  # 1.8, 0.25 and 3.125 are outside
    ("mask", "sequence"): [[0, 0, 0, 0, 0], [0.75, 0.75, 0, 0, 0]],
}
HAND_ACTIVE = {  # of seven tokens
    **dict.fromkeys([("none", unit) for unit in UNITS], 0),
    ("truncate", "token"): 2,
    ("truncate", "rank"): 4,
    ("truncate", "sequence"): 5,
    ("mask", "token"): 4,
    ("mask", "rank"): 5,
    ("mask", "sequence"): 5,
}
HAND_METRICS = {  # min, mean and max before any bound
    "token": (0.25, (3 + 0.6 + 0.25 + 1.25 + 2.5 + 0.75 + 1) / 7, 3.0),
    "rank": (0.25, (1.8 * 2 + 0.25 + 3.125 * 2 + 0.75 + 1) / 7, 3.125),
    "sequence": (0.75, (1.40625 * 5 + 0.75 * 2) / 7, 1.40625),
}


def hand(kind: str, unit: str, dtype=torch.float64):
    sampled = torch.tensor([[-1.0, -2.0, -0.5, -3.0, -4.0], [-0.1, -5.0, -1.0, -1.0, -1.0]], dtype=torch.float64)
    old = sampled + HAND_RATIOS.log()
    return importance_weights(
        old.to(dtype), sampled.to(dtype), HAND_MASK, HAND_RANKS, n=2, kind=kind, unit=unit, low=0.7, high=1.3
    )


@pytest.mark.parametrize(("kind", "unit"), COMBINATIONS)
def test_weights_by_hand(kind, unit):
    weights, _ = hand(kind, unit)
    close(weights, torch.tensor(HAND_WEIGHTS[kind, unit], dtype=torch.float64))


@pytest.mark.parametrize(("kind", "unit"), COMBINATIONS)
def test_metrics_by_hand(kind, unit):
    """Of the weights before any bound, so that all kinds show the same mismatch."""
    _, metrics = hand(kind, unit)
    low, mean, high = HAND_METRICS[unit]
    expected = {f"{RATIO}/min": low, f"{RATIO}/mean": mean, f"{RATIO}/max": high, ACTIVE: HAND_ACTIVE[kind, unit] / 7}
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected)


@pytest.mark.parametrize("unit", UNITS)
def test_the_defaults_are_from_0_to_2(unit):
    old = HAND_RATIOS.log()
    options = {"n": 2, "unit": unit}
    for kind in KINDS:
        weights, _ = importance_weights(old, torch.zeros_like(old), HAND_MASK, HAND_RANKS, kind=kind, **options)
        expected, _ = importance_weights(
            old, torch.zeros_like(old), HAND_MASK, HAND_RANKS, kind=kind, low=0.0, high=2.0, **options
        )
        assert torch.equal(weights, expected)


def test_bounds_are_inside_the_band():
    """w = 1 exactly: kept with low = high = 1."""
    zeros = torch.zeros(1, 3)
    for kind in KINDS:
        weights, metrics = importance_weights(
            zeros, zeros, torch.ones(1, 3), torch.zeros(1, 3).long(), n=1, kind=kind, unit="rank", low=1.0, high=1.0
        )
        assert torch.equal(weights, torch.ones(1, 3))
        assert metrics[ACTIVE] == 0


@pytest.mark.parametrize(("kind", "unit"), COMBINATIONS)
def test_the_result_is_float32_or_wider_and_carries_no_graph(kind, unit):
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32),
                            (torch.float64, torch.float64)):  # fmt: skip
        old = torch.zeros(2, 5, dtype=dtype, requires_grad=True)
        sampled = torch.full((2, 5), 0.5, dtype=dtype, requires_grad=True)
        weights, metrics = importance_weights(old, sampled, HAND_MASK, HAND_RANKS, n=2, kind=kind, unit=unit)
        assert weights.dtype == expected
        assert weights.shape == (2, 5)
        assert all(value.shape == () for value in metrics.values())
        assert not any(value.requires_grad for value in (weights, *metrics.values()))
    weights, _ = importance_weights(old, sampled.float(), HAND_MASK, HAND_RANKS, n=2, kind=kind, unit=unit)
    assert weights.dtype == torch.float64
    torch.testing.assert_close(hand(kind, unit, torch.float32)[0].double(), hand(kind, unit)[0])


# ---------------------------------------------------------------------------------------------------------------------
# random batches
# ---------------------------------------------------------------------------------------------------------------------


class Batch:
    """A random batch in float64. Padding on both sides, now and then a row without a token; `junk` off the mask."""

    def __init__(self, seed: int, rows: int, width: int, n: int, spread: float = 0.5, junk: float = 0.0):
        g = torch.Generator().manual_seed(seed)
        start = torch.randint(0, width // 2 + 1, (rows, 1), generator=g)
        stop = torch.randint(width // 2 + 1, width + 1, (rows, 1), generator=g)
        stop[torch.rand(rows, 1, generator=g) < 0.1] = 0
        columns = torch.arange(width)
        self.n = n
        self.mask = (columns >= start) & (columns < stop)
        lines = (torch.rand(rows, width, generator=g) < 0.4).long().cumsum(-1)
        self.ranks = torch.where(self.mask, lines, -1)
        noise = torch.randn(2, rows, width, dtype=torch.float64, generator=g)
        self.old = torch.where(self.mask, -noise[0].abs(), junk)
        self.sampled = torch.where(self.mask, self.old + spread * noise[1], junk)

    def take(self, rows, columns=slice(None)) -> "Batch":
        part = object.__new__(Batch)
        part.n = self.n
        for name in ("mask", "ranks", "old", "sampled"):
            setattr(part, name, getattr(self, name)[rows][:, columns])
        return part

    def weights(self, kind: str, unit: str, **bounds) -> tuple[Tensor, dict[str, Tensor]]:
        return importance_weights(
            self.old, self.sampled, self.mask, self.ranks, n=self.n, kind=kind, unit=unit, **bounds
        )

    def raw(self, unit: str) -> Tensor:
        return self.weights("truncate", unit, high=math.inf)[0]


def close(actual: Tensor, expected: Tensor):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


batches = st.builds(Batch, st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 12), st.integers(1, 4))


@pytest.mark.parametrize(("kind", "unit"), COMBINATIONS)
@settings(max_examples=examples(40))
@given(batch=batches, low=st.sampled_from([0.0, 0.5, 0.9]), high=st.sampled_from([1.1, 2.0, math.inf]))
def test_every_combination_equals_the_slow_reference(kind, unit, batch, low, high):
    weights, metrics = batch.weights(kind, unit, low=low, high=high)
    expected, unbounded = slow.importance_weights(
        batch.old.tolist(), batch.sampled.tolist(), batch.mask.tolist(), batch.ranks.tolist(),
        n=batch.n, kind=kind, units=unit, low=low, high=high,
    )  # fmt: skip
    expected = torch.tensor(expected, dtype=torch.float64).reshape(weights.shape)
    raw = torch.tensor(unbounded, dtype=torch.float64).reshape(weights.shape)[batch.mask].tolist()
    close(weights, expected)
    changed = [a for a, b in zip(raw, expected[batch.mask].tolist(), strict=True) if a != b] if kind != "none" else []
    wanted = (min(raw), sum(raw) / len(raw), max(raw), len(changed) / len(raw)) if raw else (1, 1, 1, 0)
    names = (f"{RATIO}/min", f"{RATIO}/mean", f"{RATIO}/max", ACTIVE)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        dict(zip(names, wanted, strict=True))
    )


@pytest.mark.parametrize(("kind", "unit"), COMBINATIONS)
@settings(max_examples=examples(25))
@given(batch=batches, single=st.booleans())
def test_a_sampler_that_is_the_policy_has_weights_of_exactly_one(kind, unit, batch, single):
    batch.sampled = batch.old = batch.old.float() if single else batch.old
    weights, metrics = batch.weights(kind, unit, low=1.0, high=1.0)
    assert torch.equal(weights, batch.mask.to(weights.dtype))
    assert metrics[ACTIVE] == 0
    assert [metrics[f"{RATIO}/{name}"].item() for name in ("min", "mean", "max")] == pytest.approx([1, 1, 1])


@settings(max_examples=examples(60))
@given(batch=batches)
def test_units_multiply_up(batch):
    """A token's weight is the ratio of its probabilities; those of a list, of its tokens or of its ranks, multiply."""
    token, rank, sequence = (batch.raw(unit) for unit in UNITS)
    close(token, torch.where(batch.mask, (batch.old - batch.sampled).exp(), 0.0))
    for i in range(len(batch.mask)):
        on = batch.mask[i].nonzero().flatten().tolist()
        units = {min(int(batch.ranks[i, t]), batch.n): float(rank[i, t]) for t in on}  # overflow is one of them
        by_token = math.prod(token[i, on].tolist())
        assert math.prod(units.values()) == pytest.approx(by_token)
        assert sequence[i, on].tolist() == pytest.approx([by_token] * len(on))
        for unit, weight in units.items():
            mates = [t for t in on if min(int(batch.ranks[i, t]), batch.n) == unit]
            assert rank[i, mates].tolist() == [weight] * len(mates)
            assert math.prod(token[i, mates].tolist()) == pytest.approx(weight)


@pytest.mark.parametrize(("kind", "unit"), COMBINATIONS)
def test_all_ranks_past_n_are_one_unit(kind, unit):
    many = Batch(9, 1, 6, 2)
    many.mask[:] = True
    many.old, many.sampled = -torch.rand(2, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    one = many.take([0])
    many.ranks = torch.tensor([[0, 1, 2, 3, 3, 9]])
    one.ranks = torch.tensor([[0, 1, 2, 2, 2, 2]])
    assert torch.equal(many.weights(kind, unit)[0], one.weights(kind, unit)[0])
    if unit == "rank":
        close(many.raw(unit)[0, 2:], (many.old - many.sampled)[0, 2:].sum().exp().expand(4))


# ---------------------------------------------------------------------------------------------------------------------
# (b) independent of the cut into micro-batches, of the order of rows and of padding
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "unit"), COMBINATIONS)
@settings(max_examples=examples(20))
@given(seed=st.integers(0, 2**31), cut=st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_micro_batches_have_the_weights_of_the_whole(kind, unit, seed, cut):
    """Row i goes into micro-batch cut[i], in an order of its own, trimmed to its own width."""
    batch = Batch(seed, 6, 7, 2)
    bounds = {"low": 0.7, "high": 1.3}
    weights, metrics = batch.weights(kind, unit, **bounds)
    parts = [[i for i in reversed(range(6)) if cut[i] == part] for part in sorted(set(cut))]
    gathered, tokens, sums = torch.zeros_like(weights), [], {f"{RATIO}/mean": 0.0, ACTIVE: 0.0}
    extremes = []
    for rows in parts:
        width = int((batch.mask[rows].any(0) * torch.arange(1, 8)).max())
        part = batch.take(rows, slice(width))
        part_weights, part_metrics = part.weights(kind, unit, **bounds)
        gathered[rows, :width] = part_weights
        tokens.append(int(part.mask.sum()))
        for name in sums:
            sums[name] += part_metrics[name].item() * tokens[-1]
        if tokens[-1]:
            extremes.append((part_metrics[f"{RATIO}/min"].item(), part_metrics[f"{RATIO}/max"].item()))
    close(gathered, weights)
    if sum(tokens):
        for name, total in sums.items():
            assert total / sum(tokens) == pytest.approx(metrics[name].item())
        assert min(low for low, _ in extremes) == pytest.approx(metrics[f"{RATIO}/min"].item())
        assert max(high for _, high in extremes) == pytest.approx(metrics[f"{RATIO}/max"].item())


@pytest.mark.parametrize(("kind", "unit"), COMBINATIONS)
@settings(max_examples=examples(15))
@given(batch=batches, left=st.integers(0, 2), right=st.integers(0, 9), junk=st.sampled_from([0.0, -50.0, math.nan]))
def test_padding_columns_change_nothing(kind, unit, batch, left, right, junk):
    weights, metrics = batch.weights(kind, unit)
    wide = batch.take(slice(None))
    for name, value in {"old": junk, "sampled": junk, "mask": False, "ranks": -1}.items():
        setattr(wide, name, torch.nn.functional.pad(getattr(batch, name), (left, right), value=value))
    wide_weights, wide_metrics = wide.weights(kind, unit)
    close(wide_weights, torch.nn.functional.pad(weights, (left, right)))
    for name, value in metrics.items():
        close(wide_metrics[name], value)


# ---------------------------------------------------------------------------------------------------------------------
# (c) nothing there, rubbish off the mask, and log-probs without bound
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0])
@pytest.mark.parametrize(("kind", "unit"), COMBINATIONS)
def test_rubbish_off_the_mask_does_not_leak(kind, unit, rubbish):
    batch = Batch(21, 4, 7, 2)
    batch.mask[2] = False
    batch.ranks[2] = -1
    weights, metrics = batch.weights(kind, unit)
    assert torch.equal(weights[~batch.mask], torch.zeros(int((~batch.mask).sum()), dtype=torch.float64))
    for names in (["old"], ["sampled"], ["old", "sampled"]):
        dirty = batch.take(slice(None))
        for name in names:
            setattr(dirty, name, torch.where(batch.mask, getattr(batch, name), rubbish))
        dirty_weights, dirty_metrics = dirty.weights(kind, unit)
        assert torch.equal(dirty_weights, weights)
        assert dirty_metrics == metrics


@pytest.mark.parametrize(("kind", "unit"), COMBINATIONS)
def test_a_row_without_tokens_has_weights_of_zero_and_counts_nowhere(kind, unit):
    batch = Batch(8, 4, 7, 2)
    batch.mask[1] = False
    batch.ranks[1] = -1
    weights, metrics = batch.weights(kind, unit)
    rest_weights, rest_metrics = batch.take([0, 2, 3]).weights(kind, unit)
    assert torch.equal(weights[1], torch.zeros(7, dtype=torch.float64))
    assert torch.equal(weights[[0, 2, 3]], rest_weights)
    assert metrics == rest_metrics


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (2, 0), (0, 0)])
@pytest.mark.parametrize(("kind", "unit"), COMBINATIONS)
def test_a_batch_without_a_token_has_defined_metrics(kind, unit, shape):
    nothing = torch.full(shape, math.nan)
    weights, metrics = importance_weights(
        nothing, nothing, torch.zeros(shape), torch.full(shape, -1), n=3, kind=kind, unit=unit
    )
    assert torch.equal(weights, torch.zeros(shape))
    assert {name: value.item() for name, value in metrics.items()} == {
        f"{RATIO}/min": 1, f"{RATIO}/mean": 1, f"{RATIO}/max": 1, ACTIVE: 0,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "unit"), COMBINATIONS)
@pytest.mark.parametrize("high", [2.0, math.inf])
def test_no_log_prob_makes_a_weight_infinite(kind, unit, dtype, high):
    """Rows: impossible for the sampler, for the trainer, for each in turn, for both; and far apart on every token."""
    inf, far = math.inf, 1e4
    old = torch.tensor([[-1, -1, -1], [-1, -inf, -1], [-inf, -1, -1], [-1, -inf, -1], [-1] * 3, [-far] * 3])
    sampled = torch.tensor([[-1, -inf, -1], [-1, -1, -1], [-1, -inf, -1], [-1, -inf, -1], [-far] * 3, [-1] * 3])
    on, ranks = torch.ones(6, 3), torch.zeros(6, 3).long()
    old, sampled = old.to(dtype).repeat(2000, 1), sampled.to(dtype).repeat(2000, 1)  # many: their sum is finite too
    weights, metrics = importance_weights(
        old, sampled, on.repeat(2000, 1), ranks.repeat(2000, 1), n=1, kind=kind, unit=unit, high=high
    )
    assert weights.isfinite().all()
    assert all(value.isfinite() for value in metrics.values())
    assert weights[3].tolist() == [1, 1, 1]  # two log-probs of -inf agree
    if kind != "none":
        of_impossible = weights[0, 1].item()
        assert of_impossible == {("truncate", 2.0): 2.0, ("mask", 2.0): 0.0}.get((kind, high), of_impossible)
        assert of_impossible > 1e30 or high == 2.0
        assert weights[1, 1].item() < 1e-30


@pytest.mark.parametrize(("kind", "unit"), [c for c in COMBINATIONS if c[0] != "none"])
def test_nan_on_the_mask_is_not_hidden(kind, unit):
    """In its own unit, and in the metrics: were it masked, training would go on without what failed."""
    batch = Batch(30, 2, 4, 2)
    batch.mask[:] = True
    batch.ranks = torch.tensor([[0, 0, 1, 2], [0, 0, 1, 2]])
    batch.old = batch.sampled = torch.full((2, 4), -1.0)
    batch.sampled = batch.sampled.clone()
    batch.sampled[0, 0] = math.nan
    weights, metrics = batch.weights(kind, unit)
    expected = {"token": [True, False, False, False], "rank": [True, True, False, False], "sequence": [True] * 4}
    assert weights.isnan().tolist() == [expected[unit], [False] * 4]
    assert all(metrics[f"{RATIO}/{name}"].isnan() for name in ("min", "mean", "max"))


# ---------------------------------------------------------------------------------------------------------------------
# errors
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "clip"}, "'clip'.*none, truncate or mask"),
        ({"unit": "word"}, "'word'.*token, rank or sequence"),
        ({"kind": "none", "unit": "word"}, "'word'.*token, rank or sequence"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_the_choices(change, message):
    batch = Batch(1, 2, 5, 2)
    options = {"kind": "mask", "unit": "token"} | change
    with pytest.raises(ValueError, match=message):
        batch.weights(**options)
