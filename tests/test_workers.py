"""rollout.workers on a real Ray of two nodes: whatever happens to workers, lists and weights are as if nothing had."""

import copy
import importlib.util
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray_nodes import STORE
from support import PowerCut, make_config, power_cut, rl_module, tiny_policy
from test_modules import DATA, config, warm_policy
from test_weights import with_lora

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_jsonl
from convrec_r1.cluster.config import ClusterConfig
from convrec_r1.cluster.connect import connect
from convrec_r1.matching import Normalised
from convrec_r1.modules.callbacks import Watch
from convrec_r1.modules.fit import fit
from convrec_r1.modules.step import StepLoader
from convrec_r1.policy import PromptEncoder
from convrec_r1.policy.skeleton import load_weights, skeleton
from convrec_r1.policy.weights import stream_weights
from convrec_r1.rollout.base import Completion, Sampling, prompt_seed
from convrec_r1.rollout.checksums import SyncError
from convrec_r1.rollout.config import HFConfig, RolloutConfig, vllm_version
from convrec_r1.rollout.constraint import Constraint, Opening
from convrec_r1.rollout.engines import run_engine
from convrec_r1.rollout.hf import HFEngine
from convrec_r1.rollout.workers.bundles import compose, pack, unpack
from convrec_r1.run.tracker import JsonlSink, Tracker

pytestmark = pytest.mark.long
on_ray = pytest.mark.processes("ray")

PROMPTS = [[5 + i, 6, 7 + i, *range(8, 8 + i)] for i in range(8)]
SEEDS = [prompt_seed(0, 0, i) for i in range(8)]
SAMPLING = Sampling(n=3, max_tokens=30)
TIMES = ("time/", "tokens_per_second", "rollout/")


# Bundles


@given(
    st.lists(st.integers(1, 60), max_size=60), st.integers(1, 20), st.integers(1, 300), st.integers(1, 70)
)  # fmt: skip
def test_every_group_is_in_one_bundle(lengths, group, capacity, workers):
    bundles = compose(lengths, group, capacity, workers)
    assert sorted(place for bundle in bundles for place in bundle) == list(range(len(lengths)))
    for bundle in bundles:
        assert len(bundle) == 1 or len(bundle) * group <= capacity
        assert len(bundle) <= -(-len(lengths) // workers)
    longest = [max(lengths[place] for place in bundle) for bundle in bundles]
    assert longest == sorted(longest, reverse=True)
    assert compose(lengths, group, capacity, workers) == bundles


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 8), st.integers(1, 64))
def test_one_worker_gets_the_batches_of_the_trainers_own_engine(lengths, group, capacity):
    engine = HFEngine.__new__(HFEngine)
    engine.batch_size, engine._bytes = max(group, capacity), 0
    batches = [sorted({p for p, _ in rows}) for rows in engine._batches(lengths, Sampling(n=group))]
    assert compose(lengths, group, max(group, capacity), 1)[::-1] == batches


def test_packed_groups_come_back():
    rng = np.random.default_rng(0)
    groups = [
        [
            Completion(rng.integers(0, 9, t), rng.random(t, dtype=np.float32), "stop" if t % 2 else "length")
            for t in rng.integers(1, 9, 3)
        ]
        for _ in range(4)
    ]
    back = unpack(pack(groups), 3)
    assert same(back, groups)
    back[0][0].ids[0] = 1  # they can be written to
    assert unpack(pack([]), 3) == []


@pytest.mark.parametrize("kind", ["tied", "untied", "lora"])
def test_a_skeleton_with_the_weights_is_the_policy(kind):
    policy = with_lora(tiny_policy()) if kind == "lora" else tiny_policy()
    if kind == "untied":
        policy.head.weight = torch.nn.Parameter(policy.head.weight.detach().clone())
    bare = skeleton(policy)
    assert all(weight.is_meta for weight in bare.parameters())
    load_weights(bare, stream_weights(policy))
    prompts = PROMPTS[:3], SEEDS[:3], SAMPLING
    assert same(
        HFEngine(bare, batch_size=9).generate(*prompts), HFEngine(policy, batch_size=9).generate(*prompts), 1e-5
    )
    with pytest.raises(ValueError, match="Weights are missing"):
        load_weights(bare, list(stream_weights(policy))[1:])


