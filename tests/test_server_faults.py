"""rollout=vllm_server against servers that fail in every way: groups stay whole, and people learn what is wrong."""

import copy
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from fake_vllm import FakeVLLM, sampled
from support import assert_done, make_config, run_job, start_job, tiny_policy

from convrec_r1.base.errors import UserError
from convrec_r1.rollout.base import Sampling, prompt_seed
from convrec_r1.rollout.checksums import SyncError
from convrec_r1.rollout.vllm import process
from convrec_r1.rollout.vllm.options import engine_seed
from convrec_r1.rollout.vllm.pool import ServerEngine
from convrec_r1.rollout.vllm.process import assign_gpus

pytestmark = pytest.mark.long

PROMPTS = [[5 + i, 6, 7 + i] for i in range(12)]
SEEDS = [prompt_seed(0, 0, i) for i in range(12)]
SAMPLING = Sampling(n=3, max_tokens=4)


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


@pytest.fixture
def serve(policy):
    """Makes fake servers of the policy."""
    fakes = []

    def start(**changes) -> FakeVLLM:
        fakes.append(FakeVLLM(policy, **changes))
        return fakes[-1]

    yield start
    for fake in fakes:
        fake.close()


@pytest.fixture
def connect(policy, tmp_path):
    """Makes engines over servers."""
    engines = []

    def make(*fakes: FakeVLLM, **changes) -> ServerEngine:
        cfg = make_config("rollout=vllm_server").rollout
        cfg.servers = [fake if isinstance(fake, str) else fake.address for fake in fakes]
        cfg.transfer_folder = str(tmp_path)
        for key, value in changes.items():
            setattr(cfg, key, value)
        engines.append(ServerEngine(cfg, policy, max_length=100))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def rollout(engine: ServerEngine, **options):
    return engine.generate(PROMPTS, SEEDS, SAMPLING, **options)


def assert_whole(groups) -> None:
    """Every group is there, once, in its place, and nothing else is."""
    assert len(groups) == len(PROMPTS)
    for group, prompt, seed in zip(groups, PROMPTS, SEEDS, strict=True):
        assert [c.ids.tolist() for c in group] == sampled(prompt, engine_seed(seed, 3), 3)
        assert all(c.logprobs.dtype == np.float32 and c.finish_reason == "length" for c in group)


