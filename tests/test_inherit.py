"""task=eval takes over what its run was made with: the command line wins over the run, the run over the project's defaults."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support import SMALL_MODEL, SMOKE, assert_user_error, compose_config, run_command

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_json
from convrec_r1.config.files import conf_folder
from convrec_r1.config.inherit import inherit
from convrec_r1.evaluate.config import EvalConfig, Select, split_note
from convrec_r1.evaluate.scoring import Evaluation
from convrec_r1.run.folder import RunFolder

TRAINED = (
    "n=7", "seed=4", "data=redial", "data.path=there", "data.instruction='Name {n} films.'", "data.train_size=50",
    "model.max_prompt_length=300", "model.max_completion_length=99", "model.lora.rank=3", "match=normalised",
    "match.year_tolerance=1", "reward=log_decay", "reward.position=parsed", "rollout.stop_at_n=true", "eval.ks=[3,7]",
    "eval.ideal=paper", "eval.constraint=catalog", "eval.metric=ndcg@3", "eval.split=validation", "eval.select=best",
)  # fmt: skip
"""A run in which everything is unlike the defaults."""
OVER = {
    "n": 7, "seed": 4, "data.name": "redial", "data.path": "there", "data.instruction": "Name {n} films.",
    "data.train_size": 50, "data._target_": "convrec_r1.data.adapters.redial.Redial", "model.max_prompt_length": 300,
    "model.max_completion_length": 99, "model.lora.rank": 3, "match._target_": "convrec_r1.matching.Normalised",
    "match.year_tolerance": 1, "reward.position": "parsed", "reward.kind": "log_decay", "rollout.stop_at_n": True,
    "eval.ks": [3, 7], "eval.ideal": "paper", "eval.constraint": "catalog",
    "eval.metric": "ndcg@3", "eval.split": "validation", "eval.select": "best",
}  # fmt: skip


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a run, with checkpoints, and without any weights."""
    folder = RunFolder(tmp_path / "run")
    folder.begin(compose_config(*TRAINED))
    (folder.checkpoints / "000004" / "policy").mkdir(parents=True)
    (folder.checkpoints / "last").symlink_to("000004")
    return folder.path


def evaluation(checkpoint: object, *overrides: str):
    """The config of task=eval after the run, and what is said about it."""
    given = ["task=eval", f"checkpoint={checkpoint}", *overrides]
    cfg = compose_config(*given)
    said = inherit(cfg, given, [conf_folder()])
    return cfg, said


def value(cfg, key: str):
    found = OmegaConf.select(cfg, key)
    return getattr(found, "name", found)


@pytest.mark.parametrize("place", ["", "checkpoints/last", "checkpoints/000004", "checkpoints/last/policy"])
def test_everything_that_decides_the_numbers_comes_from_the_run(run, place):
    cfg, said = evaluation(run / place)
    assert {key: value(cfg, key) for key in OVER} == OVER
    assert "n=7, data=redial, model=tiny, model.max_prompt_length=300" in said
    assert "match=normalised" in said
    assert "overridden" not in said
    assert "\n" not in said


def test_arguments_of_the_chat_template_that_are_not_the_projects_own_come_too(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin(compose_config("+model.template.reasoning_effort=low", "model.date=2025-01-31"))
    cfg, _ = evaluation(folder.path)
    assert cfg.model.template == {"enable_thinking": False, "reasoning_effort": "low"}
    assert cfg.model.date == "2025-01-31"
    cfg, _ = evaluation(folder.path, "+model.template.reasoning_effort=high")
    assert cfg.model.template.reasoning_effort == "high"


def test_the_metric_of_a_class_that_the_command_does_not_name_stays_behind(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin(compose_config("+metrics.mine._target_=my_metrics.Surprise", "eval.metric=surprise@5"))
    cfg, said = evaluation(folder.path)
    assert cfg.eval.metric is None
    assert "overridden: eval.metric=null (there surprise@5)" in said
    cfg, _ = evaluation(folder.path, "+metrics.mine._target_=my_metrics.Surprise")
    assert cfg.eval.metric == "surprise@5"


def test_what_is_of_training_or_of_the_machine_does_not(run):
    stored = OmegaConf.load(run / "config.yaml")
    OmegaConf.update(stored, "model.trust_remote_code", True)
    OmegaConf.update(stored, "model.attention", "someone/kernels")
    OmegaConf.update(stored, "data.demonstrations", "distilled")
    OmegaConf.update(stored, "trainer.accelerator", "gpu")
    OmegaConf.update(stored, "rollout.batch_size", 3)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(stored))
    cfg, plain = evaluation(run)[0], compose_config("task=eval")
    for key in (
        "model.trust_remote_code",
        "model.attention",
        "data.demonstrations",
        "trainer",
        "rollout.batch_size",
        "rl",
        "logger",
    ):
        assert OmegaConf.select(cfg, key) == OmegaConf.select(plain, key), key


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("n=12", "n", 12),
        ("n=10", "n", 10),  # the project's default, given by hand
        ("data.path=here", "data.path", "here"),
        ("data.instruction=x", "data.instruction", "x"),
        ("model.max_prompt_length=512", "model.max_prompt_length", 512),
        ("match.year_tolerance=2", "match.year_tolerance", 2),
        ("reward.position=line", "reward.position", "line"),
        ("eval.split=test", "eval.split", "test"),
        ("eval.ideal=standard", "eval.ideal", "standard"),
    ],
)
def test_the_command_line_wins_over_the_run(run, override, key, expected):
    cfg, said = evaluation(run, override)
    assert value(cfg, key) == expected
    assert f"{key}={expected} (there " in said
    others = {k: v for k, v in OVER.items() if k != key and not (key == "n" and k == "eval.metric")}
    assert {k: value(cfg, k) for k in others} == others, "everything else is the run's"


