"""File systems without symbolic links or flock, as FAT, SMB and some parallel ones: runs end there as elsewhere."""

import errno
import fcntl
import os
import sys
from pathlib import Path

import pytest
from support import SMALL_MODEL, SMOKE, Command, assert_user_error, run_command, start_job

from convrec_r1.base.files import follow, point, pointed, write_text
from convrec_r1.base.locks import Timeout, locked
from convrec_r1.run.checkpoints import policy_path, run_of, seal

WITHOUT = (errno.EPERM, errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)


def forbid(patch, number: int) -> None:
    """Let the calls fail as they do where the file system does not know them."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    for module, name in ((os, "symlink"), (os, "link"), (fcntl, "flock")):
        patch(module, name, refuse)


def command(*arguments: str) -> None:
    """`python -m convrec_r1 ARGUMENTS` on such a file system: for a process of its own."""
    from convrec_r1 import cli

    forbid(setattr, errno.ENOTSUP)
    sys.argv = ["convrec_r1", *arguments]
    cli.main()


@pytest.mark.parametrize("number", WITHOUT)
def test_a_link_is_a_text_file_where_there_are_no_links(tmp_path, monkeypatch, number):
    (tmp_path / "000004" / "policy").mkdir(parents=True)
    (tmp_path / "000004" / "policy" / "config.json").write_text("{}")
    for kind in ("links", "files", "links again"):
        with monkeypatch.context() as patch:
            if kind == "files":
                forbid(patch.setattr, number)
            point(tmp_path / "last", "000004")
            point(tmp_path / "best", "000002")
        assert (tmp_path / "last").is_symlink() == (kind != "files")
        assert (pointed(tmp_path / "last"), pointed(tmp_path / "best")) == ("000004", "000002")
        assert (follow(tmp_path / "last" / "policy") / "config.json").exists()
        assert Path(policy_path(str(tmp_path / "last"))).name == "policy"
    assert pointed(tmp_path / "000004") is None
    assert pointed(tmp_path / "none") is None
    (tmp_path / "note.txt").write_text("of mine")
    assert pointed(tmp_path / "note.txt") is None
    assert follow(tmp_path / "note.txt") == tmp_path / "note.txt"


@pytest.mark.parametrize("number", WITHOUT)
def test_a_lock_excludes_where_there_is_no_flock(tmp_path, monkeypatch, number):
    forbid(monkeypatch.setattr, number)
    write_text(tmp_path / "a file", "x")
    with locked(tmp_path / ".lock"), pytest.raises(Timeout), locked(tmp_path / ".lock", timeout=0):
        pass
    with locked(tmp_path / ".lock", timeout=0):
        pass


def test_other_faults_of_a_lock_are_not_hidden(tmp_path, monkeypatch):
    forbid(monkeypatch.setattr, errno.EIO)
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path / ".lock"):
        pass


def test_a_directory_that_cannot_be_flushed_does_not_stop_a_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    real = os.fsync

    def only_files(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").resolve().is_dir():
            raise OSError(errno.EINVAL, "not for directories")
        real(handle)

    monkeypatch.setattr(os, "fsync", only_files)
    seal(tmp_path)
    assert (tmp_path / "manifest.json").exists()


RUN = (
    *SMOKE,
    *SMALL_MODEL,
    "rl.steps=4",
    "eval.baselines=[]",
    "eval.resamples=20",
    "eval.select=best",
    "hydra.run.dir=run",
)


@pytest.mark.processes
def test_a_run_is_made_killed_resumed_and_evaluated_there(tmp_path):
    def start(*arguments: str) -> Command:
        return start_job("test_places:command", *arguments, cwd=tmp_path)

    checkpoints = tmp_path / "run" / "checkpoints"
    first = start(*RUN)
    first.until(lambda: (checkpoints / "000002" / "trainer.ckpt").exists() and (checkpoints / "last").exists())
    second = start(*RUN)
    second.wait()
    assert second.poll() == 2 or first.poll() == 0, second.said
    first.end()
    again = start(*RUN)
    assert again.wait() == 0, again.said
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]
    assert (checkpoints / "last").read_text() == "-> 000004\n"
    assert run_of(str(checkpoints / "last" / "policy")) == tmp_path / "run"
    for checkpoint in ("run", "run/checkpoints/last", "run/checkpoints/best"):
        done = start("task=eval", f"checkpoint={checkpoint}", "logger=none", "eval.resamples=20", "eval.baselines=[]")
        assert done.wait() == 0, done.said
    onward = start(*RUN[:-1], "warm_start=run/checkpoints/last/policy", "hydra.run.dir=onward", "rl.steps=1")
    assert onward.wait() == 0, onward.said
    assert_user_error(
        run_command(*RUN[:-1], "hydra.run.dir=x", "warm_start=run/checkpoints/none", cwd=tmp_path), "warm_start"
    )
