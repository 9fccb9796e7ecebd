"""The real vLLM in process: what it samples is what the policy says, and a sync that fails does not go unseen."""

import copy
import pickle
import random
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import VLLM, rl_module, run_command, start_command, tiny_policy
from test_modules import DATA, config, warm_policy
from test_resume import RUN, outcome
from test_weights import with_lora

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_jsonl
from convrec_r1.evaluate.metrics.list_quality import list_quality
from convrec_r1.matching import Normalised
from convrec_r1.modules.fit import fit
from convrec_r1.modules.step import StepLoader
from convrec_r1.policy import PromptEncoder
from convrec_r1.rollout.base import SEEDS_APART, Sampling, make_engine, prompt_seed
from convrec_r1.rollout.checksums import SyncError
from convrec_r1.rollout.config import vllm_version
from convrec_r1.rollout.constraint import Constraint, Opening
from convrec_r1.rollout.hf import HFEngine
from convrec_r1.rollout.vllm.options import CONSTRAINT, CPU_HEAD_SIZES, read_constraint, sampling_arguments
from convrec_r1.run.tracker import JsonlSink, Tracker

pytestmark = [
    pytest.mark.processes("vllm"),
    pytest.mark.skipif(vllm_version() is None, reason="vLLM is not installed (make setup-vllm)"),
]

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14, 15], [16]]
SEEDS = [prompt_seed(0, 0, i) for i in range(4)]
GREEDY = Sampling(temperature=0, max_tokens=40)


@pytest.fixture(scope="module")
def cfg():
    return config("rollout=vllm", "rollout.max_num_seqs=64")


@pytest.fixture(scope="module")
def constraint():
    return Constraint.of(DATA.catalog, Normalised(), tiny_policy())


@pytest.fixture(scope="module")
def engine(cfg, constraint):
    engine = make_engine(cfg.rollout, tiny_policy(), max_length=256, constraint=constraint)
    yield engine
    engine.close()


def moved(policy, seed: int = 0, by: float = 0.05):
    policy = copy.deepcopy(policy)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * by)
    return policy


def difference(engine, policy, prompts=PROMPTS) -> float:
    """Largest difference of log-probs over greedy completions, which must be the same tokens; inf where they are not."""
    theirs = engine.generate(prompts, [0] * len(prompts), GREEDY)
    ours = HFEngine(policy, batch_size=8).generate(prompts, [0] * len(prompts), GREEDY)
    worst = 0.0
    for (a,), (b,) in zip(theirs, ours, strict=True):
        if not np.array_equal(a.ids, b.ids) or a.finish_reason != b.finish_reason:
            return float("inf")
        worst = max(worst, float(np.abs(a.logprobs - b.logprobs).max()))
    return worst


def same(a, b) -> bool:
    return all(
        np.array_equal(x.ids, y.ids) and np.array_equal(x.logprobs, y.logprobs) and x.finish_reason == y.finish_reason
        for g, h in zip(a, b, strict=True)
        for x, y in zip(g, h, strict=True)
    )


def test_every_sync_brings_the_policys_weights(engine, policy):
    for seed in range(3):
        policy = moved(policy, seed)
        assert difference(engine, policy) > 1e-2 or seed == 0, "weights that moved must show before the sync"
        engine.sync(policy)
        assert difference(engine, policy) < 1e-4


def test_after_optimizer_steps_engine_and_policy_agree(cfg, engine, tmp_path):
    """The whole loop, at a rate that moves the policy: sampled in vLLM, trained, synced."""
    policy = tiny_policy(seed=3)
    before = copy.deepcopy(policy)
    rows = reinforce(policy, engine, config("rollout=vllm", "rl.steps=3"), tmp_path)
    assert difference(engine, policy) < 1e-4
    assert difference(engine, before) > 1e-2
    for row in rows:  # each step's lists were sampled from the weights that it then trained
        assert row["sampling/sampling_logp_difference/max"] < 1e-4
        assert row["sampling/importance_sampling_ratio/max"] == pytest.approx(1, abs=1e-3)
        assert row["sampling/staleness"] == 0


