"""The one objective against values worked out by hand, closed forms and a slow second implementation."""

import math

import pytest
import reference_objective as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples
from torch import Tensor

from convrec_r1.rl import ClippedSurrogate, LossInputs, batch_normalizer, per_token, policy_loss
from convrec_r1.rl.objective import unit_log_ratio

RATIOS = ("token", "rank", "sequence")
AGGREGATIONS = ("sequence", "constant", "token", "rank")
COMBINATIONS = [(ratio, aggregation) for ratio in RATIOS for aggregation in AGGREGATIONS]


def surrogate_loss(
    logps, old, advantages, mask, ranks, *, ratio, clip_low, clip_high, dual_clip=None, beta=0.0, **inputs
):
    """The objective with token advantages, [B, T] also where T equals N."""
    objective = ClippedSurrogate(ratio, clip_low, clip_high, dual_clip, beta)
    return objective(LossInputs(logps, old, advantages, mask, ranks, **inputs))


LIMIT = 16  # the completion limit L in everything below but the example worked out by hand

# ---------------------------------------------------------------------------------------------------------------------
# (a) an example worked out by hand: B = 2, T = 4, N = 2, eps_low 0.2, eps_high 0.3
#
#                       token 0   token 1   token 2   token 3
#   completion 0  rank     0         0         1      2 (overflow)
#                 ratio   1.8       0.8       1.5       0.5        rank 0: sqrt(1.8 * 0.8) = 1.2
#   completion 1  rank     0         1        pad       pad        whole: 1.08 ** (1/4) = 1.019427 and 1.0
#                 ratio   0.5       2.0
#
#   sequence advantages 2 and -1; rank advantages (2, -1) and (-1, 3)
# ---------------------------------------------------------------------------------------------------------------------

HAND_RATIOS = torch.tensor([[1.8, 0.8, 1.5, 0.5], [0.5, 2.0, 7.0, 7.0]], dtype=torch.float64)
HAND_MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
HAND_RANKS = torch.tensor([[0, 0, 1, 2], [0, 1, -1, -1]])
HAND_ADVANTAGES = {
    "sequence": torch.tensor([2.0, -1.0], dtype=torch.float64),
    "rank": torch.tensor([[2.0, -1.0], [-1.0, 3.0]], dtype=torch.float64),
}
# log-prob of the reference less that of the policy: k3 = 2 - ln 2 - 1 = 0.306853 and 0.5 + ln 2 - 1 = 0.193147
HAND_D = torch.tensor([[2.0, 1.0, 1.0, 0.5], [1.0, 1.0, 9.0, 9.0]], dtype=torch.float64).log()

HAND_LOSSES = {
    # Token ratios clipped to [0.8, 1.3]. Completion 0, A = 2: min(3.6, 2.6) + min(1.6, 1.6) + min(3, 2.6) + min(1, 1.6)
    # = 7.8; completion 1, A = -1: min(-0.5, -0.8) + min(-2, -1.3) = -2.8.
    "grpo": -(7.8 / 4 - 2.8 / 2) / 2,
    "dr_grpo": -(7.8 - 2.8) / (2 * 5),  # L = 5
    "dapo": -(7.8 - 2.8) / 6,  # six tokens
    # One ratio per completion: 2 * 1.08 ** (1/4) for each token of the first, -1 * 1 for each token of the second.
    "gspo": -(2 * 1.08**0.25 - 1) / 2,
    # Completion 0: rank 0: 1.2 * 2 = 2.4 for each of two tokens; rank 1: min(-1.5, -1.3) = -1.5; overflow: A = 0.
    # Completion 1: rank 0: min(-0.5, -0.8) = -0.8; rank 1: min(6, 3.9) = 3.9. Mean within each rank.
    "rank_grpo": -(2.4 - 1.5 + 0 - 0.8 + 3.9) / (2 * 2),
    "rank_grpo_reference": -(2.4 + 2.4 - 1.5 + 0 - 0.8 + 3.9) / 6,
}
HAND_KL = {  # what the k3 term adds, per beta
    "grpo": (0.306853 + 0.193147) / 4 / 2,
    "dr_grpo": (0.306853 + 0.193147) / (2 * 5),
    "dapo": (0.306853 + 0.193147) / 6,
    "gspo": (0.306853 + 0.193147) / 4 / 2,
    "rank_grpo": (0.306853 / 2 + 0.193147 / 1) / (2 * 2),  # overflow: one more unit with the same weight 1/N
    "rank_grpo_reference": (0.306853 + 0.193147) / 6,
}