def same(a, b, tolerance: float = 0.0) -> bool:
    """Whether two lists of groups are the same: to the bit, if there is no tolerance for log-probs."""
    return len(a) == len(b) and all(
        len(g) == len(h)
        and np.array_equal(x.ids, y.ids)
        and (np.abs(x.logprobs - y.logprobs) <= tolerance).all()
        and x.finish_reason == y.finish_reason
        for g, h in zip(a, b, strict=True)
        for x, y in zip(g, h, strict=True)
    )


# Workers


@pytest.fixture(scope="module")
def warm():
    torch.set_num_threads(1)
    return warm_policy()


@pytest.fixture(scope="module")
def connected(nodes):
    """The nodes. This process is connected as long as engines come and go."""
    with connect(ClusterConfig(name="ray", address=nodes.address)):
        yield nodes


@pytest.fixture(scope="module")
def engines(connected, warm):
    """Makes engines over workers, and closes them."""
    made = []

    def make(rollout: RolloutConfig, policy=warm):
        for engine in made:  # there is room for two workers
            engine.close()
        cluster, constraint = ClusterConfig(name="ray", address=connected.address), constraint_of(policy)
        made.append(run_engine(rollout, policy, max_length=256, cluster=cluster, constraint=constraint))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture(scope="module")
def shared_engine(engines):
    return engines(HFConfig(batch_size=4, workers=2, timeout=180.0))


@pytest.fixture
def engine(shared_engine, warm):
    """Two workers, which the tests share: starting one takes seconds."""
    shared_engine.sync(warm)
    until(lambda: shared_engine.metrics()["rollout/workers"] == 2)
    return shared_engine


def until(condition, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def moved(policy, by: float = 0.05):
    policy = copy.deepcopy(policy)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * by)
    return policy


def expected(policy, prompts=PROMPTS, seeds=SEEDS):
    """The lists of an undisturbed run: groups of 3 fit one by one into batches of 4."""
    return HFEngine(policy, batch_size=4).generate(prompts, seeds, SAMPLING)


def pids(engine) -> list[int]:
    return [worker.identity.pid for worker in engine._pool.workers if worker.identity]


def constraint_of(policy) -> Constraint:
    return Constraint.of(DATA.catalog, Normalised(), policy)


def held(constraint) -> list[Opening]:
    """Openings for `PROMPTS`: other titles are closed to each, and half of them take their items from a part."""
    items = constraint.lines.items
    part = constraint.subset(items[::2])
    return [constraint.opening(3, [items[k].title], subset=part if k % 2 else None) for k in range(len(PROMPTS))]


def many_prompts(count: int = 60):
    """Enough groups for a worker to be in the middle of some at any time."""
    return [[5 + i % 40, 6, 7] for i in range(count)], [prompt_seed(1, 0, i) for i in range(count)]


@on_ray
def test_lists_are_those_of_the_trainers_own_engine(engine, warm):
    told = []
    assert same(engine.generate(PROMPTS, SEEDS, SAMPLING, told.append), expected(warm))
    assert sum(told) == 24
    assert engine.generate([], [], SAMPLING) == []


@on_ray
def test_workers_hold_lists_to_the_catalog(engine, warm):
    constraint = constraint_of(warm)
    sampling, own = Sampling(n=3, max_tokens=120), HFEngine(warm, batch_size=4, constraint=constraint)
    expected = own.generate(PROMPTS, SEEDS, sampling, openings=held(constraint))
    assert same(engine.generate(PROMPTS, SEEDS, sampling, openings=held(constraint)), expected)
    assert not same(engine.generate(PROMPTS, SEEDS, sampling), expected)


@on_ray
def test_what_was_submitted_keeps_its_weights(engine, warm):
    ordered = [engine.submit(PROMPTS, SEEDS, SAMPLING)]
    other = moved(warm)
    engine.sync(other)
    ordered.append(engine.submit(PROMPTS, SEEDS, SAMPLING))
    engine.sync(warm)
    first, second = (order.result() for order in ordered)
    assert same(first, expected(warm))
    assert same(second, expected(other))
    assert not same(first, second)
    dropped = engine.submit(*many_prompts(), SAMPLING)
    dropped.cancel()
    until(dropped.done)
    assert same(engine.generate(PROMPTS, SEEDS, SAMPLING), first)


