"""What a comparison and a run's report show: curves, examples, tables, figures, and a page that is safe to open."""

import csv
import io
import json
from html.parser import HTMLParser

import pytest
from fake_runs import ITEMS, N, conversation, judge, lifelike, list_with_hits, write_run
from rich.console import Console
from test_compare import ASKED, FAIR, GOOD, NONE, THIRD, TOP, write_pair

from convrec_r1.base.files import read_jsonl, write_text
from convrec_r1.evaluate.config import EvalConfig
from convrec_r1.evaluate.labels import styles
from convrec_r1.evaluate.statistics import cluster_bootstrap, paired_cluster_bootstrap
from convrec_r1.lists import Item, format
from convrec_r1.run.folder import RunFolder
from convrec_r1.studies import compare as task
from convrec_r1.studies import run_report
from convrec_r1.studies.comparison import compare_systems
from convrec_r1.studies.config import CompareConfig
from convrec_r1.studies.curves import Measure, curve, logged
from convrec_r1.studies.examples import RANDOM, SPREAD, choose_examples, mark_lines
from convrec_r1.studies.figures import Drawer
from convrec_r1.studies.numbers import MINUS, Writer, effect_size, p_value
from convrec_r1.studies.numbers import NONE as ABSENT
from convrec_r1.studies.run_files import Reader, find_runs
from convrec_r1.studies.study import read_study
from convrec_r1.studies.tables import verdict

pytestmark = pytest.mark.long


def test_curves_average_seeds_and_go_on_after_the_first_to_end(tmp_path):
    kl = Measure("kl", "", "", logged("kl"), smooth=False)
    runs = [
        Reader().read(write_run(tmp_path / "a", ASKED, GOOD, steps=[1, 2, 3, 4], curves={"kl": lambda s: s})),
        Reader().read(write_run(tmp_path / "b", ASKED, GOOD, "seed=2", steps=[1, 2], curves={"kl": lambda s: 3 * s})),
    ]
    histories = [run.history for run in runs]
    found = curve(histories, kl)
    assert found.steps.tolist() == [1, 2, 3, 4]
    assert found.mean.tolist() == [2, 4, 3, 4]
    assert (found.low[:2].tolist(), found.high[:2].tolist()) == ([1, 2], [3, 6])
    assert found.whole == 2
    assert curve(histories, kl._replace(value=logged("nothing"))) is None


def test_a_step_that_was_computed_again_counts_once(tmp_path):
    path = write_run(tmp_path / "a", ASKED, GOOD, steps=[1, 2, 2], curves={"kl": lambda s: s})
    rows = read_jsonl(path / "metrics.jsonl")
    rows[-1]["values"]["kl"] = 7.0
    write_text(path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert logged("kl")(Reader().read(path).history).to_dict() == {1: 1, 2: 7}


def test_lines_of_a_list_are_marked():
    asked = conversation(1, [ITEMS[0]], seen=["Film C"])
    text = "Sure:\n1. Film A (1990)\nFilm B (1991)\n\nFilm B (1991)\nFilm C (1992)\nFilm D (1993)"
    marked, more = mark_lines(text, (0, 1, 0, 0, 0), asked, "line")
    assert [(line.text, line.hit, line.note) for line in marked] == [
        ("Sure:", False, "not an item"),
        ("1. Film A (1990)", True, ""),
        ("Film B (1991)", False, ""),
        ("Film B (1991)", False, "repeat"),
        ("Film C (1992)", False, "seen"),
        ("Film D (1993)", False, "past the end"),
    ]
    assert more == 0
    # Where lines that do not parse hold no rank, the first item is at rank 1.
    marked, _ = mark_lines(text, (1, 0, 0, 0, 0), asked, "parsed")
    assert [line.hit for line in marked] == [False, True, False, False, False, False]


def test_examples_are_half_where_systems_differ_most(tmp_path):
    asked = [conversation(i, [ITEMS[i]]) for i in range(10)]
    texts = [list_with_hits(c, NONE) for c in asked]
    better = list(texts)
    better[7], better[3] = list_with_hits(asked[7], TOP), list_with_hits(asked[3], THIRD)
    paths = [
        write_run(tmp_path / "g", asked, texts, "algo=grpo"),
        write_run(tmp_path / "r", asked, better, "algo=rank_grpo"),
    ]
    study = read_study(paths)
    chosen = choose_examples(study, 5)
    assert [e.id for e in chosen[:2]] == ["c007", "c003"]
    assert [e.why for e in chosen] == [SPREAD] * 2 + [RANDOM] * 3  # a third that differs there is not
    assert len({e.id for e in chosen}) == 5
    assert chosen == choose_examples(study, 5)
    assert len(choose_examples(study, 50)) == 10
    (_, ((shown),)) = chosen[0].lists[1]
    assert (shown.value, shown.hits, shown.lines[0].hit) == (1, 1, True)
    assert chosen[0].conversation.ground_truth == (ITEMS[7],)


def test_conversations_that_are_gone_cost_no_numbers(tmp_path):
    study = read_study(write_pair(tmp_path, keep_conversations=False))
    assert study.conversations is None
    assert choose_examples(study, 2)[0].conversation is None


EVIL = '<script>alert("x")</script>'


class Page(HTMLParser):
    """Tags and visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A whole comparison in which everything that can be hostile is."""
    root = tmp_path_factory.mktemp("compare")
    item = Item(f"{EVIL} $\\frac{{", 1990)
    asked = [conversation(i, [item if i == 0 else ITEMS[i]], seen=[f"{EVIL} seen"]) for i in range(6)]
    texts = [format([ITEMS[i if i < 5 else 6]]) + f"\n{EVIL} in a list\n" + "filler\n" * 20 for i in range(6)]
    better = [list_with_hits(c, TOP) for c in asked]
    for seed in (1, 2):
        # A resumed run's log; metrics as RL logs them.
        for name, algo, lists_, last in (("g", "grpo", texts, 30), ("r", "rank_grpo", better, 30 if seed == 1 else 14)):
            run = write_run(
                root / "runs" / f"{name}{seed} {EVIL.replace('/', '')}", asked, lists_, f"algo={algo}", f"seed={seed}",
                "rl.steps=30",
                f"data.instruction='{EVIL} {algo}, {{n}}'", "data.name='_$evil$'",
                baselines={"popularity": texts, "sft": texts}, validation=[(0, 0.1), (10, 0.2 + seed / 10)],
                steps=range(1, last + 1), curves={name: (lambda s, name=name, seed=seed: lifelike(s, seed, 0.2)[name])
                                                  for name in lifelike(1, 1, 0.2)},
                stopped=None if last == 30 else {"step": 14, "why": f"collapse {EVIL}"},
            )  # fmt: skip
    write_text(run / "run.log", "2026-01-01 INFO convrec_r1.tasks.run: Resuming outputs/x\n")
    (root / "runs" / f"unfinished {EVIL.replace('/', '')}").mkdir()
    console = Console(file=io.StringIO(), width=80)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "console", console)
        path = task.compare_runs(find_runs(str(root / "runs" / "*")), root / "out", CompareConfig(), resamples=50)
    return path, console.file.getvalue()


