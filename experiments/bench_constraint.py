"""What holding lists to the catalog costs. Prints tables, and writes experiments/bench_constraint.json.

python experiments/bench_constraint.py --parts build decoding training --redial DIR/movies.jsonl

Seconds are of the processor, with one thread: other work on the machine does not count. The constraint works in one thread:
with T threads for the model its share is up to T times as large ("share with 2 threads").

build: time and memory of the constraint, by the number of items. decoding: its share of a step of rollout=hf. training: a
forward and backward pass with and without it. The model has the shape of Qwen2.5-0.5B with random weights, and a vocabulary
of 151,936 tokens: SmolLM2's (model=smollm2-135m fetches it), parts of the titles, and words of random letters. So more tokens
continue a title than with a real vocabulary of this size. The titles are ReDial's, if its folder is given, and made from their
words beyond.
"""

import argparse
import gc
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from convrec_r1.data import Catalog, movieland
from convrec_r1.lists import Item
from convrec_r1.matching import Normalised
from convrec_r1.policy import Policy
from convrec_r1.policy.tokens import token_texts
from convrec_r1.policy.wheel import cache_folder
from convrec_r1.rollout.base import Sampling
from convrec_r1.rollout.batch import make_batch
from convrec_r1.rollout.constraint import Constraint, HeldLists, Opening, Vocabulary
from convrec_r1.rollout.decoding import Decoding
from convrec_r1.rollout.hf import HFEngine
from convrec_r1.rollout.sampler import SeededSampler

VOCABULARY = 151_936
ITEMS = 7_404
LINES = 20
"""Of a list."""
PROMPT = 64
"""Tokens."""
RESULTS = Path(__file__).with_suffix(".json")


def titles(redial: Path | None) -> list[Item]:
    """Return the items that there are."""
    found = [*movieland.load(seed=0, n_items=5, sizes={"train": 1, "validation": 1, "test": 1}).catalog]
    return list(Catalog.load(redial)) if redial else found


def catalog(size: int, known: list[Item], seed: int = 0) -> Catalog:
    """Return a catalog of `size` items: those known, then some of their words with a year."""
    chance = random.Random(seed)
    words = sorted({word for item in known for word in item.title.split()})
    items = dict.fromkeys(known[:size])
    while len(items) < size:
        title = " ".join(chance.choices(words, k=chance.choice([1, 2, 3, 3, 4, 5])))
        items[Item(title[:1].upper() + title[1:], chance.randint(1920, 2024))] = None
    return Catalog(items)


def large_tokenizer(known: list[Item], folder: Path) -> PreTrainedTokenizerBase:
    """Return SmolLM2's tokenizer with more tokens, up to `VOCABULARY`."""
    (folder,) = [path.parent for path in folder.rglob("tokenizer.json")]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = backend["model"]["vocab"]
    taken = set(vocabulary) | {token["content"] for token in backend["added_tokens"]}
    wanted = VOCABULARY - len(tokenizer)
    more: dict[str, None] = {}
    for piece in _pieces(known, random.Random(0)):
        letters = piece.replace(" ", "\u0120")
        if letters.isprintable() and letters not in taken:
            more[letters] = None
        if len(more) == wanted:
            break
    backend["model"]["vocab"] |= {piece: len(tokenizer) + i for i, piece in enumerate(more)}
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(backend))
    return tokenizer


def _pieces(known: list[Item], chance: random.Random) -> Iterator[str]:
    """Yield parts of the titles, up to 50,000, then words of random letters without end."""
    parts: set[str] = set()
    for item in known:
        text = f" {item}"
        if text.isascii():
            parts |= {text[at : at + length] for at in range(len(text)) for length in (3, 4, 5, 6, 8)}
    yield from chance.sample(sorted(parts), min(50_000, len(parts)))
    while True:
        word = "".join(chance.choices("etaoinshrdlucmfwypvbgk", k=chance.randint(4, 9)))
        yield chance.choice([" ", ""]) + chance.choice([word, word.capitalize()])


def large_policy(tokenizer: PreTrainedTokenizerBase, layers: int) -> Policy:
    """Return a policy of Qwen2.5-0.5B's shape, which has 24 layers, with random weights."""
    shape = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=896, intermediate_size=4864, num_hidden_layers=layers, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    return Policy(Qwen2ForCausalLM(shape), tokenizer).eval()


