"""Runs side by side: what is one system, whether its numbers are right, and what is refused. The page: test_report."""

import json
import re
import sys

import numpy as np
import pytest
from fake_runs import ITEMS, N, conversation, list_with_hits, write_run
from omegaconf import OmegaConf

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_jsonl, write_json, write_text
from convrec_r1.config.naming import run_dir
from convrec_r1.evaluate.scoring import Evaluation
from convrec_r1.evaluate.statistics import crossed_difference, holm, paired_cluster_bootstrap
from convrec_r1.run.folder import RunFolder
from convrec_r1.studies.compare import compare_runs
from convrec_r1.studies.comparison import compare_systems
from convrec_r1.studies.config import CompareConfig
from convrec_r1.studies.naming import name_systems, telling_keys
from convrec_r1.studies.run_files import Reader, find_runs
from convrec_r1.studies.study import read_study
from convrec_r1.studies.tables import metrics_table

pytestmark = pytest.mark.long

ASKED = [conversation(i, [ITEMS[i]], cluster=f"user{i // 2}") for i in range(6)]
TOP, NONE = (1, 0, 0, 0, 0), (0, 0, 0, 0, 0)
# With one ground truth NDCG@5 is 1 / log2(1 + its rank): 1 at rank 1, 0.5 at rank 3, 0 without.
THIRD = (0, 0, 1, 0, 0)


def lists(*hits):
    return [list_with_hits(asked, h) for asked, h in zip(ASKED, hits, strict=True)]


GOOD, FAIR, POOR = lists(*[TOP] * 6), lists(*[TOP, THIRD] * 3), lists(*[NONE] * 6)


def write_pair(tmp_path, **options):
    """GRPO and Rank-GRPO, seeds 1 and 2."""
    return [
        write_run(tmp_path / "g1", ASKED, POOR, "algo=grpo", "seed=1", **options),
        write_run(tmp_path / "g2", ASKED, FAIR, "algo=grpo", "seed=2", **options),
        write_run(tmp_path / "r1", ASKED, FAIR, "algo=rank_grpo", "seed=1", **options),
        write_run(tmp_path / "r2", ASKED, GOOD, "algo=rank_grpo", "seed=2", **options),
    ]


def test_runs_that_differ_in_their_seed_are_one_system(tmp_path):
    study = read_study(write_pair(tmp_path))
    assert [(s.label, s.seeds) for s in study.systems] == [("GRPO", (1, 2)), ("Rank-GRPO", (1, 2))]
    assert study.baseline.label == "GRPO"
    assert study.metric == "ndcg@5"
    assert study.systems[0].values("ndcg@5").tolist() == [[0] * 6, [1, 0.5] * 3]
    keys = [key for key, _ in study.config_differences]
    assert keys == [
        *(f"algo.{k}" for k in ("advantage", "aggregation", "beta", "clip_high", "clip_low", "name", "ratio")),
        *(f"algo.shaping.{k}" for k in ("exact_eos", "overflow", "short_eos")),
    ]
    assert dict(study.config_differences)["algo.name"] == ["grpo", "rank_grpo"]


def test_numbers_by_hand(tmp_path):
    comparison = compare_systems(read_study(write_pair(tmp_path)), resamples=200)
    grpo, rank = comparison.means["ndcg@5"]
    assert grpo.per_seed == (0, 0.75)
    assert grpo.mean == 0.375
    assert grpo.seed_std == pytest.approx(0.75 / 2**0.5)
    assert rank.per_seed == (0.75, 1)
    assert rank.mean == 0.875
    (difference,) = comparison.differences["ndcg@5"]
    assert difference.mean == 0.5
    assert difference.per_seed == (0.75, 0.25)
    assert (difference.seeds, difference.paired_seeds, difference.conversations) == ((1, 2), True, 6)
    # Averaged over seeds every cluster of two has values 0.5 and 0.25 (GRPO), 1 and 0.75: a difference of 0.5 throughout.
    assert (difference.low, difference.high) == (0.5, 0.5)
    # V1 = 0. V2 = Var(0.75, 0.25) / 2 = 0.0625, so t = 0.5 / 0.25 = 2 with one degree of freedom: p = 1 - 2 atan(2) / pi
    assert difference.conversation_variance == 0
    assert difference.seed_variance == pytest.approx(0.0625)
    assert difference.crossed_p == pytest.approx(1 - 2 * np.arctan(2) / np.pi)
    assert comparison.mean("GRPO", "rank/3/hit").per_seed == (0, 0.5)
    assert comparison.mean("Rank-GRPO", "rank/1/hit").mean == 0.75