# Weights of the surrogate: completion 0: 2, 0.5, 0, 1; completion 1: 3, 0.25. Denominators stay as they are.
HAND_WEIGHTS = torch.tensor([[2.0, 0.5, 0.0, 1.0], [3.0, 0.25, 7.0, 7.0]], dtype=torch.float64)
HAND_WEIGHTED = {
    # Completion 0: 2 * 2.6 + 0.5 * 1.6 + 0 * 2.6 + 1 * 1 = 7; completion 1: 3 * -0.8 + 0.25 * -2 = -2.9.
    "grpo": -(7 / 4 - 2.9 / 2) / 2,
    "dr_grpo": -(7 - 2.9) / (2 * 5),
    "dapo": -(7 - 2.9) / 6,
    # Means of the weights: 3.5 / 4 and 3.25 / 2.
    "gspo": -(2 * 1.08**0.25 * 3.5 / 4 - 3.25 / 2) / 2,
    # Completion 0: rank 0: 2.4 * (2 + 0.5) / 2 = 3; rank 1: 0; overflow: A = 0.
    # Completion 1: rank 0: 3 * -0.8 = -2.4; rank 1: 0.25 * 3.9 = 0.975.
    "rank_grpo": -(3 - 2.4 + 0.975) / (2 * 2),
    "rank_grpo_reference": -(2.4 * 2.5 - 2.4 + 0.975) / 6,
}


def hand(name: str, **more):
    """policy_loss of the example with the settings of an algorithm."""
    algorithm = slow.ALGORITHMS[name]
    old = torch.tensor([[-1.0, -2.0, -0.5, -3.0], [-0.1, -4.0, -1.0, -1.0]], dtype=torch.float64)
    logps = old + HAND_RATIOS.log()
    return policy_loss(
        logps, old, HAND_ADVANTAGES[algorithm.advantage], HAND_MASK, HAND_RANKS, n=2, ratio=algorithm.ratio,
        aggregation=algorithm.aggregation, clip_low=0.2, clip_high=0.3, max_length=5, ref_logps=logps + HAND_D, **more,
    )  # fmt: skip


@pytest.mark.parametrize("name", HAND_LOSSES)
def test_loss_by_hand(name):
    loss, _ = hand(name)
    assert loss.dim() == 0
    assert loss.item() == pytest.approx(HAND_LOSSES[name], abs=1e-9)


@pytest.mark.parametrize("name", HAND_LOSSES)
def test_loss_with_kl_by_hand(name):
    loss, _ = hand(name, beta=0.1)
    assert loss.item() == pytest.approx(HAND_LOSSES[name] + 0.1 * HAND_KL[name], abs=1e-6)


@pytest.mark.parametrize("name", HAND_LOSSES)
def test_weighted_loss_by_hand(name):
    loss, metrics = hand(name, weights=HAND_WEIGHTS)
    assert loss.item() == pytest.approx(HAND_WEIGHTED[name], abs=1e-9)
    assert metrics == hand(name)[1]
    loss, _ = hand(name, weights=HAND_WEIGHTS, beta=0.1)  # the reference term has no weight
    assert loss.item() == pytest.approx(HAND_WEIGHTED[name] + 0.1 * HAND_KL[name], abs=1e-6)


def test_weights_scale_what_the_dual_clip_has_left():
    # GRPO, c = 1.5: completion 1, token 1 is -1.5, then 0.25 of it; 3 * -0.8 as before.
    loss, _ = hand("grpo", dual_clip=1.5, weights=HAND_WEIGHTS)
    assert loss.item() == pytest.approx(-(7 / 4 + (-2.4 - 0.375) / 2) / 2)


def test_dual_clip_by_hand():
    # The one token below c A: completion 1, token 1, -2.0, becomes 1.5 * -1. GRPO: (7.8 / 4 + (-0.8 - 1.5) / 2) / 2.
    assert hand("grpo", dual_clip=1.5)[0].item() == pytest.approx(-(7.8 / 4 - 2.3 / 2) / 2)
    # Rank-GRPO: completion 0, rank 1, -1.5, becomes 1.4 * -1; positive advantages are not touched.
    assert hand("rank_grpo", dual_clip=1.4)[0].item() == pytest.approx(-(2.4 - 1.4 - 0.8 + 3.9) / 4)
    assert hand("rank_grpo", dual_clip=5.0)[0].item() == pytest.approx(HAND_LOSSES["rank_grpo"])


@pytest.mark.parametrize("name", HAND_LOSSES)
def test_token_advantages_give_the_same_loss_as_those_they_were_spread_from(name):
    algorithm = slow.ALGORITHMS[name]
    logps = HAND_RATIOS.log()
    spread = per_token(HAND_ADVANTAGES[algorithm.advantage], HAND_RANKS, 2)
    options = {"n": 2, "ratio": algorithm.ratio, "aggregation": algorithm.aggregation, "max_length": 5}
    for function in (policy_loss, surrogate_loss):
        loss, _ = function(
            logps, torch.zeros_like(logps), spread, HAND_MASK, HAND_RANKS, clip_low=0.2, clip_high=0.3, **options
        )
        assert loss.item() == pytest.approx(HAND_LOSSES[name])