FAULTS = (
    "status 500", "reset", "truncated", "hang", "other weights", "one missing", "one twice", "aborted", "no log-probs",
    "another shape",
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_time_and_no_group(serve, connect, policy, fault):
    fake = serve(faults=[fault])
    engine = connect(fake, request_timeout=1.0)
    engine.sync(policy)
    told = []
    assert_whole(rollout(engine, on_progress=told.append))
    assert sum(told) == 36
    assert engine.counts["regenerated"] >= 1
    assert engine.counts["restarts"] == 0


def test_a_group_that_fails_again_and_again_ends_the_rollout(serve, connect, policy):
    fake = serve(faults=["status 500"] * 100)
    engine = connect(fake, retries=2)
    engine.sync(policy)
    with pytest.raises(UserError, match="the engine hiccuped") as error:
        engine.generate(PROMPTS[:1], SEEDS[:1], SAMPLING)
    assert fake.address in str(error.value)
    assert "3 failures in a row" in str(error.value)
    assert "same command" in str(error.value)
    assert len(fake.faults) == 97


def test_a_refused_request_is_not_repeated(serve, connect, policy):
    fake = serve()
    engine = connect(fake)
    engine.sync(policy)
    asked = []
    fake.on_generate = lambda: asked.append(1)
    with pytest.raises(UserError, match=rf"{fake.address} refuses .*out of vocabulary"):
        engine.generate([[5, 700]], SEEDS[:1], SAMPLING)
    assert len(asked) == 1
    assert engine.counts["regenerated"] == 0


def test_a_server_that_lost_its_weights_gets_those_of_the_sync_again(serve, connect, policy):
    """It was started again in the middle of a rollout, while the trainer had gone on."""
    fake = serve(delay=0.05)
    policy = copy.deepcopy(policy)
    engine = connect(fake)
    engine.sync(policy)
    synced, asked = dict(fake.sums), []

    def lose() -> None:
        asked.append(1)
        if len(asked) == 4:
            fake.forget()

    fake.on_generate = lose
    with torch.no_grad():
        policy.head.weight.add_(1.0)
    assert_whole(rollout(engine))
    assert fake.sums == synced
    assert len(set(fake.given)) == 1
    assert len(fake.given) == 2


def test_servers_share_the_prompts(serve, connect, policy):
    slow, fast = serve(delay=0.3, max_num_seqs=3), serve(delay=0.02, max_num_seqs=3)
    engine = connect(slow, fast)
    engine.sync(policy)
    assert slow.weight_version == fast.weight_version != "default"
    assert_whole(rollout(engine))
    assert 1 <= len(slow.prompts) < len(fast.prompts)
    assert sorted(slow.prompts + fast.prompts) == PROMPTS


def test_the_others_go_on_without_a_server_that_died_and_take_it_back(serve, connect, policy, caplog):
    dies, lives = serve(delay=0.1, max_num_seqs=3), serve(delay=0.1, max_num_seqs=3)
    engine = connect(dies, lives)
    engine.sync(policy)
    dies.faults = ["reset"] * 100
    dies.on_generate = dies.close
    started = time.monotonic()
    assert_whole(rollout(engine))
    assert sorted(lives.prompts) == PROMPTS
    assert engine.counts["regenerated"] >= 1
    engine.sync(policy)
    assert_whole(rollout(engine))
    assert time.monotonic() - started < 10
    assert f"{dies.address} failed" in caplog.text
    back = serve(port=dies.port)
    engine.sync(policy)
    assert back.weight_version == lives.weight_version
    assert f"{dies.address} is back" in caplog.text


def test_the_last_server_is_not_dropped(serve, connect, policy):
    fake = serve()
    engine = connect(fake, start_timeout=0.5, retries=1)
    engine.sync(policy)
    fake.close()
    with pytest.raises(UserError, match="2 failures in a row") as error:
        rollout(engine)
    assert fake.address in str(error.value)
    with pytest.raises(UserError, match=fake.address):
        engine.sync(policy)


def test_no_server_at_the_address(connect, policy):
    started = time.monotonic()
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9 does not answer.*rollout\.servers"):
        connect("http://127.0.0.1:9").sync(policy)
    assert time.monotonic() - started < 10


def test_something_else_at_the_address(serve, connect, policy):
    fake = serve()
    fake.answer = lambda path, body: (200, ["hello"])
    with pytest.raises(UserError, match=f"{fake.address} is no vLLM server"):
        connect(fake).sync(policy)


def spoil_tokenizer(fake: FakeVLLM) -> None:
    fake.shift = 1


MISFITS = [
    (lambda f: setattr(f, "version", "0.31.9"), ["0.31.9", "0.32"]),
    (lambda f: f.missing.add("/collective_rpc"), ["VLLM_SERVER_DEV_MODE=1"]),
    (lambda f: f.missing.add("/inference/v1/generate"), ["--enable-scale-out"]),
    (lambda f: f.engine.update(transfer=None), ["--weight-transfer-config", "convrec_file"]),
    (lambda f: f.engine.update(transfer="nccl"), ["nccl", "--weight-transfer-config", "convrec_file"]),
    (lambda f: f.engine.update(max_length=99), ["99 tokens", "100", "--max-model-len"]),
    (lambda f: f.engine.update(logprobs_mode="raw_logprobs"), ["raw_logprobs", "processed_logprobs"]),
    (lambda f: f.engine.update(generation_config="auto"), ["--generation-config"]),
    (lambda f: f.engine.update(device="cpu", prompts_in_pieces=True), ["--no-enable-chunked-prefill"]),
    (lambda f: f.engine.update(device="cpu"), ["tie_word_embeddings"]),
    (
        lambda f: f.engine["model"].update(hidden_size=32, vocab_size=99),
        ["hidden_size=32", "64", "vocab_size=99", "512"],
    ),
    (lambda f: f.engine["model"].update(rope_parameters={"rope_theta": 5.0}), ["rope_theta=5.0", "10000.0"]),
    (spoil_tokenizer, ["tokenizer", r"'Title (1999)\n'"]),
]


@pytest.mark.parametrize(("spoil", "said"), MISFITS, ids=[said[0] for _, said in MISFITS])
def test_a_server_that_does_not_fit(serve, connect, policy, spoil, said):
    fake = serve()
    spoil(fake)
    with pytest.raises(UserError) as error:
        connect(fake).sync(policy)
    for part in [fake.address, "python -m vllm", *said]:
        assert part in str(error.value)
    assert fake.given == []


def test_servers_that_take_weights_differently(serve, connect, policy):
    with pytest.raises(UserError, match=r"float32.*bfloat16"):
        connect(serve(), serve(dtype="bfloat16")).sync(policy)


def test_wrong_weights_stop_the_run(serve, connect, policy):
    fake = serve()
    engine = connect(fake)
    engine.sync(policy)
    load = fake.load

    def forget_a_bit(**update) -> None:
        load(**update)
        fake.sums["norm"] += 1

    fake.load = forget_a_bit
    with pytest.raises(SyncError, match="norm"):
        engine.sync(policy)


def test_an_update_that_was_broken_off_does_not_bar_the_next(serve, connect, policy):
    fake = serve()
    fake.updating = True
    engine = connect(fake)
    engine.sync(policy)
    assert_whole(rollout(engine))


def test_weights_that_cannot_be_written_stop_the_run(serve, connect, policy, tmp_path):
    engine = connect(serve())
    engine.sync(policy)
    for folder in tmp_path.iterdir():
        shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"could not be written.*rollout\.transfer_folder"):
        engine.sync(policy)