def test_tests_are_those_of_the_statistics(tmp_path):
    """With values that vary, against direct calls; samples of one run stand in another order in its file."""
    generator = np.random.default_rng(3)
    table = {
        name: [generator.choice(3, 6) for _ in range(2)] for name in ("grpo", "gspo", "rank_grpo")
    }  # fmt: skip
    shapes = (NONE, THIRD, TOP)
    paths = [
        write_run(tmp_path / f"{name}{s}", ASKED, lists(*(shapes[i] for i in row)), f"algo={name}", f"seed={s}")
        for name, rows in table.items()
        for s, row in enumerate(rows, start=1)
    ]
    turned = RunFolder(paths[-1]).eval / "test.jsonl"
    evaluation = Evaluation.read_jsonl(turned)
    Evaluation(evaluation.samples[::-1], evaluation.catalog_size).write_jsonl(turned)
    comparison = compare_systems(read_study(paths), resamples=300)
    values = {name: np.array([0, 0.5, 1])[np.array(rows)] for name, rows in table.items()}
    clusters = [c.cluster for c in ASKED]
    plain = [
        paired_cluster_bootstrap(values[name].mean(0), values["grpo"].mean(0), clusters, n_resamples=300)
        for name in ("gspo", "rank_grpo")
    ]
    crossed = [
        crossed_difference(values[name], values["grpo"], clusters, paired_seeds=True, n_resamples=300)
        for name in ("gspo", "rank_grpo")
    ]
    found = comparison.differences["ndcg@5"]
    assert [d.system for d in found] == ["GSPO", "Rank-GRPO"]
    for d, expected, with_seeds in zip(found, plain, crossed, strict=True):
        assert (d.mean, d.low, d.high, d.p) == pytest.approx(expected[:4])
        assert (d.crossed_low, d.crossed_high, d.crossed_p) == pytest.approx(with_seeds[1:4])
    assert [d.p_holm for d in found] == pytest.approx(holm([e.p_value for e in plain]))
    assert [d.crossed_p_holm for d in found] == pytest.approx(holm([e.p_value for e in crossed]))
    assert found[0].p_holm != found[0].p or found[1].p_holm != found[1].p


