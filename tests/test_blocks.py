"""Blocks computed as Ray tasks are what the loop computes, to the last digit and in order."""

import os

import numpy as np
import pytest
from convrec_r1.cluster.config import ClusterConfig
from convrec_r1.cluster.connect import connect
from scipy import sparse
from test_adjust import wanting
from test_remap import random_inputs

from convrec_r1.base.errors import UserError
from convrec_r1.cluster.blocks import LOOP, RayTasks
from convrec_r1.distill import adjust
from convrec_r1.distill.adjust import cross_validate, fit_adjust
from convrec_r1.distill.config import RemapConfig
from convrec_r1.distill.pipeline import _scores
from convrec_r1.distill.scores import ScoreStore, blocks

pytestmark = pytest.mark.processes("ray")


@pytest.fixture(scope="module")
def tasks():
    pytest.importorskip("ray")
    with connect(ClusterConfig(name="ray", cpus=2, gpus=0, object_store_gib=0.1)):
        yield RayTasks()


def slow_first(block: int, bias: np.ndarray) -> tuple[int, float, int]:
    import time

    time.sleep(0.3 if block == 0 else 0)
    return block, float(bias.sum()), os.getpid()


def refuse(block: int) -> None:
    raise UserError(f"not block {block}")


def test_results_are_in_order_and_come_from_other_processes(tasks):
    found = list(tasks.map(slow_first, range(6), np.ones(3)))
    assert [(block, bias) for block, bias, _ in found] == [(block, 3.0) for block in range(6)]
    assert os.getpid() not in {pid for *_, pid in found}
    kept = tasks.keep(lambda: iter(range(3)))
    assert [block for block, *_ in tasks.map(slow_first, kept, np.ones(1))] == [0, 1, 2]
    assert [block for block, *_ in tasks.map(slow_first, kept, np.ones(1))] == [0, 1, 2], (
        "kept blocks can be used again"
    )


def test_a_tasks_error_is_its_own(tasks):
    with pytest.raises(UserError, match=r"^not block 0$"):
        list(tasks.map(refuse, [0]))


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_remap(tasks, kind):
    inputs, spans = random_inputs(3, 50, 40, 30, 16, kind), blocks(50, 7)
    assert sparse.issparse(inputs.catalog) == (kind == "sparse")
    loop, found = (list(each.map(_scores, spans, inputs, RemapConfig())) for each in (LOOP, tasks))
    assert len(found) == 8
    for one, other in zip(loop, found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("precise", [2**24, 0])
def test_adjust(tasks, tmp_path, monkeypatch, precise):
    monkeypatch.setattr(adjust, "_AT_A_TIME", 7 * 40)
    monkeypatch.setattr(adjust, "_PRECISE", precise)
    rng = np.random.default_rng(4)
    truths = wanting(*rng.integers(0, 7, (150, 2)))
    with ScoreStore(tmp_path, 150, 7) as store:
        store.write(range(150), rng.normal(size=(150, 7)).astype(np.float32))
        loop, found = (fit_adjust(store, range(150), truths, 0.1, each) for each in (LOOP, tasks))
        np.testing.assert_array_equal(found.w, loop.w)
        np.testing.assert_array_equal(found.b, loop.b)
        assert (found.nll, found.iterations) == (loop.nll, loop.iterations)
        folds = {"folds": 3, "clusters": [str(row) for row in range(150)], "cv_size": 100, "seed": 0}
        one, other = (
            cross_validate(store, range(150), truths, [0.1, 1.0], each=each, **folds) for each in (LOOP, tasks)
        )
        assert one == other
