"""Weights & Biases: what a study would upload, and the workspace it is looked at in. No key, no network."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import wandb_offline
from support import ROOT, SMALL_MODEL, Command, make_config, run_command, start_command

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_jsonl
from convrec_r1.studies.workspace import GROUPS, build, plots
from convrec_r1.studies.workspace import publish as upload


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folders of a study of two seeds, recorded offline."""
    cwd = tmp_path_factory.mktemp("study")
    done = run_command(
        "-m", "debug=smoke", "logger=wandb", "study=pair", "seed=1,2", *SMALL_MODEL,
        "eval.baselines=[]", "eval.resamples=20", cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    folders = sorted(path.parent for path in cwd.glob("outputs/pair/*/summary.json"))
    assert len(folders) == 2
    return folders


@pytest.mark.processes("study")
def test_runs_of_a_study_belong_together(study):
    runs = [wandb_offline.read(folder) for folder in study]
    for run, folder in zip(runs, study, strict=True):
        assert (run.project, run.group, run.job_type) == ("convrec-r1", "pair", "train")
        assert run.name == folder.name
        assert run.tags == {"rank_grpo", "tiny", "movieland"}
        assert (run.config["algo"]["name"], run.config["reward"]["name"]) == ("rank_grpo", "exp_inf")
        assert run.config["n"] == 5
        if (ROOT / ".git").exists():
            head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
            assert run.config["git_sha"].startswith(head.stdout.strip()[:7])
    assert sorted(run.config["seed"] for run in runs) == [1, 2]
    assert len({run.id for run in runs}) == 2


@pytest.mark.processes("study")
def test_what_is_uploaded_is_what_was_logged_on_our_axes(study):
    for folder in study:
        run = wandb_offline.read(folder)
        logged = read_jsonl(folder / "metrics.jsonl")
        rows = [row for row in run.history if not any(name.startswith("tables/") for name in row)]
        axes = ["sft/step" if record["split"] == "sft" else "step" for record in logged]
        assert rows == [{axis: record["step"], **record["values"]} for axis, record in zip(axes, logged, strict=True)]
        for axis, record in zip(axes, logged, strict=True):
            for name in record["values"]:
                assert run.axes[name] == axis, name
        assert {"step", "sft/step"} == set(axes)
        tables = run.table("tables/rollouts")
        assert len(tables) == 3, "table_every is 1"
        for step, table in enumerate(tables, 1):
            (file,) = (folder / "rollouts").glob(f"rollouts-{step:06d}.jsonl")
            assert [row["list"] for row in table] == [row["list"] for row in read_jsonl(file)]
        final = json.loads((folder / "summary.json").read_text())["metrics"]["rank_grpo"]
        assert {name: run.summary[name] for name in final} == final


@pytest.mark.processes("study")
def test_the_command_line_finds_a_whole_study(study):
    """As far as `wandb sync` goes without a key: it names the runs that it would upload."""
    paths = [str(path) for folder in study for path in folder.glob("wandb/offline-run-*")]
    cwd = study[0].parent
    command = Command(("sync", "--dry-run", *paths), cwd, without_key(cwd), module="wandb")
    assert command.wait() == 0, command.said
    assert "Would sync 2 run(s)" in command.stderr
    for folder in study:
        assert wandb_offline.read(folder).id in command.stderr


def without_times(rows: list[dict]) -> list[dict]:
    """Rows of history without what no two runs have alike: times, and the files of tables."""
    kept = [
        {k: v for k, v in row.items() if not k.startswith(("time/", "tables/")) and "per_second" not in k}
        for row in rows
    ]
    return [row for row in kept if len(row) > 1]


@pytest.mark.processes
def test_a_run_that_was_killed_and_resumed_is_one_whole_history(tmp_path):
    """`wandb sync` sends each offline part from its beginning, under one id: the last part must be the whole run."""
    run = ("debug=smoke", "logger=wandb", *SMALL_MODEL, "rl.steps=6", "guard.action=none", "eval.baselines=[]",
           "eval.resamples=20")  # fmt: skip
    assert run_command(*run, "hydra.run.dir=whole", cwd=tmp_path).returncode == 0
    for step in (2, 4):
        command = start_command(*run, "hydra.run.dir=parts", cwd=tmp_path)
        command.until(lambda step=step: (tmp_path / f"parts/checkpoints/{step:06d}/trainer.ckpt").exists())
        command.end()
    done = run_command(*run, "hydra.run.dir=parts", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    whole, parts = wandb_offline.read(tmp_path / "whole"), wandb_offline.read(tmp_path / "parts")
    assert without_times(parts.history) == without_times(whole.history)
    assert parts.axes == whole.axes
    assert parts.table("tables/rollouts") == whole.table("tables/rollouts")
    ours = {
        name for name in whole.summary if not name.startswith(("_", "time/", "tables/")) and "per_second" not in name
    }
    assert {name: parts.summary[name] for name in ours} == {name: whole.summary[name] for name in ours}
    ended = list((tmp_path / "parts" / "wandb" / "earlier").glob("offline-run-*"))
    assert len(ended) == 2
    assert all(folder.name.endswith(parts.id) for folder in ended), "one id"
    # All that the documented command and a whole wandb/ folder would send:
    for place in (tmp_path / "parts" / "wandb", *(tmp_path / "parts" / "wandb").glob("offline-run-*")):
        command = Command(("sync", "--dry-run", str(place)), tmp_path, without_key(tmp_path), module="wandb")
        assert command.wait() == 0, command.said
        assert "Would sync 1 run(s)" in command.stderr


@pytest.mark.processes("study")
def test_every_metric_of_the_workspace_is_logged_under_that_name(study):
    sections = panels(build("pair", None, "convrec-r1", n=5, ks=[5]))
    shown = {(name, panel["xAxis"]) for section in sections.values() for panel in section for name in panel["metrics"]}
    logged = {
        (name, "sft/step" if record["split"] == "sft" else "step")
        for record in read_jsonl(study[0] / "metrics.jsonl")
        for name in record["values"]
    }
    assert shown <= logged, sorted(shown - logged)
    # And what is to be watched has not been forgotten as metrics were added.
    watched = ("rank/", "time/", "clip_ratio/", "sampling/", "val/ndcg@", "val/recall@", "sft/loss", "kl", "entropy")
    assert {name for name, _ in logged if name.startswith(watched)} <= {name for name, _ in shown}


def spec(workspace):
    """What `save` would upload."""
    return workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)


def panels(workspace):
    sections = spec(workspace)["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: [panel["config"] for panel in section["panels"]] for section in sections}


def test_a_workspace_is_built_without_key_or_network():
    built = spec(build("my study", "team", "films", n=3, ks=[2, 3]))
    assert (built["entity"], built["project"], built["displayName"]) == ("team", "films", "Study my study")
    section = built["spec"]["section"]
    (runs,) = section["runSets"]
    (condition,) = runs["filters"]["filters"]
    assert (condition["key"], condition["op"]) == ({"section": "run", "name": "group"}, "=")
    assert (condition["value"], condition["disabled"]) == ("my study", False)
    # W&B keeps a nested config under "value" of its first key.
    assert [key["name"] for key in runs["grouping"]] == ["algo.value.name", "reward.value.name"]
    assert {key["section"] for key in runs["grouping"]} == {"config"}
    assert section["settings"]["useRunsTableGroupingInPanels"]
    assert section["settings"]["xAxis"] == "step"
    assert not section["settings"]["shouldAutoGeneratePanels"]


def test_its_sections_show_means_over_seeds_with_their_range():
    sections = panels(build("s", None, "films", n=3, ks=[2, 3]))
    assert list(sections) == ["Learning", "Ranks", "Stability", "Catalog", "Speed"]
    for plot in (plot for section in sections.values() for plot in section):
        assert (plot["groupAgg"], plot["groupArea"]) == ("mean", "minmax")
        assert plot["xAxis"] == ("sft/step" if plot["metrics"][0].startswith("sft/") else "step")
    names = {section: [plot["metrics"] for plot in found] for section, found in sections.items()}
    assert names["Ranks"] == [["rank/1/reward", "rank/3/reward"], *([f"rank/{k}/reward"] for k in (1, 2, 3))]
    assert {"reward", "val/ndcg@2", "val/ndcg@3", "val/recall@2", "val/recall@3", "sft/loss"} <= {
        name for metrics in names["Learning"] for name in metrics
    }
    titles = [plot["chartTitle"] for found in sections.values() for plot in found]
    assert len(set(titles)) == len(titles)


def test_a_list_of_one_has_one_rank():
    assert [plot.metrics for plot in plots(1, [1])["Ranks"]] == [("rank/1/reward",)]


@pytest.mark.parametrize("name", ["a b", "lr sweep (2)", "ü/ä", "x and y", "within_last 5 days"])
def test_names_reach_the_filter_as_they_are(name):
    (runs,) = spec(build(name, None, "films"))["spec"]["section"]["runSets"]
    assert [condition["value"] for condition in runs["filters"]["filters"]] == [name]


@pytest.mark.parametrize("name", ["", "it's", 'say "x"', "a=b", "a<b", "a\\b", "a\nb"])
def test_names_that_w_and_b_would_read_otherwise_are_refused(name):
    with pytest.raises(UserError, match="study="):
        build(name, None, "films")


def test_the_groups_are_keys_of_the_config():
    cfg = make_config()
    for key in GROUPS:
        section, name = key.split(".")
        assert isinstance(getattr(getattr(cfg, section), name), str)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UserError, match=r"convrec-r1\[workspace\]"):
        build("s", None, "films")


def publish_job(*overrides: str) -> None:
    try:
        cfg = make_config(*overrides)
        print("URL", upload(cfg.study, cfg.logger, n=cfg.n, ks=cfg.ks))
    except UserError as error:
        sys.exit(f"UserError {error}")


def without_key(home: Path, **more: str) -> dict[str, str | None]:
    """Variables with which nobody is logged in. None: unset."""
    unset = {name: None for name in os.environ if name.startswith("WANDB_")}
    files = {"HOME": str(home), "NETRC": str(home / "netrc"), "WANDB_CONFIG_DIR": str(home / "config")}
    return {**unset, **files, "WANDB_ERROR_REPORTING": "false", **more}


def publish(home: Path, *overrides: str, **env: str):
    """The task in a process of its own: wandb reads keys and addresses once."""
    arguments = json.dumps(["logger=wandb", "study=pair", *overrides])
    command = Command(("test_wandb:publish_job", arguments), home, without_key(home, **env), module="job")
    command.wait()
    return command.done


@pytest.mark.processes
def test_publishing_without_a_key_says_what_to_do(tmp_path):
    done = publish(tmp_path)
    assert done.returncode == 1
    assert "UserError No W&B key" in done.stderr
    assert "WANDB_API_KEY" in done.stderr
    assert "wandb login" in done.stderr


@pytest.mark.processes
def test_publishing_without_a_connection_says_what_to_do(tmp_path):
    # Port 9 (discard) of this machine: nobody listens.
    unreachable = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40, "WANDB_HTTP_TIMEOUT": "3"}
    done = publish(tmp_path, "logger.entity=team", **unreachable)
    assert done.returncode == 1
    assert "UserError W&B refused the workspace for team/convrec-r1" in done.stderr
    assert "connection" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def server():
    """Stands in for W&B's: answers who is asking, and keeps the views it is given."""
    views = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = json.loads(body) if self.path == "/graphql" else {"query": ""}
            viewer = {"id": "1", "entity": "team", "username": "me", "flags": "{}", "teams": {"edges": []}}
            data = {"viewer": viewer}
            if "upsertView" in request["query"]:
                views.append(request["variables"])
                data = {"upsertView": {"view": {"id": "2", "name": "nw-abc-v"}, "inserted": True}}
            answer = json.dumps({"data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}", views
        listening.shutdown()


@pytest.mark.processes
def test_publishing_uploads_the_workspace_and_returns_its_address(tmp_path, server):
    """With a stand-in for W&B's server. That the real one takes the spec is not tested: there is no key here."""
    address, views = server
    done = publish(tmp_path, "n=4", "eval.ks=[2,4]", WANDB_BASE_URL=address, WANDB_API_KEY="a" * 40)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^URL {address}/team/convrec-r1\?nw=abc$", done.stdout, re.MULTILINE)
    (view,) = views
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("team", "convrec-r1", "Study pair")
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    metrics = {name for section in sections for panel in section["panels"] for name in panel["config"]["metrics"]}
    assert {"val/ndcg@2", "val/ndcg@4", "rank/4/reward"} <= metrics
    assert "rank/5/reward" not in metrics
