"""Does vLLM share the prompt among the lists of a group, and what does a sync cost? Writes experiments/bench_prefix.json.

python experiments/bench_prefix.py                       # the tiny model's shape; on a GPU add --shape qwen2.5-0.5b

The same requests with prefix caching and without it, in two engines that take turns. Before each turn both sync, which
empties the cache: every hit is of a list that reads the prompt of another list of its group.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_rollouts as bench
import torch

from convrec_r1.base.files import write_json
from convrec_r1.config.parts import matching
from convrec_r1.data.load import load_data
from convrec_r1.rollout.base import Sampling, prompt_seed
from convrec_r1.rollout.vllm import inprocess
from convrec_r1.rollout.vllm.inprocess import VLLMEngine
from convrec_r1.rollout.vllm.options import Setup, setup


def engine(cfg: Any, policy: Any, max_length: int, *, caching: bool) -> VLLMEngine:
    """Return a started engine with or without prefix caching."""

    def chosen(*arguments: Any, **options: Any) -> Setup:
        made = setup(*arguments, **options)
        return replace(made, arguments=made.arguments | {"enable_prefix_caching": caching})

    inprocess.setup = chosen
    made = VLLMEngine(cfg.rollout, policy, max_length=max_length)
    made.sync(policy)
    inprocess.setup = setup
    return made


class Lookups:
    """Counts what an engine's scheduler looks up in its prefix cache. vLLM's own counters are off in our engine."""

    def __init__(self, made: VLLMEngine) -> None:
        manager = made._llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager
        self.tokens = self.hits = 0
        inner = manager.get_computed_blocks

        def counted(request: Any) -> Any:
            found = inner(request)
            self.tokens += request.num_tokens
            self.hits += found[1]
            return found

        manager.get_computed_blocks = counted

    def take(self) -> float:
        """Return the share of tokens that were found since the last call."""
        share = self.hits / max(1, self.tokens)
        self.tokens = self.hits = 0
        return share


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    cfg = bench.config("rollout=vllm", "rollout.max_num_seqs=64", "logger=none", "data.train_size=200")
    cfg.model.max_prompt_length = max(arguments.prompts)
    policy = bench.make_policy(cfg, load_data(cfg.data, cfg.n, matching(cfg), need=["train"]), arguments.shape)
    policy = policy.to("cuda" if torch.cuda.is_available() else "cpu")
    limit = max(arguments.prompts) + arguments.tokens
    engines = {caching: engine(cfg, policy, limit, caching=caching) for caching in (True, False)}
    lookups = {caching: Lookups(made) for caching, made in engines.items()}
    found: dict[str, Any] = {
        "machine": bench.machine(), "model": arguments.shape,
        "block": engines[True]._llm.llm_engine.vllm_config.cache_config.block_size,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(n=arguments.group, max_tokens=arguments.tokens)
    for length in arguments.prompts:
        prompts = torch.randint(300, 900, (arguments.groups, length), generator=generator).tolist()
        seeds = [prompt_seed(0, 0, i) for i in range(len(prompts))]
        took: dict[bool, list[float]] = {True: [], False: []}
        shares: dict[bool, float] = {}
        for turn in range(arguments.repeats + 1):
            for caching, made in engines.items():
                made.sync(policy)
                lookups[caching].take()
                seconds = bench.clock(
                    lambda made=made, prompts=prompts, seeds=seeds: made.generate(prompts, seeds, sampling)
                )
                if turn:
                    took[caching].append(seconds)
                shares[caching] = lookups[caching].take()
        shared, alone = (statistics.median(took[caching]) for caching in (True, False))
        found[f"prompts of {length}"] = {
            "share of prompt tokens read from the cache": shares[True], "seconds": shared, "seconds without": alone,
            "without / with": statistics.median(b / a for a, b in zip(took[True], took[False], strict=True)),
        }  # fmt: skip
    made = engines[True]
    found["sync, ms"] = 1e3 * statistics.median(bench.clock(lambda: made.sync(policy)) for _ in range(11))
    made.check.every = 0
    found["sync without checksum, ms"] = 1e3 * statistics.median(
        bench.clock(lambda: made.sync(policy)) for _ in range(11)
    )
    for made in engines.values():
        made.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", "qwen2.5-0.5b"), default="tiny")
    parser.add_argument("--prompts", type=int, nargs="+", default=[250, 500, 1000, 2000], help="tokens")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--group", type=int, default=8, help="lists of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="of a list")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "bench_prefix.json")
    arguments = parser.parse_args()
    found = measure(arguments)
    write_json(arguments.out, found)
    for name, value in found.items():
        print(name, value)


if __name__ == "__main__":
    main()