# ---------------------------------------------------------------------------------------------------------------------
# (g) metrics of the same example
# ---------------------------------------------------------------------------------------------------------------------


def test_metrics_by_hand_with_token_ratios():
    _, metrics = hand("grpo", beta=0.1)
    expected = {
        "clip_ratio/low_mean": 1 / 6,  # A < 0 and ratio < 0.8: completion 1, token 0
        "clip_ratio/high_mean": 2 / 6,  # A > 0 and ratio > 1.3: completion 0, tokens 0 and 2
        "clip_ratio/region_mean": 3 / 6,
        "ratio/mean": (1.8 + 0.8 + 1.5 + 0.5 + 0.5 + 2.0) / 6,
        "ratio/max": 2.0,  # 7.0 stands off the mask
        "kl": 0.5 / 6,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected)


def test_metrics_by_hand_with_rank_ratios():
    _, metrics = hand("rank_grpo")
    expected = {
        "clip_ratio/low_mean": 1 / 6,  # completion 1, rank 0; the overflow token's 0.5 has no advantage
        "clip_ratio/high_mean": 1 / 6,  # completion 1, rank 1; completion 0, rank 1 has 1.5, but A < 0
        "clip_ratio/region_mean": 2 / 6,
        "ratio/mean": (1.2 + 1.2 + 1.5 + 0.5 + 0.5 + 2.0) / 6,
        "ratio/max": 2.0,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected)


def test_metrics_carry_no_graph():
    logps = torch.randn(2, 3, requires_grad=True)
    ranks = torch.zeros(2, 3, dtype=torch.long)
    loss, metrics = policy_loss(
        logps, logps.detach(), torch.ones(2), torch.ones(2, 3), ranks, n=4, ratio="token", aggregation="token",
        clip_low=0.2, clip_high=0.2, beta=0.1, ref_logps=logps.detach(),
    )  # fmt: skip
    assert loss.requires_grad
    assert not any(value.requires_grad for value in metrics.values())


# ---------------------------------------------------------------------------------------------------------------------
# random batches
# ---------------------------------------------------------------------------------------------------------------------