def test_overridden_values_are_written_as_the_command_line_has_them(run):
    _, said = evaluation(run, "data=jsonl", "data.path=here", "data.catalog=x/catalog.csv", "match=folded")
    assert "data.catalog=x/catalog.csv (there null)" in said
    assert "match=folded (there normalised)" in said
    stored = OmegaConf.load(run / "config.yaml")
    OmegaConf.update(stored, "data.catalog", "old/catalog.csv")
    (run / "config.yaml").write_text(OmegaConf.to_yaml(stored))
    assert "data.catalog=new/catalog.csv (there old/catalog.csv)" in evaluation(run, "data.catalog=new/catalog.csv")[1]


def test_a_chosen_group_is_the_commands(run):
    cfg, said = evaluation(run, "data=cikm23", "data.path=here", "match=folded", "eval=paper")
    assert (cfg.data.name, cfg.data.path, cfg.data.train_size) == ("cikm23", "here", None)
    assert cfg.n == 7, "a dataset's own n is a default"
    assert cfg.data.instruction == "Name {n} films.", "the policy knows this instruction, and these are films too"
    assert (value(cfg, "match._target_"), cfg.match.year_tolerance) == ("convrec_r1.matching.Folded", 2)
    assert cfg.eval.split == "test"
    assert "data=cikm23 (there redial)" in said
    cfg, _ = evaluation(run, "data=jsonl", "data.path=here")
    assert cfg.data.instruction != "Name {n} films.", "other things than films are asked for in their own words"


def test_a_choice_that_sets_several_sections_wins_where_it_says_something(run):
    cfg, said = evaluation(run, "debug=smoke")
    assert (cfg.n, cfg.model.max_prompt_length, cfg.data.train_size) == (5, 192, 32)
    assert (cfg.data.name, cfg.model.lora.rank, value(cfg, "match._target_")) == (
        "redial",
        3,
        "convrec_r1.matching.Normalised",
    )
    assert "n=5 (there 7)" in said
    assert cfg.eval.metric is None


@pytest.mark.parametrize("checkpoint", ["Qwen/Some-Model", "{tmp}/model", "{tmp}"])
def test_nothing_is_taken_over_from_a_model_of_others_and_that_is_said(tmp_path, checkpoint):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("a: file of theirs\n")
    before = compose_config("task=eval")
    cfg, said = evaluation(checkpoint.format(tmp=tmp_path))
    assert "belongs to no training run" in said
    assert cfg.n == before.n
    assert cfg.data == before.data


def test_other_tasks_take_nothing_over(run):
    cfg = compose_config(f"checkpoint={run}")
    assert inherit(cfg, [f"checkpoint={run}"], [conf_folder()]) is None
    assert cfg == compose_config(f"checkpoint={run}")


def store(run: Path, key: str, text: object) -> None:
    stored = OmegaConf.load(run / "config.yaml")
    OmegaConf.update(stored, key, text)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(stored))


@pytest.mark.parametrize("path", ["planted.rules.Rule", "convrec_r1.cli.os.system", "convrec_r1.base.plugins.sys.exit"])
@pytest.mark.parametrize("section", ["match", "data"])
def test_a_class_that_only_the_runs_folder_names_is_refused(run, tmp_path, monkeypatch, section, path):
    """Attributes of our own modules lead anywhere: only the paths of built-in choices are taken over."""
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "__init__.py").write_text(f"open({str(tmp_path / 'was_here')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    store(run, f"{section}._target_", path)
    with pytest.raises(UserError, match=rf"{section}=NAME"):
        evaluation(run)
    assert not (tmp_path / "was_here").exists()
    cfg, _ = evaluation(run, "match=folded", "data=redial")
    assert (value(cfg, "match._target_"), value(cfg, "data.name")) == ("convrec_r1.matching.Folded", "redial")


def test_a_reward_that_only_the_runs_folder_names_is_told(run):
    store(run, "reward._target_", "planted.rewards.X")
    cfg, said = evaluation(run)
    assert value(cfg, "reward._target_") == "convrec_r1.reward.rank.RankReward"
    assert "planted.rewards.X is not imported" in said


def test_a_runs_file_reads_no_environment(run):
    text = (run / "config.yaml").read_text().replace("Name {n} films.", "${oc.env:HOME} {n}")
    (run / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"data\.instruction holds"):
        evaluation(run)
    assert evaluation(run, "data.instruction=x")[0].data.instruction == "x"


def test_a_config_that_cannot_be_read_is_named(run):
    (run / "config.yaml").write_text("n: [")
    with pytest.raises(UserError, match=r"config\.yaml: not the config of a run"):
        evaluation(run)


def test_keys_of_other_versions_are_left(run):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("max_prompt_length", "longest_prompt"))
    cfg, _ = evaluation(run)
    assert cfg.model.max_prompt_length == compose_config().model.max_prompt_length
    assert cfg.model.max_completion_length == 99


