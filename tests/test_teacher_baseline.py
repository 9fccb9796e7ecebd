"""The teacher as a baseline: asked for the evaluation split, cached, counted and priced like Stage 1."""

from pathlib import Path

import pytest
from fake_openai import FakeOpenAI
from support import SMOKE, compose_config, make_config, run_command, unresolved_config

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_json, read_jsonl, write_jsonl
from convrec_r1.config.checks import problems
from convrec_r1.config.parts import evaluator, matching
from convrec_r1.data.load import load_data
from convrec_r1.evaluate.baselines import chosen_baselines
from convrec_r1.run.identity import as_dict, identity, left_out

SMALL = ("data.train_size=30", "data.validation_size=4", "data.test_size=8", "n=5", "logger=none")
ASKED = "eval.baselines=[popularity,teacher]"
KEY = "sk-this-is-a-secret"


def over_http(server: FakeOpenAI, *overrides: str) -> tuple[str, ...]:
    return (ASKED, "teacher=openai", "teacher.model=gpt-x", f"teacher.base_url={server.url}", "teacher.price_in=2",
            "teacher.price_out=8", *SMALL, *overrides)  # fmt: skip


def judged(tmp_path, *overrides: str):
    cfg = make_config(ASKED, f"outputs={tmp_path}", *SMALL, *overrides)
    data = load_data(cfg.data, cfg.n, matching(cfg))
    return evaluator(cfg, data), data


def test_its_answers_are_scored_unchanged_and_asked_once(tmp_path):
    found, data = judged(tmp_path)
    evaluation = found.baseline("teacher", data["test"], data["train"])
    assert [sample.id for sample in evaluation.samples] == [c.id for c in data["test"]]
    assert all(sample.text.startswith("1. ") for sample in evaluation.samples), "as it was written, with its numbers"
    assert (
        evaluation.summary()["ndcg@5"] > found.baseline("popularity", data["test"], data["train"]).summary()["ndcg@5"]
    )
    first = found.baselines["teacher"].asked
    different = len({c.messages for c in data["test"]})
    assert (first["kinds"]["recommend"]["asked"], first["kinds"]["recommend"]["from_cache"]) == (different, 0)
    again, _ = judged(tmp_path)
    assert again.baseline("teacher", data["test"], data["train"]) == evaluation
    second = again.baselines["teacher"].asked
    assert (second["kinds"]["recommend"]["asked"], second["kinds"]["recommend"]["from_cache"]) == (0, different)
    assert f"0 questions asked, {different} answered before" in second["note"]


def test_nobody_pays_who_did_not_ask_for_it():
    nodes = unresolved_config().baselines
    assert chosen_baselines(nodes, None) == ["popularity", "zero_shot", "sft"]
    assert chosen_baselines(nodes, ["teacher"]) == ["teacher"]


def test_the_teacher_is_part_of_a_run_that_asks_it_and_of_no_other():
    def keys(*overrides: str) -> dict:
        cfg = compose_config(*overrides)
        return {k: v for k, v in identity(as_dict(cfg), left_out(cfg)).items() if k.startswith(("teacher", "distill"))}

    assert keys("teacher=openai", "teacher.model=a") == {}
    a, b = (keys(ASKED, "teacher=openai", f"teacher.model={name}") for name in "ab")
    assert {k for k in a if a[k] != b[k]} == {"teacher.model"}
    assert not any(k.startswith("distill") for k in a)
    assert a == keys(ASKED, "teacher=openai", "teacher.model=a", "teacher.concurrency=3", "teacher.price_in=1")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["teacher=openai"], "teacher=openai needs teacher.model=NAME"),
        (["data=jsonl", f"data.path={Path(__file__).parent}"], "teacher=simulated answers about movieland only"),
    ],
)
def test_misuse(overrides, says):
    assert any(says in line for line in problems(unresolved_config(ASKED, *overrides)))
    assert not any(says in line for line in problems(unresolved_config(*overrides)))


def test_a_dry_run_needs_a_teacher_that_would_be_asked():
    assert any("dry_run" in line for line in problems(unresolved_config("distill.dry_run=true")))
    assert not any("dry_run" in line for line in problems(unresolved_config("distill.dry_run=true", ASKED)))


