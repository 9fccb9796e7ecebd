"""Rollouts sampled some steps ahead: as many steps old, corrected, and the same after an interruption."""

import copy
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import pytest
import torch
from support import PowerCut, power_cut, rl_module
from test_modules import DATA, config, distance, warm_policy

from convrec_r1.base.files import read_jsonl
from convrec_r1.modules.fit import fit
from convrec_r1.modules.step import StepLoader
from convrec_r1.policy import PromptEncoder
from convrec_r1.rollout.base import Completion, Sampling
from convrec_r1.rollout.hf import HFEngine
from convrec_r1.rollout.pipeline import Order, Pipeline
from convrec_r1.run.tracker import JsonlSink, Tracker

pytestmark = pytest.mark.long

TIMES = ("time/", "tokens_per_second")


@pytest.fixture(scope="module")
def warm():
    torch.set_num_threads(1)
    return warm_policy()


class CopyEngine(HFEngine):
    """Samples from weights of its own, as a server does: what the last sync gave it. Counts its calls."""

    def __init__(self, policy, **options) -> None:
        super().__init__(copy.deepcopy(policy), **options)
        self.syncs = self.samples = 0
        self.busy = threading.Lock()
        self.thread = ThreadPoolExecutor(1)
        self.submitted: list[Future] = []

    def submit(self, prompts, seeds, sampling):
        self.submitted.append(self.thread.submit(self.generate, prompts, seeds, sampling))
        return self.submitted[-1]

    def sync(self, policy) -> None:
        wait(self.submitted)
        assert not self.busy.locked(), "weights must not change while a group is sampled"
        self.syncs += 1
        self.policy = copy.deepcopy(policy)

    def generate(self, *arguments, **options):
        with self.busy:
            self.samples += 1
            return super().generate(*arguments, **options)


def reinforce(policy, cfg, folder, make_engine=CopyEngine, callbacks=(), samples=DATA["train"]):
    policy = copy.deepcopy(policy)
    encoder = PromptEncoder(policy.tokenizer, "Recommend {n} movies.", cfg.n, 128)
    engine = make_engine(policy, batch_size=64)
    loader = StepLoader(samples, cfg.rl.prompts_per_step, cfg.rl.steps, cfg.seed)
    tracker = Tracker([JsonlSink(folder / "metrics.jsonl")])
    module = rl_module(policy, engine, encoder, DATA.catalog, cfg, tracker, loader)
    fit(module, loader, cfg.trainer, folder / "checkpoints", description="test", callbacks=callbacks)
    rows = [record["values"] for record in read_jsonl(folder / "metrics.jsonl")]
    return policy.state_dict(), rows, engine


def ahead(*overrides: str, overlap: int = 1):
    """As if workers sampled: the check that asks for them is made on configs, not here."""
    cfg = config("rl.steps=5", *overrides)
    cfg.rollout.overlap = overlap
    return cfg


def test_without_overlap_a_copy_samples_what_the_policy_itself_would(warm, tmp_path):
    mine, rows, _ = reinforce(warm, config("rl.steps=4"), tmp_path / "a", HFEngine)
    copied, others, engine = reinforce(warm, config("rl.steps=4"), tmp_path / "b")
    assert all(torch.equal(mine[name], copied[name]) for name in mine)
    assert engine.syncs == 1 + 4
    for row, other in zip(rows, others, strict=True):
        assert {k: v for k, v in row.items() if not k.startswith(TIMES)} == {
            k: v for k, v in other.items() if not k.startswith(TIMES)
        }
        assert row["sampling/staleness"] == 0


@pytest.mark.parametrize("overlap", [1, 2, 9])
def test_rollouts_ahead_are_as_many_steps_old(warm, tmp_path, overlap):
    _, rows, engine = reinforce(warm, ahead(overlap=overlap), tmp_path)
    assert [row["sampling/staleness"] for row in rows] == [min(step, overlap) for step in range(5)]
    assert engine.samples == 5, "each step's rollouts are sampled once"
    assert engine.syncs == 1 + 5
    # The first step's come from the weights it trains; later ones show the update in between.
    drift = [row["sampling/sampling_logp_difference/mean"] for row in rows]
    assert drift[0] < 1e-6
    assert min(drift[1:]) > 1e-4


