"""rollout=vllm_server with real servers on loopback: what they sample is the policy's, and a killed one costs time only."""

import copy
import os
import shutil
import signal
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import make_config, tiny_policy
from test_modules import config
from test_pipeline import reinforce
from test_server_faults import group_of, until

from convrec_r1.base.errors import UserError
from convrec_r1.rl import segment_ranks
from convrec_r1.rollout.base import Sampling, make_engine, prompt_seed
from convrec_r1.rollout.checksums import SyncError
from convrec_r1.rollout.config import vllm_version
from convrec_r1.rollout.hf import HFEngine
from convrec_r1.rollout.vllm import options
from convrec_r1.rollout.vllm.pool import ServerEngine
from convrec_r1.rollout.vllm.server import Server

pytestmark = [
    pytest.mark.processes("server"),
    pytest.mark.skipif(vllm_version() is None, reason="vLLM is not installed (make setup-vllm)"),
]

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14, 15], [16]]
SEEDS = [prompt_seed(0, 0, i) for i in range(4)]
GREEDY = Sampling(temperature=0, max_tokens=20)
LONG = Sampling(n=4, max_tokens=100)
LENGTH = 256


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


@pytest.fixture(scope="module")
def engine(policy):
    # Two groups are under way at a time, so that one is when the other has come back.
    cfg = make_config("rollout=vllm_server", "rollout.max_num_seqs=4", "rollout.start=1").rollout
    engine = make_engine(cfg, policy, max_length=LENGTH)
    yield engine
    engine.close()
    shutil.rmtree(engine._logs)  # which stayed because a server was killed


@pytest.fixture
def visitor(engine, policy):
    """Makes engines that are told the address of the running server."""
    engines = []

    def make(policy=policy, length: int = LENGTH) -> ServerEngine:
        if not engine._synced:
            engine.sync(policy)
        cfg = make_config("rollout=vllm_server", f"rollout.servers=[{server_of(engine).address}]").rollout
        engines.append(ServerEngine(cfg, policy, max_length=length))
        return engines[-1]

    yield make
    for made in engines:
        made.close()


def server_of(engine: ServerEngine) -> Server:
    return engine._fleet.members[0].server


def group_id(engine: ServerEngine) -> int:
    return engine._fleet.members[0].process.group


def moved(policy, seed: int):
    """Another policy of the same architecture."""
    policy = copy.deepcopy(policy)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return policy


def assert_samples_from(engine, policy) -> None:
    """Greedy completions are those of the trainer's own `generate`, and so are their log-probs."""
    theirs = engine.generate(PROMPTS, SEEDS, GREEDY)
    ours = HFEngine(policy, batch_size=4).generate(PROMPTS, SEEDS, GREEDY)
    for (their,), (our,) in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(their.ids, our.ids)
        np.testing.assert_allclose(their.logprobs, our.logprobs, atol=1e-4)
        assert their.finish_reason == our.finish_reason


def assert_same(groups, others) -> None:
    for group, other in zip(groups, others, strict=True):
        for ours, theirs in zip(group, other, strict=True):
            np.testing.assert_array_equal(ours.ids, theirs.ids)
            np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)


def test_every_sync_reaches_the_server(engine, policy):
    for seed in range(3):
        policy = moved(policy, seed)
        engine.sync(policy)
        assert_samples_from(engine, policy)


def test_a_seeded_rollout_is_repeated_exactly(engine, policy):
    engine.sync(policy)
    first = engine.generate(PROMPTS, SEEDS, LONG)
    assert_same(engine.generate(PROMPTS, SEEDS, LONG), first)
    assert_same(engine.generate(PROMPTS[::-1], SEEDS[::-1], LONG)[::-1], first)
    assert len({c.ids.tobytes() for group in first for c in group}) == 16


def test_lists_end_with_their_last_line(engine, policy):
    newline = int(policy.newline.nonzero()[0])
    eager = copy.deepcopy(policy)
    with torch.no_grad():
        eager.head.weight[newline] += 10 * eager.head.weight[newline].sign()
    engine.sync(policy)
    groups = engine.generate(PROMPTS, SEEDS, Sampling(n=4, max_tokens=200, max_lines=2))
    ended = [c for group in groups for c in group if c.finish_reason == "stop"]
    assert ended
    for completion in ended:
        ids = torch.from_numpy(completion.ids)[None]
        ranks = segment_ranks(ids, torch.ones_like(ids), policy.newline, policy.blank)
        assert int(ranks.max()) <= 1
        assert completion.ids[-1] in policy.eos_ids or bool(policy.newline[completion.ids[-1]])