def test_what_one_seed_and_other_seeds_allow(tmp_path):
    paths = write_pair(tmp_path)
    single = read_study([paths[0], paths[3]])
    (d,) = compare_systems(single, resamples=50).differences["ndcg@5"]
    assert (d.mean, d.per_seed, d.paired_seeds) == (1, (), False)
    assert np.isnan([d.crossed_p, d.crossed_p_holm, d.crossed_low]).all()
    assert not np.isnan(d.p_holm)
    assert any("one seed only: GRPO, Rank-GRPO" in note for note in single.notes)
    third = write_run(tmp_path / "r3", ASKED, GOOD, "algo=rank_grpo", "seed=3")
    unequal = read_study([*paths, third])
    (d,) = compare_systems(unequal, resamples=50).differences["ndcg@5"]
    assert (d.paired_seeds, d.seeds, d.per_seed) == (False, (1, 2), (0.75, 0.25))
    assert not np.isnan(d.crossed_p)
    assert any("independent samples" in note for note in unequal.notes)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"data": {"catalog": "c", "train": "other", "test": "t", "demonstrations": "d"}}, "different training data"),
        ({"data": {"catalog": "other", "train": "t", "test": "t", "demonstrations": "d"}}, "different training data"),
        ({"data": {"catalog": "c", "train": "t", "test": "t", "demonstrations": "other"}}, "different training data"),
        ({"data": {"catalog": "c", "train": "t", "test": "other", "demonstrations": "d"}}, None),
        ({"code": {"version": "1", "sources": "other"}}, "different code"),
    ],
)
def test_a_comparison_says_that_runs_of_one_config_learned_from_other_data_or_by_other_code(tmp_path, changed, said):
    recorded = {
        "data": {"catalog": "c", "train": "t", "test": "t", "demonstrations": "d"},
        "code": {"version": "1", "sources": "s"},
    }
    first = write_run(tmp_path / "a", ASKED, GOOD, "algo=grpo")
    second = write_run(tmp_path / "b", ASKED, POOR, "algo=rank_grpo")
    evaluated = write_run(tmp_path / "e", ASKED, POOR, "task=eval", f"checkpoint={second}", "data.test_size=9")
    old = write_run(tmp_path / "c", ASKED, POOR, "algo=gspo")
    write_json(first / "inputs.json", recorded)
    write_json(second / "inputs.json", recorded | changed)
    for other in (second, evaluated):  # an evaluation is of the run that trained its checkpoint
        found = [note for note in read_study([first, other, old]).notes if "made from different" in note]
        assert len(found) == (said is not None)
        assert all(said in note and "GRPO, seed 1; " in note for note in found)


def test_notes_of_runs_stand_in_their_comparison(tmp_path):
    runs = [
        write_run(tmp_path / name, ASKED, GOOD, f"algo={name}", notes=["Chosen here."]) for name in ("grpo", "gspo")
    ]
    assert read_study(runs).notes.count("Chosen here.") == 1


def test_baselines_that_runs_brought_are_systems(tmp_path):
    paths = [
        write_run(
            tmp_path / f"{algo}{seed}", ASKED, GOOD, f"algo={algo}", f"seed={seed}",
            baselines={"popularity": POOR, "sft": FAIR if seed == 1 else POOR, "zero_shot": POOR},
        )
        for algo in ("grpo", "rank_grpo")
        for seed in (1, 2)
    ]  # fmt: skip
    study = read_study(paths, baseline="sft")
    assert [(s.label, s.seeds) for s in study.systems] == [
        ("Popularity", ()), ("Zero-shot", (1, 2)), ("SFT", (1, 2)), ("GRPO", (1, 2)), ("Rank-GRPO", (1, 2)),
    ]  # fmt: skip
    differences = {d.system: d for d in compare_systems(study, resamples=50).differences["ndcg@5"]}
    # What was not trained stands beside each seed of the other: GRPO's 1, 1 and SFT's 0.75, 0 against the one 0.
    assert differences["Popularity"].per_seed == (-0.75, 0)
    assert differences["Popularity"].paired_seeds
    assert not np.isnan(differences["Popularity"].crossed_p)
    # An SFT run of its own is the same system, and adds its seed.
    own = write_run(tmp_path / "sft3", ASKED, GOOD, "algo=sft", "seed=3")
    sft = next(s for s in read_study([*paths, own]).systems if s.kind == "sft")
    assert sft.seeds == (1, 2, 3)
    assert sft.values("ndcg@5").mean(1).tolist() == [0.75, 0, 1]
    assert [run.name for run in sft.runs] == ["sft3"]


def test_a_checkpoint_with_other_limits_is_another_system(tmp_path):
    """task=eval takes the run's limits, so other ones were asked for."""
    run = write_run(tmp_path / "run", ASKED, GOOD, "algo=rank_grpo", "eval.baselines=[]")
    given = ("task=eval", f"checkpoint={run}", "eval.baselines=[]")
    whole = write_run(tmp_path / "whole", ASKED, GOOD, *given)
    short = write_run(tmp_path / "short", ASKED, POOR, *given, "model.max_completion_length=20")
    study = read_study([whole, short])
    assert len(study.trained) == 2
    assert not study.left_out