@on_ray
def test_a_node_leaves_and_another_one_joins(nodes, engine, warm):
    prompts, seeds = many_prompts()
    ordered = engine.submit(prompts, seeds, SAMPLING)
    gone = nodes.worker_nodes.copy().pop()
    nodes.remove_node(gone, allow_graceful=False)
    assert same(ordered.result(), expected(warm, prompts, seeds))
    assert engine.metrics()["rollout/workers"] == 1, "the run continues with the workers that are left"
    assert same(engine.generate(PROMPTS, SEEDS, SAMPLING), expected(warm))
    nodes.add_node(num_cpus=1, object_store_memory=STORE)
    until(lambda: engine.metrics()["rollout/workers"] == 2)
    assert same(engine.generate(PROMPTS, SEEDS, SAMPLING), expected(warm))


@on_ray
@pytest.mark.skipif(importlib.util.find_spec("nixl") is None, reason="nixl is not installed")
def test_weights_are_read_from_the_trainer(engines, warm):
    """As versions: whatever the optimizer does to the trainer's own; by a worker that comes late, too."""
    engine = engines(HFConfig(batch_size=4, workers=2, transfer="nixl"))
    trained = copy.deepcopy(warm)
    engine.sync(trained)
    ordered = engine.submit(*many_prompts(), SAMPLING)
    until(lambda: all(worker.bundle for worker in engine._pool.workers) and len(pids(engine)) == 2)
    os.kill(pids(engine)[0], signal.SIGKILL)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.zero_()
    assert same(ordered.result(), expected(warm, *many_prompts()))
    until(lambda: engine.metrics()["rollout/workers"] == 2)
    for synced in (moved(warm), warm):
        engine.sync(synced)
        assert same(engine.generate(PROMPTS, SEEDS, SAMPLING), expected(synced))


# Training


class Beside(HFEngine):
    """Samples in a thread of the trainer's process, from a copy of the weights."""

    def __init__(self, policy, **options) -> None:
        super().__init__(copy.deepcopy(policy), **options)
        self.thread, self.submitted = ThreadPoolExecutor(1), []

    def submit(self, prompts, seeds, sampling):
        self.submitted.append(self.thread.submit(self.generate, prompts, seeds, sampling))
        return self.submitted[-1]

    def sync(self, policy) -> None:
        wait(self.submitted)
        self.policy = copy.deepcopy(policy)


def reinforce(policy, overlap: int, folder, engine=None, callbacks=(), steps: int = 6):
    cfg = config(f"rl.steps={steps}", "rollout=hf", "rollout.batch_size=4")
    cfg.rollout.overlap = overlap
    engine = engine or Beside(policy, batch_size=4)
    encoder = PromptEncoder(policy.tokenizer, "Recommend {n} movies.", cfg.n, 128)
    loader = StepLoader(DATA["train"], cfg.rl.prompts_per_step, cfg.rl.steps, cfg.seed)
    tracker = Tracker([JsonlSink(folder / "metrics.jsonl")])
    module = rl_module(policy, engine, encoder, DATA.catalog, cfg, tracker, loader)
    try:
        fit(module, loader, cfg.trainer, folder / "checkpoints", description="test", callbacks=callbacks)
    finally:
        module.pipeline.close()
    rows = [record["values"] for record in read_jsonl(folder / "metrics.jsonl")]
    return policy.state_dict(), rows


def assert_equal(weights, others, rows, other_rows) -> None:
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    for row, other in zip(rows, other_rows, strict=True):
        assert {k: v for k, v in row.items() if not k.startswith(TIMES)} == {
            k: v for k, v in other.items() if not k.startswith(TIMES)
        }


