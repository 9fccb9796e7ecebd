"""What rollout workers cost: a sync of 0.5B parameters, lists a second, and the driver's share with many workers.

python experiments/bench_workers.py           # writes experiments/bench_workers.json

- sync: Qwen2.5-0.5B's shape with random float32 weights, one worker with rollout=hf; the time of `sync`, and of the first list
  after it.
- lists: a small model; the trainer's own engine with one thread, one worker, two workers.
- simulated: workers that wait a fixed time for each list, instead of sampling it, in front of the real pool: seconds of a
  rollout of 384 x 8 lists against the ideal, and the share of them in which the driver computes.
"""

import argparse
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as a worker with one CPU

import numpy as np

from convrec_r1.base.files import read_json, write_json
from convrec_r1.cluster.config import ClusterConfig
from convrec_r1.cluster.connect import connect
from convrec_r1.rollout.base import Completion, Sampling, prompt_seed

OUT = Path(__file__).with_suffix(".json")
QWEN_05B = {
    "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 4096,
}  # fmt: skip
SMALL = {**QWEN_05B, "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
         "num_attention_heads": 4}  # fmt: skip
PROMPTS, GROUP, TOKENS = 384, 8, 200


def policy_of(shape: dict[str, Any]):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from convrec_r1.policy import Policy
    from convrec_r1.policy.tiny import train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer(["Heat (1995)\n"], 400)
    return Policy(Qwen2ForCausalLM(Qwen2Config(**shape)), tokenizer)


def sync(cluster: ClusterConfig, repeats: int) -> dict[str, Any]:
    from convrec_r1.rollout.config import HFConfig
    from convrec_r1.rollout.engines import run_engine

    policy = policy_of(QWEN_05B)
    engine = run_engine(HFConfig(workers=1), policy, max_length=64, cluster=cluster)
    prompt = [[5, 6, 7]], [0], Sampling(max_tokens=1)
    syncs, firsts, seconds = [], [], []
    try:
        started = time.perf_counter()
        engine.sync(policy)
        engine.generate(*prompt)
        start = time.perf_counter() - started
        for _ in range(repeats + 2):  # the object store's memory is new at first
            started = time.perf_counter()
            engine.sync(policy)
            synced = time.perf_counter()
            engine.generate(*prompt)
            first = time.perf_counter()
            engine.generate(*prompt)
            syncs.append(synced - started)
            firsts.append(first - synced)
            seconds.append(time.perf_counter() - first)
    finally:
        engine.close()
    parameters = sum(p.numel() for p in policy.parameters())
    return {
        "parameters": parameters,
        "gib": parameters * 4 / 2**30,
        "start_s": start,
        "syncs_s": syncs,
        "sync_s": statistics.median(syncs[2:]),
        "first_list_s": statistics.median(firsts[2:]),
        "next_list_s": statistics.median(seconds),
        "load_s": statistics.median(firsts[2:]) - statistics.median(seconds),
    }


def lists(cluster: ClusterConfig, repeats: int) -> dict[str, Any]:
    import torch

    from convrec_r1.rollout.config import HFConfig
    from convrec_r1.rollout.engines import run_engine

    torch.set_num_threads(1)
    policy = policy_of(SMALL)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, 300, int(n)).tolist() for n in rng.integers(40, 120, 16)]
    given = prompts, [prompt_seed(0, 0, i) for i in range(len(prompts))], Sampling(n=8, max_tokens=40)
    found = {}
    for workers in (0, 1, 2):
        engine = run_engine(HFConfig(workers=workers, batch_size=64), policy, max_length=256, cluster=cluster)
        try:
            times = []
            for _ in range(repeats + 1):
                engine.sync(policy)
                started = time.perf_counter()
                engine.generate(*given)
                times.append(time.perf_counter() - started)
        finally:
            engine.close()
        found[f"{workers}_workers" if workers else "in_process"] = len(prompts) * 8 / statistics.median(times[1:])
    return {"lists_per_s": found, "two_against_one": found["2_workers"] / found["1_workers"]}


