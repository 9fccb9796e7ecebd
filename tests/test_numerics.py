"""Non-finite values never reach the weights, are named and saved; edge cases of lists have a defined result."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import SMOKE, assert_user_error, make_config, rl_module, run_command, run_group, tiny_policy
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_json, read_jsonl, write_json
from convrec_r1.config.checks import check
from convrec_r1.data import Catalog, Conversation, Message, movieland
from convrec_r1.evaluate.popularity import Popularity
from convrec_r1.evaluate.scoring import score
from convrec_r1.lists import Item
from convrec_r1.matching import Folded
from convrec_r1.modules.config import PassLimit
from convrec_r1.modules.faults import KEPT, Checks, weights_are_finite
from convrec_r1.modules.fit import fit
from convrec_r1.modules.rl import RLModule
from convrec_r1.modules.sft import Example, SFTModule
from convrec_r1.modules.step import StepLoader
from convrec_r1.policy import PromptEncoder, load_policy
from convrec_r1.policy.config import ModelConfig
from convrec_r1.reward import relevance
from convrec_r1.rl import LengthShaping, shape_lengths
from convrec_r1.rollout.base import Completion, make_engine
from convrec_r1.rollout.batch import make_batch
from convrec_r1.run.tracker import JsonlSink, Tracker

pytestmark = pytest.mark.long

DATA = movieland.load(seed=0, n_items=3, sizes={"train": 24, "validation": 4, "test": 4})
WEIGHT = "model.layers.1.mlp.up_proj.weight"


def config(*overrides: str):
    return make_config(
        "n=3", "model.max_completion_length=12", "rl.prompts_per_step=2", "algo.group_size=2", "rl.steps=4",
        "trainer.micro_batch=3", "rl.lr=1e-2", "rl.schedule=linear", "trainer.checkpoint_every=100", "algo.beta=0.01",
        *overrides,
    )  # fmt: skip


@pytest.fixture(scope="module")
def base():
    return tiny_policy(seed=3, hidden_size=32, intermediate_size=64)


class Module(RLModule):
    """The real module, but for what the test does to it. Credit is drawn, as random weights earn none."""

    def credit(self, rollouts, feedback):
        drawn = torch.randn(rollouts.mask.shape, generator=torch.Generator().manual_seed(self.step))
        return torch.where(rollouts.mask.bool(), drawn, 0.0)


class InfiniteCredit(Module):
    """An advantage of step 2 is infinite: that of row 1, the second completion of the first prompt."""

    def credit(self, rollouts, feedback):
        advantages = super().credit(rollouts, feedback)
        if self.step == 1:
            advantages[1, 0] = math.inf
        return advantages


class Overflow(Module):
    """The gradient of one weight overflows at step 2."""

    def on_train_batch_start(self, batch, _):
        if self.step == 1:
            self.hook = self.policy.causal_lm.get_parameter(WEIGHT).register_hook(lambda g: g * 1e38 * 1e38)
        elif self.step == 2:
            self.hook.remove()


class Poisoned(Module):
    """A weight turns into NaN before step 2, from outside."""

    def on_train_batch_start(self, batch, _):
        if self.step == 1:
            with torch.no_grad():
                self.policy.causal_lm.get_parameter(WEIGHT)[3, 5] = math.nan


class NoSecondUpdate(Module):
    """The run that a skipped update is to come to."""

    def update(self, losses, evidence=None):
        if self.step == 1:
            self.lr_schedulers().step()
            return None
        return super().update(losses, evidence)


class Run:
    """A training of `kind` on a copy of a policy, in `folder`."""

    def __init__(self, kind, base, folder: Path, *overrides: str) -> None:
        cfg = config(*overrides)
        self.folder = folder
        self.policy = copy.deepcopy(base)
        encoder = PromptEncoder(self.policy.tokenizer, "Recommend {n} movies.", cfg.n, 128)
        engine = make_engine(cfg.rollout, self.policy, max_length=256)
        tracker = Tracker([JsonlSink(folder / "metrics.jsonl")])
        self.loader = StepLoader(DATA["train"], cfg.rl.prompts_per_step, cfg.rl.steps, cfg.seed)
        self.module = rl_module(self.policy, engine, encoder, DATA.catalog, cfg, tracker, self.loader, kind=kind)
        self.cfg = cfg

    def go(self) -> "Run":
        fit(self.module, self.loader, self.cfg.trainer, self.folder / "checkpoints", description="test")
        return self

    def values(self, name: str) -> list[float | None]:
        return [r["values"].get(name) for r in read_jsonl(self.folder / "metrics.jsonl")]


def drawn(loader: StepLoader, step: int):
    """The samples of a step, from 0, of a loader that has been used."""
    return list(StepLoader(loader.samples, loader.per_step, loader.steps, loader.seed))[step]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def stops(run: Run) -> str:
    with pytest.raises(UserError) as stopped:
        run.go()
    return str(stopped.value)


def test_a_batch_that_is_not_finite_stops_the_run_and_is_kept(base, tmp_path):
    one = Run(Module, base, tmp_path / "one", "rl.steps=1").go()
    run = Run(InfiniteCredit, base, tmp_path / "run", "rl.schedule=constant")
    message = stops(run)
    folder = tmp_path / "run" / "faults" / "step-000002"
    bad = drawn(run.loader, 1)[0][1].id
    assert message.startswith(f"Step 2, update 1: not finite: the advantages, the loss. Conversations: {bad}. ")
    assert f"The batch is saved in {folder}" in message
    assert "guard.nonfinite=skip" in message
    assert same(run.policy, one.policy), "the weights are those of step 1"
    fault = read_json(folder / "fault.json")
    assert (fault["step"], fault["update"], fault["conversations"], fault["slots"]) == (2, 1, [bad], [0])
    rows = read_json(folder / "rows-0.json")
    assert sorted(rows["slots"]) == [0, 0, 1, 1]
    (row,) = rows["not_finite"]
    assert rows["conversations"][row] == bad
    assert "Recommend 3 movies." in rows["prompts"][row]
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert {p.name for p in files} == {"fault.json", "rows-0.json", "batch-0.safetensors"}, (
        "nothing that needs a pickle"
    )
    assert [p.name for p in folder.parent.iterdir()] == ["step-000002"], "and nothing half written beside it"
    tensors = load_file(folder / "batch-0.safetensors")
    finite = {name: tensor.isfinite().all().item() for name, tensor in tensors.items()}
    assert [name for name, whole in finite.items() if not whole] == ["advantages"]
    assert tensors["advantages"].isinf().nonzero().tolist() == [[row, 0]]
    assert tensors["parts"].tolist() == [0, 0, 1, 1], "micro-batches of three do not cut a prompt's two lists apart"


def test_a_skipped_update_leaves_the_weights_of_a_run_without_it(base, tmp_path):
    skipped = Run(InfiniteCredit, base, tmp_path / "a", "guard.nonfinite=skip").go()
    without = Run(NoSecondUpdate, base, tmp_path / "b").go()
    whole = Run(Module, base, tmp_path / "c").go()
    assert same(skipped.policy, without.policy)
    assert not same(skipped.policy, whole.policy), "the update matters, or this means nothing"
    assert skipped.values("skipped_updates") == [0, 1, 0, 0]
    assert skipped.values("lr") == [pytest.approx(0.01), None, pytest.approx(0.005), pytest.approx(0.0025)], (
        "the schedule goes by the run's steps"
    )
    assert skipped.values("loss")[1] is None
    numbers = [v for r in read_jsonl(tmp_path / "a" / "metrics.jsonl") for v in r["values"].values()]
    assert all(map(math.isfinite, numbers)), "nothing that is no number reaches the metrics or the guard"
    assert skipped.module.skipped == 1
    again = Run(InfiniteCredit, base, tmp_path / "a", "guard.nonfinite=skip").go()
    assert again.module.skipped == 1, "a run that goes on remembers"
    assert (tmp_path / "a" / "faults" / "step-000002" / "fault.json").exists()


@pytest.mark.parametrize("kind", ["stop", "skip"])
def test_a_gradient_that_overflows(base, tmp_path, kind):
    run = Run(Overflow, base, tmp_path, f"guard.nonfinite={kind}")
    if kind == "stop":
        message = stops(run)
        assert f"Step 2, update 1: not finite: the gradient of {WEIGHT}" in message
        assert message.count("the gradient of") == 1, "the others are finite, and are not named"
    else:
        assert run.go().values("skipped_updates") == [0, 1, 0, 0]
    assert weights_are_finite(run.policy.parameters())


@pytest.mark.parametrize("kind", ["stop", "skip"])
def test_a_poisoned_weight_stops_the_run_whatever_is_configured(base, tmp_path, kind):
    message = stops(Run(Poisoned, base, tmp_path, f"guard.nonfinite={kind}"))
    assert message.startswith(f"Step 2, update 1: not finite: weight {WEIGHT}, the sampler's log-probs, ")
    assert "cannot be skipped" in message


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_policy_that_is_not_finite_is_not_started_from(base, tmp_path, value):
    run = Run(Module, base, tmp_path)
    with torch.no_grad():
        run.policy.causal_lm.get_parameter(WEIGHT)[0, 0] = value
    assert WEIGHT in stops(run)
    assert not (tmp_path / "metrics.jsonl").exists()
    run.policy.save(tmp_path / "policy")
    with pytest.raises(UserError, match=f"not finite.*{WEIGHT}"):
        load_policy(tmp_path / "policy", run.cfg.model)


class DamagedState(Module):
    """The optimizer's memory of one weight overflows before step 2."""

    def on_train_batch_start(self, batch, _):
        if self.step == 1:
            self.optimizers().state[self.policy.causal_lm.get_parameter(WEIGHT)]["exp_avg"][0, 0] = math.inf