class Batch:
    """A random batch in float64. Rows have tokens of every kind, padding on both sides, now and then no token."""

    def __init__(self, seed: int, rows: int, width: int, n: int, spread: float = 0.4):
        g = torch.Generator().manual_seed(seed)

        def noise():
            return torch.randn(rows, width, dtype=torch.float64, generator=g)

        start = torch.randint(0, width // 2 + 1, (rows, 1), generator=g)
        stop = torch.randint(width // 2 + 1, width + 1, (rows, 1), generator=g)
        stop[torch.rand(rows, 1, generator=g) < 0.1] = 0
        columns = torch.arange(width)
        self.n = n
        self.mask = (columns >= start) & (columns < stop)
        newline, blank = torch.rand(rows, width, generator=g) < 0.4, torch.rand(rows, width, generator=g) < 0.3
        kinds = [list(zip(a, b, strict=True)) for a, b in zip(newline.tolist(), blank.tolist(), strict=True)]
        ranks = [slow.segment(tokens, on) for tokens, on in zip(kinds, self.mask.tolist(), strict=True)]
        self.ranks = torch.tensor(ranks, dtype=torch.long)
        self.logps = -noise().abs()
        self.old_logps = self.logps + spread * noise()
        self.ref_logps = self.logps + 0.5 * noise()
        self.rewards = torch.randint(0, 4, (rows, n), generator=g).double()
        self.token_advantages = torch.where(torch.rand(rows, width, generator=g) < 0.2, 0.0, noise())
        self.weights = torch.where(torch.rand(rows, width, generator=g) < 0.2, 0.0, 2 * noise().abs())

    def advantages(self, algorithm: slow.Algorithm) -> Tensor:
        """[B] or [B, N], float64: one group of all rows."""
        rewards = self.rewards if algorithm.advantage == "rank" else self.rewards.sum(-1)
        return torch.tensor(slow.group_advantages(rewards.tolist(), len(rewards), algorithm.scale), dtype=torch.float64)

    def take(self, rows: list[int]) -> "Batch":
        part = object.__new__(Batch)
        part.n = self.n
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(part, name, value[rows])
        return part

    def loss(self, advantages: Tensor, function=surrogate_loss, **options):
        """Loss and its gradient with respect to the log-probs."""
        logps = self.logps.clone().requires_grad_()
        options = {"clip_low": 0.2, "clip_high": 0.28, "max_length": LIMIT, "n": self.n} | options
        if options.get("beta"):
            options.setdefault("ref_logps", self.ref_logps)
        loss, metrics = function(logps, self.old_logps, advantages, self.mask, self.ranks, **options)
        (gradient,) = torch.autograd.grad(loss, logps)
        return loss.detach(), gradient, metrics

    def slow_loss(self, token_advantages: list[list[float]], **options):
        scalars = [[x.clone().requires_grad_() for x in row] for row in self.logps]
        options = {"clip_low": 0.2, "clip_high": 0.28, "max_length": LIMIT, "n": self.n} | options
        total = slow.loss(
            scalars, self.old_logps.tolist(), token_advantages, self.mask.tolist(), self.ranks.tolist(),
            ref_logps=self.ref_logps.tolist(), **options,
        )  # fmt: skip
        flat = [x for row in scalars for x in row]
        gradient = torch.zeros(len(flat), dtype=torch.float64)
        if total.requires_grad:
            grads = torch.autograd.grad(total, flat, allow_unused=True)
            gradient = torch.stack([torch.zeros((), dtype=torch.float64) if g is None else g for g in grads])
        return total.detach(), gradient.reshape(self.logps.shape)


def close(actual: Tensor, expected: Tensor):
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


# Widths above n: [B, T] advantages are then told from [B, N] by their shape.
batches = st.builds(Batch, st.integers(0, 2**31), st.integers(1, 5), st.integers(5, 12), st.integers(1, 4))


# ---------------------------------------------------------------------------------------------------------------------
# (b) equal to the slow reference
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow.ALGORITHMS)
@settings(max_examples=examples(40))
@given(batch=batches, beta=st.sampled_from([0.0, 0.05]))
def test_every_algorithm_equals_the_slow_reference(name, batch, beta):
    algorithm = slow.ALGORITHMS[name]
    advantages = batch.advantages(algorithm)
    options = {"ratio": algorithm.ratio, "aggregation": algorithm.aggregation, "beta": beta}
    loss, gradient, _ = batch.loss(advantages, policy_loss, **options)
    by_token = [
        slow.token_advantages(advantage, ranks, batch.n)
        for advantage, ranks in zip(advantages.tolist(), batch.ranks.tolist(), strict=True)
    ]
    expected, expected_gradient = batch.slow_loss(by_token, **options)
    close(loss, expected)
    close(gradient, expected_gradient)


@pytest.mark.parametrize(("ratio", "aggregation"), COMBINATIONS)
@settings(max_examples=examples(25))
@given(
    batch=batches,
    clip_low=st.sampled_from([0.06, 0.2, 0.9]),
    clip_high=st.sampled_from([0.08, 0.28, 3.0]),
    dual_clip=st.sampled_from([None, 1.1, 3.0]),
    denominator=st.sampled_from([None, 7.0]),
    weighted=st.booleans(),
)
def test_every_combination_equals_the_slow_reference(
    ratio, aggregation, batch, clip_low, clip_high, dual_clip, denominator, weighted
):
    options = {"ratio": ratio, "aggregation": aggregation, "beta": 0.02, "clip_low": clip_low, "clip_high": clip_high}
    options["dual_clip"] = dual_clip
    weights = batch.weights if weighted else None
    loss, gradient, _ = batch.loss(
        batch.token_advantages, policy_loss, normalizer=denominator, weights=weights, **options
    )
    expected, expected_gradient = batch.slow_loss(
        batch.token_advantages.tolist(), denominator=denominator, weights=weights.tolist() if weighted else None, **options
    )  # fmt: skip
    close(loss, expected)
    close(gradient, expected_gradient)


# ---------------------------------------------------------------------------------------------------------------------
# (c) independent of the cut into micro-batches and of padding
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "aggregation"), COMBINATIONS)
@settings(max_examples=examples(15))
@given(seed=st.integers(0, 2**31), cut=st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_micro_batches_add_up_to_the_whole(ratio, aggregation, seed, cut):
    """Row i goes into micro-batch cut[i]; each is trimmed to its own width, as a collator would."""
    batch = Batch(seed, 6, 7, 3)
    options = {"ratio": ratio, "aggregation": aggregation, "beta": 0.02}
    loss, gradient, _ = batch.loss(batch.token_advantages, weights=batch.weights, **options)
    parts = [[i for i in range(6) if cut[i] == part] for part in sorted(set(cut))]
    masks = [batch.mask[rows] for rows in parts]
    total = sum(batch_normalizer(mask, aggregation, n=3, max_length=LIMIT) for mask in masks)
    close(total.double(), batch_normalizer(batch.mask, aggregation, n=3, max_length=LIMIT).double())
    summed, gathered = torch.zeros_like(loss), torch.zeros_like(gradient)
    for rows in parts:
        part = batch.take(rows)
        width = max(1, int((part.mask.any(0) * torch.arange(1, 8)).max()))
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.shape[1] == 7:
                setattr(part, name, value[:, :width])
        part_loss, part_gradient, _ = part.loss(
            part.token_advantages, normalizer=total, weights=part.weights, **options
        )
        summed += part_loss
        gathered[rows, :width] = part_gradient
    close(summed, loss)
    close(gathered, gradient)


@pytest.mark.parametrize("name", slow.ALGORITHMS)
@settings(max_examples=examples(15))
@given(batch=batches, left=st.integers(0, 2), right=st.integers(0, 9), junk=st.sampled_from([0.0, -50.0, math.nan]))
def test_padding_columns_change_nothing(name, batch, left, right, junk):
    algorithm = slow.ALGORITHMS[name]
    options = {"ratio": algorithm.ratio, "aggregation": algorithm.aggregation, "beta": 0.02}
    advantages = batch.advantages(algorithm)
    loss, gradient, metrics = batch.loss(advantages, policy_loss, **options)
    fill = {"logps": junk, "old_logps": junk, "ref_logps": junk, "mask": False, "ranks": -1}
    wide = batch.take(list(range(len(batch.mask))))
    for field, value in fill.items():
        setattr(wide, field, torch.nn.functional.pad(getattr(batch, field), (left, right), value=value))
    wide_loss, wide_gradient, wide_metrics = wide.loss(advantages, policy_loss, **options)
    close(wide_loss, loss)
    close(wide_gradient, torch.nn.functional.pad(gradient, (left, right)))
    for key, value in metrics.items():
        close(wide_metrics[key], value)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_normalizer_by_hand(aggregation):
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]])
    expected = {"sequence": 3, "constant": 30, "token": 6, "rank": 15}[aggregation]
    for dtype in (torch.bool, torch.long, torch.float32):
        assert batch_normalizer(mask.to(dtype), aggregation, n=5, max_length=10).item() == expected


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_normalizer_divides_the_sum(kind):
    batch = Batch(3, 3, 6, 2)
    options = {"ratio": "token", "aggregation": "token"}
    sum_of_losses, gradient, _ = batch.loss(batch.token_advantages, normalizer=kind(1.0), **options)
    half, half_gradient, _ = batch.loss(batch.token_advantages, normalizer=kind(2.0), **options)
    close(half * 2, sum_of_losses)
    close(half_gradient * 2, gradient)


