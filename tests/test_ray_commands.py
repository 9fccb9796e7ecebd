"""Commands with Ray that are killed, stopped or fail: they can be resumed, and nothing is left running."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest
from support import SMALL_MODEL, SMOKE, Command, assert_user_error, run_command, start_command
from test_resume import RUN, outcome, steps

from convrec_r1.cluster.reaper import users
from convrec_r1.rollout.config import vllm_version

pytestmark = [pytest.mark.long, pytest.mark.processes("ray")]

OWN_RAY = ("cluster=ray", "cluster.cpus=2", "cluster.gpus=0", "cluster.object_store_gib=0.1")
WORKERS = ("rollout=hf", "rollout.workers=2", "rollout.overlap=1", *OWN_RAY)


def ray_folder(command: Command) -> Path | None:
    """The folder of the Ray that a command has started: its reaper names both. None: there is none yet, or no more."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if len(words) > 4 and words[2].endswith("reaper.py") and words[3] == str(command.pid):
                return Path(words[4])
    return None


def assert_ends(folder: Path | None) -> None:
    """Nothing that Ray or the run started there lives much longer than the command."""
    assert folder is not None
    end = time.monotonic() + 30
    while (left := users(str(folder)) or folder.exists()) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left


def weights_and_lists(cwd: Path) -> dict[str, str]:
    return outcome(cwd / "run")["files"]


def complete(cwd: Path, *overrides: str) -> dict[str, str]:
    done = run_command(*RUN, *overrides, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return weights_and_lists(cwd)


def two_folders(place: Path) -> tuple[Path, Path]:
    """For an undisturbed run, and for one that is struck."""
    folders = place / "alone", place / "struck"
    for folder in folders:
        folder.mkdir()
    return folders


def kill_at(cwd: Path, trained: int, *overrides: str) -> None:
    """Kill a run with -9 when it has made some steps."""
    command = start_command(*RUN, *overrides, cwd=cwd)
    command.until(lambda: steps(cwd) >= trained and ray_folder(command))
    folder = ray_folder(command)
    command.end()
    assert_ends(folder)


@pytest.mark.slow("four starts of Ray")
def test_killed_again_and_again_with_workers_it_ends_the_same(tmp_path):
    alone, struck = two_folders(tmp_path)
    wanted = complete(alone, *WORKERS)
    for trained in (0, 1, 4):  # Ray starts; with lists ahead that no checkpoint holds; with some that one holds
        kill_at(struck, trained, *WORKERS)
    assert complete(struck, *WORKERS) == wanted


@pytest.mark.slow("three starts of Ray, and of vLLM in it")
@pytest.mark.skipif(vllm_version() is None, reason="vLLM is not installed (make setup-vllm)")
def test_killed_with_workers_of_vllm_it_ends_the_same(tmp_path):
    workers = ("rollout=vllm", "rollout.workers=1", "rollout.overlap=1", "rollout.max_num_seqs=16",
               "model.hidden_size=64", "model.heads=2", "model.kv_heads=1", *OWN_RAY)  # fmt: skip
    alone, struck = two_folders(tmp_path)
    wanted = complete(alone, *workers)
    kill_at(struck, 3, *workers)
    assert complete(struck, *workers) == wanted


@pytest.mark.parametrize(("number", "delay"), [(signal.SIGTERM, 0.0), (signal.SIGINT, 0.5), (signal.SIGTERM, 2.0)])
def test_a_signal_while_ray_starts(tmp_path, number, delay):
    command = start_command(*SMOKE, *SMALL_MODEL, *WORKERS, "warm_start=null", "hydra.run.dir=run", cwd=tmp_path)
    command.until(lambda: ray_folder(command))
    folder = ray_folder(command)
    time.sleep(delay)
    command.send_signal(number)
    assert command.wait(60) == 128 + number, command.said
    assert "Traceback" not in command.said
    assert re.search("The same command (resumes|starts)", command.stderr)
    assert_ends(folder)


def test_out_of_retries_the_command_ends_with_the_workers_last_words(tmp_path):
    dies = ("rollout=hf", "rollout._target_=worker_engines.Dies", "rollout.workers=1", "rollout.retries=1", *OWN_RAY)
    command = start_command(*SMOKE, *SMALL_MODEL, *dies, "warm_start=null", "hydra.run.dir=run", cwd=tmp_path)
    command.until(lambda: ray_folder(command))
    folder = ray_folder(command)
    command.wait(120)
    assert_user_error(
        command.done, "Groups of a rollout failed 2 times (rollout.retries=1)", "the end is near", "same command"
    )
    assert_ends(folder)


def test_a_second_signal_to_a_sweep_on_ray_ends_it_at_once(tmp_path):
    cells = (*SMOKE, *SMALL_MODEL, "warm_start=null", "rl.steps=500", "eval.every=0", "seed=1,2,3")
    launcher = ("hydra/launcher=ray", "hydra.launcher.cpus=2", "hydra.launcher.gpus=0")
    sweep = start_command("-m", *cells, *launcher, cwd=tmp_path)
    sweep.until(lambda: len([f for f in tmp_path.rglob("metrics.jsonl") if f.stat().st_size]) == 2)
    folder = ray_folder(sweep)
    told = time.monotonic()
    for _ in range(2):
        sweep.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert sweep.wait(60) == 130, sweep.said
    assert time.monotonic() - told < 20
    assert "Traceback" not in sweep.said
    assert_ends(folder)
    assert not cells_in(tmp_path)


def cells_in(cwd: Path) -> list[int]:
    """Processes whose working directory is `cwd`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "cwd") == str(cwd):
                found.append(int(process.name))
    return found