@pytest.mark.parametrize("kind", ["stop", "skip"])
def test_an_update_that_makes_weights_infinite_is_told_as_such(base, tmp_path, kind):
    message = stops(Run(DamagedState, base, tmp_path, f"guard.nonfinite={kind}"))
    assert message.startswith(
        f"Step 2, update 1: not finite: weight {WEIGHT} (after this update, with a gradient of norm "
    )
    assert "The optimizer made them so" in message
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1, "nothing was sampled from them"


class BadSample(Module):
    """The sampler's log-prob of the first token of row 2 is NaN at step 1."""

    def sample(self, slots, meter):
        slots, rollouts, feedback = super().sample(slots, meter)
        if self.step == 0:
            rollouts.sampled_logps[2, 0] = math.nan
        return slots, rollouts, feedback


def test_only_the_updates_with_the_bad_row_are_left_out(base, tmp_path):
    run = Run(BadSample, base, tmp_path, "guard.nonfinite=skip", "algo.mu=2", "algo.minibatches=2", "rl.steps=2").go()
    assert run.values("skipped_updates") == [2, 0], "one of two minibatches, in each of two passes"
    assert run.values("grad_norm")[0] > 0
    fault = read_json(tmp_path / "faults" / "step-000001" / "fault.json")
    assert fault["what"] == ["the sampler's log-probs"], "where nothing is corrected, the loss does not show it"
    assert fault["conversations"] == [drawn(run.loader, 0)[1][1].id]
    assert not same(run.policy, base)


