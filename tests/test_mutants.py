"""experiments/mutants.py plants faults by their text: each text stands in its file exactly once."""

import importlib.util

import pytest
from support import ROOT

spec = importlib.util.spec_from_file_location("mutants", ROOT / "experiments" / "mutants.py")
assert spec is not None
assert spec.loader is not None
mutants = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutants)


@pytest.mark.parametrize("fault", mutants.FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_planted(fault):
    assert (ROOT / "convrec_r1" / fault.file).read_text(encoding="utf-8").count(fault.old) == 1
    assert fault.new != fault.old
    assert all((ROOT / "tests" / f"test_{name}.py").is_file() for name in fault.tests)