def test_a_server_that_does_not_start_says_why(policy, monkeypatch, tmp_path):
    log = "(EngineCore pid=7) ERROR [core.py:1] ValueError: no room\n" + "INFO waits\n" * 20 + "RuntimeError: see above"
    fails = f"import sys; print({log!r}); sys.exit(1)"
    monkeypatch.setattr(process, "SERVE", [sys.executable, "-c", fails])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    engine = ServerEngine(make_config("rollout=vllm_server").rollout, policy, max_length=100)
    with pytest.raises(UserError, match="did not start: its process ended") as error:
        engine.sync(policy)
    engine.close()
    said = str(error.value)
    assert said.index("ValueError: no room") < said.index("RuntimeError: see above")
    (log,) = tmp_path.glob("*/server-1.log")  # stays, to be read
    assert str(log) in said


class StandIn:
    """A fake server in the place of a process that the engine starts."""

    def __init__(self, folder: Path, fake: FakeVLLM | None) -> None:
        self.fake, self.address, self.log = fake, fake.address if fake else "http://127.0.0.1:9", folder / "log"

    def alive(self) -> bool:
        return self.fake is not None

    def stop(self) -> None:
        if self.fake:
            self.fake.close()
        self.fake = None

    def last_words(self) -> str:
        return "  ValueError: no room"


@pytest.fixture
def start(policy, monkeypatch, tmp_path):
    """Makes an engine with a server of its own, started as what `fakes` give in turn, None for one that ends at once."""
    engines = []

    def make(fakes, **changes) -> ServerEngine:
        fakes = iter(fakes)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # logs of servers that failed stay
        monkeypatch.setattr(ServerEngine, "_launchers", lambda *_: [lambda: StandIn(tmp_path, next(fakes))])
        cfg = make_config("rollout=vllm_server").rollout
        for key, value in changes.items():
            setattr(cfg, key, value)
        engines.append(ServerEngine(cfg, policy, max_length=100))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def test_a_server_of_ours_that_hangs_is_started_again(serve, start, policy):
    hangs, new = serve(faults=["hang"]), serve()
    engine = start([hangs, new], request_timeout=1.0)
    engine.sync(policy)
    assert_whole(rollout(engine))
    assert engine.counts["restarts"] == 1
    assert new.weight_version == hangs.weight_version
    assert new.sums == hangs.sums


def test_a_server_of_ours_that_hiccups_is_not_started_again(serve, start, policy):
    engine = start([serve(faults=["status 500"])])
    engine.sync(policy)
    assert_whole(rollout(engine))
    assert engine.counts["restarts"] == 0


def test_a_server_of_ours_that_never_comes_back_ends_the_run(serve, start, policy):
    fake = serve()
    engine = start([fake, None, None, None], retries=3)
    engine.sync(policy)
    fake.on_generate = engine._fleet.members[0].process.stop
    with pytest.raises(UserError, match=r"4 failures in a row: its process ended") as error:
        rollout(engine)
    assert engine.counts["restarts"] == 3
    assert "ValueError: no room" in str(error.value)


