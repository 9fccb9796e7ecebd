"""What is watched while a run trains: its best policy is kept, and training ends where it should, resumed or not."""

import copy
from pathlib import Path

import pytest
import torch
from support import PowerCut, rl_module
from test_modules import DATA, config, warm_policy

from convrec_r1.base.files import read_jsonl
from convrec_r1.modules.callbacks import Watch
from convrec_r1.modules.config import GuardConfig
from convrec_r1.modules.fit import fit
from convrec_r1.modules.guard import Guard
from convrec_r1.modules.step import StepLoader
from convrec_r1.policy import PromptEncoder, load_policy
from convrec_r1.rollout.base import make_engine
from convrec_r1.run.tracker import JsonlSink, Tracker

pytestmark = pytest.mark.long

VALUES = {0: 0.1, 1: 0.2, 2: 0.5, 3: 0.4, 4: 0.5, 5: 0.3, 6: 0.45}
"""What each step's evaluation says; step 2 is the best, and step 4, which equals it, is no gain."""


@pytest.fixture(scope="module")
def warm():
    torch.set_num_threads(1)
    return warm_policy()


def train(warm, folder: Path, *, steps: int = 6, every: int = 3, cut: int | None = None, values=VALUES, **watching):
    """Train a copy of `warm`. Returns what watched it, and its weights at each evaluation."""
    cfg = config(f"rl.steps={steps}", f"trainer.checkpoint_every={every}")
    policy = copy.deepcopy(warm)
    weights = {}

    def evaluate(step: int) -> float:
        if step == cut:
            raise PowerCut
        weights[step] = copy.deepcopy(policy.state_dict())
        return values[step]

    watch = Watch(evaluate, every=1, total=steps, **watching)
    encoder = PromptEncoder(policy.tokenizer, "Recommend {n} movies.", cfg.n, 128)
    tracker = Tracker([JsonlSink(folder / "metrics.jsonl")])
    engine = make_engine(cfg.rollout, policy, max_length=256)
    loader = StepLoader(DATA["train"], cfg.rl.prompts_per_step, steps, cfg.seed)
    module = rl_module(policy, engine, encoder, DATA.catalog, cfg, tracker, loader)
    fit(module, loader, cfg.trainer, folder / "checkpoints", description="test", callbacks=[watch])
    return watch, weights


def trained_steps(folder: Path) -> list[int]:
    return [r["step"] for r in read_jsonl(folder / "metrics.jsonl") if r["split"] == "train"]


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_best_policy_is_kept_beside_the_last(warm, tmp_path):
    watch, weights = train(warm, tmp_path)
    checkpoints = tmp_path / "checkpoints"
    assert (watch.best, watch.best_step) == (0.5, 2)
    assert (checkpoints / "best").resolve().name == "000002"
    assert (checkpoints / "last").resolve().name == "000006"
    kept = load_policy(checkpoints / "best" / "policy", config().model).state_dict()
    assert same(kept, weights[2])
    assert not same(kept, weights[6]), "training must move the weights for this to mean anything"
    assert sorted(p.name for p in checkpoints.glob("[0-9]*")) == ["000002", "000003", "000006"], (
        "the best and the last two"
    )
    assert not (checkpoints / "best" / "trainer.ckpt").exists(), "the best is to be used, not to go on from"


def test_a_warm_start_that_nothing_beats_stays_the_best(warm, tmp_path):
    watch, weights = train(warm, tmp_path, steps=2, values={0: 0.9, 1: 0.2, 2: 0.5})
    assert watch.best_step == 0
    assert same(load_policy(tmp_path / "checkpoints" / "best" / "policy", config().model).state_dict(), weights[0])
    assert same(weights[0], warm.state_dict())


def test_training_ends_when_it_has_not_gained_for_long_enough(warm, tmp_path):
    watch, _ = train(warm, tmp_path, patience=3)
    assert trained_steps(tmp_path) == [1, 2, 3, 4, 5], "no gain at 3, 4 and 5"
    assert watch.stopped["step"] == 5
    assert "0.5000 at step 2" in watch.stopped["why"]
    assert (tmp_path / "checkpoints" / "last").resolve().name == "000005", "saved where it ends"


def test_a_run_that_had_ended_early_does_not_train_on(warm, tmp_path):
    """Cut off between its end and its evaluation, and started again."""
    train(warm, tmp_path, patience=3)
    again, weights = train(warm, tmp_path, patience=3)
    assert again.stopped["step"] == 5
    assert trained_steps(tmp_path) == [1, 2, 3, 4, 5]
    assert weights == {}, "nothing is evaluated again either"


@pytest.mark.parametrize("cut", [2, 4, 5])
def test_a_run_that_was_cut_off_judges_as_if_it_had_not_been(warm, tmp_path, cut):
    whole, _ = train(warm, tmp_path / "whole", patience=3, every=1)
    with pytest.raises(PowerCut):
        train(warm, tmp_path / "cut", patience=3, every=1, cut=cut)
    again, _ = train(warm, tmp_path / "cut", patience=3, every=1)
    assert again.state_dict() == whole.state_dict()
    assert whole.stopped["step"] == 5
    for link in ("best", "last"):
        name = (tmp_path / "whole" / "checkpoints" / link).resolve().name
        assert (tmp_path / "cut" / "checkpoints" / link).resolve().name == name


def collapse_guard() -> Guard:
    """KL is 0 at the first step, where the policy is its reference, and is not at the second: a real collapse, in little."""
    others = {"min_list_length": None, "max_list_length": None, "min_in_catalog": None, "min_entropy": None}
    return Guard(GuardConfig(window=1, max_kl=1e-9, **others), 3)


def test_a_collapse_stops_the_run_saves_it_and_says_which_limit_broke(warm, tmp_path, caplog):
    watch, _ = train(warm, tmp_path, guard=collapse_guard())
    assert watch.stopped is not None
    why = watch.stopped["why"].removeprefix("collapse: ")
    assert caplog.text.count(why) == 1, "said once"
    assert "steps early (guard.action=stop)" in caplog.text
    assert trained_steps(tmp_path) == [1, 2]
    assert watch.stopped["step"] == 2
    assert "kl = " in watch.stopped["why"]
    assert "guard.max_kl=1e-09" in watch.stopped["why"]
    for link in ("collapsed", "last"):
        assert (tmp_path / "checkpoints" / link / "policy" / "config.json").exists()
        assert (tmp_path / "checkpoints" / link).resolve().name == "000002"


def test_a_collapse_can_be_only_reported(warm, tmp_path):
    watch, _ = train(warm, tmp_path, guard=collapse_guard(), stop_on_collapse=False)
    assert trained_steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert watch.stopped is None
    assert [c["step"] for c in watch.collapses] == [2]
    assert (tmp_path / "checkpoints" / "collapsed").resolve().name == "000002", "kept to the end"
