"""How fast rollout=hf samples the G lists of a prompt. Prints a table of seconds and of peak memory.

python experiments/bench_decoding.py --threads 2

engine: rollout=hf. bare: a loop over transformers' DynamicCache in which every list has its prompt, sampling with
`torch.multinomial`: what anybody would write first. They take turns. The weights are random, so that lists run to their limit.
"""

import argparse
import platform
import statistics
from typing import Any

import torch
from transformers import DynamicCache

from convrec_r1.data import movieland
from convrec_r1.modules.measure import wall_time
from convrec_r1.modules.memory import peak_memory
from convrec_r1.policy import Policy, build_policy
from convrec_r1.policy.config import ModelConfig, ModelSource
from convrec_r1.policy.prompts import dialogue
from convrec_r1.rollout.base import Sampling
from convrec_r1.rollout.hf import HFEngine


@torch.no_grad()
def bare(policy: Policy, prompts: list[list[int]], group: int, tokens: int) -> None:
    """Sample `tokens` tokens for `group` copies of each prompt. All prompts have one length."""
    lm: Any = policy.causal_lm
    cache, ids = DynamicCache(), torch.tensor(prompts, device=policy.device).repeat_interleave(group, 0)
    for _ in range(tokens):
        logits = lm(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        ids = torch.multinomial(logits.float().softmax(-1), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[250, 500, 1000, 2000], help="tokens of the prompts")
    parser.add_argument("--groups", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=200, help="of a list")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=("engine", "bare"), help="leave the other out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = movieland.load(seed=0, n_items=10, sizes={"train": 500, "validation": 1, "test": 1})
    corpus = [dialogue(c) for c in data["train"]]
    policy = build_policy(ModelConfig(name="tiny", source=ModelSource.tiny), seed=0, corpus=lambda: corpus)
    policy.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    with torch.no_grad():
        policy.eos.zero_()  # lists have one length
    policy.eos_ids = [-1]
    size = sum(p.numel() for p in policy.parameters()) / 1e6
    print(f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, {size:.1f}M parameters")
    print(
        "| prompt | lists | engine, s | bare, s | bare / engine | engine, MB | bare, MB |\n|--:|--:|--:|--:|--:|--:|--:|"
    )
    for length in arguments.lengths:
        for group in arguments.groups:
            print(case(policy, arguments, length, group), flush=True)


def case(policy: Policy, arguments: argparse.Namespace, length: int, group: int) -> str:
    """Return the row of the table for prompts of `length` tokens with `group` lists each."""
    shape, random = (arguments.prompts, length), torch.Generator().manual_seed(length)
    prompts = torch.randint(len(policy.tokenizer), shape, generator=random).tolist()
    engine = HFEngine(policy, batch_size=arguments.prompts * group)
    sampling, seeds = Sampling(n=group, max_tokens=arguments.tokens), [p << 20 for p in range(len(prompts))]
    works = {
        "engine": lambda: engine.generate(prompts, seeds, sampling),
        "bare": lambda: bare(policy, prompts, group, arguments.tokens),
    }
    took: dict[str, list[float]] = {name: [] for name in works if arguments.only in (None, name)}
    peaks = {"engine": 0, "bare": 0}
    for name in took:
        with peak_memory(policy.device) as found:  # warms up, too
            works[name]()
        peaks[name] = found[0]
    for _ in range(arguments.repeats):
        for name, times in took.items():
            times.append(wall_time(works[name], policy.device))
    mean = {name: statistics.median(times) for name, times in took.items()}
    ours, theirs = mean.get("engine", float("nan")), mean.get("bare", float("nan"))
    return (
        f"| {length} | {arguments.prompts} x {group} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.2f} "
        f"| {peaks['engine'] / 1e6:.0f} | {peaks['bare'] / 1e6:.0f} |"
    )


if __name__ == "__main__":
    main()