def test_one_file_of_weights_is_kept(serve, connect, policy, tmp_path):
    engine = connect(serve())
    for _ in range(3):
        engine.sync(policy)
        assert len(list(tmp_path.glob("*/*.safetensors"))) == 1
    engine.close()
    assert list(tmp_path.iterdir()) == []


def test_closing_ends_a_rollout(serve, connect, policy):
    engine = connect(serve(delay=10))
    engine.sync(policy)
    ended, started = [], time.monotonic()

    def run() -> None:
        try:
            rollout(engine)
        except UserError as error:
            ended.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.2)
    engine.close()
    thread.join(20)
    assert ended == ["The vLLM servers were closed."]
    assert time.monotonic() - started < 5


def run_rank(address: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    cfg = make_config("rollout=vllm_server").rollout
    cfg.servers = [address] if rank == 0 else ["http://127.0.0.1:9"]  # the first process alone speaks to them
    policy = tiny_policy()
    engine = ServerEngine(cfg, policy, max_length=100)
    engine.sync(policy)
    mine, told = slice(0, 5) if rank == 0 else slice(5, 12), []
    groups = engine.generate(PROMPTS[mine], SEEDS[mine], SAMPLING, told.append)
    lists = [[c.ids.tolist() for c in group] for group in groups]
    assert lists == [sampled(p, engine_seed(s, 3), 3) for p, s in zip(PROMPTS[mine], SEEDS[mine], strict=True)]
    assert sum(told) == 3 * len(lists)
    with pytest.raises(UserError, match="out of vocabulary"):
        engine.generate([[700]] if rank else PROMPTS[:1], SEEDS[:1], SAMPLING)
    engine.close()
    dist.destroy_process_group()


@pytest.mark.processes
def test_one_of_several_trainer_processes_speaks_for_all(serve, tmp_path):
    fake = serve()
    assert_done(run_job("test_server_faults:run_rank", fake.address, cwd=tmp_path, world=2))
    assert sorted(fake.prompts[:12]) == PROMPTS
    assert len(fake.given) == 1


def test_gpus_that_the_trainer_leaves_over_come_first():
    assert assign_gpus(["0", "1", "2", "3"], 1, 3, 1) == [["1"], ["2"], ["3"]]
    assert assign_gpus(["4", "5", "6", "7"], 2, 1, 2) == [["6", "7"]]
    assert assign_gpus(["0", "1"], 1, 2, 1) == [["1"], ["1"]]
    assert assign_gpus(["0"], 1, 2, 1) == [["0"], ["0"]]


# A process group as vLLM's: a server whose own child ignores the polite signal.
SERVER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)"])
time.sleep(99)
"""


def train_beside_a_server(folder: str) -> None:
    process.SERVE = [sys.executable, "-c", SERVER]
    (Path(folder) / "scratch").mkdir()
    started = process.LocalProcess([], Path(folder) / "log", Path(folder) / "scratch")
    (Path(folder) / "group").write_text(str(started.group))
    while not (Path(folder) / "done").exists():
        time.sleep(0.05)


def group_of(number: int) -> list[int]:
    """Processes of a group that are still there."""
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    rows = [(int(stat.split()[0]), stat.rpartition(")")[2].split()) for stat in stats]
    return [pid for pid, (state, _, group, *_) in rows if int(group) == number and state != "Z"]


def until(condition, seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.processes
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="process groups are read from /proc")
@pytest.mark.parametrize("end", ["trainer killed", "trainer done", "server killed", "guard killed"])
def test_nothing_of_a_server_stays_behind(tmp_path, end):
    trainer = start_job("test_server_faults:train_beside_a_server", str(tmp_path), cwd=tmp_path)
    trainer.until(lambda: (tmp_path / "group").exists() and (tmp_path / "group").read_text())
    group = int((tmp_path / "group").read_text())
    assert until(lambda: len(group_of(group)) == 3)  # guard, server, child
    if end == "trainer killed":
        trainer.end()
    elif end == "server killed":
        os.kill(sorted(group_of(group))[1], signal.SIGKILL)
    else:
        if end == "guard killed":
            os.kill(group, signal.SIGKILL)
        (tmp_path / "done").touch()
    assert until(lambda: not group_of(group))
    assert (tmp_path / "scratch").exists() == (end != "trainer killed")
    trainer.end()