def test_lora_arrives_merged(engine, policy):
    policy = with_lora(policy)
    engine.sync(policy)
    assert difference(engine, policy) < 1e-4
    assert difference(engine, tiny_policy()) > 1e-2


def test_a_rollout_hangs_on_seeds_alone(engine, policy):
    engine.sync(policy)
    sampling = Sampling(n=4, max_tokens=30)
    whole = engine.generate(PROMPTS, SEEDS, sampling)
    assert same(engine.generate(PROMPTS, SEEDS, sampling), whole)
    backwards = engine.generate(PROMPTS[::-1], SEEDS[::-1], sampling)[::-1]
    assert all(
        np.array_equal(x.ids, y.ids) for g, h in zip(backwards, whole, strict=True) for x, y in zip(g, h, strict=True)
    )
    assert not same(engine.generate(PROMPTS, [seed + SEEDS_APART for seed in SEEDS], sampling), whole)
    assert len({tuple(c.ids) for group in whole for c in group}) == 16, "no two samples share their random numbers"


def test_what_is_sampled_follows_the_policys_distribution(engine, policy):
    """4,000 first tokens against the probabilities that the policy gives them, by a chi-squared test."""
    from scipy.stats import chisquare

    policy = moved(policy, 7, 0.1)
    engine.sync(policy)
    groups = [engine.generate([PROMPTS[0]], [prompt_seed(1, i, 0)], Sampling(n=50, max_tokens=1)) for i in range(80)]
    ids = np.array([c.ids[0] for (group,) in groups for c in group])
    with torch.no_grad():
        logits = policy.causal_lm(torch.tensor([PROMPTS[0]])).logits[0, -1]
    p = torch.softmax(logits.double(), -1).numpy()
    order = np.argsort(-p)
    bins = np.array_split(order, 20)
    expected = np.array([p[b].sum() for b in bins]) * len(ids)
    found = np.array([np.isin(ids, b).sum() for b in bins])
    assert chisquare(found, expected * found.sum() / expected.sum()).pvalue > 1e-4


def test_lists_that_are_full_stop_early(engine, policy):
    policy = moved(policy, 1)
    engine.sync(policy)
    whole = engine.generate(PROMPTS, SEEDS, Sampling(n=4, max_tokens=80))
    stopped = engine.generate(PROMPTS, SEEDS, Sampling(n=4, max_tokens=80, max_lines=1))
    shorter = 0
    for group, others in zip(whole, stopped, strict=True):
        for completion, other in zip(group, others, strict=True):
            assert np.array_equal(other.ids, completion.ids[: len(other.ids)])
            assert np.allclose(other.logprobs, completion.logprobs[: len(other.ids)], atol=1e-5)
            shorter += len(other.ids) < len(completion.ids)
            if len(other.ids) < len(completion.ids):
                assert other.finish_reason == "stop"
    assert shorter >= 8


def test_the_lists_of_a_group_share_their_prompt_and_a_sync_empties_the_cache(engine, policy, monkeypatch):
    """Keys and values of old weights would be sampled from without an error."""
    block = 128  # tokens; of vLLM's CPU backend
    prompt = [5 + i % 90 for i in range(block + 60)]
    manager = engine._llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager
    look_up, hits = manager.get_computed_blocks, []

    def counted(request):
        found = look_up(request)
        hits.append(found[1])
        return found

    monkeypatch.setattr(manager, "get_computed_blocks", counted)
    engine.sync(policy)
    engine.generate([prompt], [SEEDS[0]], Sampling(n=4, max_tokens=3))
    assert hits == [0, block, block, block], "the first list reads the prompt, the others take it from the cache"
    hits.clear()
    policy = moved(policy, 5)
    engine.sync(policy)
    assert difference(engine, policy, [prompt]) < 1e-4
    assert hits == [0]