# ---------------------------------------------------------------------------------------------------------------------
# (d) on-policy gradients: every ratio is 1, and each token's gradient is its weight times its advantage
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow.ALGORITHMS)
@settings(max_examples=examples(20))
@given(batch=batches)
def test_on_policy_gradient_in_closed_form(name, batch):
    algorithm = slow.ALGORITHMS[name]
    batch.old_logps = batch.logps.detach()
    advantages = batch.advantages(algorithm)
    loss, gradient, metrics = batch.loss(
        advantages, policy_loss, ratio=algorithm.ratio, aggregation=algorithm.aggregation
    )
    rows, tokens = len(batch.mask), int(batch.mask.sum())
    expected, expected_loss = torch.zeros_like(gradient), 0.0
    for i, t in batch.mask.nonzero().tolist():
        rank = min(int(batch.ranks[i, t]), batch.n)
        length = int(batch.mask[i].sum())
        in_rank = int(((batch.ranks[i].clamp(max=batch.n) == rank) & batch.mask[i]).sum())
        if algorithm.advantage == "sequence":
            a = advantages[i].item()
        else:
            a = advantages[i, rank].item() if rank < batch.n else 0.0
        weight = {
            "grpo": 1 / (rows * length),
            "gspo": 1 / (rows * length),  # one ratio for all T_i tokens: 1/T_i * sum of T_i equal terms / T_i
            "dr_grpo": 1 / (rows * LIMIT),
            "dapo": 1 / tokens,
            "rank_grpo": 1 / (rows * batch.n * in_rank),
            "rank_grpo_reference": 1 / tokens,
        }[name]
        expected[i, t] = -weight * a
        expected_loss -= weight * a
    close(gradient, expected)
    assert loss.item() == pytest.approx(expected_loss, abs=1e-9)
    if tokens:
        assert metrics["ratio/mean"].item() == pytest.approx(1.0)
        assert metrics["ratio/max"].item() == pytest.approx(1.0)
    assert metrics["clip_ratio/region_mean"] == 0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_kl_gradient_in_closed_form(aggregation):
    """d k3 / d logp = 1 - exp(ref - logp), weighted as the aggregation weights the token; no advantages."""
    batch = Batch(11, 3, 7, 2)
    zero = torch.zeros(3, dtype=torch.float64)
    _, gradient, _ = batch.loss(zero, policy_loss, ratio="token", aggregation=aggregation, beta=0.3)
    on = batch.mask.double()
    bins = batch.ranks.clamp(max=2)
    in_rank = ((bins[:, :, None] == bins[:, None, :]) & batch.mask[:, None, :]).sum(-1).clamp(min=1)
    weight = {
        "sequence": 1 / on.sum(-1, keepdim=True).clamp(min=1) / 3,
        "constant": torch.tensor(1 / (3 * LIMIT)),
        "token": 1 / on.sum(),
        "rank": 1 / in_rank / (3 * 2),
    }[aggregation]
    close(gradient, 0.3 * weight * on * (1 - (batch.ref_logps - batch.logps).exp()))