# -- whole commands --------------------------------------------------------------------------------------------------------

TRAIN = (*SMOKE, *SMALL_MODEL, "n=4", "eval.every=0", "eval.baselines=[]", "eval.resamples=20", "reward.position=parsed",
         "data.instruction='Name {n} films.'", "hydra.run.dir=run", "rl.steps=2")  # fmt: skip
EVALUATE = ("task=eval", "logger=none", "eval.resamples=20", "eval.baselines=[]")
whole = pytest.mark.processes("inherit")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("trained")
    done = run_command(*TRAIN, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd


@whole
def test_an_evaluation_without_any_override_repeats_the_runs_own(trained):
    done = run_command(*EVALUATE, "checkpoint=run", "hydra.run.dir=again", cwd=trained)
    assert done.returncode == 0, done.stdout + done.stderr
    own, again = (Evaluation.read_jsonl(trained / name / "eval" / "test.jsonl") for name in ("run", "again"))
    assert [s.text for s in again.samples] == [s.text for s in own.samples]
    assert again.summary() == own.summary()
    assert "From run: n=4, data=movieland" in " ".join(done.stdout.split())


@whole
def test_a_sweep_over_checkpoints_takes_over_from_each(trained):
    other = run_command(*TRAIN, "n=3", "seed=2", "hydra.run.dir=other", cwd=trained)
    assert other.returncode == 0, other.stdout + other.stderr
    done = run_command("-m", *EVALUATE, "checkpoint=run,other", "study=both", cwd=trained)
    assert done.returncode == 0, done.stdout + done.stderr
    folders = list((trained / "outputs" / "both").glob("eval-*"))
    lengths = {
        name: OmegaConf.load(path / "config.yaml").n
        for path in folders
        for name in read_json(path / "summary.json")["metrics"]
    }
    assert lengths == {"run": 4, "other": 3}
    assert {path.name.rsplit("-", 2)[1] for path in folders} == {"s1", "s2"}, "named after what was taken over"


@whole
def test_an_evaluation_on_what_the_policy_was_trained_on_says_so(trained):
    done = run_command(*EVALUATE, "checkpoint=run", "eval.split=train", "hydra.run.dir=on_train", cwd=trained)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((trained / "on_train" / "summary.json").read_text())
    assert "was trained on these conversations" in summary["notes"][0]
    assert "was trained on these conversations" in (trained / "on_train" / "report.md").read_text()
    assert "was trained on these conversations" in " ".join(done.stdout.split())
    assert "overridden: eval.split=train (there test)" in " ".join(done.stdout.split())
    assert json.loads((trained / "run" / "summary.json").read_text())["notes"] == []
    strangers = ("data.seed=9", "eval.split=train", "hydra.run.dir=strangers")
    done = run_command(*EVALUATE, "checkpoint=run", *strangers, cwd=trained)
    assert json.loads((trained / "strangers" / "summary.json").read_text())["notes"] == [], "others that it never met"


@whole
def test_a_run_that_reports_on_the_split_that_chose_its_policy_says_so(trained):
    done = run_command(
        *TRAIN, "eval.every=1", "eval.select=best", "eval.split=validation", "hydra.run.dir=best", cwd=trained
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (note,) = json.loads((trained / "best" / "summary.json").read_text())["notes"]
    assert "chosen by its value on these conversations" in note
    assert note in (trained / "best" / "report.md").read_text()
    assert "chosen by its value" in " ".join(done.stdout.split())


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("trained_on", [True, False])
@pytest.mark.parametrize("chosen", [True, False])
def test_notes_on_splits(split, trained_on, chosen):
    note = split_note(EvalConfig(split=split, select=Select.best), trained=trained_on, chosen=chosen)
    assert (note is not None) == ((split == "train" and trained_on) or (split == "validation" and chosen))


@whole
def test_a_checkpoint_without_a_summary_is_evaluated_by_its_step(trained):
    done = run_command(*EVALUATE, "checkpoint=run/checkpoints/last", "n=2", "hydra.run.dir=last", cwd=trained)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "overridden: n=2 (there 4)" in " ".join(done.stdout.split())
    assert_user_error(run_command(*EVALUATE, "checkpoint=none", cwd=trained), "none")