def test_without_an_answer_there_is_no_score(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeOpenAI(lambda question, times: "401") as server:
        cfg = make_config(*over_http(server, f"outputs={tmp_path}"))
        data = load_data(cfg.data, cfg.n, matching(cfg))
        with pytest.raises(UserError, match="key"):
            evaluator(cfg, data).baseline("teacher", data["test"], data["train"])


@pytest.mark.processes
@pytest.mark.long
def test_over_http_it_is_forecast_asked_once_counted_and_priced(tmp_path):
    lists = [{"id": f"movieland-test-{number:05d}", "text": "Heat (1995)"} for number in range(8)]
    write_jsonl(tmp_path / "x.jsonl", lists)
    env = {"OPENAI_API_KEY": KEY}
    with FakeOpenAI(lambda question, times: "429" if times == 0 and len(question) % 2 else None) as server:
        command = over_http(server, "task=score", "lists=x.jsonl")
        dry = run_command(*command, "distill.dry_run=true", cwd=tmp_path, **env)
        assert dry.returncode == 0, dry.stderr
        assert "would be asked" in dry.stdout
        assert "recommend" in dry.stdout
        assert " all " not in dry.stdout, "one kind of question needs no sum"
        assert not server.asked
        assert not list(tmp_path.glob("outputs/main/*"))
        done = run_command(*command, cwd=tmp_path, **env)
        assert done.returncode == 0, done.stderr
        (folder,) = tmp_path.glob("outputs/main/*")
        summary = read_json(folder / "summary.json")
        kind = summary["asked"]["teacher"]["kinds"]["recommend"]
        assert kind["asked"] == len(server.delivered) == sum(server.delivered.values())
        dollars = (kind["prompt_tokens"] * 2 + kind["completion_tokens"] * 8) / 1e6
        assert kind["cost"] == kind["cost_now"] == pytest.approx(dollars)
        assert summary["asked"]["teacher"]["note"] in (folder / "report.md").read_text().replace("\\", "")
        assert list(summary["metrics"]) == ["popularity", "teacher", "x"]
        texts = [row["text"] for row in read_jsonl(folder / "eval" / "test.teacher.jsonl")]
        assert all("Heat (1995)" in text for text in texts)
        asked = sum(server.asked.values())
        again = run_command(*command, "fresh=true", cwd=tmp_path, **env)
        assert again.returncode == 0, again.stderr
        assert sum(server.asked.values()) == asked
    kind = read_json(folder / "summary.json")["asked"]["teacher"]["kinds"]["recommend"]
    assert (kind["asked"], kind["cost_now"], kind["cost"]) == (0, 0, pytest.approx(dollars))
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


@pytest.mark.processes
@pytest.mark.long
def test_in_training_in_task_eval_and_in_their_comparison(tmp_path):
    trained = run_command(*SMOKE, ASKED, "study=s", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    (run,) = tmp_path.glob("outputs/s/rank_grpo-*")
    summary = read_json(run / "summary.json")
    assert list(summary["metrics"]) == ["popularity", "teacher", "rank_grpo"]
    assert summary["asked"]["teacher"]["teacher"] == "simulated movieland"
    assert [paired["against"] for paired in summary["paired"]] == ["popularity", "teacher"]
    evaluated = run_command("task=eval", f"checkpoint={run}", *SMOKE, ASKED, "study=s", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    (other,) = tmp_path.glob("outputs/s/eval-*")
    assert read_json(other / "summary.json")["metrics"]["teacher"] == summary["metrics"]["teacher"]
    assert read_json(other / "summary.json")["asked"]["teacher"]["kinds"]["recommend"]["asked"] == 0
    done = run_command("task=compare", "runs=outputs/s/*", "compare.baseline=teacher", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "differences from Teacher" in done.stdout
    table = (tmp_path / "outputs" / "s" / "comparison" / "metrics.csv").read_text()
    assert table.count("Teacher,ndcg@5") == 1, "both runs asked the same teacher: one system"
