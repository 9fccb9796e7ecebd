"""experiments/bench_peers: ratios, tables and turns, and our side for a moment. TRL is not installed here."""

import json
import sys
from pathlib import Path

import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "experiments" / "bench_peers"))

import growth
import results
import run

TALKS = """
import json, sys, time
print(json.dumps({"event": "ready", "resident_mib": 1.0}), flush=True)
for number, _ in enumerate(sys.stdin):
    DO
    print(json.dumps({"event": "step", "seconds": float(number)}), flush=True)
"""


def steps(*seconds: float, rollout: float = 0.5, new_tokens: float = 320, others: float = 0.0, **more) -> dict:
    made = [
        {"seconds": s, "rollout": s * rollout, "train": s * (1 - rollout), "new_tokens": new_tokens, "peak_mib": 100 + s,
         "others": others}
        for s in seconds
    ]  # fmt: skip
    return {"steps": made, "threads": 2, "torch": "2", **more}


def result(**cases: dict) -> dict:
    return {
        "settings": {"prompts": 2, "new_tokens": 20, "repeats": 3, "warm_up": 1},
        "machine": "a CPU, 2 threads",
        "workload": {"parameters": 1_025_760, "vocabulary": 2048, "data": "reddit_v2"},
        "peer": {"trl": "1.16.0", "transformers": "5.19.0"},
        "cases": cases,
    }


def test_a_ratio_is_of_medians_and_its_spread_of_turns():
    case = {"trl": steps(6, 9, 30, rollout=0.2), "ours": steps(3, 2, 4, rollout=0.8)}
    assert results.ratio(case) == (3.0, 2.0, 7.5)
    assert results.ratio(case, "rollout").middle == pytest.approx(9 * 0.2 / (3 * 0.8))
    assert str(results.ratio(case)) == "3.00 (2.00-7.50)"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ours": steps(1.0, new_tokens=319)}, "ours sampled [319] tokens a step instead of 320"),
        ({"trl": steps()}, "trl finished no measured step"),
        ({"ours": steps(1.0, threads=1)}, "other threads"),
        ({"ours": steps(1.0) | {"torch": "3"}}, "another torch"),
    ],
)
def test_what_cannot_be_compared_has_no_ratio(change, said):
    fair = {"trl": steps(2.0), "ours": steps(1.0)}
    assert results.problem(fair, 320) is None
    assert said in results.problem(fair | change, 320)


def test_table_and_figure(tmp_path):
    fast = {"trl": steps(9.0, 9.0, 9.0), "ours": steps(3.0, 3.0, 3.0)}
    slow = {"trl": steps(1.0, 1.0, others=0.5), "ours": steps(2.0, 2.0)}
    made = result(**{"2000x8": fast, "250x16": slow, "500x8": {"problem": "trl: it ended"}})
    page, figure = results.write(made, tmp_path / "bench.json")
    lines = page.read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert rows == [
        "| 250 | 16 | 1.00 | 2.00 | 0.50 (0.50-0.50) | 0.50 | 0.50 | 101 | 102 |",
        "| 2,000 | 8 | 9.00 | 3.00 | 3.00 (3.00-3.00) | 3.00 | 3.00 | 109 | 103 |",
    ]
    assert "250x16: 2 steps instead of 3: the time limit." in lines
    assert "500x8: no result, trl: it ended." in lines
    assert "Ours is slower: 250x16." in lines
    assert "Other processes kept more than 0.2 cores busy during steps of 250x16: measure again." in lines
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_table_is_put_between_its_marks(tmp_path):
    page = tmp_path / "speed.md"
    page.write_text((ROOT / "docs" / "speed.md").read_text())
    for text in ("old numbers", "new numbers"):
        results.insert(text, page)
    lines = page.read_text().splitlines()
    at = lines.index(results.PEERS_HERE)
    assert lines[at + 1 : at + 5] == ["", "new numbers", "", results.END]
    results.insert("curves", page, results.GROWTH_HERE)
    assert "new numbers\n" in page.read_text()
    assert page.read_text().endswith(f"{results.GROWTH_HERE}\n\ncurves\n\n{results.END}\n")
    page.write_text(f"{results.END} {results.PEERS_HERE}")
    with pytest.raises(ValueError, match="has no <!--"):
        results.insert("numbers", page)


@pytest.mark.parametrize("name", ["500", "500x", "x8", "500x1", "0x8", "5e2x8", "500x8x2"])
def test_a_case_is_named_by_length_and_group(name, capsys):
    with pytest.raises(SystemExit):
        run.parsed(["--cases", name, "--peer-python", sys.executable])
    assert f"--cases {name}: a case is TOKENSxG" in capsys.readouterr().err