class NeverFinite(Module):
    def credit(self, rollouts, feedback):
        return super().credit(rollouts, feedback) * math.nan


def test_patience_ends_and_the_newest_faults_are_kept(base, tmp_path):
    run = Run(NeverFinite, base, tmp_path, "guard.nonfinite=skip", "guard.nonfinite_patience=4", "rl.steps=9")
    message = stops(run)
    assert message.startswith("Step 5, ")
    assert "guard.nonfinite_patience=4" in message
    assert sorted(p.name for p in (tmp_path / "faults").iterdir()) == [f"step-00000{s}" for s in (3, 4, 5)]
    assert KEPT == 3
    assert same(run.policy, base)


@pytest.mark.parametrize("kind", ["stop", "skip"])
def test_sft_likewise(base, tmp_path, kind):
    policy = copy.deepcopy(base)
    encoder = PromptEncoder(policy.tokenizer, "Recommend {n} movies.", 3, 128)
    examples = [Example(encoder.prompt(c), encoder.completion(c.demonstration), c.id) for c in DATA["train"]]
    cfg = config("sft.lr=1e-3", f"guard.nonfinite={kind}")

    class Bad(SFTModule):
        def on_train_batch_start(self, batch, _):
            if self.step == 1:
                self.hook = self.policy.head.register_forward_pre_hook(lambda *_: None)
                self.temperature, self.policy.temperature = self.policy.temperature, 0.0  # logits over zero
            elif self.step == 2:
                self.policy.temperature = self.temperature

    tracker = Tracker([JsonlSink(tmp_path / "metrics.jsonl")])
    module = Bad(policy, cfg.sft, steps=3, pass_limit=PassLimit(3), tracker=tracker, guard=cfg.guard)
    loader = StepLoader(examples, 4, 3, 0)
    policy.fused_head = False
    if kind == "stop":
        with pytest.raises(UserError, match="Step 2, update 1: not finite: the log-probs, the loss"):
            fit(module, loader, cfg.trainer, tmp_path / "checkpoints", description="test")
    else:
        fit(module, loader, cfg.trainer, tmp_path / "checkpoints", description="test")
        records = [r["values"] for r in read_jsonl(tmp_path / "metrics.jsonl")]
        assert [r["sft/skipped_updates"] for r in records] == [0, 1, 0]
        assert "sft/loss" not in records[1]
    saved = read_json(tmp_path / "faults" / "step-000002" / "rows-0.json")
    assert {e.id for _, e in drawn(loader, 1)} == set(saved["conversations"])
    assert weights_are_finite(policy.parameters())


