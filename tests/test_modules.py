"""Training steps: independent of micro-batches, resumable, the same algorithm that rl/ computes."""

import copy
import functools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from support import PowerCut, make_config, power_cut, rl_module, tiny_policy

from convrec_r1.base.files import read_jsonl
from convrec_r1.data import movieland
from convrec_r1.matching import Folded
from convrec_r1.modules.callbacks import Checkpoints, ProgressBar, Watch
from convrec_r1.modules.config import OptimConfig, PassLimit, Schedule
from convrec_r1.modules.fit import fit
from convrec_r1.modules.sft import Example, SFTModule, mean_loss
from convrec_r1.modules.step import StepLoader, schedule
from convrec_r1.policy import PromptEncoder
from convrec_r1.policy.config import LoraConfig, ModelConfig
from convrec_r1.policy.load import prepare_for_training
from convrec_r1.rollout.base import make_engine
from convrec_r1.rollout.config import ConstraintChoice
from convrec_r1.rollout.constraint import Constraint
from convrec_r1.run.tracker import JsonlSink, Tracker

pytestmark = pytest.mark.long

ALGORITHMS = ("grpo", "dr_grpo", "gspo", "rank_grpo", "dapo", "rank_grpo_reference")
DATA = movieland.load(seed=0, n_items=3, sizes={"train": 24, "validation": 4, "test": 4})
# What the warm policy imitates is what its users want, so that some of its lists earn a reward and others do not.
DATA.splits["train"] = [replace(c, ground_truth=c.demonstration, seen=()) for c in DATA["train"]]


def config(*overrides: str):
    return make_config(
        "n=3", "model.max_completion_length=40", "rl.prompts_per_step=2", "algo.group_size=4", "rl.steps=4",
        "trainer.micro_batch=8", "rl.lr=1e-2", "trainer.checkpoint_every=2", *overrides,
    )  # fmt: skip


def warm_policy(heads: int = 2):
    """A policy that has seen enough lists to write some, so that groups differ."""
    return copy.deepcopy(_warm_policy(heads))


@functools.cache  # several files want it
def _warm_policy(heads: int):
    policy = tiny_policy(seed=3, hidden_size=32, intermediate_size=64, heads=heads)
    encoder = PromptEncoder(policy.tokenizer, "Recommend {n} movies.", 3, 128)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    from convrec_r1.modules.sft import collate

    for _ in range(80):
        examples = [Example(encoder.prompt(c), encoder.completion(c.demonstration)) for c in DATA["train"]]
        batch = collate(examples, policy)
        optimizer.zero_grad()
        (-policy(batch)[0].sum() / batch.mask.sum()).backward()
        optimizer.step()
    return policy


@pytest.fixture(scope="module")
def warm():
    torch.set_num_threads(1)
    return warm_policy()


def reinforce(policy, cfg, folder: Path, callbacks=(), rank: int = 0, world: int = 1) -> tuple[dict, list[dict]]:
    policy = copy.deepcopy(policy)
    encoder = PromptEncoder(policy.tokenizer, "Recommend {n} movies.", cfg.n, 128)
    held = cfg.rollout.constraint is ConstraintChoice.catalog
    constraint = Constraint.of(DATA.catalog, Folded(), policy) if held else None
    engine = make_engine(cfg.rollout, policy, max_length=256, constraint=constraint)
    tracker = Tracker([] if rank else [JsonlSink(folder / "metrics.jsonl", folder / "rollouts")])
    loader = StepLoader(DATA["train"], cfg.rl.prompts_per_step, cfg.rl.steps, cfg.seed, rank=rank, world=world)
    module = rl_module(policy, engine, encoder, DATA.catalog, cfg, tracker, loader, constraint=constraint)
    fit(module, loader, cfg.trainer, folder / "checkpoints", description="test", callbacks=callbacks)
    return policy.state_dict(), read_jsonl(folder / "metrics.jsonl")