def test_a_clipped_token_has_no_gradient():
    """Clipped: A > 0 and ratio beyond 1 + eps, A < 0 and ratio below 1 - eps."""
    logps = torch.tensor([[2.0, -2.0, 2.0, -2.0]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, -1.0, 1.0]], dtype=torch.float64)
    loss, _ = surrogate_loss(
        logps, torch.zeros(1, 4, dtype=torch.float64), advantages, torch.ones(1, 4),
        torch.zeros(1, 4, dtype=torch.long), n=1, ratio="token", aggregation="token", clip_low=0.2, clip_high=0.2,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, logps)
    close(gradient, torch.tensor([[0, 0, math.exp(2) / 4, -math.exp(-2) / 4]], dtype=torch.float64))


# ---------------------------------------------------------------------------------------------------------------------
# units larger than a token: the unit's value, the token's own gradient
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("ratio", ["rank", "sequence"])
@settings(max_examples=examples(20))
@given(batch=batches, pick=st.integers(0, 10**6))
def test_an_advantage_on_one_token_acts_on_that_token_whatever_the_unit_is(ratio, aggregation, batch, pick):
    """As length shaping's on EOS: GRPO's gradient for the token, times the unit's ratio over the token's."""
    places = batch.mask.nonzero().tolist()
    if not places:
        return
    row, token = places[pick % len(places)]
    advantages = torch.zeros_like(batch.logps)
    advantages[row, token] = 0.1
    options = {"aggregation": aggregation, "clip_low": 0.99, "clip_high": 1e9}  # nothing is clipped
    _, gradient, _ = batch.loss(advantages, ratio=ratio, **options)
    _, grpo, _ = batch.loss(advantages, ratio="token", **options)
    difference = batch.logps - batch.old_logps
    mates = batch.mask[row]
    if ratio == "rank":
        mates = mates & (batch.ranks[row].clamp(max=batch.n) == batch.ranks[row, token].clamp(max=batch.n))
    unit = difference[row][mates].mean().exp() / difference[row, token].exp()
    close(gradient, grpo * unit)
    assert gradient.count_nonzero() == 1


@pytest.mark.parametrize(("ratio", "aggregation"), [c for c in COMBINATIONS if c != ("sequence", "rank")])
@settings(max_examples=examples(20))
@given(batch=batches)
def test_where_a_unit_shares_advantage_and_weight_it_is_the_plain_form(ratio, aggregation, batch):
    """min(r_u A, clip(r_u) A) with r_u's own gradient, by autograd in float64. (Ranks weigh a list's tokens differently.)"""
    name = {"rank": "rank_grpo", "sequence": "gspo", "token": "grpo"}[ratio]
    advantages = batch.advantages(slow.ALGORITHMS[name])
    loss, gradient, _ = batch.loss(advantages, policy_loss, ratio=ratio, aggregation=aggregation)
    logps, on = batch.logps.clone().requires_grad_(), batch.mask.double()
    spread = per_token(advantages, batch.ranks, batch.n)
    r = unit_log_ratio((logps - batch.old_logps) * on, on, batch.ranks, batch.n, ratio).exp()
    surrogate = torch.minimum(r * spread, r.clamp(0.8, 1.28) * spread)
    inputs = LossInputs(
        logps, batch.old_logps, spread, batch.mask, batch.ranks, n=batch.n, aggregation=aggregation, max_length=LIMIT
    )
    plain = inputs.aggregate(-surrogate)
    (expected,) = torch.autograd.grad(plain, logps)
    close(loss, plain.detach())
    close(gradient, expected)


@pytest.mark.parametrize("ratio", ["rank", "sequence"])
def test_a_unit_is_clipped_as_a_whole(ratio):
    """Token ratios 2 and 0.6, the unit's sqrt(1.2) = 1.095: inside 1.1 although a token's is not, outside 1.09."""
    logps = torch.tensor([[2.0, 0.6]], dtype=torch.float64).log().requires_grad_()
    inputs = (logps, torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.long))
    for high, unit in ((0.1, math.sqrt(1.2)), (0.09, 0.0)):
        loss, _ = surrogate_loss(*inputs, n=1, ratio=ratio, aggregation="token", clip_low=0.1, clip_high=high)
        (gradient,) = torch.autograd.grad(loss, logps)
        close(gradient, torch.full((1, 2), -unit / 2, dtype=torch.float64))