def test_an_evaluated_checkpoint_is_a_system(tmp_path):
    paths = write_pair(tmp_path)
    of_run = write_run(tmp_path / "e1", ASKED, GOOD, "task=eval", f"checkpoint={paths[2]}")
    hub = write_run(tmp_path / "e2", ASKED, POOR, "task=eval", "checkpoint=someone/some-model")
    study = read_study([paths[0], paths[1], of_run, hub])
    assert [(s.label, s.seeds) for s in study.systems] == [
        ("GRPO", (1, 2)), ("Rank-GRPO", (1,)), ("some-model", ())
    ]  # fmt: skip


def test_names_say_what_tells_systems_apart():
    grpo = {"algo.name": "grpo", "reward.name": "exp_inf", "algo.mu": 1, "rl.lr": 1e-4, "sft.lr": 1e-3}
    assert name_systems(["grpo", "rank_grpo"], [grpo, grpo | {"algo.mu": 2}]) == ["GRPO", "Rank-GRPO"]
    decay = grpo | {"reward.name": "log_decay"}
    assert name_systems(["grpo", "grpo"], [grpo, decay]) == ["GRPO (exp_inf)", "GRPO (log_decay)"]
    two = [grpo, grpo | {"algo.mu": 2}, decay]
    assert name_systems(["grpo"] * 3, two) == ["GRPO (exp_inf), mu=1", "GRPO (exp_inf), mu=2", "GRPO (log_decay)"]
    rates = [grpo, grpo | {"rl.lr": 2e-4}, grpo | {"sft.lr": 2e-3}]
    assert name_systems(["grpo"] * 3, rates) == [
        "GRPO, rl.lr=0.0001, sft.lr=0.001", "GRPO, rl.lr=0.0002, sft.lr=0.001", "GRPO, rl.lr=0.0001, sft.lr=0.002"
    ]  # fmt: skip
    # As few keys as do; a key that older configs lack counts; texts that are cut to the same get numbers.
    assert telling_keys([grpo, grpo | {"algo.mu": 2, "rl.lr": 1.0}]) == ["algo.mu"]
    assert name_systems(["grpo"] * 2, [grpo, grpo | {"guard.action": "stop"}])[0] == "GRPO, action=absent"
    long = name_systems(["x"] * 2, [{"data.instruction": "a" * 50 + end} for end in "xy"])
    assert long[0] != long[1]