def test_a_file_that_was_altered_on_its_way_stops_the_run(engine, policy, monkeypatch):
    engine.sync(policy)
    publish = engine._fleet.publish

    def spoil(weights) -> None:
        publish(weights)
        (*_, path) = engine._fleet.files
        tensors = load_file(path)
        tensors["model.norm.weight"][3] += 1e-3
        save_file(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(engine._fleet, "publish", spoil)
        with pytest.raises(SyncError, match=r"0x[0-9a-f]{16} there and 0x[0-9a-f]{16} here.*norm"):
            engine.sync(policy)
    assert_samples_from(engine, policy)  # which syncs first


def test_an_update_that_was_broken_off_does_not_bar_the_next(engine, policy):
    engine.sync(policy)
    server_of(engine).post("/start_weight_update")
    policy = moved(policy, 9)
    engine.sync(policy)
    assert_samples_from(engine, policy)


def test_a_server_at_an_address(engine, policy, visitor):
    engine.sync(policy)
    guest, other = visitor(), moved(policy, 5)
    guest.sync(other)
    assert_samples_from(guest, other)
    assert_samples_from(engine, policy)  # its server turns out to have another run's weights, and gets its own back
    assert engine.counts["regenerated"] > 0
    assert guest.counts["restarts"] == engine.counts["restarts"] == 0


@pytest.mark.parametrize(
    ("changes", "length", "said"),
    [
        ({"hidden_size": 128, "intermediate_size": 256}, LENGTH, ["hidden_size=64", "128"]),
        ({"vocab_size": 600}, LENGTH, ["vocab_size=512", "its tokenizer reads"]),
        ({}, LENGTH + 1, ["256 tokens", "257", "--max-model-len"]),
    ],
)
def test_a_server_that_does_not_fit(visitor, changes, length, said):
    guest = visitor(tiny_policy(**changes), length)
    with pytest.raises(UserError) as error:
        guest.sync(guest._policy)
    for part in [guest.options.servers[0], "--enable-scale-out", *said]:
        assert part in str(error.value)


def test_training_a_step_ahead(engine, policy, tmp_path):
    """Lists of one step ago, each from one set of weights, while the trainer trains; and the server follows to the end."""
    cfg = config("rollout=vllm_server", "rollout.overlap=1", "rl.steps=5")
    state, rows, _ = reinforce(policy, cfg, tmp_path, lambda *_, **__: engine)
    assert [row["sampling/staleness"] for row in rows] == [0, 1, 1, 1, 1]
    assert rows[0]["sampling/sampling_logp_difference/max"] < 1e-4
    assert all(row["sampling/sampling_logp_difference/max"] > 1e-3 for row in rows[1:])
    trained = copy.deepcopy(policy)
    trained.load_state_dict(state)
    assert_samples_from(engine, trained)


@pytest.mark.slow(
    reason="vLLM's server starts a second time: a minute; test_server_faults has servers that start at once"
)
def test_a_server_killed_in_the_middle_of_a_rollout(engine, policy):
    policy = moved(policy, 7)
    engine.sync(policy)
    prompts, seeds = PROMPTS * 3, [prompt_seed(0, 1, i) for i in range(12)]
    undisturbed = engine.generate(prompts, seeds, LONG)
    group, restarts, regenerated = group_id(engine), engine.counts["restarts"], engine.counts["regenerated"]
    assert len(group_of(group)) > 2  # vLLM's own processes among them
    told, groups = [], []

    def kill_it(n: int) -> None:
        told.append(n)
        if len(told) == 1:
            os.killpg(group, signal.SIGKILL)

    thread = threading.Thread(target=lambda: groups.extend(engine.generate(prompts, seeds, LONG, kill_it)))
    thread.start()
    assert until(lambda: told, 60)
    with torch.no_grad():  # the trainer goes on: what comes back must not get these
        for parameter in policy.parameters():
            parameter.add_(1.0)
    thread.join(300)
    assert_same(groups, undisturbed)
    assert sum(told) == 48
    assert engine.counts["restarts"] == restarts + 1
    assert engine.counts["regenerated"] > regenerated
    assert server_of(engine).weight_version() == engine._fleet.version
    assert not group_of(group)


def test_nothing_stays_behind(engine, policy):
    if not engine._synced:
        engine.sync(policy)
    group, scratch = group_id(engine), engine._scratch.name
    assert group_of(group)
    engine.close()
    assert not group_of(group)
    assert not os.path.exists(scratch)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_flags_say_what_the_arguments_say(policy, tmp_path, on_cpu):
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cfg = make_config("rollout=vllm_server", "rollout.kv_cache_gib=0.5", "rollout.tensor_parallel_size=2").rollout
    setup = options.setup(cfg, policy, tmp_path, max_length=LENGTH, on_cpu=on_cpu)
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(options.flags({**setup.arguments, **options.SERVER}))
    for name, value in setup.arguments.items():
        assert getattr(parsed, name) == value, name
    assert parsed.enable_scale_out
    assert parsed.weight_transfer_config.backend == "convrec_file"