def test_checks_tell_rows_from_whole_parts():
    checks = Checks()
    checks.see("a", torch.tensor([[1.0, 2.0], [3.0, math.nan]]))
    checks.see("the loss", torch.tensor(math.nan))
    checks.part = 1
    checks.see("a", torch.ones(2, 2))
    checks.see("the loss", torch.tensor(math.inf))
    parts = [torch.tensor([4, 7]), torch.tensor([0, 2])]
    assert not checks.all_finite()
    assert checks.found() == ["a", "the loss"]
    assert checks.rows(parts) == [0, 2, 7], "row 7 by its tensor; of the other part only the loss is known"
    assert Checks().all_finite()


def test_large_weights_are_finite():
    """Their squares are not: a norm of two would overflow."""
    assert weights_are_finite([torch.tensor([3e38]), torch.zeros(0), torch.tensor([1.0])])
    assert not weights_are_finite([torch.tensor([1.0]), torch.tensor([0.0, math.nan])])
    assert not weights_are_finite([torch.tensor([-math.inf])])


# ---- edge cases, each with its defined result ----


@pytest.fixture
def algorithms(base, tmp_path):
    """The real module of each algorithm, with credit of its own, and what its update of given completions comes to."""

    def update(algo: str, completions: list[list[int]], *overrides: str, finish="stop"):
        cfg = config(f"algo={algo}", "algo.group_size=4", "rl.prompts_per_step=1", "rl.steps=1", *overrides)

        class Engine:
            def generate(self, prompts, seeds, sampling, on_progress=None):
                rows = [np.array(ids, dtype=np.int64) for ids in completions]
                return [[Completion(ids, np.full(len(ids), -2.0, dtype=np.float32), finish) for ids in rows]]

            def sync(self, policy): ...

            def close(self): ...

        folder = tmp_path / f"{algo}-{len(list(tmp_path.iterdir()))}"
        policy = copy.deepcopy(base)
        encoder = PromptEncoder(policy.tokenizer, "Recommend {n} movies.", cfg.n, 128)
        tracker = Tracker([JsonlSink(folder / "metrics.jsonl")])
        loader = StepLoader(DATA["train"], 1, 1, cfg.seed)
        module = rl_module(policy, Engine(), encoder, DATA.catalog, cfg, tracker, loader)
        fit(module, loader, cfg.trainer, folder / "checkpoints", description="test")
        ((record),) = read_jsonl(folder / "metrics.jsonl")
        assert all(map(math.isfinite, record["values"].values()))
        return policy, record["values"]

    return update


