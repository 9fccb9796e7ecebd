"""`python -m convrec_r1`: compose the config, check it, run its task in its folder."""

import os
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

# Set before torch starts its threads. They wait for each other thousands of times a second: asleep, they wake late, which
# doubles the time of rollouts; spinning for long, they slow each other down on a busy machine. So they spin for some
# microseconds and sleep then.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from convrec_r1.base import progress
from convrec_r1.base.errors import UserError
from convrec_r1.base.imports import large_imports
from convrec_r1.base.signals import REQUEUE, Interrupted, end_with_owner, requeue, run_to_its_end, stop
from convrec_r1.base.visible import visible
from convrec_r1.config.files import conf_folder, expand
from convrec_r1.config.help import help_text
from convrec_r1.config.inherit import ask_for_n, config_folders, inherit
from convrec_r1.config.quoting import quote
from convrec_r1.config.schema import Config
from convrec_r1.config.store import USER_ERROR, register
from convrec_r1.modules.hardware import is_cpu_only
from convrec_r1.run import forkserver
from convrec_r1.run.folder import RunFolder
from convrec_r1.studies import ledger
from convrec_r1.studies.cells import CellCommand

OK, FAULT, INTERRUPTED = 0, 1, 130
"""Exit status: success, internal error, after Ctrl-C. Of a user error: USER_ERROR."""
_FULL_ERROR = "HYDRA_FULL_ERROR"
_CONFIG_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError)
"""Errors in a config: of Hydra, invalid YAML, a reference to a missing key."""


register()


