"""Memory: one policy at a time, checkpoints without a second copy, a reference on the disk or in bf16, 8-bit AdamW."""

import contextlib
import gc
import sys
from pathlib import Path
from types import ModuleType

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from support import SMOKE, assert_done, compose_config, make_config, run_job, tiny_policy, unresolved_config
from test_policy import batch_of
from test_weights import with_lora

from convrec_r1.base.digest import of_file, of_large_file
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_json, write_json
from convrec_r1.config.checks import problems
from convrec_r1.modules.config import Optimizer, PassLimit, TrainerConfig
from convrec_r1.modules.fit import StateFile, fit
from convrec_r1.modules.memory import peak_memory
from convrec_r1.modules.sft import Example, SFTModule
from convrec_r1.modules.step import StepLoader, optimizer_maker
from convrec_r1.policy.policy import Policy
from convrec_r1.policy.weights import save_policy
from convrec_r1.run.checkpoints import MANIFEST, damage, seal
from convrec_r1.run.tracker import Tracker

CPU = torch.device("cpu")


def weights_of(policy: Policy) -> int:
    return sum(p.nbytes for p in policy.parameters())


# -- checkpoints -----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_written_without_a_second_copy(tmp_path, monkeypatch):
    policy = tiny_policy(hidden_size=768, intermediate_size=3072, layers=3)
    assert weights_of(policy) > 80e6, "what else a process allocates must not count"
    peaks = []

    def measured(name, owner):
        real = getattr(owner, name)

        def wrapped(*args, **kwargs):
            with peak_memory(CPU) as more:
                real(*args, **kwargs)
            peaks.append((name, more[0] / weights_of(policy)))

        monkeypatch.setattr(owner, name, wrapped)

    measured("save_checkpoint", pl.Trainer)
    measured("save", Policy)
    ids = [5, 6, 7, 8]
    module = SFTModule(policy, make_config("sft.steps=1").sft, steps=1, pass_limit=PassLimit(2), tracker=Tracker())
    trainer = TrainerConfig(name="cpu", accelerator="cpu")
    fit(module, StepLoader([Example(ids, ids)] * 2, 2, 1, 0), trainer, tmp_path / "checkpoints", description="test")
    assert [name for name, _ in peaks] == ["save_checkpoint", "save"]
    assert (tmp_path / "checkpoints" / "last" / "trainer.ckpt").stat().st_size > 2.9 * weights_of(policy)
    assert all(more < 0.3 for _, more in peaks), peaks


def test_a_checkpoint_of_adapters_is_the_merged_model(tmp_path):
    policy = with_lora(tiny_policy())
    for folder, save in (("a", lambda f: policy.save(f)), ("b", lambda f: save_policy(policy, f, first=True))):
        save(tmp_path / folder)
    one, other = (load_file(tmp_path / folder / "model.safetensors") for folder in "ab")
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_the_trainers_state_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "own.ckpt"
    StateFile().save_checkpoint({"a": torch.ones(3)}, file)
    before = file.read_bytes()
    with pytest.raises(TypeError):  # a generator cannot be pickled: it breaks off after the tensor was given
        StateFile().save_checkpoint({"a": torch.zeros(3), "b": (x for x in ())}, str(file))
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["own.ckpt"]


@pytest.mark.parametrize("size", [0, 1, 10, 64, 65, 300])
def test_every_byte_of_a_large_file_counts_whatever_the_threads(tmp_path, monkeypatch, size):
    file = tmp_path / "x"
    content = bytearray(range(256)) * 2
    file.write_bytes(content[:size])
    monkeypatch.setattr("convrec_r1.base.digest._PART", 64)
    digest = of_large_file(file)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert of_large_file(file) == digest
    for place in {0, size // 2, size - 1} if size else ():
        changed = content[:size]
        changed[place] ^= 1
        file.write_bytes(changed)
        assert of_large_file(file) != digest
    file.write_bytes(content[: size + 1])
    assert of_large_file(file) != digest


def test_checkpoints_that_were_sealed_before_are_still_whole(tmp_path):
    (tmp_path / "trainer.ckpt").write_bytes(b"state")
    seal(tmp_path)
    assert damage(tmp_path) is None
    digest = of_file(tmp_path / "trainer.ckpt")
    write_json(tmp_path / MANIFEST, {"trainer.ckpt": {"bytes": 5, "blake2b": digest}})
    assert damage(tmp_path) is None
    (tmp_path / "trainer.ckpt").write_bytes(b"stale")
    assert "checksum" in str(damage(tmp_path))


# -- the reference ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the reference is in memory")
def test_a_reference_on_the_disk_computes_the_same_bits_and_leaves_no_file(tmp_path):
    policy = tiny_policy()
    batch = batch_of(policy)
    here, there = policy.reference(), policy.reference(folder=tmp_path)
    assert there._file is not None
    assert list(tmp_path.iterdir()) == []
    before = policy(batch)[0].detach()
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.05 * torch.randn_like(p))
    for _ in range(2):  # again, after its pages were dropped
        assert torch.equal(there(batch), here(batch))
        assert torch.equal(there(batch), before)
    frozen = there._frozen
    assert frozen.head_weight is frozen.causal_lm.get_input_embeddings().weight, "a shared head stays shared"
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the reference is in memory")
def test_a_reference_on_the_disk_takes_no_memory_between_its_passes(tmp_path):
    policy = tiny_policy(hidden_size=768, intermediate_size=3072, layers=3)
    batch, held = batch_of(policy), {}
    for name, folder in (("memory", None), ("disk", tmp_path)):
        with peak_memory(CPU) as made:
            reference = policy.reference(folder=folder)
        reference(batch)
        with peak_memory(CPU) as used:
            reference(batch)
        held[name] = made[0] / weights_of(policy), used[0] / weights_of(policy)
        del reference
    assert held["memory"][0] > 0.9
    assert held["disk"][0] < 0.3
    assert held["disk"][1] > 0.7, "it is mapped while it computes, and was not before"