PAPER = LengthShaping(short_eos=-0.1, exact_eos=0.1, overflow=-0.1)
ALGORITHMS = ("grpo", "dr_grpo", "gspo", "rank_grpo", "dapo", "rank_grpo_reference")


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_completions_without_a_token_teach_nothing(base, algorithms, algo):
    """Rows that are masked all over, alone and beside others, in micro-batches of three."""
    policy, values = algorithms(algo, [[], [], [], []])
    assert (values["loss"], values["grad_norm"], values["list/length"]) == (0, 0, 0)
    assert values["completions/max_length"] == 0
    assert values["entropy"] == 0
    assert same(policy, base)
    words = base.tokenizer("Heat (1995)")["input_ids"]
    mixed = algorithms(algo, [words, [], words, []])[1]
    assert mixed["completions/min_length"] == 0
    assert mixed["entropy"] > 0, "a mean over the tokens that there are"


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_an_eos_alone_is_a_list_of_no_lines_and_is_shaped_as_short(base, algorithms, algo):
    eos = base.tokenizer.eos_token_id
    values = algorithms(algo, [[eos]] * 4, "algo/shaping=paper")[1]
    assert (values["list/length"], values["reward"], values["format/complete"]) == (0, 0, 0)
    assert values["frac_reward_zero_std"] == 1
    assert values["grad_norm"] > 0, "the shaping of its EOS is all that there is to learn"
    batch = make_batch([[5]], [[Completion(np.array([eos]), np.array([-1.0], dtype=np.float32), "stop")]], base)
    assert batch.lengths.tolist() == [0]
    tokens = shape_lengths(torch.zeros(1, 1), batch.ranks, batch.is_eos, batch.lengths, 3, PAPER)
    assert tokens.tolist() == [[pytest.approx(-0.1)]], "ending at once costs what ending short costs"


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_group_that_is_all_alike_has_loss_and_gradient_zero(base, algorithms, algo):
    words = base.tokenizer("Heat (1995)\nAlien (1979)\nBig (1988)")["input_ids"]
    policy, values = algorithms(algo, [words] * 4, "algo/shaping=none", "algo.beta=0")
    assert values["frac_reward_zero_std"] == 1
    assert values["reward_std"] == 0
    assert (values["loss"], values["grad_norm"]) == (0, 0)
    assert same(policy, base)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_completions_that_were_cut_off_may_be_left_out_of_the_loss(base, algorithms, algo):
    """All that were, and nothing is left; their rewards still count for the others of their group."""
    hit = "\n".join(map(str, DATA["train"][0].ground_truth))
    rows = [base.tokenizer(text)["input_ids"] for text in (hit, "Heat", "Alien", "Big")]
    common = ("algo/shaping=paper", "algo.beta=0", "algo.mask_truncated=true")
    policy, values = algorithms(algo, rows, *common, finish="length")
    assert (values["loss"], values["grad_norm"], values["completions/clipped_ratio"]) == (0, 0, 1)
    assert same(policy, base)
    ends = zip(rows, ("stop", "length", "stop", "length"), strict=True)
    group = [Completion(np.array(row), np.zeros(len(row), np.float32), end) for row, end in ends]
    batch = make_batch([[5]], [group], base, mask_truncated=True)
    assert batch.trained.sum(-1).tolist() == [len(rows[0]), 0, len(rows[2]), 0]
    assert torch.equal(make_batch([[5]], [group], base).trained, batch.mask)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_list_of_500_lines(base, algorithms, algo):
    """Beside one of none: only its first n lines are judged, the rest is overflow, and quality counts all of it."""
    line = base.tokenizer("Heat (1995)\n")["input_ids"]
    rows = [line * 500, [base.tokenizer.eos_token_id], line * 500, line * 3]
    limits = ("model.max_completion_length=8192", "model.max_prompt_length=64")
    policy, values = algorithms(algo, rows, "algo/shaping=paper", *limits)
    assert values["list/length"] == (500 + 0 + 500 + 3) / 4
    assert values["list/duplicates"] == (499 + 0 + 499 + 2) / 4
    assert values["completions/max_length"] == 500 * len(line)
    assert not same(policy, base)
    assert weights_are_finite(policy.parameters())


