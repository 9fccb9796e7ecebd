"""The house: rooms import only rooms below them, and no two files import each other."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from support import ROOT

PACKAGE = ROOT / "convrec_r1"
ROOMS = (
    "base", "cluster", "lists", "matching", "data", "reward", "rl", "policy", "rollout", "run", "evaluate", "modules",
    "distill", "studies", "serve", "config", "doctor", "tasks", "cli", "__main__",
)  # fmt: skip
"""From the ground up."""


def modules() -> dict[str, Path]:
    """Module name -> file, without the package's own name."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(file: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, in functions and for type checkers too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "convrec_r1":
            module = node.module.partition(".")[2]
            names |= {f"{module}.{a.name}".strip(".") for a in node.names} | {module}
        elif isinstance(node, ast.Import):
            names |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("convrec_r1.")}
    return names & (modules().keys() - {""})


MODULES = modules()
IMPORTS = {name: imports(file) - {name} for name, file in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_module_has_a_room():
    assert {room(name) for name in MODULES if name} == set(ROOMS)


@pytest.mark.parametrize("upper", ROOMS)
def test_a_room_imports_rooms_below_it_only(upper):
    upward = [
        f"{name} imports {used}"
        for name, others in IMPORTS.items()
        for used in sorted(others)
        if room(name) == upper and ROOMS.index(room(used)) > ROOMS.index(upper)
    ]
    assert not upward


def test_no_two_files_import_each_other():
    # A package's __init__ names its modules on purpose: public names in one place.
    graph = {name: {u for u in used if MODULES[u].name != "__init__.py"} for name, used in IMPORTS.items()
             if MODULES[name].name != "__init__.py"}  # fmt: skip
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_the_check_sees_imports():
    """`tasks.train` trains: what it uses is known, so that an empty graph cannot pass."""
    assert {"modules.rl", "modules.fit", "config.schema"} <= IMPORTS["tasks.train"]


@pytest.mark.parametrize("name", [name for name in MODULES if name.endswith(".config") or name == "config.schema"])
def test_options_are_light(name):
    """Composing a config must not import torch: files of options import other options and base/ only."""
    heavy = [
        used for used in IMPORTS[name] if not (used.endswith(".config") or room(used) in ("base", "matching", "lists"))
    ]
    heavy = [used for used in heavy if MODULES[used].name != "__init__.py"]
    assert not heavy
