"""What a command imports before it works: seconds of the start, told by modules, because seconds depend on the machine."""

import subprocess
import sys

import pytest
from support import PATHS

LARGE = (
    *("torch", "transformers", "pytorch_lightning", "pandas", "scipy", "sklearn", "matplotlib", "pyarrow"),
    *("datasets", "wandb", "peft", "vllm", "openai", "tokenizers", "gguf"),
)
"""Packages that take a tenth of a second and more."""
UNUSED = (
    "datasets",
    "wandb",
    "peft",
    "vllm",
    "openai",
    "gguf",
    "sentence_transformers",
    "torchvision",
    "ray",
    "tensorboard",
)
"""Packages that the default run does not use with logger=none."""


def imported(code: str, folder, packages: tuple[str, ...]) -> tuple[subprocess.CompletedProcess, set[str]]:
    """Run `code` in a fresh Python. Return the process and which of the packages it has imported when it ends."""
    told = f"import atexit, sys; atexit.register(lambda: print('LOADED', *({set(packages)!r} & set(sys.modules))))\n"
    done = subprocess.run([sys.executable, "-c", told + code], capture_output=True, text=True, env=PATHS, cwd=folder)
    return done, set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], 0, "Groups and their choices"),
        (["algo.clip_low=-1"], 2, "must be at least 0"),
        (["trainer.lr_=3"], 2, "lr_"),
        (["task=eval"], 2, "needs checkpoint"),
    ],
)
def test_help_and_refused_configs_import_nothing_large(arguments, status, said, tmp_path):
    code = f"import sys; sys.argv[1:] = {arguments!r}\nfrom convrec_r1.cli import main\nmain()"
    done, loaded = imported(code, tmp_path, LARGE)
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr
    assert not loaded


@pytest.mark.processes
def test_training_imports_nothing_that_it_does_not_use(tmp_path):
    done, loaded = imported("import convrec_r1.tasks.train", tmp_path, UNUSED)
    assert done.returncode == 0, done.stderr
    assert not loaded


@pytest.mark.processes
def test_the_packages_of_these_tests_would_be_seen(tmp_path):
    _, loaded = imported("import convrec_r1.evaluate.statistics", tmp_path, LARGE)
    assert "scipy" in loaded