def test_folders_that_cannot_be_compared_are_listed(tmp_path):
    paths = write_pair(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, lacking in (("a", "summary.json"), ("b", "eval/test.jsonl")):
        (write_run(tmp_path / name, ASKED, GOOD, "algo=gspo") / lacking).unlink()
    write_text(tmp_path / "comparison" / "config.yaml", "task: {name: compare}\nseed: 1\n")
    write_run(tmp_path / "copy", ASKED, GOOD, "algo=rank_grpo", "seed=2")
    study = read_study(find_runs(str(tmp_path / "*")))
    assert {path.name: reason for path, reason in study.left_out} == {
        "a": "not finished: it has no summary.json",
        "b": "its evaluation, eval/test.jsonl, is missing",
        "comparison": "a run of task=compare, which has no evaluation to compare",
        "empty": "not the folder of a run: it has no config.yaml",
        "r2": "the same config and seed as copy",
    }
    assert len(study.runs) == len(paths)
    with pytest.raises(UserError, match=r"no finished run .*\n.*empty: not the folder"):
        read_study([tmp_path / "empty"])
    with pytest.raises(UserError, match="A comparison needs two systems"):
        read_study(paths[:2])


def test_patterns_name_runs_or_the_folder_that_holds_them(tmp_path):
    write_text(tmp_path / "study" / "one" / "config.yaml", "")
    write_text(tmp_path / "study" / "two" / "config.yaml", "")
    write_text(tmp_path / "study" / "multirun.yaml", "")
    both = [tmp_path / "study" / "one", tmp_path / "study" / "two"]
    assert find_runs(str(tmp_path / "study" / "*")) == both
    assert find_runs(str(tmp_path / "study")) == both
    assert find_runs([str(both[1]), str(tmp_path / "study" / "*")]) == both[::-1]
    (tmp_path / "study").rename(tmp_path / "study [1]?")
    assert [run.name for run in find_runs(str(tmp_path / "study [1]?" / "*"))] == ["one", "two"]
    assert [run.name for run in find_runs(str(tmp_path / "stud*" / "*"))] == ["one", "two"]
    beside = run_dir(_root_=OmegaConf.create({"task": {"name": "compare"}, "runs": str(tmp_path / "study [1]?" / "*")}))
    assert beside == str(tmp_path / "study [1]?" / "comparison")
    with pytest.raises(UserError, match=r"runs=.*nowhere.*no such folder"):
        find_runs(str(tmp_path / "nowhere*"))
    with pytest.raises(UserError, match="needs runs=PATTERN"):
        find_runs(None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 4, "ks": (4,)}, "n: 5 in g1; 4 in odd"),
        ({"overrides": ["eval.ideal=paper"]}, "eval.ideal: standard in g1; paper in odd"),
        ({"asked": 5}, "6 conversations in g1, 5 in odd, 5 the same in both"),
        ({"other": True}, "equal ids and different contents"),
        ({"overrides": ["data.seed=7"], "keep_conversations": False}, "data.seed: 0 in g1; 7 in odd"),
    ],
)
def test_runs_that_were_evaluated_otherwise_are_refused(tmp_path, change, message):
    paths = write_pair(tmp_path)
    overrides, size = change.pop("overrides", []), change.pop("asked", 6)
    asked = [conversation(i, [ITEMS[i]], cluster=f"user{i // 2}", seen=["Film T"]) for i in range(6)]
    asked = (asked if change.pop("other", False) else ASKED)[:size]
    n = change.get("n", N)
    texts = [list_with_hits(c, TOP[:n]) for c in asked]
    odd = write_run(tmp_path / "odd", asked, texts, "algo=gspo", *overrides, **change)
    with pytest.raises(UserError, match=re.escape(message)):
        read_study([*paths, odd])


def test_a_name_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    paths = write_pair(tmp_path)
    assert read_study(paths, baseline="Rank-GRPO").baseline.kind == "rank_grpo"
    assert read_study(paths, baseline="rank_grpo").baseline.kind == "rank_grpo"
    with pytest.raises(
        UserError, match=r"baseline=dapo: no system has this name\. Choose one of: GRPO \(grpo\); Rank-GRPO"
    ):
        read_study(paths, baseline="dapo")
    with pytest.raises(UserError, match=r"metric=ndcg@7: not measured in every run\. Choose one of .*ndcg@5"):
        read_study(paths, metric="ndcg@7")
    paths.append(write_run(tmp_path / "mu", ASKED, FAIR, "algo=grpo", "algo.mu=2"))
    with pytest.raises(
        UserError, match=r"2 systems have this name\. Choose one of them by its label: GRPO, mu=1; GRPO, mu=2"
    ):
        read_study(paths, baseline="grpo")


