"""task=publish: the folder for the Hub, its card, reading it back, and the upload to a small server that speaks its API."""

import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from fake_hub import TOKEN, Hub, Repository, serving
from fake_runs import CATALOG, ITEMS, N, conversation, judge, list_with_hits, write_run
from support import make_config, tiny_policy

from convrec_r1 import Recommender
from convrec_r1.base.errors import UserError
from convrec_r1.config.checks import problems
from convrec_r1.evaluate.config import EvalConfig
from convrec_r1.run.checkpoints import seal
from convrec_r1.run.folder import RunFolder
from convrec_r1.serve.hub.card import training_config
from convrec_r1.serve.hub.folder import write_folder
from convrec_r1.serve.hub.trained import read_trained
from convrec_r1.serve.package import Package, Settings, write_package
from convrec_r1.serve.request import Request
from convrec_r1.studies.run_report import Wording, report
from convrec_r1.tasks.publish import publish

NAME = "acme/film-talk"
ASKED = "I would like something new for tonight. What do you recommend?"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A finished run with a small policy, not trained: evaluation, report, checkpoint and package as a run writes them."""
    path = tmp_path_factory.mktemp("outputs") / "run"
    asked = [conversation(i, ITEMS[i : i + 2]) for i in range(8)]
    good, bad = [list_with_hits(c, [1, 0, 1]) for c in asked], [list_with_hits(c, [0, 0, 0]) for c in asked]
    write_run(path, asked, good)
    folder = RunFolder(path)
    folder.summary.unlink()
    options = EvalConfig(ks=[3, N], resamples=200)
    systems = {"popularity": judge(bad, asked, ks=(3, N)), "rank_grpo": judge(good, asked, ks=(3, N))}
    summary = report(folder, systems, options, Wording("tiny on films", seed=1), n=N)
    folder.finish({"git_sha": "abc123", "steps": 3, "policy": "checkpoints/000003/policy", **summary})
    policy = tiny_policy()
    policy.save(folder.checkpoints / "000003" / "policy")
    seal(folder.checkpoints / "000003")
    fields = {item: {"genre": ("comedy",)} for item in ITEMS[:10]}
    settings = Settings(n=N, instruction="Recommend {n} films.", max_prompt_length=96, max_completion_length=40)
    write_package(folder.package, Package(settings, CATALOG, fields))
    return path


@pytest.fixture
def run(made, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made, tmp_path / "run"))


def config(*overrides: str):
    cfg = make_config("task=publish", "checkpoint=run", f"hub={NAME}", "publish.license=mit", *overrides)
    assert problems(cfg) == []
    return cfg


def test_the_folder_is_read_back_by_recommender_and_by_plain_transformers(run, capsys):
    publish(config("publish.dry_run=true"))
    assert "Nothing was uploaded" in capsys.readouterr().out
    with Recommender.load("run/hub") as recommender:
        found = recommender.recommend("A comedy?", where="genre=comedy", seen=["Film A"])
        asked = recommender.session.planner.plan(Request(ASKED)).job
    assert len(found) == N
    assert {item.item for item in found} <= set(ITEMS[1:10])
    # Both programs of the card, as a reader would copy them.
    ours, plain = re.findall(r"```python\n(.*?)```", Path("run/hub/README.md").read_text(), re.DOTALL)
    exec(ours.replace(NAME, "run/hub"), {})
    assert len(capsys.readouterr().out.splitlines()) == N
    names: dict = {}
    exec(plain.replace(NAME, "run/hub"), names)
    assert names["prompt"]["input_ids"][0].tolist() == asked.prompt
    written = names["output"][0, len(asked.prompt) :]
    assert len(written) == 40 or written[-1] == names["tokenizer"].eos_token_id  # max_completion_length, not 20


def test_the_card_tells_what_the_run_recorded(run):
    write_folder(read_trained("run"), Path("out"), NAME, make_config("publish.license=mit").publish)
    text = Path("out/README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["license"], head["pipeline_tag"], head["library_name"]) == ("mit", "text-generation", "transformers")
    results = head["model-index"][0]["results"][0]
    values = {metric["type"]: metric["value"] for metric in results["metrics"]}
    summary = yaml.safe_load((run / "summary.json").read_text())
    assert values == pytest.approx({m: summary["metrics"]["rank_grpo"][m] for m in values}, abs=1e-6)
    assert set(values) == {"ndcg@3", "ndcg@5", "recall@3", "recall@5"}
    low, high = summary["intervals"]["rank_grpo"]["ndcg@5"]
    assert f"{low:.4f} to {high:.4f}" in text
    assert "Rank-GRPO \N{MINUS SIGN} Popularity, NDCG@5: +" in text
    assert "simulated (movieland)" in text
    assert "commit abc123" in text
    assert Path("out/figures/run.png").stat().st_size > 1000
    assert "FILL IN" not in text
    huggingface_hub.ModelCard(text)  # the Hub's library reads it


def test_without_a_licence_the_card_has_a_place_for_it_and_the_catalog_may_stay_at_home(run):
    options = make_config("publish.dry_run=true", "publish.catalog=false").publish
    write_folder(read_trained("run"), Path("out"), NAME, options)
    text = Path("out/README.md").read_text()
    assert "# license: FILL IN" in text
    assert "**To be filled in**" in text
    assert 'catalog="catalog.csv"' in text
    assert not Path("out/catalog.jsonl").exists()
    with pytest.raises(UserError, match="catalog=FILE"):
        Recommender.load("out")
    with Recommender.load("out", catalog=CATALOG) as recommender:
        assert len(recommender.recommend("Hello", n=3)) == 3


def test_the_training_record_has_no_folders_addresses_or_accounts():
    tree = {
        "model": {"path": "/home/ann/models/mine", "name": "mine"}, "data": {"path": "~/d", "options": {"x": ["C:\\data\\f"]}},
        "teacher": {"options": {"base_url": "http://10.0.0.7:8000/v1"}}, "logger": {"entity": "ann"}, "n": 5,
        "base": "Qwen/Qwen2.5-0.5B",
    }  # fmt: skip
    assert training_config(tree) == {
        "model": {"path": "mine", "name": "mine"}, "data": {"path": "d", "options": {"x": ["f"]}},
        "teacher": {"options": {"base_url": "(address)"}}, "n": 5, "base": "Qwen/Qwen2.5-0.5B",
    }  # fmt: skip


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The Hub's library, turned to a server on loopback."""
    hub = Hub()
    with serving(hub) as address:
        for module in (huggingface_hub.constants, huggingface_hub.hf_api.constants):
            monkeypatch.setattr(module, "ENDPOINT", address)
            monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        huggingface_hub.utils.close_session()
        yield hub
        huggingface_hub.utils.close_session()


