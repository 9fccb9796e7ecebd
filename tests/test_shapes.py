"""A tensor of another shape or dtype than its annotation says is refused while tests run (shape_checks.py)."""

from functools import partial

import pytest
import torch
from jaxtyping import TypeCheckError

from convrec_r1.policy.logprobs import token_logprobs
from convrec_r1.reward import rank_returns
from convrec_r1.rl import group_advantages, policy_loss, segment_ranks

IDS = torch.zeros(2, 4, dtype=torch.long)
VALUES = torch.zeros(2, 4)
TABLE = torch.zeros(3, dtype=torch.bool)

loss = partial(policy_loss, n=2, ratio="token", aggregation="token", clip_low=0.2, clip_high=0.2)

RIGHT = {
    "policy_loss, an advantage a completion": lambda: loss(VALUES, VALUES, torch.zeros(2), IDS, IDS),
    "policy_loss, an advantage a rank": lambda: loss(VALUES, VALUES, torch.zeros(2, 2), IDS, IDS),
    "policy_loss, an advantage a token": lambda: loss(VALUES, VALUES, VALUES, IDS.bool(), IDS),
    "group_advantages": lambda: group_advantages(torch.zeros(2), 2),
    "segment_ranks": lambda: segment_ranks(IDS, VALUES, TABLE, TABLE),
    "rank_returns": lambda: rank_returns([[0, 1.0]], "exp_inf"),
    "token_logprobs": lambda: token_logprobs(torch.zeros(2, 5), torch.zeros(3, 5), IDS[:, 0], 1.0),
}
WRONG = {
    "policy_loss, a token too many": lambda: loss(VALUES, torch.zeros(2, 5), torch.zeros(2), IDS, IDS),
    "policy_loss, old log-probs that would broadcast": lambda: loss(VALUES, VALUES[:1], torch.zeros(2), IDS, IDS),
    "policy_loss, an advantage too many": lambda: loss(VALUES, VALUES, torch.zeros(3), IDS, IDS),
    "policy_loss, ranks as floats": lambda: loss(VALUES, VALUES, torch.zeros(2), IDS, VALUES),
    "group_advantages, three dimensions": lambda: group_advantages(torch.zeros(2, 2, 2), 2),
    "group_advantages, truth values": lambda: group_advantages(torch.zeros(2, dtype=torch.bool), 2),
    "segment_ranks, a row without its batch": lambda: segment_ranks(IDS[0], IDS[0], TABLE, TABLE),
    "segment_ranks, tables of two sizes": lambda: segment_ranks(IDS, IDS, TABLE, TABLE[:2]),
    "segment_ranks, a table of numbers": lambda: segment_ranks(IDS, IDS, TABLE.long(), TABLE),
    "rank_returns, one list": lambda: rank_returns(torch.zeros(4), "exp_inf"),
    "token_logprobs, another width": lambda: token_logprobs(torch.zeros(2, 5), torch.zeros(3, 4), IDS[:, 0], 1.0),
    "token_logprobs, a target too many": lambda: token_logprobs(torch.zeros(1, 5), torch.zeros(3, 5), IDS[:, 0], 1.0),
}


@pytest.mark.parametrize("call", RIGHT.values(), ids=RIGHT)
def test_what_is_annotated_is_taken(call):
    call()


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_what_is_not_annotated_is_refused(call):
    with pytest.raises(TypeCheckError):
        call()


def test_it_is_the_import_hook_that_refuses():
    """Outside of tests nothing is checked: the function as it is written takes what the hook's wrapper refuses."""
    with pytest.raises(TypeCheckError):
        segment_ranks(IDS[0], IDS[0], TABLE, TABLE)
    assert segment_ranks.__wrapped__(IDS[0], IDS[0] == 0, TABLE, TABLE).tolist() == [0, 0, 0, 0]