# The catalog constraint

HELD = {
    "catalog/valid": 1.0, "format/valid": 1.0, "format/complete": 1.0, "list/length": 3.0,
    "list/duplicates": 0.0, "list/seen": 0.0,
}  # fmt: skip


def held(constraint, count: int = 24) -> tuple[list[list[int]], list[int], list[Opening], list[list[str]]]:
    """Prompts, seeds, openings, and the titles that each list may not hold: others for each prompt."""
    titles = [item.title for item in constraint.lines.items]
    seen = [titles[k : k + k % 5] for k in range(count)]
    prompts = [[5 + k, *PROMPTS[k % 4]] for k in range(count)]
    return prompts, [prompt_seed(2, 0, k) for k in range(count)], [constraint.opening(3, s) for s in seen], seen


def constrained_logprobs(policy, constraint, prompt, opening, ids) -> np.ndarray:
    """The log-probs that the policy gives a list among the tokens that may come."""
    with torch.no_grad():
        logits = policy.causal_lm(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    found = []
    for row, token, allowed in zip(logits, ids, constraint.replay(opening, ids), strict=True):
        among = torch.from_numpy(allowed.tokens()).long()
        found.append(float(row[token] - row[among].logsumexp(0)))
    return np.array(found)


def test_lists_hold_to_the_catalog_and_their_log_probs_are_the_policys(engine, policy, constraint):
    policy = moved(policy, 8)
    engine.sync(policy)
    prompts, seeds, openings, seen = held(constraint)
    sampling = Sampling(n=4, max_tokens=200)  # 96 lists, of which the engine advances 64 at a time
    groups = engine.generate(prompts, seeds, sampling, openings=openings)
    for prompt, opening, titles, group in zip(prompts, openings, seen, groups, strict=True):
        assert len({tuple(c.ids) for c in group}) > 1
        for completion in group:
            text = policy.tokenizer.decode(completion.ids[:-1])
            quality = list_quality(text, titles, DATA.catalog, 3, Normalised())
            assert quality == HELD, text
            assert policy.eos[completion.ids[-1]]
            assert completion.logprobs[-1] == 0
            expected = constrained_logprobs(policy, constraint, prompt, opening, completion.ids)
            assert np.abs(completion.logprobs - expected).max() < 1e-4
    again = engine.generate(prompts[::-1], seeds[::-1], sampling, openings=openings[::-1])[::-1]
    assert [[c.ids.tolist() for c in g] for g in again] == [[c.ids.tolist() for c in g] for g in groups]


def test_greedy_lists_under_the_constraint_are_those_of_hf(engine, policy, constraint):
    policy = moved(policy, 9)
    engine.sync(policy)
    prompts, seeds, openings, _ = held(constraint)
    greedy = Sampling(temperature=0, max_tokens=200)
    theirs = engine.generate(prompts, seeds, greedy, openings=openings)
    ours = HFEngine(policy, batch_size=24, constraint=constraint).generate(prompts, seeds, greedy, openings=openings)
    for (a,), (b,) in zip(theirs, ours, strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        assert np.abs(a.logprobs - b.logprobs).max() < 1e-4


def test_a_part_of_the_catalog_and_the_line_limit(engine, policy, constraint):
    engine.sync(policy)
    prompts, seeds, _, _ = held(constraint, 4)
    chosen = constraint.lines.items[:2]
    sampling = Sampling(n=2, max_tokens=200)
    openings = [constraint.opening(n, subset=constraint.subset(chosen)) for n in (1, 2, 3, 4)]
    for n, group in enumerate(engine.generate(prompts, seeds, sampling, openings=openings), start=1):
        for completion in group:
            lines = policy.tokenizer.decode(completion.ids[:-1]).split("\n")
            assert sorted(lines) == sorted(map(str, chosen)) if n > 1 else lines[0] in map(str, chosen)
    whole = engine.generate(prompts, seeds, replace(sampling, max_lines=3), openings=[constraint.opening(3)] * 4)
    cut = engine.generate(prompts, seeds, replace(sampling, max_lines=1), openings=[constraint.opening(3)] * 4)
    for group, others in zip(whole, cut, strict=True):
        for completion, other in zip(group, others, strict=True):
            assert policy.eos[completion.ids[-1]], "the last line ends with EOS, not with a newline"
            assert policy.tokenizer.decode(other.ids).count("\n") == 1
            assert completion.ids[: len(other.ids)].tolist() == other.ids.tolist()


def run_requests(engine, policy, requests, after_steps: int = 0):
    """The tokens of a mix of requests, (prompt, seed, opening | None), all preempted once after some steps."""
    from vllm import SamplingParams

    llm = engine._llm.llm_engine
    sampling = Sampling(max_tokens=60)
    for k, (prompt, seed, opening) in enumerate(requests):
        parameters = SamplingParams(**sampling_arguments(sampling, seed, policy.eos_ids, opening))
        llm.add_request(str(k), {"prompt_token_ids": prompt}, parameters)
    found, steps = {}, 0
    while llm.has_unfinished_requests():
        found |= {o.request_id: list(o.outputs[0].token_ids) for o in llm.step() if o.finished}
        steps += 1
        if steps == after_steps:
            scheduler = llm.engine_core.engine_core.scheduler
            assert len(scheduler.running) > 8
            assert scheduler.reset_prefix_cache(reset_running_requests=True)
            assert not scheduler.running
    return [found[str(k)] for k in range(len(requests))]


def test_requests_of_both_kinds_share_batches_and_survive_preemption(engine, policy, constraint):
    policy = moved(policy, 10)
    engine.sync(policy)
    prompts, seeds, openings, _ = held(constraint, 70)  # more than the engine advances at a time
    held_ones = run_requests(engine, policy, list(zip(prompts, seeds, openings, strict=True)))
    free = run_requests(engine, policy, [(p, s, None) for p, s in zip(prompts, seeds, strict=True)])
    mixed = [(p, s, o if k % 3 else None) for k, (p, s, o) in enumerate(zip(prompts, seeds, openings, strict=True))]
    expected = [held_ones[k] if k % 3 else free[k] for k in range(70)]
    assert run_requests(engine, policy, mixed) == expected
    assert run_requests(engine, policy, mixed, after_steps=9) == expected
    for opening, ids in zip(openings, held_ones, strict=True):
        list(constraint.replay(opening, ids))


def test_a_policy_of_nan_writes_valid_lists(constraint, tmp_path):
    """The trainer finds out, when it computes with the policy. What a sampler makes of NaN is not for a list to depend on."""
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    from convrec_r1.rollout.vllm.catalog import HoldToCatalog

    (tmp_path / CONSTRAINT).write_bytes(pickle.dumps(constraint))
    settings = SimpleNamespace(model_config=SimpleNamespace(model=str(tmp_path)))
    processor = HoldToCatalog(settings, torch.device("cpu"), is_pin_memory=False)
    held = SamplingParams(**sampling_arguments(Sampling(), 0, [1], constraint.opening(3)))
    processor.update_state(
        BatchUpdate(2, removed=[], added=[(0, SamplingParams(), [], []), (1, held, [], [])], moved=[])
    )
    free, row = processor.apply(torch.full((2, 512), torch.nan))
    allowed = constraint.state(constraint.opening(3)).allowed().tokens()
    assert free.isnan().all()
    assert row.isfinite().nonzero()[:, 0].tolist() == sorted(allowed.tolist())
    assert row.isneginf().sum() == 512 - len(allowed)


def test_another_process_reads_the_constraint_from_the_model_folder(constraint, tmp_path):
    copied = pickle.loads(pickle.dumps(constraint))
    opening = constraint.opening(3, ["The Matrix"], subset=constraint.subset(constraint.lines.items[1:]))
    for made in (opening, pickle.loads(pickle.dumps(opening)), Opening.unpack(opening.packed())):
        assert made == opening
        assert hash(made.subset) == hash(opening.subset)
        assert copied.state(made).allowed().tokens().tolist() == constraint.state(opening).allowed().tokens().tolist()
    assert read_constraint(tmp_path) is None
    (tmp_path / CONSTRAINT).write_bytes(pickle.dumps(constraint))
    copied = read_constraint(tmp_path)
    assert copied is not None
    assert copied.lines.texts == constraint.lines.texts


def test_progress_counts_completions(engine, policy):
    engine.sync(policy)
    told = []
    engine.generate(PROMPTS, SEEDS, Sampling(n=3, max_tokens=2), on_progress=told.append)
    assert sum(told) == 12


def test_a_sync_that_does_not_arrive_is_caught(engine, policy, monkeypatch):
    engine.sync(policy)
    call = engine._llm.collective_rpc

    def swallow(method, **kw):
        if method == "reload_weights":
            list(kw["kwargs"]["weights_iterator"])  # sent, and lost on the way
            return None
        return call(method, **kw)

    monkeypatch.setattr(engine._llm, "collective_rpc", swallow)
    with pytest.raises(SyncError, match="does not have the trainer's weights"):
        engine.sync(moved(policy, 2))


@pytest.mark.parametrize("name", ["layers.1.mlp.down_proj.weight", "embed_tokens", "norm.weight"])
def test_a_single_wrong_value_is_caught(engine, policy, monkeypatch, name):
    engine.sync(policy)
    watch = engine.check.watch

    def garble(weights):
        for key, weight in watch(weights):
            if name in key:
                weight = weight.clone()
                weight.view(-1)[3] += 1e-3
            yield key, weight

    monkeypatch.setattr(engine.check, "watch", garble)
    with pytest.raises(SyncError, match=r"layers\.1|embed_tokens|norm"):
        engine.sync(moved(policy, 3))


def test_the_head_that_vllm_forgets_is_caught(cfg, policy, monkeypatch):
    """Why the engine gets a head of its own on CPUs: with shared weights vLLM multiplies with its first ones for ever."""
    from convrec_r1.rollout.vllm import inprocess, options

    setup = options.setup

    def shared(*arguments, **options_):
        made = setup(*arguments, **options_)
        made.arguments.pop("hf_overrides")
        return options.Setup(made.arguments, made.dtype, tied=True)

    monkeypatch.setattr(inprocess, "setup", shared)
    engine = make_engine(cfg.rollout, policy, max_length=256)
    try:
        with pytest.raises(SyncError, match="lm_head"):
            engine.sync(policy)
    finally:
        engine.close()


def test_the_trainers_random_numbers_and_threads_are_its_own(cfg, policy):
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)
    set_threads = torch.set_num_threads
    engine = make_engine(cfg.rollout, policy, max_length=256)
    engine.sync(policy)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected
    assert torch.set_num_threads is set_threads
    assert difference(engine, policy) < 1e-4
    engine.close()
    assert not torch.distributed.is_initialized(), "a process group that vLLM made would be in the trainer's way"
    engine.sync(policy)  # and it starts again
    assert difference(engine, policy) < 1e-4
    engine.close()


def test_heads_that_its_kernels_do_not_take_are_named(cfg):
    odd = tiny_policy(hidden_size=80, heads=2)
    engine = make_engine(cfg.rollout, odd, max_length=256)
    with pytest.raises(UserError, match="this model's have 40"):
        engine.sync(odd)
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert list(CPU_HEAD_SIZES) == CPUAttentionBackend.get_supported_head_sizes()


def reinforce(policy, engine, cfg, folder, data=DATA["train"]) -> list[dict]:
    encoder = PromptEncoder(policy.tokenizer, "Recommend {n} movies.", cfg.n, 128)
    tracker = Tracker([JsonlSink(folder / "metrics.jsonl")])
    loader = StepLoader(data, cfg.rl.prompts_per_step, cfg.rl.steps, cfg.seed)
    module = rl_module(policy, engine, encoder, DATA.catalog, cfg, tracker, loader)
    fit(module, loader, cfg.trainer, folder / "checkpoints", description="test")
    return [record["values"] for record in read_jsonl(folder / "metrics.jsonl")]


@pytest.mark.slow(
    reason="eight trainings, compared statistically; that either engine samples from the policy is shown above"
)
def test_training_reaches_the_same_with_either_engine(tmp_path):
    """Other random numbers, the same run: over four seeds, rewards and lengths differ by no more than four standard errors.

    The error is that between seeds. Steps of one training are no independent samples: each policy comes from the one before.
    """
    items = [c.demonstration[0] for c in DATA["train"]]
    wanted = max(set(items), key=items.count)
    easy = [replace(c, ground_truth=(wanted,), seen=()) for c in DATA["train"]]
    warm = warm_policy(heads=1)
    means: dict[str, dict[str, list[float]]] = {}
    for name in ("hf", "vllm"):
        options = ["rollout.max_num_seqs=64"] if name == "vllm" else []
        means[name] = {"reward": [], "completions/mean_length": []}
        engine, growth = None, []
        for seed in (1, 2, 3, 4):
            cfg = config(
                f"rollout={name}", "rl.steps=12", "rl.prompts_per_step=4", "algo.group_size=8", "rl.lr=3e-3", f"seed={seed}",
                "trainer.checkpoint_every=100", *options,
            )  # fmt: skip
            policy = copy.deepcopy(warm)
            engine = engine or make_engine(cfg.rollout, policy, max_length=256)
            rows = reinforce(policy, engine, cfg, tmp_path / f"{name}{seed}", easy)
            reward = [row["reward"] for row in rows]
            growth.append(statistics.mean(reward[-3:]) - statistics.mean(reward[:3]))
            for metric, values in means[name].items():
                values.append(statistics.mean(row[metric] for row in rows))
        engine.close()
        assert statistics.mean(growth) > 0.1, ("both learn what users want", name, growth)
    for metric, hf in means["hf"].items():
        vllm = means["vllm"][metric]
        error = ((statistics.variance(hf) + statistics.variance(vllm)) / len(hf)) ** 0.5
        assert abs(statistics.mean(hf) - statistics.mean(vllm)) < 4 * error, (metric, hf, vllm)


COMMAND = (*RUN, "rollout=vllm", "rollout.stop_at_n=true", "rollout.constraint=catalog", "rl.steps=4")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """Where a run has ended that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_command(*COMMAND, cwd=folder, preload=VLLM)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def test_the_command_trains_and_evaluates_with_it(undisturbed):
    rows = [r["values"] for r in read_jsonl(undisturbed / "metrics.jsonl") if r["split"] == "train"]
    assert len(rows) == 4
    assert max(row["sampling/sampling_logp_difference/max"] for row in rows) < 1e-4
    assert all(row["time/sync"] > 0 for row in rows)
    assert not any(row["list/duplicates"] for row in rows)
    assert len(read_jsonl(undisturbed / "eval" / "test.jsonl")) == 6


def test_a_run_that_is_killed_ends_as_one_that_is_not(undisturbed, tmp_path):
    """Bit for bit: weights, lists and metrics, among them the log-probs that the engine gave."""
    command = start_command(*COMMAND, cwd=tmp_path, preload=VLLM)
    command.until(lambda: (tmp_path / "run" / "checkpoints" / "000002" / "trainer.ckpt").exists())
    command.end()
    assert not (tmp_path / "run" / "summary.json").exists()
    done = run_command(*COMMAND, cwd=tmp_path, preload=VLLM)
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcome(tmp_path / "run") == outcome(undisturbed)