def test_the_second_step_trains_on_what_the_first_weights_say(warm, tmp_path):
    """Not on what the weights after step one would say: with overlap both steps are sampled before any update."""
    cfg = ahead()
    frozen = ahead("rl.lr=1e-12")  # weights that stay where they are
    _, moving, _ = reinforce(warm, cfg, tmp_path / "moving")
    _, still, _ = reinforce(warm, frozen, tmp_path / "still")
    for name in ("reward", "completions/mean_length", "list/length"):
        assert moving[1][name] == pytest.approx(still[1][name], rel=1e-6)
    assert moving[3]["completions/mean_length"] != still[3]["completions/mean_length"]


def test_the_correction_bears_on_stale_rollouts_alone(warm, tmp_path):
    def run(name: str, *overrides: str):
        # A step so small that lists become likelier as well as less likely.
        return reinforce(warm, ahead("rl.lr=1e-3", *overrides), tmp_path / name)

    _, none, _ = run("none", "rollout.correction=none")
    _, rows, _ = run("truncate", "rollout.correction=truncate", "rollout.correction_high=1.001")
    assert rows[0]["loss"] == pytest.approx(none[0]["loss"], abs=1e-6)
    assert rows[0]["sampling/correction_active"] == 0
    assert rows[1]["sampling/correction_active"] > 0
    assert rows[1]["loss"] != pytest.approx(none[1]["loss"], abs=1e-6)
    assert rows[1]["sampling/importance_sampling_ratio/max"] > 1.001


@pytest.mark.parametrize("overlap", [1, 2])
def test_a_run_that_samples_ahead_goes_on_from_its_checkpoint_with_the_same_lists(warm, tmp_path, overlap):
    cfg = ahead(overlap=overlap)
    whole, rows, _ = reinforce(warm, cfg, tmp_path / "whole")

    with pytest.raises(PowerCut):
        reinforce(warm, cfg, tmp_path / "cut", callbacks=[power_cut(3, total=5)])
    resumed, again, engine = reinforce(warm, cfg, tmp_path / "cut")
    assert distance(whole, resumed) == 0
    assert engine.samples == 3 - overlap, "the others of steps 3 to 5 were in the checkpoint"
    assert [row["sampling/staleness"] for row in again[-3:]] == [overlap] * 3
    for row, other in zip(rows[2:], again[-3:], strict=True):
        assert row["reward"] == other["reward"]


def test_what_goes_wrong_in_the_thread_stops_the_run(warm, tmp_path):
    class Breaks(CopyEngine):
        def generate(self, *arguments, **options):
            if self.samples == 2:
                raise ConnectionError("the server is gone")
            return super().generate(*arguments, **options)

    with pytest.raises(ConnectionError, match="the server is gone"):
        reinforce(warm, ahead(), tmp_path, Breaks)


class Echo:
    """Answers each prompt with its seed."""

    def generate(self, prompts, seeds, sampling, on_progress=None):
        return [[Completion(np.array([seed]), np.zeros(1, np.float32), "stop")] for seed in seeds]

    def submit(self, prompts, seeds, sampling):
        done = Future()
        done.set_result(self.generate(prompts, seeds, sampling))
        return done


def test_rollouts_of_another_order_are_not_handed_over():
    pipeline = Pipeline(Echo(), Sampling(), overlap=1)
    pipeline.submit(Order(1, [[1]], [10]), version=0)
    taken = pipeline.take(Order(1, [[1]], [11]), version=1)
    assert taken.groups[0][0].ids.tolist() == [11]
    assert taken.staleness == 0
    pipeline.submit(Order(2, [[1]], [12]), version=1)
    assert pipeline.ready() == 1
    taken = pipeline.take(Order(2, [[1]], [12]), version=2)
    assert taken.staleness == 1
    assert pipeline.ready() == 0
    assert pipeline.state_dict(3) == {}, "what was taken is not handed over again after a restart"


def test_the_state_is_plain_and_comes_back(tmp_path):
    pipeline = Pipeline(Echo(), Sampling(), overlap=2)
    orders = [Order(step, [[1, 2], [3]], [5 + step, 6]) for step in (3, 4, 5)]
    for order in orders:
        pipeline.submit(order, version=order.step - 2)
    torch.save(pipeline.state_dict(3), tmp_path / "state.pt")
    other = Pipeline(Echo(), Sampling(), overlap=2)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [other.has(step) for step in (3, 4, 5)] == [True, True, False], (
        "step 5 is sampled from the weights of step 3"
    )
    taken = other.take(orders[0], version=3)
    assert [[c.ids.tolist() for c in group] for group in taken.groups] == [[[8]], [[6]]]
    assert taken.version == 1
    other.load_state_dict({})
    other.close()
    assert not other.has(4)
