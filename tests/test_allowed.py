"""Log-probs of lists held to the catalog: the sampler's, the trainer's and those of a plain softmax with a mask are equal."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import PowerCut, make_config, power_cut, rl_module, run_command, tiny_policy, unresolved_config
from test_modules import DATA, config, distance, warm_policy

from convrec_r1.base.files import read_jsonl
from convrec_r1.config.checks import problems
from convrec_r1.config.parts import evaluation_key
from convrec_r1.data import Catalog, movieland
from convrec_r1.doctor.findings import Level
from convrec_r1.doctor.model import held_to
from convrec_r1.evaluate.metrics.list_quality import list_quality
from convrec_r1.evaluate.runner import greedy_lists
from convrec_r1.lists import format
from convrec_r1.matching import Folded, Normalised
from convrec_r1.modules.fit import fit
from convrec_r1.modules.step import StepLoader
from convrec_r1.policy import Policy, PromptEncoder
from convrec_r1.policy.allowed import Allowed, allowed_logprobs, masked_logprobs
from convrec_r1.rollout.base import Sampling
from convrec_r1.rollout.batch import make_batch
from convrec_r1.rollout.constraint import Constraint, ListState
from convrec_r1.rollout.decoding import Decoding
from convrec_r1.rollout.hf import HFEngine
from convrec_r1.rollout.sampler import SeededSampler
from convrec_r1.run.tracker import JsonlSink, Tracker

pytestmark = pytest.mark.long

PROMPTS, SEEDS = [[5, 6, 7], [8, 9], [8, 9]], [0, 1 << 16, 2 << 16]
WIDE = np.arange(300, 700, dtype=np.int32)


def random_sets(rows: int, vocabulary: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sets of each kind: one token, a few, one wide set of many with and without some of its tokens."""
    rng, none = np.random.default_rng(seed), np.zeros(0, dtype=np.int64)
    found = []
    for row in range(rows):
        size = [1, 2, 7][row % 3]
        few = rng.choice(vocabulary, size, replace=False).astype(np.int32)
        lost = np.sort(rng.choice(len(WIDE), 9, replace=False)) if row % 2 else none
        found.append((WIDE, lost) if row % 4 == 3 else (few, none))
    return found


