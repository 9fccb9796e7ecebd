"""task=doctor: one longest step is measured, the run is forecast, and each problem comes with what to do."""

import copy
import shutil
import time
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from packaging.requirements import Requirement
from support import SMOKE, assert_user_error, make_config, run_command, tiny_policy, unresolved_config
from test_groups import dapo
from test_pipeline import reinforce
from test_weights import with_lora
from transformers import Qwen2Config, Qwen2ForCausalLM

from convrec_r1.base.errors import UserError
from convrec_r1.config.parts import encoder_for
from convrec_r1.data import movieland
from convrec_r1.doctor import environment, task
from convrec_r1.doctor.findings import Level
from convrec_r1.doctor.model import build
from convrec_r1.doctor.plan import plan_of
from convrec_r1.doctor.task import doctor, examine, memory
from convrec_r1.modules import measure as measuring
from convrec_r1.modules.config import Optimizer
from convrec_r1.modules.forecast import DAY, Plan, StepCost, at_most, duration, forecast, replacements, too_long
from convrec_r1.modules.measure import long_run_warning, measure
from convrec_r1.modules.memory import (
    cache_bytes,
    held_memory,
    keeps_reference_in_file,
    optimizer_bytes,
    peak_memory,
    reference_bytes,
)
from convrec_r1.modules.step import optimizer_maker
from convrec_r1.policy import Policy
from convrec_r1.rollout.base import Sampling
from convrec_r1.rollout.hf import HFEngine

pytestmark = pytest.mark.long

CPU = torch.device("cpu")
GIB = 1 << 30
DATA = movieland.load(seed=0, n_items=20, sizes={"train": 40, "validation": 9, "test": 11})
PLAN = Plan(
    prompt=60, completion=20, mean_prompt=30, mean_completion=10, micro_batch=8, engine_batch=16, sft_steps=10, sft_rows=4,
    rl_steps=5, rl_rows=32, learned=2, scored=1, updates=4, evaluated=40,
)  # fmt: skip
COST = StepCost(
    rows=8, tokens=80, forward=0.01, learn=0.03, update=2.0, prefill=0.005, token=0.5, token_row=0.1,
    peak={"training": 9 * GIB, "sampling": 3 * GIB}, held=GIB, available=5 * GIB,
)  # fmt: skip


def levels(findings) -> dict[str, Level]:
    return {finding.check: finding.level for finding in findings}