def distance(a: dict, b: dict) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("more", [(), ("algo.mu=2", "algo.minibatches=2", "algo.beta=0.05")])
def test_micro_batches_never_change_a_step(warm, tmp_path, algo, more):
    """SGD in place of AdamW would show differences as they are; AdamW, the real optimizer, even enlarges them."""
    results = []
    for micro_batch in ("micro_batch=8", "micro_batch=3", "micro_tokens=150", "micro_tokens=1"):
        cfg = config(
            f"algo={algo}", "trainer.micro_batch=null", f"trainer.{micro_batch}", "rl.steps=1", "rl.lr=1e-3", *more
        )
        results.append(reinforce(warm, cfg, tmp_path / micro_batch))
    (whole, (first, *_)), *others = results
    assert distance(whole, warm.state_dict()) > 1e-4, "the step must move the weights for this to mean anything"
    for state, (record, *_) in others:
        assert distance(state, whole) < 2e-4
        for name, value in first["values"].items():
            if not name.startswith(("time/", "tokens_per_second")):
                assert record["values"][name] == pytest.approx(value, abs=1e-4, rel=1e-3), name


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_five_steps_with_a_prompt_read_once_are_those_with_a_prompt_for_each_list(warm, tmp_path, algo):
    cfg = config(f"algo={algo}", "rl.steps=5", "rl.lr=1e-4", "algo.mu=2", "algo.minibatches=2", "algo.beta=0.05")
    apart = copy.deepcopy(warm)
    apart.packs = False
    assert warm.packs
    (together, records), (alone, expected) = (reinforce(p, cfg, tmp_path / str(p.packs)) for p in (warm, apart))
    assert distance(together, warm.state_dict()) > 5e-4, "the steps must move the weights for this to mean anything"
    assert distance(together, alone) < 5e-5
    for ours, theirs in zip(records, expected, strict=True):
        for name, value in theirs["values"].items():
            if not name.startswith(("time/", "tokens_per_second")):
                assert ours["values"][name] == pytest.approx(value, abs=1e-4, rel=1e-3), name