class Bench:
    """What the parts share. Each part is made once."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.known = titles(arguments.redial)
        self.tokenizer = large_tokenizer(self.known, cache_folder())
        self.catalog = catalog(ITEMS, self.known)
        self.random = torch.Generator().manual_seed(1)

    def prompts(self, count: int) -> list[list[int]]:
        return torch.randint(10, 40_000, (count, PROMPT), generator=self.random).tolist()

    def openings(self, constraint: Constraint, count: int) -> list[Opening]:
        """Users have seen 10 titles each."""
        chance = random.Random(2)
        return [
            constraint.opening(LINES, [item.title for item in chance.sample(list(self.catalog), 10)])
            for _ in range(count)
        ]


def build(bench: Bench) -> dict[str, Any]:
    """Time and memory of the constraint, by the number of items. Seconds of the processor: it works in one thread.

    The texts of the vocabulary are read first: the policy's constructor does that, and they are kept with the tokenizer.
    """
    start = time.process_time()
    token_texts(bench.tokenizer, VOCABULARY)
    found: dict[str, Any] = {"texts of the vocabulary": {"seconds": time.process_time() - start}}
    for size in (240, ITEMS, 100_000):
        items = catalog(size, bench.known)
        gc.collect()
        before, start = resident(), time.process_time()
        vocabulary = Vocabulary.of(bench.tokenizer, VOCABULARY, [bench.tokenizer.eos_token_id])
        constraint = Constraint(items, Normalised(), vocabulary)
        first = constraint.state(constraint.opening(LINES)).allowed()
        seconds = time.process_time() - start
        gc.collect()
        found[f"{size} items"] = {
            "seconds": seconds, "MB": (resident() - before) / 1e6,
            "lines": len(constraint.lines), "tokens that begin a list": len(first.tokens()),
        }  # fmt: skip
        del constraint, vocabulary, first
    return found


def decoding(bench: Bench) -> dict[str, Any]:
    """The constraint's share of a step of rollout=hf with 64 lists: seconds in it, and of the whole step."""
    policy = large_policy(bench.tokenizer, bench.arguments.layers)
    constraint = Constraint.of(bench.catalog, Normalised(), policy)
    rows, steps = 64, bench.arguments.steps
    prompts, openings = bench.prompts(8), [o for o in bench.openings(constraint, 8) for _ in range(8)]
    owners, sampling = [row // 8 for row in range(rows)], Sampling(n=8, max_tokens=steps)
    found: dict[str, Any] = {}
    for name in ("plain", "constrained"):
        held = HeldLists(constraint, openings, policy.device) if name == "constrained" else None
        inside = watch(held)
        sampler = SeededSampler(range(rows), sampling, policy.device)
        whole: list[float] = []
        with policy.inference():
            start = time.process_time()
            for _ in Decoding(policy, prompts, owners, sampler, steps, held=held):
                whole.append(time.process_time() - start)
                start = time.process_time()
        found[name] = {"ms a step": 1e3 * statistics.mean(whole[1:])}
        if held:
            mine = statistics.mean(inside[2:]) * 2
            step = statistics.mean(whole[1:])
            found[name] |= {
                "ms in the constraint": 1e3 * mine, "share": mine / step,
                "share with 2 threads": mine / (mine + (step - mine) / 2),
            }  # fmt: skip
    return found


def watch(held: HeldLists | None) -> list[float]:
    """Return a list that grows by the seconds of each call of `choices` and `advance`."""
    seconds: list[float] = []

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            start = time.process_time()
            result = work(*given)
            seconds.append(time.process_time() - start)
            return result

        return call

    if held:
        held.choices, held.advance = timed(held.choices), timed(held.advance)
    return seconds


def training(bench: Bench) -> dict[str, Any]:
    """A forward and backward pass over lists, plain and constrained, and finding the allowed tokens of them."""
    policy = large_policy(bench.tokenizer, bench.arguments.layers)
    constraint = Constraint.of(bench.catalog, Normalised(), policy)
    engine, prompts = HFEngine(policy, batch_size=64, constraint=constraint), bench.prompts(2)
    openings = bench.openings(constraint, 2)
    groups = engine.generate(prompts, [0, 1 << 16], Sampling(n=4, max_tokens=64), None, openings)
    start = time.process_time()
    batch = make_batch(prompts, groups, policy, constraint=constraint, openings=openings).tokens
    replay = time.process_time() - start
    start = time.process_time()
    make_batch(prompts, groups, policy)
    replay -= time.process_time() - start
    tokens, allowed = int(batch.mask.sum()), batch.allowed
    sizes = allowed.size - allowed.lost_size
    found: dict[str, Any] = {
        "tokens": tokens, "us of replay a token": 1e6 * replay / tokens,
        "tokens that had to come": float((sizes[batch.mask.bool()] == 1).float().mean()),
        "allowed tokens, mean": float(sizes[batch.mask.bool()].float().mean()),
    }  # fmt: skip
    for name in ("plain", "constrained"):
        batch.allowed = allowed if name == "constrained" else None
        forward, both = [], []
        for _ in range(bench.arguments.repeats):
            start = time.process_time()
            logps, _ = policy(batch)
            forward.append(time.process_time() - start)
            logps.sum().backward()
            both.append(time.process_time() - start)
            policy.zero_grad(set_to_none=True)
        found[name] = {"forward, s": min(forward), "forward and backward, s": min(both)}
    return found


def resident() -> int:
    """Bytes of RAM that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {"build": build, "decoding": decoding, "training": training}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--redial", type=Path, help="a file of items, as movies.jsonl of data=redial")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--steps", type=int, default=24, help="tokens of a list that is decoded")
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    where = f"{platform.machine()}, 1 thread, torch {torch.__version__}"
    for name in arguments.parts:
        found = PARTS[name](bench)
        results[name] = {"where": where, "layers": arguments.layers, **found}
        print(f"\n{name} ({where})")
        for key, values in found.items():
            shown = values if isinstance(values, dict) else {"": values}
            print(f"  {key}:", ", ".join(f"{k} {v:.4g}".strip() for k, v in shown.items()), flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
