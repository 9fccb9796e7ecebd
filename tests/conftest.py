"""Fixtures. They import heavy packages inside, because pytest-xdist's controller imports this file and runs no test."""

import os
from pathlib import Path

import pytest
from hypothesis import settings
from shape_checks import install

install()  # before convrec_r1 is imported

# One thread: on a shared machine more threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

pytest_plugins = ["timing", "ray_nodes"]

# ci: the same examples in every run. dev: new examples in every run. nightly: 20 times as many (--hypothesis-profile).
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True)
settings.register_profile("dev", deadline=None, max_examples=100, print_blob=True)
settings.register_profile("nightly", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture
def policy():
    from support import tiny_policy

    return tiny_policy()


@pytest.fixture
def shared() -> Path:
    from support import SHARED

    if not SHARED.is_dir():
        pytest.skip("the real data (../shared beside the project) is not available")
    return SHARED


@pytest.fixture(autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)
