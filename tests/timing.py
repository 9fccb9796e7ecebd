"""A pytest plugin that orders and times the tests, with a time limit that does not depend on how busy the machine is.

Tests that share a fixture or a file are a group and run on one worker. A free worker takes the next group. The groups that took
longest when `tests/durations.json` was written start first; `--record-durations` writes that file.
"""

import json
import os
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import pytest

DURATIONS = Path(__file__).with_name("durations.json")
SLOWEST = 20
SEVERAL_FILES = ("ray",)
"""Groups of tests in several files that share a fixture of the session."""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("convrec-r1")
    group.addoption("--record-durations", action="store_true", help=f"write {DURATIONS.name} from this run")
    group.addoption(
        "--max-multiple", type=float, metavar="X",
        help="fail if the run takes more than X times the calibration loop that is timed before it",
    )  # fmt: skip


def calibrate() -> list[float]:
    """Return the seconds of a fixed amount of work on all cores, measured five times.

    One process per core, so that other load on the machine slows it down as it slows down the tests. Pure Python, so that no
    library update changes it.
    """
    times = []
    for _ in range(5):
        children = []
        start = time.perf_counter()
        for _ in range(CORES):
            if (pid := os.fork()) == 0:
                total = 0
                for i in range(10_000_000):
                    total += i & 7
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)
        times.append(time.perf_counter() - start)
    return times


def group_of(item: pytest.Item) -> str:
    """Return the group of a test: its file, except for tests that start processes.

    `processes("NAME")` gives the group of tests that share a fixture. With `processes` alone a test is its own group.
    """
    if mark := item.get_closest_marker("processes"):
        name = mark.args[0] if mark.args else item.nodeid
        return f"{item.path.stem}: {name}" if mark.args and name not in SEVERAL_FILES else name
    return item.path.stem


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    known = json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    first = {}
    for place, item in enumerate(items):
        first.setdefault(group_of(item), place)
    # Groups without a recorded duration start first: they may be long.
    items.sort(key=lambda item: (-known.get(group_of(item), 1e9), first[group_of(item)]))


def pytest_collection_finish(session: pytest.Session) -> None:
    if getattr(session.config.option, "loadgroup", False) and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("This pytest-xdist does not group tests under this pytest: install pytest<9.2.")


class Timing:
    """Timer of a test run, in the process that collects the results: the controller of pytest-xdist, or the only one."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.limit: float | None = config.getoption("max_multiple")
        self.tests: dict[str, float] = defaultdict(float)
        self.loops = calibrate()
        self.took = 0.0
        self.began = time.perf_counter()

    @property
    def multiple(self) -> float:
        return self.took / median(self.loops)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.tests[report.nodeid] += report.duration

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.took = time.perf_counter() - self.began
        self.loops += calibrate()  # the load of the machine may have changed
        if self.limit and self.multiple > self.limit and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self.config.getoption("record_durations"):
            groups: dict[str, float] = defaultdict(float)
            for nodeid, seconds in self.tests.items():
                groups[nodeid.rpartition("@")[2]] += seconds
            rows = sorted(groups.items(), key=lambda row: -row[1])
            DURATIONS.write_text(json.dumps({name: round(seconds, 1) for name, seconds in rows}, indent=0) + "\n")

    def pytest_terminal_summary(self, terminalreporter) -> None:
        write = terminalreporter.write_line
        write(f"The slowest {SLOWEST} of {len(self.tests)} tests, seconds")
        for nodeid, seconds in sorted(self.tests.items(), key=lambda row: -row[1])[:SLOWEST]:
            write(f"{seconds:7.1f}  {nodeid.rpartition('@')[0] or nodeid}")
        write(
            f"Total: {self.took / 60:.1f} min, {self.multiple:.0f} times the calibration loop of {median(self.loops):.2f} s"
        )
        if self.limit and self.multiple > self.limit:
            write(
                f"Too slow: more than {self.limit:g} times the loop. CONTRIBUTING.md, Tests, says what to do.", red=True
            )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "processes(group): starts processes; `make test-fast` leaves it out")
    config.addinivalue_line("markers", "long: trains or waits, for seconds; `make test-fast` leaves it out")
    config.addinivalue_line("markers", "slow(reason): of `make test-slow` alone, and why")
    timed = config.getoption("record_durations") or config.getoption("max_multiple")
    if timed and not hasattr(config, "workerinput"):
        if config.getoption("record_durations") and config.getoption("dist", "no") != "loadgroup":
            raise pytest.UsageError("--record-durations goes with -n 2 --dist loadgroup, where tests are in groups")
        config.pluginmanager.register(Timing(config))
