"""`python -m convrec_r1`: compose the config, check it, run its task in its folder."""

import os
import subprocess
import sys
import traceback
from pathlib import Path

# Before torch starts its threads: on a busy machine, threads that spin while they wait take the cores from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from convrec_r1.config.files import conf_folder, expand
from convrec_r1.config.schema import Config
from convrec_r1.errors import UserError
from convrec_r1.run.folder import RunFolder, run_name

USER_ERROR = 2

ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver("run_name", run_name, replace=True)
OmegaConf.register_new_resolver("mul", lambda a, b: int(a) * int(b), replace=True)


def main() -> None:
    """The command line. Exit status: 0; 2 for what the user can put right; 1 for a fault of ours (with its trace)."""
    failures: list[int] = []
    started: list[str] = []
    sys.argv[1:] = expand(sys.argv[1:])

    @hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
    def app(composed: DictConfig) -> None:
        started.append("job")
        status = run(composed)
        if status:
            failures.append(status)
            if HydraConfig.get().mode is RunMode.RUN:
                sys.exit(status)
            # In a sweep the other runs go on; the sweep as a whole then fails.

    try:
        app()
    except SystemExit as stop:
        # Hydra prints what is wrong with a config (an unknown key, a bad type) without a trace, and exits with 1.
        sys.exit(USER_ERROR if stop.code == 1 and not started else stop.code)
    if failures:
        print(f"{len(failures)} of {len(started)} runs failed.", file=sys.stderr)
        sys.exit(max(failures))


def run(composed: DictConfig) -> int:
    """One run in its own folder. Returns the exit status."""
    hydra_cfg = HydraConfig.get()
    folder = RunFolder(Path(hydra_cfg.runtime.output_dir))
    try:
        task(composed, folder)
    except (UserError, OmegaConfBaseException) as error:
        print(f"\n{folder.path.name}: {error}" if hydra_cfg.mode is RunMode.MULTIRUN else f"\n{error}", file=sys.stderr)
        folder.discard_if_empty(Path(composed.outputs))
        return USER_ERROR
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def task(composed: DictConfig, folder: RunFolder) -> None:
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise UserError(f"These keys need a value: {', '.join(missing)}. Give them on the command line, as KEY=VALUE.")
    OmegaConf.resolve(composed)
    cfg: Config = OmegaConf.to_object(composed)
    from convrec_r1.config.checks import check

    check(cfg)
    # Seconds to import, and not needed to say what is wrong with a config.
    from convrec_r1.tasks.run import execute

    execute(cfg, composed, folder, git_sha())


def git_sha() -> str | None:
    """The commit of the checkout that this code is run from, with + where it was changed; None outside of one."""
    here = Path(__file__).parent
    try:
        describe = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


if __name__ == "__main__":
    main()