@on_ray
@pytest.mark.parametrize(("overlap", "number"), [(0, None), (1, signal.SIGKILL), (2, signal.SIGSTOP)])
def test_training_with_a_worker_that_dies_or_hangs_is_training_without(engine, warm, tmp_path, overlap, number):
    weights, rows = reinforce(copy.deepcopy(warm), overlap, tmp_path / "alone")
    assert [row["sampling/staleness"] for row in rows] == [min(step, overlap) for step in range(6)]
    struck, faults = pids(engine)[0], engine._pool.counts["faults"]
    trained = copy.deepcopy(warm)

    def strike(step: int) -> float:
        if number and step == 3:
            # An order besides the step's, so that both workers are in the middle of something.
            prompts, seeds = many_prompts()
            ordered = engine.submit(prompts, seeds, SAMPLING)
            until(lambda: all(worker.bundle for worker in engine._pool.workers))
            os.kill(struck, number)
            assert same(ordered.result(), expected(trained, prompts, seeds))
        return 0.0

    engine._pool.timeout = 5.0
    try:
        watch = Watch(strike, every=1, total=6)
        found, others = reinforce(trained, overlap, tmp_path / "workers", engine, [watch])
    finally:
        engine._pool.timeout = 180.0
    assert_equal(weights, found, rows, others)
    assert engine._pool.counts["faults"] == faults + bool(number)
    assert others[-1]["rollout/faults"] == faults + bool(number)
    assert ("rollout/ready" in others[-1]) == bool(overlap)
    assert (struck in pids(engine)) == (number is None)
    assert os.path.exists(f"/proc/{struck}") == (number is None), "no process stays behind"


@on_ray
@pytest.mark.parametrize("overlap", [1, 2])
def test_a_run_that_was_cut_off_resumes_with_the_same_lists(engine, warm, tmp_path, overlap):
    weights, rows = reinforce(copy.deepcopy(warm), overlap, tmp_path / "whole")
    with pytest.raises(PowerCut):
        reinforce(copy.deepcopy(warm), overlap, tmp_path / "cut", engine, [power_cut(3, total=6)])
    found, again = reinforce(copy.deepcopy(warm), overlap, tmp_path / "cut", engine)
    assert_equal(weights, found, rows[2:], again[-4:])


# Faults that end a run


def sampled(engine, policy):
    engine.sync(policy)
    return engine.generate(PROMPTS, SEEDS, SAMPLING)


def faulty(kind: str, **changes: Any) -> HFConfig:
    return HFConfig(_target_=f"worker_engines.{kind}", batch_size=4, workers=1, **changes)


@on_ray
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Dies", r"failed 2 times \(rollout.retries=1\).* worker 2 \(process \d+ on .*the end is near.*same command"),
        ("Raises", r"failed 1 times \(rollout.retries=0\).*RuntimeError: CUDA out of memory, or so"),
    ],
    ids=["dies", "raises"],
)
def test_out_of_retries_ends_with_the_last_words(engines, warm, kind, message):
    engine = engines(faulty(kind, retries=int(kind == "Dies")))
    with pytest.raises(UserError, match=f"(?s){message}"):
        sampled(engine, warm)


@on_ray
def test_other_weights_are_never_sampled_from(engines, warm):
    engine = engines(faulty("Forgets"))
    engine.sync(warm)
    with pytest.raises(
        SyncError, match=r"A rollout worker does not have the trainer's weights after sync 1: .* differ in "
    ):
        engine.generate(PROMPTS, SEEDS, SAMPLING)
    with pytest.raises(SyncError):
        engine.generate(PROMPTS[:1], SEEDS[:1], SAMPLING)


@on_ray
def test_a_cluster_without_room_is_refused(engines, warm):
    engine = engines(HFConfig(workers=3))
    with pytest.raises(UserError, match="rollout worker"):
        engine.sync(warm)


@on_ray
@pytest.mark.skipif(vllm_version() is None, reason="vLLM is not installed (make setup-vllm)")
def test_vllm_samples_in_a_worker(engines):
    policy = tiny_policy()  # vLLM's kernels take heads of this size
    rollout = make_config("rollout=vllm", "rollout.max_num_seqs=16", "rollout.workers=1").rollout
    engine = engines(rollout, policy)
    greedy = Sampling(temperature=0, max_tokens=12)
    for synced in (policy, moved(policy)):
        engine.sync(synced)
        groups = engine.generate(PROMPTS, SEEDS, greedy)
        own = HFEngine(synced, batch_size=8).generate(PROMPTS, SEEDS, greedy)
        assert [c.ids.tolist() for (c,) in groups] == [c.ids.tolist() for (c,) in own]
    constraint = constraint_of(policy)
    openings = held(constraint)
    for opening, (completion,) in zip(
        openings, engine.generate(PROMPTS, SEEDS, greedy, openings=openings), strict=True
    ):
        list(constraint.replay(opening, completion.ids))
