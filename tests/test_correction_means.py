"""What importance weights are for: means over what the sampler drew become means over what the policy would have drawn.

All eight sequences of three tokens over {0, 1}; `mu` draws them, `pi` is trained; both autoregressive. Tokens 0 and 1 are rank
0, token 2 is rank 1.
"""

import itertools
import math

import pytest
import torch
from test_correction import UNITS, close
from torch import Tensor

from convrec_r1.rl import importance_weights

SEQUENCES = torch.tensor(list(itertools.product((0, 1), repeat=3)))  # [8, 3]
MU = {(): 0.3, (0,): 0.6, (1,): 0.2, (0, 0): 0.5, (0, 1): 0.1, (1, 0): 0.7, (1, 1): 0.4}  # P(next = 1 | prefix)
PI = {(): 0.5, (0,): 0.4, (1,): 0.35, (0, 0): 0.8, (0, 1): 0.3, (1, 0): 0.25, (1, 1): 0.9}


def enumerated(policy: dict) -> Tensor:
    """Log-probs of each sequence's tokens, [8, 3]."""
    rows = []
    for sequence in SEQUENCES.tolist():
        ones = [policy[tuple(sequence[:t])] for t in range(3)]
        rows.append([math.log(p if token else 1 - p) for token, p in zip(sequence, ones, strict=True)])
    return torch.tensor(rows, dtype=torch.float64)


def enumerated_weights(unit: str, **bounds) -> Tensor:
    ranks = torch.tensor([[0, 0, 1]]).expand(8, 3)
    options = {"kind": "truncate", "high": math.inf} | bounds
    return importance_weights(enumerated(PI), enumerated(MU), torch.ones(8, 3), ranks, n=2, unit=unit, **options)[0]


VALUES = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, 4.0, -1.0, 2.5], dtype=torch.float64)  # a reward of each sequence


def test_sequence_weights_are_unbiased_and_the_geometric_mean_is_not():
    mu, pi = enumerated(MU).sum(-1).exp(), enumerated(PI).sum(-1).exp()
    close(mu.sum(), torch.ones((), dtype=torch.float64))
    close(pi.sum(), torch.ones((), dtype=torch.float64))
    w = enumerated_weights("sequence")[:, 0]
    close((mu * w).sum(), torch.ones((), dtype=torch.float64))
    close((mu * w * VALUES).sum(), (pi * VALUES).sum())
    geometric = (enumerated(PI) - enumerated(MU)).mean(-1).exp()
    uncorrected = abs((mu * VALUES).sum() - (pi * VALUES).sum())
    assert uncorrected > 0.1
    assert abs((mu * geometric * VALUES).sum() - (pi * VALUES).sum()) > 0.1


def test_the_policy_gradient_is_unbiased_with_sequence_weights_only():
    """d/d theta of the mean reward, theta the seven logits of `pi`: sum_y pi(y) f(y) d log pi(y)."""
    prefixes = list(PI)
    theta = torch.tensor([math.log(p / (1 - p)) for p in PI.values()], dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[prefixes.index(tuple(s[:t])) for t in range(3)] for s in SEQUENCES.tolist()])  # [8, 3]
    log_pi = torch.nn.functional.logsigmoid(torch.where(SEQUENCES == 1, theta[index], -theta[index]))
    close(log_pi.detach(), enumerated(PI))
    (expected,) = torch.autograd.grad((log_pi.sum(-1).exp() * VALUES).sum(), theta, retain_graph=True)
    mu = enumerated(MU).sum(-1).exp()
    errors = {}
    for unit in UNITS:
        estimate = (mu[:, None] * enumerated_weights(unit) * VALUES[:, None] * log_pi).sum()
        (gradient,) = torch.autograd.grad(estimate, theta, retain_graph=True)
        errors[unit] = (gradient - expected).norm().item()
    assert errors["sequence"] < 1e-12
    assert errors["token"] > 0.01
    assert errors["rank"] > 0.01


@pytest.mark.parametrize(("unit", "first", "last"), [("token", 0, 1), ("token", 1, 2), ("token", 2, 3),
                                                     ("rank", 0, 2), ("rank", 2, 3), ("sequence", 0, 3)])  # fmt: skip
def test_a_unit_is_unbiased_given_the_text_before_it(unit, first, last):
    """Means of any function of the text up to the unit's end, prefix by prefix: E_mu[w f | prefix] = E_pi[f | prefix]."""
    mu, pi = enumerated(MU), enumerated(PI)
    w = enumerated_weights(unit)[:, first]
    assert torch.equal(w, enumerated_weights(unit)[:, last - 1])
    for prefix in itertools.product((0, 1), repeat=first):
        rows = [i for i, s in enumerate(SEQUENCES.tolist()) if tuple(s[:first]) == prefix]
        # one row for each continuation up to the unit's end: what follows it is summed out
        rows = [i for i in rows if not SEQUENCES[i, last:].any()]
        f = VALUES[rows]
        given_mu, given_pi = (p[rows, first:last].sum(-1).exp() for p in (mu, pi))
        close(given_mu.sum(), torch.ones((), dtype=torch.float64))
        close((given_mu * w[rows] * f).sum(), (given_pi * f).sum())


@pytest.mark.parametrize("unit", UNITS)
def test_bounds_lower_the_mean_of_the_weights_and_never_raise_it(unit):
    """E_mu[w] = 1; what is cut or dropped is the bias that buys the variance."""
    mu = enumerated(MU).sum(-1).exp()[:, None]
    close((mu * enumerated_weights(unit)).sum(0), torch.ones(3, dtype=torch.float64))
    truncated = (mu * enumerated_weights(unit, high=1.2)).sum(0)
    masked = (mu * enumerated_weights(unit, kind="mask", low=0.6, high=1.2)).sum(0)
    assert (masked < truncated).all()
    assert (truncated < 1).all()