@pytest.fixture(scope="module")
def qwen():
    """Qwen2.5-0.5B's shape at an eighth of its width: 24 layers, 14 heads over 2, four times as wide inside, tied head."""
    small = tiny_policy()
    config = Qwen2Config(
        vocab_size=small.head_weight.shape[0], hidden_size=112, intermediate_size=608, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=small.tokenizer.eos_token_id, pad_token_id=small.pad_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        return Policy(Qwen2ForCausalLM(config), small.tokenizer)


def test_measuring_changes_nothing(qwen):
    before = copy.deepcopy(qwen.state_dict())
    qwen.eval()
    state = torch.random.get_rng_state()
    cost = measure(qwen, HFEngine(qwen, batch_size=16), PLAN, budget=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in qwen.state_dict().items())
    assert all(p.grad is None for p in qwen.parameters())
    assert not qwen.training
    assert (cost.rows, cost.tokens) == (8, 8 * 80), "there was time for the whole micro-batch"
    assert 0 < cost.forward < cost.learn < 0.1
    assert 0 < cost.update < 1
    assert 0 < cost.token + cost.token_row < 1
    gradients = sum(p.nbytes for p in qwen.parameters())
    assert cost.held <= cost.peak["training"] < 20 * GIB
    assert cost.held - gradients <= cost.peak["sampling"] < 20 * GIB, "gradients are freed before sampling"


def test_what_was_not_measured_is_extrapolated(qwen):
    """With no time to spare only the two smallest passes are made."""
    long = replace(PLAN, prompt=448, completion=64, micro_batch=32)
    cost = measure(qwen, HFEngine(qwen, batch_size=16), long, budget=0)
    assert (cost.rows, cost.tokens) == (1, 512 // 16)
    # 32 x 512 tokens, each with at least its input of 24 layers in float32.
    assert cost.peak["training"] > cost.held + 32 * 512 * 24 * 112 * 4
    real = measure(qwen, HFEngine(qwen, batch_size=16), replace(long, micro_batch=1), budget=20)
    assert real.tokens == 512
    assert 0.2 < cost.learn / real.learn < 8, "seconds per token of a short pass are of the order of a long one's"


def test_peak_memory_sees_what_is_freed_again():
    with peak_memory(CPU) as found:
        big = torch.ones(64 << 20, dtype=torch.uint8).clone()
        time.sleep(0.05)
        del big
    assert 60 << 20 < found[0] < 400 << 20


def test_the_cache_is_counted_per_token():
    policy = tiny_policy()  # keys and values, 2 layers, 1 head of 32 dimensions, float32
    assert cache_bytes(policy) == 2 * 2 * 32 * 4


# -- memory, as counted and as measured ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large():
    """A policy whose weights are more than what else a process allocates: 26 M parameters, 100 MB."""
    return tiny_policy(hidden_size=768, intermediate_size=3072, layers=3)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_reference_takes_what_is_counted(large, tmp_path, dtype):
    counted = reference_bytes(large, dtype)
    assert counted == sum(p.numel() for p in large.parameters()) * (4 if dtype is None else 2)
    with peak_memory(CPU) as made:
        reference = large.reference(dtype=dtype)
    assert made[0] == pytest.approx(counted, rel=0.25)
    del reference
    if keeps_reference_in_file(CPU):
        with peak_memory(CPU) as made:
            large.reference(dtype=dtype, folder=tmp_path)
        assert made[0] < 0.4 * reference_bytes(large, None), "it takes no RAM but a tensor at a time"


def test_what_a_run_holds_beside_what_is_measured(monkeypatch, large):
    weights = sum(p.nbytes for p in large.parameters())
    adam, eight = (optimizer_bytes(large.parameters(), choice) for choice in Optimizer)
    assert (adam, eight) == (2 * weights, pytest.approx(weights / 2, rel=0.04))

    def beside(*overrides, measured=Optimizer.adamw):
        return task.beside(unresolved_config("warm_start=sft", *overrides), large, measured)

    kl, none = ("algo.beta=0.1",), ("algo.beta=0",)
    if keeps_reference_in_file(CPU):
        assert beside(*kl) == 0
        with_file, without = (task.disk_bytes(unresolved_config(*some), large) for some in (kl, none))
        assert with_file - without == weights
    monkeypatch.setattr(task, "keeps_reference_in_file", lambda device: False)
    half = "model.reference_dtype=bfloat16"
    assert (beside(*kl), beside(*kl, half), beside(*none)) == (weights, weights // 2, 0)
    assert beside(*kl, "algo=sft") == 0, "SFT has no reference"
    small = "rl.optimizer=adamw_8bit"
    assert beside(*kl, small) == 0, "measured with AdamW, which the warm start needs: more than RL does"
    both = (small, "sft.optimizer=adamw_8bit")
    assert beside(*kl, *both, measured=Optimizer.adamw_8bit) == weights
    assert beside(*kl, small, measured=Optimizer.adamw_8bit) == adam - eight
    adapted = with_lora(tiny_policy())
    assert task.beside(unresolved_config(*kl), adapted, Optimizer.adamw) == 0, "the reference is the base model"


def test_moments_take_what_is_counted(large):
    counted = optimizer_bytes(large.parameters(), Optimizer.adamw)
    optimizer = optimizer_maker(Optimizer.adamw, CPU)(large.parameters(), lr=0.0)
    for p in large.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    assert sum(t.nbytes for t in moments) == counted
    large.zero_grad()


def test_moments_of_8_bits_take_what_is_counted():
    optim = pytest.importorskip("bitsandbytes.optim", reason="an extra, for GPUs")
    sizes = (4095, 4096, 4097, 100_000)
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in sizes]
    optimizer = optim.AdamW8bit(parameters)
    for i, p in enumerate(parameters):
        optimizer.init_state(optimizer.param_groups[0], p, 0, i)
    own = ("state1", "state2", "absmax1", "absmax2")
    held = sum(state[name].nbytes for state in optimizer.state.values() for name in own if name in state)
    assert held == optimizer_bytes(parameters, Optimizer.adamw_8bit)


@pytest.mark.parametrize(("shares", "length"), [(True, 800), (False, 100)])
def test_sampling_takes_what_is_forecast(monkeypatch, shares, length):
    """4 prompts with 16 lists each. With 800 tokens, a prompt for each list would be 9 times as much."""
    policy = tiny_policy(hidden_size=256, intermediate_size=64, layers=4, heads=4, kv_heads=4)
    token = cache_bytes(policy)
    if not shares:
        monkeypatch.setattr("convrec_r1.rollout.hf.take_layouts", lambda lm: False)
    plan = replace(
        PLAN, prompt=length, completion=40, rl_rows=64, group=16, engine_batch=64, evaluated=0, micro_batch=1
    )
    engine = HFEngine(policy, batch_size=64)
    cost = measure(policy, engine, plan, budget=10)
    assert cost.shares is shares
    gradients = sum(p.nbytes for p in policy.parameters())
    counted = cost.peak["sampling"] - cost.held + gradients
    cache = token * ((4 if shares else 64) * length + 64 * 40)
    assert cache <= counted
    prompts = torch.randint(20, 400, (4, length)).tolist()
    with peak_memory(CPU) as real:
        engine.generate(prompts, [0, 100, 200, 300], Sampling(n=16, max_tokens=40))
    assert 0.5 < counted / real[0] < 2, (counted, real[0], cache)


def test_evaluations_share_no_prompt(monkeypatch):
    """An evaluation of 64 conversations holds 64 prompts, whatever RL shares."""
    policy = tiny_policy()
    plan = replace(PLAN, prompt=400, completion=20, rl_rows=64, group=16, engine_batch=64, micro_batch=1)
    engine, token = HFEngine(policy, batch_size=64), cache_bytes(policy)
    without, beside = (
        measure(policy, engine, replace(plan, evaluated=many), budget=2).peak["sampling"] for many in (0, 64)
    )
    assert beside - without > 0.8 * token * 60 * 400
    monkeypatch.setattr("convrec_r1.rollout.hf._CACHE_BYTES", token * 10 * 420)
    assert engine.largest_batch(64, 400, Sampling(max_tokens=20)).rows == 10, "larger ones are split"


def test_an_optimizer_step_leaves_room_for_its_intermediate_results(large):
    """The largest tensor of AdamW's denominators is more than what a pass over a few tokens takes."""
    tiny = replace(PLAN, prompt=2, completion=2, micro_batch=1, engine_batch=1)
    cost = measure(large, HFEngine(large, batch_size=1), tiny, budget=1)
    largest = max(p.nbytes for p in large.parameters())
    assert cost.peak["training"] - cost.held > 0.8 * largest
    assert cost.peak["sampling"] < cost.held, "there are no gradients meanwhile"
    assert cost.held > 0.9 * held_memory(CPU)


# -- time ------------------------------------------------------------------------------------------------------------------


def test_a_forecast_by_hand():
    seconds = forecast(COST, PLAN)
    assert seconds["SFT"] == pytest.approx(10 * (4 * 40 * 0.03 + 2))
    # 32 prompts are read; 2 batches of 16 make 10 tokens.
    assert seconds["sampling"] == pytest.approx(5 * (32 * 30 * 0.005 + 10 * (2 * 0.5 + 32 * 0.1)))
    assert seconds["training"] == pytest.approx(5 * (32 * 40 * (2 * 0.03 + 0.01) + 4 * 2))
    assert seconds["evaluation"] == pytest.approx(40 * 30 * 0.005 + 10 * (3 * 0.5 + 40 * 0.1))


def test_a_prompt_is_read_once_for_its_lists_where_the_engine_shares_it():
    plan = replace(PLAN, group=8)
    read = [forecast(replace(COST, shares=shares), plan)["sampling"] for shares in (True, False)]
    assert read[1] - read[0] == pytest.approx(5 * (32 - 4) * 30 * 0.005)


def test_groups_that_are_replaced_are_forecast_as_an_upper_limit():
    plan = replace(PLAN, rounds=3)
    seconds, more = forecast(COST, plan), replacements(COST, plan)
    assert seconds == forecast(COST, PLAN)
    assert more == pytest.approx(3 * seconds["sampling"])
    assert replacements(COST, PLAN) == 0
    assert at_most(plan, 1000, 2, on_gpu=False) > 2 * at_most(PLAN, 1000, 2, on_gpu=False)
    said = too_long({"sampling": 0.5 * DAY}, 2 * DAY, on_gpu=False)
    assert "(algo.dynamic_sampling) takes up to 2 days more. To shorten it" in said
    assert too_long({"sampling": 0.5 * DAY}, 0.4 * DAY, on_gpu=False) is None


def test_the_limit_of_replaced_groups_is_what_a_run_samples_where_none_teaches(tmp_path):
    """Truths that no list names: each group is replaced in each round."""
    hopeless = [replace(c, ground_truth=(c.ground_truth[0]._replace(title="No Such Film"),)) for c in DATA["train"]]
    cfg = dapo("algo.dynamic_sampling=2", "algo.overlong.cache=0", "rl.steps=2", "model.max_completion_length=8")
    policy, sampled = tiny_policy(), []

    class Counted(HFEngine):
        def generate(self, prompts, seeds, sampling, on_progress=None):
            sampled.append(len(prompts) * sampling.n)
            return super().generate(prompts, seeds, sampling, on_progress)

    plan = plan_of(cfg, DATA, encoder_for(cfg, policy))
    assert (plan.rounds, plan.group, plan.rl_rows) == (2, 2, 8)
    reinforce(policy, cfg, tmp_path, Counted, samples=hopeless)
    assert sum(sampled) == plan.rl_steps * plan.rl_rows * (1 + plan.rounds)


def test_memory_that_is_not_enough_says_what_fits():
    cfg = make_config("model.max_prompt_length=60")
    (finding,) = memory(cfg, task.Forecast(PLAN, COST, forecast(COST, PLAN)))
    assert finding.level is Level.WARN, "sequences of the mean length fit"
    assert memory(cfg, task.Forecast(replace(PLAN, mean_prompt=50), COST, {}))[0].level is Level.FAIL
    assert "trainer.micro_tokens=320" in finding.advice, "8 GiB for 8 sequences of 80 tokens, 4 GiB to spare"
    enough = replace(COST, available=10 * GIB)
    assert memory(cfg, task.Forecast(PLAN, enough, {}))[0].level is Level.OK
    sampling = replace(COST, peak={"training": GIB, "sampling": 6 * GIB})
    assert "rollout.batch_size=8" in memory(cfg, task.Forecast(PLAN, sampling, {}))[0].advice


def test_a_run_of_more_than_a_day_says_so():
    seconds = {"SFT": 3 * DAY, "sampling": 0.0, "training": 40 * DAY}
    said = too_long(seconds, on_gpu=False)
    assert said.startswith("This run would take about 43 days on this CPU: SFT 3 days, training 40 days. ")
    for change in ("trainer=gpu", "model=", "recipe=", "rl.steps"):
        assert change in said
    assert too_long({"SFT": DAY}, on_gpu=False) is None
    assert "rollout=vllm" in too_long(seconds, on_gpu=True)


def test_a_small_run_is_not_measured(qwen, monkeypatch):
    """The default run keeps its time and its random state."""
    monkeypatch.setattr(measuring, "measure", None)  # it is not called
    policy = tiny_policy()
    assert long_run_warning(policy, HFEngine(policy, batch_size=16), PLAN) is None
    cfg = make_config()
    plan = plan_of(cfg, movieland.load(seed=0, n_items=20), encoder_for(cfg, policy))
    assert at_most(plan, 1_100_000, 2, on_gpu=False) < DAY, "the default run"
    paper = replace(plan, prompt=2048, completion=1024, rl_steps=3000, rl_rows=384)
    for on_gpu in (False, True):
        assert at_most(paper, 494_000_000, 24, on_gpu=on_gpu) > DAY


def test_a_long_run_is_measured_and_told(qwen):
    endless = replace(PLAN, rl_steps=10**8, rl_rows=4096, engine_batch=2, micro_batch=1)
    said = long_run_warning(qwen, HFEngine(qwen, batch_size=2), endless)
    assert said.startswith("This run would take about ")
    assert "days on this CPU: " in said


def test_durations():
    assert [duration(s) for s in (0.123, 5, 250, 9000, 3 * DAY)] == ["0.12 s", "5 s", "4.2 min", "2.5 h", "3 days"]


def test_the_plan_of_a_run():
    cfg = make_config(
        "algo.mu=2", "algo.beta=0.01", "eval.every=10", "rl.steps=25", "eval.validation_size=7", "sft.steps=3"
    )
    plan = plan_of(cfg, DATA, encoder_for(cfg, tiny_policy()))
    assert (plan.sft_steps, plan.sft_rows) == (3, cfg.sft.batch_size)
    assert (plan.rl_steps, plan.rl_rows) == (25, cfg.rl.prompts_per_step * cfg.algo.group_size)
    assert (plan.learned, plan.scored, plan.updates) == (2, 3, 2), "old log-probs once, the reference in each pass"
    assert plan.evaluated == (1 + len({"zero_shot", "sft"} & set(cfg.baselines))) * 11 + 4 * 7
    assert 0 < plan.mean_prompt <= plan.prompt
    assert 0 < plan.mean_completion <= plan.completion


def test_versions_are_compared():
    asked = [Requirement("torch>=2"), Requirement("torch>=999"), Requirement("no-such-package>=1")]
    found = environment.packages(asked)
    assert [finding.level for finding in found] == [Level.OK, Level.FAIL, Level.FAIL]
    assert "pip install 'torch>=999'" in found[1].advice
    assert "no-such-package: not installed" in found[2].found


def test_gpus_that_are_missing_taken_or_idle(monkeypatch):
    gpu = make_config("trainer=gpu", "trainer.devices=2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H100")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (70 * GIB if index == 0 else 10 * GIB, 80 * GIB))
    for count, level in ((0, Level.FAIL), (1, Level.FAIL), (2, Level.WARN)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert levels(environment.devices(gpu))["GPUs"] is level
    (idle,) = environment.devices(make_config("trainer=cpu"))
    assert idle.level is Level.WARN
    assert "trainer=gpu" in idle.advice


@pytest.fixture(scope="module")
def healthy():
    return examine(make_config(*SMOKE[:1], "logger=none"), budget=4)


def test_a_healthy_config_has_a_forecast(healthy):
    findings, found = healthy
    assert Level.FAIL not in levels(findings).values()
    assert {"config", "packages", "GPUs", "data", "model", "disk", "RAM"} <= levels(findings).keys()
    assert all(value > 0 for value in found.seconds.values())


Usage = namedtuple("Usage", "total used free")


def test_a_disk_that_is_too_small(monkeypatch, healthy):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 99, 1))
    monkeypatch.setattr(task, "look_ahead", lambda *_: healthy[1])
    with pytest.raises(UserError, match=r"disk: .*lower trainer\.keep_checkpoints"):
        doctor(make_config(*SMOKE[:1], "logger=none"))


