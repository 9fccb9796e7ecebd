"""Which completions share an optimizer step: the same partition on any number of processes."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import examples

from convrec_r1.modules.meters import Meter
from convrec_r1.modules.minibatches import minibatches


def order(size: int):
    return lambda slot: torch.randperm(size, generator=torch.Generator().manual_seed(slot))


def partition(groups: int, size: int, count: int, world: int) -> list[set[tuple[int, int]]]:
    """The (slot, completion) pairs of each minibatch, over all processes."""
    share = groups // world
    parts: list[set[tuple[int, int]]] = [set() for _ in range(count)]
    for rank in range(world):
        slots = range(rank * share, (rank + 1) * share)
        cut = minibatches(slots, size, count, order(size))
        assert len(cut) == count
        assert len({len(rows) for rows in cut}) == 1, "no process waits for another, none is without a row"
        for part, rows in zip(parts, cut, strict=True):
            part |= {(slots[int(row) // size], int(row) % size) for row in rows}
    return parts


@settings(max_examples=examples(200))
@given(groups=st.integers(1, 24), size=st.integers(2, 16), count=st.integers(1, 48), world=st.integers(1, 6))
def test_the_partition_does_not_depend_on_the_number_of_processes(groups, size, count, world):
    assume(groups % world == 0 and (groups // world * size) % count == 0)  # what config/checks.py admits
    one = partition(groups, size, count, 1)
    assert partition(groups, size, count, world) == one
    assert set().union(*one) == {(slot, k) for slot in range(groups) for k in range(size)}
    assert sum(map(len, one)) == groups * size, "each completion once in a pass"
    if size % count == 0:
        assert all(len({slot for slot, _ in part}) == groups for part in one), "a share of every group in each"


def test_a_single_minibatch_is_the_batch_as_it_is():
    (rows,) = minibatches(range(4, 7), 2, 1, order(2))
    assert rows.tolist() == [0, 1, 2, 3, 4, 5]


def test_more_minibatches_than_completions_of_a_group_by_hand():
    """Four groups of two in four minibatches: halves of groups 0 and 2, of 1 and 3."""
    backwards = minibatches(range(4), 2, 4, lambda slot: torch.tensor([1, 0]))
    assert [rows.tolist() for rows in backwards] == [[1, 5], [3, 7], [0, 4], [2, 6]]


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="3 groups of 2 do not divide into 4 minibatches"):
        minibatches(range(3), 2, 4, order(2))


class Alone:
    """A module that is alone."""

    sum_over_devices = max_over_devices = staticmethod(torch.as_tensor)


def test_the_loss_of_a_step_is_a_mean_over_its_updates():
    step = Meter()
    for micro_batches in ([1.0, 2.0], [5.0]):  # the losses of an update's micro-batches add up
        update = Meter()
        for loss in micro_batches:
            update.sum("loss", torch.tensor(loss))
        update.mean("lr", 0.5)
        step.merge(update)
    assert step.reduce(Alone()) == {"lr": 0.5, "loss": 4.0}
