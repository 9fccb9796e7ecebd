"""The targets of experiments/fuzz.py for a moment each: only errors that are meant for people come out."""

import sys

import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "experiments"))

from fuzz import TARGETS, hunt

pytestmark = pytest.mark.long


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_cases_of_each(name):
    found = hunt(TARGETS[name], examples=20)
    assert found.cases > 0
    assert not {where: fault for where, fault in found.faults.items() if where != "slow"}
