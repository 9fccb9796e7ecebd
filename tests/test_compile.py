"""trainer.compile: the same log-probs, gradients, lists and names of weights as without."""

import copy

import pytest
import torch
from support import make_config, tiny_policy
from test_weights import with_lora

from convrec_r1.base.errors import UserError
from convrec_r1.config.checks import problems
from convrec_r1.policy import TokenBatch
from convrec_r1.policy.compile import compile_layers
from convrec_r1.rollout.base import Sampling
from convrec_r1.rollout.hf import HFEngine


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batch(prompts: int, each: int, longest: int, seed: int) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)

    def rows(number: int, width: int) -> list[list[int]]:
        lengths = torch.randint(width // 2, width, (number,), generator=generator).tolist()
        return [torch.randint(5, 200, (length,), generator=generator).tolist() for length in lengths]

    return TokenBatch.collate(rows(prompts, longest), rows(prompts * each, longest // 2), 0, each=each)


def gradients(policy, given: TokenBatch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    policy.zero_grad()
    logps, _ = policy.score(given)
    logps.sum().backward()
    return logps.detach(), [p.grad for p in policy.parameters() if p.grad is not None]


def check(backend: str, policy, compiled) -> None:
    """compiled: a copy of `policy`."""
    names = list(compiled.state_dict())
    counter = torch._dynamo.utils.counters
    counter.clear()
    compile_layers(compiled, backend=backend)
    assert list(compiled.state_dict()) == names
    for number, sizes in enumerate(((2, 4, 20), (3, 2, 33), (1, 5, 60), (4, 3, 47))):
        given = batch(*sizes, seed=number)
        (logps, grads), (same, sames) = gradients(policy, given), gradients(compiled, given)
        torch.testing.assert_close(same, logps, atol=1e-5, rtol=1e-5)
        assert len(grads) == len(sames) > 0
        for a, b in zip(sames, grads, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()) + 1e-7, rtol=1e-3)
        if number == 1:
            graphs = counter["stats"]["unique_graphs"]
    assert graphs > 0, "nothing was compiled"
    assert counter["stats"]["unique_graphs"] == graphs, "other lengths, the same graphs"


@pytest.mark.parametrize(
    "checkpointing", [False, pytest.param(True, marks=pytest.mark.slow(reason="traces the layers again"))]
)
def test_log_probs_and_gradients_are_the_same(checkpointing):
    policy = tiny_policy(layers=3).train()
    if checkpointing:
        policy.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    check("aot_eager", policy, copy.deepcopy(policy))


@pytest.mark.slow(reason="traces adapters: a quarter of a minute")
def test_with_lora_too():
    """A layer with adapters has branches in Python; they are in the graphs."""
    check("aot_eager", with_lora(tiny_policy()), with_lora(tiny_policy()))


@pytest.mark.slow(reason="builds kernels with a C++ compiler: half a minute")
def test_kernels_give_the_same():
    policy = tiny_policy(layers=3).train()
    check("inductor", policy, copy.deepcopy(policy))


def test_lists_are_sampled_from_it_and_a_checkpoint_is_any_policys(tmp_path):
    policy = tiny_policy(layers=1)
    compiled = copy.deepcopy(policy)
    compile_layers(compiled, backend="aot_eager")
    greedy = Sampling(temperature=0, max_tokens=8)
    lists = [HFEngine(p, batch_size=8).generate([[5, 6, 7], [8, 9]], [0, 0], greedy) for p in (policy, compiled)]
    assert [[c.ids.tolist() for c in group] for group in lists[0]] == [[c.ids.tolist() for c in g] for g in lists[1]]
    policy.load_state_dict(compiled.state_dict())
    for p, name in ((policy, "a"), (compiled, "b")):
        p.save(tmp_path / name)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_without_a_compiler_the_error_says_so(monkeypatch):
    monkeypatch.setattr("convrec_r1.policy.compile.shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"C\+\+ compiler.*trainer\.compile=false"):
        compile_layers(tiny_policy())


def test_a_model_without_layers_is_named():
    policy = tiny_policy()
    policy.causal_lm.get_decoder().layers = None
    with pytest.raises(UserError, match="Qwen2ForCausalLM has no list of decoder layers"):
        compile_layers(policy)


def test_fsdp_is_refused():
    (said,) = (line for line in problems(make_config("trainer=fsdp", "trainer.compile=true")) if "compile" in line)
    assert "trainer.compile=false" in said
