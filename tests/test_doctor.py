"""task=doctor: its formulas hold against real models, and each fault is told with a way out."""

import copy
import shutil
from collections import namedtuple

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from support import SMOKE, assert_user_error, make_config, run_command, tiny_policy

from convrec_r1.base.errors import UserError
from convrec_r1.doctor import environment, estimate
from convrec_r1.doctor.environment import Gpu
from convrec_r1.doctor.estimate import Lengths, Size, Speed
from convrec_r1.doctor.findings import Level, failures
from convrec_r1.doctor.model import find_model, size_of
from convrec_r1.doctor.task import doctor, examine

pytestmark = pytest.mark.long

SMALL = Size(
    parameters=1000, trainable=1000, matrices=600, layers=2, hidden=8, intermediate=16, q=8, kv=4, vocab=50, unit=300
)
GIB = 1 << 30


def levels(findings) -> dict[str, Level]:
    return {finding.check: finding.level for finding in findings}


def test_the_sizes_of_a_model_are_those_that_it_has():
    policy = tiny_policy()
    lm = policy.causal_lm
    size = size_of(lm, lm)
    assert size.parameters == sum(p.numel() for p in lm.parameters())
    linear = [m for m in lm.modules() if isinstance(m, torch.nn.Linear) and m is not lm.get_output_embeddings()]
    assert size.matrices == sum(m.weight.numel() for m in linear)
    assert (size.layers, size.hidden, size.vocab) == (2, 64, lm.config.vocab_size)
    assert size.kv * 2 == size.q, "two heads, one of keys and values"


def test_what_is_held_is_what_training_holds():
    """Weights, gradients and AdamW's moments of a real step, and the reference policy."""
    policy = tiny_policy()
    lm = policy.causal_lm
    optimizer = torch.optim.AdamW(lm.parameters())
    lm(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    optimizer.step()

    def bytes_of(tensors) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    held = estimate.held(size_of(lm, lm), make_config("algo.beta=0.01"))
    assert held["weights"] == bytes_of(lm.parameters())
    assert held["gradients"] == bytes_of(p.grad for p in lm.parameters())
    assert held["AdamW"] == bytes_of(moments)
    assert held["reference policy"] == bytes_of(copy.deepcopy(lm).parameters())


def test_memory_by_hand():
    cfg = make_config("algo.beta=0")
    assert estimate.held(SMALL, cfg) == {"weights": 4000, "gradients": 4000, "AdamW": 8000}
    half = make_config("algo.beta=0", "model.dtype=bfloat16", "trainer=fsdp", "trainer.devices=4")
    assert estimate.held(SMALL, half) == {"weights": 500, "gradients": 500, "AdamW": 1000, "gathered layers": 1200}
    # 2 (keys, values) x 2 layers x 4 wide x 3 sequences x 10 tokens x 4 bytes
    assert estimate.kv_cache(SMALL, 3, 10, 4) == 2 * 2 * 4 * 3 * 10 * 4
    assert estimate.checkpoint(SMALL, cfg) == 4 * 1000 * 4


def test_more_of_anything_takes_more():
    cfg = make_config()
    lengths, speed = Lengths(60, 20), Speed(flops=1e9, bandwidth=1e9, token=1e-4, layer=1e-3)

    def peak(*overrides: str) -> int:
        return estimate.memory(SMALL, make_config(*overrides), lengths, on_gpu=False).peak

    def step(*overrides: str) -> float:
        return estimate.seconds(SMALL, make_config(*overrides), speed, lengths, sft_steps=1, test=1).step

    assert peak("trainer.micro_batch=64") > peak("trainer.micro_batch=4")
    assert peak("model.gradient_checkpointing=true") < peak()
    assert step("rl.prompts_per_step=64") == pytest.approx(2 * step("rl.prompts_per_step=32"), rel=0.1)
    assert step("algo.mu=2") > step()
    assert estimate.memory(SMALL, cfg, Lengths(120, 20), on_gpu=False).peak > peak()


def test_versions_are_compared():
    asked = [Requirement("torch>=2"), Requirement("torch>=999"), Requirement("no-such-package>=1")]
    found = environment.package_versions(asked, {"torch": Version("0.1")})
    assert [finding.level for finding in found] == [Level.OK, Level.FAIL, Level.FAIL, Level.WARN]
    assert "pip install 'torch>=999'" in found[1].advice
    assert "no-such-package: not installed" in found[2].found


def test_gpus_that_are_missing_or_taken():
    gpu = make_config("trainer=gpu", "trainer.devices=2")
    one = [Gpu("H100", 79 * GIB, 80 * GIB)]
    assert levels(environment.torch_build(gpu, []))["torch"] is Level.FAIL
    assert levels(environment.gpu_findings(make_config(), one))["GPUs"] is Level.WARN, "it would be idle"


@pytest.fixture(scope="module")
def healthy():
    return examine(make_config(*SMOKE[:1], "logger=none"))


def test_a_healthy_config_has_an_estimate(healthy):
    findings, found = healthy
    assert not failures(findings)
    assert found.lengths[0].both < found.lengths[1].both
    assert found.memory[0].peak < found.memory[1].peak
    assert 0 < found.seconds[0].step < found.seconds[1].step


Usage = namedtuple("Usage", "total used free")


def test_a_disk_that_is_too_small(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 99, 1))
    with pytest.raises(UserError, match=r"disk: .*lower trainer\.keep_checkpoints"):
        doctor(make_config(*SMOKE[:1], "logger=none"))


def test_memory_that_is_too_small(monkeypatch):
    monkeypatch.setattr(environment, "ram", lambda: (environment.resident() + 1000, GIB))
    with pytest.raises(UserError, match=r"RAM: .*trainer\.micro_batch=2"):
        doctor(make_config(*SMOKE[:1], "logger=none"))


def test_vllm_that_is_missing_or_old(monkeypatch):
    cfg = make_config("rollout=vllm")
    assert environment.vllm(make_config()) == []
    for version in (None, "0.5.0"):
        monkeypatch.setattr(environment, "vllm_version", lambda version=version: version)
        assert levels(environment.vllm(cfg))["vLLM"] is Level.FAIL


def test_a_key_that_is_missing_and_one_that_is_not_shown(monkeypatch):
    cfg = make_config("teacher=openai", "teacher.model=m", "teacher.base_url=https://host.example/v1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (found,) = environment.teacher_key(cfg)
    assert found.level is Level.FAIL
    assert "export OPENAI_API_KEY=" in found.advice
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-to-be-seen")
    (found,) = environment.teacher_key(cfg)
    assert found.level is Level.OK
    assert "sk-not-to-be-seen" not in str(found)


def test_a_model_that_cannot_be_had(tmp_path):
    for path in (tmp_path, "no-such-organisation/no-such-model"):
        findings, model = find_model(make_config("model=Qwen/Qwen3-0.6B", f"model.path={path}"), list)
        assert model is None
        assert findings[0].level is Level.FAIL
        assert "cannot be had" in findings[0].found


@pytest.mark.processes
def test_the_command_line(tmp_path):
    done = run_command("task=doctor", *SMOKE, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("no contradictions", "Memory of a process", "An RL step", "The whole run"):
        assert said in done.stdout
    assert not (tmp_path / "outputs").exists(), "it only looks"
    done = run_command("task=doctor", *SMOKE, "rl.prompts_per_step=0", "data=redial", "data.path=nowhere", cwd=tmp_path)
    assert_user_error(done, "cannot work", "rl.prompts_per_step", "data.path=nowhere")
    assert "python" in done.stdout, "what else there is to say is shown all the same"
