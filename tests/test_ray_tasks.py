"""What Ray runs beside training, on one real Ray: blocks of Stage 1 (what the loop computes, to the last digit), servers of a
teacher, cells of sweeps."""

import asyncio
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from support import SMALL_MODEL, SMOKE
from test_adjust import wanting
from test_remap import random_inputs
from worker_engines import Answers

from convrec_r1.base.errors import UserError
from convrec_r1.cluster.blocks import LOOP, RayTasks
from convrec_r1.cluster.config import ClusterConfig, installed
from convrec_r1.cluster.connect import connect
from convrec_r1.distill import adjust
from convrec_r1.distill.adjust import cross_validate, fit_adjust
from convrec_r1.distill.config import RemapConfig, VLLMTeacherConfig
from convrec_r1.distill.remap import remap_rows
from convrec_r1.distill.scores import ScoreStore, blocks
from convrec_r1.distill.teachers.base import Chat, NoAnswer, Question
from convrec_r1.distill.teachers.workers import ServerPool, of_server
from convrec_r1.studies.cells import CellCommand
from convrec_r1.studies.config import RayLauncherConfig
from convrec_r1.studies.launcher import Cells
from convrec_r1.studies.ledger import CELL, Ledger

if not installed():
    pytest.skip("Ray is not installed", allow_module_level=True)
pytestmark = pytest.mark.processes("ray")


@pytest.fixture(scope="module")
def connection(nodes):
    with connect(ClusterConfig(name="ray", address=nodes.address)) as connection:
        yield connection


@pytest.fixture
def tasks(connection):
    return RayTasks()


def test_results_are_in_order_and_come_from_other_processes(tasks):
    def slow_first(block: int, bias: np.ndarray) -> tuple[int, float, int]:
        time.sleep(0.3 if block == 0 else 0)
        return block, float(bias.sum()), os.getpid()

    found = list(tasks.map(slow_first, range(6), np.ones(3)))
    assert [(block, bias) for block, bias, _ in found] == [(block, 3.0) for block in range(6)]
    assert os.getpid() not in {pid for *_, pid in found}
    kept = tasks.keep(lambda: iter(range(3)))
    assert [block for block, *_ in tasks.map(slow_first, kept, np.ones(1))] == [0, 1, 2]
    assert [block for block, *_ in tasks.map(slow_first, kept, np.ones(1))] == [0, 1, 2], (
        "kept blocks can be used again"
    )


def test_a_tasks_error_is_its_own(tasks):
    def refuse(block: int) -> None:
        raise UserError(f"not block {block}")

    with pytest.raises(UserError, match=r"^not block 0$"):
        list(tasks.map(refuse, [0]))


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_remap(tasks, kind):
    inputs, spans = random_inputs(3, 50, 40, 30, 16, kind), blocks(50, 7)
    assert sparse.issparse(inputs.catalog) == (kind == "sparse")
    loop, found = (list(each.map(remap_rows, spans, inputs, RemapConfig())) for each in (LOOP, tasks))
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


def test_cross_validation(tasks, tmp_path):
    rng = np.random.default_rng(4)
    truths = wanting(*rng.integers(0, 7, (150, 2)))
    with ScoreStore(tmp_path, 150, 7) as store:
        store.write(range(150), rng.normal(size=(150, 7)).astype(np.float32))
        folds = {"folds": 3, "clusters": [str(row) for row in range(150)], "cv_size": 100, "seed": 0}
        one, other = (
            cross_validate(store, range(150), truths, [0.1, 1.0], each=each, **folds) for each in (LOOP, tasks)
        )
        assert one == other


def test_servers_share_the_questions_and_what_dies_is_replaced(connection):
    """A server is killed, and an actor. Each question gets its own answer."""
    options = VLLMTeacherConfig(model="m", workers=2, concurrency=8, date="2026-01-01")
    connection.require([of_server(options)] * 2)
    pool, pids = ServerPool(options, Answers), set()

    async def answer(question: str) -> tuple[int, int]:
        """Ask as an interview does. Return the server and the actor that answered."""
        while True:
            try:
                found = await pool.answer(Question("recommend", (Chat("user", question),), 10, 10))
            except NoAnswer:
                continue
            said, _, processes = found.text.partition(": ")
            assert said == question
            server, guard, actor = map(int, processes.split())
            pids.update((server, guard, actor))
            return server, actor

    async def asked_eight() -> tuple[set[int], set[int]]:
        await answer("the first one")
        while not all(worker.up for worker in pool._workers):
            await asyncio.sleep(0.05)
        servers, actors = zip(*await asyncio.gather(*(answer(f"question {i}") for i in range(8))), strict=True)
        assert len(set(actors)) == 2
        return set(servers), set(actors)

    async def interview() -> None:
        servers, actors = await asked_eight()
        os.kill(min(servers), signal.SIGKILL)
        others, same = await asked_eight()
        assert same == actors
        assert len(others - servers) == 1, "its actor has started another"
        os.kill(min(actors), signal.SIGKILL)
        _, last = await asked_eight()
        assert len(last - actors) == 1, "another actor is there"
        await pool.close()

    asyncio.run(interview())
    assert len(pids) == 11  # three actors, and four servers with their guards
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


@pytest.fixture
def command(tmp_path):
    """A cell that trains for minutes."""
    book = Ledger(tmp_path / ".sweeps" / "1")
    book.folder.mkdir(parents=True)
    folder = tmp_path / "run"
    small = (*SMOKE, *SMALL_MODEL, "rl.steps=200", "eval.every=0", f"hydra.run.dir={folder}", f"outputs={tmp_path}")
    return CellCommand(book.folder, 3, folder, list(small), {CELL: str(book.file(3))}, "cpu", 1)


def test_a_cell_ends_with_its_ray_worker(connection, command):
    """Killed as Ray does it when a node has no memory left. What the cell cannot record itself is recorded."""
    cells = Cells(RayLauncherConfig(), connection)
    cells.submit(command)
    pid = until(lambda: Ledger(command.ledger).cells() and Ledger(command.ledger).cells()[0].pid)
    worker = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists())
    cells.wait([])
    assert cells.objectives == {3: None}
    (cell,) = Ledger(command.ledger).cells()
    assert cell.status == 1
    assert cell.why.startswith("its Ray worker ended")


def test_a_node_without_the_sweeps_folders_says_so(connection, command, tmp_path):
    cells = Cells(RayLauncherConfig(), connection)
    cells.submit(replace(command, ledger=tmp_path / "elsewhere"))
    cells.wait([])
    (cell,) = Ledger(tmp_path / "elsewhere").cells()
    assert "elsewhere does not exist on" in cell.why
    assert "storage that they share" in cell.why


def test_a_cell_that_never_has_room_is_refused(connection, command):
    with pytest.raises(UserError, match=r"hydra\.launcher\.num_cpus"):
        Cells(RayLauncherConfig(num_cpus=3), connection).submit(command)
    with pytest.raises(UserError, match=r"hydra\.launcher\.num_gpus"):
        Cells(RayLauncherConfig(), connection).submit(replace(command, accelerator="gpu"))


def until(condition, seconds: float = 60):
    """The first true value of a condition."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value
