"""Weights on their way to an engine: names, LoRA, shards; sums of their bits; where lines end."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import assert_done, run_job, tiny_policy
from torch import nn

from convrec_r1.base.files import read_json, write_json
from convrec_r1.policy.config import LoraConfig, ModelConfig
from convrec_r1.policy.load import prepare_for_training
from convrec_r1.policy.weights import stream_weights, tied_head
from convrec_r1.rl import segment_ranks
from convrec_r1.rollout.base import Completion, Sampling, prompt_seed
from convrec_r1.rollout.checksums import SyncCheck, SyncError, WeightSums, add_up, bit_sum
from convrec_r1.rollout.hf import HFEngine
from convrec_r1.rollout.lines import LineCutter


def test_the_stream_is_the_checkpoint(policy, tmp_path):
    policy.save(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    sent = dict(stream_weights(policy))
    assert sent.keys() == saved.keys()
    assert all(torch.equal(sent[name], saved[name]) for name in saved)
    layers = [name.split(".")[2] for name in sent if ".layers." in name]
    assert layers == sorted(layers), "an engine loads layer by layer"


def test_a_shared_head_is_sent_once_or_under_both_names(policy):
    assert tied_head(policy)
    once, twice = (dict(stream_weights(policy, tied=tied)) for tied in (True, False))
    assert twice.keys() - once.keys() == {"lm_head.weight"}
    assert torch.equal(twice["lm_head.weight"], twice["model.embed_tokens.weight"])


def test_the_stream_casts_and_leaves_the_policy_alone(policy):
    before = copy.deepcopy(policy.state_dict())
    for name, weight in stream_weights(policy, dtype=torch.bfloat16):
        assert weight.dtype is torch.bfloat16
        assert torch.equal(weight, before[f"lm.{name}"].bfloat16())
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


def with_lora(policy):
    cfg = ModelConfig(name="tiny", lora=LoraConfig(enabled=True, rank=4, alpha=8))
    policy = prepare_for_training(policy, cfg, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


def test_lora_is_merged_as_the_stream_advances(policy):
    plain = dict(stream_weights(policy))
    plain = {name: weight.clone() for name, weight in plain.items()}
    policy = with_lora(policy)
    before = copy.deepcopy(policy.state_dict())
    merged = dict(copy.deepcopy(policy.lm).merge_and_unload().named_parameters())
    sent = dict(stream_weights(policy))
    assert sent.keys() == plain.keys() == merged.keys()
    changed = {name for name in sent if not torch.equal(sent[name], plain[name])}
    assert {name.split(".")[-2] for name in changed} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert all(torch.allclose(sent[name], merged[name], atol=1e-6) for name in sent)
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


class Trained(nn.Module):
    """Holds the policy as the LightningModule does."""

    def __init__(self, policy) -> None:
        super().__init__()
        self.policy = policy


def sharded(folder: str, lora: bool) -> None:
    """What one of two processes sees."""
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    from convrec_r1.modules.fit import _decoder_layers

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    policy = with_lora(tiny_policy()) if lora else tiny_policy()
    whole = {name: weight.clone() for name, weight in stream_weights(policy)}
    root = FSDP(Trained(policy), auto_wrap_policy=_decoder_layers, use_orig_params=True, device_id=torch.device("cpu"))
    policy.shard_root = (root,)
    held = sum(p.numel() for p in root.parameters())
    sent = {name: weight.clone() for name, weight in stream_weights(policy)}
    same = sent.keys() == whole.keys() and all(torch.equal(sent[name], whole[name]) for name in whole)
    seen = (same, held, sum(w.numel() for w in whole.values()), sum(p.numel() for p in root.parameters()))
    write_json(Path(folder) / f"{dist.get_rank()}.json", seen)
    dist.destroy_process_group()


@pytest.mark.processes
@pytest.mark.parametrize("lora", [False, True])
def test_shards_are_gathered_a_layer_at_a_time(tmp_path, lora):
    """Two processes, each with half of every layer (FSDP), both see the whole in the stream and keep half after it."""
    assert_done(run_job("test_weights:sharded", str(tmp_path), lora, cwd=tmp_path, world=2))
    for rank in range(2):
        same, held, whole, after = read_json(tmp_path / f"{rank}.json")
        assert same
        assert held == after < (0.75 if not lora else 0.9) * whole


def test_bit_sums_by_hand():
    assert int(bit_sum(torch.tensor([1.0, 1.0]))) == 2 * 0x3F800000
    assert int(bit_sum(torch.tensor([1.0], dtype=torch.bfloat16))) == 0x3F80
    assert int(bit_sum(torch.tensor([-0.0, 0.0]))) == 0, "a kernel may drop the sign of zero"
    assert int(bit_sum(torch.tensor([-1.0]))) == 0xBF800000 - (1 << 32)
    assert int(bit_sum(torch.zeros(0))) == 0


@given(st.integers(0, 99), st.integers(0, 22))
def test_a_flipped_bit_shows(index, bit):
    weight = torch.linspace(-1, 1, 100)
    other = weight.clone()
    other.view(torch.int32)[index] ^= 1 << bit
    assert int(bit_sum(weight)) != int(bit_sum(other))


def test_sums_do_not_hang_on_fusing_and_sharding():
    q, k, norm = torch.randn(8, 4), torch.randn(2, 4), torch.randn(4)
    sent, fused, first, second = (WeightSums() for _ in range(4))
    for name, weight in (("model.layers.0.q.weight", q), ("model.layers.0.k.weight", k), ("model.norm.weight", norm)):
        sent.add(name, weight)
    fused.add("model.layers.0.qkv.weight", torch.cat([q, k]))
    fused.add("model.norm.weight", norm)
    first.add("model.layers.0.qkv.weight", torch.cat([q[:4], k[:1]]))
    first.add("model.norm.weight", norm)
    second.add("model.layers.0.qkv.weight", torch.cat([q[4:], k[1:]]))
    assert sent.by_layer() == fused.by_layer() == add_up([first.by_layer(), second.by_layer()])
    assert set(sent.by_layer()) == {"layers.0", "norm"}


def test_a_check_compares_every_so_many_syncs():
    asked = []

    def sync(check: SyncCheck, engine: float) -> None:
        list(check.watch([("model.norm.weight", torch.ones(3))]))
        check.compare("the engine", lambda: asked.append(1) or [{"norm": int(bit_sum(torch.ones(3) * engine))}])

    check = SyncCheck(2)
    sync(check, 1.0)
    sync(check, 2.0)  # not looked at
    assert len(asked) == 1
    with pytest.raises(SyncError, match="norm") as caught:
        sync(check, 2.0)
    assert f"{3 * 0x3F800000:#018x}" in str(caught.value)
    assert f"{3 * 0x40000000:#018x}" in str(caught.value)
    off = SyncCheck(0)
    sync(off, 2.0)
    assert len(asked) == 2


# Ids 0 text, 1 newline, 2 blank, 3 text and newline, 4 blank and newline.
NEWLINE = torch.tensor([False, True, False, True, True])
BLANK = torch.tensor([False, True, True, False, True])


@pytest.mark.parametrize(
    ("ids", "lines", "length"),
    [
        ([0, 1, 0, 1], 1, 2),
        ([0, 1, 0, 1], 2, 4),
        ([0, 1, 0], 2, None),  # the second line is open
        ([1, 4, 0, 1], 1, 4),  # blank lines close nothing
        ([3, 3, 3], 2, 2),  # a token that ends its own line
        ([0, 1, 2, 1, 0, 1, 0], 2, 6),
        ([0], 1, None),
        ([], 1, None),
        ([0, 1, 0, 1], None, None),
    ],
)
def test_lines_are_cut_where_they_close(ids, lines, length):
    cut = LineCutter(NEWLINE, BLANK)
    whole = Completion(np.array(ids, dtype=np.int64), np.arange(len(ids), dtype=np.float32), "length")
    assert cut.length(whole.ids, lines) == length
    part = cut(whole, lines)
    assert part.ids.tolist() == ids[:length]
    assert part.logprobs.tolist() == list(range(len(ids)))[:length]
    assert part.finish_reason == ("length" if length is None else "stop")


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(1, 4))
def test_what_is_cut_holds_just_so_many_ranks(ids, lines):
    length = LineCutter(NEWLINE, BLANK).length(np.array(ids), lines)
    row = torch.tensor(ids)[None]
    ranks = segment_ranks(row, torch.ones_like(row), NEWLINE, BLANK)[0].tolist()
    if length is None:
        assert max(ranks) < lines
    else:
        assert set(ranks[:length]) == set(range(lines))
        assert all(rank >= lines for rank in ranks[length:])


def test_stopping_at_a_line_changes_nothing_before_it(policy):
    prompts, seeds = [[5, 6, 7], [8, 9]], [prompt_seed(0, 0, i) for i in range(2)]
    engine, cut = HFEngine(policy, batch_size=8), LineCutter(policy.newline, policy.blank)
    whole = engine.generate(prompts, seeds, Sampling(n=8, max_tokens=80))
    stopped = engine.generate(prompts, seeds, Sampling(n=8, max_tokens=80, max_lines=1))
    lengths = [len(c.ids) for group in stopped for c in group]
    assert min(lengths) < 80, "a random policy writes a newline now and then"
    for group, others in zip(whole, stopped, strict=True):
        for completion, other in zip(group, others, strict=True):
            expected = cut(completion, 1)
            assert np.array_equal(expected.ids, other.ids)
            assert np.allclose(expected.logprobs, other.logprobs, atol=1e-5)
            assert expected.finish_reason == other.finish_reason