@pytest.mark.parametrize("lines", [0, 1, 3, 4, 500])
def test_ranks_rewards_and_shaping_of_a_list_of_any_length(base, lines):
    text = "\n".join(f"Heat ({1000 + i})" for i in range(lines))
    ids = np.array([*base.tokenizer(text)["input_ids"], base.tokenizer.eos_token_id])
    batch = make_batch([[5]], [[Completion(ids, np.zeros(len(ids), dtype=np.float32), "stop")]], base)
    assert batch.lengths.tolist() == [lines]
    assert int(batch.ranks.max()) == max(0, lines - 1)
    hits = relevance(
        text, [Item("Heat", 1000)], (), Catalog([Item("Heat", 1000)]), 3, year_tolerance=0, position="line"
    )
    assert hits == [int(lines > 0), 0, 0]
    token = shape_lengths(torch.zeros(1, len(ids)), batch.ranks, batch.is_eos, batch.lengths, 3, PAPER)[0]
    ends = {0: -0.1, 1: -0.1, 3: 0.1, 4: -0.1, 500: -0.1}
    assert float(token[-1]) == pytest.approx(ends[lines])
    over = batch.ranks[0] >= 3
    assert torch.equal(token[over], torch.full_like(token[over], -0.1))
    assert (token[:-1][~over[:-1]] == 0).all()


@pytest.mark.parametrize("text", ["", "\n\n\n", "x" * 5000, "Heat (1995)\n" * 500])
def test_any_list_can_be_scored(text):
    popularity = Popularity.from_conversations(DATA["train"], DATA.catalog)
    (conversation,) = DATA["test"][:1]
    scored = score([text], [conversation], DATA.catalog, popularity, n=3, ks=[1, 3], match=Folded(0), position="line")
    summary = scored.summary()
    assert all(math.isfinite(v) for v in summary.values() if v is not None)
    assert 0 <= summary["ndcg@3"] <= 1


def talk(*turns: str, **more) -> Conversation:
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(turns))
    return Conversation("c", "c", messages, (Item("Heat", 1995),), **more)


def prompt_text(policy, limit: int, conversation: Conversation) -> str:
    ids = PromptEncoder(policy.tokenizer, "Recommend {n} movies.", 3, limit).prompt(conversation)
    assert len(ids) <= limit
    return policy.tokenizer.decode(ids)


HEAD, TAIL = "User: Recommend 3 movies.\n", "\nAssistant:\n"


def test_a_prompt_that_is_too_long_loses_its_oldest_turns_whole(base):
    turns = [f"{word} {i}." for i, word in enumerate(["Hello there", "What do you like", "Heat", "And", "Crime"] * 6)]
    whole = talk(*turns)
    full = prompt_text(base, 10_000, whole)
    lines = full.split("\n")
    kept = []
    for limit in (400, 250, 150, 80, 45):
        text = prompt_text(base, limit, whole)
        assert text.startswith(HEAD)
        assert text.endswith(TAIL)
        body = text.removeprefix(HEAD).removesuffix(TAIL).split("\n")
        assert body == lines[-2 - len(body) : -2], "the newest turns, each with its speaker, none in part"
        kept.append(len(body))
        longer = base.tokenizer("\n".join([HEAD[:-1], *lines[-3 - len(body) : -2]]) + TAIL)["input_ids"]
        assert len(body) == len(turns) or len(longer) > limit, "and as many of them as there is room for"
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < kept[0]