def test_the_report_is_one_safe_file(report):
    path, _ = report
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert EVIL not in text
    shown = "".join(page.text)
    for hostile in (
        f"{EVIL} in a list",
        f"{EVIL} $\\frac{{ (1990)",
        f"{EVIL} seen",
        f"{EVIL} rank_grpo",
        f"collapse {EVIL}",
    ):
        assert hostile in shown, hostile
    assert not [a for a in page.attributes if a[1].startswith("on")]
    links = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert links
    assert all(link.startswith(("data:image/svg+xml;base64,", "#")) for link in links)
    assert "@import" not in text
    assert "url(" not in text
    ids = {value for _, name, value in page.attributes if name == "id"}
    assert {link[1:] for link in links if link.startswith("#")} <= ids


def test_the_report_says_what_it_should(report):
    path, terminal = report
    shown = " ".join("".join(Page(path.read_text(encoding="utf-8")).text).split())
    for part in (
        "2 trained systems on _$evil$", f"Rank-GRPO {MINUS} GRPO, NDCG@5", "These policies, other conversations",
        "Another training, other conversations", "stopped at step 14: collapse", ", resumed", "14 of 30",
        "Left out", "not the folder of a run", "systems differ most", "drawn at random", "✓", "abc123def456",
        "algo.advantage", "Holm", "50 resamples of 6 clusters", "6 independent conversations (clusters) are few",
    ):  # fmt: skip
        assert part in shown, part
    assert all(len(line) <= 80 for line in terminal.splitlines() if not line.startswith("Report: "))
    assert "Left out:" in terminal
    assert "report.html" in terminal.replace("\n", "")


def test_tables_hold_all_numbers(report):
    path, _ = report
    tables = {
        name: list(csv.DictReader((path.parent / f"{name}.csv").open())) for name in ("metrics", "differences", "runs")
    }
    rows = {(row["system"], row["metric"]): row for row in tables["metrics"]}
    # Film A to E at rank 1; conversation c000 wants something that is not in the catalog.
    assert float(rows["GRPO", "ndcg@5"]["mean"]) == pytest.approx(4 / 6)
    assert rows["Popularity", "ndcg@5"]["seed_1"] == ""
    assert float(rows["Popularity", "ndcg@5"]["untrained"]) == pytest.approx(4 / 6)
    assert rows["GRPO", "catalog/coverage"]["low"] == ""
    difference = next(row for row in tables["differences"] if (row["system"], row["metric"]) == ("Rank-GRPO", "ndcg@5"))
    assert (difference["baseline"], difference["paired_seeds"]) == ("GRPO", "true")
    assert {"p", "p_holm", "crossed_p", "crossed_p_holm", "effect_size", "seed_1", "seed_2"} <= difference.keys()
    run = next(row for row in tables["runs"] if row["run"].startswith("r2"))
    assert (run["system"], run["seed"], run["steps"], run["stopped_at"], run["resumed"]) == (
        "Rank-GRPO", "2", "14", "14", "true",
    )  # fmt: skip
    assert run["algo.name"] == "rank_grpo"
    assert "algo.group_size" not in run  # the same in all runs
    assert float(run["ndcg@5"]) == pytest.approx(5 / 6)