def test_a_model_that_cannot_be_trained_here_is_not_built(tmp_path, monkeypatch):
    tiny_policy().save(tmp_path)
    monkeypatch.setattr("convrec_r1.doctor.model.free_memory", lambda device: 100_000)
    findings, policy = build(make_config("model=Qwen/Qwen3-0.6B", f"model.path={tmp_path}"), DATA, CPU)
    assert policy is None
    assert levels(findings) == {"memory": Level.FAIL}
    assert "model.lora.enabled=true" in findings[0].advice


def test_a_model_of_a_folder_is_built_with_random_weights(tmp_path):
    tiny_policy().save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    path = f"model.path={tmp_path}"
    findings, policy = build(make_config("model=Qwen/Qwen3-0.6B", path, "model.lora.enabled=true"), DATA, CPU)
    assert levels(findings)["model"] is Level.OK
    assert policy.has_lora
    assert policy.training


def test_vllm_that_is_missing_or_old(monkeypatch):
    cfg = make_config("rollout=vllm")
    assert environment.vllm(make_config("rollout=hf")) == []
    for version in (None, environment.Version("0.5.0")):
        monkeypatch.setattr(environment, "version", lambda name, version=version: version)
        assert levels(environment.vllm(cfg))["vLLM"] is Level.FAIL


def test_a_folder_that_is_not_writable(monkeypatch, tmp_path):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(environment.tempfile, "TemporaryFile", refuse)
    findings = environment.writable(make_config(f"outputs={tmp_path}"))
    assert levels(findings) == {"folders": Level.FAIL}
    assert "outputs=DIR" in findings[0].advice


def test_a_model_that_is_not_available(tmp_path):
    for path in (tmp_path, "no-such-organisation/no-such-model"):
        findings, policy = build(make_config("model=Qwen/Qwen3-0.6B", f"model.path={path}"), DATA, CPU)
        assert policy is None
        assert findings[0].level is Level.FAIL
        assert str(path) in findings[0].found


@pytest.mark.processes
def test_the_command_line(tmp_path):
    done = run_command("task=doctor", *SMOKE, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("no contradictions", "Measured: ", "an RL step", "The whole run"):
        assert said in done.stdout
    assert not (tmp_path / "outputs").exists(), "it only looks"
    done = run_command("task=doctor", *SMOKE, "rl.prompts_per_step=0", "data=redial", "data.path=nowhere", cwd=tmp_path)
    assert_user_error(done, "cannot work", "rl.prompts_per_step", "data.path=nowhere")
    assert "packages" in done.stdout, "the other findings are shown too"
