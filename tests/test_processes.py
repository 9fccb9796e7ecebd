"""Facts about processes before they have joined a group; test_ddp has them in groups."""

import pytest

from convrec_r1.base import processes


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in (*processes.RANKS, *processes.NODES):
        monkeypatch.delenv(name, raising=False)


def test_a_process_of_its_own_is_the_first_and_only_one():
    assert (processes.rank(), processes.world_size(), processes.is_first()) == (0, 1, True)
    assert processes.in_group() == (0, 1)
    assert processes.gather("part") == ["part"]
    assert processes.share(lambda: 7) == 7
    processes.barrier()


@pytest.mark.parametrize("name", [*processes.RANKS, *processes.NODES])
def test_the_environment_says_which_process_this_is(monkeypatch, name):
    monkeypatch.setenv(name, "0")
    assert processes.is_first()
    monkeypatch.setenv(name, "3")
    assert not processes.is_first()
    assert processes.rank() == (3 if name in processes.RANKS else 0)
    assert processes.in_group() == (0, 1), "it has not joined yet"


def test_an_error_that_cannot_be_pickled_is_sent_as_its_text():
    class Local(Exception):
        pass

    error = processes._portable(Local("the disk is full"))
    assert (type(error), str(error)) == (RuntimeError, "Local: the disk is full")
    assert processes._portable(kept := ValueError("x")) is kept