@pytest.mark.parametrize("dropout", [None, 0.3])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(warm, tmp_path, dropout):
    """dropout: of LoRA adapters; None: no adapters."""
    cfg = config("rl.steps=5")
    if dropout:
        lora = LoraConfig(enabled=True, rank=4, alpha=8, dropout=dropout)
        warm = prepare_for_training(copy.deepcopy(warm), ModelConfig(name="tiny", lora=lora), seed=0)
    whole, records = reinforce(warm, cfg, tmp_path / "whole")
    assert distance(whole, warm.state_dict()) > 1e-4

    with pytest.raises(PowerCut):
        reinforce(warm, cfg, tmp_path / "cut", [power_cut(3, total=5)])
    assert (tmp_path / "cut" / "checkpoints" / "last").resolve().name == "000002"
    # Started again as a user would: from the warm start, whose weights must give way to the checkpoint's, and in a process
    # where something else has been drawn before.
    torch.rand(3)
    resumed, again = reinforce(warm, cfg, tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    last = {r["step"]: r["values"] for r in again}
    for record in records:
        for name, value in record["values"].items():
            if not name.startswith(("time/", "tokens_per_second")):
                assert last[record["step"]][name] == value, (record["step"], name)


def test_metrics_are_those_the_design_names(warm, tmp_path):
    _, (record, *_) = reinforce(warm, config("rl.steps=1"), tmp_path)
    names = set(record["values"])
    assert record["step"] == 1
    assert record["split"] == "train"
    assert names >= {
        "reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "clip_ratio/low_mean", "clip_ratio/high_mean",
        "clip_ratio/region_mean", "completions/mean_length", "completions/min_length", "completions/max_length",
        "sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max", "rank/1/reward", "rank/3/reward",
        "catalog/valid", "format/valid", "list/length", "list/duplicates", "lr", "grad_norm", "loss", "time/step",
    }  # fmt: skip
    values = record["values"]
    assert values["reward_std"] > 0, "lists of a group must differ for any of these tests to mean something"
    assert values["sampling/sampling_logp_difference/max"] < 1e-4
    assert values["clip_ratio/region_mean"] == 0  # on policy, every ratio is one
    assert values["ratio/mean"] == pytest.approx(1, abs=1e-6)
    assert values["completions/min_length"] <= values["completions/mean_length"] <= values["completions/max_length"]
    table = read_jsonl(tmp_path / "rollouts" / "rollouts-000001.jsonl")
    assert len(table) == 8
    assert set(table[0]) >= {"conversation", "list", "relevance", "reward", "ground_truth"}


def test_off_policy_passes_move_the_ratio_away_from_one(warm, tmp_path):
    _, (record, *_) = reinforce(warm, config("rl.steps=1", "algo.mu=2", "rl.lr=1e-2"), tmp_path)
    assert abs(record["values"]["ratio/max"] - 1) > 1e-3


def test_rewarded_lists_become_likelier(warm, tmp_path):
    """The sign of the whole chain: with one film as everybody's ground truth, its share of the lists grows."""
    items = [c.demonstration[0] for c in DATA["train"]]
    wanted = max(set(items), key=items.count)
    easy = [replace(c, ground_truth=(wanted,), seen=()) for c in DATA["train"]]
    policy = copy.deepcopy(warm)
    cfg = config(
        "rl.steps=12", "rl.prompts_per_step=4", "algo.group_size=8", "rl.lr=3e-3", "trainer.checkpoint_every=100"
    )
    encoder = PromptEncoder(policy.tokenizer, "Recommend {n} movies.", cfg.n, 128)
    tracker = Tracker([JsonlSink(tmp_path / "metrics.jsonl")])
    engine, loader = make_engine(cfg.rollout, policy, max_length=256), StepLoader(easy, 4, 12, 0)
    module = rl_module(policy, engine, encoder, DATA.catalog, cfg, tracker, loader)
    fit(module, loader, cfg.trainer, tmp_path / "checkpoints", description="test")
    reward = [r["values"]["reward"] for r in read_jsonl(tmp_path / "metrics.jsonl")]
    assert sum(reward[-3:]) > sum(reward[:3]) + 0.3


def test_sft_is_independent_of_micro_batches_and_resumes(tmp_path):
    base = tiny_policy(seed=1)
    encoder = PromptEncoder(base.tokenizer, "Recommend {n} movies.", 3, 128)
    examples = [Example(encoder.prompt(c), encoder.completion(c.demonstration)) for c in DATA["train"]]

    def train(micro: int, folder: Path, stop: int | None = None):
        policy = copy.deepcopy(base)
        cfg = config("sft.steps=6", "sft.batch_size=8", "sft.lr=1e-3", f"trainer.micro_batch={micro}")
        tracker = Tracker([JsonlSink(folder / "metrics.jsonl")])
        module = SFTModule(policy, cfg.sft, steps=6, pass_limit=PassLimit(micro), tracker=tracker)

        def cut(step: int) -> float:
            if step == stop:
                raise KeyError("stop")
            return 0.0

        fit(module, StepLoader(examples, 8, 6, 0), cfg.trainer, folder / "checkpoints", description="test",
            callbacks=[Watch(cut, every=1, total=6)])  # fmt: skip
        return policy

    whole = train(8, tmp_path / "a")
    assert distance(train(3, tmp_path / "b").state_dict(), whole.state_dict()) < 1e-4
    with pytest.raises(KeyError):
        train(8, tmp_path / "c", stop=5)
    resumed = train(8, tmp_path / "c")
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert mean_loss(whole, examples, PassLimit(4)) == pytest.approx(
        mean_loss(whole, examples, PassLimit(tokens=9)), rel=1e-5
    )
    assert mean_loss(whole, examples, PassLimit(8)) < mean_loss(base, examples, PassLimit(8))


def test_checkpoints_are_whole_and_last_points_to_the_newest(warm, tmp_path):
    reinforce(warm, config("rl.steps=4"), tmp_path)
    folder = tmp_path / "checkpoints"
    assert [p.name for p in sorted(folder.iterdir())] == ["000002", "000004", "last"], (
        "the newest and the one before it"
    )
    assert (folder / "last" / "trainer.ckpt").exists()
    assert (folder / "last" / "policy" / "model.safetensors").exists()
    assert json.loads((folder / "last" / "policy" / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]


class Recorder(pl.Callback):
    """A user's callback: logs a metric for the progress bar, and looks at what Lightning says of the trainer."""

    def on_train_batch_end(self, trainer, *_):
        self.log("mine", 0.25, prog_bar=True)
        self.checkpoints, self.bar = trainer.checkpoint_callbacks, trainer.progress_bar_callback


def test_lightning_knows_checkpoints_and_progress_bar_and_users_may_add_their_own(warm, tmp_path, capsys):
    recorder = Recorder()
    own = ModelCheckpoint(tmp_path / "own", every_n_train_steps=1, save_top_k=-1)
    reinforce(warm, config("rl.steps=2"), tmp_path / "a", [recorder, own])
    assert [type(c) for c in recorder.checkpoints] == [ModelCheckpoint, Checkpoints]
    assert len(list((tmp_path / "own").glob("*.ckpt"))) == 2
    assert type(recorder.bar) is ProgressBar
    assert re.search(r"test: 2/2, .* reward .* mine 0\.25", capsys.readouterr().out)
    bar = TQDMProgressBar(refresh_rate=0)
    reinforce(warm, config("rl.steps=1"), tmp_path / "b", [recorder, bar])
    assert recorder.bar is bar


def test_step_loader_is_a_stream_of_permutations():
    loader = StepLoader("abcdefg", 3, 7, seed=1)
    drawn = [sample for step in loader for _, sample in step]
    assert sorted(drawn[:7]) == sorted(drawn[7:14]) == sorted(drawn[14:21]) == list("abcdefg")
    assert drawn[:7] != drawn[7:14]
    assert [slot for slot, _ in next(iter(loader))] == [0, 1, 2]
    assert drawn == [sample for step in StepLoader("abcdefg", 3, 7, seed=1) for _, sample in step]
    assert drawn != [sample for step in StepLoader("abcdefg", 3, 7, seed=2) for _, sample in step]


def test_step_loader_goes_on_where_it_was_left():
    loader = StepLoader("abcdefg", 2, 6, seed=1)
    whole = list(loader)
    loader = StepLoader("abcdefg", 2, 6, seed=1)
    steps = iter(loader)
    first = [next(steps), next(steps)]
    resumed = StepLoader("abcdefg", 2, 6, seed=1)
    resumed.load_state_dict(loader.state_dict())
    assert first + list(resumed) == whole


def test_step_loader_deals_whole_groups_to_processes():
    whole = list(StepLoader("abcdefgh", 4, 4, seed=1))
    parts = [list(StepLoader("abcdefgh", 4, 4, seed=1, rank=rank, world=2)) for rank in range(2)]
    assert [[*a, *b] for a, b in zip(*parts, strict=True)] == [list(step) for step in whole]
    with pytest.raises(ValueError, match="do not divide"):
        StepLoader("abc", 3, 1, seed=1, world=2)


def test_schedules_by_hand():
    def factors(kind, warmup=0.0, updates=4):
        f = schedule(OptimConfig(lr=1.0, schedule=Schedule[kind], warmup=warmup), updates)
        return [f(step) for step in range(updates + 1)]

    assert factors("constant") == [1, 1, 1, 1, 1]
    assert factors("linear") == [1, 0.75, 0.5, 0.25, 0]
    assert factors("cosine") == pytest.approx([1, 0.8535534, 0.5, 0.1464466, 0])
    # Half of four updates warms up: a third, two thirds, then the whole
    assert factors("constant", warmup=0.5) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])