class Sleeper:
    """A worker that waits instead of sampling. It imports nothing large."""

    def __init__(self, a_list: float) -> None:
        """a_list: seconds for a list."""
        self.a_list = a_list

    def ready(self) -> tuple:
        return ("", "", 0, None, None, True)

    def sample(self, groups: int, n: int) -> tuple[np.ndarray, ...]:
        time.sleep(groups * n * self.a_list)
        total = groups * n
        ids = np.full(total * TOKENS, 7, np.int64)
        return ids, np.zeros(len(ids), np.float32), np.full(total, TOKENS), np.ones(total, bool)


def simulated(workers: int, cluster: ClusterConfig, repeats: int, a_list: float) -> dict[str, Any]:
    import ray

    from convrec_r1.rollout.workers.bundles import Packed, Request, compose
    from convrec_r1.rollout.workers.pool import Bundle, Job, Pool
    from convrec_r1.rollout.workers.weights import Version
    from convrec_r1.rollout.workers.worker import Identity

    class Reply:
        """A reference to what a Sleeper returns, as what a RolloutWorker would."""

        def __init__(self, ref: Any, kind: type) -> None:
            self.ref, self.kind = ref, kind

        def future(self):
            from concurrent.futures import Future

            outer: Future = Future()

            def done(inner) -> None:
                error = inner.exception()
                outer.set_exception(error) if error else outer.set_result(self.kind(*inner.result()))

            self.ref.future().add_done_callback(done)
            return outer

    class Handle:
        def __init__(self, actor: Any) -> None:
            self.actor, self.sample = actor, self

        def remote(self, version: Version, request: Request) -> Reply:
            return Reply(self.actor.sample.remote(len(request.prompts), request.sampling.n), Packed)

    class SleepPool(Pool):
        def _end(self, worker) -> None:
            worker.gone = True
            ray.kill(worker.actor.actor)

    kind: Any = ray.remote(Sleeper)

    def launch() -> tuple[Handle, Reply]:
        actor = kind.options(num_cpus=0).remote(a_list)
        return Handle(actor), Reply(actor.ready.remote(), Identity)

    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, 300, int(n)).tolist() for n in rng.integers(200, 600, PROMPTS)]
    sampling = Sampling(n=GROUP, max_tokens=TOKENS)
    with connect(cluster):
        pool = SleepPool(launch, workers, retries=0, timeout=600)
        while pool.live < workers:
            time.sleep(0.5)
        time.sleep(2)
        walls, shares = [], []
        for _ in range(repeats):
            started, busy = time.perf_counter(), time.process_time()
            job = Job(PROMPTS)
            bundles = [
                Bundle(places, Request([prompts[p] for p in places], list(places), sampling), Version(1), job)
                for places in compose([len(p) for p in prompts], GROUP, 256, workers)
            ]
            pool.submit(bundles)
            groups = job.result()
            walls.append(time.perf_counter() - started)
            shares.append((time.process_time() - busy) / walls[-1])
            assert isinstance(groups[-1][-1], Completion)
        pool.close()
    ideal = PROMPTS * GROUP * a_list / workers
    wall = statistics.median(walls)
    return {
        "a_list_s": a_list,
        "seconds": wall,
        "ideal_s": ideal,
        "efficiency": ideal / wall,
        "driver_share": statistics.median(shares),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--a-list", type=float, default=0.1, help="seconds of a simulated worker for a list")
    parser.add_argument("--parts", nargs="+", default=["sync", "lists", "simulated"])
    given = parser.parse_args()
    record: dict[str, Any] = {"machine": {"cpus": os.cpu_count(), "python": platform.python_version()}}
    if "sync" in given.parts:
        large = ClusterConfig(name="ray", cpus=2, object_store_gib=7)
        with connect(large):
            record["sync"] = sync(large, given.repeats)
    if "lists" in given.parts or "simulated" in given.parts:
        small = ClusterConfig(name="ray", cpus=2, object_store_gib=0.5)
        with connect(small):
            if "lists" in given.parts:
                record["lists"] = lists(small, given.repeats)
            if "simulated" in given.parts:
                record["simulated"] = {str(k): simulated(k, small, given.repeats, given.a_list) for k in given.workers}
    print(record)
    before = read_json(OUT) if OUT.exists() else {}
    record["simulated"] = {**before.get("simulated", {}), **record.get("simulated", {})}
    write_json(OUT, {**before, **record})


if __name__ == "__main__":
    main()