@pytest.mark.parametrize("space", [" ", ""])
def test_a_last_turn_that_is_too_long_loses_its_front(base, space):
    """Up to a word where there are words; the speaker, the instruction and the reply's beginning stay."""
    words = [f"film{i}" for i in range(300)]
    text = prompt_text(base, 100, talk("Hi.", "Yes?", space.join(words)))
    assert text.startswith(HEAD + "User: ")
    assert text.endswith("film298" + space + "film299" + TAIL)
    body = text.removeprefix(HEAD + "User: ").removesuffix(TAIL)
    assert body == space.join(words)[-len(body) :]
    assert not space or body.split(" ")[0] in words


def test_a_prompt_as_published_loses_its_middle(base):
    text = "Reply with 20 items. " + " ".join(f"turn{i}." for i in range(300)) + " USER: the end."
    shown = prompt_text(base, 100, talk(text, has_instruction=True))
    assert shown.startswith("User: Reply with 20 items. turn0.")
    assert shown.endswith("USER: the end.\nAssistant:\n")


def test_a_limit_that_not_even_the_instruction_fits_in_says_so(base):
    with pytest.raises(
        UserError, match=r"model\.max_prompt_length=8 is too short: the instruction alone .* takes \d\d tokens"
    ):
        prompt_text(base, 8, talk("Hi.", "Yes?", "Something."))


def saved_with(base, folder: Path, tokenizer) -> Path:
    base.causal_lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # A tokenizer of no model type: transformers would put Qwen2's own rules into it.
    settings = read_json(folder / "config.json") | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    write_json(folder / "config.json", settings)
    return folder


def word_tokenizer(words: list[str], **special: str) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[UNK]", "[END]", *words])}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # a newline is white space, and is gone
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", **special)


def test_a_tokenizer_without_newlines_is_refused(base, tmp_path):
    folder = saved_with(base, tmp_path / "m", word_tokenizer(["A", "B", "\n"], eos_token="[END]"))
    with pytest.raises(
        UserError, match=r"has no newline: it reads two lines as \['A', 'B'\].*tokenizer keeps newlines"
    ):
        load_policy(folder, ModelConfig(name="x"))


def test_a_tokenizer_without_eos_is_refused(base, tmp_path):
    folder = saved_with(base, tmp_path / "m", word_tokenizer(["A", "B"]))
    with pytest.raises(UserError, match=r"no EOS token, so lists never end\. Choose a model that has one"):
        load_policy(folder, ModelConfig(name="x"))


# ---- as a user meets it ----


@pytest.mark.processes
def test_a_run_that_blows_up_is_stopped_and_may_be_resumed_with_skip(tmp_path):
    run = (*SMOKE, "rl.lr=1e25", "rl.grad_clip=0", "guard.action=none", "hydra.run.dir=run")
    done = run_command(*run, cwd=tmp_path)
    folder = next((tmp_path / "run" / "faults").iterdir())
    assert_user_error(done, "not finite: ", "Conversations: movieland-train-", f"The batch is saved in {folder}")
    step = read_json(folder / "fault.json")["step"]
    assert f"Step {step}," in done.stderr
    again = run_command(*run, "guard.nonfinite=skip", cwd=tmp_path)
    assert "another config" not in again.stderr, "a run that stopped may go on and skip"


@pytest.mark.processes
def test_two_processes_decide_alike(tmp_path):
    run = (*SMOKE, "rl.lr=1e25", "rl.grad_clip=0", "guard.action=none", "hydra.run.dir=run")
    first, second = run_group(*run, "trainer=ddp", "trainer.accelerator=cpu", cwd=tmp_path, world=2)
    assert_user_error(first.done, "not finite: ", "The batch is saved in ")
    assert second.poll() == 2
    (folder,) = (tmp_path / "run" / "faults").iterdir()
    assert read_json(folder / "fault.json")["processes"] == 2
    assert [set(read_json(folder / f"rows-{r}.json")["slots"]) for r in (0, 1)] == [{0}, {1}]
    assert all(load_file(folder / f"batch-{r}.safetensors") for r in (0, 1))


def test_patience_has_a_bound():
    with pytest.raises(UserError, match="at least 1"):
        check(make_config("guard.nonfinite_patience=0"))