@pytest.mark.parametrize(
    ("file", "line", "text"),
    [
        ("metrics.jsonl", 2, '{"step": 1, "split": "train", "values": {}}\n{"step": 2,\n'),
        ("metrics.jsonl", 1, '{"step": 1, "split": "train"}\n'),
        ("metrics.jsonl", 1, '{"step": 1, "split": "train", "values": {"kl": "high"}}\n'),
        ("eval/test.jsonl", 1, '{"id": "c000"}\n'),
        ("summary.json", 2, '{"a": 1,\n "b": }\n'),
        ("config.yaml", 2, "seed: 1\nalgo: [\n"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, file, line, text):
    path = write_run(tmp_path / "run", ASKED, GOOD)
    (path / file).write_text(text)
    with pytest.raises(UserError, match=rf"{re.escape(str(path / file))}, line [{line}{line + 1}]:"):
        Reader().read(path)


def test_metrics_of_a_users_class_show_their_label(tmp_path):
    """The label comes from summary.json as text. One metric is of single lists, the other of all lists together."""
    labels = {
        "own/surprise": {"label": "Surprise of lists", "better": "high", "digits": 1},
        "own/total": {"label": "Total <b>", "better": "low", "digits": 2},
    }
    paths = write_pair(tmp_path / "runs", labels=labels)
    for place, path in enumerate(paths):
        file = RunFolder(path).eval / "test.jsonl"
        rows = read_jsonl(file)
        for number, row in enumerate(rows):
            row["metrics"]["own/surprise"] = place + number / 10
        write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
        summary = json.loads((path / "summary.json").read_text())
        summary["metrics"] = {summary["algo"]: {"own/total": 0.5 + place, "own/text": "no number"}}
        write_text(path / "summary.json", json.dumps(summary))
    study = read_study(paths)
    comparison = compare_systems(study, resamples=20)
    assert comparison.mean("GRPO", "own/total").per_seed == (0.5, 1.5)
    assert comparison.mean("GRPO", "own/surprise").mean == pytest.approx(0.75)
    assert comparison.differences["own/total"] == ()
    assert "own/text" not in comparison.metrics
    rows = {row[0]: row[1:] for row in metrics_table(study, comparison).rows}
    assert [cell.split("\n")[0] for cell in rows["Surprise of lists"]] == ["0.8", "2.8"]
    assert rows["Total <b>"] == ["1.00", "3.00"]
    path = compare_runs(paths, tmp_path / "out", CompareConfig(metric="own/surprise"), resamples=20)
    text = path.read_text(encoding="utf-8")
    assert "Surprise of lists: +2.0" in text
    assert "Total &lt;b&gt;" in text
    assert "own/surprise,2.75" in (path.parent / "metrics.csv").read_text()


def test_a_baseline_of_a_users_class_is_a_system(tmp_path):
    paths = write_pair(tmp_path, baselines={"neighbours": FAIR})
    study = read_study(paths)
    assert [(s.label, s.seeds) for s in study.systems] == [
        ("GRPO", (1, 2)), ("Rank-GRPO", (1, 2)), ("neighbours", ())
    ]  # fmt: skip


def test_nothing_that_a_run_left_is_imported_or_built(tmp_path, monkeypatch):
    """A `_target_` in config.yaml or summary.json names a module that leaves a trace when it is imported."""
    trace = tmp_path / "trace"
    for name in ("hostile_pack/__init__.py", "hostile_pack/inner.py", "hostile_module.py"):
        write_text(tmp_path / "path" / name, f"open({str(trace)!r}, 'a').write(__name__)\ndef run(**_): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    nodes = {"_target_": "hostile_pack.inner.run", "inner": [{"_target_": "hostile_module.run"}]}
    call = {"_target_": "os.system", "command": f"touch {trace}"}
    paths = write_pair(tmp_path / "runs", labels={"ndcg@5": {"label": "N", **call}}, metrics=call, best=nodes)
    hub = write_run(tmp_path / "runs" / "e", ASKED, GOOD, "task=eval", f"checkpoint={paths[2]}")
    for path in (*paths, hub):
        tree = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
        for section in ("reward", "match", "data", "rollout", "model", "algo", "logger", "compare", "eval", "hydra"):
            tree[section] = {**(tree.get(section) or {}), **nodes}
        tree |= {"metrics": {"own": nodes}, "baselines": {"own": nodes}, "callbacks": {"own": call}, **nodes}
        tree.pop("sources", None)
        write_text(path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(tree)))
    (RunFolder(paths[0]).eval / "test.conversations.jsonl").unlink()  # a report could think of loading the data
    report = compare_runs([*paths, hub], tmp_path / "out", CompareConfig(), resamples=20)
    assert report.exists()
    assert not trace.exists()
    assert not [name for name in sys.modules if name.startswith("hostile_")]