def test_one_commit_brings_the_whole_folder_and_takes_away_what_is_stale(run, hub):
    publish(config())
    repository = hub.repositories[NAME]
    assert repository.private
    assert repository.commits == ["Rank-GRPO: run"]
    written = {str(f.relative_to(run / "hub")): f.read_bytes() for f in (run / "hub").rglob("*") if f.is_file()}
    assert repository.files == written
    repository.files["model-00001-of-00002.safetensors"] = b"of a larger model"
    repository.files["notes.md"] = b"the owner's"
    publish(config("publish.catalog=false"))
    assert len(repository.commits) == 2
    assert repository.files.keys() == (written.keys() - {"catalog.jsonl"}) | {"notes.md"}


def test_a_hub_id_is_loaded_as_a_folder_is(run, hub):
    publish(config())
    with Recommender.load(NAME) as recommender:
        assert len(recommender.recommend("A comedy?")) == N


def test_a_public_repository_needs_a_word(run, hub):
    hub.repositories[NAME] = Repository(private=False)
    with pytest.raises(UserError, match=r"exists and is public\. publish\.private=false"):
        publish(config())
    assert hub.repositories[NAME].commits == []
    publish(config("publish.private=false"))
    assert len(hub.repositories[NAME].commits) == 1


@pytest.mark.parametrize("stage", ["create", "commit"])
def test_a_failing_hub_holds_nothing_of_it(run, hub, stage):
    hub.refuses.add(stage)
    with pytest.raises(UserError, match=r"Nothing was uploaded\. The folder is ready: run/hub"):
        publish(config())
    assert not any(repository.files for repository in hub.repositories.values())
    hub.refuses.clear()
    publish(config())
    assert len(hub.repositories[NAME].commits) == 1


def test_a_wrong_token_and_no_connection_are_explained(run, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="may not write to acme: run `hf auth login`"):
        publish(config())
    for module in (huggingface_hub.constants, huggingface_hub.hf_api.constants):
        monkeypatch.setattr(module, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot be reached"):
        publish(config())


def test_what_is_missing_is_asked_for(run, hub, monkeypatch, tmp_path):
    asked = "\n".join(problems(make_config("task=publish", "hub=films")))
    for sentence in (
        "needs checkpoint=RUN",
        "hub=films: the id of a repository is ORG/NAME",
        "publish.license is not set",
    ):
        assert sentence in asked
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    with pytest.raises(UserError, match=r"hf auth login.*Nothing was uploaded\. The folder is ready: run/hub"):
        publish(config())
    assert hub.asked == []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    huggingface_hub.utils.close_session()
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        publish(config())


def test_other_runs_and_checkpoints_are_refused(run):
    shutil.copytree(run / "checkpoints" / "000003", run / "checkpoints" / "000002")
    with pytest.raises(UserError, match="is not the policy that the results"):
        read_trained("run/checkpoints/000002")
    assert read_trained("run/checkpoints/000003").policy.resolve() == read_trained("run").policy.resolve()
    with pytest.raises(UserError, match="no run's folder"):
        read_trained("nowhere")
    (run / "package" / "convrec_r1.json").unlink()
    with pytest.raises(UserError, match="fresh=true"):
        read_trained("run")
    (run / "summary.json").unlink()
    with pytest.raises(UserError, match="not complete"):
        read_trained("run")


def test_a_folder_of_something_else_is_not_overwritten(run):
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        publish(config("publish.dry_run=true", "publish.folder=out"))
    assert Path("out/thesis.tex").exists()
