"""Fixtures."""

from pathlib import Path

import pytest
import torch
from shape_checks import install

install()  # before convrec_r1 is imported

import support  # noqa: E402


@pytest.fixture
def policy():
    return support.tiny_policy()


@pytest.fixture
def shared() -> Path:
    if not support.SHARED.is_dir():
        pytest.skip("the real data (../shared beside the project) is not here")
    return support.SHARED


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