# ---------------------------------------------------------------------------------------------------------------------
# (e) nothing there, and rubbish off the mask
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "aggregation"), COMBINATIONS)
def test_a_batch_without_a_token_has_loss_zero(ratio, aggregation):
    batch = Batch(5, 3, 6, 2)
    batch.mask[:] = False
    batch.ranks[:] = -1
    loss, gradient, metrics = batch.loss(
        batch.token_advantages, ratio=ratio, aggregation=aggregation, beta=0.1, dual_clip=2.0
    )
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert all(value == 0 for value in metrics.values())


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0)])
def test_a_batch_without_rows_or_columns_has_loss_zero(shape):
    for ratio, aggregation in COMBINATIONS:
        logps = torch.zeros(shape, requires_grad=True)
        loss, metrics = policy_loss(
            logps, logps.detach(), torch.zeros(shape[0]), torch.zeros(shape), torch.full(shape, -1), n=3, ratio=ratio,
            aggregation=aggregation, clip_low=0.2, clip_high=0.2, max_length=4,
        )  # fmt: skip
        loss.backward()
        assert loss.item() == 0
        assert all(value.isfinite() for value in metrics.values())


@pytest.mark.parametrize(("ratio", "aggregation"), COMBINATIONS)
def test_a_completion_without_tokens_counts_in_b_and_in_nothing_else(ratio, aggregation):
    batch = Batch(8, 4, 7, 2)
    batch.mask[1] = False
    batch.ranks[1] = -1
    options = {"ratio": ratio, "aggregation": aggregation, "beta": 0.02}
    loss, gradient, metrics = batch.loss(batch.token_advantages, **options)
    rest = batch.take([0, 2, 3])
    rest_loss, rest_gradient, rest_metrics = rest.loss(rest.token_advantages, **options)
    share = 1.0 if aggregation == "token" else 3 / 4
    close(loss, rest_loss * share)
    close(gradient[[0, 2, 3]], rest_gradient * share)
    assert torch.equal(gradient[1], torch.zeros(7, dtype=torch.float64))
    for key, value in metrics.items():
        close(value, rest_metrics[key])


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize(("ratio", "aggregation"), COMBINATIONS)
def test_rubbish_off_the_mask_does_not_leak(ratio, aggregation, rubbish):
    batch = Batch(21, 4, 7, 2)
    batch.mask[2] = False
    batch.ranks[2] = -1
    advantages = batch.advantages(slow.ALGORITHMS["rank_grpo"])
    options = {"ratio": ratio, "aggregation": aggregation, "beta": 0.02, "dual_clip": 2.0}
    clean = batch.loss(advantages, policy_loss, weights=batch.weights, **options)
    names = ["logps", "old_logps", "ref_logps", "weights"]
    for fields in (*([name] for name in names), names):
        dirty = batch.take([0, 1, 2, 3])
        for field in fields:
            setattr(dirty, field, torch.where(batch.mask, getattr(batch, field), rubbish))
        loss, gradient, metrics = dirty.loss(advantages, policy_loss, weights=dirty.weights, **options)
        assert torch.equal(loss, clean[0])
        assert torch.equal(gradient, clean[1])
        assert metrics == clean[2]


# ---------------------------------------------------------------------------------------------------------------------
# (f) units at their limits
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_more_ranks_than_the_lists_have_change_only_the_denominator(aggregation):
    batch = Batch(4, 3, 7, 8)  # at most seven ranks
    options = {"ratio": "rank", "aggregation": aggregation, "beta": 0.02}
    loss, gradient, _ = batch.loss(batch.token_advantages, **options)
    more_loss, more_gradient, _ = batch.loss(batch.token_advantages, **options | {"n": 80})
    share = 1 / 10 if aggregation == "rank" else 1.0
    close(more_loss, loss * share)
    close(more_gradient, gradient * share)


def test_ranks_of_one_token_are_tokens():
    batch = Batch(6, 3, 7, 8)
    batch.ranks = torch.where(batch.mask, batch.mask.long().cumsum(-1) - 1, -1)
    for aggregation in AGGREGATIONS:
        by_rank = batch.loss(batch.token_advantages, ratio="rank", aggregation=aggregation)
        by_token = batch.loss(batch.token_advantages, ratio="token", aggregation=aggregation)
        close(by_rank[0], by_token[0])
        close(by_rank[1], by_token[1])