def test_results_of_other_settings_are_not_mixed(tmp_path):
    out = tmp_path / "bench.json"
    options = ["--peer-python", sys.executable, "--out", str(out), "--cases", "250x8"]
    given = run.parsed(options)
    kept = result() | {"settings": run.settings(given), "machine": run.machine(given.threads)}
    kept["cases"] = {"250x8": {"trl": steps(2.0), "ours": steps(1.0)}}
    out.write_text(json.dumps(kept))
    assert run.main(options) == 0  # nothing is started: the case has its result
    assert "| 250 | 8 | 2.00 | 1.00 |" in out.with_suffix(".md").read_text()
    with pytest.raises(SystemExit, match="other settings"):
        run.main([*options, "--prompts", "3"])
    assert run.earlier(run.parsed([*options, "--prompts", "3", "--fresh"]))["cases"] == {}


def test_a_disturbed_case_is_measured_again():
    fair = {"trl": steps(2.0), "ours": steps(1.0)}
    assert run.is_good(fair)
    assert not run.is_good(fair | {"ours": steps(1.0, others=0.3)})
    assert not run.is_good({"problem": "trl: it ended"})
    assert not run.is_good(None)


def test_what_other_processes_use_is_told(tmp_path):
    with talking(tmp_path, "while time.process_time() < 0.4 * (number + 1): pass") as peer:
        peer.read("ready", 20)
        own, busy = run.cpu_seconds(peer._process.pid), run.busy_seconds()
        reports = [peer.step(20) for _ in range(2)]
        own, busy = run.cpu_seconds(peer._process.pid) - own, run.busy_seconds() - busy
    assert busy > own - 0.1  # counted in hundredths of a second, of each core
    assert 0.4 <= own < 1
    assert all(report["others"] >= 0 for report in reports)
    assert run.cpu_seconds(2**30) == 0


def talking(tmp_path: Path, do: str):
    return run.started("it", [sys.executable, "-c", TALKS.replace("DO", do)], {}, tmp_path / "log")


def test_a_peer_makes_a_step_when_it_is_told_to(tmp_path):
    with talking(tmp_path, "pass") as peer:
        assert peer.read("ready", 20) == {"resident_mib": 1.0}
        assert [peer.step(20)["seconds"] for _ in range(2)] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("do", "within", "said"),
    [
        ("time.sleep(60)", 0.3, "it: no step within 0 s"),
        ("sys.exit('out of memory')", 20, "it: it ended; its last words: out of memory"),
        ("print(json.dumps({'event': 'other'}), flush=True)", 20, "it reported"),
    ],
)
def test_a_peer_that_is_silent_is_told_apart(do, within, said, tmp_path):
    with talking(tmp_path, do) as peer:
        peer.read("ready", 20)
        with pytest.raises(run.Silent, match=said):
            peer.step(within)
    assert peer._process.poll() is not None


def test_a_catalog_is_judged_and_scored():
    point = growth.catalog(300, lists=4)
    assert point.keys() == {"index", "judge", "score", "index_mib"}
    assert all(value > 0 for name, value in point.items() if name != "index_mib")


def test_a_figure_of_growth(tmp_path):
    step = {"rollout": 1.0, "train": 2.0, "rollout_mib": 10.0, "train_mib": 20.0}
    points = {"prompt": {"1000": step, "250": step}, "catalog": {"1000": growth.catalog(300, lists=4)}}
    assert growth.figure(points, tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.processes
def test_our_side_samples_what_it_is_told_to(tmp_path):
    from workload import prepare

    about = prepare(tmp_path, [96], 2, seed=1)
    assert about["parameters"] > 1e6
    read = json.loads((tmp_path / "prompts-96.json").read_text())
    assert all(80 < len(prompt["ids"]) <= 96 for prompt in read)
    options = run.parsed(
        ["--peer-python", sys.executable, "--cases", "96x2", "--prompts", "2", "--new-tokens", "24", "--repeats", "1",
         "--warm-up", "0", "--threads", "1"]
    )  # fmt: skip
    command, environment = run.commands(options, tmp_path, 96, 2)["ours"]
    with run.started("ours", command, environment, tmp_path / "log") as peer:
        ready = peer.read("ready", 120)
        step = peer.step(120)
    assert ready["threads"] == 1
    assert step["new_tokens"] == 2 * 2 * 24  # no list ended early
    assert step["seconds"] >= step["rollout"] + step["train"] > 0
    assert step["peak_mib"] >= ready["resident_mib"] > 0