def main() -> None:
    """Run the command line: one run or a sweep. The exit status of a sweep is the highest of its runs."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text(sys.argv[1:]))
        return
    try:
        sys.argv[1:] = expand(sys.argv[1:])
    except UserError as error:
        print(f"\n{visible(str(error))}", file=sys.stderr)
        sys.exit(USER_ERROR)
    sys.path.append(os.getcwd())  # for users' plug-ins: the console script does not add it
    debug = os.environ.get(_FULL_ERROR) == "1"
    os.environ[_FULL_ERROR] = "1"  # Hydra raises all errors; otherwise it prints some with a trace, and exits
    launch = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(job)
    broke_off = False
    try:
        launch()
    except SystemExit as stop:
        # Hydra prints a config error (an unknown key, a bad type) without a trace, and exits with 1.
        config_error = stop.code == 1 and not _started and not (ledger.opened and ledger.opened.cells())
        if config_error and ledger.opened:
            ledger.opened.close()
        if config_error or not ledger.opened:
            sys.exit(USER_ERROR if config_error else stop.code)
        broke_off = True
    except KeyboardInterrupt:
        print("\nInterrupted. The same command resumes from the last checkpoint.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except UserError as error:  # of the launcher
        print(f"\n{visible(str(error))}", file=sys.stderr)
        broke_off = True
        if not (ledger.opened and ledger.opened.cells()):
            if ledger.opened:
                ledger.opened.close()
            sys.exit(USER_ERROR)
    except Exception as error:
        if not _started and not debug and isinstance(error, _CONFIG_ERRORS):
            said = [str(e) for e in (error, error.__cause__) if e is error or isinstance(e, OmegaConfBaseException)]
            if given := re.search(
                r"override (\S+?)=(\S+)\nInvalid value assigned: \w+ is not a ListConfig", "\n".join(said)
            ):
                said.append(f"It takes a list: {given[1]}=[{given[2]}].")
            print("\nThe config cannot be read:", visible("\n".join(said)), file=sys.stderr)
            if ledger.opened:
                ledger.opened.close()
            sys.exit(USER_ERROR)
        if not ledger.opened:
            raise
        traceback.print_exc()  # the launcher failed; the ledger holds the started cells
        broke_off = True
    if ledger.opened:
        from convrec_r1.studies.sweep import (
            conclude,
        )  # imported late: it takes seconds, and a single run does not need it

        sys.exit(max(conclude(ledger.opened), FAULT if broke_off else OK))


_started = False


def job(composed: DictConfig) -> float | CellCommand | None:
    """Execute one run, or one cell of a sweep. Return its objective for a search.

    It is defined at module level, so that launchers can pickle it.
    """
    global _started
    _started = True
    hydra_cfg = HydraConfig.get()
    folder = RunFolder(Path(hydra_cfg.runtime.output_dir))
    if hydra_cfg.mode is RunMode.MULTIRUN:
        return run_cell(composed, hydra_cfg, folder)
    ledger.announce()
    stop.listen()
    end_with_owner()
    try:
        return ledger.objective(task(composed, folder))
    except (UserError, OmegaConfBaseException) as error:
        print(f"\n{visible(str(error))}", file=sys.stderr)
        folder.discard_if_empty(Path(composed.outputs))
        ledger.explain(str(error))
        sys.exit(USER_ERROR)
    except Interrupted as interrupted:
        if interrupted.number == REQUEUE:
            requeue()
        print(f"\n{interrupted}", file=sys.stderr)
        folder.discard_if_empty(Path(composed.outputs))
        ledger.explain(str(interrupted))
        sys.exit(interrupted.status)
    except Exception as error:
        traceback.print_exc()
        ledger.explain(f"{type(error).__name__}: {error}")
        sys.exit(FAULT)


def run_cell(composed: DictConfig, hydra_cfg: HydraConf, folder: RunFolder) -> float | CellCommand | None:
    """Execute one cell of a sweep in a separate process. If it is killed, the others continue.

    A separate process also frees GPU memory, engines and process groups before the next cell. For hydra/launcher=ray the
    cell is only returned: the launcher starts it where there is room.
    """
    command = cell_command(composed, hydra_cfg, folder)
    if "RayLauncher" in hydra_cfg.launcher._target_:
        return command
    cell = ledger.Ledger.current().begin(command.number, folder.path)
    on_cpu = is_cpu_only(composed.trainer.accelerator)
    status = run_to_its_end(forkserver.start(command.arguments, os.environ | command.environment, forked=on_cpu))
    cell.end(status)
    return cell.objective() if status == OK else None


def cell_command(composed: DictConfig, hydra_cfg: HydraConf, folder: RunFolder) -> CellCommand:
    """Return the command of one cell of a sweep."""
    book, number = ledger.Ledger.current(), hydra_cfg.job.num
    side_by_side = "BasicLauncher" not in hydra_cfg.launcher._target_
    environment = {
        _FULL_ERROR: "",
        ledger.CELL: str(book.file(number)),
        progress.LABEL: f"[{number}] " if side_by_side else "",
    }
    arguments = [*config_flags(hydra_cfg), *hydra_cfg.overrides.task]
    arguments += ["hydra.mode=RUN", f"hydra.run.dir={quote(str(folder.path))}"]
    trainer = composed.trainer
    return CellCommand(
        book.folder, number, folder.path.absolute(), arguments, environment, trainer.accelerator, trainer.devices or 1
    )


def config_flags(hydra_cfg: HydraConf) -> list[str]:
    """Return the flags with which a run of a sweep finds the config files of the sweep."""
    found = {source.provider: source.path for source in hydra_cfg.runtime.config_sources if source.schema == "file"}
    flags = [f"--config-dir={found['command-line']}"] if "command-line" in found else []
    if (main := found.get("main")) and Path(main) != conf_folder():
        flags.append(f"--config-path={main}")
    if hydra_cfg.job.config_name not in (None, "config"):
        flags.append(f"--config-name={hydra_cfg.job.config_name}")
    return flags + [text for text in hydra_cfg.overrides.hydra if text.lstrip("+").startswith("hydra.searchpath=")]


def task(composed: DictConfig, folder: RunFolder) -> dict[str, Any]:
    """Check the config, fill in open options, execute the task. Return the content of summary.json."""
    hydra_cfg = HydraConfig.get()
    inherited = inherit(composed, hydra_cfg.overrides.task, config_folders(hydra_cfg.runtime))
    ask_for_n(composed, hydra_cfg.overrides.task)
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise UserError(f"These keys need a value: {', '.join(missing)}. Give them on the command line, as KEY=VALUE.")
    OmegaConf.resolve(composed)
    cfg = OmegaConf.to_object(composed)
    assert isinstance(cfg, Config)
    from convrec_r1.config.checks import check
    from convrec_r1.config.resolve import resolve

    check(cfg)
    with large_imports():
        choices = [*([inherited] if inherited else []), *resolve(cfg)]
        # Imported late: it takes seconds, and a config error does not need it.
        from convrec_r1.tasks.run import execute

    return execute(cfg, folder, git_sha(), choices)


def git_sha() -> str | None:
    """Return the commit of this checkout, with + for uncommitted changes. None outside of a checkout."""
    here = Path(__file__).parent
    try:
        describe = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