@pytest.mark.parametrize("rank", [0, 3])
def test_a_list_of_one_rank_is_a_sequence(rank):
    """Be it rank 0 or the overflow bin: then a rank's ratio is the sequence's, and so is its mean (up to the 1/N)."""
    batch = Batch(7, 3, 7, 2)
    batch.ranks = torch.where(batch.mask, rank, -1)
    by_rank = batch.loss(batch.token_advantages, ratio="rank", aggregation="rank")
    by_sequence = batch.loss(batch.token_advantages, ratio="sequence", aggregation="sequence")
    close(by_rank[0] * 2, by_sequence[0])
    close(by_rank[1] * 2, by_sequence[1])


def test_all_ranks_past_n_share_one_ratio_and_one_mean():
    batch = Batch(9, 1, 6, 2)
    batch.mask[:] = True
    many, one = batch.take([0]), batch.take([0])
    many.ranks = torch.tensor([[0, 1, 2, 3, 3, 9]])
    one.ranks = torch.tensor([[0, 1, 2, 2, 2, 2]])
    options = {"ratio": "rank", "aggregation": "rank", "beta": 0.02}
    for a, b in zip(many.loss(batch.token_advantages, **options)[:2], one.loss(batch.token_advantages, **options)[:2],
                    strict=True):  # fmt: skip
        close(a, b)


def test_overflow_tokens_have_no_rank_advantage_but_move_the_reference_term():
    batch = Batch(10, 1, 6, 2)
    batch.mask[:] = True
    batch.ranks = torch.tensor([[0, 0, 1, 2, 2, 3]])
    advantages = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    options = {"ratio": "rank", "aggregation": "rank"}
    _, gradient, _ = batch.loss(advantages, policy_loss, **options)
    assert torch.equal(gradient[0, 3:], torch.zeros(3, dtype=torch.float64))
    _, gradient, _ = batch.loss(advantages, policy_loss, beta=0.1, **options)
    close(gradient[0, 3:], 0.1 / 3 / 2 * (1 - (batch.ref_logps - batch.logps).exp())[0, 3:])  # three tokens, N = 2


# ---------------------------------------------------------------------------------------------------------------------
# (h) weights
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("ratio", "aggregation"), COMBINATIONS)
def test_weights_of_one_change_no_bit(ratio, aggregation, dtype):
    batch = Batch(12, 4, 7, 2)
    for name in ("logps", "old_logps", "ref_logps", "token_advantages"):
        setattr(batch, name, getattr(batch, name).to(dtype))
    options = {"ratio": ratio, "aggregation": aggregation, "beta": 0.02, "dual_clip": 2.0}
    loss, gradient, metrics = batch.loss(batch.token_advantages, **options)
    for ones in (batch.mask.double(), batch.mask.float(), batch.mask):  # of importance_weights: 0 off the mask
        one_loss, one_gradient, one_metrics = batch.loss(batch.token_advantages, weights=ones, **options)
        assert one_loss.dtype == loss.dtype
        assert torch.equal(one_loss, loss)
        assert torch.equal(one_gradient, gradient)
        assert one_metrics == metrics


@pytest.mark.parametrize(("ratio", "aggregation"), COMBINATIONS)
def test_a_completion_of_weight_zero_moves_by_the_reference_term_alone(ratio, aggregation):
    batch = Batch(13, 4, 7, 2)
    batch.weights[1] = 0.0
    options = {"ratio": ratio, "aggregation": aggregation, "weights": batch.weights}
    _, gradient, _ = batch.loss(batch.token_advantages, **options)
    assert torch.equal(gradient[1], torch.zeros(7, dtype=torch.float64))
    _, with_reference, _ = batch.loss(batch.token_advantages, beta=0.1, **options)
    _, reference, _ = batch.loss(torch.zeros_like(batch.token_advantages), beta=0.1, **options)
    close(with_reference[1], reference[1])
    assert reference[1].abs().sum() > 0


# ---------------------------------------------------------------------------------------------------------------------
# errors
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": "word"}, "ratio"),
        ({"aggregation": "mean"}, "aggregation"),
        ({"aggregation": "mean", "normalizer": 3.0}, "aggregation"),
        ({"aggregation": "constant", "max_length": None}, "max_length"),
        ({"beta": 0.1, "ref_logps": None}, "ref_logps"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(change, message):
    batch = Batch(1, 2, 5, 2)
    options = {"ratio": "token", "aggregation": "token"} | change
    with pytest.raises(ValueError, match=message):
        batch.loss(batch.token_advantages, **options)


def test_advantages_of_a_wrong_shape_are_an_error():
    batch = Batch(1, 2, 5, 2)
    with pytest.raises(ValueError, match="advantages"):
        batch.loss(torch.zeros(2, 3), policy_loss, ratio="token", aggregation="token")


def test_an_unknown_aggregation_has_no_normalizer():
    with pytest.raises(ValueError, match="aggregation"):
        batch_normalizer(torch.ones(2, 3), "mean", n=2)
    with pytest.raises(ValueError, match="max_length"):
        batch_normalizer(torch.ones(2, 3), "constant", n=2)
