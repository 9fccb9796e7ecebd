"""The collapse guard: when a limit is armed, when it breaks, that it says what broke, and that it remembers."""

import math

import pytest

from convrec_r1.modules.config import GuardConfig
from convrec_r1.modules.guard import Guard, limits

QUIET = {
    "min_list_length": None, "max_list_length": None, "min_in_catalog": None, "max_kl": None, "min_entropy": None,
}  # fmt: skip


def guard(window: int = 2, n: int = 20, **set_limits) -> Guard:
    return Guard(GuardConfig(window=window, **(QUIET | set_limits)), n)


def feed(watch: Guard, metric: str, values: list[float]) -> list[tuple[int, str]]:
    """(step, what broke) for each step at which something did."""
    return [(step, why) for step, value in enumerate(values, 1) for why in watch.observe({metric: value})]


def test_it_breaks_where_the_mean_of_the_window_does():
    found = feed(guard(min_in_catalog=0.5), "catalog/valid", [1.0, 1.0, 0.3, 0.6, 0.3, 0.2])
    # means of two: 1.0, 0.65, 0.45 (breaks at step 4); below ever since, and said once.
    assert [step for step, _ in found] == [4]
    assert found[0][1] == "catalog/valid = 0.45 is below 0.5 (guard.min_in_catalog=0.5), mean of 2 steps"


def test_one_bad_step_is_no_collapse():
    assert feed(guard(window=5, max_kl=1.0), "kl", [0.1, 0.1, 0.1, 0.1, 3.0, 0.1, 0.1, 0.1]) == []


def test_a_run_that_starts_outside_is_watched_from_where_it_comes_in():
    """R1-zero: random weights name nothing that is in the catalog, and that is no collapse; losing it again is."""
    values = [0.0, 0.0, 0.0, 0.4, 0.8, 0.9, 0.1, 0.1]
    assert [step for step, _ in feed(guard(min_in_catalog=0.5), "catalog/valid", values)] == [7 + 1]


def test_a_limit_that_is_hovered_around_is_told_once_and_others_still_break():
    watch = guard(max_kl=1.0, min_entropy=0.1)
    assert [step for step, _ in feed(watch, "kl", [0.5, 0.5, 2.0, 2.0, 0.5, 0.5, 2.0, 2.0])] == [3]
    assert [step for step, _ in feed(watch, "entropy", [0.5, 0.5, 0.0, 0.0])] == [4]


def test_lengths_are_shares_of_n():
    assert [s for s, _ in feed(guard(window=1, n=10, max_list_length=1.5), "list/length", [10, 14.9, 15.0, 15.1])] == [
        4
    ]
    assert [s for s, _ in feed(guard(window=1, n=10, min_list_length=0.5), "list/length", [10, 5.0, 4.9])] == [3]


def test_no_number_is_within_no_limit():
    ((step, why),) = feed(guard(window=1, max_kl=1.0), "kl", [0.1, math.nan])
    assert step == 2
    assert "is NaN" in why


def test_null_and_absent_metrics_watch_nothing():
    assert limits(GuardConfig(**QUIET), 20) == []
    assert feed(guard(max_kl=1.0), "entropy", [9.0] * 5) == []
    assert len(limits(GuardConfig(), 20)) == 5, "by default: list length (both ways), catalog, kl, entropy"


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_guard_that_goes_on_judges_as_if_it_had_never_stopped(cut):
    values = [0.0, 0.9, 0.9, 0.4, 0.2, 0.9, 0.9, 0.0]
    whole = feed(guard(min_in_catalog=0.5), "catalog/valid", values)
    first = guard(min_in_catalog=0.5)
    before = feed(first, "catalog/valid", values[:cut])
    second = guard(min_in_catalog=0.5)
    second.load_state_dict(first.state_dict())
    after = [(step + cut, why) for step, why in feed(second, "catalog/valid", values[cut:])]
    assert before + after == whole
    assert [step for step, _ in whole] == [5], "armed at 3 and told at 5, whatever comes later"