def test_a_disk_that_is_full_leaves_the_reference_in_memory(tmp_path, caplog):
    policy = tiny_policy()
    reference = policy.reference(folder=tmp_path / "missing")
    assert "stays in memory" in caplog.text
    assert torch.equal(reference(batch_of(policy)), policy(batch_of(policy))[0])


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_bf16_reference_is_half_as_large_and_near(tmp_path, on_disk):
    policy = tiny_policy()
    batch = batch_of(policy)
    reference = policy.reference(dtype=torch.bfloat16, folder=tmp_path if on_disk else None)
    assert 2 * weights_of(reference._frozen) == weights_of(policy)
    assert all(p.dtype is torch.float32 for p in policy.parameters())
    logps = reference(batch)
    assert logps.dtype is torch.float32
    torch.testing.assert_close(logps, policy(batch)[0], atol=0.1, rtol=0.05)


def test_options_of_the_reference():
    assert make_config().model.reference_dtype is None
    wrong = make_config("model.reference_dtype=bfloat16", "model.lora.enabled=true")
    assert any("model.reference_dtype has no meaning" in line for line in problems(wrong))


# -- one policy at a time --------------------------------------------------------------------------------------------------


def count_policies(folder: str) -> None:
    """Run two jobs, and write how many policies are alive whenever one is asked for lists. Leftovers of the first count."""
    import convrec_r1.tasks.train  # noqa: F401  what a job imports
    from convrec_r1 import cli
    from convrec_r1.evaluate.runner import Evaluator

    gc.freeze()  # collections need not look at what is imported
    seen: dict[str, list] = {}
    real = Evaluator.texts

    def texts(self, policy, engine, encoder, conversations, description, *held):
        gc.collect()
        things = gc.get_objects()
        alive = sum(isinstance(thing, Policy) for thing in things)
        grads = any(p.grad is not None for p in policy.parameters())
        optimizers = sum(type(thing) is torch.optim.AdamW for thing in things)
        del things
        seen[select].append((description.strip(), alive, grads, optimizers))
        return real(self, policy, engine, encoder, conversations, description, *held)

    Evaluator.texts = texts
    small = ("model.layers=1", "model.max_completion_length=16", "sft.steps=1", "rl.steps=1", "eval.resamples=50")
    for select in ("last", "best"):
        seen[select] = []
        chosen = f"eval.select={select}", f"hydra.run.dir={folder}/{select}"
        sys.argv = ["convrec_r1", *SMOKE, "rollout=hf", "trainer=cpu", *small, *chosen]
        with contextlib.suppress(SystemExit):  # its status: `seen` then lacks what was to come
            cli.main()
    write_json(Path(folder) / "seen.json", seen)


@pytest.mark.processes
def test_no_second_policy_is_alive_while_one_is_evaluated(tmp_path):
    """In training there are two: the policy, and its reference. The second job starts from the first one's warm start."""
    assert_done(run_job("test_memory:count_policies", str(tmp_path), cwd=tmp_path))
    found = read_json(tmp_path / "seen.json")
    for select, seen in found.items():
        names = [name for name, *_ in seen]
        assert names[-1] == "Evaluating rank_grpo", select
        assert "validation" in names, select
        for name, alive, grads, optimizers in seen:
            trains = name == "validation"
            assert (alive, grads, optimizers) == ((2, False, 1) if trains else (1, False, 0)), (select, name)
    assert [name for name, *_ in found["last"]][:2] == ["Evaluating zero_shot", "Evaluating sft"]


# -- 8-bit AdamW -----------------------------------------------------------------------------------------------------------


def test_8_bit_adam_is_refused_where_it_cannot_work(monkeypatch):
    cfg = unresolved_config("rl.optimizer=adamw_8bit", "trainer=cpu")
    wrong = "\n".join(problems(cfg))
    assert "rl.optimizer=adamw_8bit: this needs a GPU" in wrong
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'convrec-r1[bitsandbytes]'" in "\n".join(problems(cfg))
    with pytest.raises(UserError, match="needs a GPU"):
        optimizer_maker(Optimizer.adamw_8bit, CPU)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"convrec-r1\[bitsandbytes\]"):
        optimizer_maker(Optimizer.adamw_8bit, torch.device("cuda"))


def test_8_bit_adam_is_that_of_bitsandbytes(monkeypatch):
    library, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    optim.AdamW8bit = type("AdamW8bit", (torch.optim.AdamW,), {})
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    assert optimizer_maker(Optimizer.adamw_8bit, torch.device("cuda")) is optim.AdamW8bit
    made = optimizer_maker(Optimizer.adamw, CPU)([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
    assert type(made) is torch.optim.AdamW


def test_the_optimizer_is_part_of_what_a_run_is():
    from convrec_r1.run.identity import left_out

    assert not {"rl.optimizer", "sft.optimizer", "model.reference_dtype"} & left_out(compose_config())