def random_case(rows: int = 24, vocabulary: int = 800, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(size, 6, generator=generator, dtype=dtype) for size in (rows, vocabulary))
    sets = random_sets(rows, vocabulary, seed=4)
    tokens = [np.delete(ids, without) for ids, without in sets]
    targets = torch.tensor([int(ids[len(ids) // 2]) for ids in tokens])
    mask = torch.zeros(rows, vocabulary, dtype=torch.bool)
    for row, ids in enumerate(tokens):
        mask[row, torch.from_numpy(ids).long()] = True
    allowed = Allowed.collate([sets[:10], sets[10:]], 14)
    on = torch.arange(14)[None] < torch.tensor([[10], [14]])
    return hidden.requires_grad_(), weight.requires_grad_(), targets, mask, allowed.at(on)


@pytest.mark.parametrize("chunk", [1, 5, 256])
def test_log_probs_entropy_and_gradients_are_those_of_a_masked_softmax(monkeypatch, chunk):
    monkeypatch.setattr("convrec_r1.policy.allowed._CHUNK", {"cpu": chunk})
    hidden, weight, targets, mask, allowed = random_case()
    assert torch.equal(allowed.mask(800), mask)
    logps, entropy = allowed_logprobs(hidden, weight, targets, 0.7, allowed)
    log_p = torch.log_softmax((hidden @ weight.T / 0.7).masked_fill(~mask, -torch.inf), -1)
    expected = log_p.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(logps, expected)
    torch.testing.assert_close(entropy, -(log_p.exp() * log_p.masked_fill(~mask, 0)).sum(-1).detach())
    assert (logps[mask.sum(-1) == 1] == 0).all()
    assert not entropy.requires_grad
    factors = torch.randn(len(logps), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found, wanted = (torch.autograd.grad((x * factors).sum(), (hidden, weight)) for x in (logps, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    whole = masked_logprobs(hidden.detach() @ weight.detach().T / 0.7, targets, allowed)
    torch.testing.assert_close(whole, (logps.detach(), entropy))


def test_gradients_are_those_of_finite_differences():
    hidden, weight, targets, _, allowed = random_case(rows=8)
    assert torch.autograd.gradcheck(lambda h: allowed_logprobs(h, weight.detach(), targets, 1.3, allowed)[0], (hidden,))


def test_a_token_that_was_not_allowed_is_not_finite():
    hidden, weight, targets, mask, allowed = random_case()
    wrong = targets.clone()
    wrong[1:4] = torch.tensor([(~mask[row]).nonzero()[0, 0] for row in (1, 2, 3)])
    logps, _ = allowed_logprobs(hidden, weight, wrong, 1.0, allowed)
    assert (logps[1:4] == -torch.inf).all()
    assert logps[4:].isfinite().all()


# -- Sampler, trainer, and all strings


SMALL = Catalog(list(movieland.load(seed=0, n_items=2, sizes={"train": 4, "validation": 1, "test": 1}).catalog)[:5])


def sampled(policy: Policy, sampling: Sampling, n: int = 3, catalog: Catalog = SMALL, seen=((), (), ("none",))):
    constraint = Constraint.of(catalog, Normalised(), policy)
    openings = [constraint.opening(n, titles) for titles in seen]
    engine = HFEngine(policy, batch_size=64, constraint=constraint)
    return engine, constraint, openings, engine.generate(PROMPTS, SEEDS, sampling, None, openings)


def by_all_strings(policy: Policy, prompt, ids, n: int, catalog: Catalog) -> list[float]:
    """Log-probs over the tokens with which some list of n items of the catalog goes on, each tried as text."""
    orders = [[]]
    for _ in range(n):
        orders = [[*some, item] for some in orders for item in catalog if item not in some]
    finished = {format(some) for some in orders}
    found = []
    for at, token in enumerate(ids):
        begun = [policy.text([*ids[:at], t]) if t not in policy.eos_ids else None for t in range(len(policy.tokenizer))]
        allowed = [text is not None and any(one.startswith(text) for one in finished) for text in begun]
        for eos in policy.eos_ids[:1]:
            allowed[eos] = policy.text(ids[:at]) in finished
        wrote = policy.text(ids[:at])  # special tokens write nothing
        allowed = [ok and (t in policy.eos_ids or begun[t] != wrote) for t, ok in enumerate(allowed)]
        logits = policy.causal_lm(torch.tensor([[*prompt, *ids[:at]]])).logits[0, -1, : len(allowed)].float()
        found.append(float(torch.log_softmax(logits.masked_fill(~torch.tensor(allowed), -torch.inf), -1)[token]))
    return found


@torch.no_grad()
def test_sampler_trainer_and_all_strings_agree():
    policy = tiny_policy().eval()
    _, constraint, openings, groups = sampled(policy, Sampling(n=3, max_tokens=300), n=2)
    batch = make_batch(PROMPTS, groups, policy, constraint=constraint, openings=openings)
    completions = [c for group in groups for c in group]
    ways = {"packed": policy, "padded": copy.copy(policy), "own head": copy.copy(policy)}
    ways["padded"].packs = ways["own head"].packs = ways["own head"].fused_head = False
    results = {way: model(batch.tokens) for way, model in ways.items()}
    for row, completion in enumerate(completions):
        for way, (logps, entropy) in results.items():
            found = logps[row, : len(completion.ids)].numpy()
            np.testing.assert_allclose(found, completion.logprobs, atol=1e-4, err_msg=way)
            assert (entropy[row] >= -1e-6).all()
            torch.testing.assert_close(entropy, results["packed"][1], atol=1e-4, rtol=1e-4)
        if row % 3 == 0:
            exact = by_all_strings(policy, PROMPTS[row // 3], completion.ids.tolist(), 2, SMALL)
            np.testing.assert_allclose(completion.logprobs, exact, atol=1e-4)
    part = batch.tokens.rows(torch.tensor([7, 0, 4]))
    torch.testing.assert_close(
        policy(part)[0], results["packed"][0][[7, 0, 4], : part.mask.shape[1]], atol=1e-4, rtol=0
    )
    torch.testing.assert_close(policy.reference()(batch.tokens), results["packed"][0], atol=1e-5, rtol=0)
    assert batch.lengths.tolist() == [2] * 9
    assert not batch.truncated.any()
    # The last token is the EOS that had to come after line n. It belongs to that line.
    assert all(c.ids[-1] == policy.eos_ids[0] and c.logprobs[-1] == 0 for c in completions)
    assert [int(batch.ranks[row, len(c.ids) - 1]) for row, c in enumerate(completions)] == [1] * 9


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, max_tokens=300),
        Sampling(n=4, max_tokens=300, top_k=2),
        Sampling(n=4, max_tokens=300, top_p=0.8, temperature=1.4, max_lines=3),
        Sampling(n=4, max_tokens=7),
    ],
)
def test_both_ways_of_decoding_are_held(sampling):
    policy = tiny_policy()
    seen = [SMALL_SEEN := [item.title for item in SMALL][:1], [str(item) for item in SMALL][:4], []]
    engine, constraint, openings, groups = sampled(policy, sampling, seen=seen)
    engine._bytes = None  # transformers' generate
    for group, other, titles in zip(
        groups, engine.generate(PROMPTS, SEEDS, sampling, None, openings), seen, strict=True
    ):
        for completion, same in zip(group, other, strict=True):
            assert completion.ids.tolist() == same.ids.tolist()
            np.testing.assert_allclose(completion.logprobs, same.logprobs, atol=1e-4)
            quality = list_quality(policy.text(completion.ids), titles, SMALL, 3, Normalised())
            whole = completion.finish_reason == "stop"
            assert whole is (sampling.max_tokens > 7)
            if whole:
                assert quality["list/length"] == min(3, 5 - len(titles))
                assert quality["catalog/valid"] == 1
            assert quality["list/duplicates"] == quality["list/seen"] == 0
    batch = make_batch(PROMPTS, groups, policy, constraint=constraint, openings=openings)
    assert batch.truncated.all() == (sampling.max_tokens == 7)
    assert SMALL_SEEN


def test_without_finite_logits_lists_are_held_all_the_same():
    """The trainer then finds log-probs that are not finite. The sampler must not fail before."""
    policy = tiny_policy()
    with torch.no_grad():
        policy.head_weight.fill_(torch.nan)
    for sampling in (Sampling(n=2, max_tokens=200), Sampling(temperature=0, max_tokens=200)):
        *_, groups = sampled(policy, sampling)
        for completion in (c for group in groups for c in group):
            assert list_quality(policy.text(completion.ids), (), SMALL, 3)["format/complete"] == 1
            assert np.isnan(completion.logprobs[:1]).all()


@torch.no_grad()
def test_decoding_can_be_watched_and_ended_early():
    policy = tiny_policy().eval()
    constraint = Constraint.of(SMALL, Folded(), policy)
    engine = HFEngine(policy, batch_size=8, constraint=constraint)
    opening = constraint.opening(3)
    whole = engine.generate(PROMPTS[:2], SEEDS[:2], Sampling(max_tokens=200), None, [opening] * 2)
    from convrec_r1.rollout.constraint import HeldLists

    sampler = SeededSampler(SEEDS[:2], Sampling(max_tokens=200), policy.device)
    held = HeldLists(constraint, [opening] * 2, policy.device)
    decoding, written, ended = Decoding(policy, PROMPTS[:2], [0, 1], sampler, 200, held=held), [[], []], []
    for step in decoding:
        for row, token, counts, ends in zip(
            *(t.tolist() for t in (step.rows, step.tokens, step.counts, step.ended)), strict=True
        ):
            if counts:
                written[row].append(token)
            if ends:
                ended.append(row)
        if len(written[0]) == 4:
            decoding.end([0])
    assert written == [whole[0][0].ids[:4].tolist(), whole[1][0].ids.tolist()]
    assert ended == [1]
    result = decoding.result()
    assert result.lengths.tolist() == [4, len(whole[1][0].ids)]
    assert result.ended.tolist() == [False, True]


# -- Evaluation


def test_equal_prompts_whose_users_have_seen_other_titles_have_other_lists():
    policy = tiny_policy()
    constraint = Constraint.of(SMALL, Normalised(), policy)
    titles = [item.title for item in SMALL]
    openings = [constraint.opening(2, seen) for seen in ((), titles[:2], (), titles[2:4])]
    asked: list[int] = []

    class Engine(HFEngine):
        def generate(self, prompts, *given, **options):
            asked.append(len(prompts))
            return super().generate(prompts, *given, **options)

    engine, greedy = Engine(policy, batch_size=8, constraint=constraint), Sampling(temperature=0, max_tokens=200)
    first, second, third, fourth = greedy_lists(policy, engine, [[5, 6]] * 4, greedy, "", openings)
    assert asked == [3]
    assert first == third
    for text, seen in ((first, ()), (second, titles[:2]), (fourth, titles[2:4])):
        quality = list_quality(text, seen, SMALL, 2)
        assert (quality["format/complete"], quality["list/seen"]) == (1, 0)
    assert len({first, second, fourth}) == 3


# -- Training


@pytest.fixture(scope="module")
def warm():
    torch.set_num_threads(1)
    return warm_policy()


def held(*overrides: str):
    return config("rollout.constraint=catalog", "model.max_completion_length=120", *overrides)


class Copied(HFEngine):
    """With weights of its own, which can sample ahead."""

    def sync(self, policy) -> None:
        self.policy = copy.deepcopy(policy)

    def submit(self, prompts, seeds, sampling, openings=None):
        from concurrent.futures import Future

        done: Future = Future()
        done.set_result(self.generate(prompts, seeds, sampling, None, openings))
        return done


def reinforce(policy, cfg, folder, kind=HFEngine, callbacks=(), samples=DATA["train"]):
    policy = copy.deepcopy(policy)
    encoder = PromptEncoder(policy.tokenizer, "Recommend {n} movies.", cfg.n, 128)
    constraint = Constraint.of(DATA.catalog, Folded(), policy)
    engine = kind(policy, batch_size=64, constraint=constraint)
    loader = StepLoader(samples, cfg.rl.prompts_per_step, cfg.rl.steps, cfg.seed)
    tracker = Tracker([JsonlSink(folder / "metrics.jsonl")])
    module = rl_module(policy, engine, encoder, DATA.catalog, cfg, tracker, loader, constraint=constraint)
    fit(module, loader, cfg.trainer, folder / "checkpoints", description="test", callbacks=callbacks)
    return policy.state_dict(), [record["values"] for record in read_jsonl(folder / "metrics.jsonl")]


ALL_PARTS = ("algo=rank_grpo", "algo.mu=2", "algo.minibatches=2", "algo.beta=0.05")


def test_micro_batches_never_change_a_step_and_every_list_is_valid(warm, tmp_path):
    results = []
    for part in ("micro_batch=8", "micro_tokens=150"):
        cfg = held("trainer.micro_batch=null", f"trainer.{part}", "rl.steps=1", "rl.lr=1e-3", *ALL_PARTS)
        results.append(reinforce(warm, cfg, tmp_path / part))
    (whole, (first,)), (state, (other,)) = results
    assert distance(whole, warm.state_dict()) > 1e-4
    assert distance(state, whole) < 2e-4
    for values in (first, other):
        assert values["catalog/valid"] == values["format/complete"] == values["format/valid"] == 1
        assert values["list/duplicates"] == values["list/seen"] == values["completions/clipped_ratio"] == 0
        assert values["sampling/sampling_logp_difference/max"] < 1e-4
        assert values["entropy"] > 0


@pytest.mark.parametrize("overlap", [0, 1])
def test_a_resumed_run_trains_on_the_same_lists(warm, tmp_path, overlap):
    """Bit for bit, also with groups that are replaced, and with users who have seen some of the few items."""
    titles = [item.title for item in DATA.catalog]
    samples = [replace(c, seen=tuple(titles[k % 3 : k % 3 + 2])) for k, c in enumerate(DATA["train"])]
    cfg = held("algo.dynamic_sampling=1", "rl.lr=1e-3", *ALL_PARTS)
    cfg.rollout.overlap = overlap
    given = {"kind": Copied, "samples": samples}
    whole, rows = reinforce(warm, cfg, tmp_path / "whole", **given)
    with pytest.raises(PowerCut):
        reinforce(warm, cfg, tmp_path / "cut", callbacks=[power_cut(3, cfg.rl.steps)], **given)
    resumed, again = reinforce(warm, cfg, tmp_path / "cut", **given)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert again[-1]["loss"] == rows[-1]["loss"]
    assert all(row["list/seen"] == 0 and row["catalog/valid"] == 1 for row in rows)


def test_each_list_is_replayed_once_a_step(warm, tmp_path, monkeypatch):
    """The trainer finds the allowed tokens once, whatever the number of passes."""
    calls = []
    inner = ListState.__init__
    monkeypatch.setattr(ListState, "__init__", lambda self, *given: (calls.append(1), inner(self, *given))[1])
    reinforce(warm, held("rl.steps=1", *ALL_PARTS), tmp_path)
    assert len(calls) == 2 * 8, "once in the sampler, once in the trainer"


def test_the_command_line_holds_lists_to_the_catalog(tmp_path):
    options = ("debug=smoke", "logger=none", "rollout.constraint=catalog", "eval.constraint=catalog")
    done = run_command(*options, "model.max_completion_length=200", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = [path.parent for path in tmp_path.glob("outputs/*/*/summary.json")]
    report = (folder / "report.md").read_text()
    assert "held to the catalog (eval.constraint=catalog)" in report
    lists = [json.loads(line) for line in (folder / "eval" / "test.jsonl").read_text().splitlines()]
    assert lists
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    for system in ("zero_shot", "sft", "rank_grpo"):
        if system in metrics:
            assert metrics[system]["catalog/valid"] == 1, system
            assert metrics[system]["list/duplicates"] == metrics[system]["list/seen"] == 0, system


def test_the_doctor_and_the_checks_know_it(monkeypatch):
    policy = tiny_policy()
    assert held_to(make_config(), DATA, policy) == []
    (found,) = held_to(make_config("eval.constraint=catalog", "model.max_completion_length=900"), DATA, policy)
    assert (found.level, found.check) == (Level.OK, "constraint")
    assert f"{len(DATA.catalog):,} of {len(DATA.catalog):,} items" in found.found
    (found,) = held_to(make_config("rollout.constraint=catalog", "model.max_completion_length=9"), DATA, policy)
    assert found.level is Level.WARN
    assert "most lists end before their last line" in found.advice
    assert not problems(unresolved_config("eval.constraint=catalog", "rollout=hf"))
    monkeypatch.setattr(HFEngine, "constrains", False)
    (wrong,) = problems(unresolved_config("eval.constraint=catalog", "rollout=hf"))
    assert wrong.startswith("eval.constraint=catalog: HFEngine cannot hold lists to the catalog.")


def test_evaluations_of_constrained_lists_are_shared_with_each_other_only():
    one, same, other = (
        evaluation_key(make_config(*options), DATA)
        for options in (
            ["rollout=hf"],
            ["rollout=hf", "rollout.constraint=catalog"],
            ["rollout=hf", "eval.constraint=catalog"],
        )
    )
    assert one == same != other