def test_a_figure_for_what_was_logged_and_no_other(report, tmp_path):
    path, _ = report
    drawn = {file.stem for file in (path.parent / "figures").glob("*.png")}
    assert {
        "validation", "reward", "rank_relevance", "rank_difference", "rank_reward", "kl", "entropy", "clip", "length",
        "repeats", "catalog", "seconds", "tokens",
    } <= drawn  # fmt: skip
    assert "ndcg_at_k" not in drawn  # one cut-off is no curve
    study = read_study(write_pair(tmp_path))
    figures = Drawer(study, compare_systems(study, resamples=20)).report(tmp_path / "figures")
    assert [figure.name for figure in figures] == ["rank_relevance", "rank_difference"]
    assert all(figure.svg.startswith(b"<?xml") for figure in figures)


def test_systems_keep_their_colours():
    found = styles(["popularity", "", "sft", *[""] * 6, "sft"])
    assert (found[0].color, found[2].color) == ("#999999", "#009E73")
    assert len(set(found)) == len(found), "a second SFT, and more systems than colours, look different still"


def test_numbers_for_people():
    write = Writer()
    assert write.number(0.12345, "ndcg@10") == "0.1235"
    assert write.number(0.987, "catalog/valid") == "98.7 %"
    assert write.number(float("nan")) == ABSENT
    assert write.signed(0.02, "ndcg@10") == "+0.0200"
    assert write.signed(-0.00001, "ndcg@10") == "0.0000"
    assert write.signed(-0.013, "catalog/valid") == f"{MINUS}1.3"
    assert [effect_size(value) for value in (0.123, -2.0, 1e9, float("nan"))] == ["0.12", f"{MINUS}2.00", "∞", ABSENT]
    assert (p_value(0.0004), p_value(0.0123)) == ("< 0.001", "0.012")


def test_the_verdict_answers_both_questions(tmp_path):
    (d,) = compare_systems(read_study(write_pair(tmp_path)), resamples=200).differences["ndcg@5"]
    for p, crossed, words in (
        (0.2, 0.01, "no difference between these policies is shown"),
        (0.01, 0.2, "is not shown for another training"),
        (0.01, float("nan"), "with one seed there is no conclusion"),
        (0.05, 0.05, "and for another training"),
    ):
        d.p_holm, d.crossed_p_holm = p, crossed
        assert words in verdict(d, 0.95)


def test_a_runs_report_is_a_study_of_one(tmp_path, monkeypatch):
    folder = RunFolder(write_run(tmp_path, ASKED, GOOD, steps=[1, 2], curves={"reward": float}))
    monkeypatch.setattr(run_report, "console", console := Console(file=io.StringIO(), width=80))
    evaluations = {"popularity": judge(FAIR, ASKED), "rank_grpo": judge(GOOD, ASKED[::-1])}
    with pytest.raises(ValueError, match="same conversations"):
        run_report.report(
            folder, {"sft": judge(GOOD[:5], ASKED[:5]), **evaluations}, EvalConfig(), run_report.Wording("x", 1), n=N
        )
    evaluations["rank_grpo"] = judge(GOOD, ASKED)
    options = EvalConfig(ks=[3, 5, 9], resamples=200)
    labels = {"mrr": {"label": "Own name", "better": "high", "digits": 4}}
    wording = run_report.Wording("tiny | movieland", 1, labels=labels)
    found = run_report.report(folder, evaluations, options, wording, n=N)
    clusters = [c.cluster for c in ASKED]
    values = [judge(lists, ASKED).values("ndcg@5")[0] for lists in (GOOD, FAIR)]
    by_hand = paired_cluster_bootstrap(*values, clusters, n_resamples=200)
    (paired,) = found["paired"]
    assert (paired["against"], paired["metric"], paired["p_holm"]) == ("popularity", "ndcg@5", by_hand.p_value)
    assert [paired[key] for key in ("mean", "low", "high", "p_value")] == list(by_hand)[:4]
    assert paired["effect_size"] is None, "all clusters differ by the same: infinite, which JSON does not have"
    assert found["intervals"]["popularity"]["ndcg@5"] == list(
        cluster_bootstrap(values[1], clusters, n_resamples=200)[1:]
    )
    assert found["metrics"]["rank_grpo"] == evaluations["rank_grpo"].summary()
    assert (found["algo"], found["labels"], found["conversations"]) == ("rank_grpo", labels, 6)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# Rank-GRPO, tiny \\| movieland, seed 1\n")
    assert f"Rank-GRPO {MINUS} Popularity, NDCG@5: +{by_hand.mean:.4f}" in text
    assert (tmp_path / "figures" / "run.png").read_bytes().startswith(b"\x89PNG")
    assert all(len(line) <= 80 for line in console.file.getvalue().splitlines() if line[0] in "┏┃┡│└")
